"""Learning without Forgetting (Li & Hoiem, arXiv 1606.09282, §3): earlier heads answer the new crops as they did.

Loss = L_seg(D_t) + λ_o · mean over earlier heads k and voxels of KL(p_k ‖ q_k), both softened at temperature T: p_k is
what the frozen start says through head k, q_k what the student says through its own, trained too. λ_o → `weight`,
T → `temperature` (the paper: 1 and 2). The paper adds up what the heads lose; the mean keeps λ_o's meaning from stage
to stage. Its warm-up of the new head alone is left out, as in Avalanche. Neither multiplies by T².
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.objectives.retention import softened_divergence
from medseqft_kit.tuning.phases.base import Finished, Phase, Stage, State
from medseqft_kit.tuning.phases.full import fresh_student, supervised
from medseqft_kit.volumes.batches import Batch


@dataclass(frozen=True)
class LearningWithoutForgetting(Phase):
    """Every parameter is trained, earlier heads included; weight 0 is naive sequential tuning."""

    weight: float
    temperature: float
    name = "adapt"

    def begin(self, stage: Stage) -> State:
        student = fresh_student(stage)
        if self.weight == 0 or not stage.earlier:
            return State(student)
        for task in stage.earlier:
            student.heads[task].requires_grad_(True)
        return State(student, teacher=stage.start)

    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        (task,) = batches
        student, teacher = state.model, state.teacher
        features = student.encode(task.image)
        terms = supervised(student, features, task)
        if teacher is not None:
            with torch.no_grad():
                known = teacher.encode(task.image)
                said = {name: teacher.logits(known, name) for name in _earlier_heads(student, task.task)}
            lost = [
                softened_divergence(student.logits(features, name), wanted, self.temperature)
                for name, wanted in said.items()
            ]
            terms["retention"] = self.weight * torch.stack(lost).mean()
        return terms

    def finish(self, stage: Stage, state: State) -> Finished:
        return Finished(state.model)


def _earlier_heads(student: FoundationModel, task: str) -> list[str]:
    """Heads that are trained, the new task's excepted: those of `Stage.earlier`."""
    trained = [name for name, head in student.heads.items() if head.get_parameter("weight").requires_grad]
    return [name for name in trained if name != task]
