"""Labels that were not drawn for every structure: what is not drawn is unknown, in training and in metrics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from medseqft_kit.config import TaskSection
from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.evaluation.evaluate import evaluate
from medseqft_kit.models.precision import resolve_precision
from medseqft_kit.objectives.segmentation import marginal_logits, segmentation_losses
from medseqft_kit.settings import Settings
from medseqft_kit.tasks.labels import read_classes
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tuning.plan import TaskPlan, check_data, choose_cases, manifest_entry, split_plans
from medseqft_kit.volumes.batches import BatchSource
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import prepare
from tests.tasks import public_sets

FLARE = ("FLARE23_0001", "FLARE23_0002")


@pytest.fixture
def flare(tmp_path: Path) -> Path:
    public_sets.flare23(tmp_path / "flare23")
    return tmp_path / "flare23"


def source(volumes, size: int) -> BatchSource:
    return BatchSource(volumes.entries(), (8, 8, 8), size, 0, "test")


def test_what_a_label_of_flare_does_not_show_is_unknown(flare):
    task = load_task(flare)
    classes, unknown = read_classes(task, task.case("FLARE23_0001"))
    assert unknown == (5, 6, 7, 8, 9, 10, 11, 12)
    assert set(np.unique(classes)) == {0, 1, 2, 3, 4, 13, 14}
    assert read_classes(task, task.case("FLARE23_0002")).unknown == tuple(range(1, 14))


def test_a_structure_of_which_a_part_was_not_drawn_counts_nowhere(msd):
    task = load_task(msd("a"), labels={"whole": [1, 2]})
    assert task.annotated_for(["whole"]).unannotated(task.cases[0], [1]) == ()
    parts = load_task(task.root).annotated_for(["head"]).relabelled({"whole": [1, 2]})
    classes, unknown = read_classes(parts, parts.cases[0])
    assert unknown == (1,)
    assert set(np.unique(classes)) == {0, 255}


@pytest.mark.parametrize(("said", "kept", "values"), [("[head]", ["head"], {1}), ("present", "present", "present")])
def test_the_configuration_says_what_was_drawn_and_the_manifest_keeps_it(msd, said, kept, values):
    root = msd("a", "b", "c")
    text = f"{{name: small, data: {root}, annotated: {said}}}"
    plan = TaskPlan.from_section(TaskSection.model_validate(yaml.safe_load(text)))
    assert [case.annotated for case in plan.task.cases] == [values] * 3
    split = split_plans([plan], Settings())["small"]
    entry = manifest_entry(plan, split, choose_cases(plan, split, Settings()))
    assert entry["annotated"] == kept
    assert TaskPlan.from_entry("small", entry).task == plan.task
    with pytest.raises(ConfigError, match=r"annotated[\s\S]*heart[\s\S]*head, tail"):
        load_task(root).annotated_for(["heart"])


def test_a_run_checks_the_masks_that_it_reads_and_no_others(tmp_path):
    public_sets.totalsegmentator(tmp_path)
    (tmp_path / "s0003" / "segmentations" / "esophagus.nii.gz").write_bytes(b"")
    check_data([TaskPlan(load_task(tmp_path, "liver", {"liver": 5}))])
    with pytest.raises(DataError, match=r"esophagus\.nii\.gz: unreadable"):
        check_data(
            [TaskPlan(load_task(tmp_path, "liver", {"liver": 5})), TaskPlan(load_task(tmp_path, "gut", {"gut": 15}))]
        )


def test_the_store_keeps_both_ways_apart_and_complete_labels_where_they_were(msd, tmp_path):
    task = load_task(msd("a"))
    keys = [
        prepare(each, Preprocessing(), ["a"], tmp_path / "store").keys["a"]
        for each in (task, task.annotated_for(["head"]), task.annotated_for("present"), task)
    ]
    assert keys[0] == keys[3]
    assert len(set(keys)) == 3


def test_batches_say_which_classes_are_unknown(flare, tmp_path):
    task = load_task(flare)
    batch = source(prepare(task, Preprocessing(), FLARE, tmp_path / "store"), 2).batch(0)
    drawn = {"FLARE23_0001": {0, 1, 2, 3, 4, 13, 14}, "FLARE23_0002": {0, 14}}
    assert batch.unknown.shape == (2, 15)
    for case, row in zip(batch.cases, batch.unknown, strict=True):
        assert set(torch.nonzero(~row).flatten().tolist()) == drawn[case]


def test_batches_of_complete_labels_know_nothing_of_this(msd, tmp_path):
    task = load_task(msd("a", "b"))
    assert source(prepare(task, Preprocessing(), ["a", "b"], tmp_path / "store"), 2).batch(0).unknown is None


def test_background_of_a_partial_label_may_be_what_was_not_drawn():
    logits = torch.randn(2, 4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    label = torch.randint(0, 2, (2, 3, 3, 3), generator=torch.Generator().manual_seed(1))
    unknown = torch.tensor([[False, False, True, True], [False, False, False, True]])
    found = segmentation_losses(logits, label, unknown)

    p = logits.double().softmax(1).numpy()
    p[0, 0] += p[0, 2] + p[0, 3]
    p[0, 2:] = 0
    p[1, 0] += p[1, 3]
    p[1, 3] = 0
    truth = label.numpy()
    weight = np.where(truth == 0, 0.3, 1.0)
    entropy = -np.log(np.take_along_axis(p, truth[:, None], 1)[:, 0])
    overlap = 2 * (p[:, 1] * (truth == 1)).sum() / (p[:, 1].sum() + (truth == 1).sum())
    assert float(found["cross_entropy"]) == pytest.approx((entropy * weight).sum() / weight.sum(), rel=1e-5)
    assert float(found["dice"]) == pytest.approx(1 - overlap, rel=1e-5)


def test_nothing_pushes_a_structure_away_that_was_not_drawn():
    logits = torch.zeros(1, 3, 1, 1, 1, requires_grad=True)
    background = torch.zeros(1, 1, 1, 1, dtype=torch.long)
    sum(segmentation_losses(logits, background, torch.tensor([[False, False, True]])).values()).backward()
    assert torch.isfinite(logits.grad).all()
    assert logits.grad[0, 1] > 0  # drawn, and not there: pushed down
    assert logits.grad[0, 2] < 0  # not drawn: as welcome as background
    torch.testing.assert_close(logits.grad[0, 2], logits.grad[0, 0])


def test_complete_labels_train_bit_for_bit_as_before():
    logits = torch.randn(2, 3, 4, 4, 4)
    assert marginal_logits(logits, None) is logits
    label = torch.randint(0, 3, (2, 4, 4, 4))
    plain, same = segmentation_losses(logits, label), segmentation_losses(logits, label, None)
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    assert set(plain) == {"dice", "cross_entropy"}


def test_no_row_is_made_for_a_structure_that_was_not_drawn(flare, tmp_path):
    task = load_task(flare)
    volumes = prepare(task, Preprocessing(), FLARE, tmp_path / "store")
    everything_is_an_aorta = np.full(public_sets.GRID, 5, np.uint8)
    settings = {"predictor": "adapted", "seed": 0, "stage": 0, "precision": resolve_precision("fp32", "cpu")}
    rows = evaluate(lambda volume: everything_is_an_aorta, task, volumes, FLARE, **settings)
    found = {case: {row.label for row in rows if row.case == case} for case in FLARE}
    drawn = {"liver", "right_kidney", "spleen", "pancreas", "left_kidney", "tumor"}
    assert found == {"FLARE23_0001": drawn, "FLARE23_0002": {"tumor"}}
    assert not any(row.false_positive for row in rows)
