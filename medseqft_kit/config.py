"""A YAML configuration: read, checked all at once, paths made relative to the file.

Defaults live in :mod:`medseqft_kit.settings`; this module adds what names data and weights.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from medseqft_kit.errors import ConfigError
from medseqft_kit.settings import Section, Settings


def _beside_the_file(path: Path, info: Any) -> Path:  # a ValidationInfo, which no run-time check can look into
    base = (info.context or {}).get("base")
    return (base / path).resolve() if base is not None else path


DataPath = Annotated[Path, AfterValidator(_beside_the_file)]
HubName = Annotated[str, Field(pattern="^hf://")]
VariantName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
TASK_NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
Structures = dict[str, int | tuple[int, ...]]


class Pretrain(Section):
    """How to make an M_0 from unlabelled volumes."""

    data: tuple[DataPath, ...] = Field(min_length=1, description="data sets or folders of NIfTI; labels are not read")
    objective: Literal["masked"] = Field("masked", description="reconstruct hidden blocks of the crop")
    steps: int = Field(2000, gt=0, description="optimiser steps")
    batch: int = Field(4, gt=0, description="crops in a step")
    learning_rate: float = Field(3e-3, gt=0, description="peak, of AdamW")
    cases: int | None = Field(None, gt=0, description="images taken from each data set; None: all but test patients")


class Foundation(Section):
    """Where M_0 comes from: pre-training, or weights; with both, an SSL head is fitted for weights that bring none."""

    pretrain: Pretrain | None = None
    weights: HubName | DataPath | None = Field(
        None, description="a file made by `medseqft pretrain`, a public one, or `hf://owner/repository/file`"
    )

    @model_validator(mode="after")
    def _at_least_one(self) -> Foundation:
        if self.pretrain is None and self.weights is None:
            raise ValueError("give `pretrain` or `weights`; both, where the weights bring no SSL head")
        return self


class Model(Section):
    """The network, where it is built here; with `weights` the file says it, and `patch` alone may be set."""

    architecture: Literal["segresnet", "swinunetr", "resenc"] = Field(
        "segresnet", description="MONAI's SegResNet or SwinUNETR, or nnU-Net's residual encoder U-Net (extra `resenc`)"
    )
    size: Literal["tiny", "small", "base", "large", "huge"] = Field(
        "small", description="SegResNet has no `huge`; ResEnc is `large`"
    )
    patch: tuple[int, int, int] = Field(
        (32, 32, 32), description="crop and sliding window, voxels; with `weights`: the file's, unless it is set"
    )


class TaskSection(Section):
    """One task of the sequence."""

    name: str = Field(pattern=TASK_NAME, description="names folders and the head")
    data: DataPath = Field(description="the data set's folder")
    modality: Literal["CT", "MR", "PET"] | None = Field(
        None, description="which images, where the data set holds several kinds (AMOS22, CHAOS)"
    )
    labels: Structures | None = Field(None, description="structure: file values; None: as the data set declares them")
    annotated: tuple[str, ...] | Literal["present"] | None = Field(
        None,
        description="structures that labels were drawn for, or `present`: those that occur in a case's label; others"
        " are unknown, not background. None: as the data set says, all of them where it says nothing",
    )
    train_cases: int | None = Field(None, gt=0, description="labelled cases used for training; None: all of them")
    spacing: tuple[float, float, float] | None = Field(None, description="mm; None: the data set's median")
    window: tuple[float, float] | None = Field(None, description="HU or SUV mapped to M_0's scale; None: by modality")
    nsd_tolerance_mm: float = Field(2.0, gt=0, description="tolerance of the surface Dice, mm")


class Slurm(Section):
    """What each job of ``compare --executor slurm`` asks the cluster for."""

    partition: str | None = Field(None, description="None: the cluster's own choice")
    minutes: int = Field(1440, gt=0, description="longest time of a job; one that is stopped begins again and goes on")
    memory_gb: float = Field(16.0, gt=0, description="main memory of a job")
    cpus: int = Field(2, gt=0, description="CPUs of a job")
    gpus: int = Field(0, ge=0, description="GPUs of a job")
    at_once: int = Field(32, gt=0, description="runs side by side")


class Compare(Section):
    """The grid of a comparison."""

    strategies: tuple[str, ...] = Field(
        ("parallel", "medseqft"), min_length=1, description="by name, of a strategy or of a variant"
    )
    variants: dict[VariantName, dict[str, Any]] = Field(
        default_factory=dict,
        description="name: settings that differ from the file's, such as {strategy: {lora: {rank: 4}}}",
    )
    seeds: tuple[int, ...] = Field((0, 1), min_length=1, description="every strategy runs with each of them")
    orders: tuple[tuple[str, ...], ...] = Field((), description="orders of arrival by task name; empty: as listed")
    transfer: tuple[str, ...] = Field((), description="strategies whose M_n goes on to the unseen tasks")
    every_stage: bool = Field(False, description="every M_t goes on to the unseen tasks, not M_n alone")
    probes: bool = Field(False, description="fill R[i, j] for tasks to come by linear probes")
    slurm: Slurm = Slurm()


class Config(Settings):
    """A whole configuration file."""

    foundation: Foundation
    model: Model = Model()
    tasks: tuple[TaskSection, ...] = Field((), description="in the order of arrival")
    unseen: tuple[TaskSection, ...] = Field((), description="held back: pre-training never sees their test images")
    label_budgets: tuple[Annotated[int, Field(gt=0)] | Literal["all"], ...] = Field(
        (1, 5, 10, "all"),
        min_length=1,
        description="labelled cases that an unseen task is tuned with, one after another",
    )
    compare: Compare | None = None

    @model_validator(mode="after")
    def _names_fit(self) -> Config:
        names = [task.name for task in (*self.tasks, *self.unseen)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"task names must differ; twice: {', '.join(twice)}")
        reserved = sorted({"mean", "later"} & set(names))
        if reserved:
            raise ValueError(f"a task cannot be called {reserved[0]}: tables have rows of that name")
        for order in self.compare.orders if self.compare else ():
            if sorted(order) != sorted(task.name for task in self.tasks):
                raise ValueError(f"an order must name every task once; found {list(order)}")
        return self


def load_config(path: str | Path) -> Config:
    """Read a configuration.

    Raises
    ------
    ConfigError
        Listing everything that is wrong: unknown keys with the nearest known one, wrong types, missing keys.
    """
    path = Path(path)
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as problem:
        raise ConfigError(f"{path} cannot be read.", found=str(problem)) from problem
    except (yaml.YAMLError, UnicodeDecodeError) as problem:
        raise ConfigError(f"{path} is not YAML.", found=str(problem)) from problem
    return parse_config(raw, base=path.parent, source=str(path))


def parse_config(raw: Any, *, base: Path | None = None, source: str = "the configuration") -> Config:
    """Check a configuration that is already a mapping; paths are taken relative to `base`."""
    try:
        return Config.model_validate(raw, context={"base": base})
    except ValidationError as problem:
        lines = [_explain(error) for error in problem.errors()]
        raise ConfigError(
            f"{source} has {len(lines)} mistake{'s' * (len(lines) > 1)}.",
            found="\n            ".join(lines),
            expected="keys as in docs/configuration.md",
        ) from None


def varied(config: Config, changes: Mapping[str, Any]) -> Config:
    """The configuration with some settings changed, nested as in the file.

    Raises
    ------
    ConfigError
        If a changed setting is unknown or has a value that it cannot have.
    """

    def merged(before: Any, after: Any) -> Any:
        if not isinstance(after, Mapping) or not isinstance(before, Mapping):
            return after
        return {**before, **{key: merged(before.get(key), value) for key, value in after.items()}}

    # What the file leaves open stays open: whether `model` was given matters where there are weights.
    given = config.model_dump(mode="json", exclude_unset=True)
    return parse_config(merged(given, changes), source=f"the change {dict(changes)}")


def assignments(texts: Sequence[str]) -> dict[str, Any]:
    """Settings as the command line gives them, nested as in the file; values are YAML.

    >>> assignments(["budget.steps=600", "strategy.buffer.k=8"])
    {'budget': {'steps': 600}, 'strategy': {'buffer': {'k': 8}}}
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals:
            raise ConfigError("a setting is given as KEY=VALUE.", found=text, expected="for instance budget.steps=600")
        section = found
        *outer, last = key.split(".")
        for name in outer:
            section = section.setdefault(name, {})
        section[last] = yaml.safe_load(value)
    return found


