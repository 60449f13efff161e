"""The run folder: names of its files, its manifest, and what is done.

`manifest.json` is the truth: a stage is done when the manifest lists its files with their hashes. All else is written
atomically before that.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medseqft_kit.errors import RunError
from medseqft_kit.runs.atomic import write_json
from medseqft_kit.runs.manifest import check_manifest

FORMAT = 1
PACKAGES = ("medseqft-kit", "torch", "monai", "peft", "triton", "nibabel", "numpy", "scipy", "pandas", "safetensors")


@dataclass
class RunFolder:
    """A run on disk. `manifest` is read once and written by :meth:`save` alone."""

    path: Path
    manifest: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """An existing run.

        Raises
        ------
        RunError
            If there is none, or its manifest is damaged or of another format.
        """
        folder = cls(Path(path))
        if not folder.exists:
            raise RunError(
                f"{path} is not a run folder.",
                found="no manifest.json",
                expected="a folder made by `medseqft run`",
                next_step="medseqft run CONFIG.yaml --out DIR",
            )
        try:
            folder.manifest = json.loads(folder.manifest_file.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as problem:
            raise RunError(
                f"{folder.manifest_file} is damaged.", found=str(problem), expected="JSON, whole"
            ) from problem
        if isinstance(folder.manifest, dict) and folder.manifest.get("format") != FORMAT:
            raise RunError(
                f"{path} was made by another version.", found=f"format {folder.manifest.get('format')}", expected="1"
            )
        check_manifest(folder.manifest, folder.manifest_file)
        return folder

    @property
    def exists(self) -> bool:
        return self.manifest_file.is_file()

    @property
    def manifest_file(self) -> Path:
        return self.path / "manifest.json"

    @property
    def foundation(self) -> Path:
        return self.path / "foundation.safetensors"

    @property
    def store(self) -> Path:
        return self.path / "store"

    def save(self) -> None:
        """Write the manifest atomically."""
        write_json(self.manifest_file, self.manifest)

    @property
    def stages(self) -> list[dict[str, Any]]:
        """The stage list: dicts of `folder`, `task`, `done`, `files`."""
        return self.manifest["stages"]

    def stage_folder(self, index: int) -> Path:
        """Folder of the stage of that index (0-based)."""
        return self.path / "stages" / self.stages[index]["folder"]

    def add_stage(self, task: str) -> None:
        """Plan one more stage."""
        name = f"{len(self.stages) + 1:02d}_{task}"
        self.stages.append({"folder": name, "task": task, "done": False, "files": {}})

    def finish_stage(self, index: int) -> None:
        """Record a stage's files by hash and mark it done."""
        folder = self.stage_folder(index)
        files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "timing.jsonl")
        self.stages[index] |= {
            "done": True,
            "files": {path.relative_to(folder).as_posix(): sha256(path) for path in files},
        }
        self.save()

    def verify_stage(self, index: int) -> None:
        """Compare a finished stage's files with their recorded hashes.

        Raises
        ------
        RunError
            Naming the first file that is missing or differs.
        """
        for name, expected in self.stages[index]["files"].items():
            path = self.stage_folder(index) / name
            found = sha256(path) if path.is_file() else "no such file"
            if found != expected:
                raise RunError(
                    f"{path} is not what this run wrote.",
                    found=found[:16],
                    expected=expected[:16],
                    next_step="restore the file, or remove the folder of this stage and later ones from the run",
                )


def sha256(path: Path) -> str:
    """Hash of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def versions() -> dict[str, str]:
    """Versions that results rest on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
