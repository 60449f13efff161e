import io
import subprocess
import sys

import monai
import nibabel
import peft
import pytest
import torch
from rich.console import Console

from medseqft_kit.cli import doctor
from medseqft_kit.models import precision


@pytest.fixture
def rows() -> dict[str, doctor.Row]:
    found = doctor.diagnose()
    by_name = {row.name: row for row in found}
    assert len(by_name) == len(found), "a name occurs twice"
    return by_name


def test_versions_are_those_of_the_imported_modules(rows: dict[str, doctor.Row]) -> None:
    modules = {"torch": torch, "monai": monai, "peft": peft, "nibabel": nibabel}
    # The distribution's version carries no build tag where the module's may (2.13.0+cpu).
    compared = [rows[name].value.split("+")[0] == module.__version__.split("+")[0] for name, module in modules.items()]
    assert compared == [True] * 4


def test_a_missing_package_is_said_and_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", {"no-such-distribution-anywhere": "note"})
    assert doctor.Row("no-such-distribution-anywhere", "not installed", "note") in doctor.diagnose()


@pytest.mark.parametrize(
    ("flags", "name", "reason"),
    [({"avx2"}, "fp32", "no AMX"), ({"avx2", "avx512f", "amx_bf16"}, "bf16", "has AMX")],
    ids=["without-amx", "with-amx"],
)
def test_precision_follows_the_cpu_flags_and_says_why(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], name: str, reason: str
) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rows = {row.name: row for row in doctor.diagnose()}
    assert (rows["device"].value, rows["precision"].value) == ("cpu", name)
    assert reason in rows["precision"].note
    assert rows["CPU features"].value == ", ".join(flag for flag in doctor.FEATURES if flag in flags)


def test_only_our_environment_variables_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEQFT_EXAMPLE", "on")
    monkeypatch.setenv("SECRET_TOKEN", "never print this")
    rows = doctor.diagnose()
    assert doctor.Row("MEDSEQFT_EXAMPLE", "on", "environment variable") in rows
    assert "never print this" not in str(rows)


def test_every_operation_is_shown_with_the_backend_it_takes() -> None:
    rows = {row.name: row for row in doctor.diagnose()}
    assert "merged in fp32" in rows["lora_conv3d"].value
    assert [rows[name].value for name in ("lora_linear", "lora_conv_transpose3d")] == ["reference"] * 2


def test_the_table_shows_every_row_literally() -> None:
    out = io.StringIO()
    rows = [doctor.Row("[bold]name[/bold]", "value", "note"), doctor.Row("second", "2", "")]
    doctor.show(rows, Console(file=out, width=100))
    assert "[bold]name[/bold]" in out.getvalue()
    assert sum(line.count("second") for line in out.getvalue().splitlines()) == 1


def test_importing_the_module_loads_nothing_heavy() -> None:
    code = (
        "import sys, medseqft_kit.cli.doctor; print(sorted({'torch', 'monai', 'pandas', 'plotly'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
