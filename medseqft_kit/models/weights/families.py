"""Which family a file belongs to: by its names and shapes, never by what it is called."""

from __future__ import annotations

from collections.abc import Callable

from medseqft_kit.errors import ModelError
from medseqft_kit.models.weights import resenc, segresnet, suprem, swinunetr, swinvit, voco
from medseqft_kit.models.weights.foreign import refusal
from medseqft_kit.models.weights.reading import Checkpoint
from medseqft_kit.models.weights.recipe import Recipe

FAMILIES: tuple[Callable[[Checkpoint], Recipe | None], ...] = (
    swinvit.recognise,
    voco.recognise,
    suprem.recognise,
    swinunetr.recognise,
    segresnet.recognise,
    resenc.recognise,
)
"""At most one of them takes a file; add yours."""


def recipe_of(checkpoint: Checkpoint) -> Recipe:
    """How the file becomes a model.

    Raises
    ------
    ModelError
        If no family takes it, with the reason where it is of a known one; or if it lacks what tells its network.
    """
    try:
        found = next((recipe for recognise in FAMILIES if (recipe := recognise(checkpoint)) is not None), None)
    except KeyError as absent:
        raise ModelError(
            f"{checkpoint.path} is not whole: its network cannot be told.",
            found=f"no tensor {absent.args[0]}",
            expected="all tensors of its family",
            next_step="download it again",
        ) from absent
    if found is None:
        raise refusal(checkpoint)
    return found
