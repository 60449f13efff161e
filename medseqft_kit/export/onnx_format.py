"""`onnx`: logits of a batch of patches as ONNX, compared in onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from medseqft_kit.errors import ModelError
from medseqft_kit.evaluation.predict import Predictor
from medseqft_kit.export.checking import checked
from medseqft_kit.export.facts import facts
from medseqft_kit.export.torch_format import program_of

FILE = "model.onnx"
LARGEST = 2**31 - 2**24
"""Bytes of one ONNX file, a protobuf message, with room for the graph; larger weights go into a second file."""


def write_onnx(predictor: Predictor, which: str, folder: Path) -> dict[str, float]:
    """Write ``model.onnx``: input `image` (B, C, D, H, W) of any B, output `logits`; the difference that was measured.

    The model's metadata hold what :func:`~medseqft_kit.export.facts.facts` says, each entry as JSON.

    Raises
    ------
    ModelError
        If the packages of the extra `export` are not installed.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # torch.onnx imports it later, and says less
    except ImportError as problem:
        raise missing_packages(problem) from problem

    model, task = predictor.model, predictor.task.name
    weights = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    program = torch.onnx.export(
        program_of(predictor), input_names=["image"], output_names=["logits"], dynamo=True, verbose=False
    )
    assert program is not None  # it is one where dynamo traces
    program.model.metadata_props.update({name: json.dumps(value) for name, value in facts(predictor, which).items()})
    program.save(folder / FILE, external_data=weights > LARGEST)
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])

    def forward(image: Tensor) -> Tensor:
        return torch.from_numpy(session.run(["logits"], {"image": image.numpy()})[0])

    return {FILE: checked("ONNX model", model, task, forward)}


def missing_packages(problem: ImportError) -> ModelError:
    """What to say where a package of the extra `export` is not installed."""
    return ModelError(
        "this format needs packages that are not installed.",
        found=str(problem),
        next_step="pip install 'medseqft-kit[export]'",
    )
