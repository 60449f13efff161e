"""What `lora_conv3d` is tested on: each shape with its reason."""

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
    kernel: tuple[int, int, int] = (3, 3, 3)
    stride: int | tuple[int, int, int] = 1
    padding: int | tuple[int, int, int] | str = 1
    dilation: int = 1
    groups: int = 1
    rank: int = 4
    batch: int = 2

    def __str__(self) -> str:
        return self.reason.replace(" ", "-")

    @property
    def settings(self) -> dict[str, object]:
        """The keyword arguments of the operation."""
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}


CASES = (
    Case("a residual block's 3x3x3 on an odd grid", 5, 7, (5, 6, 7)),
    Case("a downsampling stride that does not divide the grid", 4, 6, (7, 5, 6), stride=2),
    Case("a 1x1x1 projection, which PEFT cannot merge", 6, 3, (4, 5, 3), kernel=(1, 1, 1), padding=0),
    Case("a flat 1x3x3 of anisotropic data with unequal strides", 3, 4, (3, 6, 5), (1, 3, 3), (1, 2, 2), (0, 1, 1)),
    Case("a patch embedding whose stride equals its kernel", 1, 8, (4, 6, 8), kernel=(2, 2, 2), stride=2, padding=0),
    Case("a dilated kernel, where PEFT's A forgets the dilation", 3, 4, (7, 6, 5), padding=2, dilation=2),
    Case("padding given as a word", 3, 4, (4, 5, 6), padding="same"),
    Case("two groups", 4, 6, (5, 4, 3), groups=2),
    Case("depth-wise with two outputs a channel", 4, 8, (4, 5, 6), groups=4),
    Case("rank above the number of outputs", 2, 1, (4, 4, 5), rank=5),
    Case("one voxel out", 3, 4, (3, 3, 3), padding=0, batch=1),
)
