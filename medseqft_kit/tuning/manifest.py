"""What a run's manifest begins with, and whether a later call means the same run."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Mapping
from typing import Any

from medseqft_kit.config import Config, changed_settings
from medseqft_kit.errors import RunError
from medseqft_kit.models.foundation import FoundationModel, parameter_count
from medseqft_kit.models.precision import Precision
from medseqft_kit.runs.folder import FORMAT, RunFolder, sha256, versions
from medseqft_kit.settings import Settings
from medseqft_kit.volumes.intensity import SCALE

FREE_TO_CHANGE = ("workers", "processes", "checkpoint_seconds", "tracker", "recompute")
"""Keys of `compute` that no result depends on."""


def first_manifest(folder: RunFolder, model: FoundationModel, settings: Settings, on: Precision) -> dict[str, Any]:
    """A manifest without tasks and stages; M_0 is in the folder already.

    It holds the whole configuration and its difference from the defaults, versions, seed, M_0's fingerprint, and what
    bit-identity rests on: device, precision, threads, and the kernel backends, see :class:`KernelChoices`.
    """
    return {
        "format": FORMAT,
        "config": settings.model_dump(mode="json"),
        "changed": changed_settings(settings),
        "versions": versions(),
        "seed": settings.seed,
        "compute": {
            "device": on.device,
            "precision": on.name,
            "threads": settings.compute.threads,
            "backends": {},
        },
        "foundation": {
            "source": _source(settings),
            "fingerprint": sha256(folder.foundation),
            "architecture": model.spec.architecture,
            "size": model.spec.size,
            "scale": list(model.spec.scale),
            "parameters": parameter_count(model.backbone),
        },
        "tasks": {},
        "stages": [],
    }


def scale_of(folder: RunFolder) -> tuple[float, float]:
    """What the ends of a window become in this run; runs from before the models said so took the default."""
    low, high = folder.manifest["foundation"].get("scale", SCALE)
    return low, high


class KernelChoices(UserDict[str, str]):
    """What `auto` takes in this run, by shape: written to the manifest before the first step that computes with it.

    Another backend rounds otherwise, so a run that continues, on whatever machine, keeps what it began with.
    """

    def __init__(self, folder: RunFolder) -> None:
        super().__init__()
        self.data, self._folder = folder.manifest["compute"]["backends"], folder

    def __setitem__(self, question: str, backend: str) -> None:
        super().__setitem__(question, backend)
        self._folder.save()


def _source(settings: Settings) -> str:
    if not isinstance(settings, Config):
        return "given by the caller"
    if settings.foundation.weights is not None:
        return str(settings.foundation.weights)
    return "pre-trained for this run (foundation.pretrain)"


def refuse_other_settings(folder: RunFolder, settings: Settings) -> None:
    """Continue a run with the settings it began with, or not at all.

    Raises
    ------
    RunError
        Listing every key that differs, :data:`FREE_TO_CHANGE` excepted.
    """

    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(value, Mapping):
            return {prefix: value}
        return {key: leaf for name, part in value.items() for key, leaf in flat(part, f"{prefix}.{name}").items()}

    defaults = flat(Settings().model_dump(mode="json"))  # of keys that are younger than the run
    before, now = defaults | flat(folder.manifest["config"]), flat(settings.model_dump(mode="json"))
    differing = [
        key
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and key.removeprefix(".compute.") not in FREE_TO_CHANGE
    ]
    if differing:
        raise RunError(
            f"{folder.path} holds a run of other settings.",
            found="; ".join(f"{key[1:]} = {before.get(key)}" for key in differing),
            expected="; ".join(f"{key[1:]} = {now.get(key)}" for key in differing),
            next_step="give another --out, or the settings of that run",
        )
