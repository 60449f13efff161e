"""Stage 2 on hand-made stages: where it starts, what it is held to, what it reports and leaves behind."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from medseqft_kit.errors import AdapterError
from medseqft_kit.lora.inject import AdaptedModel
from medseqft_kit.lora.merge import merge
from medseqft_kit.lora.spectrum import rows_of_a
from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.objectives.distillation import feature_distance
from medseqft_kit.settings import Distill, Lora, Optimizer
from medseqft_kit.tuning.merge_rules import moved
from medseqft_kit.tuning.phases.base import Stage
from medseqft_kit.tuning.phases.consolidate import Consolidation
from medseqft_kit.tuning.phases.merge_rule import parameters_of
from medseqft_kit.volumes.batches import Batch

OUTPUTS, INPUTS = 32, 32 * 27
"""Of the largest matrix of a layer: no difference needs a higher rank than the first, and no A has more directions than
the second."""


@pytest.fixture(autouse=True)
def plain_kernels(monkeypatch):
    """Which kernel is the fastest is another test's question, and takes seconds to measure."""
    monkeypatch.setenv("MEDSEQFT_KERNELS", "reference")


def model(seed):
    return frozen_copy(FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8), seed=seed))


@pytest.fixture(scope="module")
def models():
    foundation, start, adapted = model(0), model(1), model(2)
    adapted.add_head_("organ", 3, seed=5)
    return foundation, start, adapted.requires_grad_(False)


@pytest.fixture
def stage(models):
    foundation, start, adapted = models
    return Stage(
        task="organ",
        classes=3,
        tasks={"organ": 3},
        earlier=(),
        foundation=foundation,
        start=start,
        seed=0,
        steps=10,
        validate=lambda given: 0.7,
        labelled=lambda count: iter(()),
        before=lambda: [],
        adapted=adapted,
        adapted_dice=0.8,
    )


def batches():
    draw = torch.Generator().manual_seed(0)
    images = [torch.randn(2, 1, 8, 8, 8, generator=draw) for _ in range(2)]
    label = torch.zeros(2, 8, 8, 8, dtype=torch.int64)
    return Batch(images[0], label, ("a", "b"), "organ"), Batch(images[1], None, ("c", "d"), "")


def relative(got, want):
    return float((got.detach() - want.detach()).norm() / want.detach().norm())


def furthest(got, want):
    return max(relative(got[name], want[name]) for name in want if want[name].any())


@pytest.mark.parametrize(
    ("loss", "anchor", "sources"),
    [
        ("both", 0.0, ("task", "buffer")),
        ("features", 0.0, ("task", "buffer")),
        ("logits", 0.0, ("task",)),
        ("logits", 0.5, ("task", "buffer")),
    ],
)
def test_buffer_crops_are_seen_where_a_loss_reads_them(loss, anchor, sources):
    assert Consolidation(Lora(loss=loss, anchor=anchor)).sources == sources


def test_longest_says_the_steps_and_zero_is_the_student_as_it_starts(stage):
    assert Consolidation(Lora(longest=1.5)).steps(stage) == 15
    assert Consolidation(Lora(longest=0.0)).steps(stage) == 0
    assert Consolidation(Lora(initial="delta")).checks_first
    assert not Consolidation(Lora(initial="zero")).checks_first


def test_student_starts_as_the_previous_model_with_the_adapted_head(stage):
    student = Consolidation(Lora(rank=2, initial="zero")).begin(stage).model.eval()
    image = batches()[0].image
    assert isinstance(student, AdaptedModel)
    assert relative(student.encode(image).decoded, stage.start.encode(image).decoded) < 1e-6
    assert torch.equal(student.heads["organ"].weight, stage.adapted.heads["organ"].weight)
    assert not student.heads["organ"].weight.requires_grad


def test_delta_of_full_rank_starts_as_the_adapted_model(stage):
    phase = Consolidation(Lora(rank=OUTPUTS, initial="delta", share=1.0))
    state = phase.begin(stage)
    finished = phase.finish(stage, state)
    got, want = parameters_of(finished.model), parameters_of(stage.adapted)
    assert len(want) > 30
    assert furthest(got, want) < 1e-5
    assert finished.facts["moved"] == pytest.approx(finished.facts["moved_adapted"], rel=1e-5)
    with torch.no_grad():
        terms = phase.losses(state, batches())
    assert all(float(term) < 1e-9 for term in terms.values())


def test_delta_of_low_rank_starts_nearer_to_the_adapted_model_than_zero_does(stage):
    losses = {}
    for initial in ("zero", "delta"):
        phase = Consolidation(Lora(rank=8, initial=initial))
        with torch.no_grad():
            losses[initial] = float(phase.losses(phase.begin(stage), batches())["features"])
    assert losses["delta"] < 0.5 * losses["zero"]


def test_automatic_ranks_grow_with_the_energy_and_are_reported(stage):
    ranks = {}
    for energy in (0.3, 0.9):
        phase = Consolidation(Lora(rank="auto", energy=energy, largest_rank=12))
        state = phase.begin(stage)
        settings = state.model.settings
        ranks[energy] = [settings.rank_of(name) for name in state.model.adapted]
        facts = phase.finish(stage, state).facts
        assert facts["rank_mean"] == pytest.approx(sum(ranks[energy]) / len(ranks[energy]))
        assert all(layer.scaling == 1.0 for layer in state.model.layers().values())
    assert max(ranks[0.9]) == 12
    assert len(set(ranks[0.3])) > 1
    assert ranks[0.3] != ranks[0.9]
    assert all(few <= many for few, many in zip(ranks[0.3], ranks[0.9], strict=True))


