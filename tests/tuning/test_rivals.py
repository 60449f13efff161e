"""The rivals phase by phase: weight 0 is naive tuning bit for bit, and each term is what its paper says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from medseqft_kit.lora.inject import AdaptedModel
from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.objectives.segmentation import segmentation_losses
from medseqft_kit.settings import Lora, Optimizer
from medseqft_kit.tuning.phases.adapters import AdapterTuning
from medseqft_kit.tuning.phases.base import Phase, Stage, State
from medseqft_kit.tuning.phases.ewc import EWC
from medseqft_kit.tuning.phases.full import FullTuning
from medseqft_kit.tuning.phases.l2_sp import L2SP
from medseqft_kit.tuning.phases.lwf import LearningWithoutForgetting
from medseqft_kit.tuning.phases.mean_teacher import NOISE, MeanTeacher
from medseqft_kit.tuning.phases.replay import Replay
from medseqft_kit.volumes.batches import Batch

CLASSES = {"first": 3, "second": 2, "third": 4}
RIVALS: dict[str, Callable[[float], Phase]] = {
    "l2_sp": L2SP,
    "ewc": lambda weight: EWC(weight, fisher_crops=3),
    "lwf": lambda weight: LearningWithoutForgetting(weight, temperature=2.0),
    "replay": Replay,
    "mean_teacher": lambda weight: MeanTeacher(weight, decay=0.9),
}


def batch(seed: int, task: str, *, size: int = 2, kind: str = "task") -> Batch:
    """Noise; of the unlabelled kind without labels."""
    draw = torch.Generator().manual_seed(seed)
    image = torch.randn(size, 1, 8, 8, 8, generator=draw)
    label = torch.randint(0, CLASSES[task], (size, 8, 8, 8), generator=draw)
    return Batch(image, None if kind == "unlabelled" else label, ("case",) * size, task)


def batches(phase: Phase, stage: Stage, step: int) -> list[Batch]:
    """What the trainer hands over at a step: replay turns through the earlier tasks, and needs one."""
    made = {"task": batch(step, stage.task), "unlabelled": batch(1000 + step, stage.task, kind="unlabelled")}
    if stage.earlier:
        made["replay"] = batch(2000 + step, stage.earlier[step % len(stage.earlier)])
    return [made[kind] for kind in phase.sources if kind in made]


def advance_(phase: Phase, stage: Stage, state: State, steps: range) -> list[dict[str, float]]:
    """Plain descent; each step's terms."""
    logged = []
    rates = phase.learning_rates(Optimizer(learning_rate=0.01, head_learning_rate=0.05))
    for step in steps:
        terms = phase.losses(state, batches(phase, stage, step))
        state.model.zero_grad()
        torch.stack(list(terms.values())).sum().backward()
        with torch.no_grad():
            for name, each in state.model.named_parameters():
                if each.grad is not None:
                    each.sub_(each.grad * rates[max((p for p in rates if name.startswith(p)), key=len)])
        logged.append({name: float(value.detach()) for name, value in terms.items()})
    return logged


def trained(model: FoundationModel) -> set[str]:
    return {name for name, each in model.named_parameters() if each.requires_grad}


def content(model: FoundationModel) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> bool:
    return got.keys() == want.keys() and all(torch.equal(got[name], want[name]) for name in want)


@pytest.fixture
def stage(model: FoundationModel) -> Stage:
    """The third task, the first and second having been learned; no other phase has run."""

    def labelled(count: int) -> Iterator[Batch]:
        return (batch(3000 + index, "third", size=1) for index in range(count))

    model.add_head_("first", 3, seed=5)
    model.add_head_("second", 2, seed=6)
    start = frozen_copy(model)
    with torch.no_grad():  # the start is not M_0
        for index, weight in enumerate(start.backbone.parameters()):
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(index)))
    earlier = ("first", "second")
    return Stage(
        "third", 4, CLASSES, earlier, frozen_copy(model), start, 7, 10, lambda model: 0.5, labelled, lambda: ()
    )


@pytest.fixture
def first_stage(stage: Stage) -> Stage:
    return replace(stage, earlier=())


