"""Public segmentation data sets: what they hold, under which licence, how to get them. Data only.

Readers of the layouts take the names of structures from here; ``medseqft fetch`` takes where a data set comes from.
Recommendations of spacing, window and patch are those of the source named in each layout's reader or of the data set's
usual baseline; nothing applies them unasked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class DataSet:
    """One public data set.

    Parameters
    ----------
    name
        Key in :data:`CATALOGUE`.
    layout
        Name of the reader in :mod:`medseqft_kit.tasks.layouts`.
    modality
        ``"CT"``, ``"MR"`` or ``"PET"`` of each channel.
    structures
        Structure to file value.
    spacing
        Recommended voxel size along the RAS axes, mm; None: the data set's median.
    window
        Recommended HU window of CT.
    patch
        Recommended crop at that spacing, voxels.
    commercial
        Whether the licence allows commercial use; None: not known.
    obtain
        What to do by hand, where nothing may be downloaded without an account or a form.
    url, sha256
        The archive and its checksum, only where the licence allows a direct download.
    """

    name: str
    title: str
    layout: str
    modality: tuple[str, ...]
    structures: Mapping[str, int]
    licence: str
    commercial: bool | None
    reference: str
    obtain: str
    spacing: Triple | None = None
    window: tuple[float, float] | None = None
    patch: tuple[int, int, int] | None = None
    url: str = ""
    sha256: str = ""


def _numbered(names: str, first: int = 1) -> dict[str, int]:
    return {name: value for value, name in enumerate(names.split(), start=first)}


def _decathlon(
    name: str,
    modality: tuple[str, ...],
    structures: str,
    sha256: str,
    spacing: Triple | None = None,
    window: tuple[float, float] | None = None,
    patch: tuple[int, int, int] | None = None,
) -> DataSet:
    return DataSet(
        name=name,
        title=f"Medical Segmentation Decathlon, {name[7:]}",
        layout="msd",
        modality=modality,
        structures={structure.replace("_", " "): value for structure, value in _numbered(structures).items()},
        licence="CC BY-SA 4.0",
        commercial=True,
        reference="Antonelli et al. 2022, doi 10.1038/s41467-022-30695-9; Simpson et al. 2019, arXiv 1902.09063",
        obtain="http://medicaldecathlon.com",
        spacing=spacing,
        window=window,
        patch=patch,
        url=f"https://msd-for-monai.s3-us-west-2.amazonaws.com/{name}.tar",
        sha256=sha256,
    )


def _vertebrae(region: str, last: int) -> str:
    return " ".join(f"vertebrae_{region}{number}" for number in range(last, 0, -1))


def _both(*names: str) -> str:
    return " ".join(f"{name}_{side}" for name in names for side in ("left", "right"))


def _ribs(side: str) -> str:
    return " ".join(f"rib_{side}_{number}" for number in range(1, 13))


AMOS = _numbered(
    "spleen right_kidney left_kidney gallbladder esophagus liver stomach aorta inferior_vena_cava pancreas "
    "right_adrenal_gland left_adrenal_gland duodenum bladder prostate_or_uterus"
)
"""https://zenodo.org/records/7262581, whose dataset.json spells `arota` and `postcava`."""
BTCV = _numbered(
    "spleen right_kidney left_kidney gallbladder esophagus liver stomach aorta inferior_vena_cava "
    "portal_and_splenic_veins pancreas right_adrenal_gland left_adrenal_gland"
)
FLARE22 = _numbered(
    "liver right_kidney spleen pancreas aorta inferior_vena_cava right_adrenal_gland left_adrenal_gland gallbladder "
    "esophagus stomach duodenum left_kidney"
)
CHAOS = {"liver": 63, "right_kidney": 126, "left_kidney": 189, "spleen": 252}
"""Grey values of the MR ground truth; the reader gives the liver of CT, whose images are black and white, 63 too."""
TOTALSEGMENTATOR = _numbered(
    "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left "
    "lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right "
    "esophagus trachea thyroid_gland small_bowel duodenum colon urinary_bladder prostate kidney_cyst_left "
    f"kidney_cyst_right sacrum vertebrae_S1 {_vertebrae('L', 5)} {_vertebrae('T', 12)} {_vertebrae('C', 7)} heart "
    "aorta pulmonary_vein brachiocephalic_trunk subclavian_artery_right subclavian_artery_left "
    "common_carotid_artery_right common_carotid_artery_left brachiocephalic_vein_left brachiocephalic_vein_right "
    "atrial_appendage_left superior_vena_cava inferior_vena_cava portal_vein_and_splenic_vein "
    f"{_both('iliac_artery', 'iliac_vena', 'humerus', 'scapula', 'clavicula', 'femur', 'hip')} spinal_cord "
    f"{_both('gluteus_maximus', 'gluteus_medius', 'gluteus_minimus', 'autochthon', 'iliopsoas')} brain skull "
    f"{_ribs('left')} {_ribs('right')} sternum costal_cartilages"
)
"""``class_map["total"]`` of https://github.com/wasserth/TotalSegmentator, version 2."""
TOTALSEGMENTATOR_MR = _numbered(
    "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right adrenal_gland_left "
    "lung_left lung_right esophagus small_bowel duodenum colon urinary_bladder prostate sacrum vertebrae "
    "intervertebral_discs spinal_cord heart aorta inferior_vena_cava portal_vein_and_splenic_vein "
    f"{_both('iliac_artery', 'iliac_vena', 'humerus', 'scapula', 'clavicula', 'femur', 'hip')} "
    f"{_both('gluteus_maximus', 'gluteus_medius', 'gluteus_minimus', 'autochthon', 'iliopsoas')} brain"
)
"""``class_map["total_mr"]`` of the same."""

