"""`medseqft import` as a user meets it: what it says of a file, and the model that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from monai.networks.nets.segresnet import SegResNet
from typer.testing import CliRunner

import medseqft_kit as mk
from medseqft_kit.cli.app import app
from medseqft_kit.errors import ModelError


@pytest.fixture
def suprem(tmp_path: Path) -> Path:
    net = SegResNet(init_filters=16, out_channels=32, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))
    torch.save({"net": {f"module.{name}": value for name, value in net.state_dict().items()}}, tmp_path / "some.pth")
    return tmp_path / "some.pth"


def test_the_table_licence_preprocessing_and_next_step_are_printed_and_the_model_is_written(
    suprem: Path, tmp_path: Path
) -> None:
    out = tmp_path / "foundation.safetensors"
    result = CliRunner().invoke(app, ["import", str(suprem), "--out", str(out), "--channels", "2"])
    assert result.exit_code == 0, result.output
    for said in (
        "SuPreM",
        "NON-COMMERCIAL",
        "spacing: [1.5, 1.5, 1.5], window: [-175.0, 250.0]",
        "96 × 96 × 96",
        "segmentation head of 32 classes",
        "no SSL head",
        "divided by 2",
        str(out),
    ):
        assert said in result.output
    (row,) = (line.split("│")[1:-1] for line in result.output.splitlines() if line.startswith("│ backbone"))
    assert [cell.strip() for cell in row] == ["backbone", "80", "0", "1", "0", "0", "0"]
    model = mk.load_foundation(out)
    assert (model.spec.size, model.spec.channels, model.spec.objective) == ("base", 2, {"name": "none"})
    assert model.spec.origin["family"] == "SuPreM"


def test_what_cannot_be_imported_is_refused(suprem: Path) -> None:
    refused = CliRunner().invoke(app, ["import", str(suprem), "--patch-merging", "legacy"])
    assert isinstance(refused.exception, ModelError)
    assert "SwinUNETR alone" in str(refused.exception)
