"""BraTS, brain tumours: four MR contrasts, a folder for each examination.

::

    BraTS2021_00000/BraTS2021_00000_{t1,t1ce,t2,flair,seg}.nii.gz            and BraTS20_Training_001, Brats18_…, HGG/…
    BraTS-GLI-00000-000/BraTS-GLI-00000-000-{t1n,t1c,t2w,t2f,seg}.nii.gz     since 2023; MEN, MET, PED, SSA too

Channels in this order: T1, T1 with contrast, T2, FLAIR (nnU-Net's). Folders lie in the data set's folder, or one or
two below it. Values: 1 necrotic core, 2 edema; enhancing tumour is 4 up to 2021 and 3 since; in 2024, after
treatment, 4 is the resection cavity (numbers end in 100 or more there). One folder holds one of the three. Regions,
told by ``labels``: whole tumour, core (1 and the enhancing part), enhancing. A patient's examinations share a number.

Terms of the challenge, no redistribution. Baid et al. 2021 (arXiv 2107.02314), de Verdier et al. 2024 (arXiv
2405.18368); MSD's Task01_BrainTumour is BraTS 2016 and 2017.
"""

from __future__ import annotations

from pathlib import Path

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.catalogue import CATALOGUE
from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.layouts.known import KnownDefect, cases
from medseqft_kit.tasks.layouts.shared import folders, found, task_of
from medseqft_kit.tasks.types import Case, Task

LOOKS_FOR = "BraTS2021_00000/…_flair.nii.gz or BraTS-GLI-00000-000/…-t2f.nii.gz (BraTS)"
FOLDER = r"(?:BraTS|Brats)[A-Za-z0-9]*[-_].*"
BEFORE, SINCE = ("_t1", "_t1ce", "_t2", "_flair"), ("-t1n", "-t1c", "-t2w", "-t2f")
AFTER_TREATMENT = 100
"""Time points from here on are of 2024."""
MISNAMED = "W39_1998.09.19_Segm.nii"


def _misnamed(facts: CaseFacts) -> bool:
    return facts.case.label is None and any(facts.case.images[0].parent.glob(f"{MISNAMED}*"))


KNOWN_DEFECTS: tuple[KnownDefect, ...] = (
    KnownDefect(
        f"the label is called {MISNAMED}",
        "https://github.com/iolag/UPD_study/pull/3",
        "rename it to BraTS20_Training_355_seg.nii, and compress it where the images are compressed",
        cases("BraTS20_Training_", "355"),
        shows=_misnamed,
        severity="error",
    ),
)


def matches(folder: Path) -> bool:
    """Whether there are folders of that name that hold a FLAIR image of that name."""
    return any(_contrasts(case) for case in folders(folder, FOLDER, 3))


def read(folder: Path, name: str) -> Task:
    """The task in `folder`. Files are listed, not opened; a folder without a segmentation is unlabelled.

    Raises
    ------
    DataError
        If editions with different values lie in one folder.
    """
    labelled, unlabelled, editions = [], [], set()
    for case in folders(folder, FOLDER, 3):
        if not (contrasts := _contrasts(case)):
            continue
        editions.add(_edition(case.name, contrasts))
        ending = ".nii.gz" if any(case.glob("*.nii.gz")) else ".nii"
        images = tuple(case / f"{case.name}{contrast}{ending}" for contrast in contrasts)
        label = case / f"{case.name}{contrasts[0][0]}seg{ending}"
        if label.exists():
            labelled.append(Case(case.name, images, label))
        else:
            unlabelled.append(Case(case.name, images))
    if len(editions) > 1:
        raise DataError(
            f"{folder} holds several editions of BraTS, whose values differ in meaning.",
            found=", ".join(sorted(editions)),
            expected="one edition in a folder: 4 is enhancing tumour up to 2021 and the resection cavity in 2024",
            next_step="name the folder of one edition",
        )
    return task_of(CATALOGUE[editions.pop()], folder, name, labelled, unlabelled, patients=r"^(BraTS-[A-Z]+-\d+|.+)")


def _contrasts(case: Path) -> tuple[str, ...]:
    """The endings of a case's images; nothing where the folder is no case."""
    names = found(case, r"(.+)\.nii(?:\.gz)?")
    kinds = (kind for kind in (BEFORE, SINCE) if any(name.endswith(kind[3]) for name in names))
    return next(kinds, ())


def _edition(case: str, contrasts: tuple[str, ...]) -> str:
    if contrasts == BEFORE:
        return "brats2021"
    time = case.rpartition("-")[2]
    return "brats2024" if time.isdigit() and int(time) >= AFTER_TREATMENT else "brats2023"
