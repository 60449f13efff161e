"""A predictor from a run folder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from medseqft_kit.errors import ModelError, RunError
from medseqft_kit.evaluation.options import PredictionOptions
from medseqft_kit.evaluation.predict import Predictor
from medseqft_kit.models.foundation import FoundationModel, load_foundation
from medseqft_kit.models.precision import resolve_precision
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.tasks.types import Task
from medseqft_kit.volumes.preprocess import Preprocessing

Which = Literal["adapted", "merged", "agreement"]
"""M'_t; M_t, with the adapters merged in; M'_t mixed with M_0 for each image, see `evaluation.agreement`."""


def load_predictor(run: str | Path, task: str, which: Which = "adapted") -> Predictor:
    """The model that a run made for `task`, ready to predict as the run did; nothing but the run folder is read.

    Parameters
    ----------
    which
        ``"adapted"``: M'_t of the task's own stage; ``"merged"``: M_t, with the adapters merged in; ``"agreement"``:
        M'_t, its weights mixed with M_0's for each image (:mod:`~medseqft_kit.evaluation.agreement`).

    Raises
    ------
    RunError
        If there is no such run, or it has not finished that task.
    ModelError
        If the weights cannot be read or hold no head for the task.
    """
    manifest = RunFolder.open(run).manifest
    stages = {stage["task"]: stage["folder"] for stage in manifest["stages"] if stage["done"]}
    if task not in stages:
        raise RunError(
            f"the run {run} has no finished task of this name.",
            found=task,
            expected=", ".join(stages) or "a finished stage",
            next_step="medseqft run CONFIG.yaml --out RUN continues a run",
        )
    kept = "adapted" if which == "agreement" else which
    path = Path(run) / "stages" / stages[task] / f"{kept}.safetensors"
    model = load_foundation(path)
    if task not in model.heads:
        raise ModelError(f"{path} has no head for {task}.", found=", ".join(model.heads) or "no head", expected=task)
    entry = manifest["tasks"][task]
    foundation = _placed(load_foundation(Path(run) / "foundation.safetensors")) if which == "agreement" else None
    header, chosen = _header(task, entry), manifest.get("config", {}).get("predict", {})
    options = PredictionOptions(tuple(chosen.get("flips", ())), tuple(chosen.get("largest_component", ()))).of(header)
    return Predictor(_placed(model), header, Preprocessing.read(entry["preprocessing"]), foundation, options)


def _placed(model: FoundationModel) -> FoundationModel:
    return model.to(resolve_precision().device).eval()


def _header(name: str, entry: Mapping[str, Any]) -> Task:
    """The task as the manifest describes it, without cases."""
    return Task(
        name=name,
        root=Path(entry["root"]),
        layout=entry["layout"],
        channels=tuple(entry["channels"]),
        structures={structure: tuple(values) for structure, values in entry["structures"].items()},
        declared=frozenset(entry["declared"]),
        cases=(),
    )
