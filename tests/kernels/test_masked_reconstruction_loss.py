"""Masked reconstruction against selected voxels, loops over patches, finite differences, and float64."""

from __future__ import annotations

import os

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional

from medseqft_kernels import masked_reconstruction_loss
from medseqft_kernels.masked_reconstruction_loss import lean
from medseqft_kernels.masked_reconstruction_loss.cases import CASES, Case
from medseqft_kernels.masked_reconstruction_loss.choice import Asked, candidates, choose
from medseqft_kernels.masked_reconstruction_loss.reference import reference
from medseqft_kernels.tolerance import TOLERANCE, relative_error
from medseqft_kit.objectives.base import crops_of
from medseqft_kit.objectives.masked import MaskedReconstruction

INTERPRETED = int(os.environ.get("MEDSEQFT_INTERPRETER_EXAMPLES", 25))
FUSED = ("lean", "triton")
PATCHED = next(case for case in CASES if case.patch and case.channels_last)


@pytest.fixture(params=FUSED)
def backend(request):
    if request.param == "triton":
        request.getfixturevalue("needs_triton")
    return request.param


def loss_and_gradient(prediction, target, mask, backend=None, **settings):
    """Of the operation, or of the reference in float64; what comes from above differs from sample to sample."""
    asked = prediction.detach().requires_grad_()
    if backend is None:
        asked, target = asked.detach().double().requires_grad_(), target.double()
        mask = mask if mask.dtype == torch.bool else mask.double()
        loss = reference(asked, target, mask, **settings)
    else:
        loss = masked_reconstruction_loss(asked, target, mask, backend=backend, **settings)
    upstream = torch.linspace(0.5, 1.5, len(prediction), device=prediction.device).to(loss.dtype)
    return loss.detach(), torch.autograd.grad(loss, asked, upstream)[0]


def check_against_float64(prediction, target, mask, backend, **settings):
    got, want = (loss_and_gradient(prediction, target, mask, each, **settings) for each in (backend, None))
    work = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    assert got[0].dtype == work
    assert got[1].dtype == prediction.dtype
    assert relative_error(got[0], want[0]) < TOLERANCE[work]
    assert relative_error(got[1], want[1]) < TOLERANCE[prediction.dtype]


def place(tensors, device, *dtypes):
    """The case's tensors on the device, floating ones in the dtypes."""
    kinds = dict(enumerate(dtypes))
    return [
        each.to(device) if each.dtype == torch.bool else each.to(device, kinds.get(index, dtypes[0]))
        for index, each in enumerate(tensors)
    ]


@pytest.mark.parametrize("name", ["reference", "lean", "triton"])
def test_a_case_worked_by_hand(name, device, needs_triton):
    prediction = torch.tensor([1.0, 2.0, 3.0, 4.0], device=device).reshape(1, 2, 1, 1, 2).requires_grad_()
    target = torch.tensor([0.0, 0.0, 5.0, 0.0], device=device).reshape(1, 2, 1, 1, 2)
    mask = torch.tensor([True, False], device=device).reshape(1, 1, 1, 1, 2)
    squared = masked_reconstruction_loss(prediction, target, mask, backend=name)
    assert squared.tolist() == [(1 + 4) / 2]  # the first voxel of both channels
    assert torch.autograd.grad(squared, prediction)[0].flatten().tolist() == [1.0, 0.0, -2.0, 0.0]
    absolute = masked_reconstruction_loss(prediction, target, mask, norm="l1", backend=name)
    assert absolute.tolist() == [(1 + 2) / 2]
    assert torch.autograd.grad(absolute, prediction)[0].flatten().tolist() == [0.5, 0.0, -0.5, 0.0]


