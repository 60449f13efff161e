import os
import re
import warnings
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medseqft_kernels import gather_crops
from medseqft_kernels.dispatch import read_table
from medseqft_kernels.gather_crops.cases import CASES
from medseqft_kernels.gather_crops.op import STORED
from medseqft_kernels.tolerance import TOLERANCE, relative_error
from medseqft_kernels.triton_support import interpreted
from medseqft_kit.tasks.types import IGNORE
from medseqft_kit.volumes.crops import cut
from medseqft_kit.volumes.types import Geometry, Volume

BACKENDS = ("reference", "triton")
WINDOW = (-60.3, 81.7)
ON_INTERPRETER = int(os.environ.get("MEDSEQFT_INTERPRETER_EXAMPLES", 25))


def drawn(case, device, stored=torch.float16, seed=0):
    """Volumes and the keyword arguments of a call that uses everything."""
    draw = torch.Generator().manual_seed(seed)
    volumes = [100 * torch.randn((case.channels, *extent), generator=draw) for extent in case.extents]
    n = len(case.crops)
    return {
        "volumes": [volume.to(stored).to(device) for volume in volumes],
        "index": torch.tensor([which for which, _ in case.crops]),
        "corner": torch.tensor([start for _, start in case.crops]),
        "size": case.size,
        "air": torch.randn((len(volumes), case.channels), generator=draw).mul(30).to(device),
        "window": WINDOW,
        "flip": torch.rand((n, 3), generator=draw) < 0.5,
        "mask": (torch.rand((n, *case.size), generator=draw) < 0.5).to(device),
        "token": 0.3,
    }


def referee(volumes, index, corner, size, air=None, window=None, flip=None, mask=None, token=0.0, exact=np.float32):
    """Crops by padding and slicing in NumPy; sums by numpy.gradient and scipy.ndimage.variance in float64."""
    masked, target, energies, variances = [], [], [], []
    for number, (which, start) in enumerate(zip(index.tolist(), corner.tolist(), strict=True)):
        volume = volumes[which].cpu().to(torch.float64).numpy()
        outside = np.zeros(len(volume)) if air is None else air[which].cpu().double().numpy()
        far = 1 + max(abs(edge) for edge in start) + max(size)
        channels = []
        for values, level in zip(volume, outside, strict=True):
            padded = np.pad(values, far, constant_values=level)
            channels.append(
                padded[tuple(slice(far + at, far + at + side) for at, side in zip(start, size, strict=True))]
            )
        crop = np.stack(channels).astype(exact)
        if window is not None:
            low, high = (exact(edge) for edge in window)
            crop = (np.clip(crop, low, high) - low) / (high - low)
        if flip is not None:
            crop = np.flip(crop, [axis + 1 for axis in range(3) if flip[number, axis]])
        hidden = np.ones(size, bool) if mask is None else mask[number].cpu().numpy()
        target.append(crop)
        masked.append(np.where(hidden, exact(token), crop))
        energies.append(np.mean([gradient_energy(each)[hidden] for each in crop]) if hidden.any() else 0.0)
        variances.append(np.mean([patch_variance(each)[hidden] for each in crop]) if hidden.any() else 0.0)
    return [torch.from_numpy(np.array(each)) for each in (masked, target, energies, variances)]


def gradient_energy(values):
    slopes = [np.gradient(values.astype(float), axis=axis) for axis in range(3) if values.shape[axis] > 1]
    return sum((slope**2 for slope in slopes), np.zeros(values.shape))


def patch_variance(values):
    z, y, x = np.indices(values.shape) // 4
    labels = np.unique(z * 10_000 + y * 100 + x, return_inverse=True)[1].ravel()
    return ndimage.variance(values.astype(float).ravel(), labels, labels).reshape(values.shape)


def same_bits(got, want):
    return torch.equal(got.cpu(), want) and got.dtype == want.dtype


def agrees(got, want):
    errors = [relative_error(got.gradient_energy, want[2]), relative_error(got.local_variance, want[3])]
    return same_bits(got.masked, want[0]) and same_bits(got.target, want[1]) and max(errors) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_crops_are_the_referee_s_bits_and_sums_its_numbers(case, backend, device, needs_triton, poisoned_empty):
    given_ = drawn(case, device)
    got = gather_crops(**given_, backend=backend)
    assert got.masked.shape == (len(case.crops), case.channels, *case.size)
    for each in (got.masked, got.target):
        assert each.is_contiguous(memory_format=torch.channels_last_3d)
    assert agrees(got, referee(**given_))


