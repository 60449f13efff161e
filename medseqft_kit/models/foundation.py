"""The foundation model M: a backbone, the SSL head it was pre-trained with, and one head for each task."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jaxtyping import Float
from pydantic import TypeAdapter
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from medseqft_kit.errors import ConfigError, ModelError
from medseqft_kit.models.precision import channels_last_
from medseqft_kit.models.registry import Features, build_backbone
from medseqft_kit.models.shells import shells
from medseqft_kit.models.ssl_heads import build_ssl_head
from medseqft_kit.randomness import seeded_torch
from medseqft_kit.runs.atomic import write_tensors

MASKED: Mapping[str, object] = MappingProxyType({"name": "masked", "ratio": 0.5, "block": 4})
"""The objective of models that are made here."""


@dataclass(frozen=True)
class ModelSpec:
    """Everything needed to build the network that a weight file belongs to.

    `patch` is the crop in voxels that the model was pre-trained on, and the sliding window's size. `objective` is the
    self-supervised loss of the SSL head with its settings, so that MDS scores with the loss of pre-training; the name
    ``none`` says that there is no such head. `network` are settings of the network that differ from its size's.
    `origin` is kept for people: whose weights they are, under which licence; and for the fitting of an SSL head, under
    ``fresh``, which parts of the backbone (prefixes of names) did not come with them. `scale` is what the two ends of
    a window (CT, PET) were mapped to in pre-training; the model's volumes are prepared so.
    """

    architecture: str = "segresnet"
    size: str = "small"
    channels: int = 1
    patch: tuple[int, int, int] = (32, 32, 32)
    objective: Mapping[str, object] = field(default_factory=lambda: dict(MASKED))
    network: Mapping[str, object] = field(default_factory=dict)
    origin: Mapping[str, object] = field(default_factory=dict)
    scale: tuple[float, float] = (-1.0, 1.0)


class FoundationModel(nn.Module):
    """Backbone + SSL head + one 1×1×1 head for each task.

    Build one with :meth:`build` or :func:`load_foundation`; the constructor only assembles.
    """

    ssl_head: Any
    """What the objective reads: the module that :mod:`~medseqft_kit.models.ssl_heads` builds for it."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = build_backbone(spec.architecture, spec.size, spec.channels, spec.network)
        wrong = [side for side in spec.patch if side % self.backbone.stride or side < self.backbone.smallest]
        if wrong:
            raise ModelError(
                f"{spec.architecture} cannot work on this patch.",
                found=f"{tuple(spec.patch)} voxels",
                expected=f"multiples of {self.backbone.stride}, at least {self.backbone.smallest}",
                next_step="set `model.patch`",
            )
        self.ssl_head = build_ssl_head(self.backbone, spec.channels, spec.objective)
        self.heads = nn.ModuleDict()

    @classmethod
    def build(
        cls,
        architecture: str = "segresnet",
        size: str = "small",
        *,
        channels: int = 1,
        patch: tuple[int, int, int] = (32, 32, 32),
        seed: int = 0,
        objective: Mapping[str, object] = MASKED,
    ) -> FoundationModel:
        """A freshly initialised model; the same seed gives the same weights, and no global random state is touched."""
        spec = ModelSpec(architecture, size, channels, (patch[0], patch[1], patch[2]), dict(objective))
        return cls.of_spec(spec, seed)

    @classmethod
    def of_spec(cls, spec: ModelSpec, seed: int = 0) -> FoundationModel:
        """The same for a whole specification."""
        with seeded_torch(seed, "model"):
            return cls(spec)

    @classmethod
    def of_parts(cls, spec: ModelSpec, parts: Mapping[str, nn.Module]) -> FoundationModel:
        """A model of modules that there are already, by their names in it; they become its own."""
        model = cls.__new__(cls)
        model._assemble_(spec, parts)
        return model

    def _assemble_(self, spec: ModelSpec, parts: Mapping[str, nn.Module]) -> None:
        """In place of the constructor, where the parts are there: building a backbone would be for nothing."""
        nn.Module.__init__(self)
        self.spec = spec
        for name, part in parts.items():
            self.add_module(name, part)

    @property
    def head_classes(self) -> dict[str, int]:
        """Task to the number of classes of its head, background included."""
        return {task: len(head.get_parameter("weight")) for task, head in self.heads.items()}

    def encode(self, image: Float[Tensor, "b c d h w"]) -> Features:
        """Features of a batch of crops; sides are multiples of the backbone's stride."""
        return self.backbone(image)

    def reconstruct(self, features: Features) -> Float[Tensor, "b c d h w"]:
        """The SSL head's reconstruction of the crop, where the objective is one of the masked ones."""
        return self.ssl_head(features.decoded)

    def logits(self, features: Features, task: str) -> Float[Tensor, "b k d h w"]:
        """Class logits of one task's head."""
        return self.heads[task](features.decoded)

    def forward(self, image: Float[Tensor, "b c d h w"], task: str) -> Float[Tensor, "b k d h w"]:
        """Logits of one task for a batch of crops."""
        return self.logits(self.encode(image), task)

    def add_head_(self, task: str, classes: int, seed: int = 0) -> None:
        """Give the model a fresh head for `task` in place, replacing one of that name.

        He's initialisation (arXiv 1502.01852), since the head reads rectified features: PyTorch's own is 2.4 times
        smaller, and left whole classes at Dice 0 through a short training.
        """
        with seeded_torch(seed, "head", task):
            head = nn.Conv3d(self.backbone.width, classes, 1)
            nn.init.kaiming_normal_(head.weight, nonlinearity="relu")
            nn.init.zeros_(head.get_parameter("bias"))
            self.heads[task] = head