@pytest.mark.parametrize(("norm", "referee"), [("l2", functional.mse_loss), ("l1", functional.l1_loss)])
def test_loss_is_pytorchs_mean_over_the_voxels_that_the_mask_selects(norm, referee):
    compared = 0
    for case in (case for case in CASES if not case.weights and case.patch is None):
        prediction, target, mask = case.tensors()
        everywhere = mask.expand_as(prediction)
        got, slope = loss_and_gradient(prediction, target, mask, "reference", norm=norm)
        asked = prediction.detach().requires_grad_()
        pairs = zip(asked, target, everywhere, strict=True)
        want = torch.stack([referee(p[m], t[m]).nan_to_num() for p, t, m in pairs])  # none selected: 0
        upstream = torch.linspace(0.5, 1.5, case.batch, dtype=torch.float64)
        counted = everywhere.any(dim=(1, 2, 3, 4))
        want_slope = torch.autograd.grad(want[counted], asked, upstream[counted].float().double())[0]
        assert relative_error(got, want) < TOLERANCE[torch.float64]
        assert relative_error(slope, want_slope) < TOLERANCE[torch.float64]
        compared += 1
    assert compared >= 5


def test_a_normalised_target_is_each_patch_less_its_mean_over_its_deviation():
    compared = 0
    for case in (case for case in CASES if case.patch):
        prediction, target, mask = (each.numpy().copy() for each in case.tensors())
        for sample, channel, *corner in np.ndindex(*target.shape):
            if all(at % side == 0 for at, side in zip(corner, case.patch, strict=True)):
                box = tuple(slice(at, at + side) for at, side in zip(corner, case.patch, strict=True))
                voxels = target[(sample, channel, *box)]
                voxels[...] = (voxels - voxels.mean()) / np.sqrt(voxels.var() + 1e-6)
                compared += 1
        power = np.abs(prediction - target) ** (2 if case.norm == "l2" else 1)
        weights = np.broadcast_to(mask, power.shape)
        want = [(each * weight).sum() / weight.sum() for each, weight in zip(power, weights, strict=True)]
        got = masked_reconstruction_loss(*case.tensors(), norm=case.norm, patch=case.patch)
        assert relative_error(got, torch.tensor(want)) < TOLERANCE[torch.float64]
    assert compared > 60


def test_it_is_the_loss_that_the_kits_objective_computes():
    class Echo(torch.nn.Module):
        def encode(self, image):
            return image

        def reconstruct(self, features):
            return features * 0.5 + 1

    draw = torch.Generator().manual_seed(0)
    image = torch.randn(3, 2, 4, 5, 6, generator=draw)
    pretext = {"mask": torch.rand(3, 4, 5, 6, generator=draw) < 0.4}
    crops = crops_of(image, pretext)
    jaxtyping.config.update("jaxtyping_disable", True)  # the objective asks for a FoundationModel
    try:
        found = MaskedReconstruction.losses.__wrapped__(MaskedReconstruction(), Echo(), crops, pretext)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
    hidden = zip(image, pretext["mask"], strict=True)
    want = torch.stack([(1 - each[:, mask]).square().mean() for each, mask in hidden])  # Echo makes 1 of what is hidden
    assert relative_error(found, want) < TOLERANCE[torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_loss_and_gradient_match_float64(case, dtype, backend, device, poisoned_empty):
    prediction, target, mask = place(case.tensors(), device, dtype)
    check_against_float64(prediction, target, mask, backend, norm=case.norm, patch=case.patch)


@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "float16"), ("float64", "float32")], ids=str)
def test_prediction_and_target_may_differ_in_dtype(dtypes, backend, device):
    first, second = (getattr(torch, dtype) for dtype in dtypes)
    check_against_float64(
        *place(PATCHED.tensors(), device, first, second, torch.bfloat16), backend, patch=PATCHED.patch
    )


def test_slabs_smaller_than_a_sample_add_up(monkeypatch):
    monkeypatch.setattr(lean, "SLAB", 30)
    cut = 0
    for case in CASES:
        prediction, target, mask = case.tensors()
        cut += len(list(lean._slabs(prediction, case.patch[0] if case.patch else 1))) > case.batch
        check_against_float64(prediction, target, mask, "lean", norm=case.norm, patch=case.patch)
    assert cut >= 8


@pytest.mark.parametrize("patch", [None, (2, 1, 3)])
@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_gradient_is_the_finite_difference(norm, patch):
    case = Case("small", 2, (2, 3, 3), mask_channels=2, weights=True, channels_last=True)
    prediction, target, mask = case.tensors()
    settings = {"norm": norm, "patch": patch, "backend": "lean"}
    asked = prediction.requires_grad_()
    assert torch.autograd.gradcheck(lambda each: masked_reconstruction_loss(each, target, mask, **settings), asked)