def after_earlier(phase: Phase, stage: Stage) -> Stage:
    """The stage with what the phase remembers of an earlier one, if it remembers anything."""
    state = phase.begin(stage)
    advance_(phase, replace(stage, earlier=()), state, range(2)) if phase.sources == ("task",) else None
    memory = phase.finish(stage, state).memory
    return replace(stage, memory=memory)


def test_every_rival_adapts_under_the_one_name_that_the_crops_hang_on() -> None:
    assert {build(1.0).name for build in RIVALS.values()} == {FullTuning().name} == {AdapterTuning(Lora()).name}


@pytest.mark.parametrize("rival", sorted(RIVALS))
def test_weight_zero_is_naive_tuning_bit_for_bit(rival: str, stage: Stage) -> None:
    stage = after_earlier(RIVALS[rival](1.0), stage)
    phase, naive = RIVALS[rival](0.0), FullTuning()
    assert phase.sources == naive.sources
    ours, theirs = phase.begin(stage), naive.begin(stage)
    assert trained(ours.model) == trained(theirs.model)
    assert (ours.teacher, dict(ours.fixed), dict(ours.carried)) == (None, {}, {})
    assert advance_(phase, stage, ours, range(3)) == advance_(naive, stage, theirs, range(3))
    got, want = phase.finish(stage, ours), naive.finish(stage, theirs)
    assert equal(content(got.model), content(want.model))
    assert (got.facts, dict(got.memory)) == (want.facts, dict(want.memory))


@pytest.mark.parametrize("rival", sorted(RIVALS))
def test_a_weight_adds_one_term_that_reaches_the_backbone(rival: str, stage: Stage) -> None:
    stage = after_earlier(RIVALS[rival](1.0), stage)
    finals = []
    for weight in (0.0, 0.5, 1.0):
        phase = RIVALS[rival](weight)
        state = phase.begin(stage)
        logged = advance_(phase, stage, state, range(3))
        assert len(logged[-1]) == (2 if weight == 0 else 3)
        finals.append(content(state.model))
    names = [name for name in finals[0] if name.startswith("backbone.") and name.endswith("conv.weight")]
    moved = [any(not torch.equal(finals[a][name], finals[b][name]) for name in names) for a, b in ((0, 1), (1, 2))]
    assert moved == [True, True]


@pytest.mark.parametrize("rival", ["ewc", "lwf", "replay"])
def test_the_first_task_is_naive_tuning(rival: str, first_stage: Stage) -> None:
    ours, theirs = RIVALS[rival](1.0).begin(first_stage), FullTuning().begin(first_stage)
    got = advance_(RIVALS[rival](1.0), first_stage, ours, range(2))
    assert got == advance_(FullTuning(), first_stage, theirs, range(2))
    assert equal(content(ours.model), content(theirs.model))


@pytest.mark.parametrize("rival", [*sorted(RIVALS), "adapters"])
def test_a_training_changes_nothing_that_the_stage_holds(rival: str, stage: Stage, random_state_untouched) -> None:
    phase = AdapterTuning(Lora(rank=2)) if rival == "adapters" else RIVALS[rival](1.0)
    stage = after_earlier(phase, stage)
    before = [content(model) for model in (stage.foundation, stage.start)]
    memory = {name: tensor.clone() for name, tensor in stage.memory.items()}
    state = phase.begin(stage)
    advance_(phase, stage, state, range(2))
    phase.finish(stage, state)
    for model, want in zip((stage.foundation, stage.start), before, strict=True):
        assert equal(content(model), want)
        assert trained(model) == set()
    assert equal(dict(stage.memory), memory)


def test_l2_sp_pulls_by_alpha_times_the_distance_and_spares_the_head(stage: Stage) -> None:
    phase = L2SP(3.0)
    state = phase.begin(stage)
    weight = next(state.model.backbone.parameters())
    with torch.no_grad():
        weight.add_(0.5)
        state.model.heads["third"].get_parameter("weight").add_(9.0)
    term = phase.losses(state, batches(phase, stage, 0))["retention"]
    assert term.item() == pytest.approx(3.0 / 2 * 0.25 * weight.numel(), rel=1e-5)
    (gradient,) = torch.autograd.grad(term, [weight])
    torch.testing.assert_close(gradient, torch.full_like(gradient, 3.0 * 0.5), rtol=1e-5, atol=1e-6)


