"""Less memory for more time: activations of a backbone's blocks are not kept, but computed again for the gradient.

Gradient checkpointing (Chen et al., arXiv 1604.06174), as PyTorch does it: the values are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from medseqft_kit.models.registry import Backbone


def recompute_(backbone: Backbone) -> None:
    """From now on the backbone keeps, for each of its :attr:`~Backbone.blocks`, its input alone."""
    for block in backbone.blocks:
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward: Callable[..., Any], *inputs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False)