def test_target_and_weights_get_their_gradient_from_the_reference(backend):
    prediction, target, mask = (each.requires_grad_() for each in PATCHED.tensors())
    found = masked_reconstruction_loss(prediction, target, mask, patch=PATCHED.patch, backend=backend)
    want = reference(prediction, target, mask, patch=PATCHED.patch)
    slopes = [torch.autograd.grad(each.sum(), (prediction, target, mask)) for each in (found, want)]
    assert [relative_error(*pair) for pair in zip(*slopes, strict=True)] == [0.0, 0.0, 0.0]
    assert all(each.abs().sum() > 0 for each in slopes[0])
    with torch.no_grad():  # nobody asks: the backend is taken after all
        assert masked_reconstruction_loss(prediction, target, mask, backend=backend).isfinite().all()


def test_a_sample_without_masked_voxels_has_loss_and_gradient_zero(backend, device):
    compared = 0
    for name in ("reference", backend):
        for kind in (torch.bool, torch.float32):
            prediction, target, mask = place(CASES[0].tensors(), device, torch.float32)
            mask = mask.to(kind)
            mask[1] = 0
            loss, slope = loss_and_gradient(prediction, target, mask, name)
            assert loss[0] > 0
            assert loss[1] == 0
            assert slope[0].any()
            assert not slope[1].any()
            compared += 1
    assert compared == 4


def draw_case(data):
    """A case of any shape, and prediction, target and mask of any dtype."""
    patch = data.draw(st.none() | st.tuples(*[st.integers(1, 3)] * 3))
    size = tuple(side * data.draw(st.integers(1, 4)) for side in patch or (1, 1, 1))
    channels = data.draw(st.integers(1, 4))
    case = Case(
        "drawn",
        channels,
        size,
        data.draw(st.sampled_from(["l1", "l2"])),
        patch,
        data.draw(st.sampled_from([1, channels])),
        *(data.draw(st.booleans()) for _ in range(2)),
        batch=data.draw(st.integers(0, 3)),
    )
    return case, case.tensors(data.draw(st.integers(0, 999)))


def test_any_shape_gives_what_the_reference_gives():
    ran = []

    @settings(max_examples=300)
    @given(st.data(), st.sampled_from([1, 10, 40, 2**16]))
    def check(data, slab):
        case, tensors = draw_case(data)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(lean, "SLAB", slab)
            check_against_float64(*tensors, "lean", norm=case.norm, patch=case.patch)
        ran.append(1)

    check()
    assert len(ran) >= 300


@pytest.mark.soak
def test_any_shape_gives_the_same_in_kernels(needs_triton, device):
    ran = []
    kinds = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])

    @settings(max_examples=INTERPRETED)
    @given(st.data(), kinds, kinds)
    def check(data, first, second):
        case, tensors = draw_case(data)
        check_against_float64(*place(tensors, device, first, second), "triton", norm=case.norm, patch=case.patch)
        ran.append(1)

    check()
    assert len(ran) >= INTERPRETED


@pytest.mark.parametrize("case", [CASES[0], CASES[4], PATCHED], ids=str)
def test_what_lies_around_a_tensor_is_never_read(case, backend, device, poisoned_empty):
    def within_nan(each):
        room = torch.full([size + 2 for size in each.shape], float("nan"), device=device).to(each.dtype)
        inner = room[tuple(slice(1, -1) for _ in each.shape)]
        return inner.copy_(each)

    prediction, target, mask = place(case.tensors(), device, torch.float32)
    inside = within_nan(prediction), within_nan(target), within_nan(mask)
    assert not any(each.is_contiguous() for each in inside)
    got = loss_and_gradient(*inside, backend, norm=case.norm, patch=case.patch)
    want = loss_and_gradient(prediction, target, mask, norm=case.norm, patch=case.patch)
    assert relative_error(got[0], want[0]) < TOLERANCE[torch.float32]
    assert relative_error(got[1], want[1]) < TOLERANCE[torch.float32]


