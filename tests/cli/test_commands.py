"""The command line as a user meets it, on tiny phantoms."""

from __future__ import annotations

import io
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import yaml

from medseqft_kit.cli import app, main

COMMANDS = [command.__name__.rstrip("_") for command in app.COMMANDS]


def _medseqft(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """A command through the function that `medseqft` calls; in this process, where importing is done already."""
    command = ["medseqft", *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", command)
        patch.setenv("COLUMNS", "80")
        try:
            main()
            code: object = 0
        except SystemExit as end:
            code = end.code
    return subprocess.CompletedProcess(command, code if isinstance(code, int) else 0, out.getvalue(), err.getvalue())


def _process(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The same as a user starts it: a process of its own."""
    command = [sys.executable, "-m", "medseqft_kit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Phantoms and a configuration, made by the command line itself."""
    folder = tmp_path_factory.mktemp("cli")
    made = _medseqft("phantoms", folder / "data", "--cases", "5", "--side", "24")
    assert made.returncode == 0, made.stderr
    assert len(made.stdout.splitlines()) == 7
    config = {
        "foundation": {"pretrain": {"data": ["data/Phantom00_Unlabelled"], "steps": 3, "batch": 2, "cases": 3}},
        "model": {"size": "tiny", "patch": [8, 8, 8]},
        "tasks": [{"name": "liver", "data": "data/Phantom01_Liver", "train_cases": 2}],
        "strategy": {"buffer": {"k": 2, "max_draws": 16}, "lora": {"rank": 2}},
        "budget": {"steps": 3, "batch": 1, "checks": 1, "validation_cases": 1},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


@pytest.fixture(scope="module")
def run(workspace: Path) -> Path:
    result = _process("run", workspace / "config.yaml", "--out", workspace / "run")
    assert result.returncode == 0, result.stderr
    assert "liver" in result.stdout
    assert "report.html" in result.stdout
    return workspace / "run"


def test_help_lists_every_command_in_under_a_second() -> None:
    times = []
    for _ in range(3):
        start = time.perf_counter()
        shown = _process("--help")
        times.append(time.perf_counter() - start)
    assert all(command in shown.stdout for command in COMMANDS)
    code = "import sys, medseqft_kit.cli.app; print('torch' in sys.modules, 'pandas' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == ["False", "False"]
    assert min(times) < 1


MONAI_FROM_A_COMMAND = """
import sys
import medseqft_kit.cli
try:
    medseqft_kit.cli.main()
except SystemExit:
    pass
from monai.networks.nets.segresnet import SegResNet
print("loaded:", *(name for name in ("jsonschema", "lark", "transformers") if name in sys.modules))
import jsonschema, transformers
print("after:", jsonschema.Draft7Validator({}).is_valid(1), bool(transformers.__version__))
"""


def test_a_command_imports_monai_without_what_other_parts_of_it_need_and_hides_nothing_for_long() -> None:
    command = [sys.executable, "-c", MONAI_FROM_A_COMMAND, "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-2:] == ["loaded:", "after: True True"]


def test_a_run_is_shown_evaluated_and_continued(run: Path, workspace: Path) -> None:
    shown = _medseqft("evaluate", run)
    assert shown.returncode == 0, shown.stderr
    for word in ("liver", "adapted", "merged", "HD95 mm", "missed"):
        assert word in shown.stdout
    before = (run / "manifest.json").stat().st_mtime_ns
    again = _medseqft("run", workspace / "config.yaml", "--out", run)
    assert again.returncode == 0, again.stderr
    assert (run / "manifest.json").stat().st_mtime_ns == before


def test_predict_writes_in_the_images_own_geometry_and_label_values(run: Path, workspace: Path, tmp_path: Path) -> None:
    image = sorted((workspace / "data" / "Phantom01_Liver" / "imagesTr").glob("*.nii.gz"))[0]
    result = _medseqft("predict", run, image, "--out", tmp_path)
    assert result.returncode == 0, result.stderr
    written, original = (nib.Nifti1Image.from_filename(path) for path in (tmp_path / image.name, image))
    assert written.shape == original.shape
    np.testing.assert_allclose(written.affine, original.affine, atol=1e-5)
    assert set(np.unique(written.dataobj)) <= {0, 1, 2}


def test_predict_takes_a_folder_of_dicom_and_writes_dicom_seg_beside_the_nifti(
    run: Path, workspace: Path, tmp_path: Path, write_dicom: Callable[..., list[Path]]
) -> None:
    image = sorted((workspace / "data" / "Phantom01_Liver" / "imagesTr").glob("*.nii.gz"))[0]
    values = np.asarray(nib.Nifti1Image.from_filename(image).dataobj)
    write_dicom(tmp_path / "patient", values.T.astype(np.int16), spacing=(1.5, 1.5), RescaleIntercept="0")
    result = _medseqft("predict", run, tmp_path / "patient", "--out", tmp_path / "out", "--dicom-seg")
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == [str(tmp_path / "out" / name) for name in ("patient.nii.gz", "patient_seg.dcm")]
    refused = _medseqft("predict", run, tmp_path / "out/patient.nii.gz", "--out", tmp_path / "other", "--dicom-seg")
    assert refused.returncode == 1
    assert "DICOM series" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_predict_mixes_the_weights_of_both_models_where_it_is_asked_to(
    run: Path, workspace: Path, tmp_path: Path
) -> None:
    image = sorted((workspace / "data" / "Phantom01_Liver" / "imagesTr").glob("*.nii.gz"))[0]
    result = _medseqft("predict", run, image, "--out", tmp_path, "--merge")
    assert result.returncode == 0, result.stderr
    written = nib.Nifti1Image.from_filename(tmp_path / image.name)
    assert set(np.unique(written.dataobj)) <= {0, 1, 2}
    refused = _medseqft("predict", run, image, "--out", tmp_path / "other", "--merge", "--which", "merged")
    assert refused.returncode == 1
    assert "one of the two" in refused.stderr


def test_two_strategies_are_compared_over_two_tasks_and_serve_as_a_pilot(workspace: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((workspace / "config.yaml").read_text())
    chest = {"name": "chest", "data": str(workspace / "data" / "Phantom03_Lungs_Heart"), "train_cases": 2}
    config |= {"tasks": [*config["tasks"], chest], "compare": {"strategies": ["parallel"], "seeds": [0, 1]}}
    (workspace / "compared.yaml").write_text(yaml.safe_dump(config))
    command = ("compare", workspace / "compared.yaml", "--out", tmp_path, "--strategies", "parallel,sequential")
    result = _medseqft(*command, "--set", "budget.steps=3")
    assert result.returncode == 0, result.stderr
    for word in ("chest", "sequential", "Dice", "after the first", "report"):
        assert word in result.stdout
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "gains.csv").is_file()
    again = _medseqft(*command, "--set", "budget.steps=3", "--pilot", tmp_path)
    assert again.returncode == 0, again.stderr
    assert "sequential against parallel" in again.stdout
    refused = _medseqft(*command, "--set", "budget.stepz=3")
    assert refused.returncode == 1
    assert "did you mean `steps`" in refused.stderr


def test_a_run_goes_on_to_its_unseen_tasks_and_says_so_where_it_has_none(
    run: Path, workspace: Path, tmp_path: Path
) -> None:
    none = _medseqft("transfer", run)
    assert none.returncode == 1
    assert "no unseen task" in none.stderr
    config = yaml.safe_load((workspace / "config.yaml").read_text())
    lesions = {"name": "covid", "data": str(workspace / "data" / "Phantom05_CovidLesions")}
    (workspace / "unseen.yaml").write_text(yaml.safe_dump(config | {"unseen": [lesions], "label_budgets": [1]}))
    assert _medseqft("run", workspace / "unseen.yaml", "--out", tmp_path).returncode == 0
    result = _medseqft("transfer", tmp_path)
    assert result.returncode == 0, result.stderr
    for word in ("covid", "foundation", "scratch", "medseqft"):
        assert word in result.stdout
    assert (tmp_path / "transfer" / "transfer.csv").is_file()


def test_the_next_task_is_added_and_the_old_one_shown_again(run: Path, workspace: Path) -> None:
    result = _medseqft(
        "add", run, workspace / "data" / "Phantom03_Lungs_Heart", "--name", "chest", "--train-cases", "2"
    )
    assert result.returncode == 0, result.stderr
    stages = [line.split() for line in result.stdout.splitlines() if "liver" in line]
    assert len(stages) == 3  # adapted and merged before, merged after


def test_score_writes_scores_and_buffer_and_goes_on_where_it_stopped(
    run: Path, workspace: Path, tmp_path: Path
) -> None:
    weights, data = run / "foundation.safetensors", workspace / "data" / "Phantom01_Liver"
    command = ("score", weights, data, "--top-k", "2", "--max-draws", "32", "--out", tmp_path)
    result = _medseqft(*command)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "scores.csv").read_text().splitlines()[0] == "case,mean,low,high,draws"
    buffer = yaml.safe_load((tmp_path / "buffer.json").read_text())
    assert len(buffer["cases"]) == 2
    assert buffer["certificate"]["pairs"] == 2 * 3
    assert "of 6 pairs told apart (certified, delta 0.05)" in result.stdout
    blocks = sorted((tmp_path / "draws").glob("block_*.npz"))
    blocks[1].unlink()  # as if it had been interrupted
    kept = {path: path.stat().st_mtime_ns for path in blocks if path != blocks[1]}
    assert _medseqft(*command).stdout == result.stdout
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert blocks[1].is_file()


@pytest.mark.parametrize("method", ["mds", "highest", "random", "kmeans", "herding"])
def test_select_fills_a_buffer_in_every_way(method: str, run: Path, workspace: Path, tmp_path: Path) -> None:
    weights, data = run / "foundation.safetensors", workspace / "data" / "Phantom01_Liver"
    result = _medseqft(
        "select", weights, data, "--method", method, "--top-k", "2", "--max-draws", "16", "--out", tmp_path
    )
    assert result.returncode == 0, result.stderr
    buffer = yaml.safe_load((tmp_path / "buffer.json").read_text())
    assert len(buffer["cases"]) == 2
    assert buffer["settings"]["selection"] == method
    assert (tmp_path / "scores.csv").is_file() == (method in ("mds", "highest"))
    assert result.stdout.splitlines()[:2] == buffer["cases"]


def test_a_race_cannot_be_both_approximate_and_exhaustive(run: Path, workspace: Path, tmp_path: Path) -> None:
    weights, data = run / "foundation.safetensors", workspace / "data" / "Phantom01_Liver"
    both = ("--approximate", "--exhaustive")
    result = _medseqft("score", weights, data, "--top-k", "2", *both, "--out", tmp_path)
    assert result.returncode != 0
    assert "--approximate --exhaustive" in result.stderr
    assert "Traceback" not in result.stderr


def test_check_ends_with_one_on_errors_and_zero_without(workspace: Path, tmp_path: Path) -> None:
    assert _medseqft("check", workspace / "data" / "Phantom01_Liver").returncode == 0
    (tmp_path / "not_a_data_set").mkdir()
    wrong = _medseqft("check", tmp_path / "not_a_data_set")
    assert wrong.returncode == 1
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "missing.yaml", "--out", "x"), "missing.yaml cannot be read"),
        (("evaluate", "nowhere"), "not a run folder"),
        (("predict", "nowhere", "image.nii.gz", "--out", "x"), "not a run folder"),
        (("report", "nowhere"), "nowhere"),
    ],
)
def test_a_users_mistake_ends_in_its_message_not_in_a_traceback(arguments: tuple[str, ...], said: str) -> None:
    result = _medseqft(*arguments)
    assert result.returncode == 1
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_schedulers_sigterm_ends_a_run_at_a_step_and_the_same_command_continues(workspace: Path) -> None:
    config = yaml.safe_load((workspace / "config.yaml").read_text())
    config["budget"]["steps"] = 100_000
    (workspace / "long.yaml").write_text(yaml.safe_dump(config))
    arguments = ["run", str(workspace / "long.yaml"), "--out", str(workspace / "long")]
    manifest = workspace / "long" / "manifest.json"
    with subprocess.Popen(
        [sys.executable, "-m", "medseqft_kit", *arguments], stderr=subprocess.PIPE, text=True
    ) as process:
        end = time.monotonic() + 60
        while not (workspace / "long" / "stages" / "01_liver" / "buffer.json").exists() and time.monotonic() < end:
            time.sleep(0.1)
        time.sleep(1)
        process.send_signal(signal.SIGTERM)
        _, shown = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped after step" in shown
    assert "The same command continues from here" in shown
    assert manifest.exists()
    assert (workspace / "long" / "stages" / "01_liver" / "checkpoint_adapt.safetensors").exists()


