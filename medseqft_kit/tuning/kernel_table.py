"""Fill the table of kernel backends ahead of time: one step of stage 2 with the shapes that a run will have."""

from __future__ import annotations

import torch

from medseqft_kernels.dispatch import pinned
from medseqft_kit.config import Model
from medseqft_kit.lora.inject import LoRASettings, inject
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import resolve_precision
from medseqft_kit.settings import Settings
from medseqft_kit.tuning.at_work import threads_of


def measure_backends(model: Model, settings: Settings, channels: int = 1) -> dict[str, str]:
    """Let `auto` measure every adapted layer of a model, in training and in validation; returns what it takes.

    The shapes are those of stage 2: `budget.batch` crops of a task and as many of the buffer. What is measured is kept
    for this machine and this number of threads; see :mod:`medseqft_kernels.dispatch`.
    """
    precision = resolve_precision(settings.compute.precision, settings.compute.device)
    lora = settings.strategy.lora
    foundation = FoundationModel.build(model.architecture, model.size, channels=channels, patch=model.patch)
    targets = lora.targets or "all"
    adapted = inject(foundation, LoRASettings(lora.uniform_rank, lora.alpha, targets, lora.train_norms), seed=0)
    precision.place_(adapted)
    chosen: dict[str, str] = {}
    with threads_of(settings), pinned(chosen), precision.autocast():
        crops = precision.place(torch.zeros(2 * settings.budget.batch, channels, *model.patch))
        torch.stack([part.float().sum() for part in adapted.encode(crops).named().values()]).sum().backward()
    return chosen
