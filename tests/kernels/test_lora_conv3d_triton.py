import importlib
import os
from types import SimpleNamespace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medseqft_kernels.lora_conv3d.cases import CASES, Case
from medseqft_kernels.lora_conv3d.forms import Geometry
from medseqft_kernels.lora_conv3d.reference import reference
from medseqft_kernels.tolerance import TOLERANCE, relative_error
from tests.kernels.formats import formats

pytestmark = pytest.mark.usefixtures("needs_triton")

UNGROUPED = [case for case in CASES if case.groups == 1]
BUSY = Case("all at once", 3, 5, (4, 5, 3), (3, 2, 2), (2, 1, 1), (1, 1, 0), rank=3, batch=2)
SCALING = 0.7
EXAMPLES = int(os.environ.get("MEDSEQFT_INTERPRETER_EXAMPLES", "25"))


@pytest.fixture
def kernels(needs_triton):
    return importlib.import_module("medseqft_kernels.lora_conv3d.triton")


@pytest.fixture
def launch(needs_triton):
    return importlib.import_module("medseqft_kernels.convolution_launch")


def convolution(case):
    """Its geometry, three numbers each."""
    given = (case.stride, case.padding, case.dilation)
    stride, padding, dilation = ((each,) * 3 if isinstance(each, int) else each for each in given)
    if padding == "same":
        padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, case.kernel, strict=True))
    return Geometry(stride, padding, dilation)


def tensors(case, dtype, device, seed=0):
    """x, weight, bias, lora_a, lora_b and the upstream gradient."""
    draw = torch.Generator().manual_seed(seed)
    shapes = (
        (case.batch, case.inputs, *case.size),
        (case.outputs, case.inputs, *case.kernel),
        (case.outputs,),
        (case.rank, case.inputs, *case.kernel),
        (case.outputs, case.rank, 1, 1, 1),
    )
    inputs = [torch.randn(shape, generator=draw).to(dtype) for shape in shapes]
    stride, padding, dilation = convolution(case)
    out = functional.conv3d(inputs[0].double(), inputs[1].double(), None, stride, padding, dilation)
    upstream = torch.randn(out.shape, generator=draw).to(dtype)
    return [each.to(device) for each in (*inputs, upstream)]


def run(kernels, case, x, weight, bias, a, b, upstream, need_x=True, need_adapter=True):
    y, u = kernels.forward(x, weight, bias, a, b, SCALING, convolution(case))
    gradients = kernels.backward(
        upstream, x, weight, a, b, u, SCALING, convolution(case), need_x=need_x, need_adapter=need_adapter
    )
    return {"y": y, "u": u, **dict(zip(("x", "lora_a", "lora_b"), gradients, strict=True))}


def expected(case, x, weight, bias, a, b, upstream):
    """The same by the formula in float64 and PyTorch's own gradients."""
    bias = None if bias is None else bias.double().cpu()
    x, weight, a, b = (each.double().cpu().requires_grad_() for each in (x, weight, a, b))
    stride, padding, dilation = convolution(case)
    y = reference(x, weight, bias, a, b, SCALING, stride=stride, padding=padding, dilation=dilation)
    u = functional.conv3d(x, a, None, stride, padding, dilation)
    gradients = torch.autograd.grad(y, (x, a, b), upstream.double().cpu())
    return {"y": y.detach(), "u": u.detach(), **dict(zip(("x", "lora_a", "lora_b"), gradients, strict=True))}


def assert_right(got, want, dtype, slack=1):
    errors = {name: relative_error(got[name], want[name]) / slack for name in want}
    assert len(errors) == 5
    assert {name: error for name, error in errors.items() if not error < TOLERANCE[dtype]} == {}
    assert {each.dtype for each in got.values()} == {dtype}


DRAWN = formats(UNGROUPED, BUSY)


@pytest.mark.parametrize(("case", "dtype"), DRAWN, ids=str)
def test_output_and_gradients_match_float64_and_no_voxel_is_left_unwritten(
    kernels, device, case, dtype, poisoned_empty
):
    inputs = tensors(case, dtype, device)
    assert_right(run(kernels, case, *inputs), expected(case, *inputs), dtype)


def test_all_cases_with_one_group_are_looked_at():
    assert len(UNGROUPED) >= 9
    assert len(DRAWN) == 2 * len(UNGROUPED) + 2


