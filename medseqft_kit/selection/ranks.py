"""Scoring by several processes: each takes every n-th volume that is still in the race, and all hear of all losses.

A race is fed the same numbers everywhere, so every process ends with the same result, to the last bit of what one
process alone would find.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.selection.engine import Engine, Losses


def losses_of_all(ranks: Ranks, engine: Engine, cases: Sequence[str], index: int, size: int) -> Losses:
    """What `engine` finds for all the cases, each computed by one rank."""
    own = cases[ranks.index :: ranks.count]
    found = engine.losses(own, index, size)
    if ranks.count == 1:
        return found
    rows = dict(ranks.together([(case, row) for case, *row in zip(own, *found, strict=True)]))
    loss, controls = zip(*(rows[case] for case in cases), strict=True)
    return Losses(np.stack(loss), np.stack(controls))
