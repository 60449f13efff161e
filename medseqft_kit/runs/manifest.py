"""The shape of a run's manifest, checked when it is read: a damaged or edited file is refused before it is believed.

Keys may be absent (a run that has just begun) or newer than this version; those that are known have their types.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from medseqft_kit.errors import RunError

LONGEST = 255
"""Bytes of a name that file systems take."""


def _plain(name: str) -> str:
    if not name or name in (".", "..") or Path(name).name != name or "\x00" in name or len(name.encode()) > LONGEST:
        raise ValueError("it would lie outside the run; a plain name is expected")
    return name


Name = Annotated[str, AfterValidator(_plain)]
Ids = list[str]
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", strict=True)


class _Split(_Part):
    train: Ids = []
    validation: Ids = []
    test: Ids = []


class _Preprocessing(_Part):
    model_config = ConfigDict(extra="forbid", strict=True)

    spacing: Annotated[list[float], Field(min_length=3, max_length=3)] | None = None
    window: Pair | None = None
    scale: Pair = [-1.0, 1.0]


class _Task(_Part):
    root: str = ""
    channels: list[str] = []
    structures: dict[str, list[int]] = {}
    declared: list[int] = []
    split: _Split = _Split()
    train_cases: Ids = []
    validation_cases: Ids = []
    preprocessing: _Preprocessing = _Preprocessing()
    nsd_tolerance_mm: float = Field(2.0, gt=0, allow_inf_nan=False)
    fingerprint: str = ""


class _Stage(_Part):
    folder: Name
    task: str
    done: bool = False
    files: dict[str, str] = {}


class _Compute(_Part):
    device: str = ""
    precision: str = ""
    threads: int = 1
    backends: dict[str, str] = {}


class _Config(_Part):
    strategy: dict[str, Any] = {}
    budget: dict[str, Any] = {}
    split: dict[str, Any] = {}
    compare: dict[str, Any] | None = None


class _Foundation(_Part):
    source: str = ""
    fingerprint: str = ""
    architecture: str = ""
    size: str = ""
    scale: Pair = [-1.0, 1.0]
    parameters: int = 0


class _Manifest(_Part):
    config: _Config = _Config()
    changed: dict[str, Any] = {}
    versions: dict[str, str] = {}
    seed: int = 0
    compute: _Compute = _Compute()
    foundation: _Foundation = _Foundation()
    tasks: dict[str, _Task] = {}
    stages: list[_Stage] = []


def check_manifest(manifest: object, file: Path) -> None:
    """Refuse a manifest of another shape.

    Raises
    ------
    RunError
        Naming the first keys that are not what a run writes.
    """
    try:
        _Manifest.model_validate(manifest)
    except ValidationError as problem:
        wrong = [f"{'.'.join(map(str, each['loc'])) or 'all of it'}: {each['msg']}" for each in problem.errors()]
        raise RunError(
            f"{file} is damaged.",
            found="; ".join(wrong[:3]) + (f"; and {len(wrong) - 3} more" if wrong[3:] else ""),
            expected="what a run writes there",
            next_step="start from an undamaged copy of the run folder",
        ) from problem
