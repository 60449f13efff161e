import copy

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional

from medseqft_kernels import lora_conv3d
from medseqft_kernels.lora_conv3d.cases import CASES, TOLERANCE, Case
from medseqft_kernels.lora_conv3d.reference import merged_weight, reference

NAMES = ("x", "weight", "bias", "lora_a", "lora_b")
SCALING = 0.7


@pytest.fixture
def as_users_run_it():
    """The suite checks annotated shapes at every call; users have the operation's own messages alone."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def tensors(case, dtype=torch.float64, dense=False):
    draw = torch.Generator().manual_seed(0)
    width = case.inputs // case.groups
    shapes = (
        (case.batch, case.inputs, *case.size),
        (case.outputs, width, *case.kernel),
        (case.outputs,),
        (case.rank, case.inputs if dense else width, *case.kernel),
        (case.outputs, case.rank // case.groups, 1, 1, 1),
    )
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def block_diagonal(weight, lora_a, lora_b, scaling, groups):
    """The dense convolution weight that a grouped or dense adapter amounts to, entry by entry."""
    outputs, width = weight.shape[:2]
    dense = weight.new_zeros(outputs, width * groups, *weight.shape[2:])
    rank = lora_a.shape[0]
    for o in range(outputs):
        group = o // (outputs // groups)
        own = slice(group * width, (group + 1) * width)
        dense[o, own] += weight[o]
        for i in range(rank // groups):
            row = lora_a[group * (rank // groups) + i]
            dense[o, own if row.shape[0] == width else slice(None)] += scaling * lora_b[o, i].squeeze() * row
    return dense


def outputs_and_gradients(function, inputs, upstream_dtype):
    """By name; the gradient that comes from above is the same numbers for every precision of the operation."""
    inputs = [each.detach().clone().requires_grad_() for each in inputs]
    out = function(*inputs)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(upstream_dtype).to(out.dtype)
    return {"out": out.detach(), **dict(zip(NAMES, torch.autograd.grad(out, inputs, upstream), strict=True))}


def relative(got, want):
    return float((got.detach().double() - want.detach().double()).norm() / want.detach().double().norm())


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_is_the_convolution_with_the_block_diagonal_weight(case):
    x, weight, bias, a, b = (each.detach() for each in tensors(case))
    dense = block_diagonal(weight, a, b, SCALING, case.groups)
    want = functional.conv3d(x, dense, bias, case.stride, case.padding, case.dilation)
    got = lora_conv3d(x, weight, bias, a, b, SCALING, **case.settings)
    assert relative(got, want) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_merged_weight_gives_the_same_output(case):
    for dtype in (torch.float64, torch.float32):
        x, weight, bias, a, b = (each.detach() for each in tensors(case, dtype))
        merged = merged_weight(weight, a, b, SCALING, case.groups)
        got = functional.conv3d(x, merged, bias, case.stride, case.padding, case.dilation, case.groups)
        want = lora_conv3d(x, weight, bias, a, b, SCALING, **case.settings)
        assert merged.dtype == dtype
        assert relative(got, want) < TOLERANCE[dtype]


FITS = [("auto", torch.float32), ("auto", torch.float16), ("auto", torch.bfloat16)]
FITS += [("reference", torch.float32), ("merged", torch.float32), ("merged", torch.float64)]


@pytest.mark.parametrize(("backend", "dtype"), FITS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_match_float64(case, backend, dtype):
    inputs = tensors(case, dtype)
    exact = [each.double() for each in inputs]
    got = outputs_and_gradients(lambda *t: lora_conv3d(*t, SCALING, **case.settings, backend=backend), inputs, dtype)
    want = outputs_and_gradients(lambda *t: reference(*t, SCALING, **case.settings), exact, dtype)
    assert {each.dtype for each in got.values()} == {dtype}
    wrong = {name: relative(got[name], want[name]) for name in got}
    assert len(wrong) == 6
    assert {name: value for name, value in wrong.items() if not value < TOLERANCE[dtype]} == {}


GRADCHECKED = (
    Case("odd", 2, 2, (3, 2, 3), kernel=(3, 1, 2), padding=1, rank=2, batch=1),
    Case("grouped and strided", 2, 4, (3, 3, 2), kernel=(2, 2, 1), stride=2, groups=2, rank=2, batch=1),
)


@pytest.mark.parametrize("case", GRADCHECKED, ids=str)
def test_gradients_are_the_finite_differences(case):
    assert torch.autograd.gradcheck(lambda *t: lora_conv3d(*t, SCALING, **case.settings), tensors(case))


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": 3, "stride": 2, "padding": 2},
        {"kernel_size": 1, "bias": False},
        {"kernel_size": (1, 3, 3), "padding": (0, 1, 1)},
        {"kernel_size": 3, "groups": 2},
    ],
    ids=str,
)
def test_output_and_gradients_match_peft(settings):
    torch.manual_seed(0)
    frozen = nn.Conv3d(4, 6, **settings).double()
    config = LoraConfig(r=4, lora_alpha=3, target_modules=["0"])
    peft = get_peft_model(nn.Sequential(copy.deepcopy(frozen)), config).base_model.model[0]
    a, b = peft.lora_A.default.weight, peft.lora_B.default.weight
    nn.init.normal_(b)
    x = torch.randn(2, 4, 5, 6, 7, dtype=torch.float64, requires_grad=True)
    want = peft(x)
    got = lora_conv3d(
        x, frozen.weight, frozen.bias, a, b, 3 / 4, stride=frozen.stride, padding=frozen.padding, groups=frozen.groups
    )
    assert relative(got, want) < TOLERANCE[torch.float64]
    ours, theirs = (torch.autograd.grad(out.square().sum(), (x, a, b)) for out in (got, want))
    compared = [relative(one, other) for one, other in zip(ours, theirs, strict=True)]
    assert len(compared) == 3
    assert max(compared) < TOLERANCE[torch.float64]


def test_dense_a_on_a_grouped_convolution_runs_and_is_refused_at_merge():
    case = next(case for case in CASES if case.groups == 2)
    x, weight, bias, a, b = (each.detach() for each in tensors(case, dense=True))
    dense = block_diagonal(weight, a, b, SCALING, case.groups)
    want = functional.conv3d(x, dense, bias, case.stride, case.padding, case.dilation)
    assert relative(lora_conv3d(x, weight, bias, a, b, SCALING, **case.settings), want) < TOLERANCE[torch.float64]
    with pytest.raises(ValueError, match=r"lora_a: found \(4, 4, 3, 3, 3\).*no grouped weight equals it"):
        merged_weight(weight, a, b, SCALING, case.groups)


def test_one_volume_without_a_batch_axis_and_an_empty_batch():
    _, weight, bias, a, b = tensors(CASES[0])
    x = torch.randn(3, 5, 4, 4, 4, dtype=torch.float64)
    batched = lora_conv3d(x, weight, bias, a, b, SCALING, padding=1)
    torch.testing.assert_close(lora_conv3d(x[1], weight, bias, a, b, SCALING, padding=1), batched[1])
    assert lora_conv3d(x[:0], weight, bias, a, b, SCALING, padding=1).shape == (0, 7, 4, 4, 4)


def test_channels_last_input_gives_channels_last_output():
    x, weight, bias, a, b = tensors(CASES[0], torch.float32)
    got = lora_conv3d(x.to(memory_format=torch.channels_last_3d), weight, bias, a, b, SCALING, padding=1)
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    assert relative(got, lora_conv3d(x, weight, bias, a, b, SCALING, padding=1)) < TOLERANCE[torch.float32]


def test_autocast_computes_in_bf16_with_fp32_parameters():
    x, weight, bias, a, b = tensors(CASES[0], torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = lora_conv3d(x, weight, bias, a, b, SCALING, padding=1)
    assert got.dtype == torch.bfloat16
    assert relative(got, lora_conv3d(x, weight, bias, a, b, SCALING, padding=1)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize(
    ("tensor", "shape", "message"),
    [
        ("x", (2, 5, 5, 4, 3), r"x: found \(2, 5, 5, 4, 3\), expected \(B, 4, D, H, W\)"),
        ("x", (4, 5, 4), r"x: found \(4, 5, 4\)"),
        ("weight", (6, 2, 3, 3), r"weight: found \(6, 2, 3, 3\), expected \(Cout, Cin/groups, kD, kH, kW\)"),
        ("weight", (5, 2, 3, 3, 3), r"weight: found 5 outputs, expected a multiple of groups = 2"),
        ("bias", (5,), r"bias: found \(5,\), expected \(6,\) or None"),
        ("lora_a", (4, 3, 3, 3, 3), r"lora_a: found \(4, 3, 3, 3, 3\), expected .*or dense"),
        ("lora_a", (4, 2, 3, 3, 1), r"lora_a: found \(4, 2, 3, 3, 1\)"),
        ("lora_a", (3, 2, 3, 3, 3), r"lora_a: found rank 3, expected a positive multiple of groups = 2"),
        ("lora_b", (6, 4), r"lora_b: found \(6, 4\), expected \(6, 2\) or \(6, 2, 1, 1, 1\)"),
        ("lora_b", (6, 2, 3, 1, 1), r"lora_b: found \(6, 2, 3, 1, 1\)"),
    ],
)
def test_wrong_shape_names_tensor_found_and_expected(as_users_run_it, tensor, shape, message):
    case = next(case for case in CASES if case.groups == 2)
    inputs = dict(zip(NAMES, tensors(case), strict=True)) | {tensor: torch.zeros(shape, dtype=torch.float64)}
    with pytest.raises(ValueError, match=message):
        lora_conv3d(**inputs, scaling=SCALING, **case.settings)


def test_wrong_dtype_and_unknown_backend_are_refused():
    x, weight, bias, a, b = tensors(CASES[0])
    with pytest.raises(ValueError, match=r"lora_b: found torch.float32, expected torch.float64, as x is"):
        lora_conv3d(x, weight, bias, a, b.float(), SCALING, padding=1)
    with pytest.raises(ValueError, match=r"backend: found 'cudnn', expected one of \['auto', 'reference', 'merged'\]"):
        lora_conv3d(x, weight, bias, a, b, SCALING, padding=1, backend="cudnn")


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 3),
    sides=st.tuples(*[st.integers(3, 6)] * 3),
    kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.tuples(*[st.integers(1, 3)] * 3),
    padding=st.tuples(*[st.integers(0, 2)] * 3),
    widths=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_any_shape_equals_its_block_diagonal_convolution(groups, sides, kernel, stride, padding, widths):
    inputs, outputs, rank = (width * groups for width in widths)
    case = Case("drawn", inputs, outputs, sides, kernel, stride, padding, groups=groups, rank=rank, batch=1)
    x, weight, bias, a, b = (each.detach() for each in tensors(case))
    want = functional.conv3d(x, block_diagonal(weight, a, b, SCALING, groups), bias, stride, padding)
    assert relative(lora_conv3d(x, weight, bias, a, b, SCALING, **case.settings), want) < TOLERANCE[torch.float64]
    merged = merged_weight(weight, a, b, SCALING, groups)
    assert relative(functional.conv3d(x, merged, bias, stride, padding, 1, groups), want) < TOLERANCE[torch.float64]


def test_the_merged_backend_is_refused_where_it_would_round_the_adapter_away():
    x, weight, bias, a, b = tensors(CASES[0], torch.float32)
    narrow = [each.bfloat16() for each in (x, weight, bias, a, b)]
    with pytest.raises(ValueError, match=r"backend: found 'merged', expected fp32 or fp64"):
        lora_conv3d(*narrow, SCALING, padding=1, backend="merged")
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="without autocast"):
        lora_conv3d(x, weight, bias, a, b, SCALING, padding=1, backend="merged")