@pytest.mark.parametrize(
    ("inputs", "outputs", "rank"), [(20, 34, 20), (64, 6, 1), (70, 130, 3)], ids=["odd", "whole tap a block", "blocks"]
)
def test_channels_beyond_one_tile_match_float64(kernels, device, inputs, outputs, rank, poisoned_empty):
    case = Case("wide", inputs, outputs, (2, 3, 2), (1, 2, 1), rank=rank, batch=1, padding=(0, 1, 0))
    drawn = tensors(case, torch.float32, device)
    assert_right(run(kernels, case, *drawn), expected(case, *drawn), torch.float32)


def test_the_large_tiles_of_full_volumes_match_float64(kernels, launch, device, monkeypatch, poisoned_empty):
    monkeypatch.setattr(launch, "FULL", 0)
    case = Case("248 voxels out", 5, 6, (2, 5, 31), (1, 2, 3), padding=(0, 0, 1), batch=1)
    inputs = tensors(case, torch.bfloat16, device)
    walk = launch.Walk.gathering(case.kernel, *convolution(case))
    assert launch.convolution_plan((5, 6, 4), walk, torch.bfloat16, 248, True)[0]["BLOCK_M"] == 128
    assert_right(run(kernels, case, *inputs), expected(case, *inputs), torch.bfloat16)


SHARED = [
    # of 13 blocks of 64 voxels, and of 25 lines in 2 blocks of 16 each
    (Case("lines of whole blocks", 2, 3, (5, 5, 32), (1, 1, 2), padding=0, batch=1), 3, [(3, 5), (3, 17)]),
    # even voxels have lines of 17, odd ones of 16: 6 blocks of 64 voxels out, and 24 lines in 2 blocks each
    (Case("classes of unequal lines", 2, 3, (4, 6, 33), (1, 1, 2), (1, 1, 2), 0, batch=1), 6, [(2, 4), (3, 16)]),
]


@pytest.mark.parametrize(("case", "most", "shares"), SHARED, ids=[str(case) for case, *_ in SHARED])
def test_sums_over_several_programs_match_float64(
    kernels, launch, device, monkeypatch, poisoned_empty, case, most, shares
):
    monkeypatch.setattr(launch, "FULL", most)
    seen = []
    monkeypatch.setattr(launch, "_chunks", lambda *work, of=launch._chunks: seen.append(of(*work)) or seen[-1])
    inputs = tensors(case, torch.float32, device)
    assert_right(run(kernels, case, *inputs), expected(case, *inputs), torch.float32)
    assert seen == shares


@pytest.mark.soak
def test_drawn_shapes_match_float64(kernels, device):
    ran = []

    @settings(max_examples=EXAMPLES, phases=[Phase.generate])  # to shrink a failure would take many minutes
    @given(
        channels=st.tuples(*[st.integers(1, 3)] * 3),
        sides=st.tuples(*[st.integers(1, 4)] * 3),
        kernel=st.tuples(*[st.integers(1, 3)] * 3),
        stride=st.tuples(*[st.integers(1, 3)] * 3),
        padding=st.tuples(*[st.integers(0, 2)] * 3),
        dilation=st.tuples(*[st.integers(1, 2)] * 3),
        batch=st.integers(1, 2),
        biased=st.booleans(),
    )
    def check(channels, sides, kernel, stride, padding, dilation, batch, biased):
        fits = zip(sides, kernel, padding, dilation, strict=True)
        sides = tuple(max(side, d * (k - 1) + 1 - 2 * p) for side, k, p, d in fits)
        case = SimpleNamespace(
            size=sides, kernel=kernel, stride=stride, padding=padding, dilation=dilation, batch=batch
        )
        case.inputs, case.outputs, case.rank = channels
        x, weight, bias, a, b, upstream = tensors(case, torch.float32, device)
        drawn = (x, weight, bias if biased else None, a, b, upstream)
        # a gradient of one number may be a sum that cancels to a hundredth
        assert_right(run(kernels, case, *drawn), expected(case, *drawn), torch.float32, slack=100)
        ran.append(case)

    check()
    assert len(ran) >= EXAMPLES


def surrounded(tensor):
    """The same numbers, channels last, in the middle of a buffer of NaN."""
    rows = tensor.permute(0, *range(2, tensor.ndim), 1)
    buffer = torch.full((tensor.numel() + 2000,), float("nan"), dtype=tensor.dtype, device=tensor.device)
    middle = buffer[1000 : 1000 + tensor.numel()].view(rows.shape)
    middle.copy_(rows)
    return middle.permute(0, tensor.ndim - 1, *range(1, tensor.ndim - 1))


