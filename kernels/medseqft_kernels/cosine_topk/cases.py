"""What `cosine_topk` is tested on: each shape with its reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """n queries and m keys of e features."""

    reason: str
    n: int
    m: int
    e: int
    k: int

    def __str__(self) -> str:
        return self.reason.replace(" ", "-")


CASES = (
    Case("less than one tile in every direction", 3, 5, 7, 2),
    Case("two tiles of queries, three of keys, two of features", 66, 260, 65, 5),
    Case("every key is asked for", 2, 9, 3, 9),
    Case("one key, one feature", 4, 1, 1, 1),
    Case("the largest k of the kernel", 3, 150, 8, 64),
)
