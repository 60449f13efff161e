"""Where each tensor of a file goes, as a table: matched, renamed, adapted, missing, mismatched, unused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medseqft_kit.errors import ModelError
from medseqft_kit.models.weights.reading import PREFIXES
from medseqft_kit.models.weights.recipe import NET, Recipe

Status = Literal["matched", "renamed", "adapted", "missing", "mismatched", "unused"]
SSL_HEAD = "ssl_head."
_TOLD = 6


@dataclass(frozen=True)
class Row:
    """One tensor: its name in the file and in the model, as far as it has one, and what there is to say of it."""

    status: Status
    source: str | None
    target: str | None
    note: str = ""

    @property
    def part(self) -> str:
        """Which part of the model: backbone or SSL head; of the file for what is unused."""
        return "file" if self.target is None else "SSL head" if self.target.startswith(SSL_HEAD) else "backbone"


@dataclass(frozen=True)
class Transfer:
    """All rows of one import."""

    rows: tuple[Row, ...]

    def of(self, *statuses: Status, part: str | None = None) -> tuple[Row, ...]:
        """The rows with one of these statuses, of one part or of all."""
        return tuple(row for row in self.rows if row.status in statuses and part in (None, row.part))

    def transferred(self, part: str | None = None) -> int:
        """How many tensors arrive."""
        return len(self.of("matched", "renamed", "adapted", part=part))

    def counts(self) -> dict[str, Counter[str]]:
        """Part to status to number of tensors."""
        parts: dict[str, Counter[str]] = {}
        for row in self.rows:
            parts.setdefault(row.part, Counter())[row.status] += 1
        return parts


def compare(recipe: Recipe, shapes: Mapping[str, torch.Size]) -> Transfer:
    """What arrives in a model whose state dict has these shapes."""
    rows = [_row(recipe, target, shape) for target, shape in shapes.items()]
    rows += [
        Row("mismatched", recipe.sources[name], name, "the network has no such tensor")
        for name in recipe.tensors
        if name not in shapes
    ]
    return Transfer((*rows, *(Row("unused", name, None, why) for name, why in recipe.unused.items())))


def fitted(name: str, tensor: Tensor, shape: torch.Size) -> Tensor | None:
    """The tensor in the shape of its target, where that differs in the number of channels alone; else None.

    The first convolution reads C channels with the weights for one, repeated and divided by C: C equal channels give
    the features of one. What the SSL head says of one channel it says of each.
    """
    if tensor.shape == shape:
        return tensor
    differing = [axis for axis, sizes in enumerate(zip(tensor.shape, shape, strict=False)) if sizes[0] != sizes[1]]
    if tensor.ndim != len(shape) or len(differing) != 1 or tensor.shape[differing[0]] != 1:
        return None
    axis, reads = differing[0], name.startswith(NET)
    if reads and axis != 1:
        return None
    repeated = tensor.expand(shape)
    return repeated / shape[axis] if reads else repeated.contiguous()


def refuse_incomplete(path: str, recipe: Recipe, transfer: Transfer) -> None:
    """Stop an import that would leave something random which the file should hold.

    Raises
    ------
    ModelError
        If nothing arrives, a shape does not fit, or a tensor is missing outside of `recipe.fresh`.
    """
    arrived, wrong = transfer.transferred(), transfer.of("mismatched")
    absent = [row for row in transfer.of("missing") if not _fresh(recipe, row)]
    if arrived and not wrong and not absent:
        return
    lines = [f"{row.source or row.target}: {row.note}" for row in (*wrong, *absent)]
    more = [f"and {len(lines) - _TOLD} more"] if len(lines) > _TOLD else []
    raise ModelError(
        f"{path} looks like {recipe.card.name}, and does not fit its network.",
        found="\n            ".join([f"{arrived} tensors fit; {len(lines)} do not", *lines[:_TOLD], *more]),
        expected=f"all of {arrived + len(lines)}",
        next_step="download the file again, or import it where it was trained and save that network's state dict",
    )


def _row(recipe: Recipe, target: str, shape: torch.Size) -> Row:
    if target not in recipe.tensors:
        return Row("missing", None, target, "not in the file: stays as it was initialised")
    source, tensor = recipe.sources[target], recipe.tensors[target]
    if tensor.shape != shape:
        sizes = f"{tuple(tensor.shape)} in the file, {tuple(shape)} in the network"
        adapted = tensor.is_floating_point() and fitted(target, tensor.to("meta"), shape) is not None
        return Row("adapted" if adapted else "mismatched", source, target, sizes)
    same = source.removeprefix(PREFIXES[-1]) == target.removeprefix(NET).removeprefix(SSL_HEAD)
    return Row("matched" if same else "renamed", source, target)


def _fresh(recipe: Recipe, row: Row) -> bool:
    return any((row.target or "").startswith(prefix) for prefix in recipe.fresh)
