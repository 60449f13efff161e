import io
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from rich.console import Console

from medseqft_kit.progress import Progress, arriving, pipe_progress, rich_progress, silent


class Clock:
    """Stands in for time.monotonic."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(time, "monotonic", fake)
    return fake


def log() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, width=40)


def written(console: Console) -> list[str]:
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_silent_is_a_progress_that_draws_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert isinstance(silent, Progress)
    silent("label", 1, 2)
    assert capsys.readouterr() == ("", "")


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(clock: Clock) -> None:
    console = log()
    with rich_progress(console) as progress:
        for done in range(26):
            progress("scoring [a]", done, 25)
            clock.now += 1
    assert written(console) == ["scoring [a]: 10/25, 10 s", "scoring [a]: 20/25, 20 s", "scoring [a]: 25/25, 25 s"]


def test_a_log_gets_no_line_for_work_shorter_than_a_second(clock: Clock) -> None:
    console = log()
    with rich_progress(console) as progress:
        progress("quick", 0, 2)
        clock.now += 0.5
        progress("quick", 2, 2)
    assert written(console) == []


def test_the_same_label_can_come_back(clock: Clock) -> None:
    console = log()
    with rich_progress(console) as progress:
        for _ in range(2):
            progress("a", 0, 1)
            clock.now += 3
            progress("a", 1, 1)
            clock.now += 50
    assert written(console) == ["a: 1/1, 3 s"] * 2


def test_a_terminal_gets_a_bar_for_each_label_that_goes_when_the_work_is_over() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with rich_progress(console) as progress:
        bars = progress.bars  # type: ignore[attr-defined]
        progress("first [a]", 1, 4)
        progress("second", 2, 4)
        assert [(task.description, task.completed, task.total) for task in bars.tasks] == [
            ("first [a]", 1, 4),
            ("second", 2, 4),
        ]
        bars.refresh()
        progress("first [a]", 4, 4)
        assert [task.description for task in bars.tasks] == ["second"]
        progress("first [a]", 1, 3)
        assert [task.description for task in bars.tasks] == ["second", "first [a]"]
    assert "first [a]" in console.file.getvalue()  # type: ignore[attr-defined]


def test_many_threads_share_one_bar_for_each_label(monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    with rich_progress(console) as progress, ThreadPoolExecutor(4) as pool:
        add_task = progress.bars.add_task  # type: ignore[attr-defined]

        def slow(label: str, total: int) -> object:
            time.sleep(0.01)  # so that a race has time to happen
            return add_task(label, total=total)

        monkeypatch.setattr(progress.bars, "add_task", slow)  # type: ignore[attr-defined]
        steps = [pool.submit(progress, f"label {i % 7}", i, 1000) for i in range(200)]
        assert sum(step.result() is None for step in steps) == 200
        labels = {task.description for task in progress.bars.tasks}  # type: ignore[attr-defined]
        assert labels == {f"label {i}" for i in range(7)}
        assert len(progress.bars.tasks) == 7  # type: ignore[attr-defined]


def test_the_steps_of_worker_processes_arrive() -> None:
    context = multiprocessing.get_context("spawn")
    seen: list[tuple[str, int, int]] = []
    with arriving(lambda label, done, total, note="": seen.append((label, done, total))) as writer:
        steps = [("a", 1, 3), ("b" * 4000, 2, 3)]
        workers = [context.Process(target=pipe_progress(writer), args=step) for step in steps]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
            assert worker.exitcode == 0
    assert sorted(seen) == [("a", 1, 3), ("b" * 100, 2, 3)]


def test_an_error_of_the_drawing_side_arrives_as_itself_and_the_pipe_is_emptied() -> None:
    calls = []

    def broken(label: str, done: int, total: int, note: str = "", /) -> None:
        calls.append(done)
        raise OSError("the terminal is gone")

    with pytest.raises(OSError, match="the terminal is gone"), arriving(broken) as writer:
        assert [pipe_progress(writer)("a", done, 3) for done in range(4)] == [None] * 4
    assert calls == [0, 1, 2, 3]