def test_ewc_remembers_the_fisher_information_of_its_task(stage: Stage) -> None:
    """Against plain backward passes: 3 crops, one each, in evaluation mode, nothing left in `grad`."""
    phase = EWC(1.0, fisher_crops=3)
    state = phase.begin(replace(stage, earlier=()))
    finished = phase.finish(stage, state)
    assert all(each.grad is None for each in finished.model.parameters())
    referee = frozen_copy(finished.model)
    referee.backbone.requires_grad_(True)
    squares: list[list[Tensor]] = []
    for crop in stage.labelled(3):
        referee.zero_grad()
        assert crop.label is not None
        F.cross_entropy(referee(crop.image, "third"), crop.label).backward()
        squares.append([each.grad.square() for each in referee.backbone.parameters() if each.grad is not None])
    compared = 0
    for (name, weight), *found in zip(referee.backbone.named_parameters(), *squares, strict=True):
        want = torch.stack(found).mean(dim=0)
        torch.testing.assert_close(finished.memory[f"importance.{name}"], want, rtol=1e-4, atol=1e-9)
        assert torch.equal(finished.memory[f"anchor.{name}"], weight)
        compared += 1
    assert compared > 30
    assert not any("head" in name for name in finished.memory)
    total = sum(float(each.sum()) for name, each in finished.memory.items() if name.startswith("importance."))
    assert finished.facts["fisher_trace"] == pytest.approx(total, rel=1e-5)


def test_ewc_keeps_one_penalty_for_each_task(stage: Stage) -> None:
    """After two tasks the term is λ/2 times the sum of both penalties, worked out from the two memories."""
    phase = EWC(4.0, fisher_crops=2)
    memories, starts = [], stage
    for _ in range(2):
        state = phase.begin(starts)
        advance_(phase, starts, state, range(2))
        memories.append(EWC(4.0, 2).finish(replace(starts, memory={}), State(state.model)).memory)
        starts = replace(starts, memory=phase.finish(starts, state).memory, start=frozen_copy(state.model))
    state = phase.begin(starts)
    advance_(phase, starts, state, range(2))
    want = 0.0
    for memory in memories:
        for name, weight in state.model.backbone.named_parameters():
            gap = weight.detach().double() - memory[f"anchor.{name}"].double()
            want += 2.0 * float((memory[f"importance.{name}"].double() * gap.square()).sum())
    assert want > 0
    got = phase.losses(state, batches(phase, starts, 9))["retention"].item()
    assert got == pytest.approx(want, rel=1e-4)


def test_lwf_trains_earlier_heads_and_asks_nothing_of_a_student_that_still_agrees(stage: Stage) -> None:
    phase = LearningWithoutForgetting(1.0, temperature=2.0)
    state = phase.begin(stage)
    assert {name.split(".")[1] for name in trained(state.model) if name.startswith("heads.")} == set(CLASSES)
    assert phase.losses(state, batches(phase, stage, 0))["retention"].item() == pytest.approx(0, abs=1e-6)
    advance_(phase, stage, state, range(6))
    term = phase.losses(state, batches(phase, stage, 9))["retention"]
    crops = batch(9, "third").image
    want = []
    for task in ("first", "second"):
        theirs, ours = ((model(crops, task) / 2.0).softmax(dim=1) for model in (stage.start, state.model))
        want.append((theirs * (theirs / ours).log()).sum(dim=1).mean().item())
    assert term.item() == pytest.approx(sum(want) / 2, rel=1e-3)
    assert sum(want) > 1e-4


def test_replay_asks_the_head_of_the_task_that_the_crops_are_from(stage: Stage) -> None:
    phase = Replay(0.5)
    state = phase.begin(stage)
    task, kept = batch(0, "third"), batch(1, "second", size=3)
    terms = phase.losses(state, [task, kept])
    for crops, weight, got in ((task, 1.0, [terms["dice"], terms["cross_entropy"]]), (kept, 0.5, [terms["replay"]])):
        assert crops.label is not None
        want = segmentation_losses(state.model(crops.image, crops.task), crops.label)
        total = weight * torch.stack(list(want.values())).sum()
        torch.testing.assert_close(torch.stack(got).sum(), total)
    terms["replay"].backward()
    moved = {task: head.weight.grad is not None for task, head in state.model.heads.items()}
    assert moved == {"first": False, "second": True, "third": False}