def test_any_strides_are_read(backend, device):
    prediction, target, mask = place(CASES[3].tensors(), device, torch.float32)
    forms = [
        (prediction.transpose(2, 4).contiguous().transpose(2, 4), target, mask),
        (prediction, target[:, :1].expand_as(target), mask),
        (prediction[:1].expand_as(prediction), target.to(memory_format=torch.channels_last_3d), mask[:, :1]),
        (prediction[:, :, ::2], target[:, :, 1::2].flip(3), mask[:, :, :2]),
    ]
    for form in forms:
        check_against_float64(*form, backend)
    assert len(forms) == 4


@pytest.mark.parametrize("patch", [None, (2, 2, 2)])
def test_an_empty_batch_has_no_losses(backend, device, patch):
    nothing = torch.zeros(0, 2, 2, 4, 6, device=device)
    loss, slope = loss_and_gradient(nothing, nothing, nothing[:, :1] > 0, backend, patch=patch)
    assert loss.shape == (0,)
    assert slope.shape == nothing.shape


@pytest.mark.parametrize("patch", [None, (4, 4, 4)])
def test_nothing_of_the_predictions_size_is_kept_for_the_backward_pass(backend, device, patch):
    case = Case("measured", 2, (8, 8, 8))
    inputs = place(case.tensors(), device, torch.float32)

    def kept(name):
        target, mask = inputs[1:]
        prediction = inputs[0].detach().requires_grad_()
        own = {each.untyped_storage().data_ptr() for each in (prediction, target, mask)}
        sizes = []

        def pack(tensor):
            if tensor.untyped_storage().data_ptr() not in own:
                sizes.append(tensor.numel())
            return tensor

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            masked_reconstruction_loss(prediction, target, mask, patch=patch, backend=name)
        return sum(sizes)

    patches = 0 if patch is None else case.batch * case.channels * 2**3
    assert kept(backend) == case.batch + 2 * patches  # Σ m of each sample; mean and deviation of each patch
    assert kept("reference") >= inputs[0].numel()  # the measurement sees what there is to see


@pytest.mark.parametrize("case", [CASES[0], CASES[4], PATCHED], ids=str)
def test_opcheck_finds_no_fault(case, backend, device):
    prediction, target, mask = place(case.tensors(), device, torch.float32)
    sides = list(case.patch or ())
    found = None
    if sides:
        arguments = (target, torch.float32, sides, backend)
        torch.library.opcheck(torch.ops.medseqft.patch_statistics.default, arguments)
        found = torch.ops.medseqft.patch_statistics(*arguments)
    arguments = (prediction.requires_grad_(), target, mask, found, sides, case.norm, backend)
    torch.library.opcheck(torch.ops.medseqft.masked_reconstruction_loss.default, arguments)
    factor = torch.ones(len(prediction), device=device)
    backward = torch.ops.medseqft.masked_reconstruction_loss_backward.default
    torch.library.opcheck(backward, (factor, prediction.detach(), *arguments[1:]))


def test_the_op_itself_refuses_to_lose_a_gradient():
    prediction, target, mask = (each.requires_grad_() for each in PATCHED.tensors())
    loss = torch.ops.medseqft.masked_reconstruction_loss(prediction, target, mask, None, [], "l2", "lean")[0]
    with pytest.raises(NotImplementedError, match="differentiates the prediction alone"):
        loss.sum().backward()


@pytest.mark.parametrize("name", ["auto", "reference", "lean", "triton"])
def test_it_compiles_into_one_graph(name, device, needs_triton, as_users_run_it):
    prediction, target, mask = place(PATCHED.tensors(), device, torch.float32)
    arguments = {"patch": PATCHED.patch, "backend": name}
    compiled = torch.compile(masked_reconstruction_loss, fullgraph=True, backend="aot_eager")
    slopes = []
    for function in (compiled, masked_reconstruction_loss):
        asked = prediction.detach().requires_grad_()
        slopes.append(torch.autograd.grad(function(asked, target, mask, **arguments).sum(), asked)[0])
    assert relative_error(*slopes) < TOLERANCE[torch.float32]


