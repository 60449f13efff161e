"""One file that brings a training back: weights, optimiser, history, step."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from medseqft_kit.runs.atomic import write_tensors
from medseqft_kit.runs.history import Row

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
"""AdamW's state of a parameter; heads that take turns have taken fewer steps than the training."""


@dataclass(frozen=True)
class Progressed:
    """Where a training stands: steps done, and the rows logged until then."""

    step: int
    history: list[Row]


def save_checkpoint(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.AdamW,
    progressed: Progressed,
    carried: Mapping[str, Tensor],
) -> None:
    """Write everything that :func:`restore_checkpoint_` needs, atomically."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"carried.{name}": value for name, value in carried.items()}
    for name, parameter in _trained(model).items():
        state: Mapping[str, Tensor] = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}.{name}": state[moment] for moment in MOMENTS if moment in state}
    write_tensors(path, tensors, {"step": str(progressed.step), "history": json.dumps(progressed.history)})


def restore_checkpoint_(
    path: Path, model: nn.Module, optimizer: torch.optim.AdamW, carried: Mapping[str, Tensor]
) -> Progressed:
    """Put model, optimiser and `carried` tensors where the checkpoint left them, all in place.

    Nothing changes if there is no checkpoint or it is damaged.

    A damaged file can only stem from outside, since ours are renamed into place whole; training then starts over.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
    except (FileNotFoundError, SafetensorError):
        return Progressed(0, [])
    model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    for name, tensor in carried.items():
        tensor.copy_(tensors[f"carried.{name}"])
    for name, parameter in _trained(model).items():
        if f"exp_avg.{name}" in tensors:
            state = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
            # A moment must lie in memory like its parameter, or the sums of the next step round differently.
            optimizer.state[parameter] = {
                moment: value if moment == "step" else torch.empty_like(parameter).copy_(value)
                for moment, value in state.items()
            }
    return Progressed(int(header["step"]), json.loads(header["history"]))


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