def parse_task(
    data: Path, name: str | None, labels: str | None, train_cases: int | None, modality: str | None = None
) -> TaskSection:
    """A task as the command line gives it: the mapping as YAML text, the name by default that of the folder."""
    section = {"name": name or data.resolve().name, "data": data, "train_cases": train_cases, "modality": modality}
    try:
        return TaskSection.model_validate({**section, "labels": yaml.safe_load(labels) if labels else None})
    except (ValidationError, yaml.YAMLError) as problem:
        raise ConfigError(
            "the task cannot be used as it is given.",
            found=str(problem),
            expected="a name of letters, digits, - and _; labels such as '{organ: [1, 2], tumour: 3}'; CT, MR or PET",
        ) from None


def _explain(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"]) or "top level"
    if error["type"] != "extra_forbidden":
        return f"{where}: {error['msg'].removeprefix('Value error, ')}"
    near = difflib.get_close_matches(str(error["loc"][-1]), _keys_at(error["loc"][:-1]), n=1, cutoff=0.4)
    return f"{where}: unknown key" + (f"; did you mean `{near[0]}`?" if near else "")


def _keys_at(location: tuple[str | int, ...]) -> list[str]:
    """Names of the keys that a section knows, found by walking the models along an error's location."""
    section: type[BaseModel] = Config
    for part in location:
        field = section.model_fields.get(str(part)) if isinstance(part, str) else None
        if field is not None:
            section = _section_in(field.annotation) or section
    return list(section.model_fields)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inside = (_section_in(part) for part in getattr(annotation, "__args__", ()))
    return next((section for section in inside if section is not None), None)


def changed_settings(settings: Settings) -> dict[str, Any]:
    """The difference from the defaults, nested: what a run is called by."""
    return settings.model_dump(mode="json", exclude_defaults=True)