def test_a_runs_landscape_and_drift_are_drawn_and_said_where(run: Path) -> None:
    shown = _medseqft("landscape", run, "--task", "liver", "--plane", "line", "--steps", "3", "--crops", "2")
    assert shown.returncode == 0, shown.stderr
    assert "3 points × 4 crops = 12 forward passes" in shown.stdout
    folder = run / "analysis" / "landscape" / "liver_line_M_0_M'_1"
    assert (folder / "landscape.json").is_file()
    assert "Loss and Dice along the line" in (folder / "landscape.html").read_text()
    both = _medseqft("landscape", run, run, "--task", "liver", "--steps", "2", "--crops", "2")
    assert both.returncode == 0, both.stderr
    assert (run / "analysis" / "landscape" / "liver_random_M'_1" / "landscapes.html").is_file()
    drifted = _medseqft("drift", run)
    assert drifted.returncode == 0, drifted.stderr
    assert "M'_1  of liver" in drifted.stdout
    assert (run / "analysis" / "drift" / "drift.html").is_file()
    unknown = (("--task", "lung"), "liver"), (("--task", "liver", "--models", "M_7"), "no model of this name")
    for arguments, said in unknown:
        refused = _medseqft("landscape", run, *arguments)
        assert refused.returncode == 1
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr


def test_models_on_a_line_span_no_plane_and_the_message_says_so(run: Path) -> None:
    refused = _medseqft("landscape", run, "--task", "liver", "--plane", "through", "--models", "M_0,M_1,M_1")
    assert refused.returncode == 1
    assert "three different models" in refused.stderr
    few = _medseqft("landscape", run, "--task", "liver", "--plane", "through", "--models", "M_0,M_1")
    assert few.returncode == 1
    assert "Traceback" not in few.stderr
