"""Rows of `gather_crops`: crops of resident volumes, windowed, flipped, masked; with and without control variates.

The floor reads as many numbers as are cut, from one stretch of memory, and writes both outputs. The rivals are one
slice after the other and then PyTorch on all of them, and the same with MONAI's transforms for each crop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from harness import Provider, Row, Work
from monai.transforms import Compose, Flip, ScaleIntensityRange, SpatialCrop
from torch import Tensor
from torch.nn import functional

from medseqft_kernels import gather_crops
from medseqft_kernels.checks import name_of
from medseqft_kernels.gather_crops.op import BACKENDS
from medseqft_kernels.tolerance import TOLERANCE

Shape = tuple[int, int, int, int]
"""Crops, their side, volumes, their side."""
SMALL, LARGE = (256, 32, 8, 128), (64, 64, 4, 192)
Setting = tuple[Shape, torch.dtype, bool]
"""With what is stored, and whether control variates are asked for."""
SETTINGS: tuple[Setting, ...] = (
    (SMALL, torch.int16, False),
    (SMALL, torch.int16, True),
    (LARGE, torch.int16, False),
    (LARGE, torch.int16, True),
    (LARGE, torch.float32, False),
)
REST: tuple[Setting, ...] = ((SMALL, torch.float32, False), (SMALL, torch.float32, True), (LARGE, torch.float32, True))
WINDOW = (-175.0, 250.0)
"""HU, of the abdomen."""
HIDDEN, BLOCK, PATCH = 0.7, 8, 4
"""Share of the crop that is masked, in cubes of this side; side of the patches whose variance is a control variate."""


class Drawn(NamedTuple):
    """What is cut in one row."""

    volumes: list[Tensor]
    volume: Tensor
    """The number of each crop's volume."""
    corner: Tensor
    side: int
    flip: Tensor
    mask: Tensor


def rows(
    device: torch.device, everything: bool = False, shapes: Sequence[Setting] | None = None, **_: object
) -> Iterator[Row]:
    """One row for each setting; nothing here has a rank or is compiled."""
    for shape, stored, controls in (SETTINGS + REST * everything) if shapes is None else shapes:
        words = "{0} crops {1}x{1}x{1} of {2} volumes {3}x{3}x{3}".format(*shape) + " controls" * controls
        build = partial(work, shape, stored, controls, device)
        yield Row("gather_crops", words, name_of(stored), "contiguous", build, "floor", "slices")


def work(shape: Shape, stored: torch.dtype, controls: bool, device: torch.device) -> Work:
    """Tensors and providers of one row; all providers share the tensors."""
    what = drawn(shape, stored, device)
    cut = (what.volumes[0][:, : what.side, : what.side, : what.side]).repeat(shape[0], 1, 1, 1, 1)
    providers = {
        "floor": Provider(partial(read_and_write, cut), rival=True),
        "slices": Provider(partial(_by_hand, by_slices, what, controls), rival=True),
        "MONAI": Provider(partial(_by_hand, by_monai, what, controls), rival=True),
        **{name: Provider(partial(ours, what, controls, name)) for name in (*BACKENDS[1:], "auto")},
    }
    known = cache(lambda: ours(what, controls, "reference", torch.float64) | read_and_write(cut, torch.float64))
    return Work(providers, known, TOLERANCE[torch.float32])


def drawn(shape: Shape, stored: torch.dtype, device: torch.device) -> Drawn:
    """Volumes on the device, and crops anywhere within them, with their flips and masks."""
    crops, side, many, extent = shape
    draw = torch.Generator().manual_seed(0)
    volumes = [(300 * torch.randn((1, extent, extent, extent), generator=draw)).to(device, stored) for _ in range(many)]
    index = torch.randint(many, (crops,), generator=draw)
    corner = torch.randint(extent - side + 1, (crops, 3), generator=draw)
    blocks = torch.rand((crops, 1, *(side // BLOCK,) * 3), generator=draw)
    mask = functional.interpolate(blocks, scale_factor=BLOCK)[:, 0].to(device) < HIDDEN
    return Drawn(volumes, index, corner, side, torch.rand((crops, 3), generator=draw) < 0.5, mask)


def ours(what: Drawn, controls: bool, backend: str, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The operation."""
    cuts = (what.volumes, what.volume, what.corner, (what.side,) * 3)
    rest: dict[str, Any] = {"window": WINDOW, "flip": what.flip, "mask": what.mask, "controls": controls}
    found = gather_crops(*cuts, **rest, dtype=dtype, backend=backend)
    return {name: each for name, each in found._asdict().items() if each is not None}


def read_and_write(cut: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """What no way to cut can do without: as much read as is stored, and both outputs written."""
    return {"copy": cut.to(dtype), "zeros": torch.zeros_like(cut, dtype=dtype)}


def _by_hand(cut: Callable[[Drawn], Tensor], what: Drawn, controls: bool) -> dict[str, Tensor]:
    """Crops that are cut one by one; masked, and measured, all at once."""
    target = cut(what)
    found = {"masked": target.masked_fill(what.mask[:, None], 0.0), "target": target}
    return found | (control_variates(target, what.mask) if controls else {})


def by_slices(what: Drawn) -> Tensor:
    """Slices; windowed all at once."""
    (low, high), crops = WINDOW, []
    for which, start, turn in zip(what.volume.tolist(), what.corner.tolist(), what.flip.tolist(), strict=True):
        crop = what.volumes[which][(slice(None), *(slice(at, at + what.side) for at in start))]
        crops.append(crop.flip([axis + 1 for axis in range(3) if turn[axis]]))
    return torch.stack(crops).float().clamp_(low, high).sub_(low).div_(high - low)


def by_monai(what: Drawn) -> Tensor:
    """The transforms of a MONAI pipeline, for one crop after the other."""
    crops = []
    for which, start, turn in zip(what.volume.tolist(), what.corner.tolist(), what.flip.tolist(), strict=True):
        cut = SpatialCrop(roi_start=start, roi_end=[at + what.side for at in start])
        axes = [axis for axis in range(3) if turn[axis]]
        flips = [Flip(axes)] if axes else []
        window = ScaleIntensityRange(*WINDOW, 0.0, 1.0, clip=True)
        crops.append(Compose([cut, window, *flips])(what.volumes[which]).as_tensor())
    return torch.stack(crops)


def control_variates(values: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Gradient energy and local variance over the hidden voxels, for sides that are whole numbers of patches."""
    energy = sum(each.square() for each in torch.gradient(values, dim=(2, 3, 4))) * mask[:, None]
    tiles, hidden = (_patches(each) for each in (values, mask[:, None]))
    spread = tiles.var((3, 5, 7), correction=0) * hidden.sum((3, 5, 7))
    count = mask.sum((1, 2, 3)).clamp(min=1) * values.shape[1]
    axes = (1, 2, 3, 4)
    return {"gradient_energy": energy.sum(axes) / count, "local_variance": spread.sum(axes) / count}


def _patches(values: Tensor) -> Tensor:
    """(n, c, D, 4, H, 4, W, 4)."""
    return values.unflatten(4, (-1, PATCH)).unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))
