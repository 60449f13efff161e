"""Linear probing: the backbone stays as it is, a head is trained on its last features.

Loss = L_seg(D_t) over the head alone; norm layers keep their statistics. Alone it is the strategy `linear_probe`;
followed by full fine-tuning of the probed head it is LP-FT (Kumar et al., arXiv 2202.10054, §3.3), which keeps the
pre-trained features from being distorted by a random head.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseqft_kit.settings import Optimizer
from medseqft_kit.tuning.phases.base import Finished, Phase, Stage, State
from medseqft_kit.tuning.phases.full import fresh_student, supervised
from medseqft_kit.volumes.batches import Batch


@dataclass(frozen=True)
class LinearProbe(Phase):
    """Only the head is trained, for `length` times the budget's steps."""

    length: float = 1.0
    name = "probe"

    @property
    def times(self) -> float:
        return self.length

    def learning_rates(self, optimizer: Optimizer) -> Mapping[str, float]:
        return {"": optimizer.head_learning_rate}

    def begin(self, stage: Stage) -> State:
        student = fresh_student(stage)
        student.backbone.requires_grad_(False)
        return State(student)

    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        (task,) = batches
        # A frozen backbone has no statistics to update either.
        state.model.backbone.eval()
        with torch.no_grad():
            features = state.model.encode(task.image)
        return supervised(state.model, features, task)

    def finish(self, stage: Stage, state: State) -> Finished:
        return Finished(state.model)
