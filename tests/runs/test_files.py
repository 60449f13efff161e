"""Files appear whole or not at all; one process holds a folder; manifests notice what changed."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from medseqft_kit.errors import RunError
from medseqft_kit.runs.atomic import remove_leftovers, replacing, write_json, write_tensors, write_text
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.runs.history import read_rows, timed, write_rows
from medseqft_kit.runs.lock import locked


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def fail_half_way() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"]


def test_a_locked_folder_refuses_another_process_with_the_holders_name(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from medseqft_kit.runs.lock import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError, match=f"process {holder.pid} "), locked(tmp_path):
            pass
        holder.kill()
        holder.wait()
    with locked(tmp_path):  # a killed holder leaves no lock behind
        pass


def _finished_run(path: Path) -> RunFolder:
    run = RunFolder(path, {"format": 1, "stages": []})
    run.add_stage("liver")
    write_text(run.stage_folder(0) / "cases.csv", "a\n")
    write_text(run.stage_folder(0) / "timing.jsonl", "{}\n")
    run.finish_stage(0)
    return RunFolder.open(path)


def test_a_finished_stage_lists_its_files_but_not_its_timings(tmp_path: Path) -> None:
    run = _finished_run(tmp_path)
    assert run.stages[0]["folder"] == "01_liver"
    assert list(run.stages[0]["files"]) == ["cases.csv"]
    run.verify_stage(0)


def test_a_changed_file_of_a_finished_stage_is_noticed(tmp_path: Path) -> None:
    run = _finished_run(tmp_path)
    (run.stage_folder(0) / "cases.csv").write_text("b\n")
    with pytest.raises(RunError, match=r"cases\.csv is not what this run wrote"):
        run.verify_stage(0)


@pytest.mark.parametrize(
    ("text", "said"), [(None, "not a run folder"), ("{", "damaged"), ('{"format": 99}', "another version")]
)
def test_a_folder_that_is_no_run_is_refused(tmp_path: Path, text: str | None, said: str) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=said):
        RunFolder.open(tmp_path)


def test_rows_come_back_as_they_were_and_timings_append(tmp_path: Path) -> None:
    rows = [{"step": 0, "total": 0.25}, {"step": 1, "total": 1e-30}]
    write_rows(tmp_path / "h.jsonl", rows)
    assert read_rows(tmp_path / "h.jsonl") == rows
    for event in ("one", "two"):
        with timed(tmp_path / "t.jsonl", event) as facts:
            facts["images"] = 4
    assert [(row["event"], row["images"]) for row in read_rows(tmp_path / "t.jsonl")] == [("one", 4), ("two", 4)]
    assert all(row["seconds"] >= 0 for row in read_rows(tmp_path / "t.jsonl"))
    assert read_rows(tmp_path / "none.jsonl") == []


def test_equal_values_give_equal_json_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_json(tmp_path / name, {"z": 1, "a": [1.5, "ü"]})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_is_left_of_a_file_of_tensors_whose_writer_was_killed(tmp_path: Path) -> None:
    """The safetensors library writes into temporary files with names of its own."""
    tensors = {"a": torch.zeros(2**27)}  # half a gigabyte takes long enough to be seen
    writer = multiprocessing.get_context("fork").Process(
        target=write_tensors, args=(tmp_path / "a.safetensors", tensors)
    )
    writer.start()
    while not list(tmp_path.iterdir()):
        assert writer.is_alive()
    writer.kill()
    writer.join()
    assert list(tmp_path.iterdir())
    assert not (tmp_path / "a.safetensors").exists()
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())
