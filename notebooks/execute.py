"""Execute every notebook of this folder from a clean kernel; keep the executed copies as HTML.

``QUICK=1``, the default here, takes the short form that CI runs, two at a time; ``QUICK=0`` the one
for readers, minutes each, and alone: one prints times. All are executed even if one fails; the exit
status says whether one did.
"""

from __future__ import annotations

import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbconvert import HTMLExporter
from nbconvert.filters import strip_ansi
from traitlets.config import Config

HERE = Path(__file__).resolve().parent
EXECUTED = HERE / "executed"
LONGEST_CELL = 300
"""Seconds, in the short form."""


def main() -> int:
    """Execute all; print each with its seconds, and how many there were."""
    quick = os.environ.setdefault("QUICK", "1") == "1"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+notebook"  # plotly.js goes into the HTML
    paths = sorted(HERE.glob("*.ipynb"))
    with TemporaryDirectory() as folder:
        if quick:  # choices of `auto` that were made in a hurry are not for the user's table
            os.environ.setdefault("MEDSEQFT_CACHE", folder)
        execute = partial(_execute, seconds=LONGEST_CELL if quick else None, folder=folder)
        with ProcessPoolExecutor(2 if quick else 1) as processes:
            well = list(processes.map(execute, paths))
    failed = [path.name for path, ok in zip(paths, well, strict=True) if not ok]
    print(f"{len(paths)} notebooks into {EXECUTED}, failed: {', '.join(failed) or 'none'}")
    return 1 if failed or not paths else 0


def _execute(path: Path, seconds: int | None, folder: str) -> bool:
    print(f"{path.name} …", flush=True)
    notebook, begun, problem = nbformat.read(path, as_version=4), time.monotonic(), ""
    # Files in place of ports: nobody else on the machine can listen to them.
    settings = Config(KernelManager={"transport": "ipc", "ip": f"{folder}/{path.stem}"})
    client = NotebookClient(
        notebook,
        timeout=seconds,
        coalesce_streams=True,
        resources={"metadata": {"path": str(HERE)}},
        config=settings,
    )
    try:
        client.execute()
    except (CellExecutionError, CellTimeoutError, DeadKernelError) as error:
        problem = strip_ansi(str(error))
    page, _ = HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": path.stem}})
    EXECUTED.mkdir(exist_ok=True)
    (EXECUTED / f"{path.stem}.html").write_text(page, encoding="utf-8")
    result = f"FAILED\n{problem}\n " if problem else "ok"
    print(f"{path.name} {result} after {time.monotonic() - begun:.0f} s", flush=True)
    return not problem


if __name__ == "__main__":
    sys.exit(main())