def test_autocast_changes_nothing(backend, device):
    prediction, target, mask = place(CASES[1].tensors(), device, torch.float32)
    want = loss_and_gradient(prediction, target, mask, backend)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        got = loss_and_gradient(prediction, target, mask, backend)
    assert got[0].dtype == torch.float32
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_two_calls_give_the_same_bits_and_leave_the_inputs_alone(backend, device):
    tensors = place(CASES[1].tensors(), device, torch.float32)
    before = [each.clone() for each in tensors]
    first, second = (loss_and_gradient(*tensors, backend) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert [torch.equal(*pair) for pair in zip(before, tensors, strict=True)] == [True] * 3


def test_the_gradient_lies_in_memory_as_the_prediction_does(backend, device):
    prediction, target, mask = place(PATCHED.tensors(), device, torch.float32)
    slope = loss_and_gradient(prediction, target, mask, backend)[1]
    assert slope.stride() == prediction.stride()
    assert slope.is_contiguous(memory_format=torch.channels_last_3d)


def test_auto_is_lean_on_a_cpu_and_the_reference_where_that_is_forced(monkeypatch):
    asked = Asked((2, 1, 8, 8, 8), 1, None, "l2", ("float32", "float32", "bool"), False, "cpu", True)
    assert choose(*asked) == "lean"
    assert choose(*asked._replace(shape=(0, 1, 8, 8, 8))) == "reference"
    assert choose(*asked._replace(device="meta")) == "reference"
    monkeypatch.setenv("MEDSEQFT_KERNELS", "reference")
    assert choose(*asked) == "reference"


@pytest.mark.parametrize("trains", [True, False])
def test_what_auto_would_measure_on_a_gpu_runs(trains, device, needs_triton):
    dtypes = ("bfloat16", "float32", "bool")
    asked = Asked((2, 2, 2, 4, 4), 1, (2, 2, 2), "l1", dtypes, True, str(device), trains)
    runs = candidates(asked)
    assert list(runs) == ["reference", "triton"]
    for run in runs.values():
        run()
    known = "2x2x2x4x4, mask channels 1, patches 2x2x2, l1, bfloat16/float32/bool channels-last on"
    assert known in str(asked)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prediction": torch.zeros(2, 4, 4, 4)}, r"prediction: found \(2, 4, 4, 4\), expected \(B, C, D, H, W\)"),
        ({"prediction": torch.zeros(1, 2, 4, 4, 4).long()}, r"prediction: found torch.int64, expected a floating"),
        ({"target": torch.zeros(1, 1, 4, 4, 4)}, r"target: found \(1, 1, 4, 4, 4\), expected \(1, 2, 4, 4, 4\)"),
        ({"target": torch.zeros(1, 2, 4, 4, 4).int()}, r"target: found torch.int32, expected a floating dtype"),
        ({"target": torch.zeros(1, 2, 4, 4, 4, device="meta")}, r"target: found meta, expected cpu"),
        ({"mask": torch.ones(1, 4, 4, 4)}, r"mask: found \(1, 4, 4, 4\), expected \(1, 1, 4, 4, 4\) or"),
        ({"mask": torch.ones(1, 1, 4, 4, 4).int()}, r"mask: found torch.int32, expected bool or a floating dtype"),
        ({"norm": "l3"}, r"norm: found 'l3', expected 'l1' or 'l2'"),
        ({"patch": 3}, r"patch: found \(3, 3, 3\), expected three sides that divide \(4, 4, 4\)"),
        ({"patch": (4, 4)}, r"patch: found \(4, 4\), expected three sides"),
        ({"patch": (4, 0, 4)}, r"patch: found \(4, 0, 4\), expected three sides"),
        ({"backend": "fast"}, r"backend: found 'fast', expected one of \['auto', 'reference', 'lean', 'triton'\]"),
    ],
    ids=str,
)
def test_a_wrong_argument_is_named_with_what_was_expected(wrong, message, as_users_run_it):
    right = {name: torch.zeros(1, 2, 4, 4, 4) for name in ("prediction", "target")}
    right["mask"] = torch.ones(1, 1, 4, 4, 4, dtype=torch.bool)
    assert masked_reconstruction_loss(**right).tolist() == [0.0]
    with pytest.raises(ValueError, match=message):
        masked_reconstruction_loss(**{**right, **wrong})


def test_kernels_are_refused_where_none_can_run(monkeypatch, as_users_run_it):
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    crop = torch.zeros(1, 1, 2, 2, 2)
    with pytest.raises(ValueError, match="backend: found 'triton', expected another: no kernel runs on cpu"):
        masked_reconstruction_loss(crop, crop, crop > 0, backend="triton")
