"""Small folders in the layouts of public data sets, written by SimpleITK, pydicom and Pillow to vouch for our readers.

Images are random, 7 × 9 × 6 voxels of 0.7 × 0.8 × 3 mm, oblique, in SimpleITK's LPS; each layout has two labelled cases
and, where the data set has such, one without a label.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import SimpleITK as sitk  # noqa: N813
from PIL import Image

GRID = (7, 9, 6)
SPACING = (0.7, 0.8, 3.0)
ORIGIN = (11.0, -23.5, 40.25)
ANGLE = np.deg2rad(20.0)
TURN = np.array([[np.cos(ANGLE), -np.sin(ANGLE), 0.0], [np.sin(ANGLE), np.cos(ANGLE), 0.0], [0.0, 0.0, -1.0]])
TURN[:, 0] *= -1  # right-handed again: ITK writes no qform otherwise
AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.block([
    [TURN * SPACING, np.array(ORIGIN)[:, None]],
    [np.zeros((1, 3)), np.ones((1, 1))],
])  # fmt: skip
"""What SimpleITK's direction, spacing and origin mean in RAS+."""


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(-900, 900, GRID).astype(np.int16)


def label(*values: int) -> np.ndarray:
    """Each value somewhere, and more often the later it is named."""
    drawn = np.zeros(GRID, np.uint8)
    for position, value in enumerate(values):
        drawn[position % 7, position // 7 : position // 7 + 1, : 2 + position % 4] = value
    return drawn


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    volume = sitk.GetImageFromArray(np.ascontiguousarray(values.T))
    volume.SetSpacing(SPACING)
    volume.SetOrigin(ORIGIN)
    volume.SetDirection(TURN.ravel().tolist())
    sitk.WriteImage(volume, str(path))


@dataclass
class Written:
    """What was written: by case the images of its channels and the label, and the ids of unlabelled cases."""

    layout: str
    names: Mapping[str, int]
    images: dict[str, list[np.ndarray]] = field(default_factory=dict)
    labels: dict[str, np.ndarray] = field(default_factory=dict)
    unlabelled: set[str] = field(default_factory=set)
    channels: tuple[str, ...] = ("CT",)
    modality: str | None = None
    affine: np.ndarray = field(default_factory=lambda: AFFINE)

    def pair(self, case: str, image_file: Path, label_file: Path, *values: int) -> None:
        seed = len(self.images)
        self.images[case], self.labels[case] = [image(seed)], label(*(values or self.names.values()))
        save(image_file, self.images[case][0])
        save(label_file, self.labels[case])

    def alone(self, case: str, image_file: Path) -> None:
        self.unlabelled.add(case)
        save(image_file, image(77 + len(self.unlabelled)))


def covid19_20(root: Path) -> Written:
    done = Written("covid19_20", {"lesion": 1})
    for case in ("volume-covid19-A-0003", "volume-covid19-A-0011"):
        done.pair(case, root / "Train" / f"{case}_ct.nii.gz", root / "Train" / f"{case}_seg.nii.gz")
    done.alone("volume-covid19-A-0100", root / "Validation" / "volume-covid19-A-0100_ct.nii.gz")
    return done


def kits19(root: Path) -> Written:
    done = Written("kits19", {"kidney": 1, "tumor": 2})
    for case in ("case_00003", "case_00016"):
        done.pair(case, root / "data" / case / "imaging.nii.gz", root / "data" / case / "segmentation.nii.gz")
    done.alone("case_00210", root / "data" / "case_00210" / "imaging.nii.gz")
    (root / "data" / "kits.json").write_text("[]")
    return done


def kits21(root: Path) -> Written:
    done = Written("kits21", {"kidney": 1, "tumor": 2, "cyst": 3})
    for case in ("case_00003", "case_00299"):
        folder = root / "kits21" / "data" / case
        done.pair(case, folder / "imaging.nii.gz", folder / "aggregated_MAJ_seg.nii.gz")
        save(folder / "aggregated_OR_seg.nii.gz", label(3))
        save(folder / "segmentations" / "kidney_instance-1_annotation-1.nii.gz", label(1))
    return done


def kits23(root: Path) -> Written:
    done = Written("kits23", {"kidney": 1, "tumor": 2, "cyst": 3})
    for case in ("case_00003", "case_00588"):
        folder = root / "dataset" / case
        done.pair(case, folder / "imaging.nii.gz", folder / "segmentation.nii.gz")
        save(folder / "instances" / "kidney_instance-1_annotation-1.nii.gz", label(1))
    return done


ORGANS_OF_AMOS = (  # noqa: SIM905 - a list of fifteen words is read as words
    "spleen right_kidney left_kidney gallbladder esophagus liver stomach aorta inferior_vena_cava pancreas "
    "right_adrenal_gland left_adrenal_gland duodenum bladder prostate_or_uterus"
).split()


def amos22(root: Path) -> Written:
    done = Written("amos22", {name: value for value, name in enumerate(ORGANS_OF_AMOS, 1)}, modality="MR")
    done.channels = ("MR",)
    for part, case in (("Tr", "amos_0507"), ("Va", "amos_0540")):
        done.pair(
            case, root / f"images{part}" / f"{case}.nii.gz", root / f"labels{part}" / f"{case}.nii.gz", *range(1, 14)
        )
    done.alone("amos_0600", root / "imagesTs" / "amos_0600.nii.gz")
    save(root / "imagesTr" / "amos_0500.nii.gz", image(50))
    save(root / "labelsTr" / "amos_0500.nii.gz", label(*range(1, 16)))
    (root / "dataset.json").write_text('{"modality": {"0": "CT"}, "labels": {"0": "background", "1": "spleen"}}')
    return done


def btcv(root: Path) -> Written:
    names = (
        "spleen right_kidney left_kidney gallbladder esophagus liver stomach aorta inferior_vena_cava "
        "portal_and_splenic_veins pancreas right_adrenal_gland left_adrenal_gland"
    )
    done = Written("btcv", {name: value for value, name in enumerate(names.split(), 1)})
    training = root / "RawData" / "Training"
    for number in ("0001", "0040"):
        done.pair(
            f"img{number}", training / "img" / f"img{number}.nii.gz", training / "label" / f"label{number}.nii.gz"
        )
    done.alone("img0061", root / "RawData" / "Testing" / "img" / "img0061.nii.gz")
    return done


def totalsegmentator(root: Path) -> Written:
    """Three of the 117 masks, the last structure among them; the others were not drawn."""
    done = Written("totalsegmentator", {"liver": 5, "esophagus": 15, "costal_cartilages": 117})
    for seed, case in enumerate(("s0003", "s1429")):
        done.images[case], done.labels[case] = [image(seed)], label(5, 15, 117)
        save(root / case / "ct.nii.gz", done.images[case][0])
        for name, value in done.names.items():
            save(root / case / "segmentations" / f"{name}.nii.gz", (done.labels[case] == value).astype(np.uint8))
    (root / "meta.csv").write_text("image_id;split\ns0003;train\n")
    return done


def brats2021(root: Path) -> Written:
    return _brats(root, ("BraTS2021_00000", "BraTS2021_00002"), ("_t1", "_t1ce", "_t2", "_flair"), "_seg", (1, 2, 4))


def brats2023(root: Path) -> Written:
    cases = ("BraTS-GLI-00000-000", "BraTS-GLI-00000-001")
    return _brats(root, cases, ("-t1n", "-t1c", "-t2w", "-t2f"), "-seg", (1, 2, 3))


def brats2024(root: Path) -> Written:
    cases = ("BraTS-GLI-02063-100", "BraTS-GLI-02064-101")
    done = _brats(root, cases, ("-t1n", "-t1c", "-t2w", "-t2f"), "-seg", (1, 2, 3, 4))
    return done


def _brats(
    root: Path, cases: tuple[str, ...], contrasts: tuple[str, ...], seg: str, values: tuple[int, ...]
) -> Written:
    names = ("necrotic_core", "edema", "enhancing_tumor", "resection_cavity")
    done = Written("brats", dict(zip(names, values, strict=False)), channels=("MR",) * 4)
    for first, case in enumerate(cases):
        done.images[case] = [image(10 * first + number) for number in range(4)]
        done.labels[case] = label(*values)
        for contrast, volume in zip(contrasts, done.images[case], strict=True):
            save(root / "TrainingData" / case / f"{case}{contrast}.nii.gz", volume)
        save(root / "TrainingData" / case / f"{case}{seg}.nii.gz", done.labels[case])
    case = f"{cases[0][:-3]}999" if seg == "_seg" else f"{cases[0].rpartition('-')[0]}-{cases[0][-3]}09"
    done.unlabelled.add(case)
    for number, contrast in enumerate(contrasts):
        save(root / "ValidationData" / case / f"{case}{contrast}.nii.gz", image(60 + number))
    return done


ORGANS_OF_FLARE = (  # noqa: SIM905 - as above
    "liver right_kidney spleen pancreas aorta inferior_vena_cava right_adrenal_gland left_adrenal_gland gallbladder "
    "esophagus stomach duodenum left_kidney"
).split()


def flare22(root: Path) -> Written:
    done = Written("flare22", {name: value for value, name in enumerate(ORGANS_OF_FLARE, 1)})
    part, tuning = root / "Training" / "FLARE22_LabeledCase50", root / "Tuning"
    case = "FLARE22_Tr_0001"
    done.pair(case, part / "images" / f"{case}_0000.nii.gz", part / "labels" / f"{case}.nii.gz")
    files = tuning / "images" / "FLARETs_0001_0000.nii.gz", tuning / "labels" / "FLARETs_0001.nii.gz"
    done.pair("Tuning_FLARETs_0001", *files)
    done.alone("Testing_FLARETs_0001", root / "Testing" / "FLARETs_0001_0000.nii.gz")
    done.alone("Case_00001", root / "Training" / "FLARE22_UnlabeledCase1-1000" / "Case_00001_0000.nii.gz")
    return done


def flare23(root: Path) -> Written:
    done = Written("flare23", {name: value for value, name in enumerate([*ORGANS_OF_FLARE, "tumor"], 1)})
    images, labels = root / "imagesTr2200", root / "labelsTr2200"
    case = "FLARE23_0001"
    done.pair(case, images / f"{case}_0000.nii.gz", labels / f"{case}.nii.gz", 1, 2, 3, 4, 13, 14)
    case = "FLARE23_0002"
    done.pair(case, images / f"{case}_0000.nii.gz", labels / "20230507-fix" / f"{case}.nii.gz", 14)
    save(labels / f"{case}.nii.gz", label(1))  # as it was before the correction
    done.alone("FLARE23_2201", root / "unlabelTr1800" / "FLARE23_2201.nii.gz")
    done.alone("FLARE23Ts_0001", root / "validation" / "FLARE23Ts_0001_0000.nii.gz")
    return done


def lits(root: Path) -> Written:
    done = Written("lits", {"liver": 1, "tumor": 2})
    for batch, number in (("Training Batch 1", 2), ("Training Batch 2", 130)):
        done.pair(
            f"volume-{number}", root / batch / f"volume-{number}.nii", root / batch / f"segmentation-{number}.nii"
        )
    done.alone("test-volume-0", root / "test-volume-0.nii")
    return done


def lits_in_one_folder(root: Path) -> Written:
    done = Written("lits", {"liver": 1, "tumor": 2})
    for number in (2, 10):
        done.pair(f"volume-{number}", root / f"volume-{number}.nii", root / f"segmentation-{number}.nii")
    return done


def acdc(root: Path) -> Written:
    done = Written("acdc", {"right_ventricle": 1, "myocardium": 2, "left_ventricle": 3}, channels=("MR",))
    for part, case in (
        ("training", "patient001_frame01"),
        ("training", "patient001_frame12"),
        ("testing", "patient101_frame01"),
    ):
        folder = root / "database" / part / case[:10]
        done.pair(case, folder / f"{case}.nii.gz", folder / f"{case}_gt.nii.gz")
        save(folder / f"{case[:10]}_4d.nii.gz", image(5))
        (folder / "Info.cfg").write_text("ED: 1\nES: 12\n")
    return done


def bids_masks(root: Path) -> Written:
    """Two structures, one mask each, and a subject that has one of them only; another without any."""
    done = Written("bids", {"kidney": 1, "tumour": 2}, channels=("MR",))
    (root / "dataset_description.json").parent.mkdir(parents=True, exist_ok=True)
    (root / "dataset_description.json").write_text("{}")
    for seed, (subject, values) in enumerate({"01": (1, 2), "02": (2,)}.items()):
        case = f"sub-{subject}_ses-1_run-2_T1w"
        done.images[case], done.labels[case] = [image(seed)], label(*values)
        save(root / f"sub-{subject}" / "ses-1" / "anat" / f"{case}.nii.gz", done.images[case][0])
        for name, value in done.names.items():
            if value in values:
                mask = f"{case}_label-{name}_mask.nii.gz"
                drawn = (done.labels[case] == value).astype(np.uint8)
                save(root / "derivatives" / "manual" / f"sub-{subject}" / "ses-1" / "anat" / mask, drawn)
    done.alone("sub-03_ses-1_T1w", root / "sub-03" / "ses-1" / "anat" / "sub-03_ses-1_T1w.nii.gz")
    return done


def bids_maps(root: Path) -> Written:
    """Values in a dseg with a table of names; a second contrast that the label's name does not mean."""
    done = Written("bids", {"vertebra": 20, "disc": 300}, channels=("MR",))
    labels = root / "derivatives" / "labels"
    for seed, subject in enumerate(("a", "b")):
        case = f"sub-{subject}_T2w"
        values = label(20, 21).astype(np.int16)
        values[values == 21] = 300
        done.images[case], done.labels[case] = [image(seed)], values
        save(root / f"sub-{subject}" / "anat" / f"{case}.nii.gz", done.images[case][0])
        save(labels / f"sub-{subject}" / "anat" / f"{case}_label-spine_dseg.nii.gz", values)
        done.alone(f"sub-{subject}_T1w", root / f"sub-{subject}" / "anat" / f"sub-{subject}_T1w.nii.gz")
    (labels / "dseg.tsv").write_text("index\tname\n0\tbackground\n300\tdisc\n20\tvertebra\n")
    return done


def chaos(root: Path, write_dicom: Callable[..., list[Path]], backwards: bool = False) -> Written:
    """One MR patient with three series and one CT patient; names of files may run against their positions."""
    done = Written("chaos", {"liver": 63, "right_kidney": 126, "left_kidney": 189, "spleen": 252}, modality="MR")
    done.channels = ("MR",)
    order = [5, 4, 3, 2, 1, 0] if backwards else list(range(6))
    mr = root / "Train_Sets" / "MR" / "7"
    for case, series, ground in (
        ("MR_7_T1DUAL_InPhase", mr / "T1DUAL" / "DICOM_anon" / "InPhase", mr / "T1DUAL" / "Ground"),
        ("MR_7_T1DUAL_OutPhase", mr / "T1DUAL" / "DICOM_anon" / "OutPhase", mr / "T1DUAL" / "Ground"),
        ("MR_7_T2SPIR", mr / "T2SPIR" / "DICOM_anon", mr / "T2SPIR" / "Ground"),
    ):
        values = image(len(done.images)) + 1000
        drawn = label(63, 126, 189, 252)
        write_dicom(series, values.T, order=order, Modality="MR", RescaleIntercept="0")
        done.images[case], done.labels[case] = [values], drawn
        for place, name in enumerate(order):
            _picture(ground / f"IMG-0004-{name:05d}.png", (drawn[..., place] + 2 * (drawn[..., place] == 63)).T)
    _chaos_ct(root / "Train_Sets" / "CT" / "1", write_dicom, order)
    done.affine = np.diag([-0.6, -0.8, 2.5, 1.0])
    done.affine[:3, 3] = [20.5, -31.0, 7.25]
    return done


def _chaos_ct(patient: Path, write_dicom: Callable[..., list[Path]], order: list[int]) -> None:
    liver = label(1, 1) > 0
    values = np.where(liver, 110, -100).astype(np.int16)
    write_dicom(patient / "DICOM_anon", values.T + 1024, order=order)
    for place, name in enumerate(order):
        _picture(patient / "Ground" / f"liver_GT_{name:03d}.png", liver[..., place].T)


def _picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8) if pixels.dtype != bool else pixels).save(path)


WRITERS: dict[str, Callable[[Path], Written]] = {
    writer.__name__: writer
    for writer in (
        covid19_20,
        kits19,
        kits21,
        kits23,
        amos22,
        btcv,
        totalsegmentator,
        brats2021,
        brats2023,
        brats2024,
        flare22,
        flare23,
        lits,
        lits_in_one_folder,
        acdc,
        bids_masks,
        bids_maps,
    )
}
