"""What the layouts with a dataset.json have in common."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.types import Case

FILE = "dataset.json"
PLAIN = re.compile(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,199}")
"""What names a case, and with it files that are written."""
LONGEST = 255
"""Bytes of a name that file systems take."""
_KINDS = {
    "PET": {"pet", "pt", "fdg", "suv"},
    "CT": {"ct", "cbct", "ncct", "cect", "cta"},
    "MR": {"mr", "mri", "mra", "flair", "adc", "dwi", "swi", "pd", "lge", "bssfp", "cine"},
}


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises
    ------
    DataError
        If the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as problem:
        raise DataError(f"{path} cannot be read as JSON.", found=str(problem), next_step=f"repair {path}") from problem


def load_dataset_json(folder: Path) -> dict[str, Any]:
    """dataset.json of `folder`, an object."""
    content = load_json(folder / FILE)
    if not isinstance(content, dict):
        raise wrong_entry(folder, type(content).__name__, "an object")
    return content


def wrong_entry(folder: Path, found: object, expected: str) -> DataError:
    """The error for an entry that the layout does not allow."""
    return DataError(
        f"{folder / FILE} is not as its layout says.",
        found=repr(found) if not isinstance(found, str) else found,
        expected=expected,
        next_step=f"repair {folder / FILE}",
    )


def by_number(folder: Path, entry: object, name: str) -> list[tuple[int, Any]]:
    """Items of an object whose keys are numbers in text, in the order of the numbers: "10" comes after "9"."""
    try:
        return sorted(((int(key), value) for key, value in entry.items()), key=lambda item: item[0])  # type: ignore[attr-defined]
    except (AttributeError, ValueError, TypeError):
        raise wrong_entry(folder, f"{name}: {entry!r}", f"`{name}` maps numbers to names") from None


def channels_of(folder: Path, content: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """Modality of each channel, at least one, from the object that numbers their names."""
    found = tuple(modality(kind) for _, kind in by_number(folder, content[key], key))
    if not found:
        raise wrong_entry(folder, f"{key}: {content[key]!r}", f"`{key}` names at least one channel")
    return found


def modality(text: object) -> str:
    """``CT``, ``MR``, ``PET`` or ``other``, from whatever a data set calls a channel.

    >>> [modality(name) for name in ("MRI", "T1w", "t1gd", "FLAIR", "CT", "PET", "noNorm")]
    ['MR', 'MR', 'MR', 'MR', 'CT', 'PET', 'other']
    """
    words = set(re.split(r"[^a-z0-9]+", str(text).lower()))
    for kind, names in _KINDS.items():
        if words & names:
            return kind
    return "MR" if any(re.match(r"t[12](?!\d)", word) for word in words) else "other"


def sorted_cases(folder: Path, labelled: Iterable[Case], unlabelled: Iterable[Case]) -> tuple[tuple[Case, ...], ...]:
    """Both groups sorted by id.

    Raises
    ------
    DataError
        If two cases share an id, or an id cannot name a file.
    """
    groups = [sorted(group, key=lambda case: case.id) for group in (labelled, unlabelled)]
    count = Counter(case.id for group in groups for case in group)
    wrong = [name for name, times in count.items() if times > 1 or not PLAIN.fullmatch(name)]
    files = [
        file for group in groups for case in group for file in (*case.images, case.label) if isinstance(file, Path)
    ]
    wrong += [str(file) for file in files if any(len(part.encode(errors="replace")) > LONGEST for part in file.parts)]
    if wrong:
        raise DataError(
            f"{folder} has cases that cannot be told apart or cannot name a file.",
            found=", ".join(repr(name) for name in wrong[:5]) + (f" and {len(wrong) - 5} more" if wrong[5:] else ""),
            expected="each case one name, labelled and unlabelled together, without slashes, at most 200 characters",
            next_step="rename the files or correct the list",
        )
    return tuple(tuple(group) for group in groups)


def text(content: Mapping[str, Any], *keys: str) -> str:
    """The first of `keys` that is there, as text; data sets spell ``licence`` both ways."""
    return next((str(content[key]) for key in keys if content.get(key)), "")
