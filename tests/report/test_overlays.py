"""Pictures: the right slice, the right side up, in true proportions, and plain words where there is none."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from medseqft_kit.report.load import load_run
from medseqft_kit.report.overlays import STRUCTURE_COLOURS, best_slice, task_overlays
from medseqft_kit.tasks.nifti import write_labels, write_volume


def decoded(uri):
    assert uri.startswith("data:image/png;base64,")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGB"))


def first_stage(folder):
    run = load_run(folder)
    return task_overlays(run, run.stages[0])


def test_worst_cases_come_first_with_three_pictures_each(finished_run):
    run = load_run(finished_run)
    overlays = task_overlays(run, run.stages[1])
    assert (overlays.predictor, overlays.problem) == ("adapted", None)
    assert len(overlays.cases) == 3
    dice = [case.dice for case in overlays.cases]
    assert dice == sorted(dice)
    assert all(len(case.pictures) == 3 and case.problem is None for case in overlays.cases)
    assert [name for name, _ in overlays.legend] == ["anterior", "posterior & tail"]
    assert [label["label"] for label in overlays.cases[0].labels] == ["anterior", "posterior & tail"]


def test_not_more_than_six_cases_are_shown(run_copy):
    path = run_copy / "stages/01_stage/cases.csv"
    head, *rows = path.read_text().splitlines()
    more = [row.replace("case_01", f"more_{n}") for row in rows if "case_01" in row for n in range(9)]
    path.write_text("\n".join([head, *rows, *more]) + "\n")
    assert len(first_stage(run_copy).cases) == 6


def test_front_is_up_and_the_patients_right_is_on_the_left_whatever_the_file_order(run_copy, tmp_path):
    """A bright cube right, in front and above (RAS), stored with all axes turned and exchanged."""
    data = tmp_path / "data"
    shape, right, front = (20, 30, 40), slice(14, 18), slice(22, 28)
    image, label = np.zeros(shape, np.float32), np.zeros(shape, np.uint8)
    image[right, front, 30:34], label[right, front, 30:34] = 100, 1
    affine = np.diag([-1.0, 1.4, 1.0, 1.0])  # x runs to the left, y steps are 1.4 mm
    turn = [2, 0, 1]
    turned = np.eye(4)[:, [*turn, 3]]
    write_volume(data / "imagesTr/case_01.nii.gz", image.transpose(turn), affine @ turned)
    write_labels(data / "labelsTr/case_01.nii.gz", label.transpose(turn), affine @ turned)
    elsewhere = np.zeros_like(label)
    elsewhere[..., 5] = 1  # a false structure, larger than the true one
    write_labels(
        run_copy / "stages/01_stage/predictions/adapted/case_01.nii.gz", elsewhere.transpose(turn), affine @ turned
    )
    pairs = [{"image": "imagesTr/case_01.nii.gz", "label": "labelsTr/case_01.nii.gz"}]
    content = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "a", "2": "b"}, "training": pairs}
    (data / "dataset.json").write_text(json.dumps(content))
    manifest = json.loads((run_copy / "manifest.json").read_text())
    manifest["tasks"]["hippocampus"]["root"] = str(data)
    (run_copy / "manifest.json").write_text(json.dumps(manifest))

    case = next(case for case in first_stage(run_copy).cases if case.case == "case_01")
    assert (case.problem, case.place) == (None, "axial slice 31 of 40")
    grey, truth, prediction = (decoded(picture) for picture in case.pictures)
    assert grey.shape[:2] == (320, 152)  # 42 mm × 20 mm
    rows, columns = np.nonzero(grey[..., 0] > 128)
    assert rows.mean() < 320 * 0.4  # y 22…28 of 30: in front, so near the top
    # The file's x runs from right to left, so high x lies on the patient's left: on the right of the picture.
    assert columns.mean() > 152 * 0.6
    outline = tuple(bytes.fromhex(STRUCTURE_COLOURS[0][1:]))
    assert (truth == outline).all(axis=-1).sum() > 50
    assert np.array_equal(prediction, grey)  # nothing predicted in this slice, nothing painted


@pytest.mark.parametrize(
    ("spacing", "axis"), [((1, 1, 1), 2), ((1, 1, 5), 2), ((5, 1, 1), 0), ((1, 5, 1), 1), ((1.4, 1, 1), 2)]
)
def test_slices_lie_in_the_acquired_plane(spacing, axis):
    structure = np.zeros((5, 6, 7), dtype=bool)
    structure[1, 2, 3] = structure[1, 3, 3] = structure[2, 2, 3] = True
    assert best_slice(structure, spacing) == (axis, (1, 2, 3)[axis])


def test_an_empty_case_shows_the_middle():
    assert best_slice(np.zeros((4, 4, 9), dtype=bool), (1, 1, 1)) == (2, 4)


def test_a_data_set_that_moved_away_is_said_plainly(run_copy):
    manifest = json.loads((run_copy / "manifest.json").read_text())
    manifest["tasks"]["hippocampus"]["root"] = "/gone/<b>"
    (run_copy / "manifest.json").write_text(json.dumps(manifest))
    overlays = first_stage(run_copy)
    assert overlays.problem == "The images cannot be shown. The data set is not at /gone/<b> any more."
    assert overlays.cases == ()


def test_without_predictions_there_is_nothing_yet(run_copy):
    shutil.rmtree(run_copy / "stages/01_stage/predictions")
    assert first_stage(run_copy).problem == "Not yet: there are no predictions."


@pytest.mark.parametrize("damage", ["absent", "truncated", "other shape"])
def test_one_prediction_that_cannot_be_used_leaves_the_other_cases(run_copy, damage):
    path = run_copy / "stages/01_stage/predictions/adapted/case_01.nii.gz"
    if damage == "absent":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        write_labels(path, np.zeros((4, 4, 4), np.uint8), np.eye(4))
    cases = first_stage(run_copy).cases
    assert len(cases) == 3
    assert [bool(case.problem) for case in cases] == [case.case == "case_01" for case in cases]
    assert all(len(case.pictures) == (0 if case.problem else 3) for case in cases)
