"""What `gather_crops` is tested on: each set of volumes and crops with its reason."""

from __future__ import annotations

from dataclasses import dataclass

Triple = tuple[int, int, int]


@dataclass(frozen=True)
class Case:
    """`crops` are (volume, first voxel)."""

    reason: str
    channels: int
    extents: tuple[Triple, ...]
    size: Triple
    crops: tuple[tuple[int, Triple], ...]

    def __str__(self) -> str:
        return self.reason.replace(" ", "-")


CASES = (
    Case("whole patches inside one volume", 1, ((9, 10, 11),), (4, 8, 8), ((0, (0, 0, 0)), (0, (5, 2, 3)))),
    Case("two shapes and patches cut off", 2, ((6, 7, 5), (9, 5, 8)), (5, 3, 6), ((1, (2, 1, 0)), (0, (1, 4, -1)))),
    Case("reaching over every face", 1, ((4, 4, 4),), (7, 6, 9), ((0, (-2, -1, -3)), (0, (-9, 0, 0)), (0, (0, 0, 4)))),
    Case("one voxel along an axis", 2, ((5, 6, 1),), (1, 5, 1), ((0, (2, 0, 0)), (0, (5, 1, 0)))),
    Case("wider than one tile", 1, ((3, 4, 40),), (2, 3, 37), ((0, (1, 0, 2)),)),
)
