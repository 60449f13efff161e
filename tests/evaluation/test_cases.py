"""The table of cases and its means, worked by hand."""

import json
from dataclasses import replace

import pandas as pd
import pytest

from medseqft_kit.errors import RunError
from medseqft_kit.evaluation.cases import (
    COLUMNS,
    CaseRow,
    mean_over_tasks,
    read_cases,
    summarise,
    write_cases,
)

ROW = CaseRow(0, 1, "liver", "adapted", "001", "liver", 0.9, 3.0, 0.8, 0, 0)
ROWS = [
    ROW,
    replace(ROW, case="002", dice=0.7, hd95_mm=5.0, nsd=0.6),
    replace(ROW, case="001", label="NA", dice=0.0, hd95_mm=100.0, nsd=0.0, missed=1),
    replace(ROW, predictor="merged", dice=0.0, hd95_mm=100.0, nsd=0.0, false_positive=1),
    replace(ROW, task="spleen", case="x", label="spleen", dice=0.5, hd95_mm=1 / 3, nsd=0.5),
]


@pytest.fixture
def table(tmp_path):
    write_cases(tmp_path / "cases.csv", ROWS)
    return read_cases(tmp_path / "cases.csv")


def test_the_columns_are_the_documented_ones(table):
    documented = "seed, stage, task, predictor, case, label, dice, hd95_mm, nsd, missed, false_positive"
    assert list(table.columns) == documented.split(", ") == list(COLUMNS)


def test_text_stays_text_and_numbers_come_back(table):
    assert [CaseRow(**row) for row in table.to_dict("records")] == [
        replace(row, hd95_mm=round(row.hd95_mm, 6)) for row in ROWS
    ]


def test_ids_made_of_digits_keep_their_zeros(tmp_path):
    write_cases(tmp_path / "cases.csv", [ROW, replace(ROW, case="010")])
    assert read_cases(tmp_path / "cases.csv")["case"].tolist() == ["001", "010"]


def test_equal_rows_give_equal_bytes_and_a_stated_format(tmp_path):
    for name in ("one.csv", "two.csv"):
        write_cases(tmp_path / name, ROWS)
    one = (tmp_path / "one.csv").read_bytes()
    assert one == (tmp_path / "two.csv").read_bytes()
    assert one.splitlines()[1] == b"0,1,liver,adapted,001,liver,0.900000,3.000000,0.800000,0,0"


def test_a_run_without_any_structure_still_writes_its_columns(tmp_path):
    write_cases(tmp_path / "cases.csv", [])
    empty = read_cases(tmp_path / "cases.csv")
    assert list(empty.columns) == list(COLUMNS)
    assert summarise(empty) == {}


def test_further_columns_in_front_are_kept(table, tmp_path):
    table.insert(0, "strategy", "medseqft")
    table.to_csv(tmp_path / "all.csv", index=False)
    assert list(read_cases(tmp_path / "all.csv").columns) == ["strategy", *COLUMNS]


@pytest.mark.parametrize(
    "text",
    [None, "seed,stage\n0,1\n", "", ",".join(COLUMNS) + "\n0,1,a,b,c,d,good,1,1,0,0\n"],
)
def test_a_table_that_cannot_be_used_names_the_file(tmp_path, text):
    path = tmp_path / "cases.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RunError, match=r"cases\.csv"):
        read_cases(path)


def test_cases_are_averaged_within_a_label_and_labels_within_a_task(table):
    adapted = summarise(table)["liver"]["adapted"]
    assert adapted["labels"]["liver"] == pytest.approx(
        {
            "dice": 0.8,
            "hd95_mm": 4.0,
            "nsd": 0.7,
            "missed": 0,
            "false_positive": 0,
            "cases": 2,
        }
    )
    # Averaging over rows would give (0.9 + 0.7 + 0.0) / 3: the label with more cases would weigh more.
    assert adapted["dice"] == pytest.approx((0.8 + 0.0) / 2)
    assert adapted["hd95_mm"] == pytest.approx((4.0 + 100.0) / 2)
    assert adapted["nsd"] == pytest.approx((0.7 + 0.0) / 2)


def test_misses_and_false_positives_stand_beside_every_mean(table):
    summary = summarise(table)
    assert (
        summary["liver"]["adapted"]["missed"],
        summary["liver"]["adapted"]["labels"]["NA"]["missed"],
    ) == (1, 1)
    assert summary["liver"]["merged"]["false_positive"] == 1
    assert summary["liver"]["adapted"]["cases"] == 2


def test_the_summary_is_plain_json(table):
    summary = summarise(table)
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary


def test_tasks_come_last_with_equal_weight(table):
    mean = mean_over_tasks(summarise(table), "adapted")
    assert mean["dice"] == pytest.approx((0.4 + 0.5) / 2)
    assert (mean["missed"], mean["cases"]) == (1, 3)
    with pytest.raises(RunError, match="adapted, merged"):
        mean_over_tasks(summarise(table), "M_t")


def test_summarising_leaves_the_table_alone(table):
    before = table.copy()
    summarise(table)
    pd.testing.assert_frame_equal(table, before)