def test_nothing_is_read_around_the_tensors(kernels, device):
    inputs = tensors(BUSY, torch.float32, device)
    x, weight, bias, a, b, upstream = inputs
    bias = torch.cat([bias.new_full((9,), float("nan")), bias, bias.new_full((99,), float("nan"))])[9:-99]
    views = [surrounded(x), surrounded(weight), bias, surrounded(a), surrounded(b), surrounded(upstream)]
    assert all(torch.equal(view, plain) for view, plain in zip(views, inputs, strict=True))
    assert_right(run(kernels, BUSY, *views), expected(BUSY, *inputs), torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="addresses are seen in the interpreter")
@pytest.mark.parametrize("case", [BUSY, CASES[0]], ids=str)
def test_no_address_outside_the_tensors_is_touched(kernels, device, monkeypatch, case):
    from triton.runtime import interpreter

    tensor_ranges, touched = [], {"create_masked_load": [], "create_masked_store": []}
    launch = interpreter.GridExecutor.__call__

    def noting_the_tensors(self, *arguments, **constants):
        tensor_ranges[:] = [
            (each.data_ptr(), each.data_ptr() + each.numel() * each.element_size())
            for each in arguments
            if isinstance(each, torch.Tensor)
        ]
        return launch(self, *arguments, **constants)

    def noting_addresses(name):
        access = getattr(interpreter.InterpreterBuilder, name)

        def access_and_note(self, pointers, *more):
            mask = next(each.data for each in more if each.data.dtype == bool)
            at = pointers.data[mask]
            outside = at.size - sum(((first <= at) & (at < end)).sum() for first, end in set(tensor_ranges))
            touched[name].append((at.size, int(outside)))
            return access(self, pointers, *more)

        return access_and_note

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", noting_the_tensors)
    for name in touched:
        monkeypatch.setattr(interpreter.InterpreterBuilder, name, noting_addresses(name))
    run(kernels, case, *tensors(case, torch.float32, device))
    for accesses in touched.values():
        assert sum(size for size, _ in accesses) > 1000
        assert sum(outside for _, outside in accesses) == 0


def test_a_voxel_that_is_no_number_reaches_only_what_the_convolution_reaches(kernels, device):
    case = CASES[0]
    x, weight, bias, a, b, _ = tensors(case, torch.float32, device)
    x[1, 2, 3, 0, 6] = float("nan")
    y, u = kernels.forward(x, weight, bias, a, b, SCALING, convolution(case))
    reached = functional.conv3d(x, weight, padding=1).isnan()
    assert 0 < reached.sum() < reached.numel() // 4
    assert torch.equal(y.isnan(), reached)
    assert torch.equal(u.isnan(), reached[:, : case.rank])


def test_any_strides_are_read_inputs_stay_and_outputs_are_channels_last(kernels, device):
    plain = tensors(BUSY, torch.float32, device)
    want = run(kernels, BUSY, *plain)
    x, weight, bias, a, b, upstream = plain
    x = x.transpose(2, 4).contiguous().transpose(2, 4)
    upstream = torch.stack([upstream, upstream], dim=-1)[..., 0]
    before = [each.clone() for each in plain]
    got = run(kernels, BUSY, x, weight.to(memory_format=torch.channels_last_3d), bias, a, b[..., 0, 0, 0], upstream)
    got["lora_b"] = got["lora_b"].reshape(want["lora_b"].shape)
    assert len(got) == 5
    assert all(torch.equal(got[name], want[name]) for name in want)
    assert all(torch.equal(one, other) for one, other in zip(plain, before, strict=True))
    assert all(got[name].is_contiguous(memory_format=torch.channels_last_3d) for name in ("y", "u", "x"))
    assert all(got[name].is_contiguous() for name in ("lora_a", "lora_b"))


def test_only_what_is_not_channels_last_or_not_aligned_is_copied(launch, device):
    x = torch.randn(2, 3, 4, 5, 6, device=device).to(memory_format=torch.channels_last_3d)
    assert launch._last(x).data_ptr() == x.data_ptr()
    shifted = torch.randn(x.numel() + 1, device=device)[1:].view(2, 4, 5, 6, 3).permute(0, 4, 1, 2, 3)
    for volumes in (shifted, x.contiguous()):
        rows = launch._last(volumes)
        assert rows.data_ptr() % 16 == 0
        assert torch.equal(rows, volumes.permute(0, 2, 3, 4, 1))