def test_losses_are_the_stated_ones(stage):
    phase = Consolidation(Lora(rank=2, anchor=0.3), Distill(distance="l1"))
    state, (task, buffer) = phase.begin(stage), batches()
    with torch.no_grad():
        got = phase.losses(state, (task, buffer))
        images = torch.cat([task.image, buffer.image])
        ours, theirs = state.model.encode(images), stage.adapted.encode(images)
        logits = [each(task.image, "organ") for each in (state.model, stage.adapted)]
        anchor = feature_distance(state.model.encode(buffer.image), stage.foundation.encode(buffer.image), "l1")
    want = {"features": feature_distance(ours, theirs, "l1"), "logits": F.mse_loss(*logits), "anchor": 0.3 * anchor}
    assert got.keys() == want.keys()
    for name, value in want.items():
        assert float(got[name]) == pytest.approx(float(value), rel=1e-4), name


def test_without_an_anchor_there_is_no_such_term(stage):
    phase = Consolidation(Lora(rank=2, loss="features"))
    assert phase.losses(phase.begin(stage), batches()).keys() == {"features"}
    phase = Consolidation(Lora(rank=2, loss="logits"))
    assert phase.losses(phase.begin(stage), batches()[:1]).keys() == {"logits"}


def test_phase_may_end_once_the_merged_model_is_faithful(stage):
    phase = Consolidation(Lora(rank=2, fidelity=0.9))
    state = phase.begin(stage)
    check = phase.check(stage, state)
    kept = pytest.approx(0.875)
    assert dict(check.values) == {"validation_dice": 0.7, "fidelity": kept, "fidelity_whole": kept}
    assert not check.done
    assert phase.check(replace(stage, validate=lambda given: 0.73), state).done
    assert phase.learning_rates(Optimizer()) == {"": 3e-3}


def test_half_a_step_of_full_rank_is_the_average_and_the_whole_step_is_what_stops(stage):
    start, adapted = parameters_of(stage.start), parameters_of(stage.adapted)
    middle = {name: (start[name] + adapted[name]) / 2 for name in start}
    phase = Consolidation(Lora(rank=OUTPUTS, initial="delta", share=0.5))
    state = phase.begin(stage)
    finished = phase.finish(stage, state)
    got = parameters_of(finished.model)
    assert len(middle) > 30
    assert furthest(got, middle) < 1e-5
    assert furthest(parameters_of(merge(finished.adapter)[0]), middle) < 1e-5  # what is stored makes M_t too
    assert finished.facts["moved"] == pytest.approx(finished.facts["moved_adapted"] / 2, rel=1e-5)

    def validate(given):
        return 0.8 if furthest(parameters_of(given), adapted) < 1e-5 else 0.4

    check = phase.check(replace(stage, validate=validate), state)
    assert dict(check.values) == {"validation_dice": 0.4, "fidelity": 0.5, "fidelity_whole": 1.0}
    assert check.done


def test_facts_and_models_are_as_they_were(stage):
    before = [
        {name: value.clone() for name, value in each.state_dict().items()} for each in (stage.start, stage.adapted)
    ]
    phase = Consolidation(Lora(rank=4, initial="delta", share=1.0))
    state = phase.begin(stage)
    sum(phase.losses(state, batches()).values()).backward()
    finished = phase.finish(stage, state)
    start = parameters_of(stage.start)
    assert finished.adapter is state.model
    assert finished.facts == {
        "merge_difference": finished.facts["merge_difference"],
        "rank_mean": 4.0,
        "moved": pytest.approx(moved(start, parameters_of(finished.model))),
        "moved_adapted": pytest.approx(moved(start, parameters_of(stage.adapted))),
    }
    assert finished.facts["merge_difference"] < 1e-4
    assert not finished.memory
    for each, was in zip((stage.start, stage.adapted), before, strict=True):
        assert all(torch.equal(value, was[name]) for name, value in each.state_dict().items())


@pytest.mark.parametrize("initial", ["zero", "delta"])
def test_orthogonal_adapters_of_successive_tasks_share_no_direction(stage, initial):
    phase = Consolidation(Lora(rank=2, orthogonal=True, initial=initial))
    memory, rows = {}, []
    for task in range(3):
        now = replace(stage, memory=memory, seed=task)
        state = phase.begin(now)
        trained = {name for name, each in state.model.named_parameters() if each.requires_grad}
        assert any(name.endswith("lora_b") for name in trained)
        assert not any(name.endswith("lora_a") for name in trained)
        rows.append({name: rows_of_a(layer, layer.lora_a) for name, layer in state.model.layers().items()})
        memory = dict(phase.finish(now, state).memory)
    assert len(rows[0]) > 10
    for name in rows[0]:
        for earlier, later in ((0, 1), (0, 2), (1, 2)):
            lengths = rows[earlier][name].norm(dim=2).unsqueeze(2) * rows[later][name].norm(dim=2).unsqueeze(1)
            assert (rows[earlier][name] @ rows[later][name].mT / lengths).abs().max() < 1e-5
        basis = memory[name].double()
        assert basis.shape[1] == 6
        assert torch.allclose(basis @ basis.mT, torch.eye(6, dtype=torch.float64), atol=1e-6)


def test_orthogonal_adapters_say_so_when_no_direction_is_left(stage):
    phase = Consolidation(Lora(rank=INPUTS, orthogonal=True))
    finished = phase.finish(stage, phase.begin(stage))
    with pytest.raises(AdapterError, match=r"span every direction[\s\S]*lora\.rank"):
        phase.begin(replace(stage, memory=finished.memory))
