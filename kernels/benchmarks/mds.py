"""MDS end to end, against the loop that one would write: ``python kernels/benchmarks/mds.py``.

Phantoms and a small M_0 are made first. The plain loop takes one crop at a time: MONAI's transforms cut and mask, one
forward pass, fp32, the framework's own memory format. It is timed on a few draws of every volume and scaled to a
thousand; the races are run to their end. All give the same losses, which is checked before anything is timed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from monai.transforms import MaskIntensity, SpatialCrop
from run import HERE, describe
from torch import nn

from medseqft_kit.config import Config
from medseqft_kit.models.foundation import FoundationModel, load_foundation
from medseqft_kit.models.precision import resolve_precision
from medseqft_kit.phantoms.write import write_phantoms
from medseqft_kit.selection.buffer import select
from medseqft_kit.selection.draws import DrawSequence
from medseqft_kit.selection.engine import Engine
from medseqft_kit.selection.race import Rules
from medseqft_kit.selection.scoring import score_volumes
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tuning.experiment import foundation_model
from medseqft_kit.volumes.crops import relative_start
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import TaskVolumes, prepare

CASES, SIDE, PATCH = 64, 48, 24
DRAWS = 1000
TIMED = 16
"""Draws of every volume that the plain loop and the engine are timed on."""


def material(folder: Path, cases: int) -> tuple[FoundationModel, TaskVolumes]:
    """An M_0 that 300 steps made, and the volumes of a task."""
    data = write_phantoms(folder / "data", cases=cases, shape=(SIDE, SIDE, SIDE), seed=5)
    config = Config.model_validate(
        {
            "foundation": {"pretrain": {"data": [data["Phantom00_Unlabelled"]], "steps": 300}},
            "model": {"size": "small", "patch": [PATCH] * 3},
            "tasks": [{"name": "liver", "data": data["Phantom01_Liver"]}],
        }
    )
    foundation_model(config, [], folder)
    task = load_task(data["Phantom01_Liver"])
    volumes = prepare(task, Preprocessing(), [case.id for case in task.cases], folder / "store")
    return load_foundation(folder / "pretraining" / "foundation.safetensors"), volumes


def plain_loop(model: FoundationModel, volumes: TaskVolumes, draws: DrawSequence, blocks: int) -> np.ndarray:
    """One forward pass for each draw of each volume; the draws are made beforehand, as random transforms would."""
    patch = model.spec.patch
    model = load_copy(model)
    made = [draws.block(index, 8) for index in range(blocks)]
    rows = []
    for case in volumes.cases:
        image = torch.from_numpy(np.array(volumes.volume(case).image)).float()
        losses = []
        for block in made:
            for position, mask in zip(block.positions, block.pretext["mask"], strict=True):
                start = relative_start(image.shape[1:], patch, position.tolist())
                crop = SpatialCrop(roi_start=start, roi_end=[s + p for s, p in zip(start, patch, strict=True)])(image)
                masked = MaskIntensity(mask_data=~mask[None])(crop)
                with torch.no_grad():
                    restored = model.reconstruct(model.encode(masked[None].as_tensor()))
                losses.append(((restored - crop[None]) ** 2 * mask).sum() / mask.sum())
        rows.append([float(loss) for loss in losses])
    return np.array(rows)


def load_copy(model: FoundationModel) -> FoundationModel:
    """The model as PyTorch lays it out."""
    copy = FoundationModel(model.spec)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def timed(run: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    begun = time.perf_counter()
    found = run()
    return found, time.perf_counter() - begun


class Stopwatch:
    """Seconds spent inside a module's own forward."""

    def __init__(self, module: nn.Module) -> None:
        self.seconds = 0.0
        module.register_forward_pre_hook(lambda *_: setattr(self, "begun", time.perf_counter()))
        module.register_forward_hook(lambda *_: self._stop())

    def _stop(self) -> None:
        self.seconds += time.perf_counter() - self.begun  # type: ignore[attr-defined]


def compare(model: FoundationModel, volumes: TaskVolumes, k: int) -> dict[str, Any]:
    """Seconds for a thousand draws of every volume, by the loop and by us, and of the races that replace them."""
    precision = resolve_precision()
    engine = Engine(model, volumes, precision, seed=0, with_controls=False)
    blocks = TIMED // 8
    ours = np.concatenate([engine.losses(volumes.cases, index, 8).loss for index in range(blocks)], axis=1)
    plain = plain_loop(model, volumes, engine.draws, blocks)
    error = float(np.linalg.norm(ours - plain) / np.linalg.norm(plain))
    if error > (1e-2 if precision.name == "bf16" else 1e-5):
        raise SystemExit(f"WRONG, no speed shown: losses differ by {error:.2e}")
    watch = Stopwatch(engine.model.backbone)
    scale = DRAWS / TIMED
    rounds = []
    for _ in range(3):
        _, loop = timed(lambda: plain_loop(model, volumes, engine.draws, blocks))
        watch.seconds = 0.0
        _, every = timed(lambda: [engine.losses(volumes.cases, index, 8) for index in range(blocks)])
        rounds.append((loop * scale, every * scale, watch.seconds / every))
    loop, every, share = np.median(rounds, axis=0).tolist()
    result = {"plain loop": loop, "every draw": every, "backbone's share": share, "loss error": error}
    for method in ("approximate", "certified"):
        scores, seconds = timed(lambda m=method: score_volumes(model, volumes, k, rules=Rules(m, max_draws=DRAWS)))
        buffer = select(scores)
        result |= {method: seconds, f"{method} passes": buffer.passes, f"{method} ties": len(buffer.ties)}
    return result


def main() -> None:
    """Read the command line and compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=CASES)
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "mds.json")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        model, volumes = material(Path(folder), given.cases)
        found = compare(model, volumes, given.top_k)
    machine = describe(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    facts = {"machine": machine, "volumes": given.cases, "k": given.top_k, "draws": DRAWS, **found}
    given.out.write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")
    print(f"{given.cases} volumes, {DRAWS} draws, K = {given.top_k}, {machine['threads']} threads")
    share = found["backbone's share"]
    for name in ("plain loop", "every draw", "certified", "approximate"):
        print(f"{name:12} {found[name]:8.1f} s   {found['plain loop'] / found[name]:6.1f} times as fast as the loop")
    print(f"share of the time in the backbone's own forward: {share:.0%}")


if __name__ == "__main__":
    main()
