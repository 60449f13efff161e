"""Elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796, eq. 3).

Loss = L_seg(D_t) + λ/2 · Σ_{k<t} Σ_i F_{k,i} (θ_i − θ_{k,i})² over the backbone's parameters, which all tasks share;
θ_k are the weights after task k. λ → `weight`. F_k is the diagonal of the empirical Fisher information at θ_k: the mean
over `fisher_crops` labelled crops of task k of the squared gradient of a crop's mean voxel cross-entropy. Each task has
a penalty of its own (not "online" EWC); the sum of such quadratics is again one, and that is what is kept (§2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.objectives.retention import Quadratic, fisher_diagonal, voxel_cross_entropy
from medseqft_kit.objectives.segmentation import marginal_logits
from medseqft_kit.tuning.phases.base import NOTHING, Finished, Phase, Stage, State
from medseqft_kit.tuning.phases.full import fresh_student, supervised
from medseqft_kit.volumes.batches import Batch


@dataclass(frozen=True)
class EWC(Phase):
    """Every parameter is trained, the important ones near earlier values; weight 0 is naive sequential tuning."""

    weight: float
    fisher_crops: int
    name = "adapt"

    def begin(self, stage: Stage) -> State:
        student = fresh_student(stage)
        device = next(student.parameters()).device
        held = {name: tensor.to(device) for name, tensor in stage.memory.items()}
        return State(student, fixed=held if self.weight > 0 else NOTHING)

    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        (task,) = batches
        terms = supervised(state.model, state.model.encode(task.image), task)
        if state.fixed:
            penalty = _unpacked(state.fixed)(dict(state.model.backbone.named_parameters()))
            terms["retention"] = self.weight / 2 * penalty
        return terms

    def finish(self, stage: Stage, state: State) -> Finished:
        """Add this task's penalty to those of the tasks before; the Fisher trace is a fact for the record."""
        if self.weight == 0:
            return Finished(state.model)
        model = state.model.eval()
        weights = dict(model.backbone.named_parameters())
        fisher = fisher_diagonal(weights, _crop_losses(model, stage.labelled(self.fisher_crops)))
        here = {name: weight.detach().clone() for name, weight in weights.items()}
        own = Quadratic(fisher, here, torch.zeros((), device=next(model.parameters()).device))
        together = _unpacked(state.fixed).plus(own) if state.fixed else own
        trace = float(torch.stack([each.sum() for each in fisher.values()]).sum())
        return Finished(model, {"fisher_trace": trace}, memory=_packed(together))


def _crop_losses(model: FoundationModel, crops: Iterator[Batch]) -> Iterator[Tensor]:
    for crop in crops:
        assert crop.label is not None
        logits = model(crop.image, crop.task)
        yield voxel_cross_entropy(marginal_logits(logits, crop.unknown), crop.label)


def _packed(penalty: Quadratic) -> dict[str, Tensor]:
    importance = {f"importance.{name}": value for name, value in penalty.importance.items()}
    anchor = {f"anchor.{name}": value for name, value in penalty.anchor.items()}
    return {**importance, **anchor, "constant": penalty.constant}


def _unpacked(tensors: Mapping[str, Tensor]) -> Quadratic:
    names = [name.removeprefix("anchor.") for name in tensors if name.startswith("anchor.")]
    importance = {name: tensors[f"importance.{name}"] for name in names}
    return Quadratic(importance, {name: tensors[f"anchor.{name}"] for name in names}, tensors["constant"])
