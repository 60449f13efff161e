"""Residual encoder U-Nets: nnssl's pre-trained ones (OpenMind) with their decoder, and nnU-Net v2's own checkpoints.

The network is read from shapes: widths, blocks and kernels from convolutions, strides from the decoder's transposed
ones. nnU-Net and nnssl read arrays as (z, y, x), further permuted by their plan's `transpose_forward`; volumes are
(x, y, z) here, so every kernel is turned once, and the network says of a volume what it said there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import ModelSpec
from medseqft_kit.models.registry import size_of
from medseqft_kit.models.weights.reading import Checkpoint
from medseqft_kit.models.weights.recipe import NET, NO_HEAD, Card, Inputs, Recipe
from medseqft_kit.models.weights.resenc_names import canonical
from medseqft_kit.models.weights.swin import DECODER

OPENMIND = Card(
    name="nnssl ResEnc (OpenMind)",
    url="https://huggingface.co/collections/MIC-DKFZ/openmind-models-6819c21c7fe6f0aaaab7dadf",
    licence="CC BY 4.0 as the hub says (nnFoundationCNN: CC BY-SA 4.0)",
    pretext="self-supervised on brain MR; masked auto-encoding where the trainer is BaseMAETrainer",
    inputs=Inputs((1.0, 1.0, 1.0), None, "z-score of each image, CT too", (160, 160, 160)),
)
NNUNET = Card(
    name="nnU-Net v2 ResEnc",
    url="https://github.com/MIC-DKFZ/nnUNet",
    licence="unknown: ask whoever trained it",
    pretext="supervised, by nnU-Net",
    inputs=Inputs(None, None, "as the plan of its data set says", (160, 160, 160)),
)
MAE = {"name": "mae", "ratio": 0.75, "block": 16}
STEM, FIRST, WIDEN = (
    "encoder.stem.convs.0.conv.weight",
    "encoder.stages.{}.blocks.0.conv1.conv.weight",
    "decoder.transpconvs.{}.weight",
)
PLAIN_ORDER = (2, 1, 0)
TURNED = "kernels turned from nnU-Net's axes (z, y, x{}) to those of a volume here, (x, y, z)"


def recognise(checkpoint: Checkpoint) -> Recipe | None:
    """The recipe of a residual encoder U-Net or of its encoder alone; None for other files."""
    names = _once(checkpoint.tensors)
    if STEM not in names or FIRST.format(0) not in names:
        return None
    plan = _plan(checkpoint.beside)
    order = _order(plan)
    tensors = {name: _turned(checkpoint.tensors[source], order) for name, source in names.items()}
    settings = _settings(tensors)
    last = f"decoder.seg_layers.{len(settings['features']) - 2}."
    size, network = size_of("resenc", settings)
    mae = _is_mae(checkpoint, tensors.get(f"{last}bias"), tensors[STEM].shape[1])
    whole = any(name.startswith("decoder.transpconvs.") for name in names)
    card = OPENMIND if mae or not whole or "nnssl_adaptation_plan" in checkpoint.beside else NNUNET
    patch = _patch(plan, order, settings["strides"], card.inputs.patch)
    targets = {name: f"{NET}{name}" for name in names if ".seg_layers." not in name}
    if mae:
        targets |= {name: f"ssl_head.{name.removeprefix(last)}" for name in names if name.startswith(last)}
    return Recipe(
        card=replace(
            card, inputs=replace(card.inputs, spacing=_spacing(plan, order) or card.inputs.spacing, patch=patch)
        ),
        spec=ModelSpec("resenc", size, tensors[STEM].shape[1], patch, MAE if mae else NO_HEAD, network),
        tensors={target: tensors[name] for name, target in targets.items()},
        sources={target: names[name] for name, target in targets.items()},
        unused={
            names[name]: "head of a segmentation or of deep supervision: every task gets its own"
            for name in names
            if name not in targets
        },
        fresh=() if whole else (DECODER,),
        notes=(
            f"{len(checkpoint.tensors)} names in the file are {len(names)} tensors",
            TURNED.format("" if order == PLAIN_ORDER else ", transposed by its plan"),
            *(() if whole else ("the decoder is not in the file: it starts from random weights",)),
        ),
    )


def _once(tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """The name used here to one of its names in the file; all of them must hold the same values."""
    names: dict[str, str] = {}
    for name, tensor in tensors.items():
        first = tensors[names.setdefault(canonical(name), name)]
        same = first.shape == tensor.shape and (first.data_ptr() == tensor.data_ptr() or torch.equal(first, tensor))
        if not same:
            raise ModelError(
                "the file says two different things of one tensor.",
                found=f"{names[canonical(name)]} and {name} differ",
                expected="the same values under all names of a tensor",
                next_step="download the file again",
            )
    return names


def _settings(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    stages = _count(tensors, r"encoder\.stages\.(\d+)\.")
    first = [tensors[FIRST.format(stage)] for stage in range(stages)]
    widening = [tensors.get(WIDEN.format(level)) for level in reversed(range(stages - 1))]
    return {
        "features": [len(each) for each in first],
        "blocks": [_count(tensors, rf"encoder\.stages\.{stage}\.blocks\.(\d+)\.") for stage in range(stages)],
        "kernels": [[*each.shape[2:]] for each in first],
        # An encoder alone does not say; nnssl's halves every axis at every stage.
        "strides": [[1, 1, 1], *([2, 2, 2] if each is None else [*each.shape[2:]] for each in widening)],
        "decoder_convolutions": [
            _count(tensors, rf"decoder\.stages\.{level}\.convs\.(\d+)\.") or 1 for level in range(stages - 1)
        ],
    }


def _count(names: Mapping[str, Tensor], pattern: str) -> int:
    return 1 + max((int(found[1]) for name in names if (found := re.match(pattern, name))), default=-1)


def _is_mae(checkpoint: Checkpoint, head: Tensor | None, channels: int) -> bool:
    """Whether the decoder restores masked crops: its trainer says so, or nothing but its channels speaks."""
    trainer = checkpoint.beside.get("trainer_name")
    named = (trainer is None and "init_args" not in checkpoint.beside) or "BaseMAE" in str(trainer)
    return named and head is not None and len(head) == channels


def _plan(beside: Mapping[str, Any]) -> Mapping[str, Any]:
    """`transpose_forward`, and `patch_size` and `spacing` of the configuration, as far as the file has a plan."""
    arguments = beside.get("init_args")
    arguments = arguments if isinstance(arguments, Mapping) else {}
    adaptation = beside.get("nnssl_adaptation_plan")
    plan = adaptation.get("pretrain_plan") if isinstance(adaptation, Mapping) else arguments.get("plans")
    if not isinstance(plan, Mapping):
        return {}
    configurations = plan.get("configurations", {})
    wanted = arguments.get("configuration")
    chosen = configurations.get(wanted) if wanted in configurations else next(iter(configurations.values()), {})
    return {**chosen, "transpose_forward": plan.get("transpose_forward", [0, 1, 2])}


def _order(plan: Mapping[str, Any]) -> tuple[int, int, int]:
    """For each axis of a volume here, x, y, z, the axis of the network's kernels."""
    forward = list(plan.get("transpose_forward", (0, 1, 2)))
    x, y, z = (forward.index(2 - axis) for axis in range(3))
    return x, y, z


def _turned(tensor: Tensor, order: Sequence[int]) -> Tensor:
    return tensor.permute(0, 1, *(2 + axis for axis in order)) if tensor.ndim == 5 else tensor


def _patch(
    plan: Mapping[str, Any], order: Sequence[int], strides: Sequence[Sequence[int]], usual: tuple[int, int, int]
) -> tuple[int, int, int]:
    """The plan's patch in our axes, every side rounded up to what the network can work on."""
    step = max(int(torch.tensor(each).prod()) for each in zip(*strides, strict=True))
    sizes = plan.get("patch_size") or usual
    x, y, z = (max(2 * step, -(-int(sizes[axis]) // step) * step) for axis in order)
    return x, y, z


def _spacing(plan: Mapping[str, Any], order: Sequence[int]) -> tuple[float, float, float] | None:
    if not plan.get("spacing"):
        return None
    x, y, z = (float(plan["spacing"][axis]) for axis in order)
    return x, y, z
