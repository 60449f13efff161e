import numpy as np
import pytest
import torch

from medseqft_kit.errors import ConfigError
from medseqft_kit.objectives.masked import MaskedReconstruction
from medseqft_kit.selection.draws import Block, DrawSequence, block_sizes

PATCH = (16, 24, 16)


def sequence(seed: int = 0) -> DrawSequence:
    return DrawSequence(seed, PATCH, MaskedReconstruction(ratio=0.5, block=4))


def same(one: Block, other: Block) -> bool:
    return np.array_equal(one.positions, other.positions) and torch.equal(one.pretext["mask"], other.pretext["mask"])


def test_a_draw_is_a_function_of_seed_block_and_place_alone() -> None:
    forward = [sequence().block(index, 8) for index in range(4)]
    backward = [sequence().block(index, 8) for index in reversed(range(4))][::-1]
    assert [same(a, b) for a, b in zip(forward, backward, strict=True)] == [True] * 4
    assert torch.equal(sequence().pretext(1, 5)["mask"], forward[1].pretext["mask"][5])


def test_seeds_blocks_and_draws_differ() -> None:
    blocks = [sequence(seed).block(index, 8) for seed in (0, 1) for index in (0, 1)]
    assert len({block.positions.tobytes() for block in blocks}) == 4
    masks = [mask.numpy().tobytes() for block in blocks for mask in block.pretext["mask"]]
    assert len(set(masks)) == len(masks) == 32


@pytest.mark.parametrize("size", [8, 16, 32])
@pytest.mark.parametrize("index", [0, 1, 37])
def test_a_block_has_one_position_in_each_slice_of_each_axis(index: int, size: int) -> None:
    positions = sequence().positions(index, size)
    slices = np.sort((positions * size).astype(int), axis=0)
    assert positions.shape == (size, 3)
    assert np.array_equal(slices, np.tile(np.arange(size)[:, None], 3))


def test_block_means_are_unbiased_and_larger_blocks_vary_less_for_each_draw() -> None:
    variance = []
    for size in (8, 16, 32):
        positions = np.stack([sequence().positions(index, size) for index in range(400)])
        means = (positions**2).sum(axis=2).mean(axis=1)  # expectation 3 · 1/3, variance of one point 3 · (1/5 − 1/9)
        assert abs(means.mean() - 1) < 5 * means.std() / np.sqrt(400)
        variance.append(means.var() * size)
    assert variance[0] < 0.1 * 3 * (1 / 5 - 1 / 9)
    assert variance == sorted(variance, reverse=True)


def test_blocks_are_not_correlated_with_their_neighbours() -> None:
    positions = np.stack([sequence().positions(index, 8) for index in range(1000)])
    first = positions[:, 0, :]  # the first point of a block is uniform, and independent of the block before
    correlation = [np.corrcoef(first[:-1, axis], first[1:, axis])[0, 1] for axis in range(3)]
    assert np.abs(correlation).max() < 4 / np.sqrt(999)


def test_a_thousand_draws_are_made_in_blocks_that_grow() -> None:
    assert block_sizes(1000) == (8,) * 5 + (16,) * 6 + (32,) * 27
    assert block_sizes(16) == (8, 8)
    assert block_sizes(160) == (8,) * 5 + (16,) * 6 + (16, 8)


def test_every_number_of_draws_is_met_by_blocks_that_begin_alike() -> None:
    every = {draws: block_sizes(draws) for draws in range(16, 1201, 8)}
    assert all(sum(sizes) == draws for draws, sizes in every.items())
    assert all(size in (8, 16, 32) for sizes in every.values() for size in sizes)
    longest = every[1200]
    agreed = [
        next((i for i, (a, b) in enumerate(zip(s, longest, strict=False)) if a != b), len(s)) for s in every.values()
    ]
    assert all(sum(s[i:]) < 32 for i, s in zip(agreed, every.values(), strict=True))
    assert len(every) == 149


@pytest.mark.parametrize("draws", [0, 8, 20, -16])
def test_draws_that_make_no_two_blocks_are_refused(draws: int) -> None:
    with pytest.raises(ConfigError, match=f"{draws} draws"):
        block_sizes(draws)


def test_drawing_leaves_the_global_random_states_alone() -> None:
    # Python's own generator is left out: the checking of annotations in tests draws from it.
    before = str(np.random.get_state()), torch.get_rng_state()
    sequence().block(0, 8)
    assert str(np.random.get_state()) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
