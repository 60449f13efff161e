"""The project says what is true: commands exist, examples run, pins are exact, pages are current."""

from __future__ import annotations

import ast
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

import medseqft_kit
from medseqft_kit.config import parse_config

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMMANDS = re.findall(r"^\| `medseqft (\w+)", README, flags=re.MULTILINE)
FIXED = ["torch", "monai", "peft", "triton", "jupyterlab", "plotly", "loss-landscapes", "nibabel"]
HEAVY = "torch monai numpy pandas plotly scipy nibabel peft"
PUBLIC = [name for name in medseqft_kit.__all__ if name != "__version__"]


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def pages() -> list[Path]:
    return sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])


def requirements() -> list[Requirement]:
    extras = PYPROJECT["project"]["optional-dependencies"].values()
    return [
        Requirement(text) for text in [*PYPROJECT["project"]["dependencies"], *(one for some in extras for one in some)]
    ]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    assert all(len(pair) == 2 for pair in pairs), "every line of constraints.txt is NAME==VERSION"
    return {normal(name): version for name, version in pairs}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_make_knows_every_target_that_is_named_anywhere() -> None:
    sources = [*pages(), ROOT / ".ci" / "run"]
    code = "\n".join(text for page in sources for text in re.findall(r"`+[^`]+`+", page.read_text(encoding="utf-8")))
    named = set(re.findall(r"\bmake ([a-z]+)", code + (ROOT / ".ci" / "run").read_text(encoding="utf-8")))
    assert {"demo", "test", "setup", "lint"} <= named
    for target in named:
        run = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr


def test_ci_runs_the_readmes_own_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(f"make {target}" in script for target in ("demo", "test"))
    assert subprocess.run(["bash", "-n", ".ci/run"], cwd=ROOT, check=False).returncode == 0


def test_readme_lists_the_commands_that_there_are() -> None:
    from medseqft_kit.cli.app import app

    registered = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    assert registered == COMMANDS
    assert set(re.findall(r"\bmedseqft ([a-z]+) ", "\n".join(blocks(README, "bash")))) <= set(COMMANDS)


def test_examples_of_python_use_public_names() -> None:
    examples = blocks(README, "python")
    used = {
        node.attr
        for example in examples
        for node in ast.walk(ast.parse(example))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "mk"
    }
    assert len(examples) == 1
    assert {"load_task", "Sequence"} <= used <= set(medseqft_kit.__all__)


def test_examples_of_configurations_are_accepted() -> None:
    whole = [
        parse_config(yaml.safe_load(block))
        for page in pages()
        for block in blocks(page.read_text(encoding="utf-8"), "yaml")
        if "foundation:" in block
    ]
    assert len(whole) == 2
    assert all(len(config.tasks) == 2 for config in whole)


def test_links_between_pages_lead_somewhere() -> None:
    links = [
        (page, target)
        for page in pages()
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
        if not target.startswith("http")
    ]
    assert len(links) > 10
    assert [str(page) for page, target in links if not (page.parent / target).exists()] == []


def test_site_has_every_page_and_no_other() -> None:
    # mkdocs.yml is plain YAML as long as no plugin needs a Python tag.
    nav = [file for entry in yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"] for file in entry.values()]
    (tutorials,) = [entry for entry in nav if isinstance(entry, list)]
    assert tutorials == [f"notebooks/{path.stem}.md" for path in sorted((ROOT / "notebooks").glob("*.ipynb"))]
    assert sorted(set(nav[:1] + nav[2:])) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_python_page_shows_every_public_name() -> None:
    shown = re.findall(r"^::: medseqft_kit\.(\S+)$", (ROOT / "docs" / "api.md").read_text(), flags=re.MULTILINE)
    assert {f"{medseqft_kit._HOMES[name]}.{name}" for name in PUBLIC} <= set(shown)


def test_configuration_page_is_what_the_settings_say() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    tables = runpy.run_path(str(ROOT / "docs" / "configuration_tables.py"))
    assert tables["rendered"](page) == page, "run `make docs`"
    assert "|  |\n" not in page, "a key without a description"
    assert page.count("\n## `") == len(list(tables["sections"](tables["Config"]))) - 1 > 10


def test_method_page_names_every_open_choice() -> None:
    tables = runpy.run_path(str(ROOT / "docs" / "configuration_tables.py"))
    method = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    choices = [
        ".".join([*key.split(".")[1:], name])
        for key, section in tables["sections"](tables["Config"])
        for name, field in section.model_fields.items()
        if "[choice]" in (field.description or "")
    ]
    assert len(choices) >= 8
    assert [choice for choice in choices if f"`{choice}`" not in method] == []


def test_the_fixed_packages_are_declared() -> None:
    declared = {normal(requirement.name) for requirement in requirements()}
    assert set(FIXED) <= declared
    assert normal("jupyterlab") in map(normal, _names(PYPROJECT["project"]["optional-dependencies"]["notebooks"]))


def _names(texts: list[str]) -> list[str]:
    return [Requirement(text).name for text in texts]


def test_pins_are_exact_and_cover_what_is_declared() -> None:
    pinned = pins()
    assert pinned["torch"] == "2.13.0"  # no local version: a CPU and a CUDA build both satisfy it
    assert [name for name in pinned if name.startswith("nvidia") or name == "torchvision"] == []
    assert [version for version in pinned.values() if "+" in version] == []
    wrong = [str(r) for r in requirements() if not r.specifier.contains(pinned.get(normal(r.name), "0"))]
    assert wrong == []


@pytest.mark.parametrize("call", ["import medseqft_kit.cli", "from medseqft_kit.cli.app import app; app(['--help'])"])
def test_importing_the_package_and_asking_for_help_load_nothing_heavy(call: str) -> None:
    code = f"""
import sys
try:
    {call}
except SystemExit:
    pass
print("loaded:", *(name for name in "{HEAVY}".split() if name in sys.modules))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines()[-1] == "loaded:"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_name_is_there_and_documented(name: str) -> None:
    assert len((getattr(medseqft_kit, name).__doc__ or "").splitlines()[0]) > 10


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_tasks'"):
        _ = medseqft_kit.load_tasks


def test_lazy_names_and_names_for_type_checkers_agree() -> None:
    tree = ast.parse(Path(medseqft_kit.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    typed = {
        alias.name: (node.module or "").removeprefix("medseqft_kit.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert typed == medseqft_kit._HOMES
    assert sorted(typed) == sorted(PUBLIC)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not on this machine")
def test_no_source_file_is_ignored_by_git() -> None:
    files = [path for room in ("medseqft_kit", "kernels", "tests", "docs") for path in (ROOT / room).rglob("*")]
    sources = [str(path) for path in files if path.suffix in {".py", ".md", ".yaml", ".j2", ".css", ".typed"}]
    run = subprocess.run(
        ["git", "check-ignore", "--no-index", "--stdin"],
        cwd=ROOT,
        input="\n".join(sources),
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(sources) > 50
    assert run.stdout == ""
