"""Reading run folders: whole, still growing, damaged."""

import json

import pytest

from medseqft_kit.errors import RunError
from medseqft_kit.report.load import load_run


def test_a_finished_run_is_read_whole(finished_run):
    run = load_run(finished_run)
    assert (run.strategy, run.predictor) == ("medseqft", "adapted")
    assert [(s.number, s.task, s.done) for s in run.stages] == [(1, "hippocampus", True), (2, "sub<i>fields", True)]
    assert len(run.pretraining) == 100
    second = run.stages[1]
    assert len(second.cases) == 3 * (2 * 2 + 1)  # three cases: two labels under two predictors, one of the earlier task
    assert len(second.history) == 60 + 3 + 40 + 2
    assert len(second.buffer.cases) == 4
    assert len(second.scores) == 9


def test_a_task_whose_stage_has_not_begun_is_listed_all_the_same(run_copy):
    manifest = json.loads((run_copy / "manifest.json").read_text())
    manifest["stages"].pop()
    (run_copy / "manifest.json").write_text(json.dumps(manifest))
    waiting = load_run(run_copy).stages[1]
    assert (waiting.task, waiting.done, waiting.folder) == ("sub<i>fields", False, None)
    assert waiting.scores is None
    assert waiting.buffer is None
    assert len(waiting.cases) == 0
    assert (waiting.metrics, waiting.history, waiting.timing) == ({}, (), ())


def test_a_line_that_is_still_being_written_is_left_out(run_copy):
    with (run_copy / "stages/01_stage/timing.jsonl").open("a") as file:
        file.write('{"event": "ev')
    assert len(load_run(run_copy).stages[0].timing) == 4


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("stages/01_stage/timing.jsonl", '{"event": "a"}\nnot json\n', "line 2"),
        ("stages/01_stage/metrics.json", "{", "metrics.json"),
        ("stages/01_stage/metrics.json", "[]", "list"),
        ("manifest.json", "\x00", "manifest.json"),
    ],
)
def test_a_damaged_file_is_named(run_copy, name, content, found):
    (run_copy / name).write_text(content)
    with pytest.raises(RunError) as caught:
        load_run(run_copy)
    assert found in str(caught.value)


@pytest.mark.parametrize("name", ["../../elsewhere", "/etc", "..", "a/b"])
def test_a_stage_folder_outside_the_run_is_refused(run_copy, name):
    manifest = json.loads((run_copy / "manifest.json").read_text())
    manifest["stages"][0]["folder"] = name
    (run_copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(RunError, match="outside the run"):
        load_run(run_copy)


def test_a_folder_without_a_manifest_is_no_run(tmp_path):
    with pytest.raises(RunError, match="is not a run folder"):
        load_run(tmp_path)
