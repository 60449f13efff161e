"""LoRA-based knowledge distillation and merge (MedSeqFT's stage 2): M_{t-1} moved by a low-rank step towards M'_t.

Student = frozen M_{t-1} + LoRA, M'_t's head frozen; teacher = frozen M'_t. Loss = feature distance on D_t and the
buffer + mean squared error of the logits on D_t, 1:1 (docs/method.md; Ye et al., arXiv 2509.06096), and `lora.anchor`
times the distance to M_0's features on the buffer. The phase ends once the validation Dice of the adapters' whole step
reaches `lora.fidelity` of M'_t's, or at `lora.longest` times the steps of stage 1. Of that step M_t takes the share
`lora.share`: merged into the weights it gives M_t, whose own fidelity is always reported beside the whole step's.

With `lora.initial` of ``delta`` the adapters start as the truncated singular value decomposition of M'_t − M_{t-1}
rather than at zero, and training has only to mend what the truncation lost. `lora.rank` of ``auto`` reads each layer's
rank from the same decomposition. With `lora.orthogonal` A keeps off what earlier adapters span, and B alone is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import torch
import torch.nn.functional as F
from torch import Tensor

from medseqft_kit.lora.inject import AdaptedModel, LoRASettings, inject
from medseqft_kit.lora.merge import merge, merged_model
from medseqft_kit.lora.orthogonal import orthonormal
from medseqft_kit.lora.shrink import shrunk
from medseqft_kit.lora.spectrum import automatic_ranks, rows_of_a
from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.models.registry import Features
from medseqft_kit.objectives.distillation import feature_distance
from medseqft_kit.settings import Distill, Lora, Optimizer
from medseqft_kit.tuning.phases.base import NOTHING, Finished, Kind, Phase, Stage, State
from medseqft_kit.tuning.phases.full import take
from medseqft_kit.tuning.phases.merge_rule import adapted_of, moves
from medseqft_kit.tuning.trainer import Check
from medseqft_kit.volumes.batches import Batch


@dataclass(frozen=True)
class Anchored(State):
    """A state with a second teacher, M_0."""

    anchor: FoundationModel | None = None


@dataclass(frozen=True)
class Consolidation(Phase):
    """The adapters are trained; the result is M_t with this task's head."""

    lora: Lora = Lora()
    distill: Distill = Distill()
    name = "consolidate"

    @property
    def sources(self) -> tuple[Kind, ...]:
        return ("task", "buffer") if self.lora.loss != "logits" or self.lora.anchor > 0 else ("task",)

    @property
    def times(self) -> float:
        return self.lora.longest

    @property
    def checks_first(self) -> bool:
        return self.lora.initial == "delta"

    def learning_rates(self, optimizer: Optimizer) -> Mapping[str, float]:
        return {"": self.lora.learning_rate}

    def begin(self, stage: Stage) -> State:
        teacher = adapted_of(stage)
        base = frozen_copy(stage.start)
        base.add_head_(stage.task, stage.classes)
        base.heads[stage.task].load_state_dict(teacher.heads[stage.task].state_dict())
        towards = teacher if self.lora.initial == "delta" else None
        spanned = stage.memory if self.lora.orthogonal else NOTHING
        student = inject(base, self._settings(base, teacher), stage.seed, towards, spanned)
        return Anchored(student, teacher, anchor=stage.foundation if self.lora.anchor > 0 else None)

    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        assert isinstance(state, Anchored)
        assert state.teacher is not None
        task, *buffer = batches
        images = torch.cat([batch.image for batch in batches])
        labelled, held = slice(None, len(task.image)), slice(len(task.image), None)
        ours = state.model.encode(images)
        with torch.no_grad():
            theirs = state.teacher.encode(images)
        terms = {}
        if self.lora.loss != "logits":
            terms["features"] = self._distance(ours, theirs)
        if self.lora.loss != "features":
            wanted = state.teacher.logits(take(theirs, labelled), task.task).detach()
            got = state.model.logits(take(ours, labelled), task.task)
            terms["logits"] = F.mse_loss(got.float(), wanted.float())
        if state.anchor is not None:
            with torch.no_grad():
                first = state.anchor.encode(buffer[0].image)
            terms["anchor"] = self.lora.anchor * self._distance(take(ours, held), first)
        return terms

    def check(self, stage: Stage, state: State) -> Check:
        """Fidelity of the adapters' whole step, nearly all of the stopping rule, and of the share that M_t takes."""
        best = max(stage.adapted_dice, 1e-6)
        reached = dice = stage.validate(merged_model(_student(state)))
        if self.lora.share < 1:
            dice = stage.validate(merged_model(self._shrunk(stage, state)))
        values = {"validation_dice": dice, "fidelity": dice / best, "fidelity_whole": reached / best}
        return Check(values, done=reached / best >= self.lora.fidelity)

    def finish(self, stage: Stage, state: State) -> Finished:
        student = self._shrunk(stage, state)
        merged, difference = merge(student)
        rank = mean(student.settings.rank_of(name) for name in student.adapted)
        facts = {"merge_difference": difference, "rank_mean": float(rank), **moves(stage, merged)}
        memory = _spanned(student, stage.memory) if self.lora.orthogonal else NOTHING
        return Finished(merged, facts, adapter=student, memory=memory)

    def _shrunk(self, stage: Stage, state: State) -> AdaptedModel:
        """The student, or a copy that takes the share of its step that is merged."""
        student = _student(state)
        return student if self.lora.share == 1 else shrunk(student, stage.start, self.lora.share)

    def _settings(self, base: FoundationModel, teacher: FoundationModel) -> LoRASettings:
        lora, targets = self.lora, self.lora.targets or "all"
        ranks = {}
        if lora.rank == "auto":
            ranks = automatic_ranks(base, teacher, lora.energy, lora.largest_rank, targets)
        norms, train_a = lora.train_norms, not lora.orthogonal
        return LoRASettings(lora.uniform_rank, lora.alpha, targets, norms, train_a, ranks)

    def _distance(self, ours: Features, theirs: Features) -> Tensor:
        return feature_distance(ours, theirs, self.distill.distance, self.distill.layers)


def _spanned(student: AdaptedModel, earlier: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Orthonormal rows, by layer, for all that the A of `student` and of earlier adapters span."""
    bases = {}
    for name, layer in student.layers().items():
        rows = rows_of_a(layer, layer.lora_a)
        held = [earlier[name].to(rows)] if name in earlier else []
        bases[name] = orthonormal(torch.cat([*held, rows], dim=1)).float()
    return bases


def _student(state: State) -> AdaptedModel:
    assert isinstance(state.model, AdaptedModel)
    return state.model
