"""Patients and images: anatomy in its place, lesions of a size that can be learned, contrast that differs by case."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from medseqft_kit.phantoms.anatomy import TEMPLATE, draw_anatomy
from medseqft_kit.phantoms.datasets import LESION_FREE_EVERY, PHANTOM_SETS, draw_case
from medseqft_kit.phantoms.imaging import render_ct, render_mr
from medseqft_kit.phantoms.lesions import LESIONS, add_lesion

SHAPE = (32, 28, 32)
PATIENTS = range(8)
LABELLED = [phantom for phantom in PHANTOM_SETS if phantom.labels]


def generator(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def centre(mask: np.ndarray) -> np.ndarray:
    """Centre of mass as a share of each axis: 0 left, posterior, inferior; 1 right, anterior, superior."""
    return np.divide(ndimage.center_of_mass(mask), mask.shape)


def body_seen_in(image: np.ndarray) -> np.ndarray:
    """The body as an image alone shows it: what is brighter than lung, holes filled slice by slice."""
    bright = ndimage.gaussian_filter(image.astype(np.float32), 0.7) > -500
    return np.stack([ndimage.binary_fill_holes(bright[:, :, z]) for z in range(image.shape[2])], axis=2)


def test_organs_lie_where_a_human_has_them():
    for patient in PATIENTS:
        anatomy = draw_anatomy(SHAPE, generator(patient))
        at = {name: centre(anatomy.mask(name)) for name in TEMPLATE}
        assert at["liver"][0] > 0.5 > at["spleen"][0]  # right, left
        assert at["spine"][1] < at["aorta"][1] < at["heart"][1]  # back to front
        assert at["kidneys"][2] < at["liver"][2] < at["heart"][2] < at["lungs"][2]  # feet to head


def test_every_organ_shows_in_every_patient():
    for patient in PATIENTS:
        anatomy = draw_anatomy(SHAPE, generator(patient))
        for name in TEMPLATE:
            assert anatomy.mask(name).sum() >= 20, (patient, name)
        for name in ("lungs", "kidneys"):
            assert ndimage.label(anatomy.mask(name))[1] >= 2, f"{name} of patient {patient} is not a pair"


def test_free_part_of_an_organ_is_what_shows_of_it():
    anatomy = draw_anatomy(SHAPE, generator(0))
    for name in TEMPLATE:
        np.testing.assert_array_equal(anatomy.free(name) < 0, anatomy.mask(name), err_msg=name)


def test_coverage_keeps_the_volume_and_is_partial_only_at_the_surface():
    anatomy = draw_anatomy((48, 48, 48), generator(0))
    coverage, inside = anatomy.coverage("liver"), anatomy.distances["liver"] < 0
    assert coverage.sum() == pytest.approx(inside.sum(), rel=0.03)
    partial = (coverage > 0) & (coverage < 1)
    rim = ndimage.binary_dilation(inside, iterations=2) & ~ndimage.binary_erosion(inside, iterations=2)
    assert partial.any()
    assert rim[partial].mean() > 0.97


@pytest.mark.parametrize("name", LESIONS)
def test_lesions_are_large_enough_and_lie_in_or_at_their_organ(name):
    for patient in PATIENTS:
        healthy = draw_anatomy(SHAPE, generator(patient))
        ill = add_lesion(healthy, name, generator(patient, 1))
        lesion, organ = ill.mask(name), healthy.mask(LESIONS[name].organ)
        assert lesion.mean() >= 60 / 48**3
        assert (lesion & organ).any()
        if not LESIONS[name].grows_out:
            assert organ[lesion].all()
        assert name not in healthy.distances


def test_lesions_are_at_least_three_voxels_thick_in_a_48_cube():
    counted = 0
    for name in LESIONS:
        for patient in range(6):
            anatomy = add_lesion(draw_anatomy((48, 48, 48), generator(patient)), name, generator(patient, 1))
            assert ndimage.distance_transform_edt(anatomy.mask(name)).max() >= 3, (name, patient)
            counted += 1
    assert counted == 18


@pytest.mark.parametrize("phantom", LABELLED, ids=lambda phantom: phantom.name)
def test_every_declared_structure_is_drawn_and_nothing_lies_outside_the_body(phantom):
    for index in range(4):
        image, label = draw_case(phantom, index, SHAPE, generator(index))
        assert set(np.unique(label)) == {0, *phantom.labels.values()}
        if phantom.modality == "CT":
            assert body_seen_in(image)[label > 0].all()


def test_one_labelled_case_in_ten_has_no_lesion():
    counted = 0
    for phantom in LABELLED:
        lesions = {value for name, value in phantom.labels.items() if name in LESIONS}
        _, label = draw_case(phantom, LESION_FREE_EVERY - 1, SHAPE, generator(1))
        assert set(np.unique(label)) == {0, *phantom.labels.values()} - lesions
        counted += bool(lesions)
    assert counted == 3


def test_ct_is_in_plausible_hounsfield_units():
    for patient in PATIENTS:
        anatomy = draw_anatomy(SHAPE, generator(patient))
        image = render_ct(anatomy, generator(patient, 2))
        assert image.dtype == np.int16
        assert image.min() >= -1024
        core = {name: ndimage.binary_erosion(anatomy.mask(name)) for name in ("lungs", "liver", "heart", "spine")}
        mean = {name: image[mask].mean() for name, mask in core.items()}
        assert image[:2, :2].mean() == pytest.approx(-1000, abs=15)
        assert -900 < mean["lungs"] < -650
        assert 40 < mean["liver"] < 140
        assert 30 < mean["heart"] < 220
        assert 140 < mean["spine"] < 500
        assert 5 < image[core["liver"]].std() < 45  # noise and texture, but an organ is one thing


def test_mr_is_never_negative_and_dark_in_air_and_lungs():
    for patient in PATIENTS:
        anatomy = draw_anatomy(SHAPE, generator(patient))
        image = render_mr(anatomy, generator(patient, 2))
        assert image.dtype == np.int16
        assert image.min() >= 0
        body = image[anatomy.mask("muscle", "cavity", "liver", "spine")].mean()
        assert image[:2, :2].mean() < 0.35 * body
        assert image[ndimage.binary_erosion(anatomy.mask("lungs"))].mean() < 0.6 * body


def test_noise_of_the_air_around_an_mr_phantom_is_rayleigh():
    anatomy = draw_anatomy((48, 48, 48), generator(0))
    air = render_mr(anatomy, generator(0, 2))[:3, :3]
    assert air.mean() / air.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.1)


@pytest.mark.parametrize(("render", "organ", "spread"), [(render_ct, "liver", 10), (render_mr, "liver", 50)])
def test_contrast_of_an_organ_differs_between_cases(render, organ, spread):
    anatomy = draw_anatomy(SHAPE, generator(0))
    core = ndimage.binary_erosion(anatomy.mask(organ))
    means = [render(anatomy, generator(case, 2))[core].mean() for case in PATIENTS]
    assert np.std(means) > spread


def test_scale_of_mr_differs_between_cases():
    anatomy = draw_anatomy(SHAPE, generator(0))
    brightest = [np.quantile(render_mr(anatomy, generator(case, 2)), 0.99) for case in PATIENTS]
    assert max(brightest) > 2 * min(brightest)


def test_an_organ_in_mr_may_be_darker_or_brighter_than_what_surrounds_it():
    anatomy = draw_anatomy(SHAPE, generator(0))
    core, around = ndimage.binary_erosion(anatomy.mask("liver")), anatomy.mask("cavity")
    images = [render_mr(anatomy, generator(case, 2)) for case in PATIENTS]
    assert {bool(image[core].mean() > image[around].mean()) for image in images} == {True, False}


def test_unlabelled_set_mixes_both_kinds_of_image():
    unlabelled = PHANTOM_SETS[0]
    (windowed, label), (magnetic, _) = (draw_case(unlabelled, index, SHAPE, generator(0)) for index in range(2))
    assert label is None
    assert (windowed.min(), windowed.max()) == (0, 1000)  # both ends of the display window clip something
    assert (windowed[:2, :2] == 0).mean() > 0.4  # air has no noise below the window, in MR it does
    assert (magnetic[:2, :2] == 0).mean() < 0.1
