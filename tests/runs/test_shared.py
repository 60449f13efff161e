"""Products that are made once: the same files for equal ingredients, never a half-made one."""

from __future__ import annotations

import multiprocessing
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from medseqft_kit.runs.shared import Make, take_or_make


def _product(folder: Path, text: str = "made") -> list[str]:
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    (folder / "sub" / "more.txt").write_text("more")
    (folder / "model.bin").write_text(text)
    return ["model.bin", "sub/more.txt"]


def _take_or_make(shared: Path | None, key: dict[str, Any], folder: Path, make: Make) -> bool:
    return take_or_make(shared, key, folder, folder / "model.bin", make)


def test_equal_ingredients_are_taken_and_others_are_made(tmp_path: Path) -> None:
    made: list[str] = []

    def make(name: str) -> bool:
        def work() -> list[str]:
            made.append(name)
            return _product(tmp_path / name, name)

        key = {"seed": 1 if name in ("a", "b") else 2, "task": "liver"}
        return _take_or_make(tmp_path / "shared", key, tmp_path / name, work)

    assert [make(name) for name in ("a", "b", "c")] == [False, True, False]
    assert made == ["a", "c"]
    assert (tmp_path / "b" / "model.bin").read_text() == "a"
    assert (tmp_path / "b" / "sub" / "more.txt").read_text() == "more"
    assert (tmp_path / "a" / "model.bin").samefile(tmp_path / "b" / "model.bin")


def test_the_record_is_taken_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between two links, a run lacks its record, and takes all again."""
    _take_or_make(tmp_path / "shared", {"a": 1}, tmp_path / "x", lambda: _product(tmp_path / "x"))
    linked: list[str] = []
    monkeypatch.setattr("os.link", lambda source, target: linked.append(target.relative_to(tmp_path / "y").as_posix()))
    assert _take_or_make(tmp_path / "shared", {"a": 1}, tmp_path / "y", list)
    assert linked == ["sub/more.txt", "model.bin"]


def test_the_order_in_which_ingredients_are_written_does_not_matter(tmp_path: Path) -> None:
    first = _take_or_make(tmp_path / "shared", {"a": 1, "b": 2}, tmp_path / "x", lambda: _product(tmp_path / "x"))
    second = _take_or_make(tmp_path / "shared", {"b": 2, "a": 1}, tmp_path / "y", lambda: _product(tmp_path / "y"))
    assert (first, second) == (False, True)


def test_what_failed_is_made_again(tmp_path: Path) -> None:
    def fails() -> list[str]:
        _product(tmp_path / "x")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _take_or_make(tmp_path / "shared", {"a": 1}, tmp_path / "x", fails)
    assert not _take_or_make(tmp_path / "shared", {"a": 1}, tmp_path / "y", lambda: _product(tmp_path / "y"))


def test_without_a_folder_nothing_is_shared(tmp_path: Path) -> None:
    for name in ("x", "y"):
        assert not _take_or_make(None, {"a": 1}, tmp_path / name, partial(_product, tmp_path / name))
        assert (tmp_path / name / "model.bin").is_file()


def _slow(folder: Path, log: Path) -> None:
    def work() -> list[str]:
        with log.open("a") as file:
            file.write("begun\n")
        time.sleep(0.5)
        return _product(folder, folder.name)

    _take_or_make(log.parent / "shared", {"a": 1}, folder, work)


def test_two_processes_that_need_the_same_product_make_it_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_slow, args=(tmp_path / name, tmp_path / "log")) for name in ("x", "y")]
    for process in both:
        process.start()
    for process in both:
        process.join()
        assert process.exitcode == 0
    assert (tmp_path / "log").read_text() == "begun\n"
    assert (tmp_path / "x" / "model.bin").read_text() == (tmp_path / "y" / "model.bin").read_text()
