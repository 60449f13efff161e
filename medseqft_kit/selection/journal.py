"""The losses that a race has seen, block by block on disk, so that an interrupted race goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.runs.atomic import replacing, write_json
from medseqft_kit.selection.engine import Losses


@dataclass(frozen=True)
class Journal:
    """A folder with ``block_000.npz`` …; a None folder remembers nothing."""

    folder: Path | None

    @classmethod
    def open(cls, folder: Path | None, facts: dict[str, Any]) -> Journal:
        """The journal of a race about which all of these facts hold; one about other facts is begun anew."""
        if folder is not None:
            record = folder / "journal.json"
            if not record.is_file() or json.loads(record.read_text(encoding="utf-8")) != facts:
                for block in folder.glob("block_*.npz"):
                    block.unlink()
                write_json(record, facts)
        return cls(folder)

    def read(self, index: int, cases: Sequence[str]) -> Losses | None:
        """The losses of exactly these cases in a block, if they were noted."""
        if self.folder is None or not self._path(index).is_file():
            return None
        with np.load(self._path(index)) as file:
            found = Losses(file["loss"], file["controls"])
            return found if file["cases"].tolist() == list(cases) else None

    def note(self, index: int, cases: Sequence[str], losses: Losses) -> None:
        """Remember a block."""
        if self.folder is not None:
            with replacing(self._path(index)) as path, path.open("wb") as file:
                np.savez(file, cases=np.array(cases), **losses._asdict())

    def _path(self, index: int) -> Path:
        assert self.folder is not None
        return self.folder / f"block_{index:03d}.npz"


def weights_hash(model: FoundationModel) -> str:
    """SHA-256 of all weights, in the order of their names."""
    total = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return total.hexdigest()
