"""Worker processes: errors and stops reach everyone, and a worker that dies keeps nobody waiting."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from medseqft_kit.runs.interrupt import Interrupted, stop_requested, stopping_cleanly
from medseqft_kit.runs.workers import run_jobs

here = Path(sys.argv[1])

def work(kind, name, progress):
    (here / name).write_text("begun")
    if kind == "fails":
        while not (here / "steps").exists():
            time.sleep(0.01)
        raise ValueError("a worker's own words")
    if kind == "is killed":
        while not (here / "steps").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "steps":
        with stopping_cleanly():
            for step in range(10_000):
                progress(name, step, 10_000)
                if stop_requested():
                    (here / name).write_text("saved")
                    raise Interrupted("stopped")
                time.sleep(0.01)
    for done in range(1001):
        progress(name, done, 1000)

if __name__ == "__main__":
    seen = []
    jobs = [(kind, kind) for kind in sys.argv[2].split(",")]
    try:
        run_jobs(work, jobs, 2, lambda *call: seen.append(call), "jobs")
    except BaseException as problem:
        print(type(problem).__name__, problem, flush=True)
    for name in dict.fromkeys(call[0] for call in seen):
        print(name, [call[1] for call in seen if call[0] == name])
"""


def _start(folder: Path, kinds: str) -> subprocess.Popen[str]:
    (folder / "script.py").write_text(SCRIPT)
    return subprocess.Popen([sys.executable, folder / "script.py", folder, kinds], stdout=subprocess.PIPE, text=True)


def test_every_job_is_done_and_every_step_arrives_in_order(tmp_path: Path) -> None:
    shown, _ = _start(tmp_path, "a,b,c").communicate(timeout=60)
    assert sorted(shown.splitlines()) == [*(f"{name} {list(range(1001))}" for name in "abc"), "jobs [0, 1, 2, 3]"]
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b", "c", "script.py"}


def test_an_error_arrives_as_itself_while_the_others_save_and_what_waits_is_not_begun(tmp_path: Path) -> None:
    shown, _ = _start(tmp_path, "steps,fails,waits").communicate(timeout=60)
    assert "ValueError a worker's own words" in shown
    assert (tmp_path / "steps").read_text() == "saved"
    assert not (tmp_path / "waits").exists()


def test_a_worker_that_is_killed_keeps_nobody_waiting(tmp_path: Path) -> None:
    shown, _ = _start(tmp_path, "steps,is killed").communicate(timeout=60)
    assert "RunError" in shown
    assert "exit code -9 (killed)" in shown
    assert (tmp_path / "steps").read_text() == "saved"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_parent_alone_lets_every_worker_save(tmp_path: Path, number: signal.Signals) -> None:
    parent = _start(tmp_path, "steps,a,waits")
    end = time.monotonic() + 60
    while not (tmp_path / "a").exists() or not (tmp_path / "steps").exists():
        assert time.monotonic() < end
        time.sleep(0.05)
    parent.send_signal(number)
    shown, _ = parent.communicate(timeout=60)
    assert "Interrupted stopped with" in shown
    assert (tmp_path / "steps").read_text() == "saved"


ENVIRONMENT = """
import os, sys
from pathlib import Path
from medseqft_kit.progress import silent
from medseqft_kit.runs.workers import run_jobs

def work(name, progress):
    (Path(sys.argv[1]) / name).write_text(f"{os.environ.get('SAID')} {os.getppid()}")

if __name__ == "__main__":
    for said in ("first", "second"):
        os.environ["SAID"] = said
        run_jobs(work, [(said,)], 1, silent, "jobs")
"""


def test_jobs_are_forks_of_one_process_and_see_the_environment_as_it_is_now(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(ENVIRONMENT)
    subprocess.run([sys.executable, tmp_path / "script.py", tmp_path], check=True, timeout=60)
    told = [(tmp_path / name).read_text().split() for name in ("first", "second")]
    assert [said for said, _ in told] == ["first", "second"]
    assert len({parent for _, parent in told}) == 1


NO_GPU_YET = """
import torch

asked = []
for module, name in ((torch._C, "_cuda_getDeviceCount"), (torch._C, "_cuda_init"), (torch.cuda, "_lazy_init")):
    if hasattr(module, name):
        real = getattr(module, name)
        setattr(module, name, lambda *given, real=real, name=name: asked.append(name) or real(*given))
import medseqft_kit.short_start
import medseqft_kit.tuning.jobs
print(asked)
try:
    torch.zeros(1, device="cuda")
except (AssertionError, RuntimeError):
    pass
print(bool(asked))
"""


def test_importing_what_runs_need_asks_nothing_of_a_gpu() -> None:
    """A fork of a process that has talked to one cannot use it."""
    shown = subprocess.run([sys.executable, "-c", NO_GPU_YET], capture_output=True, text=True, check=True, timeout=120)
    assert shown.stdout.split("\n")[:2] == ["[]", "True"]
