"""LoRA-based knowledge distillation and merge (MedSeqFT's stage 2): M_{t-1} moved by a low-rank step towards M'_t.

Student = frozen M_{t-1} + LoRA of rank r, M'_t's head frozen; teacher = frozen M'_t. Loss = feature distance on D_t
and the buffer + mean squared error of the logits on D_t, 1:1 (docs/method.md; Ye et al., arXiv 2509.06096). Merged into
the weights the adapters give M_t. The phase ends once the merged model's validation Dice reaches `lora.fidelity` of
M'_t's, or at `lora.longest` times the steps of stage 1; that fidelity is always reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from medseqft_kit.lora.inject import AdaptedModel, LoRASettings, inject
from medseqft_kit.lora.merge import merge
from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.objectives.distillation import feature_distance
from medseqft_kit.settings import Distill, Lora, Optimizer
from medseqft_kit.tuning.phases.base import Finished, Phase, Stage, State
from medseqft_kit.tuning.phases.full import take
from medseqft_kit.tuning.trainer import Check
from medseqft_kit.volumes.batches import Batch


@dataclass(frozen=True)
class Consolidation(Phase):
    """The adapters are trained; the result is M_t with this task's head."""

    lora: Lora = Lora()
    distill: Distill = Distill()
    name = "consolidate"

    @property
    def uses_buffer(self) -> bool:
        return self.lora.loss != "logits"

    def steps(self, stage: Stage) -> int:
        return round(self.lora.longest * stage.steps)

    def learning_rates(self, optimizer: Optimizer) -> Mapping[str, float]:
        return {"": self.lora.learning_rate}

    def begin(self, stage: Stage) -> State:
        teacher = _adapted(stage)
        base = frozen_copy(stage.start)
        base.add_head_(stage.task, stage.classes)
        base.heads[stage.task].load_state_dict(teacher.heads[stage.task].state_dict())
        targets = self.lora.targets or "all"
        settings = LoRASettings(self.lora.rank, self.lora.alpha, targets, self.lora.train_norms)
        return State(inject(base, settings, seed=stage.seed), teacher)

    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        assert state.teacher is not None
        task = batches[0]
        images = torch.cat([batch.image for batch in batches])
        ours = state.model.encode(images)
        with torch.no_grad():
            theirs = state.teacher.encode(images)
        terms = {}
        if self.lora.loss != "logits":
            terms["features"] = feature_distance(ours, theirs, self.distill.distance, self.distill.layers)
        if self.lora.loss != "features":
            labelled = slice(None, len(task.image))
            wanted = state.teacher.logits(take(theirs, labelled), task.task).detach()
            got = state.model.logits(take(ours, labelled), task.task)
            terms["logits"] = F.mse_loss(got.float(), wanted.float())
        return terms

    def check(self, stage: Stage, state: State) -> Check:
        """Fidelity of the merged model; nearly all of the phase's stopping rule."""
        merged, _ = merge(_student(state))
        dice = stage.validate(merged)
        fidelity = dice / max(stage.adapted_dice, 1e-6)
        return Check({"validation_dice": dice, "fidelity": fidelity}, done=fidelity >= self.lora.fidelity)

    def finish(self, stage: Stage, state: State) -> Finished:
        student = _student(state)
        merged, difference = merge(student)
        return Finished(merged, {"merge_difference": difference}, adapter=student)


def _student(state: State) -> AdaptedModel:
    assert isinstance(state.model, AdaptedModel)
    return state.model


def _adapted(stage: Stage) -> FoundationModel:
    assert stage.adapted is not None, "stage 2 comes after a phase that makes M'_t"
    return stage.adapted
