"""Whole sequences on tiny phantoms: what a run leaves, how it resumes, how it grows, what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel

from medseqft_kernels.dispatch import fastest, pinned
from medseqft_kit.errors import ConfigError, DataError, RunError
from medseqft_kit.evaluation.load import load_predictor
from medseqft_kit.models.foundation import FoundationModel, load_foundation
from medseqft_kit.progress import Progress
from medseqft_kit.runs.folder import RunFolder
from medseqft_kit.runs.history import read_rows
from medseqft_kit.settings import Settings
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tuning.manifest import KernelChoices
from medseqft_kit.tuning.plan import TaskPlan
from medseqft_kit.tuning.run import Run
from medseqft_kit.tuning.sequence import Sequence

Hashes = Callable[[Path], dict[str, str]]
MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, plans: list[TaskPlan], settings_for: MakeSettings) -> Path:
    """An uninterrupted MedSeqFT run over two tasks; not to be written to."""
    out = tmp_path_factory.mktemp("run") / "out"
    Sequence(out, FoundationModel.build(size="tiny", patch=(8, 8, 8), seed=1), settings_for()).fit(plans)
    return out


def test_a_run_leaves_every_file_of_the_contract(finished: Path) -> None:
    manifest = json.loads((finished / "manifest.json").read_text())
    assert [stage["folder"] for stage in manifest["stages"]] == ["01_liver", "02_lungs_heart"]
    wanted = (
        "scores.csv", "buffer.json", "adapted.safetensors", "head.safetensors", "adapter/adapter_config.json",
        "merged.safetensors", "cases.csv", "metrics.json", "history.jsonl",
    )  # fmt: skip
    checked = 0
    for stage in manifest["stages"]:
        assert stage["done"]
        for name in wanted:
            assert name in stage["files"], name
            checked += 1
        assert (finished / "stages" / stage["folder"] / "timing.jsonl").is_file()
    assert checked == 18
    assert not list(finished.rglob("checkpoint_*"))
    entry = manifest["tasks"]["liver"]
    assert len(entry["train_cases"]) == 2
    assert not set(entry["train_cases"]) & set(entry["split"]["test"])


def test_the_manifest_holds_the_kernel_backend_of_every_adapted_shape(finished: Path) -> None:
    backends = json.loads((finished / "manifest.json").read_text())["compute"]["backends"]
    assert len(backends) >= 5
    assert all(question.startswith("lora_conv3d: x ") for question in backends)


def test_a_run_that_continues_keeps_the_backends_it_began_with(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, {"compute": {"backends": {"known": "as it began"}}})
    with pinned(KernelChoices(folder)):
        assert fastest("known", torch.device("cpu"), dict) == "as it began"
        assert fastest("new", torch.device("cpu"), lambda: {"reference": lambda: None}) == "reference"
    written = json.loads((tmp_path / "manifest.json").read_text())
    assert written["compute"]["backends"] == {"known": "as it began", "new": "reference"}


def test_both_predictors_are_reported_and_old_tasks_before_and_after(finished: Path) -> None:
    cases = Run(finished).cases()
    found = set(zip(cases["stage"], cases["task"], cases["predictor"], strict=True))
    assert found == {
        (1, "liver", "adapted"), (1, "liver", "merged"),
        (2, "lungs_heart", "adapted"), (2, "lungs_heart", "merged"), (2, "liver", "merged"),
    }  # fmt: skip


def test_history_names_every_term_and_reports_fidelity(finished: Path) -> None:
    rows = read_rows(finished / "stages" / "02_lungs_heart" / "history.jsonl")
    adapt = [row for row in rows if row["phase"] == "adapt" and "total" in row]
    consolidate = [row for row in rows if row["phase"] == "consolidate" and "total" in row]
    assert len(adapt) == 4
    assert {"dice", "cross_entropy", "distillation"} <= set(adapt[0])
    assert 2 <= len(consolidate) <= 8
    assert {"features", "logits"} <= set(consolidate[0])
    assert rows[-1]["fidelity"] >= 0
    assert rows[-1]["merge_difference"] < 1e-4


def test_the_merged_model_differs_from_the_previous_one_by_the_adapter_alone(finished: Path) -> None:
    stages = finished / "stages"
    before = load_foundation(stages / "01_liver" / "merged.safetensors")
    after = load_foundation(stages / "02_lungs_heart" / "merged.safetensors")
    weight = "net.up_layers.0.0.conv1.conv.weight"
    moved = (after.backbone.get_parameter(weight) - before.backbone.get_parameter(weight)).flatten(1)
    assert 0 < torch.linalg.matrix_rank(moved.double(), rtol=1e-4) <= 2  # r = 2
    for name, value in before.heads["liver"].state_dict().items():
        assert torch.equal(after.heads["liver"].state_dict()[name], value)


def test_peft_loads_the_adapter_onto_the_previous_backbone(finished: Path) -> None:
    previous = load_foundation(finished / "stages" / "01_liver" / "merged.safetensors")
    adapted = PeftModel.from_pretrained(previous.backbone, finished / "stages" / "02_lungs_heart" / "adapter")
    weights = [value for name, value in adapted.named_parameters() if "lora_B" in name]
    assert len(weights) > 10
    assert all(weight.abs().sum() > 0 for weight in weights)


class _Killed(BaseException):
    """Stands for a process that ends where it is."""


def _killing(after: int) -> Progress:
    calls = iter(range(after))

    def progress(label: str, done: int, total: int, note: str = "") -> None:
        if next(calls, None) is None:
            raise _Killed

    return progress


@pytest.mark.usefixtures("as_users_run_it")
@pytest.mark.parametrize("after", [3, 14, 20, 27, 36])
def test_a_killed_run_resumes_to_the_same_bytes(
    after: int, finished: Path, tmp_path: Path, plans: list[TaskPlan], settings_for: MakeSettings, hashes: Hashes
) -> None:
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8), seed=1)
    with pytest.raises(_Killed):
        Sequence(tmp_path / "run", model, settings_for(), _killing(after)).fit(plans)
    Sequence(tmp_path / "run", model, settings_for(compute={"precision": "fp32", "workers": 0})).fit(plans)
    found, expected = hashes(tmp_path / "run"), hashes(finished)
    del found["manifest.json"], expected["manifest.json"]  # `workers` differs there, and nothing else may
    assert found == expected
    assert len(found) > 20


def test_what_a_killed_process_had_begun_to_write_is_gone_when_the_run_goes_on(
    finished: Path, tmp_path: Path, plans: list[TaskPlan], settings_for: MakeSettings, hashes: Hashes
) -> None:
    """Else the manifest would list it among the stage's files."""
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8), seed=1)
    with pytest.raises(_Killed):
        Sequence(tmp_path / "out", model, settings_for(), _killing(14)).fit(plans)
    begun = tmp_path / "out" / "stages" / "01_liver" / ".metrics.json.tmp-12345"
    begun.write_text("{")
    Sequence(tmp_path / "out", model, settings_for()).fit(plans)
    assert not begun.exists()
    assert hashes(tmp_path / "out") == hashes(finished)


