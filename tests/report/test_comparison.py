"""The sections of a comparison's page against small tables made by hand: the page shows them, and computes nothing."""

import json
import re
import shutil
from html.parser import HTMLParser

import pytest

from medseqft_kit.errors import RunError
from medseqft_kit.report.comparison import COLUMNS, best_dice, headline_cases, load_comparison, predictor_lines
from medseqft_kit.report.comparison_words import headline, seeds_needed
from medseqft_kit.report.page import write_comparison_report

TABLES = {
    "comparison": "strategy,task,predictor,dice,dice_low,dice_high,hd95_mm,nsd,missed,false_positive,cases,seeds,"
    """images_seen,seconds,peak_gib
parallel,NA,adapted,0.511,0.411,0.611,7.25,0.9,0,0,4,2,700,60.0,1.25
parallel,mean,adapted,0.511,0.411,0.611,7.25,0.9,0,0,4,2,1400,120.0,1.25
medseqft,NA,adapted,0.542,0.442,0.642,6.12,0.9,3,0,4,2,2100,200.0,2.75
medseqft,mean,adapted,0.542,0.442,0.642,6.12,0.9,3,0,4,2,4200,400.0,2.75
medseqft,later,adapted,0.553,0.443,0.643,6.13,0.9,2,0,4,2,4200,400.0,2.75
average,NA,adapted,0.563,0.463,0.663,6.34,0.9,1,0,4,2,1700,90.0,1.5
average,mean,adapted,0.563,0.463,0.663,6.34,0.9,1,0,4,2,3400,180.0,1.5
""",
    "gains": """strategy,versus,task,gain,low,high,margin,p,p_holm,effect,hd95_gain_mm,seeds,cases,seeds_needed
medseqft,parallel,NA,0.031,-0.011,0.052,0.063,0.01,0.071,0.45,-1.13,2,4,17
medseqft,parallel,mean,0.033,0.012,0.054,0.065,0.01,0.0004,0.46,-1.14,2,4,9
medseqft,parallel,later,0.035,0.013,0.056,,0.01,0.073,0.47,-1.15,1,4,
average,parallel,mean,0.052,-0.021,0.071,0.085,0.02,0.082,-0.25,0.34,2,4,
medseqft,average,NA,-0.022,-0.041,-0.001,0.015,0.03,0.091,-0.61,0.27,2,4,23
medseqft,average,mean,-0.021,-0.042,-0.003,0.016,0.03,0.092,-0.62,0.28,2,4,24
""",
    "orders": """strategy,order,tasks,dice,gain
parallel,0,NA → b,0.512,0.0
parallel,1,b → NA,0.513,0.0
medseqft,0,NA → b,0.547,0.0353
medseqft,1,b → NA,0.537,-0.0241
""",
    "ranks": """strategy,rank,groups,critical_difference,p
average,1.25,1,0.87,0.0123
medseqft,1.75,1 2,0.87,0.0123
parallel,2.875,2,0.87,0.0123
""",
    "continual": """strategy,backward_transfer,forgetting,forward_transfer,replay_burden
medseqft,-0.0831,0.0922,0.0113,0.1414
""",
    "matrix": """strategy,order,stage,task,dice
medseqft,0,1,NA,0.541
medseqft,0,1,b,
medseqft,0,2,NA,0.482
medseqft,0,2,b,0.673
""",
    "generality": "strategy,stage,ssl_loss,sd\nmedseqft,1,0.2511,0.01\nmedseqft,0,0.2022,\n",
    "validation": """strategy,task,dice,gain,margin,seeds
parallel,mean,0.6444,0,0.0,2
medseqft,NA,0.7111,0.0333,0.0123,2
medseqft,mean,0.7222,0.0456,0.0123,2
medseqft,later,0.7333,-0.0567,0.0234,2
""",
    "fidelity": """strategy,task,fidelity,fidelity_lowest,test_dice_kept,steps,fidelity_whole,moved,moved_adapted
medseqft,NA,0.9612,0.8513,0.9434,137.5,0.9876,0.1525,0.0737
""",
    "transfer": "strategy,stage,task,budget,dice,hd95_mm,missed,gain,low,high,margin,p,effect,hd95_gain_mm,seeds,cases,"
    """seeds_needed
foundation,0,unseen,1,0.311,5.0,0,,,,,,,,,,
medseqft,2,unseen,1,0.342,4.0,0,0.0312,0.0113,0.0554,0.01,0.0213,0.5,-1.0,2,4,5
foundation,0,unseen,all,0.611,5.0,0,,,,,,,,,,
medseqft,2,unseen,all,0.602,4.0,0,-0.0093,-0.0314,0.0155,0.01,0.4414,0.5,-1.0,2,4,5
""",
    "cases": """strategy,order,seed,stage,task,predictor,case,label,dice,hd95_mm,nsd,missed,false_positive
medseqft,0,0,1,NA,adapted,001,l,0.4,1,1,0,0
medseqft,0,0,1,NA,adapted,001,m,0.6,1,1,0,0
medseqft,0,1,1,NA,adapted,001,l,0.8,1,1,0,0
medseqft,0,1,1,NA,adapted,001,m,0.9,1,1,0,0
medseqft,0,0,1,NA,merged,001,l,0.3,1,1,0,0
medseqft,0,0,1,NA,merged,001,m,0.35,1,1,0,0
""",
    "paired": """strategy,seed,order,task,position,patient,case,dice,hd95_mm
medseqft,0,0,NA,1,p,001,0.5,1
medseqft,0,1,NA,2,p,001,0.7,1
medseqft,1,0,NA,1,p,001,0.85,1
""",
}


