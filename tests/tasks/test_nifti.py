"""NIfTI in and out, against nibabel and SciPy-free hand-made files."""

from __future__ import annotations

import gzip
import resource
import struct

import nibabel as nib
import numpy as np
import pytest

from medseqft_kit.errors import ConfigError, DataError
from medseqft_kit.tasks import memory
from medseqft_kit.tasks.nifti import read_header, read_image, read_label, write_labels, write_volume


def test_an_image_reads_as_nibabel_reads_it(tmp_path, save, image, affine):
    save(tmp_path / "a.nii.gz", image(1), affine)
    values, placed = read_image(tmp_path / "a.nii.gz")
    reference = nib.load(tmp_path / "a.nii.gz")
    assert values.dtype == np.float32
    assert placed.dtype == np.float64
    np.testing.assert_array_equal(values, reference.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(placed, reference.affine)


def test_scaling_big_endian_and_nifti_2_are_applied(tmp_path, image):
    scaled = nib.Nifti2Image(image(1), np.diag([2.0, 2, 2, 1]), nib.Nifti2Header(endianness=">"))
    scaled.header.set_slope_inter(0.5, 10)
    stored = nib.Nifti2Image(image(1) * 0.5 + 10, scaled.affine, scaled.header)
    stored.set_data_dtype(">i2")
    nib.save(stored, tmp_path / "a.nii")
    values, _ = read_image(tmp_path / "a.nii")
    np.testing.assert_allclose(values, image(1) * 0.5 + 10, atol=0.3)  # half a step of the stored int16 scale


def test_trailing_axes_of_one_are_dropped_and_channels_kept(tmp_path, save, image):
    save(tmp_path / "one.nii.gz", image(1, 1))
    save(tmp_path / "two.nii.gz", image(1, 2))
    assert read_image(tmp_path / "one.nii.gz")[0].shape == (6, 7, 8)
    assert read_image(tmp_path / "two.nii.gz")[0].shape == (6, 7, 8, 2)
    assert read_header(tmp_path / "two.nii.gz").channels == 2


def test_float_labels_that_are_integers_pass_and_fractions_do_not(tmp_path, save, label):
    save(tmp_path / "a.nii.gz", label(1, 100).astype(np.float32))
    values, _ = read_label(tmp_path / "a.nii.gz")
    assert values.dtype.kind == "i"
    assert set(np.unique(values)) == {0, 1, 100}
    save(tmp_path / "b.nii.gz", label() * np.float32(0.5))
    with pytest.raises(DataError, match=r"no integers[\s\S]*0\.5"):
        read_label(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
def test_written_labels_come_back_on_the_same_grid_whoever_reads_them(tmp_path, affine, label, name):
    write_labels(tmp_path / name, label().astype(np.int64) * 300, affine)
    reference = nib.load(tmp_path / name)
    assert reference.get_data_dtype() == np.int16
    assert reference.header["sform_code"] == reference.header["qform_code"] == 1
    np.testing.assert_allclose(reference.affine, affine, atol=1e-6)  # float32 of the header
    np.testing.assert_allclose(reference.get_qform(), affine, atol=1e-5)  # quaternion in float32
    np.testing.assert_array_equal(read_label(tmp_path / name)[0], reference.dataobj)


def test_equal_labels_give_equal_bytes_without_a_time_or_name(tmp_path, affine, label):
    write_labels(tmp_path / "a.nii.gz", label(), affine)
    write_labels(tmp_path / "b.nii.gz", label(), affine)
    content = (tmp_path / "a.nii.gz").read_bytes()
    assert content == (tmp_path / "b.nii.gz").read_bytes()
    assert content[3] == 0  # no name, comment or extra field
    assert struct.unpack("<I", content[4:8]) == (0,)  # modification time
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["a.nii.gz", "b.nii.gz"]


def test_a_sheared_affine_keeps_its_sform_exactly(tmp_path, label):
    sheared = np.array([[1.5, 0.25, 0, 3], [0, 2, 0.25, 4], [0, 0, 3, -7], [0, 0, 0, 1]])
    write_labels(tmp_path / "a.nii.gz", label(), sheared)
    np.testing.assert_array_equal(nib.load(tmp_path / "a.nii.gz").affine, sheared)


def test_writing_refuses_fractions_and_other_names(tmp_path, affine, label):
    with pytest.raises(ConfigError, match="integer type"):
        write_labels(tmp_path / "a.nii.gz", label() * 0.5, affine)
    with pytest.raises(ConfigError, match="named like NIfTI"):
        write_volume(tmp_path / "a.nrrd", label(), affine)
    assert not list(tmp_path.iterdir())


def a_bomb(path, shape):
    header = nib.Nifti1Header()
    header["dim"] = [len(shape), *shape, *[1] * (7 - len(shape))]
    header["magic"], header["vox_offset"] = b"n+1", 352
    content = header.binaryblock + bytes(1000)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii"])
@pytest.mark.parametrize("shape", [(32767, 32767, 32767), (32767,) * 7, (500, 500, 500), (0, 5, 5), (-4, -4, 4)])
def test_a_header_that_claims_more_than_the_file_can_hold_is_refused_before_allocation(
    tmp_path, monkeypatch, name, shape
):
    a_bomb(tmp_path / name, shape)
    monkeypatch.setattr("medseqft_kit.tasks.nifti.ArrayProxy", None)  # nothing may get as far as reading voxels
    for read in (read_header, read_image, read_label):
        with pytest.raises(DataError, match="cannot hold what the header claims"):
            read(tmp_path / name)


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "truncated":
        content = content[:-40]
    elif how == "checksum":
        content[-6] ^= 1
    elif how == "not gzip":
        content = bytearray(gzip.decompress(content))
    elif how == "empty":
        content = bytearray()
    elif how == "text":
        content = bytearray(gzip.compress(b"no volume at all " * 100))
    path.write_bytes(content)


@pytest.mark.parametrize("how", ["truncated", "checksum", "not gzip", "empty", "text"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, save, image, how):
    save(tmp_path / "broken.nii.gz", image(1))
    damage(tmp_path / "broken.nii.gz", how)
    with pytest.raises(DataError, match=r"broken\.nii\.gz cannot be read[\s\S]*found[\s\S]*next: ") as caught:
        read_image(tmp_path / "broken.nii.gz")
    assert "Traceback" not in str(caught.value)


def test_a_missing_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(DataError, match=r"gone\.nii\.gz is not there"):
        read_image(tmp_path / "gone.nii.gz")


@pytest.mark.parametrize(("values", "affine", "message"), [
    (np.zeros((5, 5), np.int16), np.eye(4), "2 dimensions"),
    (np.zeros((5, 5, 5, 2, 2), np.int16), np.eye(4), "5 dimensions"),
    (np.zeros((5, 5, 5), np.complex64), np.eye(4), "no real numbers"),
])  # fmt: skip
def test_what_is_no_volume_of_real_numbers_is_refused(tmp_path, values, affine, message):
    nib.save(nib.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    with pytest.raises(DataError, match=message):
        read_image(tmp_path / "a.nii.gz")


def test_an_affine_without_volume_is_refused(tmp_path, save, image):
    save(tmp_path / "a.nii.gz", image(1), np.diag([1.0, 1, 1, 1]))
    content = nib.load(tmp_path / "a.nii.gz")
    content.header["srow_z"] = 0
    content = nib.Nifti1Image(image(1), None, content.header)
    nib.save(content, tmp_path / "b.nii.gz")
    with pytest.raises(DataError, match="cannot be inverted"):
        read_image(tmp_path / "b.nii.gz")


def test_a_gzip_bomb_is_refused_before_its_memory_is_taken(tmp_path, monkeypatch):
    """200 kB that hold, in truth, 200 MB of zeros: more than is free."""
    header = nib.Nifti1Image(np.zeros((1, 1, 1), np.uint8), np.eye(4)).header
    header.set_data_shape((1000, 1000, 200))
    with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=9) as file:
        file.write(header.binaryblock + bytes(4))
        for _ in range(200):
            file.write(bytes(1_000_000))
    assert (tmp_path / "bomb.nii.gz").stat().st_size < 300_000
    monkeypatch.setattr(memory, "free_memory", lambda: 100_000_000)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for read in (read_image, read_label):
        with pytest.raises(DataError, match="does not fit into memory") as caught:
            read(tmp_path / "bomb.nii.gz")
        assert caught.value.found == "100.0 MB free"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
