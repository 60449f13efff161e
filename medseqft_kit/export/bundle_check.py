"""Whether a bundle segments an image as the kit does: both of them asked, on an image that has everything."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from jaxtyping import Integer
from scipy.ndimage import gaussian_filter

from medseqft_kit.errors import ModelError
from medseqft_kit.evaluation.inference import predict_logits
from medseqft_kit.evaluation.predict import Predictor
from medseqft_kit.evaluation.segment import segment
from medseqft_kit.export.facts import WINDOWED, window
from medseqft_kit.export.onnx_format import missing_packages
from medseqft_kit.models.precision import Precision
from medseqft_kit.randomness import numpy_generator
from medseqft_kit.tasks.nifti import read_label, write_volume
from medseqft_kit.tasks.types import Case
from medseqft_kit.volumes.preprocess import preprocess

LARGEST_SHARE = 1e-3
"""Share of the voxels that may get another class. MONAI computes the positions at which it interpolates in another
order, so that voxels where two classes are equally likely may fall to either."""


def differing_voxels(predictor: Predictor, bundle: Path) -> float:
    """Share of the voxels of a generated image that get another class from the bundle, run by MONAI in this process.

    The image is turned and flipped, of other voxels than the model's, smaller than its patch along two axes and larger
    along one. Both predict in float32 on the CPU.

    Raises
    ------
    ModelError
        If it exceeds :data:`LARGEST_SHARE`, or MONAI's workflow cannot run.
    """
    with tempfile.TemporaryDirectory() as temporary:
        images = _write_image(predictor, Path(temporary) / "images")
        got = _through_monai(bundle, Path(temporary))
        volume = preprocess(predictor.task, Case("check", images), predictor.preprocessing)
    name, precision = predictor.task.name, Precision("cpu", "fp32")
    found = segment([lambda image: predict_logits(predictor.model, name, image, precision)], volume, predictor.task)
    share = float((got != predictor.task.to_values(found.classes)).mean())
    if share > LARGEST_SHARE:
        raise ModelError(
            "the exported bundle does not segment as the kit does.",
            found=f"another class at {share:.2%} of the voxels",
            expected=f"at most {LARGEST_SHARE:.2%}",
        )
    return share


def _write_image(predictor: Predictor, folder: Path) -> tuple[Path, ...]:
    """One file for each channel, smooth noise over the values that matter to its modality."""
    spacing = np.array(predictor.preprocessing.spacing or (1.0, 1.0, 1.0))
    sizes = spacing * (0.8, 1.1, 1.3)
    shape = [int(n) for n in np.array(predictor.model.spec.patch) * spacing * (1.25, 0.9, 0.9) / sizes]
    affine = np.eye(4)
    affine[:3, :3] = np.diag(sizes)[:, [1, 2, 0]] * (-1, 1, 1)  # first array axis back-front, and from back to front
    affine[:3, 3] = (31.5, -12.25, 7)
    files = []
    for channel, modality in enumerate(predictor.task.channels):
        low, high = window(predictor, modality) if modality in WINDOWED else (-50.0, 400.0)
        noise = gaussian_filter(numpy_generator(0, "export", channel).normal(size=shape), 2)
        unit = (noise - noise.min()) / np.ptp(noise)
        turned = (unit * 1.2 * (high - low) + low - 0.1 * (high - low)).transpose(1, 2, 0)
        files.append(folder / f"check_{channel:04d}.nii.gz")
        write_volume(files[-1], turned.astype(np.float32), affine)
    return tuple(files)


def _through_monai(bundle: Path, folder: Path) -> Integer[np.ndarray, "x y z"]:
    try:
        import ignite  # noqa: F401  # MONAI names the missing package only where it runs
        from monai.bundle.workflows import ConfigWorkflow
    except ImportError as problem:
        raise missing_packages(problem) from problem

    with scripts_of(bundle), redirect_stdout(StringIO()), _quiet():
        workflow = ConfigWorkflow(
            config_file=str(bundle / "configs" / "inference.json"),
            meta_file=str(bundle / "configs" / "metadata.json"),
            workflow_type="infer",
            bundle_root=str(bundle),
            dataset_dir=str(folder / "images"),
            output_dir=str(folder / "predictions"),
            device="cpu",
        )
        workflow.initialize()
        workflow.run()
        workflow.finalize()
    (written,) = (folder / "predictions").iterdir()
    return read_label(written)[0]


@contextmanager
def scripts_of(bundle: Path) -> Iterator[None]:
    """Within the block `scripts` is this bundle's package, as it is for ``python -m monai.bundle`` in its folder."""

    def ours() -> list[str]:
        return [name for name in sys.modules if name == "scripts" or name.startswith("scripts.")]

    before = {name: sys.modules.pop(name) for name in ours()}
    sys.path.insert(0, str(bundle))
    try:
        yield
    finally:
        sys.path.remove(str(bundle))
        for name in ours():
            del sys.modules[name]
        sys.modules |= before


@contextmanager
def _quiet() -> Iterator[None]:
    """MONAI's workflow tells the root logger of every step."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