def test_mean_teacher_averages_the_student_and_judges_clean_crops(stage: Stage) -> None:
    phase = MeanTeacher(2.0, decay=0.6)
    state = phase.begin(stage)
    teacher = state.teacher
    assert teacher is not None
    key = "backbone.net.convInit.conv.weight"
    average = torch.zeros_like(state.model.state_dict()[key])
    for step, decay in enumerate((0.0, 0.5, 0.6, 0.6)):  # min(1 − 1/(step + 1), 0.6)
        average = decay * average + (1 - decay) * state.model.state_dict()[key]
        advance_(phase, stage, state, range(step, step + 1))
        torch.testing.assert_close(teacher.state_dict()[key], average)
    assert state.carried["step"] == 4
    assert trained(teacher) == set()


def test_mean_teacher_compares_probabilities_of_noisy_and_clean_crops(stage: Stage, monkeypatch) -> None:
    """Without noise, at the first step, student and teacher are one; the noise is what they differ by."""
    phase, crops = MeanTeacher(2.0, decay=0.6), batch(1000, "third", kind="unlabelled").image
    seen: list[Tensor] = []
    state = phase.begin(stage)
    state.model.backbone.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0][2:]))
    term = phase.losses(state, batches(phase, stage, 0))["consistency"]
    noise = seen[0] - crops
    assert noise.std().item() == pytest.approx(NOISE, rel=0.1)
    noisy, clean = (state.model(each, "third").softmax(dim=1) for each in (seen[0], crops))
    assert term.item() == pytest.approx(2.0 * (noisy - clean).square().mean().item(), rel=1e-3)
    phase.losses(state, batches(phase, stage, 0))
    assert not torch.equal(seen[-1] - crops, noise)


def test_mean_teacher_resumes_from_what_is_carried(stage: Stage) -> None:
    """Written into a new state in place, weights and carried tensors give the steps of an uninterrupted training."""
    phase = MeanTeacher(1.0, decay=0.9)
    whole, killed = phase.begin(stage), phase.begin(stage)
    want = advance_(phase, stage, whole, range(5))
    advance_(phase, stage, killed, range(3))
    resumed = phase.begin(stage)
    resumed.model.load_state_dict(content(killed.model))
    for name, tensor in resumed.carried.items():
        tensor.copy_(killed.carried[name].clone())
    assert advance_(phase, stage, resumed, range(3, 5)) == want[3:]
    assert equal(content(resumed.model), content(whole.model))
    assert whole.teacher is not None
    assert resumed.teacher is not None
    assert equal(content(resumed.teacher), content(whole.teacher))


def test_adapters_train_themselves_norms_and_the_new_head_and_merge_into_a_plain_model(stage: Stage) -> None:
    phase = AdapterTuning(Lora(rank=2, learning_rate=0.02))
    assert phase.learning_rates(Optimizer()) == {"": 0.02, "heads.": Optimizer().head_learning_rate}
    state = phase.begin(stage)
    norms = [n for n, m in state.model.backbone.named_modules() if isinstance(m, torch.nn.GroupNorm)]
    assert isinstance(state.model, AdaptedModel)
    adapters = {f"backbone.{name}.lora_{part}" for name in state.model.adapted for part in "ab"}
    affine = {f"backbone.{name}.{part}" for name in norms for part in ("weight", "bias")}
    assert trained(state.model) == adapters | affine | {"heads.third.bias", "heads.third.weight"}
    assert min(len(adapters), len(affine)) > 10
    advance_(phase, stage, state, range(3))
    finished = phase.finish(stage, state)
    assert type(finished.model) is FoundationModel
    assert finished.adapter is state.model
    assert finished.facts["merge_difference"] < 1e-5
    crops = batch(9, "third").image
    for task in CLASSES:
        torch.testing.assert_close(finished.model(crops, task), state.model(crops, task), rtol=1e-3, atol=1e-4)
    before, after = phase.begin(stage).model.state_dict(), finished.model.state_dict()
    kept = [torch.equal(after[f"heads.{task}.weight"], before[f"heads.{task}.weight"]) for task in CLASSES]
    assert kept == [True, True, False]
