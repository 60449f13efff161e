"""Configurations: all mistakes at once, the nearest key named, paths beside the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from medseqft_kit.config import Config, changed_settings, load_config, parse_config, parse_task
from medseqft_kit.errors import ConfigError

ROOT = Path(__file__).resolve().parents[1]


def _smallest(**more: Any) -> dict[str, Any]:
    return {"foundation": {"weights": "m.safetensors"}, "tasks": [{"name": "a", "data": "d"}], **more}


def test_every_mistake_is_reported_with_the_nearest_key() -> None:
    wrong = _smallest(strategy={"bufer": {"k": 3}}, sed=1, budget={"steps": 0})
    wrong["tasks"][0]["lables"] = {"x": 1}
    with pytest.raises(ConfigError) as caught:
        parse_config(wrong)
    text = str(caught.value)
    for said in (
        "4 mistakes",
        "strategy.bufer: unknown key; did you mean `buffer`?",
        "sed: unknown key; did you mean `seed`?",
        "tasks.0.lables: unknown key; did you mean `labels`?",
        "budget.steps: Input should be greater than 0",
    ):
        assert said in text


def test_paths_are_taken_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    file = tmp_path / "sub" / "c.yaml"
    file.write_text(yaml.safe_dump(_smallest(tasks=[{"name": "a", "data": "../data/A"}])))
    config = load_config(file)
    assert config.tasks[0].data == tmp_path / "data" / "A"
    assert config.foundation.weights == tmp_path / "sub" / "m.safetensors"


def test_a_dumped_configuration_reads_back_equal() -> None:
    config = parse_config(_smallest(seed=3), base=Path("/base"))
    assert parse_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"foundation": {}}, "give `pretrain` or `weights`"),
        ({"tasks": [{"name": "a", "data": "d"}, {"name": "a", "data": "e"}]}, "twice: a"),
        ({"tasks": [{"name": "../a", "data": "d"}]}, "tasks.0.name"),
        ({"compare": {"orders": [["b"]]}}, "every task once"),
    ],
)
def test_what_cannot_be_run_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config({**_smallest(), **change})


def test_unreadable_files_and_broken_yaml_are_named(tmp_path: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [1")
    for name, said in (("none.yaml", "cannot be read"), ("broken.yaml", "is not YAML")):
        with pytest.raises(ConfigError, match=said):
            load_config(tmp_path / name)


def test_only_what_differs_from_the_defaults_is_called_changed() -> None:
    changed = changed_settings(parse_config(_smallest(strategy={"buffer": {"k": 8, "scope": "all"}})))
    assert changed["strategy"] == {"buffer": {"k": 8}}
    assert "budget" not in changed


def test_a_task_from_the_command_line_takes_its_mapping_as_yaml() -> None:
    section = parse_task(Path("Task04_Hippocampus"), None, "{front: 1, rest: [2, 3]}", 4)
    assert section.name == "Task04_Hippocampus"
    assert section.labels == {"front": 1, "rest": (2, 3)}
    assert parse_task(Path("amos22"), None, None, None, "MR").modality == "MR"
    with pytest.raises(ConfigError, match="a name of letters"):
        parse_task(Path("x"), "no/slash", None, None)
    with pytest.raises(ConfigError, match="CT, MR or PET"):
        parse_task(Path("x"), None, None, None, "US")


def test_shipped_configurations_are_valid() -> None:
    files = [*sorted((ROOT / "examples").glob("*.yaml")), ROOT / "medseqft_kit" / "cli" / "demo.yaml"]
    assert len(files) >= 5
    for file in files:
        assert isinstance(load_config(file), Config)
