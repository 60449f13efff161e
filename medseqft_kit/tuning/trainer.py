"""The one training loop: it knows nothing of tasks, teachers or adapters, only named loss terms.

What step n sees is a function of (seed, stage, n); with the checkpoint's weights and moments a resumed training equals
an uninterrupted one bit for bit on the CPU. A step may have several batches, each with a loss of its own, whose mean is
descended: one process takes them in turn, several share them, and the step is the same but for the order of sums.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from medseqft_kit.errors import ConfigError, NumericsError
from medseqft_kit.models.precision import Precision
from medseqft_kit.progress import Progress, silent
from medseqft_kit.runs.atomic import write_tensors
from medseqft_kit.runs.history import Row
from medseqft_kit.runs.interrupt import Interrupted, stop_requested
from medseqft_kit.runs.ranks import ALONE, Ranks
from medseqft_kit.settings import Optimizer
from medseqft_kit.tuning.checkpoint import Progressed, restore_checkpoint_, save_checkpoint
from medseqft_kit.tuning.tracking import Track, Tracking, untracked
from medseqft_kit.volumes.batches import Batch, Source, prefetch

Losses = Callable[[Sequence[Batch], int], Mapping[str, Tensor]]
"""Batches (one for each source, on the device) and their number, which is the step's where a step has one of each, to
named terms, already weighted."""
WARM_UP = 0.1


@dataclass(frozen=True)
class Check:
    """What a validation found, to be logged, and whether the training may end."""

    values: Mapping[str, float]
    done: bool = False


@dataclass(frozen=True)
class Training:
    """One training: everything that the loop needs, in the order of its use.

    `model` is trained in place; its parameters are grouped by `learning_rates` (prefix of the name to peak rate, the
    longest prefix that fits counts). `carried` are tensors that `losses` changes in place; a checkpoint restores them.
    `sharpness` is ρ of sharpness-aware minimisation (Foret et al., arXiv 2010.01412, eq. 2–3): the gradient is taken
    where the loss is highest, to first order, within that distance of the weights; 0 is plain descent. With
    `checks_first`, or without a step to take, the model is checked as it is before the first step. `tracking` is told
    every row of the history as it is made. `batches` is how many of each source go into a step; all `ranks` call
    :func:`train` alike and take their share of them, the first checks and writes.
    """

    name: str
    model: nn.Module
    losses: Losses
    sources: tuple[Source, ...]
    steps: int
    learning_rates: Mapping[str, float]
    optimizer: Optimizer
    precision: Precision
    checkpoint: Path
    carried: Mapping[str, Tensor] = field(default_factory=dict)
    sharpness: float = 0.0
    check: Callable[[int], Check] | None = None
    checks: int = 1
    checks_first: bool = False
    batches: int = 1
    ranks: Ranks = ALONE
    workers: int = 1
    checkpoint_seconds: float = 60.0
    progress: Progress = field(default=silent)
    tracking: Tracking = untracked


@dataclass(frozen=True)
class Trained:
    """Rows of the history, and the seconds that steps waited for their batches."""

    history: list[Row]
    waited: float = 0.0


def train(training: Training) -> Trained:
    """Train `training.model` in place.

    Raises
    ------
    ConfigError
        If the batches of a step cannot be shared equally among the processes.
    NumericsError
        If a loss is not finite: names term, step and cases, and saves the batch beside the checkpoint.
    Interrupted
        After a signal: the checkpoint is written, the same call continues.
    """
    if training.batches % training.ranks.count:
        raise ConfigError(
            f"{training.ranks.count} processes cannot share the batches of a step.",
            found=f"budget.batches: {training.batches}",
            expected=f"a multiple of {training.ranks.count}",
            next_step="start as many processes as a step has batches, or set `budget.batches`",
        )
    if training.steps == 0:
        untrained: list[Row] = []
        _check(training, -1, untrained)
        with training.tracking(0) as track:
            track(untrained)
        return Trained(untrained)
    optimizer = _optimizer(training)
    progressed = restore_checkpoint_(training.checkpoint, training.model, optimizer, training.carried)
    with training.tracking(progressed.step) as track:
        return _continued(training, optimizer, progressed, track)


def _continued(training: Training, optimizer: torch.optim.AdamW, progressed: Progressed, track: Track) -> Trained:
    """The loop itself, from where the training has got to."""
    ranks, history, waited = training.ranks, list(progressed.history), 0.0
    saved_at = time.monotonic()
    if not history and training.checks_first:
        _check(training, -1, history)
        track(history)
    if history and history[-1].get("done"):
        return Trained(history)
    objective = ranks.averaging(_Objective(training))
    own = range(ranks.index, training.batches, ranks.count)
    steps = range(progressed.step, training.steps)
    numbers = [step * training.batches + each for step in steps for each in own]
    fetched = zip(*(prefetch(source, numbers, training.workers) for source in training.sources), strict=True)
    for step in steps:
        known, parts = len(history), [next(fetched) for _ in own]
        waiting = sum(seconds for part in parts for _, seconds in part)
        numbered = {
            step * training.batches + each: [placed(batch, training.precision) for batch, _ in part]
            for each, part in zip(own, parts, strict=True)
        }
        rate = _rate(step, training.steps)
        terms = _step(training, objective, optimizer, numbered, rate)
        history.append({"phase": training.name, "step": step, **terms, "learning_rate": rate})
        waited += waiting
        training.progress(training.name, step + 1, training.steps, f", waited {waiting:.3f} s for data")
        ended = _check(training, step, history)
        track([*history[known:], {"phase": training.name, "step": step, "waited": waiting}])
        stop = ranks.told(stop_requested())
        if stop or ended or time.monotonic() - saved_at >= training.checkpoint_seconds:
            if ranks.first:
                reached = Progressed(step + 1, history)
                save_checkpoint(training.checkpoint, training.model, optimizer, reached, training.carried)
            saved_at = time.monotonic()
        if stop:
            raise Interrupted(f"stopped after step {step + 1} of {training.steps} of {training.name}")
        if ended:
            break
    training.progress(training.name, training.steps, training.steps)
    return Trained(history, waited)


class _Objective(nn.Module):
    """The losses as a module of the model's parameters, so that their gradients can be averaged over processes."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.model, self.losses = training.model, training.losses

    def forward(self, batches: Sequence[Batch], number: int) -> Mapping[str, Tensor]:
        return self.losses(batches, number)


