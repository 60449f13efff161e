"""L2-SP: the starting point as reference (Li, Grandvalet & Davoine, arXiv 1802.01483).

Loss = L_seg(D_t) + α/2 · ‖w − w_{t-1}‖² over the backbone's parameters, where w_{t-1} are those that the stage starts
from. α → `weight`. The paper's second term, β/2 · ‖w‖² on the new head, is the optimiser's weight decay here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from medseqft_kit.objectives.retention import squared_distance
from medseqft_kit.tuning.phases.base import NOTHING, Finished, Phase, Stage, State
from medseqft_kit.tuning.phases.full import fresh_student, supervised
from medseqft_kit.volumes.batches import Batch


@dataclass(frozen=True)
class L2SP(Phase):
    """Every parameter is trained, the backbone's near those of the start; weight 0 is naive sequential tuning."""

    weight: float
    name = "adapt"

    def begin(self, stage: Stage) -> State:
        student = fresh_student(stage)
        start = {name: weight.detach() for name, weight in stage.start.backbone.named_parameters()}
        return State(student, fixed=start if self.weight > 0 else NOTHING)

    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        (task,) = batches
        terms = supervised(state.model, state.model.encode(task.image), task)
        if state.fixed:
            distance = squared_distance(dict(state.model.backbone.named_parameters()), state.fixed)
            terms["retention"] = self.weight / 2 * distance
        return terms

    def finish(self, stage: Stage, state: State) -> Finished:
        return Finished(state.model)