@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_optional_may_be_left_out(backend, device, needs_triton, poisoned_empty):
    given_ = {
        name: value for name, value in drawn(CASES[2], device).items() if name in ("volumes", "index", "corner", "size")
    }
    got = gather_crops(**given_, backend=backend)
    assert got.masked is got.target
    want = referee(**given_)
    assert same_bits(got.target, want[1])
    assert relative_error(got.gradient_energy, want[2]) < TOLERANCE[torch.float32]
    assert relative_error(got.local_variance, want[3]) < TOLERANCE[torch.float32]
    bare = gather_crops(**given_, controls=False, backend=backend)
    assert same_bits(bare.target, want[1])
    assert bare.gradient_energy is None
    assert bare.local_variance is None


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crop_worked_by_hand(backend, device, needs_triton):
    volume = torch.tensor([0.0, 10, 40, 50, 100], device=device).reshape(1, 1, 1, 5)
    mask = torch.tensor([True, False, True, True], device=device).reshape(1, 1, 1, 4)
    got = gather_crops(
        [volume], torch.tensor([0]), torch.tensor([[0, 0, 2]]), (1, 1, 4),
        air=torch.tensor([[20.0]], device=device), window=(0.0, 50.0), flip=torch.tensor([[False, False, True]]),
        mask=mask, token=-1.0, backend=backend,
    )  # fmt: skip
    # 40, 50, 100, then air 20: windowed 0.8, 1, 1, 0.4; turned round 0.4, 1, 1, 0.8
    assert got.target.flatten().tolist() == pytest.approx([0.4, 1, 1, 0.8])
    assert got.masked.flatten().tolist() == pytest.approx([-1, 1, -1, -1])
    # slopes 0.6, 0.3, −0.1, −0.2; squares of the hidden three
    assert got.gradient_energy.item() == pytest.approx((0.36 + 0.01 + 0.04) / 3)
    assert got.local_variance.item() == pytest.approx((0.4**2 + 0.2**2 + 0.2**2) / 4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("stored", [*STORED, "float64", "int64"])
def test_every_stored_dtype_is_read(stored, backend, device, needs_triton):
    case = CASES[1]
    given_ = drawn(case, device)
    whole = [volume.abs().clamp(max=120) for volume in given_["volumes"]]
    given_["volumes"] = [volume.to(getattr(torch, stored)) for volume in whole]
    assert agrees(gather_crops(**given_, backend=backend), referee(**given_))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_written_dtype_is_rounded_once(dtype, backend, device, needs_triton):
    given_ = drawn(CASES[1], device)
    if dtype == torch.bfloat16 and interpreted():  # the interpreter cuts bf16 off: give it what needs no rounding
        given_ |= {"window": None, "volumes": [volume.round().clamp(-128, 128) for volume in given_["volumes"]]}
        given_ |= {"air": given_["air"].round()}
    got = gather_crops(**given_, dtype=dtype, backend=backend)
    want = referee(**given_, exact=np.float64 if dtype == torch.float64 else np.float32)
    assert same_bits(got.target, want[1].to(dtype))
    assert same_bits(
        got.masked, torch.where(given_["mask"].cpu()[:, None], torch.tensor(0.3, dtype=dtype), want[1].to(dtype))
    )
    assert got.gradient_energy.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert relative_error(got.gradient_energy, want[2]) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("backend", BACKENDS)
def test_volumes_may_be_views_of_poisoned_memory_in_any_order_of_axes(backend, device, needs_triton, poisoned_empty):
    given_ = drawn(CASES[1], device)
    want = referee(**given_)
    views = []
    for volume in given_["volumes"]:
        c, d, h, w = volume.shape
        buffer = torch.full((2 * w + 3, d + 4, c + 1, h + 2), float("nan"), dtype=volume.dtype, device=device)
        view = buffer[1 : 1 + 2 * w : 2, 2 : 2 + d, :c, 1 : 1 + h].permute(2, 1, 3, 0)
        views.append(view.copy_(volume))
    mask = given_["mask"]
    given_ |= {"volumes": views, "mask": mask.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)}
    given_ |= {"corner": given_["corner"].int().T.contiguous().T, "index": given_["index"].to(torch.int8)}
    assert not views[0].is_contiguous()
    assert agrees(gather_crops(**given_, backend=backend), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_number_stays_where_it_is(backend, device, needs_triton):
    given_ = drawn(CASES[0], device)
    given_["volumes"][0][0, 6, 5, 7] = float("nan")  # voxel (1, 3, 4) of the second crop
    given_ |= {"flip": None}
    got = gather_crops(**given_, backend=backend)
    assert got.target.isnan().nonzero().tolist() == [[1, 0, 1, 3, 4]]
    given_["mask"][1] = False
    given_["mask"][1, :, 4:] = True  # no voxel of its patch, no neighbour
    given_["mask"][1, 1, 4, 4] = False
    spared = gather_crops(**given_, backend=backend)
    assert not spared.masked[0].isnan().any()
    assert spared.gradient_energy.isfinite().all()
    assert spared.local_variance.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_crop_that_hides_nothing_has_sums_of_zero(backend, device, needs_triton):
    given_ = drawn(CASES[0], device)
    given_["mask"][0] = False
    got = gather_crops(**given_, backend=backend)
    assert torch.equal(got.masked[0], got.target[0])
    assert got.gradient_energy[0] == got.local_variance[0] == 0
    assert got.gradient_energy[1] > 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_empty_batch_gives_empty_crops(backend, device, needs_triton):
    given_ = drawn(CASES[1], device)
    given_ |= {name: given_[name][:0] for name in ("index", "corner", "flip", "mask")}
    got = gather_crops(**given_, backend=backend)
    assert got.masked.shape == got.target.shape == (0, 2, 5, 3, 6)
    assert got.gradient_energy.shape == got.local_variance.shape == (0,)


@st.composite
def calls(draw, largest):
    channels, volumes = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    extent = st.tuples(*[st.integers(1, largest)] * 3)
    extents = [draw(extent) for _ in range(volumes)]
    size, n = draw(extent), draw(st.integers(1, 2))
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    crops = [(draw(st.integers(0, volumes - 1)), draw(st.tuples(*[st.integers(-4, largest)] * 3))) for _ in range(n)]
    optional = {
        "air": torch.randn((volumes, channels), generator=numbers),
        "window": draw(st.sampled_from([(-0.7, 1.3), (0.0, 0.01), (-3e4, 3e4)])),
        "flip": torch.rand((n, 3), generator=numbers) < 0.5,
        "mask": torch.rand((n, *size), generator=numbers) < draw(st.sampled_from([0.0, 0.1, 0.6, 1.0])),
    }
    kept = draw(st.sets(st.sampled_from(sorted(optional))))
    return {
        "volumes": [torch.randn((channels, *each), generator=numbers) for each in extents],
        "index": torch.tensor([which for which, _ in crops]),
        "corner": torch.tensor([start for _, start in crops]),
        "size": size,
        **{name: optional[name] for name in sorted(kept)},
    }


@pytest.mark.parametrize(
    ("backend", "examples", "largest"),
    [("reference", 300, 9), pytest.param("triton", ON_INTERPRETER, 5, marks=pytest.mark.soak)],
    ids=BACKENDS,
)
def test_any_shapes_corners_and_options_agree_with_the_referee(backend, examples, largest, device, needs_triton):
    ran = []

    @settings(max_examples=examples)
    @given(calls(largest))
    def agrees_with_referee(given_):
        ran.append(given_["size"])
        moved = {name: value.to(device) if name in ("air", "mask") else value for name, value in given_.items()}
        moved["volumes"] = [volume.to(device) for volume in given_["volumes"]]
        got = gather_crops(**moved, backend=backend)
        masked, target, energy, variance = referee(**given_)
        assert same_bits(got.target, target)
        assert same_bits(got.masked, masked if "mask" in given_ else target)
        # A constant crop has no slope; what is left of rounding is measured against the intensities.
        scale = float(target.double().square().mean()) + 1e-30
        assert float((got.gradient_energy.cpu() - energy).abs().max()) < 1e-5 * (float(energy.max()) + scale)
        assert float((got.local_variance.cpu() - variance).abs().max()) < 1e-5 * (float(variance.max()) + scale)

    agrees_with_referee()
    assert len(ran) >= examples


@pytest.mark.parametrize("backend", BACKENDS)
def test_crops_are_those_that_the_kit_cuts(backend, device, needs_triton):
    image = np.random.default_rng(0).normal(0, 50, (2, 6, 7, 8)).astype(np.float16)
    air = tuple(float(level) for level in image.min(axis=(1, 2, 3)))
    grid = Geometry((6, 7, 8), np.eye(4))
    volume = Volume("case", image, np.full((6, 7, 8), IGNORE, np.uint8), grid, grid, {}, air)
    corners = [(0, 0, 0), (-3, 2, 5), (4, 4, 4), (-2, -2, -2), (1, 9, 1)]
    want = np.stack([cut(volume, start, (5, 4, 6))[0] for start in corners])
    got = gather_crops(
        [torch.from_numpy(image).to(device)], torch.zeros(5, dtype=torch.int64), torch.tensor(corners), (5, 4, 6),
        air=torch.tensor([air], device=device), backend=backend,
    )  # fmt: skip
    assert same_bits(got.target, torch.from_numpy(want))


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_stay_as_they_are_and_bits_repeat(backend, device, needs_triton):
    given_ = drawn(CASES[2], device)
    before = [each.clone() for each in (*given_["volumes"], *(v for v in given_.values() if torch.is_tensor(v)))]
    one, other = (gather_crops(**given_, backend=backend) for _ in range(2))
    after = [*given_["volumes"], *(v for v in given_.values() if torch.is_tensor(v))]
    assert len(before) == 6
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    storages = {each.untyped_storage().data_ptr() for each in (*after, one.masked, one.target)}
    assert len(storages) == len(after) + 2


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("whole", [True, False])
def test_the_custom_op_passes_opcheck(backend, whole, device, needs_triton, as_users_run_it):
    g = drawn(CASES[1], device)
    switches = (*WINDOW, g["flip"], g["mask"], 0.3) if whole else (None, None, None, None, 0.0)
    arguments = (
        g["volumes"],
        g["index"],
        g["corner"],
        list(g["size"]),
        g["air"],
        *switches,
        torch.float32,
        whole,
        backend,
    )
    torch.library.opcheck(torch.ops.medseqft.gather_crops.default, arguments)


def test_the_compiler_takes_it_in_one_graph(device, as_users_run_it):
    given_ = drawn(CASES[1], device)

    def cropped(volumes, index, corner, mask):
        return (
            gather_crops(**(given_ | {"volumes": volumes, "index": index, "corner": corner, "mask": mask})).masked + 1
        )

    tensors = (given_["volumes"], given_["index"], given_["corner"], given_["mask"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(cropped, fullgraph=True, backend="aot_eager")(*tensors)
    assert torch.equal(compiled, cropped(*tensors))


WRONG: dict[str, list[dict[str, object]]] = {
    "volumes": [{"volumes": []}],
    "volumes[0]": [{"volumes": [torch.zeros(1, 2, 2, 2, requires_grad=True)]}, {"volumes": [torch.zeros(2, 2, 2)]}],
    "volumes[1]": [
        {"volumes": [torch.zeros(1, 2, 2, 2), torch.zeros(2, 2, 2, 2)]},
        {"volumes": [torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2).half()]},
    ],
    "index": [{"index": torch.tensor([1])}, {"index": torch.tensor([-1])}, {"index": torch.tensor([0.0])}],
    "corner": [{"corner": torch.zeros(1, 2, dtype=torch.int64)}, {"corner": torch.zeros(1, 3)}],
    "size": [{"size": (2, 0, 2)}, {"size": (2, 2)}],
    "air": [{"air": torch.zeros(2, 1)}],
    "window": [{"window": (1.0, 1.0)}, {"window": (2.0, 1.0)}, {"window": (1e9, 1e9 + 1)}, {"window": (0.0, 1e39)}],
    "flip": [{"flip": torch.zeros(1, 2, dtype=torch.bool)}, {"flip": torch.zeros(1, 3)}],
    "mask": [{"mask": torch.zeros(1, 2, 2, 3, dtype=torch.bool)}, {"mask": torch.zeros(1, 2, 2, 2)}],
    "dtype": [{"dtype": torch.int16}],
    "backend": [{"backend": "cuda"}],
}


@pytest.mark.parametrize(("name", "changed"), [(name, each) for name, all_ in WRONG.items() for each in all_], ids=str)
def test_a_wrong_argument_is_named(name, changed, as_users_run_it):
    right = {
        "volumes": [torch.zeros(1, 2, 2, 2)],
        "index": torch.tensor([0]),
        "corner": torch.zeros(1, 3, dtype=torch.int64),
    }
    right |= {"size": (2, 2, 2)}
    gather_crops(**right)
    with pytest.raises(ValueError, match=rf"^{re.escape(name)}: found .*, expected "):
        gather_crops(**(right | changed))


def test_triton_is_refused_where_it_cannot_run(monkeypatch, as_users_run_it):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    given_ = drawn(CASES[0], torch.device("cpu"))
    with pytest.raises(ValueError, match=r"^backend: found 'triton', expected Triton installed and a GPU"):
        gather_crops(**given_, backend="triton")
    assert gather_crops(**given_, backend="auto").target.isfinite().all()


@pytest.mark.parametrize(
    ("used", "words"), [((True,) * 4, " window flip mask controls"), ((False,) * 4, "")], ids=["whole", "bare"]
)
def test_on_a_gpu_auto_would_measure_both_forms_and_remember(used, words, device, needs_triton):
    choose = import_module("medseqft_kernels.gather_crops.op")._fastest
    taken = choose((2, 1, 3, 4, 5), "float16", "bfloat16", str(device), used)
    table = read_table(device)
    question = f"gather_crops 2x1x3x4x5 float16>bfloat16{words}"
    assert list(table) == [question]
    assert set(table[question]["seconds"]) == {"reference", "triton"}
    assert taken == table[question]["choice"]
