"""Forward passes with and without the memory that tensors free: ``python kernels/benchmarks/memory.py``.

Each way is a process of its own, since the setting of the allocator is one of the process and cannot be taken back.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run import HERE, describe

from medseqft_kit.models.allocator import keep_freed_memory
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision, channels_last_

SHAPES = (("small", 32, 4), ("small", 96, 1), ("base", 96, 1))
"""Size of the SegResNet, side of a crop, crops in a batch."""
PASSES = 7
ROUNDS = 3


def forward_passes() -> dict[str, float]:
    """Median seconds of a forward pass by shape and format, on one thread, and this process's peak of memory in GiB."""
    torch.set_num_threads(1)
    found: dict[str, float] = {}
    for (size, side, batch), name in product(SHAPES, ("fp32", "bf16")):
        model = channels_last_(FoundationModel.build("segresnet", size, patch=(side, side, side))).eval()
        precision, seconds = Precision("cpu", name), []
        image = precision.place(torch.randn(batch, 1, side, side, side))
        for _ in range(PASSES):
            begun = time.perf_counter()
            with torch.no_grad(), precision.autocast():
                model.backbone(image)
            seconds.append(time.perf_counter() - begun)
        found[f"SegResNet {size}, {batch} × {side}³, {name}"] = float(np.median(seconds))
    found["peak, GiB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return found


def in_a_process(way: str) -> dict[str, float]:
    """What :func:`forward_passes` finds in a fresh process."""
    done = subprocess.run([sys.executable, __file__, "--here", way], stdout=subprocess.PIPE, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Read the command line, time in turns, write and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "memory.json")
    parser.add_argument("--here", choices=("given back", "kept"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.here:
        if given.here == "kept" and not keep_freed_memory():
            raise SystemExit("the C library is not glibc: there is nothing to compare")
        print(json.dumps(forward_passes()))
        return
    rounds = [{way: in_a_process(way) for way in ("given back", "kept")} for _ in range(ROUNDS)]
    medians: dict[str, Any] = {
        name: {way: float(np.median([each[way][name] for each in rounds])) for way in rounds[0]}
        for name in rounds[0]["kept"]
    }
    content = {"machine": describe(torch.device("cpu")), "rounds": rounds, "medians": medians}
    given.out.write_text(json.dumps(content, indent=1, default=str) + "\n", encoding="utf-8")
    for name, by_way in medians.items():
        back, kept = by_way["given back"], by_way["kept"]
        print(f"{name:32} given back {back:6.3f}   kept {kept:6.3f}   {back / kept:5.2f}")


if __name__ == "__main__":
    main()
