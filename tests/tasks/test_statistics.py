"""Spacing statistics and fingerprints."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from medseqft_kit.errors import DataError
from medseqft_kit.tasks.fingerprint import file_hash, fingerprint
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tasks.statistics import spacing_statistics


def test_spacing_is_counted_along_patient_axes_whatever_the_order_of_the_array(msd, save, image):
    root = msd("a", "b", "c")
    save(root / "imagesTr" / "a.nii.gz", image(0), np.diag([1.0, 2, 5, 1]))
    save(
        root / "imagesTr" / "b.nii.gz",
        image(1),
        np.array([[0, -1.5, 0, 0], [0, 0, 2.5, 0], [6.0, 0, 0, 0], [0, 0, 0, 1]]),
    )
    save(root / "imagesTr" / "c.nii.gz", image(2), np.diag([-3.0, -3, 4, 1]))
    median, minimum, maximum = spacing_statistics(load_task(root))
    assert (median, minimum, maximum) == ((1.5, 2.5, 5.0), (1.0, 2.0, 4.0), (3.0, 3.0, 6.0))


def test_voxels_are_not_read_for_spacing(msd):
    root = msd("a")
    path = root / "imagesTr" / "a.nii.gz"
    path.write_bytes(path.read_bytes()[:-60])
    assert spacing_statistics(load_task(root)).median == pytest.approx((1.4, 1.9, 2.5), rel=1e-6)


def test_an_empty_set_has_no_spacing(msd):
    with pytest.raises(DataError, match="no cases"):
        spacing_statistics(load_task(msd()))


def test_a_file_is_hashed_by_its_bytes(tmp_path):
    content = bytes(range(256)) * 9000
    (tmp_path / "a").write_bytes(content)
    assert file_hash(tmp_path / "a") == hashlib.sha256(content).hexdigest()
    with pytest.raises(DataError, match="cannot be read"):
        file_hash(tmp_path / "gone")


def test_a_fingerprint_follows_contents_and_not_order_or_place(msd, tmp_path, save, image, label):
    root = msd("a", "b", "c")
    before = fingerprint(load_task(root), ["a", "b"])
    root = root.rename(tmp_path / "elsewhere")
    assert fingerprint(load_task(root), ["b", "a"]) == before
    assert fingerprint(load_task(root), ["a", "c"]) != before
    save(root / "labelsTr" / "b.nii.gz", label(2, 1))
    assert fingerprint(load_task(root), ["a", "b"]) != before
