"""Exporting one task's model of a run: into a temporary folder, checked there, and only then under its name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, get_args

from medseqft_kit.errors import ConfigError
from medseqft_kit.evaluation.load import load_predictor
from medseqft_kit.evaluation.options import PLAIN
from medseqft_kit.evaluation.predict import Predictor
from medseqft_kit.runs.atomic import new_folder
from medseqft_kit.tuning.run import Run

Format = Literal["peft", "bundle", "onnx", "torch"]
Model = Literal["adapted", "merged"]


def export(run: str | Path, task: str, form: str, out: str | Path, which: str | None = None) -> dict[str, float]:
    """Write a model of a run for others to load, if it computes there what it computes here.

    Parameters
    ----------
    form
        ``"torch"``: state dict of the MONAI network and a ``torch.export`` program; ``"onnx"``; ``"bundle"``: a MONAI
        bundle; ``"peft"``: the stage's adapter and the network that it goes on.
    out
        A new folder, or an empty one.
    which
        ``"adapted"``: M'_t; ``"merged"``: M_t. None: the run's headline; for ``"peft"`` the model that the adapter
        makes.

    Returns
    -------
    dict
        What was compared to the largest relative difference; the share of differing voxels for a bundle's workflow.

    Raises
    ------
    RunError, ModelError, AdapterError
        If there is no such model, it cannot be written in that format, or the copy does not compute the same; nothing
        is left behind then.
    ConfigError
        If `out` holds something, or the format is unknown.
    """
    for name, given, known in (("format", form, get_args(Format)), ("model", which, (*get_args(Model), None))):
        if given not in known:
            raise ConfigError(f"there is no such {name}.", found=f"{given}", expected=", ".join(filter(None, known)))
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} holds something already.", expected="a new folder", next_step="another --out")
    source = Run(Path(run))
    chosen = _which(source, task, form, which)
    predictor = load_predictor(source.path, task, chosen)
    predictor = replace(predictor, model=predictor.model.cpu().eval(), options=PLAIN)
    with new_folder(folder) as temporary:
        return _write(source, predictor, chosen, form, temporary)


def _which(run: Run, task: str, form: str, which: str | None) -> Model:
    if form == "peft":
        if which == "adapted" and run.strategy.consolidation is not None:
            raise ConfigError(
                f"the adapter of {task} makes M_t, not M'_t.",
                found="--which adapted",
                expected="--which merged",
                next_step="--format torch --which adapted writes M'_t",
            )
        return "merged"
    return "merged" if (which or run.headline) == "merged" else "adapted"


def _write(run: Run, predictor: Predictor, which: Model, form: str, folder: Path) -> dict[str, float]:
    if form == "torch":
        from medseqft_kit.export.torch_format import write_torch

        return write_torch(predictor, which, folder)
    if form == "onnx":
        from medseqft_kit.export.onnx_format import write_onnx

        return write_onnx(predictor, which, folder)
    if form == "bundle":
        from medseqft_kit.export.bundle import write_bundle

        return write_bundle(predictor, which, folder)
    from medseqft_kit.export.adapter import write_adapter

    stage, base = run.stage_of(predictor.task.name)
    return write_adapter(predictor, which, folder, adapter=stage / "adapter", base=base)
