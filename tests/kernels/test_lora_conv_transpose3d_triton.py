import importlib
import os

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medseqft_kernels import lora_conv_transpose3d
from medseqft_kernels.adapter import MOST_TRITON_RANK
from medseqft_kernels.checks import three
from medseqft_kernels.lora_conv_transpose3d.cases import CASES, Case
from medseqft_kernels.lora_conv_transpose3d.forms import Geometry
from medseqft_kernels.lora_conv_transpose3d.reference import merged_weight, reference
from medseqft_kernels.tolerance import TOLERANCE, relative_error
from tests.kernels.formats import formats

pytestmark = pytest.mark.usefixtures("needs_triton")

UNGROUPED = [case for case in CASES if case.groups == 1]
BUSY = Case("all at once", 3, 5, (3, 4, 2), (3, 2, 2), (2, 1, 3), 1, (1, 0, 0), rank=3)
SCALING = 0.7
EXAMPLES = int(os.environ.get("MEDSEQFT_INTERPRETER_EXAMPLES", "25"))
NAMES = ("x", "lora_a", "lora_b")


@pytest.fixture
def kernels(needs_triton):
    return importlib.import_module("medseqft_kernels.lora_conv_transpose3d.triton")


@pytest.fixture
def launch(needs_triton):
    return importlib.import_module("medseqft_kernels.convolution_launch")


def geometry(case):
    return Geometry(*map(three, (case.stride, case.padding, case.output_padding, case.dilation)))


def tensors(case, dtype, device):
    """x, weight, bias, lora_a, lora_b and the upstream gradient."""
    draw = torch.Generator().manual_seed(0)
    shapes = (
        (case.batch, case.inputs, *case.size),
        (case.inputs, case.outputs, *case.kernel),
        (case.outputs,),
        (case.inputs, case.rank, *case.kernel),
        (case.outputs, case.rank, 1, 1, 1),
        (case.batch, case.outputs, *geometry(case).output_size(case.size, case.kernel)),
    )
    return [torch.randn(shape, generator=draw).to(dtype).to(device) for shape in shapes]


def run(kernels, case, x, weight, bias, a, b, upstream, need_x=True, need_adapter=True):
    y, u = kernels.forward(x, weight, bias, a, b, SCALING, geometry(case))
    wanted = {"need_x": need_x, "need_adapter": need_adapter}
    gradients = kernels.backward(upstream, x, weight, a, b, u, SCALING, geometry(case), **wanted)
    return {"y": y, "u": u, **dict(zip(NAMES, gradients, strict=True))}


def expected(case, x, weight, bias, a, b, upstream):
    """The same by the formula in float64 and PyTorch's own gradients."""
    bias = None if bias is None else bias.double().cpu()
    x, weight, a, b = (each.double().cpu().requires_grad_() for each in (x, weight, a, b))
    walk = geometry(case)._asdict()
    y = reference(x, weight, bias, a, b, SCALING, **walk)
    u = functional.conv_transpose3d(x, a, None, **walk)
    gradients = torch.autograd.grad(y, (x, a, b), upstream.double().cpu())
    return {"y": y.detach(), "u": u.detach(), **dict(zip(NAMES, gradients, strict=True))}


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
    assert len(UNGROUPED) >= 6
    assert len(DRAWN) == 2 * len(UNGROUPED) + 2


@pytest.mark.parametrize(
    ("inputs", "outputs", "rank"), [(20, 34, 20), (64, 6, 1), (130, 70, 3)], ids=["odd", "whole tap a block", "blocks"]
)
def test_channels_beyond_one_tile_match_float64(kernels, device, inputs, outputs, rank, poisoned_empty):
    case = Case("wide", inputs, outputs, (2, 2, 2), (1, 2, 1), (1, 2, 1), rank=rank, batch=1)
    drawn = tensors(case, torch.float32, device)
    assert_right(run(kernels, case, *drawn), expected(case, *drawn), torch.float32)


def test_the_large_tiles_of_full_volumes_match_float64(kernels, launch, device, monkeypatch, poisoned_empty):
    monkeypatch.setattr(launch, "FULL", 0)
    case = Case("two classes of 148 voxels", 5, 6, (2, 2, 37), (1, 1, 2), (1, 1, 2), batch=1)
    inputs = tensors(case, torch.bfloat16, device)
    stride, padding, _, dilation = geometry(case)
    walk = launch.Walk.spreading(case.kernel, stride, padding, dilation)
    assert launch.convolution_plan((5, 6, 4), walk, torch.bfloat16, 296, True)[0]["BLOCK_M"] == 128
    assert_right(run(kernels, case, *inputs), expected(case, *inputs), torch.bfloat16)


def test_sums_over_several_programs_match_float64(kernels, launch, device, monkeypatch, poisoned_empty):
    monkeypatch.setattr(launch, "FULL", 3)
    seen = []
    monkeypatch.setattr(launch, "_chunks", lambda *work, of=launch._chunks: seen.append(of(*work)) or seen[-1])
    case = Case("lines of two blocks", 2, 3, (3, 4, 17), (1, 1, 3), (1, 1, 2), batch=1)
    inputs = tensors(case, torch.float32, device)
    assert_right(run(kernels, case, *inputs), expected(case, *inputs), torch.float32)
    assert seen == [(2, 4), (3, 8)]  # of 7 blocks of 64 voxels of y, and of 12 lines of x in 2 blocks of 16 each


