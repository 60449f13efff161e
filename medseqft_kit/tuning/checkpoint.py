"""One file that brings a training back: weights, optimiser, history, step. The file before it is kept beside it.

Ours are renamed into place whole, but disks and copies go wrong: each file holds the hash of its tensors, and one that
does not fit it is passed over for the one before.
"""

from __future__ import annotations

import hashlib
import json
import warnings
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
    """Write everything that :func:`restore_checkpoint_` needs, atomically; what `path` held becomes the one before."""
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"carried.{name}": value for name, value in carried.items()}
    for name, parameter in _trained(model).items():
        state: Mapping[str, Tensor] = optimizer.state.get(parameter, {})
        tensors |= {f"{moment}.{name}": state[moment] for moment in MOMENTS if moment in state}
    header = {"step": str(progressed.step), "history": json.dumps(progressed.history)}
    if path.exists():
        path.replace(before(path))
    write_tensors(path, tensors, {**header, "hash": _hash(tensors, header)})


def before(path: Path) -> Path:
    """Where the checkpoint before the last one lies."""
    return path.with_name(f"{path.stem}_before{path.suffix}")


def restore_checkpoint_(
    path: Path, model: nn.Module, optimizer: torch.optim.AdamW, carried: Mapping[str, Tensor]
) -> Progressed:
    """Put model, optimiser and `carried` tensors where the last whole checkpoint left them, all in place.

    A damaged file is passed over with a warning that names it. Without a checkpoint nothing changes.
    """
    found = _read(path) or _read(before(path))
    if found is None:
        return Progressed(0, [])
    tensors, header = found
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


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Tensors and header of a checkpoint; None if there is none, or it is not what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
        if header.pop("hash", "") == _hash(tensors, header):
            return tensors, header
        problem = "its content is not what its hash says"
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError) as damage:
        problem = str(damage)
    warnings.warn(f"{path} is damaged ({problem}); the checkpoint before it is used, or none", stacklevel=3)
    return None


def _hash(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    found = hashlib.blake2b(json.dumps(header, sort_keys=True).encode(), digest_size=16)
    for name, tensor in sorted(tensors.items()):
        found.update(name.encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
