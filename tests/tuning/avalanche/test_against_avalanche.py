"""EWC, LwF and replay take Avalanche's own steps on one tiny problem, and end at its weights, in float64.

`fixture.json` holds its numbers, `make_fixture.py` makes them. Avalanche knows points, so a crop here is one voxel of
two channels, and its criterion is the plain cross-entropy, which takes the place of L_seg. Conventions that differ:

- its EWC adds λ · Σ F (θ − θ*)², ours λ/2 · Σ: weight = 2 λ. Its F is the mean over batches of the squared gradient of
  the batch's mean; with batches of one point that is ours. It holds heads too; they do not move, so this adds nothing;
- its LwF adds the earlier heads' losses up, ours are a mean: weight = α × number of earlier heads. No T² in either;
- its replay takes the mean over task's and kept points, ours is the sum of two means: our rate is half of its.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.models.registry import ARCHITECTURES, Backbone, Features
from medseqft_kit.tuning.phases.base import Phase, Stage, State
from medseqft_kit.tuning.phases.ewc import EWC
from medseqft_kit.tuning.phases.full import FullTuning
from medseqft_kit.tuning.phases.lwf import LearningWithoutForgetting
from medseqft_kit.tuning.phases.replay import Replay
from medseqft_kit.volumes.batches import Batch

NUMBERS = json.loads(Path(__file__).with_name("fixture.json").read_text(encoding="utf-8"))
SETTINGS, PROBLEM = NUMBERS["settings"], NUMBERS["problem"]
TASKS = tuple(f"task_{index}" for index in range(SETTINGS["tasks"]))
assert_close = partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12)


class Points(Backbone):
    """The shared layers of the problem as 1×1×1 convolutions."""

    stride, smallest, head_key, width, widths, coarsest = 1, 1, "", 4, (4,), 1
    sizes: ClassVar[dict[str, Any]] = {"tiny": {}}

    def __init__(self, size: str, channels: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(channels, 4, 1), nn.Conv3d(4, 4, 1)

    def forward(self, image: Tensor) -> Features:
        deep = torch.tanh(self.second(torch.tanh(self.first(image))))
        return Features((deep,), deep)


@pytest.fixture(autouse=True)
def avalanches_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """float64, the problem's network, and cross-entropy for L_seg."""
    monkeypatch.setitem(ARCHITECTURES, "points", Points)
    monkeypatch.setattr(
        "medseqft_kit.tuning.phases.full.segmentation_losses",
        lambda logits, label, unknown=None: {"cross_entropy": F.cross_entropy(logits, label)},
    )
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def points(task: int, rows: slice) -> Batch:
    given = PROBLEM["points"][task]
    image, label = torch.tensor(given["x"])[rows], torch.tensor(given["y"])[rows]
    return Batch(image[:, :, None, None, None], label[:, None, None, None], ("case",) * len(image), TASKS[task])


def single_points(task: int, count: int) -> Iterator[Batch]:
    return (points(task, slice(index, index + 1)) for index in range(count))


def load_(model: FoundationModel, task: int) -> None:
    """The problem's first weights for the head of a task, and for the shared layers at the first."""
    values = {name: torch.tensor(value) for name, value in PROBLEM["weights"].items()}
    own = {f"heads.{TASKS[task]}.{part}": values[f"heads.{task}.{part}"] for part in ("weight", "bias")}
    shared = {f"backbone.{name}": value for name, value in values.items() if not name.startswith("heads.")}
    into = model.state_dict()
    for name, value in (own | shared if task == 0 else own).items():
        into[name].copy_(value.view_as(into[name]))


def first_stage() -> Stage:
    start = frozen_copy(FoundationModel.build("points", "tiny", channels=2, patch=(1, 1, 1)))
    tasks = dict.fromkeys(TASKS, 3)

    labelled = partial(single_points, 0)
    return Stage(TASKS[0], 3, tasks, (), start, start, 0, 1, lambda model: 0.0, labelled, lambda: ())


