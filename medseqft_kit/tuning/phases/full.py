"""Full fine-tuning on the task's labels, optionally held near a teacher on buffer crops (MedSeqFT's stage 1).

Loss = L_seg(D_t) + λ · L_kd(B): L_seg is Dice + cross-entropy, L_kd the distance between the features of student and
frozen teacher (docs/method.md; Ye et al., arXiv 2509.06096). λ → `distill.weight`; λ = 0 is plain full fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.models.registry import Features
from medseqft_kit.objectives.distillation import feature_distance
from medseqft_kit.objectives.segmentation import segmentation_losses
from medseqft_kit.settings import Distill
from medseqft_kit.tuning.phases.base import Finished, Kind, Phase, Stage, State
from medseqft_kit.volumes.batches import Batch


@dataclass(frozen=True)
class FullTuning(Phase):
    """Every parameter is trained; the result is M'_t.

    `length` is a multiple of the budget's steps; with `probed` the head is the one that a probing phase left behind.
    """

    distill: Distill = Distill(weight=0.0)
    length: float = 1.0
    probed: bool = False
    name = "adapt"

    @property
    def sources(self) -> tuple[Kind, ...]:
        return ("task", "buffer") if self.distill.weight > 0 else ("task",)

    @property
    def times(self) -> float:
        return self.length

    @property
    def seeks_flatness(self) -> bool:
        return True

    def begin(self, stage: Stage) -> State:
        student = fresh_student(stage, keep_head=self.probed)
        teacher = stage.start if self.distill.teacher == "previous" else stage.foundation
        return State(student, teacher if "buffer" in self.sources else None)

    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        task, *buffer = batches
        features = state.model.encode(torch.cat([task.image, *(batch.image for batch in buffer)]))
        terms = supervised(state.model, take(features, slice(None, len(task.image))), task)
        if state.teacher is not None:
            with torch.no_grad():
                theirs = state.teacher.encode(buffer[0].image)
            held = take(features, slice(len(task.image), None))
            distance = feature_distance(held, theirs, self.distill.distance, self.distill.layers)
            terms["distillation"] = self.distill.weight * distance
        return terms

    def finish(self, stage: Stage, state: State) -> Finished:
        return Finished(state.model)


def fresh_student(stage: Stage, keep_head: bool = False) -> FoundationModel:
    """A copy of the stage's start with a fresh head for its task; backbone and that head are trainable."""
    student = frozen_copy(stage.start)
    if not keep_head:
        student.add_head_(stage.task, stage.classes, seed=stage.seed)
    student.backbone.requires_grad_(True)
    student.heads[stage.task].requires_grad_(True)
    return student.train()


def supervised(model: FoundationModel, features: Features, batch: Batch) -> dict[str, Tensor]:
    """L_seg of a labelled batch through the head of the batch's own task."""
    assert batch.label is not None
    return segmentation_losses(model.logits(features, batch.task), batch.label, batch.unknown)


def take(features: Features, part: slice) -> Features:
    """Features of some samples of a batch."""
    return Features(tuple(stage[part] for stage in features.stages), features.decoded[part])
