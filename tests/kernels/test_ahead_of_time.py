"""Every shipped Triton kernel compiles for four GPUs that are not here, without spills, with matrix instructions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import medseqft_kernels

HERE = Path(__file__).parent
SOURCES = sorted(Path(medseqft_kernels.__file__).parent.glob("*/triton.py"))
OPERATIONS = [path.parent.name for path in SOURCES if "SHIPPED" in path.read_text()]
TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")


def test_every_operation_with_kernels_is_looked_at() -> None:
    assert len(OPERATIONS) == 6
    assert {path.parent.name for path in SOURCES} - set(OPERATIONS) == {"lora_linear"}  # takes lora_conv3d's


@pytest.mark.parametrize("target", TARGETS)
def test_shipped_kernels_compile(needs_triton: None, target: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, str(HERE / "compile_ahead.py"), target, *OPERATIONS]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)
    assert {row["operation"] for row in rows} == set(OPERATIONS)
    for row in rows:
        assert row["uses_matrix"] or not row["needs_matrix"], row
        if target == "sm_90":
            assert row["spilled"] == 0, row
        assert (row["spilled"] is None) == (target == "gfx942")
