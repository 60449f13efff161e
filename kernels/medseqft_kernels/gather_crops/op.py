"""`gather_crops`: checks, custom op and the choice of a backend."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from medseqft_kernels.checks import require
from medseqft_kernels.dispatch import fastest, forced
from medseqft_kernels.gather_crops.reference import channels_last, exact, reference
from medseqft_kernels.triton_support import runs_triton

BACKENDS = ("auto", "reference", "triton")
STORED = ("float16", "bfloat16", "float32", "uint8", "int8", "int16", "int32")
"""What the kernel reads."""
WRITTEN = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Crops(NamedTuple):
    """What is cut; see :func:`gather_crops`."""

    masked: Float[Tensor, "n c d h w"]
    """The crops with the token where the mask is True; the same tensor as `target` where no mask was given."""
    target: Float[Tensor, "n c d h w"]
    """The crops as they are."""
    gradient_energy: Float[Tensor, " n"] | None
    """Mean squared gradient of the hidden voxels."""
    local_variance: Float[Tensor, " n"] | None
    """Mean, over the hidden voxels, of the variance of the patch that the voxel lies in."""


def gather_crops(
    volumes: Sequence[Shaped[Tensor, "c _ _ _"]],
    index: Int[Tensor, " n"],
    corner: Int[Tensor, "n 3"],
    size: tuple[int, int, int],
    *,
    air: Float[Tensor, "v c"] | None = None,
    window: tuple[float, float] | None = None,
    flip: Bool[Tensor, "n 3"] | None = None,
    mask: Bool[Tensor, "n d h w"] | None = None,
    token: float = 0.0,
    controls: bool = True,
    dtype: torch.dtype = torch.float32,
    backend: str = "auto",
) -> Crops:
    """Cut crops out of resident volumes, window, flip and mask them, in one pass over what is read and written.

    The volumes are data: nothing here is differentiable. Intensities are computed in fp32 (in fp64 where that is the
    `dtype`) and rounded once, so crops are the same bits from every backend.

    Parameters
    ----------
    volumes
        (C, D, H, W) each, of any extents and strides; one device, one dtype (floating or integer), one C.
    index, corner
        Crop i starts at voxel ``corner[i]`` of ``volumes[index[i]]``. Corners may be negative or reach over the end.
        These and `flip` may lie on the CPU, where draws are made; on a GPU, checking them waits for it.
    size
        (d, h, w) of every crop, in voxels.
    air
        What volume v holds outside, (V, C), in stored units; 0 where None.
    window
        Finite (low, high): intensities are clipped to them and scaled to [0, 1]; None leaves them as stored.
    flip
        Axes along which crop i is reversed.
    mask
        True hides a voxel of the crop as it comes out, that is, after flipping.
    token
        What `masked` holds there, in the units of the output.
    controls
        Whether to compute `gradient_energy` and `local_variance` of the windowed, unrounded crop: means over hidden
        voxels and channels, over all voxels without a mask, 0 where a crop hides none. The gradient is that of
        :func:`numpy.gradient`, in voxels: central differences, one-sided at the crop's edges, 0 along an axis of one
        voxel. The variance is the population variance in the 4 × 4 × 4 patch of the crop that holds the voxel,
        patches being counted from the crop's first voxel and cut off at its end.
    dtype
        Of `masked` and `target`: fp32, bf16, fp16 or fp64.
    backend
        ``reference``, a loop over slices; ``triton``, one kernel, which takes volumes of fp16, bf16, fp32, uint8, int8,
        int16 and int32 and leaves any other dtype, and fp64 out, to the reference; ``auto``, the faster on a GPU.

    Returns
    -------
    Crops
        `masked` and `target` (n, C, d, h, w) in channels-last-3d memory, `gradient_energy` and `local_variance` (n,).

    Raises
    ------
    ValueError
        Naming the tensor, what was found and what was expected.
    """
    shape = _check(volumes, index, corner, size, air, window, flip, mask, dtype)
    backend = _choose(backend, shape, volumes[0].dtype, dtype, volumes[0].device, window, flip, mask, controls)
    if air is None:
        air = torch.zeros((len(volumes), shape[1]), device=volumes[0].device)
    low, high = map(float, window) if window is not None else (None, None)
    made = _gather(
        list(volumes), index, corner, list(size), air, low, high, flip, mask, float(token), dtype, controls, backend
    )
    masked, target, energy, variance = made
    sums = (energy, variance) if controls else (None, None)
    return Crops(target if mask is None else masked, target, *sums)


@torch.library.custom_op(
    "medseqft::gather_crops",
    mutates_args=(),
    schema="(Tensor[] volumes, Tensor index, Tensor corner, int[] size, Tensor air, float? low, float? high, "
    "Tensor? flip, Tensor? mask, float token, ScalarType dtype, bool controls, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
)
def _gather(
    volumes: Sequence[Tensor],
    index: Tensor,
    corner: Tensor,
    size: Sequence[int],
    air: Tensor,
    low: float | None,
    high: float | None,
    flip: Tensor | None,
    mask: Tensor | None,
    token: float,
    dtype: torch.dtype,
    controls: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    device = volumes[0].device
    if len(index):
        first, last = (int(edge) for edge in index.aminmax())
        require(first >= 0 and last < len(volumes), "index", f"{first} to {last}", f"0 to {len(volumes) - 1}")
    token = float(torch.tensor(token, dtype=dtype))  # rounded once, whatever a backend computes in
    window = None
    if low is not None and high is not None:
        low, high = torch.tensor([low, high], dtype=exact(dtype)).tolist()  # as the arithmetic sees them
        require(-torch.inf < low < high < torch.inf, "window", (low, high), "low < high, finite and apart")
        window = (low, high)
    flip = None if flip is None else flip.to(device)
    rest = (size, air, window, flip, mask, token, dtype, controls)
    if backend == "triton":
        from medseqft_kernels.gather_crops.triton import launch

        with torch.cuda.device_of(volumes[0]):
            return launch(volumes, index.to(device, torch.int64), corner.to(device, torch.int64), *rest)
    return reference(volumes, index, corner, *rest)


@_gather.register_fake
def _(  # type: ignore[no-untyped-def]
    volumes, index, corner, size, air, low, high, flip, mask, token, dtype, controls, backend
):
    shape, device = (index.shape[0], volumes[0].shape[0], *size), volumes[0].device
    target = channels_last(shape, dtype, device)
    masked = target.new_empty(0) if mask is None else channels_last(shape, dtype, device)
    sums = [target.new_empty(shape[0] if controls else 0, dtype=exact(dtype)) for _ in range(2)]
    return masked, target, sums[0], sums[1]


def _choose(
    backend: str,
    shape: tuple[int, ...],
    stored: torch.dtype,
    written: torch.dtype,
    device: torch.device,
    window: object,
    flip: object,
    mask: object,
    controls: bool,
) -> str:
    require(backend in BACKENDS, "backend", repr(backend), f"one of {list(BACKENDS)}")
    if backend == "triton":
        require(runs_triton(device), "backend", "'triton'", f"Triton installed and a GPU; the volumes are on {device}")
    names = str(stored).removeprefix("torch."), str(written).removeprefix("torch.")
    able = names[0] in STORED and written != torch.float64
    if not able or (backend == "auto" and device.type != "cuda"):
        return "reference"
    if backend != "auto":
        return backend
    used = (window is not None, flip is not None, mask is not None, controls)
    return _fastest(shape, *names, str(device), used)


@torch.compiler.assume_constant_result
def _fastest(shape: tuple[int, ...], stored: str, written: str, device: str, used: tuple[bool, ...]) -> str:
    """Measured on a GPU, on volumes of twice the crop; the loop over slices where there is none."""
    where = torch.device(device)
    if forced() or not runs_triton(where) or not shape[0]:
        return "reference"
    window, flip, mask, controls = used
    crops, channels, *size = shape
    words = [word for word, on in zip(("window", "flip", "mask", "controls"), used, strict=True) if on]
    question = f"gather_crops {'x'.join(map(str, shape))} {stored}>{written} {' '.join(words)}".rstrip()

    def candidates() -> dict[str, Callable[[], object]]:
        volumes = [torch.zeros((channels, *(2 * side for side in size)), device=where).to(getattr(torch, stored))] * 2
        corner = torch.tensor([[side // 2 for side in size]]).repeat(crops, 1)
        arguments = (
            volumes,
            torch.arange(crops) % 2,
            corner,
            size,
            torch.zeros((2, channels), device=where),
            *((0.0, 1.0) if window else (None, None)),
            corner > 0 if flip else None,
            torch.ones((crops, *size), dtype=torch.bool, device=where) if mask else None,
            0.0,
            getattr(torch, written),
            controls,
        )
        return {name: partial(_gather, *arguments, name) for name in BACKENDS[1:]}

    return fastest(question, where, candidates)


def _check(
    volumes: Sequence[Tensor],
    index: Tensor,
    corner: Tensor,
    size: tuple[int, int, int],
    air: Tensor | None,
    window: tuple[float, float] | None,
    flip: Tensor | None,
    mask: Tensor | None,
    dtype: torch.dtype,
) -> tuple[int, ...]:
    require(len(volumes) > 0, "volumes", "none", "at least one")
    first = volumes[0]
    for number, volume in enumerate(volumes):
        name = f"volumes[{number}]"
        fits = volume.ndim == 4 and volume.shape[0] == first.shape[0] and volume.numel() > 0
        require(fits, name, tuple(volume.shape), f"({first.shape[0]}, D, H, W), not empty")
        require(volume.dtype == first.dtype, name, volume.dtype, f"{first.dtype}, as volumes[0] is")
        require(volume.device == first.device, name, volume.device, f"{first.device}, where volumes[0] is")
        require(not volume.requires_grad, name, "requires_grad=True", "data: the operation has no gradient")
        require(not volume.is_complex(), name, volume.dtype, "a floating or integer dtype")
    n, c = index.shape[0] if index.ndim else 0, first.shape[0]
    require(len(size) == 3 and min(size) > 0, "size", size, "three positive extents")
    for name, which, rows in (("index", index, (n,)), ("corner", corner, (n, 3))):
        require(tuple(which.shape) == rows, name, tuple(which.shape), rows)
        whole = not (which.is_floating_point() or which.is_complex() or which.dtype == torch.bool)
        require(whole, name, which.dtype, "an integer dtype")
    if air is not None:
        require(tuple(air.shape) == (len(volumes), c), "air", tuple(air.shape), (len(volumes), c))
    for name, switch, wanted in (("flip", flip, (n, 3)), ("mask", mask, (n, *size))):
        if switch is not None:
            require(tuple(switch.shape) == wanted, name, tuple(switch.shape), wanted)
            require(switch.dtype == torch.bool, name, switch.dtype, "torch.bool")
    for name, where in (("air", air), ("mask", mask)):
        if where is not None:
            require(where.device == first.device, name, where.device, f"{first.device}, where volumes[0] is")
    require(dtype in WRITTEN, "dtype", dtype, f"one of {list(WRITTEN)}")
    return (n, c, *size)
