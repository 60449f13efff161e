from itertools import product

import numpy as np
import pytest
import torch

from medseqft_kernels import gather_crops
from medseqft_kit.objectives.masked import MaskedReconstruction
from medseqft_kit.selection import controls
from medseqft_kit.selection.draws import DrawSequence
from medseqft_kit.volumes.crops import cut, relative_start
from medseqft_kit.volumes.types import Geometry, Volume

AIR = (-3.0, -2.0)
SIZES = [
    ((9, 7, 6), (4, 4, 4)),
    ((9, 7, 6), (5, 6, 3)),  # patches that the crop's end cuts off
    ((9, 3, 6), (5, 6, 3)),  # smaller than the crop along one axis: padded with air
    ((6, 6, 6), (6, 6, 6)),  # a single position
    ((7, 5, 4), (2, 1, 3)),  # an axis without gradient, one with one-sided differences alone
    ((12, 9, 10), (9, 8, 7)),
]


def volume(shape: tuple[int, ...]) -> Volume:
    image = (3 + np.random.default_rng(1).standard_normal((2, *shape))).astype(np.float16)
    grid = Geometry((shape[0], shape[1], shape[2]), np.eye(4))
    return Volume("a", image, None, grid, grid, {}, AIR)


def every_crop(made: Volume, region: tuple[int, ...]) -> np.ndarray:
    """All crops that can be drawn, each start once, found by enumeration of fine fractions."""
    shape = made.image.shape[1:]
    steps = [max(size - side, 0) + 1 for size, side in zip(shape, region, strict=True)]
    fractions = product(*([(i + 0.5) / n for i in range(n)] for n in steps))
    starts = {relative_start(shape, region, each) for each in fractions}
    assert len(starts) == np.prod(steps)
    return np.stack([cut(made, start, region)[0] for start in sorted(starts)]).astype(np.float64)


def referee(crop: np.ndarray) -> tuple[float, float, float]:
    """The three controls of one crop, all voxels hidden: NumPy, patch by patch."""
    axes = [axis for axis in (1, 2, 3) if crop.shape[axis] > 1]
    energy = sum(np.square(np.gradient(crop, axis=axis)).mean() for axis in axes)
    starts = product(*(range(0, side, 4) for side in crop.shape[1:]))
    patches = [crop[:, x : x + 4, y : y + 4, z : z + 4] for x, y, z in starts]
    local = sum(patch[c].var() * patch[c].size for patch in patches for c in range(len(crop))) / crop.size
    return float(energy), float(local), float(np.mean([channel.var() for channel in crop]))


@pytest.mark.parametrize("slab", [2**24, 40])
@pytest.mark.parametrize(("shape", "region"), SIZES, ids=str)
def test_exact_means_are_those_of_all_crops_that_can_be_drawn(
    shape: tuple[int, ...], region: tuple[int, ...], slab: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controls, "SLAB", slab)
    made = volume(shape)
    wanted = np.mean([referee(crop) for crop in every_crop(made, region)], axis=0)
    np.testing.assert_allclose(controls.exact_means(made, region), wanted, rtol=1e-11)


def test_controls_of_a_crop_are_those_of_the_referee_where_everything_is_hidden() -> None:
    made, region = volume((9, 7, 6)), (5, 6, 4)
    image = torch.from_numpy(every_crop(made, region)[:3].astype(np.float32))
    hidden = torch.ones(3, *region, dtype=torch.bool)
    crops = gather_crops(list(image), torch.arange(3), torch.zeros(3, 3).int(), region, mask=hidden)
    found = controls.of_crops(crops, {"mask": hidden}, 1.0)
    np.testing.assert_allclose(found, [referee(crop) for crop in image.numpy()], rtol=1e-5)


@pytest.mark.parametrize("block", [4, 5])  # 5 does not divide the region: masks hide different numbers of voxels
def test_controls_average_to_their_exact_means_over_draws(block: int) -> None:
    made, region = volume((13, 11, 12)), (8, 8, 8)
    objective = MaskedReconstruction(block=block)
    draws = DrawSequence(3, region, objective)
    image = torch.from_numpy(made.image)
    rows = []
    for index in range(300):
        drawn = draws.block(index, 8)
        corner = torch.tensor([relative_start(image.shape[1:], region, each.tolist()) for each in drawn.positions])
        mask = drawn.pretext["mask"]
        crops = gather_crops([image], torch.zeros(8).int(), corner, region, mask=mask)
        rows.append(controls.of_crops(crops, drawn.pretext, objective.hidden_share(region)).mean(dim=0).numpy())
    error = np.mean(rows, axis=0) - controls.exact_means(made, region)
    assert np.abs(error / (np.std(rows, axis=0) / np.sqrt(300))).max() < 4
    counts = {int(draws.pretext(index, 0)["mask"].sum()) for index in range(20)}
    assert (len(counts) > 1) == (block == 5)
