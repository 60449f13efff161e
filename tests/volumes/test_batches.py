from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.volumes.augment import Augmentation
from medseqft_kit.volumes.batches import Batch, BatchSource, prefetch
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import prepare

PATCH = (6, 6, 6)


@pytest.fixture
def volumes(write_task, tmp_path):
    """Five labelled cases: class 1 fills half of each, class 2 is one voxel, absent from the last case."""
    rng = np.random.default_rng(0)
    images = {f"case_{index}": rng.normal(300, 60, (14, 15, 16)).astype(np.float32) for index in range(5)}
    label = np.zeros((14, 15, 16), int)
    label[:7] = 1
    labels = {}
    for index, case in enumerate(images):
        labels[case] = label.copy()
        if index < 4:
            labels[case][12, 3 * index, 4] = 2
    task = write_task(images, labels)
    return prepare(task, Preprocessing((1.0, 1.0, 1.0)), list(images), tmp_path / "store")


def source_of(volumes, **changes) -> BatchSource:
    settings = {"entries": volumes.entries(), "patch": PATCH, "size": 3, "seed": 0, "stream": "train"}
    return BatchSource(**{**settings, **changes})


def same(one: Batch, two: Batch) -> bool:
    assert one.label is not None
    assert two.label is not None
    return torch.equal(one.image, two.image) and torch.equal(one.label, two.label) and one.cases == two.cases


def test_shapes_and_types_are_what_training_wants(volumes):
    batch = source_of(volumes).batch(0)
    assert (batch.image.shape, batch.image.dtype) == ((3, 1, *PATCH), torch.float32)
    assert (batch.label.shape, batch.label.dtype) == ((3, *PATCH), torch.int64)
    assert (len(batch.cases), batch.task) == (3, "written")


def test_a_batch_depends_on_seed_stream_and_step_alone(volumes):
    source = source_of(volumes, augmentation=Augmentation(probability=1.0))
    later = source.batch(7)
    source.batch(2)
    assert same(source.batch(7), later)
    assert same(replace(source).batch(7), later)
    others = [source.batch(8), replace(source, seed=1).batch(7), replace(source, stream="other").batch(7)]
    assert not any(torch.equal(other.image, later.image) for other in others)


def test_every_case_is_seen_equally_often_in_an_order_that_changes(volumes):
    source = source_of(volumes)
    seen = [case for step in range(10) for case in source.batch(step).cases]
    assert len(seen) == 30
    assert set(Counter(seen).values()) == {6}
    epochs = [tuple(seen[at : at + 5]) for at in range(0, 30, 5)]
    assert all(len(set(epoch)) == 5 for epoch in epochs)
    assert len(set(epochs)) > 3


def test_a_crop_is_a_piece_of_its_case(volumes):
    batch = source_of(volumes).batch(1)
    for image, label, case in zip(batch.image, batch.label, batch.cases, strict=True):
        volume = volumes.volume(case)
        windows = np.lib.stride_tricks.sliding_window_view(volume.image[0], PATCH)
        where = np.argwhere((windows == image[0].numpy()).all(axis=(3, 4, 5)))
        assert len(where) == 1
        at = tuple(slice(start, start + 6) for start in where[0])
        np.testing.assert_array_equal(volume.label[at], label)


def test_small_structures_are_shown_as_often_as_large_ones(volumes):
    source = source_of(volumes, foreground=1.0, entries=volumes.entries(volumes.cases[:4]))
    labels = torch.cat([source.batch(step).label for step in range(70)])
    shown = (labels == 2).flatten(1).any(1).float().mean()
    assert len(labels) == 210
    assert 0.4 < shown < 0.65  # one voxel in 3360: half of the crops are placed on it
    uniform = replace(source, foreground=0.0)
    rare = torch.cat([uniform.batch(step).label for step in range(70)])
    assert (rare == 2).flatten(1).any(1).float().mean() < 0.2


def test_the_share_of_placed_crops_is_the_setting(volumes):
    def shown(foreground):
        source = source_of(volumes, foreground=foreground, size=10, entries=volumes.entries(volumes.cases[:1]))
        labels = torch.cat([source.batch(step).label for step in range(40)])
        return float((labels == 2).flatten(1).any(1).float().mean())

    none, all_of_them = shown(0.0), shown(1.0)
    assert abs(shown(0.67) - (0.33 * none + 0.67 * all_of_them)) < 0.08


