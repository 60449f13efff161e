import numpy as np
import pytest
import torch

from medseqft_kit.objectives.masked import MaskedReconstruction
from medseqft_kit.selection.draws import DrawSequence

PATCH = (16, 24, 16)


def sequence(seed: int = 0) -> DrawSequence:
    return DrawSequence(seed, PATCH, MaskedReconstruction(ratio=0.5, block=4))


def test_a_draw_is_a_function_of_seed_and_index_alone() -> None:
    forward = [sequence().block(index) for index in range(4)]
    backward = [sequence().block(index) for index in reversed(range(4))][::-1]
    same = [
        np.array_equal(a.positions, b.positions) and torch.equal(a.masks, b.masks)
        for a, b in zip(forward, backward, strict=True)
    ]
    assert same == [True] * 4
    assert torch.equal(sequence().mask(13), forward[1].masks[5])


def test_seeds_blocks_and_draws_differ() -> None:
    blocks = [sequence(seed).block(index) for seed in (0, 1) for index in (0, 1)]
    assert len({block.positions.tobytes() for block in blocks}) == 4
    masks = [mask.numpy().tobytes() for block in blocks for mask in block.masks]
    assert len(set(masks)) == len(masks) == 32


@pytest.mark.parametrize("index", [0, 1, 124])
def test_a_block_has_one_position_in_each_eighth_of_each_axis(index: int) -> None:
    positions = sequence().positions(index)
    eighths = np.sort((positions * 8).astype(int), axis=0)
    assert positions.shape == (8, 3)
    assert np.array_equal(eighths, np.tile(np.arange(8)[:, None], 3))


def test_block_means_are_unbiased_and_vary_less_than_means_of_eight_independent_points() -> None:
    positions = np.stack([sequence().positions(index) for index in range(400)])
    means = (positions**2).sum(axis=2).mean(axis=1)  # expectation 3 · 1/3, variance of one point 3 · (1/5 − 1/9)
    assert abs(means.mean() - 1) < 5 * means.std() / np.sqrt(400)
    assert means.var() < 0.1 * 3 * (1 / 5 - 1 / 9) / 8


def test_blocks_are_not_correlated_with_their_neighbours() -> None:
    positions = np.stack([sequence().positions(index) for index in range(1000)])
    first = positions[:, 0, :]  # the first point of a block is uniform, and independent of the block before
    correlation = [np.corrcoef(first[:-1, axis], first[1:, axis])[0, 1] for axis in range(3)]
    assert np.abs(correlation).max() < 4 / np.sqrt(999)


def test_drawing_leaves_the_global_random_states_alone() -> None:
    # Python's own generator is left out: the checking of annotations in tests draws from it.
    before = str(np.random.get_state()), torch.get_rng_state()
    sequence().block(0)
    assert str(np.random.get_state()) == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