def test_a_finished_run_is_not_redone(
    finished: Path, plans: list[TaskPlan], settings_for: MakeSettings, model: FoundationModel
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}
    Sequence(finished, model, settings_for(), _killing(0)).fit(plans)
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"} == before


def test_adding_a_task_leaves_the_rest_as_it_was(
    finished: Path, tmp_path: Path, phantoms: dict[str, Path], hashes: Hashes
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    before = hashes(tmp_path / "run" / "stages")
    task = load_task(phantoms["Phantom02_Spleen_Kidneys"], "spleen_kidneys")
    run = Run(tmp_path / "run").add(TaskPlan(task, train_cases=2))
    after = hashes(tmp_path / "run" / "stages")
    assert {name: after[name] for name in before} == before
    assert run.tasks == ("liver", "lungs_heart", "spleen_kidneys")
    cases = run.cases()
    latest = cases[cases["stage"] == 3]
    assert set(latest["task"]) == {"liver", "lungs_heart", "spleen_kidneys"}
    with pytest.raises(RunError, match="has a task 'spleen_kidneys' already"):
        run.add(TaskPlan(task, train_cases=2))


def test_volumes_are_scaled_as_the_models_weights_expect(
    tmp_path: Path, plans: list[TaskPlan], settings_for: MakeSettings, model: FoundationModel
) -> None:
    model.spec = replace(model.spec, scale=(0.0, 1.0))
    settings, out = settings_for("parallel"), tmp_path / "run"
    run = Sequence(out, model, settings).fit(plans[:1])
    Sequence(out, model, settings).fit(plans[:1])  # it continues, and finds itself as it was
    run.add(plans[1])
    assert load_predictor(out, plans[1].task.name).preprocessing.scale == (0.0, 1.0)
    images = [np.load(file) for file in out.glob("store/*/image.npy")]
    assert len(images) >= 6
    assert {float(image.min()) for image in images} == {0.0}
    assert all(0.9 < float(image.max()) <= 1.0 for image in images)


def test_other_settings_and_other_tasks_are_refused(
    finished: Path, plans: list[TaskPlan], settings_for: MakeSettings, model: FoundationModel
) -> None:
    with pytest.raises(RunError, match=r"seed = 0"):
        Sequence(finished, model, settings_for(seed=7)).fit(plans)
    with pytest.raises(RunError, match="other tasks"):
        Sequence(finished, model, settings_for()).fit(plans[::-1])


def test_a_damaged_stage_is_noticed_before_the_next_one_starts(
    finished: Path, tmp_path: Path, phantoms: dict[str, Path]
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    torn = tmp_path / "run" / "stages" / "01_liver" / "merged.safetensors"
    torn.write_bytes(torn.read_bytes()[:-1])
    with pytest.raises(RunError, match=r"merged\.safetensors is not what this run wrote"):
        Run(tmp_path / "run").add(load_task(phantoms["Phantom02_Spleen_Kidneys"], "more"))


def test_a_corrupt_file_of_the_last_task_stops_before_any_training(
    tmp_path: Path, phantoms: dict[str, Path], plans: list[TaskPlan], settings_for: MakeSettings, model: FoundationModel
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(phantoms["Phantom02_Spleen_Kidneys"], broken)
    image = sorted((broken / "imagesTr").glob("*.nii.gz"))[-1]
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(DataError, match=r"training was not started") as caught:
        Sequence(tmp_path / "run", model, settings_for()).fit([*plans, TaskPlan(load_task(broken, "broken"))])
    assert image.name in str(caught.value)
    assert not (tmp_path / "run" / "manifest.json").exists()
    assert not (tmp_path / "run" / "stages").exists()


def test_changed_data_is_noticed_when_a_run_continues(
    tmp_path: Path, phantoms: dict[str, Path], settings_for: MakeSettings, model: FoundationModel
) -> None:
    copied = tmp_path / "data"
    shutil.copytree(phantoms["Phantom01_Liver"], copied)
    plan = TaskPlan(load_task(copied, "liver"), train_cases=2)
    with pytest.raises(_Killed):
        Sequence(tmp_path / "run", model, settings_for(), _killing(12)).fit([plan])
    for image in (copied / "imagesTr").glob("*.nii.gz"):
        image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(DataError, match="not those that the run began with"):
        Sequence(tmp_path / "run", model, settings_for()).fit([plan])


def test_the_callers_model_random_state_and_threads_are_left_alone(
    tmp_path: Path,
    plans: list[TaskPlan],
    settings_for: MakeSettings,
    model: FoundationModel,
    random_state_untouched: None,
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.set_num_threads(2)
    Sequence(tmp_path / "run", model, settings_for()).fit(plans[:1])
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert list(model.heads) == []
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert (threads, model.training) == (2, True)


def test_tasks_that_cannot_be_told_apart_are_refused(
    tmp_path: Path, phantoms: dict[str, Path], plans: list[TaskPlan], settings_for: MakeSettings, model: FoundationModel
) -> None:
    for tasks in ([], [plans[0], plans[0]]):
        with pytest.raises(ConfigError, match="told apart"):
            Sequence(tmp_path / "run", model, settings_for()).fit(tasks)
    with pytest.raises(ConfigError, match="cannot name a task"):
        TaskPlan(load_task(phantoms["Phantom01_Liver"], "liver.v2"))
