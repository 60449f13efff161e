from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from medseqft_kit.errors import DataError
from medseqft_kit.volumes.crops import cut, draw_start, relative_start
from medseqft_kit.volumes.types import Geometry, Volume

SHAPES = st.tuples(*[st.integers(1, 9)] * 3)
FRACTIONS = st.tuples(*[st.floats(0, 1)] * 3)


def numbered(shape: tuple[int, int, int], channels: int = 2, labelled: bool = True) -> Volume:
    """Every voxel another value, the smallest of channel 0 is 1."""
    image = np.arange(1, channels * np.prod(shape) + 1, dtype=np.float16).reshape(channels, *shape)
    label = (np.arange(np.prod(shape)) % 4).astype(np.uint8).reshape(shape) if labelled else None
    foreground = {} if label is None else {i: np.flatnonzero(label == i) for i in (1, 2, 3) if (label == i).any()}
    grid = Geometry(shape, np.eye(4))
    return Volume("numbered", image, label, grid, grid, foreground, tuple(image.min(axis=(1, 2, 3)).tolist()))


@given(SHAPES, SHAPES, st.tuples(*[st.integers(-12, 12)] * 3))
def test_a_crop_anywhere_is_the_slice_of_the_padded_volume(shape, patch, start):
    volume = numbered(shape)
    image, label = cut(volume, start, patch)
    reach = [(24, 24)] * 3
    at = tuple(slice(24 + s, 24 + s + p) for s, p in zip(start, patch, strict=True))
    for channel in range(2):
        want = np.pad(volume.image[channel], reach, constant_values=volume.air[channel])[at]
        np.testing.assert_array_equal(image[channel], want)
    np.testing.assert_array_equal(label, np.pad(volume.label, reach, constant_values=255)[at])
    assert image.dtype == np.float32
    assert label.dtype == np.uint8


@given(SHAPES, SHAPES, FRACTIONS)
def test_a_relative_start_lies_inside_or_centres_what_is_too_small(shape, patch, fractions):
    for start, size, side in zip(relative_start(shape, patch, fractions), shape, patch, strict=True):
        if size >= side:
            assert 0 <= start <= size - side
        else:
            before, behind = -start, side - size + start
            assert 0 <= behind - before <= 1


@pytest.mark.parametrize(("fraction", "want"), [(0.0, 0), (0.25, 1), (0.5, 2), (0.999, 4), (1.0, 4)])
def test_fractions_reach_from_the_first_to_the_last_start(fraction, want):
    assert relative_start((10, 10, 10), (6, 6, 6), (fraction,) * 3) == (want,) * 3


@given(SHAPES, SHAPES, st.integers(0, 2**32), st.sampled_from([1, 2, 3]))
def test_a_crop_drawn_on_a_class_shows_it(shape, patch, seed, target):
    volume = numbered(shape)
    if target not in volume.foreground:
        return
    start = draw_start(volume, patch, np.random.default_rng(seed), target)
    _, label = cut(volume, start, patch)
    assert (label == target).any()
    for at, size, side in zip(start, shape, patch, strict=True):
        assert at == -((side - size) // 2) if size < side else 0 <= at <= size - side


def test_the_drawn_voxel_falls_into_the_central_half_of_the_crop():
    volume = numbered((30, 30, 30))
    lone = Volume(**{**vars(volume), "foreground": {1: np.array([np.ravel_multi_index((15, 15, 15), (30, 30, 30))])}})
    starts = np.array([draw_start(lone, (12, 12, 12), np.random.default_rng(seed), 1) for seed in range(400)])
    assert set((15 - starts).ravel().tolist()) == {3, 4, 5, 6, 7, 8}


def test_uniform_starts_are_uniform():
    volume = numbered((12, 5, 5))
    starts = [draw_start(volume, (8, 5, 5), np.random.default_rng(seed), None)[0] for seed in range(2000)]
    assert chisquare(np.bincount(starts, minlength=5)).pvalue > 1e-3


def test_both_kinds_of_draw_advance_the_generator_equally():
    volume, one, two = numbered((9, 9, 9)), np.random.default_rng(0), np.random.default_rng(0)
    draw_start(volume, (4, 4, 4), one, None)
    draw_start(volume, (4, 4, 4), two, 2)
    assert one.random() == two.random()


def test_a_class_that_is_not_there_is_refused():
    with pytest.raises(DataError, match="class 9"):
        draw_start(numbered((5, 5, 5)), (4, 4, 4), np.random.default_rng(0), 9)


def test_an_unlabelled_volume_gives_no_label():
    assert cut(numbered((5, 5, 5), labelled=False), (0, 0, 0), (4, 4, 4))[1] is None


def test_a_crop_of_a_huge_file_reads_its_own_pages_only(tmp_path: Path):
    shape = (1, 1024, 1024, 512)  # 1 GB, sparse
    written = np.lib.format.open_memmap(tmp_path / "image.npy", "w+", np.float16, shape)
    written[0, 500, 500, 100] = 3
    written.flush()
    del written
    image = np.load(tmp_path / "image.npy", mmap_mode="r")
    grid = Geometry(shape[1:], np.eye(4))
    volume = Volume("huge", image, None, grid, grid, {}, (0.0,))
    tracemalloc.start()
    crop, _ = cut(volume, (490, 490, 90), (32, 32, 32))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert crop[0, 10, 10, 10] == 3
    assert np.count_nonzero(crop) == 1
    assert peak < 3 * crop.nbytes
    assert not np.shares_memory(crop, image)
    if sys.platform == "linux":
        assert mapped_bytes(tmp_path / "image.npy") < 0.02 * image.nbytes


def mapped_bytes(path: Path) -> int:
    """Bytes of a mapped file that this process has touched."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    sizes = [
        int(next(rest for rest in lines if rest.startswith("Rss:")).split()[1]) for line in lines if str(path) in line
    ]
    assert len(sizes) == 1
    return 1024 * sizes[0]
