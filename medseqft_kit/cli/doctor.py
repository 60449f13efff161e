"""`medseqft doctor`: what this machine offers, and what `auto` makes of it."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rich.console import Console

PACKAGES = {
    "medseqft-kit": "",
    "torch": "",
    "monai": "architectures, preprocessing, sliding window, metrics",
    "peft": "adapter format",
    "triton": "compiled kernels, where a GPU is there",
    "nibabel": "NIfTI files",
}
FEATURES = ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Row(NamedTuple):
    """One finding: what, its value, and what follows from it."""

    name: str
    value: str
    note: str = ""


def diagnose() -> list[Row]:
    """Look at versions, hardware, the choices of `auto`, environment variables and the browser; change nothing."""
    return [*_versions(), *_hardware(), *_choices(), *_environment(), _browser()]


def tune_kernels(config: Path | None) -> None:
    """Let `auto` measure what a run with this configuration will ask, or one with the defaults."""
    from medseqft_kit.config import Model, load_config
    from medseqft_kit.settings import Settings
    from medseqft_kit.tuning.kernel_table import measure_backends

    if config is None:
        measure_backends(Model(), Settings())
    else:
        settings = load_config(config)
        measure_backends(settings.model, settings)


def show(rows: Sequence[Row], console: Console | None = None) -> None:
    """Print the findings as a table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("what", "found", "note", title="medseqft doctor")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    (console or Console()).print(table)


def _versions() -> list[Row]:
    rows = [Row("python", platform.python_version(), platform.platform())]
    for package, note in PACKAGES.items():
        try:
            rows.append(Row(package, version(package), note))
        except PackageNotFoundError:
            rows.append(Row(package, "not installed", note))
    return rows


def _hardware() -> list[Row]:
    import psutil

    from medseqft_kit.models.precision import cpu_flags

    features = [flag for flag in FEATURES if flag in cpu_flags()]
    memory, disk = psutil.virtual_memory(), shutil.disk_usage(Path.cwd())
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return [
        Row("CPU features", ", ".join(features) or "unknown", f"of {', '.join(FEATURES)}; {platform.machine()}"),
        Row("cores", f"{usable}", "that this process may use"),
        Row("memory", _gigabytes(memory.total), f"{_gigabytes(memory.available)} free"),
        Row("disk", _gigabytes(disk.free), f"free in {Path.cwd()}"),
    ]


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _choices() -> list[Row]:
    from medseqft_kit.models.precision import resolve_precision

    chosen = resolve_precision()
    rows = [Row("device", chosen.device, _device_note(chosen.device))]
    rows.append(Row("precision", chosen.name, _precision_note(chosen.device, chosen.name)))
    return [*rows, *_kernels(chosen.device)]


def _kernels(device: str) -> list[Row]:
    """The table of measured backends, fastest first in each note."""
    import torch

    from medseqft_kernels.dispatch import forced, read_table

    if forced() is not None:
        return [Row("kernels", "reference", "forced by MEDSEQFT_KERNELS")]
    table = read_table(torch.device(device))
    rows = []
    for question, row in table.items():
        times = sorted(row["seconds"].items(), key=lambda each: each[1])
        rows.append(Row(question, row["choice"], ", ".join(f"{name} {1e3 * value:.3g} ms" for name, value in times)))
    return rows or [Row("kernels", "nothing measured yet", "`auto` measures each shape once, when it is first used")]


def _device_note(device: str) -> str:
    import torch

    if device == "cpu":
        return "no CUDA device is visible"
    memory = torch.cuda.get_device_properties(device).total_memory
    return f"{torch.cuda.get_device_name(device)}, {_gigabytes(memory)}"


def _precision_note(device: str, name: str) -> str:
    if device != "cpu":
        return "bf16 autocast on CUDA"
    if name == "bf16":
        return "the CPU has AMX, where bf16 is 3 to 6 times faster"
    return "the CPU has no AMX, without which bf16 is 2 to 3 times slower"


def _environment() -> list[Row]:
    used = sorted(name for name in os.environ if name.startswith("MEDSEQFT_"))
    return [Row(name, os.environ[name], "environment variable") for name in used] or [
        Row("MEDSEQFT_*", "none", "no environment variable of that name is set")
    ]


def _browser() -> Row:
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    return Row("chromium", found or "not found", "only to check the report and to export figures")