def save_foundation(model: FoundationModel, path: Path) -> None:
    """Write all weights as safetensors; the header says which network they belong to."""
    spec = json.dumps({"spec": asdict(model.spec), "heads": model.head_classes}, sort_keys=True)
    write_tensors(path, model.state_dict(), {"medseqft": spec})


def load_foundation(
    path: str | Path, *, channels: int | None = None, patch: tuple[int, int, int] | None = None
) -> FoundationModel:
    """Read a model that :func:`save_foundation` wrote, or a public weight file.

    Public files are recognised by names and shapes (docs/foundation-models.md lists the families); what they are, and
    what was decided, is in the model's `spec.origin` and said in a warning.

    Parameters
    ----------
    path
        A file, or ``hf://owner/repository/file`` on the Hugging Face hub.
    channels
        Of the images to come; None: as in the file. Weights for one channel are repeated and divided.
    patch
        Crop and sliding window in voxels; None: the file's.

    Raises
    ------
    ModelError
        If the file is missing or damaged, is of no known family, does not fit its network, or pickles what could run.
    """
    from medseqft_kit.models.weights.hub import located  # importers build what this module defines
    from medseqft_kit.models.weights.importing import Wishes, import_foundation

    path = located(path)
    own = _own(path)
    if own is None:
        imported = import_foundation(path, Wishes(channels, patch))
        warnings.warn(
            "; ".join((f"{path} is {imported.card.name}, {imported.card.licence}", *imported.notes)), stacklevel=2
        )
        return imported.model
    header, weights = own
    spec = _spec(header, weights, path)
    if channels not in (None, spec.channels):
        raise ModelError(
            f"{path} reads another number of channels.",
            found=f"{spec.channels}",
            expected=f"{channels}",
            next_step="import the public file that it was made from with --channels",
        )
    with seeded_torch(0, "load"):
        model = FoundationModel(spec if patch is None else replace(spec, patch=patch))
    for name, classes in header["heads"].items():
        model.add_head_(name, classes)
    model.load_state_dict(weights)
    return model


def _own(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """Header and weights of a file that :func:`save_foundation` wrote; None for other files."""
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("medseqft")
            if header is None:
                return None
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (OSError, SafetensorError):
        return None
    try:
        return json.loads(header), weights
    except (ValueError, RecursionError) as problem:
        raise _damaged(path, str(problem)) from problem


def _spec(header: Any, weights: Mapping[str, Tensor], path: Path) -> ModelSpec:
    """The network that a header describes, if it is the one that the weights belong to; nothing is allocated for it."""
    try:
        spec = TypeAdapter(ModelSpec).validate_python(header["spec"])
        with shells():
            shell = FoundationModel(spec)
            for name, classes in header["heads"].items():
                shell.add_head_(name, classes)
    except (ModelError, ConfigError):
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, OverflowError) as problem:
        raise _damaged(path, str(problem)) from problem
    wanted = {name: tuple(value.shape) for name, value in shell.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in weights.items()}
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        first = differing[0]
        raise _damaged(path, f"{len(differing)} tensors differ, for one {first}: {found.get(first)}", wanted.get(first))
    return spec


def _damaged(path: Path, found: str, expected: object = "what `medseqft` writes") -> ModelError:
    return ModelError(
        f"{path} is not the model that its header describes.",
        found=found,
        expected=str(expected),
        next_step="start from an undamaged copy",
    )


def with_objective(model: FoundationModel, objective: Mapping[str, object], seed: int = 0) -> FoundationModel:
    """A copy of the model with a fresh SSL head, of another objective."""
    changed = FoundationModel.of_spec(replace(model.spec, objective=dict(objective)), seed)
    for name, classes in model.head_classes.items():
        changed.add_head_(name, classes)
    kept = {name: value for name, value in model.state_dict().items() if not name.startswith("ssl_head.")}
    changed.load_state_dict({**changed.state_dict(), **kept})
    return changed


def parameter_count(model: nn.Module) -> int:
    """Number of parameters, trainable or not."""
    return sum(parameter.numel() for parameter in model.parameters())


def frozen_copy(model: FoundationModel) -> FoundationModel:
    """A copy in evaluation mode whose parameters require no gradient (a teacher)."""
    return channels_last_(copy.deepcopy(model)).eval().requires_grad_(False)
