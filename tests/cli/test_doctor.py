import io
import re
import subprocess
import sys
import time
from pathlib import Path

import monai
import nibabel
import peft
import pytest
import torch
import yaml
from rich.console import Console

from medseqft_kernels import dispatch
from medseqft_kit.cli import doctor
from medseqft_kit.models import precision
from medseqft_kit.models.foundation import FoundationModel


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


def test_measured_backends_are_shown_with_their_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEQFT_CACHE", str(tmp_path))
    assert {row.name: row for row in doctor.diagnose()}["kernels"].value == "nothing measured yet"
    quick, slow = (lambda: None), (lambda: time.sleep(0.01))
    dispatch.fastest("lora_conv3d: of some shape", torch.device("cpu"), lambda: {"reference": slow, "merged": quick})
    row = {row.name: row for row in doctor.diagnose()}["lora_conv3d: of some shape"]
    assert row.value == "merged"
    assert re.fullmatch(r"merged [\d.e-]+ ms, reference 1\d\.\d ms", row.note)


def test_a_forced_backend_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDSEQFT_KERNELS", "reference")
    assert doctor.Row("kernels", "reference", "forced by MEDSEQFT_KERNELS") in doctor.diagnose()


def test_tuning_fills_the_table_for_every_adapted_layer_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEDSEQFT_CACHE", str(tmp_path / "cache"))
    config = {
        "foundation": {"pretrain": {"data": ["."]}},
        "model": {"size": "tiny", "patch": [8, 8, 8]},
        "strategy": {"lora": {"rank": 2}},
        "budget": {"batch": 1},
        "compute": {"precision": "fp32"},
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    doctor.tune_kernels(tmp_path / "config.yaml")
    table = dispatch.read_table(torch.device("cpu"))
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8))
    shapes = {tuple(each.weight.shape) for each in model.backbone.modules() if isinstance(each, torch.nn.Conv3d)}
    asked = {re.search(r"weight ([\dx]+)", question)[1] for question in table}  # type: ignore[index]
    assert len(asked) >= 5
    assert asked == {"x".join(map(str, shape)) for shape in shapes}
    assert all("rank 2" in question for question in table)
    assert all(set(row["seconds"]) >= {"reference", "merged-projected"} for row in table.values())


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
