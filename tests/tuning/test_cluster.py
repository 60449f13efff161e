"""A comparison on a real SLURM of one node: submitted, a run put back into the queue in the middle, the same tables."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from filelock import FileLock

from medseqft_kit.config import parse_config
from medseqft_kit.errors import ConfigError, RunError
from medseqft_kit.tuning.cluster import submit_comparison

SETTINGS = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmUser=root
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd.log
KillWait=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
PATIENCE = 220
"""Seconds until everything has to be over."""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cluster of this machine alone; other processes' tests wait for its end, since ports and munge are the same."""
    if any(shutil.which(name) is None for name in ("munged", "slurmctld", "slurmd", "sbatch")):
        pytest.skip("SLURM is not installed (Debian: slurm-wlm, munge)")
    if os.getuid() != 0:
        pytest.skip("SLURM's daemons are started as root here")
    with FileLock(Path(tempfile.gettempdir()) / "medseqft_kit_slurm.lock"):
        yield from _cluster(tmp_path / "slurm", monkeypatch)


def _cluster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "slurm.conf").write_text(SETTINGS.format(host=host, folder=folder))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    Path("/run/munge").mkdir(exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    munge = subprocess.Popen(["munged", "--foreground", "--force"], user="munge", stderr=subprocess.DEVNULL)
    daemons = [subprocess.Popen([name, "-D"], stderr=subprocess.DEVNULL) for name in ("slurmctld", "slurmd")]
    try:
        _until(lambda: "idle" in _said("sinfo", "--noheader", "--format=%t"), 60)
        yield
    finally:
        _said("scancel", "--full", *_said("squeue", "--noheader", "--format=%A").split())
        for daemon in (*reversed(daemons), munge):
            daemon.terminate()
            daemon.wait()


def _said(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _until(condition: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, _said("squeue") + _said("sinfo")
        time.sleep(0.2)


@pytest.fixture
def config(whole_config: Callable[..., Any], tmp_path: Path) -> Path:
    content = whole_config(
        budget={"steps": 40},
        compute={"tracker": "none"},
        compare={"strategies": ["parallel", "medseqft"], "seeds": [0], "slurm": {"memory_gb": 1.0, "cpus": 1}},
    )
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def _compare(config: Path, out: Path, *more: str) -> str:
    command = [sys.executable, "-m", "medseqft_kit", "compare", str(config), "--out", str(out), *more]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.soak(only=True)
@pytest.mark.parametrize(
    ("put_back", "said", "times"),
    [
        (("scontrol", "requeue"), "it continues when the job runs again", 1),
        # What SLURM sends before a job's time is over; submitit puts the job back itself, and says so on two streams.
        (("scancel", "--signal=USR2"), "Caught signal SIGUSR2", 2),
    ],
    ids=["preempted", "out of time"],
)
def test_jobs_that_are_put_back_into_the_queue_end_in_the_same_tables(
    slurm: None, config: Path, tmp_path: Path, put_back: tuple[str, ...], said: str, times: int
) -> None:
    out = tmp_path / "cluster"
    told = _compare(config, out, "--executor", "slurm")
    assert [line.split(":")[0] for line in told.splitlines()[:3]] == ["m0", "runs", "tables"]
    with pytest.raises(RunError, match="jobs in the queue"):
        submit_comparison(parse_config(yaml.safe_load(config.read_text())), out, print)

    checkpoint = (
        out / "runs" / "medseqft" / "seed_0" / "order_0" / "stages" / "01_liver" / "checkpoint_adapt.safetensors"
    )
    _until(checkpoint.is_file, PATIENCE)
    running = _said("squeue", "--noheader", "--states=RUNNING", "--name=medseqft-runs", "--format=%i").split()
    for job in running:
        _said(*put_back, job)
    assert running
    _until(lambda: (out / "report.html").is_file() and not _said("squeue", "--noheader").strip(), PATIENCE)
    logs = "".join(path.read_text() for path in (out / "slurm").rglob("*_log.*"))
    assert logs.count(said) == times * len(running), logs
    assert "Traceback" not in logs, logs

    _compare(config, tmp_path / "local")
    for name in ("comparison", "gains", "cases"):
        one, other = (pd.read_csv(folder / f"{name}.csv") for folder in (out, tmp_path / "local"))
        costs = [column for column in ("seconds", "peak_gib") if column in one]
        pd.testing.assert_frame_equal(one.drop(columns=costs), other.drop(columns=costs))


def test_a_machine_without_slurm_says_so(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="there is no SLURM here"):
        submit_comparison(parse_config(yaml.safe_load(config.read_text())), tmp_path / "out", print)
    assert not (tmp_path / "out").exists()