def follow(phase_of: Callable[[int], Phase], *, size: int, rate: float, tasks: int) -> list[tuple[Stage, State]]:
    """Train through the tasks as Avalanche does; each stage with its trained state."""
    stage, stages = first_stage(), []
    for index in range(tasks):
        phase = phase_of(index)
        state = phase.begin(stage)
        load_(state.model, index)
        step_ = rate / 2 if "replay" in phase.sources and index else rate
        for _ in range(SETTINGS["epochs"]):
            for first in range(0, 4, size):
                batches = [points(index, slice(first, first + size))]
                batches += [points(0, slice(None))] if "replay" in phase.sources and index else []
                descend_(state.model, phase.losses(state, batches), step_)
        stages.append((stage, state))
        finished = phase.finish(stage, state)
        following = TASKS[index + 1] if index + 1 < tasks else ""
        stage = replace(
            stage,
            task=following,
            earlier=TASKS[: index + 1],
            start=frozen_copy(finished.model),
            memory=finished.memory,
            labelled=partial(single_points, index + 1),
        )
    return [*stages, (stage, state)]


def descend_(model: FoundationModel, terms: dict[str, Tensor], rate: float) -> None:
    model.zero_grad()
    torch.stack(list(terms.values())).sum().backward()
    with torch.no_grad():
        for each in model.parameters():
            if each.grad is not None:
                each.sub_(rate * each.grad)


def assert_same(model: FoundationModel, want: dict[str, Any], tasks: int) -> None:
    """All shared weights and the heads of the tasks that were learned."""
    got = {name.removeprefix("backbone."): value for name, value in model.state_dict().items()}
    for index, task in enumerate(TASKS[:tasks]):
        got |= {f"heads.{index}.{part}": got.pop(f"heads.{task}.{part}") for part in ("weight", "bias")}
    compared = [name for name in want if name in got]
    for name in compared:
        assert_close(got[name], torch.tensor(want[name]).view_as(got[name]))
    assert len(compared) == 4 + 2 * tasks


def test_ewc_has_avalanches_importances_penalty_gradient_and_weights() -> None:
    weight = 2 * SETTINGS["ewc_lambda"]
    stages = follow(lambda index: EWC(weight, fisher_crops=4), size=1, rate=SETTINGS["rate"], tasks=3)
    want = NUMBERS["ewc"]
    assert_same(stages[2][1].model, want["weights"], 3)

    compared = 0
    for task in range(3):
        for name in PROBLEM["elsewhere"]:
            summed = torch.stack([torch.tensor(each[name]) for each in want["importances"][: task + 1]]).sum(dim=0)
            got = stages[task + 1][0].memory[f"importance.{name}"]
            assert_close(got, summed.view_as(got))
            compared += 1
    assert compared == 12

    phase, last = EWC(weight, fisher_crops=4), replace(stages[3][0], task="new")
    state = phase.begin(last)
    for name, each in state.model.backbone.named_parameters():
        each.data.copy_(torch.tensor(PROBLEM["elsewhere"][name]).view_as(each))
    batch = replace(points(0, slice(None)), task="new")
    term = phase.losses(state, [batch])["retention"]
    # Avalanche adds its penalty up in single precision.
    assert term.item() == pytest.approx(want["penalty"], rel=1e-6)
    parameters = dict(state.model.backbone.named_parameters())
    for name, got in zip(parameters, torch.autograd.grad(term, list(parameters.values())), strict=True):
        assert_close(got, torch.tensor(want["gradient"][name]).view_as(got))
    assert len(parameters) == 4


def test_lwf_ends_at_avalanches_weights() -> None:
    def phase(index: int) -> Phase:
        return LearningWithoutForgetting(SETTINGS["lwf_alpha"] * max(index, 1), SETTINGS["temperature"])

    stages = follow(phase, size=4, rate=SETTINGS["rate"], tasks=3)
    assert_same(stages[2][1].model, NUMBERS["lwf"]["weights"], 3)


def test_replay_ends_at_avalanches_weights() -> None:
    stages = follow(lambda index: Replay(1.0), size=4, rate=SETTINGS["rate"], tasks=2)
    assert_same(stages[1][1].model, NUMBERS["replay"]["weights"], 2)


def test_naive_tuning_ends_elsewhere() -> None:
    """The comparison can tell the rivals from doing nothing."""
    naive = [follow(lambda index: FullTuning(), size=size, rate=SETTINGS["rate"], tasks=3) for size in (1, 4, 4)]
    for stages, rival, tasks in zip(naive, ("ewc", "lwf", "replay"), (3, 3, 2), strict=True):
        with pytest.raises(AssertionError, match="close"):
            assert_same(stages[tasks - 1][1].model, NUMBERS[rival]["weights"], tasks)
