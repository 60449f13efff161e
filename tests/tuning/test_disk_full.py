"""A disk that fills up, wherever: an error for people, nothing damaged, and the same bytes once there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from medseqft_kit.errors import MedSeqFTError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.settings import Settings
from medseqft_kit.tuning.plan import TaskPlan
from medseqft_kit.tuning.sequence import Sequence
from medseqft_kit.volumes import estimate


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A small disk whose size in KiB can be changed while it is in use."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small disk cannot be mounted here: that takes the rights of root")

    def sized(kibibytes: int) -> Path:
        subprocess.run(["mount", "-o", f"remount,size={kibibytes}k", folder], check=True)
        return folder

    yield sized
    subprocess.run(["umount", folder], check=True)


@pytest.mark.usefixtures("as_users_run_it")
def test_a_full_disk_is_an_error_for_people_and_the_run_goes_on_once_there_is_room(
    disk: Callable[[int], Path],
    tmp_path: Path,
    plans: list[TaskPlan],
    settings_for: Callable[..., Settings],
    hashes: Callable[[Path], dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(estimate, "SPARE", 0)  # what is left free on purpose is more than this whole disk

    def run(out: Path) -> None:
        model = FoundationModel.build(size="tiny", patch=(8, 8, 8), seed=1)
        Sequence(out, model, settings_for(), store=tmp_path / "store").fit(plans)

    run(tmp_path / "whole")
    needed = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*")) // 1024
    stopped: set[str] = set()
    size, out = 64, disk(64) / "run"
    while message := _stopped_by(run, out):
        assert message.startswith("there is no room left to write ")
        assert not list(out.rglob("*.tmp-*"))
        stopped.add(message.rsplit("/", 1)[-1])
        size += needed // 12
        disk(size)
    assert hashes(out) == hashes(tmp_path / "whole")
    assert len(stopped) >= 4, stopped


def _stopped_by(run: Callable[[Path], None], out: Path) -> str:
    """What a run says that does not get through; nothing where it does."""
    try:
        run(out)
    except MedSeqFTError as problem:
        return problem.summary
    return ""