_ABDOMEN = (1.5, 1.5, 2.0)
_SOFT_TISSUE = (-175.0, 250.0)
_BRATS_TERMS = "terms of the challenge: registration, no redistribution"

_DATA_SETS = (
    _decathlon(
        "Task01_BrainTumour",
        ("MR",) * 4,
        "edema non-enhancing_tumor enhancing_tumour",
        "d423911308d2ae5396d9c6bf4fad2b68cfde2dd09044269da9c0d639c22753c4",
        spacing=(1.0, 1.0, 1.0),
        patch=(224, 224, 144),
    ),
    _decathlon(
        "Task02_Heart",
        ("MR",),
        "left_atrium",
        "4277dc6dfe100142aa8060e895f6ff0f81c5b733703ea250bd294df8f820bcba",
        spacing=(1.25, 1.25, 1.37),
    ),
    _decathlon(
        "Task03_Liver",
        ("CT",),
        "liver cancer",
        "4007d9db1acda850d57a6ceb2b3998b7a0d43f8ad5a3f740dc38bc0cb8b7a2c5",
        window=_SOFT_TISSUE,
    ),
    _decathlon(
        "Task04_Hippocampus",
        ("MR",),
        "Anterior Posterior",
        "282d808a3e84e5a52f090d9dd4c0b0057b94a6bd51ad41569aef5ff303287771",
        spacing=(1.0, 1.0, 1.0),
        patch=(40, 56, 40),
    ),
    _decathlon(
        "Task05_Prostate",
        ("MR", "MR"),
        "PZ TZ",
        "8cbbd7147691109b880ff8774eb6ab26704b1be0935482e7996a36a4ed31ec79",
        spacing=(0.63, 0.63, 3.6),
    ),
    _decathlon(
        "Task06_Lung",
        ("CT",),
        "cancer",
        "f782cd09da9cf7a3128475d4a53650d371db10f0427aa76e166fccfcb2654161",
        spacing=(0.79, 0.79, 1.2),
    ),
    _decathlon(
        "Task07_Pancreas",
        ("CT",),
        "pancreas cancer",
        "e40181a0229ca85c2588d6ebb90fa6674f84eb1e66f0f968cda088d011769732",
        spacing=(1.0, 1.0, 1.0),
        window=(-87.0, 199.0),
    ),
    _decathlon(
        "Task08_HepaticVessel",
        ("CT",),
        "Vessel Tumour",
        "ee880799f12e3b6e1ef2f8645f6626c5b39de77a4f1eae6f496c25fbf306ba04",
    ),
    _decathlon(
        "Task09_Spleen",
        ("CT",),
        "spleen",
        "dfeba347daae4fb08c38f4d243ab606b28b91b206ffc445ec55c35489fa65e60",
        spacing=_ABDOMEN,
        window=(-57.0, 164.0),
        patch=(96, 96, 96),
    ),
    _decathlon(
        "Task10_Colon",
        ("CT",),
        "colon_cancer_primaries",
        "a26bfd23faf2de703f5a51a262cd4e2b9774c47e7fb86f0e0a854f8446ec2325",
    ),
    DataSet(
        name="covid19_20",
        title="COVID-19-20, lesions in lung CT",
        layout="covid19_20",
        modality=("CT",),
        structures={"lesion": 1},
        spacing=(1.25, 1.25, 5.0),
        window=(-1000.0, 500.0),
        patch=(192, 192, 16),
        licence="terms of the challenge; images from The Cancer Imaging Archive",
        commercial=None,
        reference="Roth et al. 2022, doi 10.1016/j.media.2022.102605",
        obtain="account at https://covid-segmentation.grand-challenge.org/COVID-19-20/; take COVID-19-20_v2",
    ),
    DataSet(
        name="kits19",
        title="KiTS19, kidney and tumour",
        layout="kits19",
        modality=("CT",),
        structures=_numbered("kidney tumor"),
        window=(-79.0, 304.0),
        licence="CC BY-NC-SA 4.0",
        commercial=False,
        reference="Heller et al. 2021, doi 10.1016/j.media.2020.101821",
        obtain="git clone https://github.com/neheller/kits19, then its get_imaging script",
    ),
    DataSet(
        name="kits21",
        title="KiTS21, kidney, tumour and cyst",
        layout="kits21",
        modality=("CT",),
        structures=_numbered("kidney tumor cyst"),
        window=(-79.0, 304.0),
        licence="CC BY-NC-SA 4.0",
        commercial=False,
        reference="https://kits-challenge.org/kits21; Heller et al. 2023, arXiv 2307.01984",
        obtain="git clone https://github.com/neheller/kits21, then its get_imaging script",
    ),
    DataSet(
        name="kits23",
        title="KiTS23, kidney, tumour and cyst",
        layout="kits23",
        modality=("CT",),
        structures=_numbered("kidney tumor cyst"),
        window=(-79.0, 304.0),
        licence="CC BY-NC-SA 4.0",
        commercial=False,
        reference="https://kits-challenge.org/kits23; Heller et al. 2023, arXiv 2307.01984",
        obtain="git clone https://github.com/neheller/kits23; the images come apart, by its download script or from "
        "https://huggingface.co/datasets/neheller/KiTS-Challenge-Imaging",
    ),
    DataSet(
        name="amos22_ct",
        title="AMOS22, abdominal organs, CT",
        layout="amos22",
        modality=("CT",),
        structures=AMOS,
        spacing=_ABDOMEN,
        window=_SOFT_TISSUE,
        licence="CC BY-NC-SA (OpenReview entry)",
        commercial=False,
        reference="Ji et al. 2022, arXiv 2206.08023",
        obtain="amos22.zip of https://zenodo.org/records/7262581",
    ),
    DataSet(
        name="amos22_mr",
        title="AMOS22, abdominal organs, MR",
        layout="amos22",
        modality=("MR",),
        structures=AMOS,
        spacing=_ABDOMEN,
        licence="CC BY-NC-SA (OpenReview entry)",
        commercial=False,
        reference="Ji et al. 2022, arXiv 2206.08023",
        obtain="amos22.zip of https://zenodo.org/records/7262581",
    ),
    DataSet(
        name="btcv",
        title="BTCV, multi-atlas labelling beyond the cranial vault, abdomen",
        layout="btcv",
        modality=("CT",),
        structures=BTCV,
        spacing=_ABDOMEN,
        window=_SOFT_TISSUE,
        patch=(96, 96, 96),
        licence="data-use form of the challenge",
        commercial=None,
        reference="Landman et al. 2015, doi 10.7303/syn3193805",
        obtain="account and form at https://www.synapse.org/#!Synapse:syn3193805; RawData.zip of Abdomen",
    ),
    DataSet(
        name="totalsegmentator_ct",
        title="TotalSegmentator CT, version 2",
        layout="totalsegmentator",
        modality=("CT",),
        structures=TOTALSEGMENTATOR,
        spacing=(1.5, 1.5, 1.5),
        patch=(128, 128, 128),
        licence="CC BY 4.0",
        commercial=True,
        reference="Wasserthal et al. 2023, doi 10.1148/ryai.230024",
        obtain="Totalsegmentator_dataset_v201.zip of https://zenodo.org/records/10047292 "
        "(md5 fe250e5718e0a3b5df4c4ea9d58a62fe)",
    ),
    DataSet(
        name="totalsegmentator_mr",
        title="TotalSegmentator MR, version 2",
        layout="totalsegmentator",
        modality=("MR",),
        structures=TOTALSEGMENTATOR_MR,
        licence="see https://zenodo.org/records/14710732",
        commercial=None,
        reference="Akinci D'Antonoli et al. 2025, doi 10.1148/radiol.241613",
        obtain="https://zenodo.org/records/14710732",
    ),
    DataSet(
        name="brats2021",
        title="BraTS, brain tumours; the naming of 2018 to 2021",
        layout="brats",
        modality=("MR",) * 4,
        structures={"necrotic_core": 1, "edema": 2, "enhancing_tumor": 4},
        spacing=(1.0, 1.0, 1.0),
        patch=(224, 224, 144),
        licence=_BRATS_TERMS,
        commercial=None,
        reference="Baid et al. 2021, arXiv 2107.02314",
        obtain="account and terms at https://www.synapse.org/#!Synapse:syn25829067",
    ),
    DataSet(
        name="brats2023",
        title="BraTS 2023, brain tumours",
        layout="brats",
        modality=("MR",) * 4,
        structures={"necrotic_core": 1, "edema": 2, "enhancing_tumor": 3},
        spacing=(1.0, 1.0, 1.0),
        patch=(224, 224, 144),
        licence=_BRATS_TERMS,
        commercial=None,
        reference="Baid et al. 2021, arXiv 2107.02314",
        obtain="account and terms at https://www.synapse.org/#!Synapse:syn51156910",
    ),
    DataSet(
        name="brats2024",
        title="BraTS 2024, gliomas after treatment",
        layout="brats",
        modality=("MR",) * 4,
        structures={"necrotic_core": 1, "edema": 2, "enhancing_tumor": 3, "resection_cavity": 4},
        spacing=(1.0, 1.0, 1.0),
        licence=_BRATS_TERMS,
        commercial=None,
        reference="de Verdier et al. 2024, arXiv 2405.18368",
        obtain="account and terms at https://www.synapse.org/#!Synapse:syn53708249",
    ),
    DataSet(
        name="flare22",
        title="FLARE22, 13 abdominal organs, few labels",
        layout="flare22",
        modality=("CT",),
        structures=FLARE22,
        spacing=_ABDOMEN,
        window=_SOFT_TISSUE,
        licence="research, by the rules of the challenge; sources keep their own",
        commercial=False,
        reference="Ma et al. 2024, doi 10.1016/S2589-7500(24)00154-7",
        obtain="https://flare22.grand-challenge.org/Dataset/; the labelled part is https://zenodo.org/records/7860267",
    ),
    DataSet(
        name="flare23",
        title="FLARE23, 13 abdominal organs and tumours, partly labelled",
        layout="flare23",
        modality=("CT",),
        structures={**FLARE22, "tumor": 14},
        spacing=_ABDOMEN,
        window=_SOFT_TISSUE,
        licence="research, by the rules of the challenge; sources keep their own",
        commercial=False,
        reference="Ma et al. 2024, arXiv 2408.12534",
        obtain="https://codalab.lisn.upsaclay.fr/competitions/12239",
    ),
    DataSet(
        name="lits",
        title="LiTS, liver and its tumours",
        layout="lits",
        modality=("CT",),
        structures=_numbered("liver tumor"),
        spacing=(1.0, 1.0, 1.0),
        window=(-200.0, 250.0),
        licence="CC BY-NC-ND 4.0 as reported of the portal",
        commercial=False,
        reference="Bilic et al. 2023, doi 10.1016/j.media.2022.102680",
        obtain="account at https://competitions.codalab.org/competitions/17094; the same scans are MSD's Task03_Liver",
    ),
    DataSet(
        name="acdc",
        title="ACDC, cine MR of the heart",
        layout="acdc",
        modality=("MR",),
        structures=_numbered("right_ventricle myocardium left_ventricle"),
        spacing=(1.56, 1.56, 10.0),
        licence="CC BY-NC-SA 4.0",
        commercial=False,
        reference="Bernard et al. 2018, doi 10.1109/TMI.2018.2837502",
        obtain="https://www.creatis.insa-lyon.fr/Challenge/acdc/",
    ),
    DataSet(
        name="chaos_ct",
        title="CHAOS, liver of healthy donors, CT",
        layout="chaos",
        modality=("CT",),
        structures={"liver": CHAOS["liver"]},
        licence="see https://zenodo.org/records/3431873",
        commercial=None,
        reference="Kavur et al. 2021, doi 10.1016/j.media.2020.101950",
        obtain="CHAOS_Train_Sets.zip of https://zenodo.org/records/3431873",
    ),
    DataSet(
        name="chaos_mr",
        title="CHAOS, abdominal organs of healthy donors, MR",
        layout="chaos",
        modality=("MR",),
        structures=CHAOS,
        licence="see https://zenodo.org/records/3431873",
        commercial=None,
        reference="Kavur et al. 2021, doi 10.1016/j.media.2020.101950",
        obtain="CHAOS_Train_Sets.zip of https://zenodo.org/records/3431873",
    ),
)

CATALOGUE: Mapping[str, DataSet] = {entry.name: entry for entry in _DATA_SETS}
"""By name; the ten Decathlon tasks are named as their folders."""
