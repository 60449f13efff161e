"""Multi-task fine-tuning: all tasks at once, one head for each, from M_0 (Caruana, *Multitask Learning*, 1997).

Loss of a step = L_seg of the one task whose turn it is. All tasks together get as many steps as each of them alone
would, so the images seen are those of parallel tuning. It needs all data at once: the first stage trains for all tasks
that the run knows; a task that arrives later has everything trained again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from medseqft_kit.models.foundation import frozen_copy
from medseqft_kit.tuning.phases.base import Finished, Kind, Phase, Stage, State
from medseqft_kit.tuning.phases.full import supervised
from medseqft_kit.volumes.batches import Batch


@dataclass(frozen=True)
class JointTuning(Phase):
    """Every parameter and every head is trained; a stage whose head is there already takes no step."""

    name = "adapt"

    @property
    def sources(self) -> tuple[Kind, ...]:
        return ("joint",)

    def steps(self, stage: Stage) -> int:
        return 0 if stage.task in stage.start.heads else len(stage.tasks) * stage.steps

    def begin(self, stage: Stage) -> State:
        if stage.task in stage.start.heads:
            return State(frozen_copy(stage.start).train())
        student = frozen_copy(stage.foundation)
        for task, classes in stage.tasks.items():
            student.add_head_(task, classes, seed=stage.seed)
        student.backbone.requires_grad_(True)
        student.heads.requires_grad_(True)
        return State(student.train())

    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        (batch,) = batches
        return supervised(state.model, state.model.encode(batch.image), batch)

    def finish(self, stage: Stage, state: State) -> Finished:
        return Finished(state.model)
