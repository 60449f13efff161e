"""What all tests share: real data where it lies beside the checkout, one thread, fixed examples for hypothesis."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

# beartype looks at random items of containers; with a generator of its own, the global one is the tested code's alone.
with pytest.MonkeyPatch.context() as patch:
    patch.setattr(random, "getrandbits", random.Random(0).getrandbits)
    import beartype  # noqa: F401

if not torch.cuda.is_available():
    # Kernels are then tested through the interpreter. Triton decides when it is first imported, hence here.
    os.environ.setdefault("TRITON_INTERPRET", "1")

from tests.unchecked import unchecked

REAL_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Examples take as long as a network takes; in CI they are the same every time.
settings.register_profile("here", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("here"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "here")


COUNTED_CASES = 1


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Count lines in the first cases of a test, and not where repetition is the point: it slows what it counts."""
    seen: Counter[str] = Counter()
    for item in items:
        test = item.nodeid.partition("[")[0]
        seen[test] += 1
        if seen[test] > COUNTED_CASES or item.get_closest_marker("soak"):
            item.add_marker("no_cover")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave what takes minutes to `make soak`."""
    mark = item.get_closest_marker("soak")
    if mark is not None and mark.kwargs.get("only") and "soak" not in item.config.option.markexpr:
        pytest.skip("takes minutes: `make soak` (or `pytest -m soak`) runs it")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Give every test process one thread: more of them on a shared machine are slower, and bits depend on it."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_kernel_table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's table of measured backends; the commands that tests start do not either.

    The processes of one test run share theirs, so that each question is measured once.
    """
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSEQFT_CACHE", str(folder / "kernels"))
        yield


@pytest.fixture
def as_users_run_it() -> Iterator[None]:
    """No annotated shape is checked: a wrong one meets the operation's own message, a compiler nothing in its way."""
    with unchecked():
        yield


@pytest.fixture(scope="session")
def real_data() -> Callable[[str], Path]:
    """A function from a data set's name to its folder; the test is skipped where that folder is absent."""

    def folder(name: str) -> Path:
        path = REAL_DATA / name
        if not path.is_dir():
            pytest.skip(f"real data set {name} is not on this machine (looked in ../shared/data)")
        return path

    return folder


@pytest.fixture
def write_dicom() -> Callable[..., list[Path]]:
    """A function that writes stored values (slices, rows, columns) as a CT series, one file for each slice.

    pydicom writes it, tag by tag. `steps` are the slices' distances from the first along `direction` (the normal by
    default); changes maps a slice's number to tags that differ; `order` names the files. Returns them slice by slice.
    """
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    def write(
        folder: Path,
        stored: np.ndarray,
        orientation: np.ndarray | None = None,
        spacing: tuple[float, float] = (0.8, 0.6),
        steps: np.ndarray | None = None,
        direction: np.ndarray | None = None,
        changes: dict[int, dict[str, object]] | None = None,
        order: list[int] | None = None,
        **tags: object,
    ) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        series, study = generate_uid(), generate_uid()
        axes = np.eye(3)[:2] if orientation is None else orientation
        along = np.cross(*axes) if direction is None else direction
        apart = 2.5 * np.arange(len(stored)) if steps is None else steps
        files = []
        for number, plane in enumerate(stored):
            header = Dataset()
            header.file_meta = FileMetaDataset()
            header.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            header.SOPClassUID, header.SOPInstanceUID = CTImageStorage, generate_uid()
            header.file_meta.MediaStorageSOPClassUID = CTImageStorage
            header.file_meta.MediaStorageSOPInstanceUID = header.SOPInstanceUID
            header.StudyInstanceUID, header.SeriesInstanceUID = study, series
            header.FrameOfReferenceUID = "1.2.826.0.1.3680043.8.498.1"
            header.PatientName, header.PatientID = "Doe^Jo", "P1"
            header.StudyDate, header.StudyID, header.Modality = "20260102", "S", "CT"
            header.SeriesNumber, header.SeriesDescription = 3, "thin"
            header.InstanceNumber = len(stored) - number
            header.ImageOrientationPatient = [f"{cosine:.10f}" for cosine in axes.ravel()]
            header.ImagePositionPatient = [f"{mm:.8f}" for mm in np.array([-20.5, 31.0, 7.25]) + apart[number] * along]
            header.PixelSpacing, header.SliceThickness = list(spacing), 2.0
            header.Rows, header.Columns = plane.shape
            header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
            header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 16, 15, 1
            header.RescaleSlope, header.RescaleIntercept = "1", "-1024"
            for tag, value in {**tags, **(changes or {}).get(number, {})}.items():
                setattr(header, tag, value)
            header.PixelData = plane.astype("<i2").tobytes()
            files.append(folder / f"IM{number if order is None else order[number]:04d}.dcm")
            header.save_as(files[-1], enforce_file_format=True)
        return files

    return write


@pytest.fixture
def random_state_untouched() -> Iterator[None]:
    """Fail a test that leaves the global random state of Python, NumPy or torch other than it found it."""
    before = _random_state()
    yield
    moved = [name for name, state in _random_state().items() if state != before[name]]
    assert not moved, f"the global random state of {', '.join(moved)} was moved"


def _random_state() -> dict[str, str]:
    return {
        "random": repr(random.getstate()),
        "numpy": repr([part.tolist() if isinstance(part, np.ndarray) else part for part in np.random.get_state()]),
        "torch": torch.random.get_rng_state().numpy().tobytes().hex(),
    }
