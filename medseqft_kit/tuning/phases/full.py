"""Full fine-tuning on the task's labels, optionally held near a teacher on buffer crops (MedSeqFT's stage 1).

Loss = L_seg(D_t) + λ · L_kd(B): L_seg is Dice + cross-entropy, L_kd the distance between the features of student and
frozen teacher (docs/method.md; Ye et al., arXiv 2509.06096). λ → `distill.weight`; λ = 0 is plain full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseqft_kit.models.foundation import frozen_copy
from medseqft_kit.models.registry import Features
from medseqft_kit.objectives.distillation import feature_distance
from medseqft_kit.objectives.segmentation import segmentation_losses
from medseqft_kit.settings import Distill, Optimizer
from medseqft_kit.tuning.phases.base import Finished, Phase, Stage, State
from medseqft_kit.volumes.batches import Batch


@dataclass(frozen=True)
class FullTuning(Phase):
    """Every parameter is trained; the result is M'_t."""

    distill: Distill = Distill(weight=0.0)
    name = "adapt"

    @property
    def uses_buffer(self) -> bool:
        return self.distill.weight > 0

    def learning_rates(self, optimizer: Optimizer) -> Mapping[str, float]:
        return {"": optimizer.learning_rate, "heads.": optimizer.head_learning_rate}

    def begin(self, stage: Stage) -> State:
        student = frozen_copy(stage.start)
        student.add_head_(stage.task, stage.classes, seed=stage.seed)
        student.backbone.requires_grad_(True)
        student.heads[stage.task].requires_grad_(True)
        teacher = stage.start if self.distill.teacher == "previous" else stage.foundation
        return State(student.train(), teacher if self.uses_buffer else None)

    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        task, *buffer = batches
        assert task.label is not None
        features = state.model.encode(torch.cat([task.image, *(batch.image for batch in buffer)]))
        ours = take(features, slice(None, len(task.image)))
        terms = segmentation_losses(state.model.logits(ours, task.task), task.label)
        if state.teacher is not None:
            with torch.no_grad():
                theirs = state.teacher.encode(buffer[0].image)
            held = take(features, slice(len(task.image), None))
            distance = feature_distance(held, theirs, self.distill.distance, self.distill.layers)
            terms["distillation"] = self.distill.weight * distance
        return terms

    def finish(self, stage: Stage, state: State) -> Finished:
        return Finished(state.model)


def take(features: Features, part: slice) -> Features:
    """Features of some samples of a batch."""
    return Features(tuple(stage[part] for stage in features.stages), features.decoded[part])
