"""MedSeqFT Kit: sequential fine-tuning of 3D foundation models for medical image segmentation.

The names below are the public surface. Each is imported from its room when it is first asked for, so that
``import medseqft_kit`` (and ``medseqft --help``) loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseqft_kit.evaluation.options import PredictionOptions as PredictionOptions
    from medseqft_kit.evaluation.predict import ensemble as ensemble
    from medseqft_kit.evaluation.predict import predict as predict
    from medseqft_kit.models.foundation import FoundationModel as FoundationModel
    from medseqft_kit.models.foundation import load_foundation as load_foundation
    from medseqft_kit.models.foundation import save_foundation as save_foundation
    from medseqft_kit.phantoms.write import write_phantoms as write_phantoms
    from medseqft_kit.selection.buffer import select as select
    from medseqft_kit.selection.race import Rules as Rules
    from medseqft_kit.selection.scoring import score_volumes as score_volumes
    from medseqft_kit.tasks.check import check_task as check_task
    from medseqft_kit.tasks.layouts import load_task as load_task
    from medseqft_kit.tuning.sequence import Sequence as Sequence
    from medseqft_kit.volumes.preprocess import Preprocessing as Preprocessing

__version__ = "0.1.0"

_HOMES = {
    "FoundationModel": "models.foundation",
    "PredictionOptions": "evaluation.options",
    "Preprocessing": "volumes.preprocess",
    "Rules": "selection.race",
    "Sequence": "tuning.sequence",
    "check_task": "tasks.check",
    "ensemble": "evaluation.predict",
    "load_foundation": "models.foundation",
    "load_task": "tasks.layouts",
    "predict": "evaluation.predict",
    "save_foundation": "models.foundation",
    "score_volumes": "selection.scoring",
    "select": "selection.buffer",
    "write_phantoms": "phantoms.write",
}

__all__ = [
    "FoundationModel",
    "PredictionOptions",
    "Preprocessing",
    "Rules",
    "Sequence",
    "__version__",
    "check_task",
    "ensemble",
    "load_foundation",
    "load_task",
    "predict",
    "save_foundation",
    "score_volumes",
    "select",
    "write_phantoms",
]


def __getattr__(name: str) -> Any:
    """Import a public name from its room (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