def written(folder):
    for name, text in TABLES.items():
        (folder / f"{name}.csv").write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The body of the page of all tables."""
    return body(written(tmp_path_factory.mktemp("tables")))


class Sections(HTMLParser):
    """Text of every section of a page by its id, spaces made one; scripts are left out."""

    def __init__(self, text):
        super().__init__()
        self.found, self.here, self.script = {}, "header", False
        self.feed(text)
        self.found = {name: " ".join(" ".join(words).split()) for name, words in self.found.items()}

    def handle_starttag(self, tag, attributes):
        self.here = dict(attributes).get("id", self.here) if tag == "section" else self.here
        self.script = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.script = False

    def handle_data(self, data):
        if not self.script:
            self.found.setdefault(self.here, []).append(data)


def body(folder):
    return write_comparison_report(folder).read_text().split("<body>")[1]  # Plotly itself is in the head


def sections(folder):
    return Sections(body(folder)).found


SHOWN = {
    "results": [
        "medseqft 0.542 [0.442, 0.642] 6.1 mm · 3 missed",
        "0.553 [0.443, 0.643] 6.1 mm · 2 missed 4 200 6 min 40 s 2.75",
        "parallel 0.511 [0.411, 0.611] 7.2 mm · 0 missed",
        "not yet",  # parallel and average have no row of the tasks after the first
    ],
    "gains": [
        "medseqft +3.3 [+1.2, +5.4] 6.5 < 0.001 +0.46 −1.1 +3.5 [+1.3, +5.6] one seed 0.073 +0.47 −1.1",
        "average +5.2 [−2.1, +7.1] 8.5 0.082 −0.25 +0.3 not compared",
        "medseqft +3.1 [−1.1, +5.2] ± 6.3 p 0.071 · effect +0.45 HD95 −1.1 mm",
    ],
    "rivals": [
        "average −2.1 [−4.2, −0.3] 1.6 0.092 −0.62 +0.3",
        "average −2.2 [−4.1, −0.1] ± 1.5 p 0.091 · effect −0.61 HD95 +0.3 mm",
    ],
    "seeds": ["medseqft parallel 17 9 –", "average parallel – > 100 –", "medseqft average 23 24 –"],
    "ranks": ["Friedman's test of all being equal: p 0.012."],
    "orders": [
        "Order 0: NA → b. Order 1: b → NA.",
        "medseqft 0.547 +3.5 0.537 −2.4 −2.4 … +3.5",
    ],
    "continual": ["Order 0: NA → b", "medseqft −8.3 9.2 +1.1 14.1 %"],
    "validation": ["medseqft all 0.722 4.6 1.2", "after the first 0.733 -5.7 2.3"],
    "fidelity": ["medseqft NA 96.1 % 85.1 % 94.3 % 98.8 % 138 0.152 0.074"],
    "predictors": ["medseqft adapted – – 0.675", "merged – – 0.325"],
    "transfer": [
        "1 labelled case all labelled cases M₀ 0.311 0.611",
        "medseqft, 2 tasks 0.342 +3.1 [+1.1, +5.5] p 0.021 0.602 −0.9 [−3.1, +1.6] p 0.441",
    ],
}


@pytest.mark.parametrize("section", SHOWN)
def test_a_section_shows_the_numbers_of_its_table(page, section):
    text = Sections(page).found[section]
    assert [line for line in SHOWN[section] if line not in text] == []


@pytest.mark.parametrize(
    ("section", "bold"),
    [
        ("results", ["0.553", "0.563", "0.563"]),  # MedSeqFT after the first task, average elsewhere
        ("gains", ["+3.3", "+3.5"]),  # +3.1 and +5.2 have zero inside
        ("rivals", ["−2.1", "−2.2"]),
        ("transfer", ["+3.1"]),
    ],
)
def test_the_best_mean_is_bold_and_so_is_a_gain_whose_interval_excludes_zero(page, section, bold):
    part = page.split(f'<section id="{section}">')[1].split("</section>")[0]
    assert re.findall(r'<span class="best">([^<]+)</span>', part) == bold


def test_the_headline_says_plainly_that_medseqft_loses(folder):
    assert headline(load_comparison(folder)) == (
        "Highest mean test Dice over 1 task: 0.563, average, +5.2 Dice points [−2.1, +7.1] over parallel fine-tuning "
        "(the interval holds zero: neither is ahead); medseqft has 0.542, +3.3 Dice points [+1.2, +5.4] over parallel "
        "fine-tuning (the interval excludes zero: ahead); against the best of the controls, average with 0.563, "
        "medseqft has −2.1 Dice points [−4.2, −0.3] (the interval excludes zero: behind)."
    )


def test_the_headline_says_that_medseqft_wins_and_how_it_stands_to_the_best_control(folder):
    path = folder / "comparison.csv"
    path.write_text(path.read_text().replace("average,mean,adapted,0.563", "average,mean,adapted,0.463"))
    assert headline(load_comparison(folder)) == (
        "Highest mean test Dice over 1 task: 0.542, medseqft, +3.3 Dice points [+1.2, +5.4] over parallel fine-tuning "
        "(the interval excludes zero: ahead); against the best of the controls, average with 0.463, medseqft has "
        "−2.1 Dice points [−4.2, −0.3] (the interval excludes zero: behind)."
    )


def test_the_control_with_the_highest_mean_is_the_one_to_beat(folder):
    row = "parallel_distilled,mean,adapted,0.462,0.4,0.5,6.34,0.9,1,0,4,2,3400,180.0,1.5\n"
    for name, text in (("comparison", row), ("gains", "medseqft,parallel_distilled,mean,0.08,0.07,0.09,,,,,,2,4,\n")):
        path = folder / f"{name}.csv"
        path.write_text(path.read_text() + text)
    assert "the best of the controls, average with 0.563, medseqft has −2.1" in headline(load_comparison(folder))


def test_without_gains_the_headline_compares_nothing(folder):
    (folder / "gains.csv").unlink()
    said = headline(load_comparison(folder))
    assert said.startswith("Highest mean test Dice over 1 task: 0.563, average; medseqft has 0.542; against")
    assert said.endswith("average with 0.563, medseqft was not compared with it.")


def test_where_nothing_is_above_parallel_tuning_the_headline_says_so(folder):
    path = folder / "comparison.csv"
    path.write_text(path.read_text().replace("parallel,mean,adapted,0.511", "parallel,mean,adapted,0.911"))
    assert "0.911, parallel: no other strategy is above it; medseqft has 0.542" in headline(load_comparison(folder))


def test_orders_are_averaged_where_every_case_is_shown(folder):
    cases = headline_cases(load_comparison(folder))
    assert cases[["task", "case"]].to_numpy().tolist() == [["NA", "001"], ["NA", "001"]]
    assert cases["dice"].tolist() == pytest.approx([0.6, 0.85])


def test_names_stay_text_and_the_best_is_known_for_every_column(folder):
    comparison = load_comparison(folder)
    assert (comparison.tasks, comparison.scopes, comparison.seeds) == (("NA",), ("NA", "mean", "later"), 2)
    assert best_dice(comparison) == {"NA": 0.563, "mean": 0.563, "later": 0.553}


def test_the_ablation_names_buffer_and_teacher_of_strategies_that_have_a_buffer(folder):
    chosen = {
        "buffer": {"selection": "random", "scope": "current"},
        "distill": {"teacher": "pretrained", "weight": 0.1},
    }
    for name in ("medseqft", "parallel"):
        run = folder / "runs" / name / "seed_0" / "order_0"
        (run / "stages" / "01_NA").mkdir(parents=True)
        (run / "manifest.json").write_text(json.dumps({"config": {"strategy": chosen}}))
    (folder / "runs/medseqft/seed_0/order_0/stages/01_NA/buffer.json").write_text("{}")
    comparison = load_comparison(folder)
    assert comparison.choices == {"medseqft": ("random, current", "pretrained")}
    assert [line["choices"] for line in predictor_lines(comparison)] == [("random, current", "pretrained")] * 2
    assert "medseqft adapted random, current pretrained 0.675" in sections(folder)["predictors"]


def test_a_teacher_of_no_weight_is_none(folder):
    run = folder / "runs" / "medseqft" / "seed_0" / "order_0"
    (run / "stages" / "01_NA").mkdir(parents=True)
    (run / "stages" / "01_NA" / "buffer.json").write_text("{}")
    (run / "manifest.json").write_text(json.dumps({"config": {"strategy": {"distill": {"weight": 0}}}}))
    assert load_comparison(folder).choices == {"medseqft": ("–", "none")}


@pytest.mark.parametrize(
    ("seeds", "needed", "said"), [(1, float("nan"), "–"), (2, float("nan"), "> 100"), (3, 7.0, "7")]
)
def test_seeds_needed_are_said_as_far_as_they_are_known(seeds, needed, said):
    assert seeds_needed({"seeds": seeds, "seeds_needed": needed}) == said


WHERE = {
    "comparison": ("results", "compute"),
    "gains": ("gains", "rivals", "seeds"),
    "orders": ("orders",),
    "ranks": ("ranks",),
    "matrix": ("continual",),
    "continual": ("continual",),
    "generality": ("generality",),
    "validation": ("validation",),
    "fidelity": ("fidelity",),
    "transfer": ("transfer",),
    "cases": ("predictors",),
    "paired": ("cases",),
}


@pytest.mark.parametrize("name", WHERE)
def test_a_table_without_rows_leaves_its_sections_with_a_reason_and_no_other(folder, name):
    (folder / f"{name}.csv").write_text(",".join(COLUMNS[name]) + "\n")
    found = sections(folder)
    # Without strategies and tasks the cases have no place in a figure.
    without = {*WHERE[name], *(("cases",) if name == "comparison" else ())}
    assert {section for section, text in found.items() if "Left out: " in text} == without


@pytest.mark.parametrize("content", ["", "\n"])  # pandas writes an end of line alone where there are no columns
def test_a_comparison_whose_tables_are_all_empty_has_a_page(folder, content):
    for name in TABLES:
        (folder / f"{name}.csv").write_text(content)
    found = sections(folder)
    assert "No result yet." in found["header"]
    assert sum("Left out: " in text for text in found.values()) == 14  # all but the single runs


def test_a_comparison_without_a_table_is_in_progress(comparison_folder):
    for path in comparison_folder.glob("*.csv"):
        path.unlink()
    comparison = load_comparison(comparison_folder)
    assert comparison.strategies == ()
    assert headline(comparison) == "No result yet."
    assert sum("Not yet: " in text for text in sections(comparison_folder).values()) == 14


def test_the_single_runs_are_linked_where_they_have_a_report(finished_comparison):
    links = load_comparison(finished_comparison).links
    assert [(link.strategy, link.name, link.href) for link in links if link.href] == [
        ("parallel", "seed 0 · order 0", "runs/parallel/seed_0/order_0/report.html")
    ]
    assert len(links) == 12


def test_tables_as_a_comparison_writes_them_fill_every_section(comparison_folder):
    found = sections(comparison_folder)
    assert [name for name, text in found.items() if "Left out" in text or "Not yet:" in text] == []
    assert len(found) == 16  # the header and fifteen sections


def test_any_other_folder_is_refused(tmp_path):
    with pytest.raises(RunError, match="is not a comparison folder"):
        load_comparison(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [("comparison", "strategy,task\na,b\n"), ("gains", TABLES["gains"].replace("0.031", "much"))],
)
def test_a_damaged_table_is_named(folder, name, content):
    (folder / f"{name}.csv").write_text(content)
    with pytest.raises(RunError, match=rf"{name}\.csv cannot be read"):
        load_comparison(folder)


def test_a_damaged_manifest_is_named(comparison_folder):
    run = comparison_folder / "runs/medseqft/seed_0/order_0"
    (run / "manifest.json").write_text("{")
    with pytest.raises(RunError, match=r"manifest\.json cannot be read"):
        load_comparison(comparison_folder)
    shutil.rmtree(run)
    assert len(load_comparison(comparison_folder).links) == 11


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><b>alert(1)"]
)
def test_hostile_names_in_every_table_are_escaped(folder, name):
    names = {old: name + old for old in ("medseqft", "average", "NA", "unseen", "001", "adapted", "all")}
    for path in folder.glob("*.csv"):
        text = path.read_text().replace("NA → b", "NA")
        for old, new in names.items():
            quoted = '"' + new.replace('"', '""') + '"'
            text = re.sub(rf"(?m)(?<![^,\n]){old}(?![^,\n])", lambda _, quoted=quoted: quoted, text)
        path.write_text(text)
    text = body(folder)
    assert text.count("alert(1)") > 50
    for harm in ("<script>alert", "<img src=x", "</script><b>"):
        assert harm not in text
