"""LoRA tuning (Hu et al., arXiv 2106.09685, §4.1): the start stays as it is, a low-rank step and a head are trained.

Loss = L_seg(D_t) over A and B of W + α/r · B·A, the norms' affine parameters (`lora.train_norms`) and a fresh head.
r → `lora.rank` (`auto`: `lora.largest_rank`), α → `lora.alpha`. Merged into the weights the adapters give M'_t. From
M_0 for each task alone it is parallel LoRA, from the previous model sequential LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from medseqft_kit.lora.inject import AdaptedModel, LoRASettings, inject
from medseqft_kit.lora.merge import merge
from medseqft_kit.settings import Lora, Optimizer
from medseqft_kit.tuning.phases.base import Finished, Phase, Stage, State
from medseqft_kit.tuning.phases.full import fresh_student, supervised
from medseqft_kit.volumes.batches import Batch


@dataclass(frozen=True)
class AdapterTuning(Phase):
    """Adapters and a head are trained; the result is the merged model."""

    lora: Lora
    name = "adapt"

    def learning_rates(self, optimizer: Optimizer) -> Mapping[str, float]:
        return {"": self.lora.learning_rate, "heads.": optimizer.head_learning_rate}

    def begin(self, stage: Stage) -> State:
        targets = self.lora.targets or "all"
        settings = LoRASettings(self.lora.uniform_rank, self.lora.alpha, targets, self.lora.train_norms)
        student = inject(fresh_student(stage), settings, seed=stage.seed)
        student.heads[stage.task].requires_grad_(True)
        return State(student)

    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        (task,) = batches
        return supervised(state.model, state.model.encode(task.image), task)

    def finish(self, stage: Stage, state: State) -> Finished:
        student = state.model
        assert isinstance(student, AdaptedModel)
        merged, difference = merge(student)
        return Finished(merged, {"merge_difference": difference}, adapter=student)
