"""Seconds to epochs and iterations. Nothing is imported: nnU-Net's environment and this project's both read it."""

from __future__ import annotations

EPOCHS = 20
"""nnU-Net lowers its learning rate once an epoch; so many steps follow the curve well enough."""


def schedule(seconds: float, iteration: float, validation: float) -> tuple[int, int]:
    """Epochs, and training iterations of each, that fill a time.

    Parameters
    ----------
    seconds
        To be filled.
    iteration, validation
        Seconds of one training iteration, and of the one validation iteration that ends an epoch.

    Returns
    -------
    epochs, iterations
        Both at least 1, so that very little time is overdrawn; at most :data:`EPOCHS` epochs.
    """
    epochs = max(1, min(EPOCHS, int(seconds / (iteration + validation))))
    return epochs, max(1, round((seconds / epochs - validation) / iteration))
