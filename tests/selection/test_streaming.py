"""Volumes that do not fit into memory."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource
from pathlib import Path
import numpy as np
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.models.precision import Precision
from medseqft_kit.selection.controls import exact_means
from medseqft_kit.selection.engine import Engine
from medseqft_kit.tasks.types import Task
from medseqft_kit.volumes.preprocess import Preprocessing
from medseqft_kit.volumes.store import TaskVolumes
from medseqft_kit.volumes.types import Geometry, Volume

SHAPE = (1, 512, 512, 600)
for number in range(40):  # sparse: 12 GB to read, no room on the disk
    np.lib.format.open_memmap(f"{number}.npy", mode="w+", dtype=np.float16, shape=SHAPE).flush()


class Large(TaskVolumes):
    def volume(self, case):
        image, grid = np.load(f"{int(case) % 40}.npy", mmap_mode="r"), Geometry(SHAPE[1:], np.eye(4))
        return Volume(case, image, None, grid, grid, {}, (0.0,))


task = Task("large", Path("."), "msd", ("CT",), {"organ": (1,)}, frozenset({0, 1}), ())
volumes = Large(task, tuple(map(str, range(1000))), Path("."), Preprocessing(), {})
model = FoundationModel.build("segresnet", "tiny", patch=(32, 32, 32))
engine = Engine(model, volumes, Precision("cpu", "fp32"), seed=0, with_controls=False)
assert engine.losses(volumes.cases, 0, 8).loss.shape == (1000, 8)
exact_means(volumes.volume("0"), (96, 96, 96))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.soak(only=True)
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is counted as Linux counts it")
def test_a_thousand_large_volumes_stream_through_eight_gigabytes(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 8e9
