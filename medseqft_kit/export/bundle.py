"""`bundle`: a MONAI bundle, run once through MONAI's own workflow before it gets its name."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType

import torch

from medseqft_kit.evaluation.predict import Predictor
from medseqft_kit.export import air
from medseqft_kit.export.bundle_check import differing_voxels
from medseqft_kit.export.bundle_config import inference_config, only_window
from medseqft_kit.export.bundle_text import licence_text, metadata, readme
from medseqft_kit.export.checking import checked
from medseqft_kit.export.networks import Network, plain_network, plain_state
from medseqft_kit.models import swin_merging
from medseqft_kit.runs.atomic import write_json, write_text
from medseqft_kit.volumes import intensity


def write_bundle(predictor: Predictor, which: str, folder: Path) -> dict[str, float]:
    """Write configs, model, scripts and docs of a bundle; the differences that were measured.

    Raises
    ------
    ModelError
        If the network is none of MONAI's, MONAI's workflow needs packages that are not installed, or its segmentation
        is not that of :func:`~medseqft_kit.evaluation.predict.predict`.
    """
    model, task = predictor.model, predictor.task.name
    network = plain_network(model, task)
    write_json(folder / "configs" / "inference.json", inference_config(predictor))
    write_json(folder / "configs" / "metadata.json", metadata(predictor, which))
    (folder / "models").mkdir()
    torch.save(plain_state(model, task), folder / "models" / "model.pt")
    write_text(folder / "scripts" / "__init__.py", "")
    for module in _scripts(predictor, network):
        write_text(folder / "scripts" / f"{module.__name__.rpartition('.')[2]}.py", _as_script(module))
    write_text(folder / "docs" / "README.md", readme(predictor, which))
    write_text(folder / "LICENSE", licence_text(model))
    plain = network.build()
    plain.load_state_dict(torch.load(folder / "models" / "model.pt", weights_only=True))
    return {
        "models/model.pt": checked("bundle's model", model, task, plain),
        "differing voxels": differing_voxels(predictor, folder),
    }


def _scripts(predictor: Predictor, network: Network) -> list[ModuleType]:
    scores = [intensity] if only_window(predictor) is None else []
    return [air, *scores, *([swin_merging] if network.legacy_merging else [])]


def _as_script(module: ModuleType) -> str:
    """The module's own text, without the package that its annotations name: they are never evaluated."""
    lines = inspect.getsource(module).splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("from jaxtyping")]
    return f"# {module.__name__} of MedSeqFT Kit, Apache-2.0; shapes in annotations are jaxtyping's.\n{''.join(kept)}"