def test_a_case_without_a_class_is_drawn_all_the_same(volumes):
    source = source_of(volumes, foreground=1.0, entries=volumes.entries(["case_4"]))
    labels = torch.cat([source.batch(step).label for step in range(5)])
    assert (labels == 1).flatten(1).any(1).all()
    assert not (labels == 2).any()


def test_a_patch_larger_than_the_volume_is_padded_with_air_and_ignored(volumes):
    batch = source_of(volumes, patch=(20, 20, 20)).batch(0)
    outside = batch.label == 255
    assert int(outside.sum()) == 3 * (20**3 - 14 * 15 * 16)
    for image, mask, case in zip(batch.image[:, 0], outside, batch.cases, strict=True):
        assert (image[mask] == volumes.volume(case).air[0]).all()


def test_an_unlabelled_source_looks_at_no_label(volumes):
    unlabelled = source_of(volumes, labelled=False, foreground=1.0)
    blind = tuple((replace(volumes, task=replace(volumes.task, cases=())), case) for case in volumes.cases)
    batch, other = unlabelled.batch(3), source_of(volumes, labelled=False, entries=blind, foreground=0.0).batch(3)
    assert batch.label is None
    assert torch.equal(batch.image, other.image)


def test_an_unlabelled_source_may_span_tasks_and_a_labelled_one_may_not(volumes):
    other = replace(volumes, task=replace(volumes.task, name="second"))
    entries = (*volumes.entries(["case_0"]), *other.entries(["case_1"]))
    batch = source_of(volumes, entries=entries, labelled=False, size=2).batch(0)
    assert sorted(batch.cases) == ["case_0", "case_1"]
    assert batch.task == ""
    with pytest.raises(ConfigError, match="several tasks") as problem:
        source_of(volumes, entries=entries)
    assert problem.value.found == "second, written"


def test_sources_that_cannot_work_are_refused_at_once(volumes):
    with pytest.raises(ConfigError, match="no case"):
        source_of(volumes, entries=())
    bare = tuple(replace(case, label=None) for case in volumes.task.cases)
    with pytest.raises(ConfigError, match="case_0 of written has no label"):
        source_of(volumes, entries=replace(volumes, task=replace(volumes.task, cases=bare)).entries())
    wide = replace(volumes, task=replace(volumes.task, channels=("MR", "MR")))
    with pytest.raises(ConfigError, match="channels"):
        source_of(volumes, entries=(*volumes.entries(), *wide.entries()), labelled=False)


@pytest.mark.parametrize("workers", [0, 1, 4])
def test_any_number_of_workers_gives_the_same_batches_in_order(volumes, workers):
    source = source_of(volumes, augmentation=Augmentation())
    fetched = list(prefetch(source, range(3, 14), workers))
    assert len(fetched) == 11
    assert all(same(batch, source.batch(step)) for (batch, _), step in zip(fetched, range(3, 14), strict=True))
    assert all(waited >= 0 for _, waited in fetched)


class Recording:
    """A source whose batches take 20 ms, noting which steps were begun."""

    def __init__(self) -> None:
        self.begun: list[int] = []

    def batch(self, step: int) -> int:
        self.begun.append(step)
        time.sleep(0.02)
        return step


def test_the_time_waited_is_that_of_the_caller():
    fetched = prefetch.__wrapped__(Recording(), range(4), 1)
    next(fetched)
    time.sleep(0.15)  # the next batches are ready by now
    waits = [waited for _, waited in fetched]
    assert waits[0] < 0.01
    synchronous = [waited for _, waited in prefetch.__wrapped__(Recording(), range(4), 0)]
    assert min(synchronous) >= 0.02


def test_looking_ahead_is_bounded_and_ends_with_the_caller():
    source = Recording()
    before = threading.active_count()
    fetched = prefetch.__wrapped__(source, range(1000), 2)
    next(fetched)
    time.sleep(0.3)
    assert len(source.begun) <= 1 + 2 * 2 + 1
    fetched.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("workers", [0, 2])
def test_a_workers_error_arrives_as_itself_with_the_case_named(volumes, workers):
    broken = replace(volumes, keys={**volumes.keys, "case_2": "nowhere"})
    source = source_of(broken)
    with pytest.raises(DataError, match="case_2") as problem:
        list(prefetch(source, range(5), workers))
    assert any("case case_2 of task written" in note for note in problem.value.__notes__)
