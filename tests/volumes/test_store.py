from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import psutil
import pytest

from medseqft_kit.errors import DataError
from medseqft_kit.tasks import memory
from medseqft_kit.volumes import estimate as estimating
from medseqft_kit.volumes import store as storing
from medseqft_kit.volumes.entry import OPEN_ENTRIES
from medseqft_kit.volumes.estimate import estimate
from medseqft_kit.volumes.preprocess import Preprocessing, preprocess
from medseqft_kit.volumes.store import prepare

SPACING = Preprocessing((1.0, 1.0, 1.0))


@pytest.fixture
def task(write_task):
    rng = np.random.default_rng(0)
    images = {name: rng.normal(300, 60, (8, 9, 10)).astype(np.float32) for name in ("a", "b", "c")}
    labels = {name: rng.integers(0, 3, (8, 9, 10)) for name in ("a", "b")}
    return write_task(images, labels)


@pytest.fixture
def counted(monkeypatch):
    """Ids of the cases that were preprocessed, in order."""
    seen = []

    def counting(task, case, preprocessing):
        seen.append(case.id)
        return preprocess(task, case, preprocessing)

    monkeypatch.setattr(storing, "preprocess", counting)
    return seen


def test_a_stored_volume_is_the_preprocessed_one_and_is_mapped(task, tmp_path):
    volumes = prepare(task, SPACING, ["b", "a"], tmp_path / "store")
    assert volumes.cases == ("b", "a")
    for case in volumes.cases:
        stored, fresh = volumes.volume(case), preprocess(task, task.case(case), SPACING)
        assert isinstance(stored.image, np.memmap)
        assert isinstance(stored.label, np.memmap)
        assert not stored.image.flags.writeable
        assert (stored.image.dtype, stored.label.dtype) == (np.float16, np.uint8)
        np.testing.assert_array_equal(stored.image, fresh.image)
        np.testing.assert_array_equal(stored.label, fresh.label)
        assert (stored.case, stored.air) == (case, fresh.air)
        for one, two in ((stored.grid, fresh.grid), (stored.original, fresh.original)):
            assert one.shape == two.shape
            np.testing.assert_array_equal(one.affine, two.affine)
        assert stored.foreground.keys() == fresh.foreground.keys() == {1, 2}
        assert all((stored.foreground[i] == fresh.foreground[i]).all() for i in (1, 2))


def test_an_unlabelled_case_has_no_label(task, tmp_path):
    volume = prepare(task, SPACING, ["c"], tmp_path / "store").volume("c")
    assert volume.label is None
    assert volume.foreground == {}


def test_a_second_preparation_reads_no_case_again(task, tmp_path, counted):
    prepare(task, SPACING, ["a", "b"], tmp_path / "store")
    prepare(task, SPACING, ["b", "c", "a", "b"], tmp_path / "store")
    assert counted == ["a", "b", "c"]


def test_an_interrupted_preparation_keeps_what_was_done_and_continues(task, tmp_path, counted, monkeypatch):
    writing = storing.write_entry

    def killed_at_b(folder, volume, settings):
        if volume.case == "b":
            (folder.parent / ".unfinished-left").mkdir()
            raise KeyboardInterrupt
        writing(folder, volume, settings)

    with monkeypatch.context() as patch:
        patch.setattr(storing, "write_entry", killed_at_b)
        with pytest.raises(KeyboardInterrupt):
            prepare(task, SPACING, ["a", "b", "c"], tmp_path / "store")
    volumes = prepare(task, SPACING, ["a", "b", "c"], tmp_path / "store")
    assert counted == ["a", "b", "b", "c"]
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == sorted([".lock", *volumes.keys.values()])


def flip_a_byte(folder):
    content = bytearray((folder / "image.npy").read_bytes())
    content[-5] ^= 1
    (folder / "image.npy").write_bytes(content)


