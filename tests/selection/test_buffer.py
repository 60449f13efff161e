import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medseqft_kit.errors import ConfigError, DataError, NumericsError
from medseqft_kit.selection.buffer import (
    Buffer,
    buffer_size,
    read_buffer,
    read_scores,
    select,
    write_buffer,
    write_scores,
)


def table(**means: float) -> pd.DataFrame:
    """Scores with an interval of ± 0.25."""
    mean = np.array(list(means.values()))
    return pd.DataFrame({"case": list(means), "mean": mean, "low": mean - 0.25, "high": mean + 0.25, "draws": 16})


SCORES = table(e=5.0, c=3.0, a=1.0, d=3.3, b=2.0)
BUFFER = Buffer("hippocampus", ("b", "ä"), ("ä", "c"), 48, {"k": 2, "seed": 0, "precision": "fp32"}, {"pairs": 6})


def test_the_lowest_scores_are_kept_with_the_most_similar_first() -> None:
    chosen = select(SCORES, 3, task="organ")
    assert chosen.cases == ("a", "b", "c")
    assert (chosen.task, chosen.passes, chosen.settings) == ("organ", 5 * 16, {"k": 3})


def test_ties_are_the_cases_whose_interval_contains_the_boundary() -> None:
    # K = 3: the boundary is 3.15, within c = 3.0 ± 0.25 and d = 3.3 ± 0.25. K = 2: 2.5, in no interval.
    assert select(SCORES, 3).ties == ("c", "d")
    assert select(SCORES, 2).ties == ()
    assert select(SCORES, 5).ties == ()


def test_a_tie_beyond_the_neighbours_of_the_boundary_is_named() -> None:
    wide = SCORES.assign(low=SCORES["low"].where(SCORES["case"] != "e", 0.0))
    assert select(wide, 3).ties == ("c", "d", "e")


def test_equal_scores_are_taken_in_the_order_of_ids_whatever_the_order_of_rows() -> None:
    equal = table(z=1.0, m=1.0, a=1.0, k=0.5)
    orders = [equal, equal.iloc[::-1], equal.sort_values("case"), equal.sample(frac=1, random_state=3)]
    chosen = [select(order, 2) for order in orders]
    assert len(chosen) == 4
    assert {buffer.cases for buffer in chosen} == {("k", "a")}
    assert {buffer.ties for buffer in select_all(orders, 3)} == {("a", "m", "z")}


def select_all(orders: list[pd.DataFrame], k: int) -> list[Buffer]:
    return [select(order, k) for order in orders]


def test_the_table_hands_on_its_task_and_settings_and_is_not_changed() -> None:
    scores = SCORES.copy()
    scores.attrs = {"task": "organ", "settings": {"draws": 16, "seed": 4}}
    before = scores.copy()
    chosen = select(scores, 2)
    assert (chosen.task, chosen.settings) == ("organ", {"k": 2, "draws": 16, "seed": 4})
    pd.testing.assert_frame_equal(scores, before)
    assert scores.attrs == before.attrs


@pytest.mark.parametrize("k", [0, -1, 6])
def test_a_buffer_larger_than_the_task_or_empty_is_refused(k: int) -> None:
    with pytest.raises(ConfigError, match="1 to 5 cases"):
        select(SCORES, k)


@pytest.mark.parametrize("column", ["mean", "low", "high"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_score_that_is_not_a_number_is_refused_by_name(column: str, value: float) -> None:
    broken = SCORES.assign(**{column: SCORES[column].where(SCORES["case"] != "d", value)})
    with pytest.raises(NumericsError, match=r"1 case\(s\)[\s\S]*found +d\n"):
        select(broken, 2)


def test_a_table_with_missing_columns_or_a_case_twice_is_refused() -> None:
    with pytest.raises(DataError, match="no high"):
        select(SCORES.drop(columns="high"), 2)
    with pytest.raises(DataError, match="two rows"):
        select(pd.concat([SCORES, SCORES.iloc[:1]]), 2)


@pytest.mark.parametrize(
    ("cases", "size"), [(130, 13), (125, 13), (124, 12), (70, 7), (45, 5), (44, 4), (16, 4), (4, 4), (3, 3), (0, 0)]
)
def test_ten_percent_at_least_four_never_more_than_there_are(cases: int, size: int) -> None:
    assert buffer_size(cases) == size


def test_share_and_minimum_can_be_set() -> None:
    assert (buffer_size(100, share=0.25), buffer_size(100, minimum=20), buffer_size(7, share=1.0)) == (25, 20, 7)


def test_scores_are_read_back_exactly_and_equal_tables_give_equal_bytes(tmp_path: Path) -> None:
    scores = table(**{"001": 1 / 3, "NA": 0.1 + 0.2, "x,y": 1e-17}).sort_values("case")
    write_scores(tmp_path / "a.csv", scores)
    write_scores(tmp_path / "b.csv", scores.assign(extra=0))
    read = read_scores(tmp_path / "a.csv")
    pd.testing.assert_frame_equal(read, scores.reset_index(drop=True), check_exact=True)
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert (tmp_path / "a.csv").read_text().splitlines()[0] == "case,mean,low,high,draws"


@pytest.mark.parametrize("text", ["", "case,mean\na,1\n", "case,mean,low,high,draws\na,x,1,1,16\n"])
def test_a_damaged_table_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "scores.csv").write_text(text)
    with pytest.raises(DataError, match=r"scores\.csv cannot be read"):
        read_scores(tmp_path / "scores.csv")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_scores(tmp_path / "scores.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_buffer(tmp_path / "buffer.json")


def test_a_buffer_is_read_back_exactly(tmp_path: Path) -> None:
    write_buffer(tmp_path / "buffer.json", BUFFER)
    assert read_buffer(tmp_path / "buffer.json") == BUFFER
    assert list(json.loads((tmp_path / "buffer.json").read_text())) == [
        "task",
        "cases",
        "ties",
        "passes",
        "settings",
        "certificate",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["buffer.json"]


@pytest.mark.parametrize(
    "damage",
    [{"cases": "a"}, {"passes": "48"}, {"ties": None}, {"surprise": 1}, None],
    ids=["cases-text", "passes-text", "no-ties", "unknown-field", "empty"],
)
def test_a_value_that_is_no_buffer_is_refused(damage: dict[str, object] | None) -> None:
    value = {} if damage is None else {**BUFFER.to_json(), **damage}
    with pytest.raises(DataError, match="not a buffer"):
        Buffer.from_json(value)