def _optimizer(training: Training) -> torch.optim.AdamW:
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in training.model.named_parameters():
        if parameter.requires_grad:
            fitting = [prefix for prefix in training.learning_rates if name.startswith(prefix)]
            groups.setdefault(training.learning_rates[max(fitting, key=len)], []).append(parameter)
    return torch.optim.AdamW(
        [{"params": members, "lr": rate, "peak": rate} for rate, members in groups.items()],
        weight_decay=training.optimizer.weight_decay,
        fused=True,
    )


def _rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up over a tenth of the steps, then a cosine to nothing."""
    warm = max(1, round(WARM_UP * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


def _step(
    training: Training,
    objective: nn.Module,
    optimizer: torch.optim.AdamW,
    batches: Mapping[int, Sequence[Batch]],
    rate: float,
) -> dict[str, float]:
    for group in optimizer.param_groups:
        group["lr"] = rate * group["peak"]
    optimizer.zero_grad(set_to_none=True)
    terms = _backward(training, objective, batches)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if training.sharpness:
        _gradient_uphill(training, objective, trained, batches)
    nn.utils.clip_grad_norm_(trained, training.optimizer.clip)
    optimizer.step()
    return terms


def _backward(training: Training, objective: nn.Module, batches: Mapping[int, Sequence[Batch]]) -> dict[str, float]:
    """Add to the gradients the mean of the batches' own, over all ranks; the terms' means, and their total."""
    found: list[Mapping[str, Tensor]] = []
    for number, batch in batches.items():
        with training.ranks.apart(objective, len(found) + 1 < len(batches)):
            with training.precision.autocast():
                terms = objective(batch, number)
            total = torch.stack(list(terms.values())).sum()
            if not torch.isfinite(total):
                _refuse(training, terms, batch, number // training.batches)
            (total / len(batches)).backward()
        found.append({**{name: value.detach() for name, value in terms.items()}, "total": total.detach()})
    means = training.ranks.mean(torch.stack([torch.stack(list(each.values())) for each in found]).mean(0))
    return dict(zip(found[0], means.tolist(), strict=True))


def _gradient_uphill(
    training: Training,
    objective: nn.Module,
    trained: list[nn.Parameter],
    batches: Mapping[int, Sequence[Batch]],
) -> None:
    """Replace each gradient by the one at w + ρ · g / ‖g‖; the weights come back bit for bit."""
    gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in trained]
    length = torch.stack([gradient.norm() for gradient in gradients]).norm()
    before = [each.detach().clone() for each in trained]
    with torch.no_grad():
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.add_(gradient * (training.sharpness / length.clamp(min=1e-12)))
            parameter.grad = None
    _backward(training, objective, batches)
    with torch.no_grad():
        for parameter, value in zip(trained, before, strict=True):
            parameter.copy_(value)


def _check(training: Training, step: int, history: list[Row]) -> bool:
    """Validate at equal distances and at the end, and where asked before step 0; whether the training may end now."""
    every = max(1, training.steps // training.checks)
    last = step + 1 == training.steps
    if training.check is None or not (last or (step + 1) % every == 0):
        return last
    result = training.ranks.told(training.check(step) if training.ranks.first else None)
    assert result is not None
    history.append({"phase": training.name, "step": step, **result.values})
    if result.done:
        history[-1]["done"] = True
    return last or result.done


def placed(batch: Batch, precision: Precision) -> Batch:
    """The batch on the device that computes, channels last."""
    label, unknown = (None if part is None else part.to(precision.device) for part in (batch.label, batch.unknown))
    return Batch(precision.place(batch.image), label, batch.cases, batch.task, unknown)


def _refuse(training: Training, terms: Mapping[str, Tensor], batches: Sequence[Batch], step: int) -> None:
    path = training.checkpoint.with_name(f"not_a_number_{training.name}_step_{step}.safetensors")
    write_tensors(path, {f"image_{index}": batch.image for index, batch in enumerate(batches)})
    bad = ", ".join(f"{name} = {float(value.detach())}" for name, value in terms.items())
    raise NumericsError(
        f"the loss of {training.name} is no longer a number at step {step}.",
        found=f"{bad}; cases {', '.join(case for batch in batches for case in batch.cases)}",
        expected="finite terms",
        next_step=f"look at {path}; then a lower `optimizer.learning_rate`, or `compute.precision: fp32`",
    )