def test_two_calls_give_the_same_bits(kernels, device):
    inputs = tensors(BUSY, torch.bfloat16, device)
    first, second = run(kernels, BUSY, *inputs), run(kernels, BUSY, *inputs)
    assert len(first) == 5
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_part_of_a_small_adapter_survives_bf16(kernels, device):
    case = Case("enough to average over", 8, 8, (4, 4, 4), batch=1)
    x, weight, bias, a, b, _ = tensors(case, torch.bfloat16, device)
    merged = torch.einsum("or,rcdhw->ocdhw", b.double().flatten(1), a.double())
    scaling = float(1e-3 * weight.double().norm() / merged.norm())
    tuned, _ = kernels.forward(x, weight, bias, a, b, scaling, convolution(case), out_dtype=torch.float32)
    frozen, _ = kernels.forward(x, weight, bias, a, b, 0.0, convolution(case), out_dtype=torch.float32)
    want = functional.conv3d(x.double(), scaling * merged, padding=1)
    assert tuned.dtype == torch.float32
    assert relative_error(tuned.double() - frozen.double(), want) < 0.02


def test_only_the_gradients_that_are_needed_come_back(kernels, device):
    inputs = tensors(BUSY, torch.float32, device)
    want = run(kernels, BUSY, *inputs)
    inward = run(kernels, BUSY, *inputs, need_adapter=False)
    assert inward["lora_a"] is None
    assert inward["lora_b"] is None
    assert torch.equal(inward["x"], want["x"])
    own = run(kernels, BUSY, *inputs, need_x=False)
    assert own["x"] is None
    assert torch.equal(own["lora_a"], want["lora_a"])
    assert torch.equal(own["lora_b"], want["lora_b"])
    neither = run(kernels, BUSY, *inputs, need_x=False, need_adapter=False)
    assert (neither["x"], neither["lora_a"], neither["lora_b"]) == (None, None, None)


def test_an_empty_batch_gives_empty_volumes_and_gradients_of_zero(kernels, device, poisoned_empty):
    x, weight, bias, a, b, upstream = tensors(BUSY, torch.float32, device)
    got = run(kernels, BUSY, x[:0], weight, bias, a, b, upstream[:0])
    assert got["y"].shape == upstream[:0].shape
    assert got["u"].shape == (0, BUSY.rank, *upstream.shape[2:])
    assert got["x"].shape == x[:0].shape
    assert got["lora_a"].shape == a.shape
    assert got["lora_b"].shape == b.shape
    assert not got["lora_a"].any()
    assert not got["lora_b"].any()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with room for 10 GB")
def test_volumes_beyond_two_to_the_31_numbers_match_at_their_far_end(kernels, device):
    if torch.cuda.mem_get_info()[0] < 14 * 2**30:
        pytest.skip("less than 14 GB of memory are free")
    torch.manual_seed(0)
    depth, last = 520, 4
    x = torch.randn(1, depth, 512, 512, 16, dtype=torch.bfloat16, device=device).permute(0, 4, 1, 2, 3)
    assert x.numel() > 2**31
    weight, a = (torch.randn(rows, 16, 3, 3, 3, dtype=torch.bfloat16, device=device) for rows in (2, 1))
    b = torch.randn(2, 1, dtype=torch.bfloat16, device=device)
    walk = Geometry(*[(1, 1, 1)] * 3)
    y, u = kernels.forward(x, weight, None, a, b, SCALING, walk)
    upstream = torch.zeros_like(y)
    upstream[:, :, -last:] = torch.randn_like(upstream[:, :, -last:])
    g_x, g_a, g_b = kernels.backward(upstream, x, weight, a, b, u, SCALING, walk, need_x=True, need_adapter=True)
    end = x[:, :, -last - 2 :].double().requires_grad_()
    weight, a, b = (each.double().requires_grad_() for each in (weight, a, b))
    want = reference(end, weight, None, a, b, SCALING, padding=1)[:, :, -last:]
    gradients = torch.autograd.grad(want, (end, a, b), upstream[:, :, -last:].double())
    assert relative_error(y[:, :, -last:], want) < TOLERANCE[torch.bfloat16]
    compared = zip((g_x[:, :, -last - 1 :], g_a, g_b), (gradients[0][:, :, 1:], *gradients[1:]), strict=True)
    errors = [relative_error(got, value) for got, value in compared]
    assert len(errors) == 3
    assert max(errors) < TOLERANCE[torch.bfloat16]
