"""From a public weight file to a foundation model, with a report of what went where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from accelerate import init_empty_weights

from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import FoundationModel, ModelSpec
from medseqft_kit.models.swin_merging import MERGING
from medseqft_kit.models.weights.families import recipe_of
from medseqft_kit.models.weights.hub import Download, from_hub, located
from medseqft_kit.models.weights.reading import Checkpoint, read_checkpoint
from medseqft_kit.models.weights.recipe import Card, Recipe
from medseqft_kit.models.weights.transfer import Transfer, compare, fitted, refuse_incomplete

Merging = Literal["legacy", "current"]
NO_SSL_HEAD = (
    "no SSL head: MDS has no loss to score with; name volumes in `foundation.pretrain.data` beside "
    "`foundation.weights`, and a head is fitted on them with the backbone frozen"
)


@dataclass(frozen=True)
class Wishes:
    """What an import may be asked for; None leaves it as the file and its family say.

    `channels` of the images to come (the first convolution is repeated and divided), `patch` in voxels, and which patch
    merging a SwinUNETR was trained with, where somebody knows better than its family does.
    """

    channels: int | None = None
    patch: tuple[int, int, int] | None = None
    merging: Merging | None = None


@dataclass(frozen=True)
class Plan:
    """What an import will do, known before any weight is made: the specification, and where each tensor goes."""

    recipe: Recipe
    spec: ModelSpec
    transfer: Transfer
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Imported:
    """A model from a public file, and all there is to say of it."""

    model: FoundationModel
    card: Card
    transfer: Transfer
    notes: tuple[str, ...]


def import_foundation(name: str | Path, wishes: Wishes = Wishes(), download: Download = from_hub) -> Imported:
    """Read a public weight file: a path, or ``hf://owner/repository/file``.

    Raises
    ------
    ModelError
        If it cannot be fetched or read, pickles what could run, is of no family that can be used, does not fit its
        network in every tensor that it should hold, or a wish cannot be met.
    """
    plan = planned(read_checkpoint(located(name, download)), wishes)
    model = FoundationModel.of_spec(plan.spec)
    shapes = {target: value.shape for target, value in model.state_dict().items()}
    brought = {target: fitted(target, tensor, shapes[target]) for target, tensor in plan.recipe.tensors.items()}
    model.load_state_dict({**model.state_dict(), **brought})
    return Imported(model, plan.recipe.card, plan.transfer, plan.notes)


def planned(checkpoint: Checkpoint, wishes: Wishes = Wishes()) -> Plan:
    """Recognise a file and hold it against its network, which takes no memory for this.

    Raises
    ------
    ModelError
        As :func:`import_foundation`.
    """
    recipe = recipe_of(checkpoint)
    spec = _with_wishes(recipe, wishes)
    with init_empty_weights():
        network = FoundationModel(spec)
    transfer = compare(recipe, {name: value.shape for name, value in network.state_dict().items()})
    refuse_incomplete(str(checkpoint.path), recipe, transfer)
    notes = (*checkpoint.notes, *_notes(recipe, spec))
    return Plan(recipe, replace(spec, origin=_origin(recipe, notes)), transfer, notes)


def _with_wishes(recipe: Recipe, wishes: Wishes) -> ModelSpec:
    spec = recipe.spec
    channels = spec.channels if wishes.channels is None else wishes.channels
    if channels != spec.channels and (spec.channels != 1 or channels < 1):
        raise ModelError(
            "these weights cannot read as many channels.",
            found=f"{channels} wanted, {spec.channels} in the file",
            expected="weights for one channel, which can be repeated; or as many channels as the file has",
        )
    network = dict(spec.network)
    if wishes.merging is not None:
        if MERGING not in network:
            raise ModelError("patch merging is a matter of SwinUNETR alone.", found=spec.architecture)
        network = _merged(network, wishes.merging)
    patch, scale = wishes.patch or spec.patch, recipe.card.inputs.scale
    return replace(spec, channels=channels, patch=patch, network=network, scale=scale)


def _merged(network: Mapping[str, object], merging: Merging) -> dict[str, object]:
    kept = {name: value for name, value in network.items() if name != MERGING}
    return {**kept, MERGING: "legacy"} if merging == "legacy" else kept


def _notes(recipe: Recipe, spec: ModelSpec) -> tuple[str, ...]:
    """The recipe's own, corrected by what was wished for."""
    notes = list(recipe.notes)
    if spec.network.get(MERGING) != recipe.spec.network.get(MERGING):
        notes = ["patch merging as since MONAI 1.5 (current), as it was asked for", *notes[1:]]
    if spec.channels != recipe.spec.channels:
        notes.append(
            f"first convolution for {spec.channels} channels: the weights repeated and divided by {spec.channels}"
        )
    if spec.objective["name"] == "none":
        notes.append(NO_SSL_HEAD)
    return tuple(notes)


def _origin(recipe: Recipe, notes: tuple[str, ...]) -> dict[str, object]:
    card = recipe.card
    return {
        "family": card.name,
        "url": card.url,
        "licence": card.licence,
        "notes": list(notes),
        "fresh": list(recipe.fresh),
    }
