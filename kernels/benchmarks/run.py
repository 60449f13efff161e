"""Time the operations on this machine: ``python kernels/benchmarks/run.py [operation ...] [--shapes REGEX]``.

Prints each row as it is measured, then a summary, and writes both into DIR/<device>.json, a file that is replaced whole
by every run. The exit status is 1 if a result was wrong.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from harness import Limits, Result, Row, as_json, is_red, lines, run_row, summary, summary_lines, timer_for

HERE = Path(__file__).resolve().parent
OPERATIONS = sorted(each.stem for each in HERE.glob("*.py") if (HERE.parent / "medseqft_kernels" / each.stem).is_dir())
"""A benchmark has the name of its operation; the other scripts here have none."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    os.environ.pop("TRITON_INTERPRET", None)  # the interpreter is for tests; its speed means nothing
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    plan = [row for name in options.operations or OPERATIONS for row in _rows(name, device, options)]
    if options.list:
        print(*(f"{row.operation}  {row.label}" for row in plan), sep="\n")
        return 0
    given = {**vars(options), "out": options.out.name}
    record: dict[str, Any] = {"machine": describe(device), "arguments": given, "complete": False}
    path = options.out / f"{re.sub(r'[^a-z0-9]+', '-', record['machine']['device'].lower()).strip('-')}.json"
    print(*(f"{key}: {value}" for key, value in record["machine"].items()), sep="\n")
    print(f"{len(plan)} rows, into {path}\n", flush=True)
    timer, results, red, begun = timer_for(device), list[Result](), list[Row](), time.monotonic()
    for number, row in enumerate(plan, 1):
        found = run_row(row, timer, Limits((min(3, options.repeats), options.repeats), options.seconds), device)
        results += found
        red += [row] * is_red(found)
        print(*lines(row, found), sep="\n")
        print(f"  ({number} of {len(plan)}, {time.monotonic() - begun:.0f} s)", flush=True)
        record |= {"complete": number == len(plan), "seconds": time.monotonic() - begun, "rows": as_json(results)}
        record |= {"wrong": [f"{each.operation} {each.label}" for each in red], "summary": summary(plan, results)}
        _write(path, record)
    print("", *summary_lines(summary(plan, results)), sep="\n")
    for row in red:
        print(f"WRONG, no speed shown: {row.operation} {row.label}")
    if not plan:
        print(f"no row matches --shapes {options.shapes!r}; --list shows them all", file=sys.stderr)
    return 1 if red or not plan else 0


def describe(device: torch.device) -> dict[str, Any]:
    """What the numbers hold for."""
    on_gpu = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else _processor(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: _version(name) for name in ("torch", "triton", "peft", "monai")},
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("operations", nargs="*", metavar="operation", help=f"of {', '.join(OPERATIONS)}; all if none")
    parser.add_argument("--shapes", default="", metavar="REGEX", help="rows whose shape, dtype and format match")
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="at most N rounds a row")
    parser.add_argument("--seconds", type=float, default=8.0, help="after 3 rounds, a row ends after these")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4], metavar="R", help="ranks of the adapters")
    parser.add_argument("--everything", action="store_true", help="also the rows left out to save minutes")
    parser.add_argument("--no-compile", action="store_true", help="leave out what torch.compile makes of the rivals")
    parser.add_argument("--list", action="store_true", help="print the rows and measure nothing")
    parser.add_argument("--out", type=Path, default=HERE / "results", metavar="DIR")
    options = parser.parse_args(arguments)
    if options.repeats < 1:
        parser.error("--repeats: found less than 1")
    unknown = sorted({*options.operations} - {*OPERATIONS})
    if unknown:
        parser.error(f"no such operation: {', '.join(unknown)}; there are {', '.join(OPERATIONS)}")
    return options


def _rows(operation: str, device: torch.device, options: argparse.Namespace) -> list[Row]:
    module = import_module(operation)
    made = module.rows(device, ranks=options.ranks, everything=options.everything, compiled=not options.no_compile)
    return [row for row in made if re.search(options.shapes, row.label)]


def _write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1, ensure_ascii=False, default=str, allow_nan=False)
    beside = path.with_suffix(".new")
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(path)


def _processor() -> str:
    try:
        lines_of = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines_of = []
    named = (line.partition(":")[2].strip() for line in lines_of if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    run = subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False)
    return run.stdout.strip() if run.returncode == 0 else None


if __name__ == "__main__":
    sys.exit(main())
