"""Mean teacher (Tarvainen & Valpola, arXiv 1703.01780, §2): consistent with an average of itself on unlabelled crops.

Loss = L_seg(D_t) + w · mean squared difference of the class probabilities that student and teacher give to crops of any
training image of the task. The teacher's weights are θ' ← α θ' + (1 − α) θ before each step, with the student's weights
θ and α = min(1 − 1/(step + 1), `decay`); the student's crops carry Gaussian noise, the teacher's none. w → `weight`,
without the paper's ramp-up. Both models may predict (ibid.); here the student does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseqft_kit.models.foundation import frozen_copy
from medseqft_kit.objectives.retention import average_, inconsistency
from medseqft_kit.randomness import torch_generator
from medseqft_kit.tuning.phases.base import Finished, Kind, Phase, Stage, State
from medseqft_kit.tuning.phases.full import fresh_student, supervised, take
from medseqft_kit.volumes.batches import Batch

NOISE = 0.1
"""Standard deviation of the noise, in the model's units, where intensities have one of about 1."""


@dataclass(frozen=True)
class MeanTeacher(Phase):
    """Every parameter is trained; weight 0 is naive sequential tuning."""

    weight: float
    decay: float
    name = "adapt"

    @property
    def sources(self) -> tuple[Kind, ...]:
        return ("task", "unlabelled") if self.weight > 0 else ("task",)

    def begin(self, stage: Stage) -> State:
        student = fresh_student(stage)
        if self.weight == 0:
            return State(student)
        teacher = frozen_copy(student)
        # The state dict's tensors are the teacher's own: what a checkpoint writes into them, the teacher computes with.
        carried = {**teacher.state_dict(), "step": torch.zeros((), dtype=torch.int64)}
        return State(student, teacher, {"seed": torch.tensor(stage.seed)}, carried)

    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        if state.teacher is None:
            return supervised(state.model, state.model.encode(batches[0].image), batches[0])
        task, unlabelled = batches
        step = int(state.carried["step"])
        average_(state.carried, state.model.state_dict(), min(1 - 1 / (step + 1), self.decay))
        state.carried["step"].add_(1)
        crops = unlabelled.image
        generator = torch_generator(int(state.fixed["seed"]), "mean teacher", step)
        noise = NOISE * torch.randn(crops.shape, generator=generator).to(crops)
        features = state.model.encode(torch.cat([task.image, crops + noise]))
        terms = supervised(state.model, take(features, slice(None, len(task.image))), task)
        with torch.no_grad():
            wanted = state.teacher(crops, task.task)
        said = state.model.logits(take(features, slice(len(task.image), None)), task.task)
        terms["consistency"] = self.weight * inconsistency(said, wanted)
        return terms

    def finish(self, stage: Stage, state: State) -> Finished:
        return Finished(state.model)
