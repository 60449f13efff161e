"""Several processes score together; the referee is one process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medseqft_kit.models.foundation import FoundationModel, save_foundation
from medseqft_kit.models.precision import Precision
from medseqft_kit.phantoms.write import write_phantoms
from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.selection.engine import Engine
from medseqft_kit.selection.ranks import losses_of_all
from tests.two_processes import LAUNCH


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_phantoms(folder / "data", cases=7, shape=(24, 24, 24))
    save_foundation(FoundationModel.build("segresnet", "tiny", patch=(16, 16, 16)), folder / "m.safetensors")
    return folder


def score(workspace: Path, out: str, launch: Sequence[str] = (sys.executable,)) -> subprocess.CompletedProcess[str]:
    arguments = ["m.safetensors", "data/Phantom01_Liver", "--top-k", "3", "--max-draws", "64", "--out", out]
    command = [*launch, "-m", "medseqft_kit", "score", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=workspace, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    return run


def losses(folder: Path) -> list[np.ndarray]:
    return [np.load(path)["loss"] for path in sorted(folder.glob("draws/block_*.npz"))]


def test_the_launcher_starts_two_processes_that_hear_of_one_another(tmp_path: Path) -> None:
    script = tmp_path / "ranks.py"
    script.write_text(
        "import os\n"
        "from medseqft_kit.runs.ranks import Ranks\n"
        "ranks = Ranks.here()\n"
        "heard = ranks.index, ranks.count, ranks.told(ranks.index), ranks.together([ranks.index])\n"
        "os.write(1, f'heard {heard}\\n'.encode())\n"
    )
    command = [*LAUNCH, str(script)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    heard = sorted(line for line in told if line.startswith("heard"))
    assert heard == ["heard (0, 2, 0, [0, 1])", "heard (1, 2, 0, [0, 1])"]


@pytest.mark.soak(only=True)  # tests/tuning/test_processes.py compares the scores of whole runs
def test_two_processes_find_what_one_finds_to_the_last_bit(workspace: Path) -> None:
    score(workspace, "alone")
    told = score(workspace, "together", LAUNCH).stdout
    one, two = workspace / "alone", workspace / "together"
    assert (two / "scores.csv").read_bytes() == (one / "scores.csv").read_bytes()
    assert json.loads((two / "buffer.json").read_text()) == json.loads((one / "buffer.json").read_text())
    pairs = list(zip(losses(one), losses(two), strict=True))
    assert len(pairs) > 2
    assert all(np.array_equal(a, b) for a, b in pairs)
    assert told.count("buffer: ") == 1  # one of the two tells


def test_a_rank_computes_its_share_alone(model: FoundationModel, noise: Callable[..., Any]) -> None:
    volumes, seen = noise("a", "b", "c"), []

    class Spy(Engine):
        def losses(self, cases: Any, index: int, size: int) -> Any:
            seen.append(tuple(cases))
            return super().losses(cases, index, size)

    engine = Spy(model, volumes, Precision("cpu", "fp32"), seed=0)
    found = losses_of_all(Ranks(), engine, ["a", "b", "c"], 0, 8)
    assert seen == [("a", "b", "c")]
    assert found.loss.shape == (3, 8)
    assert Ranks.here() == Ranks(0, 1)
    assert (Ranks(0, 2).first, Ranks(1, 2).first) == (True, False)