def test_voxels_that_only_the_output_padding_reaches_hold_the_bias(kernels, device, poisoned_empty):
    case = Case("stride beyond the kernel", 3, 4, (2, 3, 2), (1, 1, 1), 3, output_padding=2, batch=1)
    x, weight, bias, a, b, _ = tensors(case, torch.float32, device)
    y, u = kernels.forward(x, weight, bias, a, b, SCALING, geometry(case))
    reached = torch.zeros(y.shape[2:], dtype=torch.bool, device=device)
    reached[::3, ::3, ::3] = True
    assert tuple(reached.shape) == (6, 9, 6)
    assert torch.equal(y[..., ~reached], bias[None, :, None].expand_as(y[..., ~reached]))
    assert not u[..., ~reached].any()
    assert u[..., reached].all()


@pytest.mark.soak
def test_drawn_shapes_match_float64(kernels, device):
    ran = []

    @settings(max_examples=EXAMPLES, phases=[Phase.generate])  # to shrink a failure would take many minutes
    @given(
        channels=st.tuples(*[st.integers(1, 3)] * 3),
        sides=st.tuples(*[st.integers(1, 3)] * 3),
        kernel=st.tuples(*[st.integers(1, 3)] * 3),
        stride=st.tuples(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3)),
        padding=st.integers(0, 2),
        dilation=st.integers(1, 2),
        more=st.tuples(*[st.integers(0, 2)] * 3),
        batch=st.integers(1, 2),
        biased=st.booleans(),
    )
    def check(channels, sides, kernel, stride, padding, dilation, more, batch, biased):
        more = tuple(min(m, max(s, dilation) - 1) for m, s in zip(more, stride, strict=True))
        least = [1 + -(-max(0, 2 * padding - dilation * (k - 1)) // s) for k, s in zip(kernel, stride, strict=True)]
        sides = tuple(map(max, sides, least))  # one voxel out at least
        inputs, outputs, rank = channels
        case = Case("drawn", inputs, outputs, sides, kernel, stride, padding, more, 1, dilation, rank, batch)
        x, weight, bias, a, b, upstream = tensors(case, torch.float32, device)
        drawn = (x, weight, bias if biased else None, a, b, upstream)
        # a gradient of one number may be a sum that cancels to a hundredth
        assert_right(run(kernels, case, *drawn), expected(case, *drawn), torch.float32, slack=100)
        ran.append(case)

    check()
    assert len(ran) >= EXAMPLES


def surrounded(tensor):
    """The same numbers, channels last, in the middle of a buffer of NaN."""
    rows = tensor.movedim(1, -1)
    buffer = torch.full((tensor.numel() + 2000,), float("nan"), dtype=tensor.dtype, device=tensor.device)
    middle = buffer[1000 : 1000 + tensor.numel()].view(rows.shape)
    middle.copy_(rows)
    return middle.movedim(-1, 1)


def test_nothing_is_read_around_the_tensors(kernels, device):
    inputs = tensors(BUSY, torch.float32, device)
    x, weight, bias, a, b, upstream = inputs
    bias = torch.cat([bias.new_full((9,), float("nan")), bias, bias.new_full((99,), float("nan"))])[9:-99]
    views = [surrounded(x), surrounded(weight), bias, surrounded(a), surrounded(b), surrounded(upstream)]
    assert all(torch.equal(view, plain) for view, plain in zip(views, inputs, strict=True))
    assert_right(run(kernels, BUSY, *views), expected(BUSY, *inputs), torch.float32)


def test_a_voxel_that_is_no_number_reaches_only_what_the_convolution_reaches(kernels, device):
    x, weight, bias, a, b, _ = tensors(BUSY, torch.float32, device)
    x[1, 2, 2, 0, 1] = float("nan")
    y, u = kernels.forward(x, weight, bias, a, b, SCALING, geometry(BUSY))
    reached = functional.conv_transpose3d(x, weight, **geometry(BUSY)._asdict()).isnan()
    assert 0 < reached.sum() < reached.numel() // 4
    assert torch.equal(y.isnan(), reached)
    assert torch.equal(u.isnan(), reached[:, : BUSY.rank])


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


def test_two_calls_give_the_same_bits(kernels, device):
    inputs = tensors(BUSY, torch.bfloat16, device)
    first, second = run(kernels, BUSY, *inputs), run(kernels, BUSY, *inputs)
    assert len(first) == 5
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_part_of_a_small_adapter_survives_bf16(kernels, device):
    case = Case("enough to average over", 8, 8, (4, 4, 4), (3, 3, 3), 2, 1, 1, batch=1)
    x, weight, bias, a, b, _ = tensors(case, torch.bfloat16, device)
    delta = merged_weight(torch.zeros_like(weight).double(), a.double(), b.double(), 1.0)
    scaling = float(1e-3 * weight.double().norm() / delta.norm())
    tuned, frozen = (
        kernels.forward(x, weight, bias, a, b, s, geometry(case), out_dtype=torch.float32)[0] for s in (scaling, 0.0)
    )
    want = functional.conv_transpose3d(x.double(), scaling * delta, **geometry(case)._asdict())
    assert tuned.dtype == torch.float32
    assert relative_error(tuned.double() - frozen.double(), want) < 0.02


def test_only_the_gradients_that_are_needed_come_back(kernels, device):
    inputs = tensors(BUSY, torch.float32, device)
    want = run(kernels, BUSY, *inputs)
    inward = run(kernels, BUSY, *inputs, need_adapter=False)
    assert (inward["lora_a"], inward["lora_b"]) == (None, None)
    assert torch.equal(inward["x"], want["x"])
    own = run(kernels, BUSY, *inputs, need_x=False)
    assert own["x"] is None
    assert torch.equal(own["lora_a"], want["lora_a"])
    assert torch.equal(own["lora_b"], want["lora_b"])
    neither = run(kernels, BUSY, *inputs, need_x=False, need_adapter=False)
    assert [neither[name] for name in NAMES] == [None] * 3


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


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_opcheck_accepts_the_custom_op_with_the_kernels(device, layout):
    case = Case("small", 2, 3, (2, 2, 2), (1, 2, 1), (1, 2, 1), batch=1)
    x, *rest, upstream = tensors(case, torch.float32, device)
    x = x.to(memory_format=layout)
    settings = (SCALING, *map(list, geometry(case)), "triton")
    weight, bias, a, b = rest
    operation = torch.ops.medseqft.lora_conv_transpose3d
    wanted = [each.clone().requires_grad_() for each in (x, bias, a, b)]
    arguments = (wanted[0], weight, *wanted[1:], *settings)
    assert set(torch.library.opcheck(operation.default, arguments).values()) == {"SUCCESS"}
    _, u = operation(x, *rest, *settings)
    backward = torch.ops.medseqft.lora_conv_transpose3d_backward.default
    arguments = (upstream, x, weight, a, b, u, *settings, True, True)
    assert set(torch.library.opcheck(backward, arguments).values()) == {"SUCCESS"}


def test_the_public_function_takes_the_kernels_where_they_fit_and_the_formula_elsewhere(device):
    case = CASES[0]
    x, weight, bias, a, b, _ = tensors(case, torch.float32, device)
    want = reference(x, weight, bias, a, b, SCALING, stride=2)
    got = lora_conv_transpose3d(x, weight, bias, a, b, SCALING, stride=2, backend="triton")
    assert relative_error(got, want) < TOLERANCE[torch.float32]
    assert not torch.equal(got, want)
    rank = MOST_TRITON_RANK + 1
    a, b = a[:, :1].expand(-1, rank, -1, -1, -1).contiguous(), b[:, :1].expand(-1, rank, -1, -1, -1).contiguous()
    wide = lora_conv_transpose3d(x, weight, bias, a, b, SCALING, stride=2, backend="triton")
    assert torch.equal(wide, reference(x, weight, bias, a, b, SCALING, stride=2))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with room for 10 GB")
def test_volumes_beyond_two_to_the_31_numbers_match_at_their_far_end(kernels, device):
    if torch.cuda.mem_get_info()[0] < 14 * 2**30:
        pytest.skip("less than 14 GB of memory are free")
    draw = torch.Generator(device).manual_seed(0)

    def randn(*shape):
        return torch.randn(shape, generator=draw, device=device).bfloat16()

    ones, twos, none = (1, 1, 1), (2, 2, 2), (0, 0, 0)
    walk = Geometry(twos, none, none, ones)
    x = randn(1, 260, 256, 256, 2).movedim(-1, 1)
    weight, a, b = randn(2, 16, 2, 2, 2), randn(2, 1, 2, 2, 2), randn(16, 1)
    y, u = kernels.forward(x, weight, None, a, b, SCALING, walk)
    assert y.numel() > 2**31
    upstream = torch.zeros_like(y)
    upstream[:, :, -4:] = randn(1, 4, 512, 512, 16).movedim(-1, 1)
    gradients = kernels.backward(upstream, x, weight, a, b, u, SCALING, walk, need_x=True, need_adapter=True)
    end = x[:, :, -2:].double().requires_grad_()
    weight, a, b = (each.double().requires_grad_() for each in (weight, a, b))
    want = reference(end, weight, None, a, b, SCALING, stride=2)
    assert relative_error(y[:, :, -4:], want) < TOLERANCE[torch.bfloat16]
    wanted = torch.autograd.grad(want, (end, a, b), upstream[:, :, -4:].double())
    compared = zip((gradients[0][:, :, -2:], *gradients[1:]), wanted, strict=True)
    errors = [relative_error(got, value) for got, value in compared]
    assert len(errors) == 3
    assert max(errors) < TOLERANCE[torch.bfloat16]