DAMAGE = {
    "flipped bit": flip_a_byte,
    "truncated": lambda folder: (folder / "label.npy").write_bytes((folder / "label.npy").read_bytes()[:-40]),
    "file gone": lambda folder: (folder / "foreground.npz").unlink(),
    "meta gone": lambda folder: (folder / "meta.json").unlink(),
    "meta cut": lambda folder: (folder / "meta.json").write_text("{"),
    "older format": lambda folder: (folder / "meta.json").write_text(
        json.dumps({**json.loads((folder / "meta.json").read_text()), "format": 0})
    ),
    "folder gone": shutil.rmtree,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_entry_is_noticed_and_rebuilt(task, tmp_path, counted, damage):
    volumes = prepare(task, SPACING, ["a", "b"], tmp_path / "store")
    want = np.array(volumes.volume("a").image)
    damage(tmp_path / "store" / volumes.keys["a"])
    rebuilt = prepare(task, SPACING, ["a", "b"], tmp_path / "store")
    assert counted == ["a", "b", "a"]
    np.testing.assert_array_equal(rebuilt.volume("a").image, want)


@pytest.mark.parametrize("name", ["truncated", "file gone", "meta gone", "meta cut", "folder gone"])
def test_opening_a_damaged_entry_names_the_case(task, tmp_path, name):
    volumes = prepare(task, SPACING, ["a"], tmp_path / "store")
    DAMAGE[name](tmp_path / "store" / volumes.keys["a"])
    with pytest.raises(DataError, match="case a ") as problem:
        volumes.volume("a")
    assert "again" in problem.value.next_step


def test_keys_follow_content_and_settings_and_nothing_else(task, tmp_path, write_task):
    def key(task, settings=SPACING):
        return prepare(task, settings, ["a"], tmp_path / "store").keys["a"]

    moved = tmp_path / "elsewhere"
    shutil.copytree(task.root, moved)
    case = task.case("a")
    there = replace(case, images=(moved / case.images[0].name,), label=moved / case.label.name)
    assert key(replace(task, name="other", root=moved, cases=(there,))) == key(task)
    renamed = {"first": (1,), "second": (2,)}
    assert key(replace(task, structures=renamed)) == key(task)
    different = [
        key(task),
        key(task, Preprocessing((1.0, 1.0, 2.0))),
        key(task, Preprocessing((1.0, 1.0, 1.0), (-100.0, 100.0))),
        key(task, Preprocessing((1.0, 1.0, 1.0), scale=(0.0, 1.0))),
        key(replace(task, structures={"both": (1, 2)})),
        key(replace(task, ignore=2)),
        key(replace(task, channels=("other",))),
        key(replace(task, cases=(replace(case, label=None),))),
        key(replace(task, cases=(replace(case, images=task.case("b").images),))),
    ]
    assert len(set(different)) == 9


def test_the_spacing_comes_from_the_whole_task(write_task, tmp_path):
    images = {name: np.ones((4, 4, 4), np.float32) for name in "abc"}
    affine = {"a": np.diag([1.0, 1, 1, 1]), "b": np.diag([2.0, 2, 2, 1]), "c": np.diag([2.0, 2, 2, 1])}
    volumes = prepare(write_task(images, affine=affine), Preprocessing(), ["a"], tmp_path / "store")
    assert volumes.preprocessing.spacing == (2, 2, 2)
    assert volumes.volume("a").grid.spacing == pytest.approx((2, 2, 2))


def test_task_volumes_pickle_small_and_open_anew(task, tmp_path):
    volumes = prepare(task, SPACING, ["a"], tmp_path / "store")
    stored = volumes.volume("a")
    sent = pickle.dumps(volumes)
    assert len(sent) < 5_000
    np.testing.assert_array_equal(pickle.loads(sent).volume("a").image, stored.image)


def test_an_unknown_case_and_an_unprepared_one_are_named(task, tmp_path):
    volumes = prepare(task, SPACING, ["a"], tmp_path / "store")
    with pytest.raises(DataError, match="'b'"):
        volumes.volume("b")
    with pytest.raises(DataError, match="'z'"):
        prepare(task, SPACING, ["z"], tmp_path / "store")


def test_a_bad_case_in_the_middle_keeps_the_good_ones(task, tmp_path, counted):
    path = task.case("b").images[0]
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match=r"b\.nii\.gz"):
        prepare(task, SPACING, ["a", "b"], tmp_path / "store")
    prepare(task, SPACING, ["a"], tmp_path / "store")
    assert counted.count("a") <= 1


def test_the_estimate_is_said_before_the_first_case_and_is_right(task, tmp_path):
    said = []
    coarse = Preprocessing((1.0, 2.0, 1.0))
    volumes = prepare(task, coarse, ["a", "c"], tmp_path / "store", progress=lambda *call: said.append(call))
    wanted = estimate(task, coarse, [task.case("a"), task.case("c")])
    assert [call[1:] for call in said] == [(0, 2), (1, 2), (2, 2)]
    assert {call[0] for call in said} == {f"preparing written ({wanted})"}
    taken = sum(volumes.volume(case).image.nbytes for case in "ac") + volumes.volume("a").label.nbytes
    assert 0.8 < wanted.disk / taken < 1.25  # 9 voxels of 1 mm are 4.5 of 2 mm, and the grid has 5


@pytest.mark.parametrize("short", ["disk", "memory"])
def test_what_does_not_fit_is_refused_before_it_is_taken(task, tmp_path, monkeypatch, counted, short):
    if short == "disk":
        monkeypatch.setattr(estimating.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    else:
        monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    with pytest.raises(DataError, match="fit") as problem:
        prepare(task, SPACING, ["a"], tmp_path / "store")
    assert problem.value.found == "1.0 kB free"
    assert counted == []


def test_many_cases_opened_in_turn_hold_a_bounded_number_of_descriptors(task, tmp_path):
    volumes = prepare(task, SPACING, ["a"], tmp_path / "store")
    entry = tmp_path / "store" / volumes.keys["a"]
    keys = {f"case {index}": f"copy_{index}" for index in range(200)}
    for copy in keys.values():
        (tmp_path / "store" / copy).symlink_to(entry)
    many, before = replace(volumes, cases=tuple(keys), keys=keys), psutil.Process().num_fds()
    images = [many.volume(case).image.shape for case in many.cases]
    assert len(images) == 200
    assert psutil.Process().num_fds() - before <= 2 * OPEN_ENTRIES
