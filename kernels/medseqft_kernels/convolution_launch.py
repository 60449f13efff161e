"""Launches `convolution_kernels.py`: walks, tiles, and the forward and backward pass that both convolutions have."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from medseqft_kernels.checks import Three, three
from medseqft_kernels.convolution_kernels import SIZES, a_gradient_kernel, convolution_kernel, thin_kernel
from medseqft_kernels.triton_support import Shipped, blocks, interpreted, precision_of

FULL = 264
"""Two programs for each multiprocessor of an H100: with fewer, tiles are smaller; into more, no sum is split."""
STAGES = 2 if torch.version.hip else 3
"""Tiles in flight; the shared memory of AMD's GPUs holds fewer."""

Plan = tuple[dict[str, Any], int]
"""The constants that a kernel is compiled for, and its number of warps."""
ONES: Three = (1, 1, 1)
POINTERS = ("source", "thin", "w", "a", "b", "bias", "target", "g", "u", "h", "x")
"""Arguments of the kernels that point to numbers of the operation's dtype."""


class Walk(NamedTuple):
    """How own voxels meet those of the other volume: K, S, T, P and D of `convolution_kernels.py`."""

    kernel: Three
    step: Three
    other_step: Three
    padding: Three
    dilation: Three
    spreads: bool
    """Whether W and A lie as (channels of the other volume, taps, own channels), else the other way round."""

    @classmethod
    def spreading(cls, kernel: torch.Size | Three, stride: Three, padding: Three, dilation: Three) -> Walk:
        """That of a transposed convolution, and of a convolution's gradients."""
        return cls(three(kernel), stride, ONES, padding, dilation, True)

    @classmethod
    def gathering(cls, kernel: torch.Size | Three, stride: Three, padding: Three, dilation: Three) -> Walk:
        """That of a convolution, and of a transposed convolution's gradients."""
        return cls(three(kernel), ONES, stride, _negative(padding), _negative(dilation), False)

    @property
    def apart(self) -> Three:
        """Of the taps of an axis, every how manyth meets the same parity class."""
        d, h, w = (s // math.gcd(s, d) for s, d in zip(self.step, self.dilation, strict=True))
        return d, h, w

    @property
    def constants(self) -> dict[str, int]:
        """The constants of the kernels: three numbers each, with the letter of the axis behind."""
        named = zip("KSTPDE", (*self[:5], self.apart), strict=True)
        return {letter + axis: n for letter, each in named for axis, n in zip("DHW", each, strict=True)}


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    lora_a: Tensor,
    lora_b: Tensor,
    scaling: float,
    walk: Walk,
    size: Three,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """(y, u), u what A makes of x, y what W makes of it + bias + s·B·u, rounded once; channels-last-3d, of `size`.

    All tensors are of one dtype, in any memory format, r ≤ ``MOST_TRITON_RANK``. y is in `out_dtype`, by default x's.
    """
    outputs, rank = lora_b.shape[:2]
    y = x.new_empty((x.shape[0], *size, outputs), dtype=out_dtype or x.dtype)
    u = x.new_empty((x.shape[0], *size, rank))
    end = (_flat(lora_b), None if bias is None else bias.contiguous(), float(scaling))
    with torch.cuda.device_of(x):
        _convolve(_last(x), u, _last(weight), _last(lora_a), y, walk, end)
    return _first(y), _first(u)


def backward(
    g: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    u: Tensor,
    scaling: float,
    walk: Walk,
    need_x: bool,
    need_adapter: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients (gx, gA, gB) of what `forward` computes, from g = ∂L/∂y of y's shape and dtype; None if not needed.

    `walk` is that of x over y. gx is channels-last-3d; gA and gB are contiguous, like lora_a and lora_b.
    """
    if not (need_x or need_adapter):
        return None, None, None
    g, x, b = _last(g), _last(x), _flat(lora_b)
    g_x = g_a = None
    with torch.cuda.device_of(x):
        h, g_b = _thin(g, _last(u), b, scaling, need_adapter)
        if need_x:
            g_x = x.new_empty(x.shape)
            _convolve(g, h, _last(weight), _last(lora_a), g_x, walk)
        if need_adapter:
            by_rank = _first(_a_gradient(x, h, walk)).to(lora_a.dtype)
            g_a = (by_rank if walk.spreads else by_rank.transpose(0, 1)).contiguous()
    return (
        None if g_x is None else _first(g_x),
        g_a,
        None if g_b is None else g_b.to(lora_b.dtype).reshape(lora_b.shape),
    )


def _convolve(
    source: Tensor,
    thin: Tensor,
    w: Tensor,
    a: Tensor,
    target: Tensor,
    walk: Walk,
    end: tuple[Tensor, Tensor | None, float] | None = None,
) -> None:
    """Fill `target`; forward with B, bias and s in `end`, which fills `thin` with u; else backward, `thin` holds h."""
    samples, *size, targets = target.shape
    own = samples * math.prod(blocks(side, step) for side, step in zip(size, walk.step, strict=True))
    if not own:
        return
    classes = math.prod(walk.step)
    channels = (source.shape[-1], targets, thin.shape[-1])
    constants, warps = convolution_plan(channels, walk, source.dtype, own * classes, end is not None)
    b, bias, scaling = end or (w, None, 0.0)
    constants["HAS_BIAS"] = bias is not None
    m_blocks = blocks(own, constants["BLOCK_M"])
    convolution_kernel[(classes * m_blocks * blocks(targets, constants["BLOCK_N"]),)](
        source, thin, w, a, b, w if bias is None else bias, target, scaling,
        samples, m_blocks, *size, *source.shape[1:4], **constants, num_warps=warps, num_stages=STAGES,
    )  # fmt: skip


def _thin(g: Tensor, u: Tensor, b: Tensor, scaling: float, with_b: bool) -> tuple[Tensor, Tensor | None]:
    """h = s·g·B in the dtype of g, which the matrix units need, and gB in fp32; so are all partial sums."""
    outputs, rank = b.shape
    voxels = g.numel() // outputs
    constants, warps = thin_plan(outputs, rank, g.dtype)
    n_blocks = blocks(outputs, constants["BLOCK_N"])
    chunks, per_chunk = _chunks(blocks(voxels, constants["BLOCK_M"]), FULL // n_blocks)
    h = g.new_empty((n_blocks, *g.shape[:-1], rank), dtype=g.dtype if n_blocks == 1 else torch.float32)
    parts = g.new_empty((chunks, outputs, rank), dtype=torch.float32)
    if chunks:
        constants["WITH_B"] = with_b
        thin_kernel[(chunks * n_blocks,)](
            g, b, u, h, parts, float(scaling), voxels, per_chunk, **constants, num_warps=warps, num_stages=STAGES
        )
    return h.sum(0).to(g.dtype) if n_blocks > 1 else h[0], parts.sum(0) if with_b else None


def _a_gradient(x: Tensor, h: Tensor, walk: Walk) -> Tensor:
    """Σ_v x[v]·h[where tap k meets v] for each tap, in fp32, (r, kD, kH, kW, Cin)."""
    samples, *size, inputs = x.shape
    rank = h.shape[-1]
    depth, height, width = (blocks(side, step) for side, step in zip(size, walk.step, strict=True))
    constants, warps = a_gradient_plan(inputs, rank, walk, x.dtype, width)
    tiles = blocks(constants["ROWS"], constants["BLOCK_M"]) * blocks(inputs, constants["BLOCK_N"])
    line_blocks, classes = blocks(width, constants["BLOCK_K"]), math.prod(walk.step)
    chunks, per_chunk = _chunks(samples * depth * height * line_blocks, FULL // (tiles * classes))
    parts = x.new_empty((chunks, rank, *walk.kernel, inputs), dtype=torch.float32)
    if chunks:
        a_gradient_kernel[(classes * chunks * tiles,)](
            x, h, parts, samples, chunks, per_chunk, line_blocks, *size, *h.shape[1:4],
            **constants, num_warps=warps, num_stages=STAGES,
        )  # fmt: skip
    return parts.sum(0)


def _last(volumes: Tensor) -> Tensor:
    """(B, C, D, H, W) in any memory format as contiguous (B, D, H, W, C); no copy of what is channels-last-3d.

    Except where it does not begin at a multiple of 16 bytes: loads of 16 bytes are worth more than the copy costs.
    """
    rows = volumes.permute(0, 2, 3, 4, 1).contiguous()
    return rows if rows.data_ptr() % 16 == 0 else rows.clone()


def _first(volumes: Tensor) -> Tensor:
    return volumes.permute(0, 4, 1, 2, 3)


def _flat(lora_b: Tensor) -> Tensor:
    return lora_b.reshape(lora_b.shape[:2]).contiguous()


def _negative(numbers: Three) -> Three:
    d, h, w = numbers
    return -d, -h, -w


def _chunks(work: int, most: int) -> tuple[int, int]:
    """How many programs share `work` blocks, at most `most`, and the blocks of each: equal on every device.

    With fewer than four blocks each, writing partial sums would cost more than making them.
    """
    per_chunk = max(blocks(work, max(most, 1)), 4)
    return blocks(work, per_chunk), per_chunk


def _tile(size: int, most: int) -> int:
    """The power of two from 16 to `most` that covers `size` with least waste, each block counted 16 wider than it is.

    The 16 stand for the thin tile beside each block and for what a step costs whatever its width.
    """
    powers = (1 << e for e in range(4, most.bit_length()))
    return min(powers, key=lambda tile: (blocks(size, tile) * (tile + 16), -tile))


def _precision(dtype: torch.dtype) -> str:
    return "widened" if interpreted() and dtype == torch.bfloat16 else precision_of(dtype)


def _rank_tile(rank: int) -> int:
    return max(16, triton.next_power_of_2(rank))


def convolution_plan(
    channels: tuple[int, int, int], walk: Walk, dtype: torch.dtype, voxels: int, forward: bool
) -> Plan:
    """For channels of source, target and adapter; fp32 takes small tiles: each number is twice as wide."""
    sources, targets, rank = channels
    small = dtype == torch.float32
    n = _tile(targets, 64 if small else 128)
    m = 64 if small or blocks(voxels, 128) * blocks(targets, n) < FULL else 128
    if m == 64:
        n = min(n, 64)
    most = 32 if small or sources % 4 else 64  # numbers that cannot be loaded four at once take more registers
    whole = (k for k in (64, 32) if k <= most and sources % k == 0)  # one tap a block, if the channels allow it
    k = next(whole, max(16, min(most, triton.next_power_of_2(math.prod(walk.kernel) * sources))))
    constants = {"SOURCES": sources, "TARGETS": targets, "RANK": rank, "BLOCK_R": _rank_tile(rank)}
    constants |= {"FORWARD": forward, "HAS_BIAS": forward, "SPREADS": walk.spreads} | walk.constants
    tiles = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "PRECISION": _precision(dtype)}
    return constants | tiles, 8 if m == 128 or small else 4


def thin_plan(outputs: int, rank: int, dtype: torch.dtype) -> Plan:
    """For the pass over g, which has `outputs` channels."""
    n = _tile(outputs, 64 if dtype == torch.float32 else 256)
    tiles = {"BLOCK_M": 64, "BLOCK_N": n, "PRECISION": _precision(dtype)}
    return {"COUT": outputs, "RANK": rank, "WITH_B": True, "BLOCK_R": _rank_tile(rank)} | tiles, 4


def a_gradient_plan(inputs: int, rank: int, walk: Walk, dtype: torch.dtype, width: int) -> Plan:
    """For x of `inputs` channels, of which a class has lines of `width` voxels."""
    padded = triton.next_power_of_2(rank)  # so that rows of one tap never straddle a tile
    rows = padded * math.prod(blocks(k, every) for k, every in zip(walk.kernel, walk.apart, strict=True))
    small = dtype == torch.float32
    m, n = 64 if small or rows <= 64 else 128, _tile(inputs, 64 if small else 128)
    k = max(16, min(16 if small else 64, triton.next_power_of_2(width)))
    tiles = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k, "PRECISION": _precision(dtype)}
    channels = {"CIN": inputs, "RANK": rank, "ROWS": rows, "BLOCK_R": padded}
    return channels | walk.constants | tiles, 8 if m == 128 or small else 4


def shipped(kernel: Any, plan: Plan, dtype: str = "*bf16") -> Shipped:
    """The configuration of a plan for ahead-of-time compilation."""
    constants, warps = plan
    types = dict.fromkeys(SIZES, "i32") | dict.fromkeys(POINTERS, dtype)
    types |= {"voxels": "i64", "scaling": "fp32", "parts": "*fp32"}
    own = {name: value for name, value in types.items() if name in set(kernel.arg_names) - set(constants)}
    return Shipped(kernel.__name__, own, constants, warps, STAGES, matrix=dtype == "*bf16")
