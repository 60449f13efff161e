"""The pages as text: complete, escaped, self-contained."""

import json
import re
from html.parser import HTMLParser

import pytest

from medseqft_kit.errors import RunError
from medseqft_kit.report.page import write_comparison_report, write_report

LOADING = {"src", "srcset", "href", "data", "action", "poster", "background"}


class Page(HTMLParser):
    """Visible text, tags outside scripts, and every address that a browser may follow by itself."""

    def __init__(self, text):
        super().__init__()
        self.words, self.tags, self.loads = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.loads += [(tag, value) for name, value in attributes if name in LOADING and tag != "a"]

    def handle_data(self, data):
        if self.tags and self.tags[-1] not in ("script", "style"):
            self.words.append(data.strip())


@pytest.fixture(scope="module")
def run_page(finished_run):
    return Page(write_report(finished_run).read_text())


def test_every_task_label_and_metric_is_on_the_page(run_page):
    text = "\n".join(run_page.words)
    wanted = [
        "hippocampus",
        "sub<i>fields",
        "hippo<b>campus",
        "anterior",
        "posterior & tail",
        "a<b>&c",
        "adapted",
        "merged",
        "Dice",
        "HD95 mm",
        "NSD at 1 mm",
        "missed",
        "false pos.",
        "cases",
        "strategy.buffer.k",
        "2.13.0",
        "0123456789ab",
        "phase adapt",
    ]
    assert [word for word in wanted if word not in text] == []


def test_figures_in_the_table_are_those_of_metrics_json(run_page, finished_run):
    checked = 0
    for stage in ("01_stage", "02_stage"):
        for predictors in json.loads((finished_run / "stages" / stage / "metrics.json").read_text()).values():
            for figures in predictors.values():
                for line in (figures, *figures["labels"].values()):
                    assert f"{line['dice']:.3f}" in run_page.words
                    checked += 1
    assert checked == 2 * 2 + 2 * 3 + 2  # task 1 (one label), task 2 (two), task 1 again


def test_nothing_from_outside_is_loaded(run_page, comparison_folder):
    comparison = Page(write_comparison_report(comparison_folder).read_text())
    assert {value[:15] for tag, value in run_page.loads if tag == "img"} == {"data:image/png;"}
    assert [tag for tag, value in run_page.loads + comparison.loads if not value.startswith("data:")] == []


def test_markup_in_names_stays_text(finished_run, comparison_folder):
    for path in (write_report(finished_run), write_comparison_report(comparison_folder)):
        body = path.read_text().split("<body>")[1]
        assert set(Page(body).tags) <= {
            "header",
            "h1",
            "h2",
            "h3",
            "h4",
            "p",
            "span",
            "nav",
            "ol",
            "li",
            "a",
            "main",
            "section",
            "table",
            "thead",
            "tbody",
            "tr",
            "th",
            "td",
            "small",
            "b",
            "figure",
            "div",
            "script",
            "article",
            "ul",
            "img",
            "figcaption",
            "details",
            "summary",
            "code",
            "wbr",
        }
        assert body.count("<b>") == len(
            re.findall(r"Dice <b>\d\.\d{3}</b>", body)
        )  # the template's own, none from a name


@pytest.mark.parametrize(
    "name", ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "</script><script>alert(1)</script>"]
)
def test_hostile_text_in_every_file_is_escaped(run_copy, name):
    for path in [*run_copy.rglob("*.json"), *run_copy.rglob("*.jsonl")]:
        path.write_text(
            path.read_text()
            .replace("hippocampus", json.dumps(name)[1:-1])
            .replace("segmentation", json.dumps(name)[1:-1])
        )
    for path in run_copy.rglob("*.csv"):
        path.write_text(path.read_text().replace("case_0", '"' + name.replace('"', '""') + '"'))
    body = write_report(run_copy).read_text().split("<body>")[1]
    assert "alert(1)" in body
    assert "<script>alert" not in body
    assert "<img src=x" not in body


def test_a_run_that_has_just_begun_has_a_page(run_copy):
    manifest = json.loads((run_copy / "manifest.json").read_text())
    manifest["stages"] = []
    (run_copy / "manifest.json").write_text(json.dumps(manifest))
    words = Page(write_report(run_copy).read_text()).words
    assert "No task of 2 is evaluated yet." in words
    assert words.count("Not yet evaluated.") == words.count("Not yet trained.") == 2


def test_a_run_that_starts_every_stage_afresh_has_no_before_and_after(run_copy):
    path = run_copy / "stages/02_stage/metrics.json"
    path.write_text(json.dumps({"sub<i>fields": json.loads(path.read_text())["sub<i>fields"]}))
    text = " ".join(Page(write_report(run_copy).read_text()).words)
    assert "No earlier task was evaluated again" in text
    assert "after stage" not in text


def test_a_run_whose_files_are_half_there_has_a_page(run_copy):
    for name in ("metrics.json", "buffer.json", "cases.csv", "timing.jsonl"):
        (run_copy / "stages/02_stage" / name).unlink()
    text = " ".join(Page(write_report(run_copy).read_text()).words)
    assert "(adapted) over 1 of 2 tasks" in text
    assert "Scored, not yet chosen." in text


def test_the_same_run_gives_the_same_page(run_copy):
    first = write_report(run_copy).read_bytes()
    assert write_report(run_copy).read_bytes() == first


def test_the_comparison_shows_strategies_intervals_misses_and_cost(comparison_folder):
    page = Page(write_comparison_report(comparison_folder).read_text())
    text = "\n".join(page.words)
    for wanted in (
        "parallel",
        "naive <b>sequential</b>",
        "medseqft",
        "0 missed",
        "over seeds",
        "1\u202f920",
        "3 min 11 s",
        "no report yet",
    ):
        assert wanted in text
    assert len(re.findall(r"\[\d\.\d{3}, \d\.\d{3}\]", text)) == 12  # 3 strategies × (2 tasks, mean, later)
    # Three pairs × (mean, later, 2 tasks); two models × two numbers of labelled cases; the headline.
    assert len(re.findall(r"\[[+−]\d+\.\d, [+−]\d+\.\d\]", text)) == 12 + 4 + 1


def test_a_comparison_in_progress_has_a_page(comparison_folder):
    for path in comparison_folder.glob("*.csv"):
        path.unlink()
    words = Page(write_comparison_report(comparison_folder).read_text()).words
    assert "Not yet: no run is finished, or not all of them." in words
    assert "A comparison in progress" in words


def test_a_folder_that_is_no_run_is_refused_and_nothing_is_written(tmp_path):
    with pytest.raises(RunError):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []
