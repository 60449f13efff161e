"""`auto`: measured once, remembered at once, pinned by a run, forced by a variable."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from medseqft_kernels import dispatch, lora_conv3d

CPU = torch.device("cpu")


def candidates(calls: list[str], **seconds: float):
    def run(name: str) -> None:
        calls.append(name)
        time.sleep(seconds[name])

    return lambda: {name: (lambda name=name: run(name)) for name in seconds}


def test_the_fastest_is_taken_and_a_question_is_asked_once(own_table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[str] = []
    make = candidates(calls, reference=0.02, quick=0.001, slow=0.03)
    assert dispatch.fastest("a question", CPU, make) == "quick"
    assert capsys.readouterr().err == "tuning a question\n"
    asked = len(calls)
    assert asked >= 3 * (1 + dispatch.ROUNDS[0])
    assert calls[3:9] == ["reference", "quick", "slow"] * 2  # interleaved, so that drift hits all alike
    assert dispatch.fastest("a question", CPU, make) == "quick"
    assert (len(calls), capsys.readouterr().err) == (asked, "")
    (file,) = own_table.glob("*.json")
    row = json.loads(file.read_text())["a question"]
    assert row["choice"] == "quick"
    assert set(row["seconds"]) == {"reference", "quick", "slow"}
    assert row["seconds"]["quick"] < row["seconds"]["reference"] < row["seconds"]["slow"]


def test_another_process_takes_what_the_table_says(own_table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch.fastest("a question", CPU, candidates([], reference=0.0, quick=0.0))
    (file,) = own_table.glob("*.json")
    table = json.loads(file.read_text())
    table["a question"]["choice"] = "as written"
    file.write_text(json.dumps(table))
    monkeypatch.setattr(dispatch, "_memories", {})  # as in a process that has just begun
    assert dispatch.fastest("a question", CPU, candidates([], reference=0.0)) == "as written"


def test_a_table_that_cannot_be_read_is_measured_again(own_table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dispatch.fastest("a question", CPU, candidates([], reference=0.0))
    (file,) = own_table.glob("*.json")
    for damaged in ("", "[]", "{torn"):
        file.write_text(damaged)
        monkeypatch.setattr(dispatch, "_memories", {})
        assert dispatch.fastest("a question", CPU, candidates([], reference=0.0)) == "reference"
    assert json.loads(file.read_text())["a question"]["choice"] == "reference"


def test_who_asks_at_the_same_time_gets_the_same_answer_from_one_measurement(own_table: Path) -> None:
    calls: list[str] = []
    with ThreadPoolExecutor(4) as pool:
        make = candidates(calls, reference=0.01)
        answers = list(pool.map(lambda _: dispatch.fastest("a question", CPU, make), range(4)))
    assert answers == ["reference"] * 4
    assert len(calls) <= 1 + dispatch.ROUNDS[1]


def test_a_backend_that_fails_is_left_out_but_a_failing_reference_is_an_error() -> None:
    def fail() -> None:
        raise RuntimeError("out of memory")

    assert dispatch.fastest("one fails", CPU, lambda: {"reference": lambda: None, "broken": fail}) == "reference"
    with pytest.raises(RuntimeError, match="out of memory"):
        dispatch.fastest("all fail", CPU, lambda: {"reference": fail})


def test_a_run_keeps_its_choices_and_is_told_new_ones() -> None:
    mine = {"known": "as the run began"}
    with dispatch.pinned(mine):
        assert dispatch.fastest("known", CPU, candidates([], reference=0.0)) == "as the run began"
        assert dispatch.fastest("new", CPU, candidates([], reference=0.0)) == "reference"
    assert mine == {"known": "as the run began", "new": "reference"}
    assert dispatch.fastest("known", CPU, candidates([], reference=0.0)) == "reference"
    with dispatch.pinned(mine):
        assert dispatch.fastest("known", CPU, candidates([], reference=0.0)) == "as the run began"


def test_the_variable_forces_the_plain_path_and_nothing_else_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, a, b = torch.rand(1, 2, 3, 3, 3), torch.rand(4, 2, 1, 1, 1), torch.rand(2, 2, 1, 1, 1), torch.rand(4, 2)
    monkeypatch.setenv("MEDSEQFT_KERNELS", "reference")
    monkeypatch.setattr(dispatch, "_measure", None)  # whoever measured would fail
    assert lora_conv3d(x, weight, None, a, b, 1.0).shape == (1, 4, 3, 3, 3)
    monkeypatch.setenv("MEDSEQFT_KERNELS", "fast")
    with pytest.raises(ValueError, match="MEDSEQFT_KERNELS: found 'fast', expected 'auto' or 'reference'"):
        lora_conv3d(x, weight, None, a, b, 1.0)


def test_measuring_leaves_random_state_and_threads_alone() -> None:
    state, threads = torch.random.get_rng_state(), torch.get_num_threads()
    x, weight = torch.ones(1, 2, 3, 3, 3), torch.ones(4, 2, 1, 1, 1)
    mine: dict[str, str] = {}
    with dispatch.pinned(mine):
        lora_conv3d(x, weight, None, torch.ones(2, 2, 1, 1, 1), torch.ones(4, 2), 1.0)
    assert len(mine) == 1
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_question_reads_as_text() -> None:
    text = dispatch.describe(x=(2, 3), rank=4, bias=True, channels_last=False, needs_gradient=True)
    assert text == "x 2x3, rank 4, bias, needs gradient"
