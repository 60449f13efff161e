"""What `lora_conv_transpose3d` is tested on: each shape with its reason."""

from __future__ import annotations

from dataclasses import dataclass

from medseqft_kernels.tolerance import TOLERANCE

__all__ = ["CASES", "TOLERANCE", "Case"]


@dataclass(frozen=True)
class Case:
    """One shape: `size` is the input's (D, H, W)."""

    reason: str
    inputs: int
    outputs: int
    size: tuple[int, int, int]
    kernel: tuple[int, int, int] = (2, 2, 2)
    stride: int | tuple[int, int, int] = 2
    padding: int = 0
    output_padding: int | tuple[int, int, int] = 0
    groups: int = 1
    dilation: int = 1
    rank: int = 4
    batch: int = 2

    def __str__(self) -> str:
        return self.reason.replace(" ", "-")

    @property
    def settings(self) -> dict[str, object]:
        """The keyword arguments of the operation."""
        return {
            "stride": self.stride,
            "padding": self.padding,
            "output_padding": self.output_padding,
            "groups": self.groups,
            "dilation": self.dilation,
        }


CASES = (
    Case("a decoder's 2x2x2 upsampling of an odd grid", 6, 3, (3, 4, 5)),
    Case("overlapping taps with output padding", 3, 4, (3, 2, 4), (3, 3, 3), 2, 1, 1),
    Case("unequal strides and output padding", 2, 5, (3, 4, 2), (1, 3, 3), (1, 2, 2), 0, (0, 1, 1)),
    Case("a 1x1x1 of stride one", 4, 2, (3, 3, 2), kernel=(1, 1, 1), stride=1),
    Case("a dilated kernel", 3, 2, (4, 3, 2), kernel=(2, 2, 2), stride=1, dilation=2),
    Case("two groups", 4, 6, (3, 2, 4), groups=2),
    Case("depth-wise", 4, 4, (2, 3, 2), groups=4),
    Case("rank above the number of outputs", 2, 1, (2, 3, 3), rank=5, batch=1),
)
