"""Slices put in order, and proof that they make one volume: parallel, of one size, evenly spaced, none missing.

What is verified here is what no reader verifies: SimpleITK stacks any list of files, and only warns of a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.dicom.slices import Slice

SAME_DIRECTION = 1e-4
"""Largest difference of a direction cosine between parallel slices; scanners write six digits or more."""
SAME_PLACE_MM = 1e-3
"""Slices nearer than this lie at the same place."""
UNEVEN = 0.01
"""Share of the spacing by which one distance may differ from the others."""
UNEVEN_MM = 0.05
"""The same in mm, for positions written with one or two decimals."""
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


@dataclass(frozen=True, eq=False)
class Stack:
    """A volume's slices in order along their common normal.

    Parameters
    ----------
    slices
        First to last; they are the third axis of the array, columns the first, rows the second.
    affine
        Array index to mm, RAS+ (4, 4), float64. With a gantry tilt its third axis is not at right angles to the others.
    tilt
        Degrees between the slices' normal and the line through their first pixels.
    """

    slices: tuple[Slice, ...]
    affine: Float[np.ndarray, "4 4"]
    tilt: float

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows, slices."""
        rows, columns = self.slices[0].size
        return columns, rows, len(self.slices)


def stacked(slices: Sequence[Slice], name: str) -> Stack:
    """Order slices along their normal and prove them a volume.

    Parameters
    ----------
    name
        Of the series, for messages.

    Raises
    ------
    DataError
        If their size, pixel spacing or orientation differs; if two lie at one place; if a slice is missing (the gap is
        named) or their distances are uneven; if they are shifted against each other within the plane; if a single
        slice does not say how thick it is.
    """
    _require_alike(slices, name)
    row, column = slices[0].orientation
    normal = np.cross(row, column)
    ordered = sorted(slices, key=lambda piece: float(piece.position @ normal))
    positions = np.array([piece.position for piece in ordered])
    step = _step(ordered, positions, normal, name)
    affine = np.eye(4)
    rows_apart, columns_apart = ordered[0].spacing
    affine[:3] = np.column_stack([row * columns_apart, column * rows_apart, step, positions[0]])
    cosine = float(step @ normal) / float(np.linalg.norm(step))
    return Stack(tuple(ordered), LPS_TO_RAS @ affine, float(np.degrees(np.arccos(min(cosine, 1.0)))))


def _require_alike(slices: Sequence[Slice], name: str) -> None:
    first = slices[0]
    for piece in slices[1:]:
        for what, mine, firsts, limit in (
            ("sizes", piece.size, first.size, 0),
            ("pixel spacings", piece.spacing, first.spacing, SAME_PLACE_MM),
            ("orientations", piece.orientation, first.orientation, SAME_DIRECTION),
        ):
            if np.abs(np.subtract(mine, firsts)).max() > limit:
                raise _no_volume(
                    name,
                    f"its slices have different {what}",
                    f"{np.array(mine).ravel().tolist()} in {piece.name}",
                    f"{np.array(firsts).ravel().tolist()}, as {first.name}",
                    "take the slices of another kind (a localiser, often) out of the folder",
                )


def _step(
    ordered: Sequence[Slice], positions: Float[np.ndarray, "n 3"], normal: Float[np.ndarray, " 3"], name: str
) -> Float[np.ndarray, " 3"]:
    """From one slice to the next, mm."""
    if len(ordered) == 1:
        if ordered[0].thickness is None:
            raise _no_volume(
                name, "it has one slice of unknown thickness", "neither spacing nor thickness", "one of them"
            )
        return normal * ordered[0].thickness
    apart = np.diff(positions @ normal)
    _require_even(ordered, apart, name)
    step = (positions[-1] - positions[0]) / (len(ordered) - 1)
    off = np.linalg.norm(positions - (positions[0] + np.arange(len(ordered))[:, None] * step), axis=1)
    allowed = max(UNEVEN_MM, UNEVEN * float(np.linalg.norm(step)))
    if off.max() > allowed:
        raise _no_volume(
            name,
            "its slices do not lie on one line",
            f"{ordered[int(off.argmax())].name} lies {off.max():.3g} mm beside it",
            f"at most {allowed:.3g} mm",
        )
    return step


def _require_even(ordered: Sequence[Slice], apart: Float[np.ndarray, " m"], name: str) -> None:
    usual = float(np.median(apart))
    for index in np.flatnonzero(apart < SAME_PLACE_MM)[:1]:
        raise _no_volume(
            name,
            "two of its slices lie at the same place",
            f"{ordered[index].name} and {ordered[index + 1].name}, {int((apart < SAME_PLACE_MM).sum())} such pairs",
            "each place once",
            "separate the time points, echoes or copies, one folder for each",
        )
    for index in np.flatnonzero(np.abs(apart - usual) > max(UNEVEN_MM, UNEVEN * usual))[:1]:
        lost = round(float(apart[index]) / usual) - 1
        raise _no_volume(
            name,
            f"{lost} of its slices {'is' if lost == 1 else 'are'} missing"
            if lost > 0
            else "its slices are unevenly spaced",
            f"{apart[index]:.4g} mm between {ordered[index].name} and {ordered[index + 1].name}",
            f"{usual:.4g} mm, as between the others",
            "copy or export the whole series again" if lost > 0 else "resample it with a tool made for that",
        )


def _no_volume(
    name: str, problem: str, found: str, expected: str, next_step: str = "export the series again"
) -> DataError:
    return DataError(
        f"the DICOM series {name} is no volume: {problem}.", found=found, expected=expected, next_step=next_step
    )
