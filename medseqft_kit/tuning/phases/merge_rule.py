"""A rule in place of MedSeqFT's stage 2: M_t is formed from stored weights, without a training step and without a loss.

The rules, with their sources, are in :mod:`medseqft_kit.tuning.merge_rules`: the average of M_{t-1} and M'_t, WiSE-FT
(arXiv 2109.01903), MagMax (2407.06322), TIES (2306.01708) and OPCM (2501.09522). They act on the backbone's parameters.
Running statistics of norms are averages over images and no weights, so under every rule they are the mean of M_{t-1}'s
and M'_t's; whole numbers and all heads are M'_t's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.tuning import merge_rules
from medseqft_kit.tuning.merge_rules import Merged, Weights
from medseqft_kit.tuning.phases.base import NOTHING, Finished, Kind, Phase, Stage, State
from medseqft_kit.tuning.trainer import Check
from medseqft_kit.volumes.batches import Batch

Rule = Literal["average", "wise_ft", "magmax", "ties", "opcm"]


@dataclass(frozen=True)
class MergeRule(Phase):
    """No step is taken; the result is M_t with this task's head, and what OPCM keeps for the next merge.

    `alpha` is WiSE-FT's and OPCM's, `keep` the share that TIES does not trim, `scaling` λ of MagMax and TIES; None
    takes the value of the paper.
    """

    rule: Rule
    alpha: float = 0.5
    keep: float = 0.2
    scaling: float | None = None
    name = "merge_rule"

    @property
    def sources(self) -> tuple[Kind, ...]:
        return ()

    @property
    def times(self) -> float:
        return 0.0

    def begin(self, stage: Stage) -> State:
        adapted = adapted_of(stage)
        model = frozen_copy(adapted)
        weights, memory = self._merged(stage, parameters_of(adapted))
        with torch.no_grad():
            for name, parameter in model.backbone.named_parameters():
                parameter.copy_(weights[name])
            for name, value in _statistics(model).items():
                value.copy_((value.double() + stage.start.backbone.get_buffer(name).double()) / 2)
        return State(model.requires_grad_(True), fixed=memory)

    def losses(self, state: State, batches: Sequence[Batch]) -> dict[str, Tensor]:
        raise NotImplementedError("a merge rule takes no step")

    def check(self, stage: Stage, state: State) -> Check:
        """Fidelity of the merged model."""
        dice = stage.validate(state.model)
        return Check({"validation_dice": dice, "fidelity": dice / max(stage.adapted_dice, 1e-6)}, done=True)

    def finish(self, stage: Stage, state: State) -> Finished:
        return Finished(state.model, moves(stage, state.model), memory=state.fixed)

    def _merged(self, stage: Stage, adapted: Weights) -> tuple[Weights, Mapping[str, Tensor]]:
        """The backbone's parameters by the rule, and what the next merge needs."""
        foundation, previous = parameters_of(stage.foundation), parameters_of(stage.start)
        if self.rule == "average":
            return merge_rules.average(previous, adapted), NOTHING
        if self.rule == "wise_ft":
            return merge_rules.wise_ft(foundation, adapted, self.alpha), NOTHING
        if self.rule == "opcm":
            before = _remembered(stage.memory)
            weights, merged = merge_rules.opcm(foundation, previous, adapted, before, self.alpha)
            return weights, {"scaling": _vector(merged.scaling), "lengths": _vector(*merged.lengths)}
        so_far = [*map(parameters_of, stage.before()), adapted]
        if self.rule == "magmax":
            return merge_rules.magmax(foundation, so_far, *self._scaling), NOTHING
        return merge_rules.ties(foundation, so_far, self.keep, *self._scaling), NOTHING

    @property
    def _scaling(self) -> tuple[float, ...]:
        return () if self.scaling is None else (self.scaling,)


def adapted_of(stage: Stage) -> FoundationModel:
    """M'_t, which a consolidation starts from."""
    assert stage.adapted is not None, "a consolidation comes after a phase that makes M'_t"
    return stage.adapted


def parameters_of(model: FoundationModel) -> Weights:
    """The backbone's parameters by name."""
    return {name: parameter.detach() for name, parameter in model.backbone.named_parameters()}


def moves(stage: Stage, merged: FoundationModel) -> dict[str, float]:
    """How far M_t and M'_t lie from M_{t-1}: ‖M − M_{t-1}‖ / ‖M_{t-1}‖ over the backbone's parameters."""
    start = parameters_of(stage.start)
    return {
        "moved": merge_rules.moved(start, parameters_of(merged)),
        "moved_adapted": merge_rules.moved(start, parameters_of(adapted_of(stage))),
    }


def _statistics(model: FoundationModel) -> dict[str, Tensor]:
    """Running means and variances of the backbone's norms."""
    return {name: value for name, value in model.backbone.named_buffers() if value.is_floating_point()}


def _remembered(memory: Mapping[str, Tensor]) -> Merged | None:
    if not memory:
        return None
    return Merged(float(memory["scaling"]), tuple(memory["lengths"].tolist()))


def _vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)
