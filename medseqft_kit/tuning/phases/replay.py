"""Experience replay (Rolnick et al., arXiv 1811.11682; Chaudhry et al., *Tiny Episodic Memories*, arXiv 1902.10486).

Loss of a step = L_seg(D_t) + λ · L_seg(E_k): as many labelled crops of cases kept from one earlier task k, which
changes from step to step, through that task's own head, trained too. λ → `weight`; 1 is Chaudhry's, whose loss is the
mean over the joined batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseqft_kit.tuning.phases.base import Finished, Kind, Phase, Stage, State
from medseqft_kit.tuning.phases.full import fresh_student, supervised, take
from medseqft_kit.volumes.batches import Batch


@dataclass(frozen=True)
class Replay(Phase):
    """Every parameter is trained, earlier heads included; weight 0 is naive sequential tuning."""

    weight: float
    name = "adapt"

    @property
    def sources(self) -> tuple[Kind, ...]:
        return ("task", "replay") if self.weight > 0 else ("task",)

    def begin(self, stage: Stage) -> State:
        student = fresh_student(stage)
        for task in stage.earlier if self.weight > 0 else ():
            student.heads[task].requires_grad_(True)
        return State(student)

    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        task, *kept = batches
        features = state.model.encode(torch.cat([task.image, *(batch.image for batch in kept)]))
        terms = supervised(state.model, take(features, slice(None, len(task.image))), task)
        for batch in kept:
            again = supervised(state.model, take(features, slice(len(task.image), None)), batch)
            terms["replay"] = self.weight * torch.stack(list(again.values())).sum()
        return terms

    def finish(self, stage: Stage, state: State) -> Finished:
        return Finished(state.model)
