import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medseqft_kernels import lora_conv_transpose3d
from medseqft_kernels.lora_conv_transpose3d.cases import CASES, TOLERANCE, Case
from medseqft_kernels.lora_conv_transpose3d.reference import merged_weight, reference

NAMES = ("x", "weight", "bias", "lora_a", "lora_b")
SCALING = 0.7


def tensors(case, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    shapes = (
        (case.batch, case.inputs, *case.size),
        (case.inputs, case.outputs // case.groups, *case.kernel),
        (case.outputs,),
        (case.inputs, case.rank // case.groups, *case.kernel),
        (case.outputs, case.rank // case.groups, 1, 1, 1),
    )
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


def hand_merged(weight, lora_a, lora_b, scaling, groups):
    """W[c, o] + s·Σ_ρ A[c, ρ]·B[o, ρ], entry by entry."""
    merged = weight.clone()
    inputs, outputs = weight.shape[:2]
    for c in range(inputs):
        group = c // (inputs // groups)
        for o in range(outputs):
            for i in range(lora_a.shape[1]):
                merged[c, o] += scaling * lora_a[c, i] * lora_b[group * outputs + o, i].squeeze()
    return merged


def relative(got, want):
    return float((got.detach().double() - want.detach().double()).norm() / want.detach().double().norm())


def outputs_and_gradients(function, inputs, upstream_dtype):
    """The gradient that comes from above is the same numbers for every precision of the operation."""
    inputs = [each.detach().clone().requires_grad_() for each in inputs]
    out = function(*inputs)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(upstream_dtype).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_is_the_transposed_convolution_of_the_hand_merged_weight(case):
    for dtype in (torch.float64, torch.float32):
        x, weight, bias, a, b = (each.detach() for each in tensors(case, dtype))
        by_hand = hand_merged(weight.double(), a.double(), b.double(), SCALING, case.groups)
        want = functional.conv_transpose3d(x.double(), by_hand, bias.double(), **case.settings)
        got = lora_conv_transpose3d(x, weight, bias, a, b, SCALING, **case.settings)
        assert relative(got, want) < TOLERANCE[dtype]
        merged = merged_weight(weight, a, b, SCALING, case.groups)
        assert merged.dtype == dtype
        assert relative(merged, by_hand) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_match_float64(case, dtype):
    inputs = tensors(case, dtype)
    exact = [each.double() for each in inputs]
    got = outputs_and_gradients(lambda *t: lora_conv_transpose3d(*t, SCALING, **case.settings), inputs, dtype)
    want = outputs_and_gradients(lambda *t: reference(*t, SCALING, **case.settings), exact, dtype)
    assert len(got) == 6
    assert max(map(relative, got, want)) < TOLERANCE[dtype]


GRADCHECKED = (
    Case("overlapping", 2, 2, (2, 1, 2), (3, 2, 1), (2, 2, 1), output_padding=(1, 0, 0), rank=2, batch=1),
    Case("grouped", 2, 4, (2, 1, 2), groups=2, rank=2, batch=1),
)


@pytest.mark.parametrize("case", GRADCHECKED, ids=str)
def test_gradients_are_the_finite_differences(case):
    assert torch.autograd.gradcheck(lambda *t: lora_conv_transpose3d(*t, SCALING, **case.settings), tensors(case))


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(1, 3),
    sides=st.tuples(*[st.integers(1, 4)] * 3),
    kernel=st.tuples(*[st.integers(1, 3)] * 3),
    stride=st.integers(1, 3),
    widths=st.tuples(*[st.integers(1, 3)] * 3),
)
def test_any_shape_equals_its_merged_convolution(groups, sides, kernel, stride, widths):
    inputs, outputs, rank = (width * groups for width in widths)
    case = Case("drawn", inputs, outputs, sides, kernel, stride, 0, stride - 1, groups, rank=rank, batch=1)
    x, weight, bias, a, b = (each.detach() for each in tensors(case))
    want = functional.conv_transpose3d(x, hand_merged(weight, a, b, SCALING, groups), bias, **case.settings)
    got = lora_conv_transpose3d(x, weight, bias, a, b, SCALING, **case.settings)
    assert relative(got, want) < TOLERANCE[torch.float64]


@pytest.mark.parametrize(
    ("tensor", "shape", "message"),
    [
        ("x", (2, 5, 3, 2, 4), r"x: found \(2, 5, 3, 2, 4\), expected \(B, 4, D, H, W\)"),
        ("weight", (4, 3, 2, 2), r"weight: found \(4, 3, 2, 2\), expected \(Cin, Cout/groups, kD, kH, kW\)"),
        ("weight", (5, 3, 2, 2, 2), r"weight: found 5 inputs, expected a multiple of groups = 2"),
        ("bias", (3,), r"bias: found \(3,\), expected \(6,\) or None"),
        ("lora_a", (4, 2, 2, 2, 3), r"lora_a: found \(4, 2, 2, 2, 3\), expected \(4, 'r/groups', 2, 2, 2\)"),
        ("lora_b", (6, 4, 1, 1, 1), r"lora_b: found \(6, 4, 1, 1, 1\), expected \(6, 2\) or \(6, 2, 1, 1, 1\)"),
    ],
)
def test_wrong_shape_names_tensor_found_and_expected(tensor, shape, message):
    case = next(case for case in CASES if case.groups == 2)
    inputs = dict(zip(NAMES, tensors(case), strict=True)) | {tensor: torch.zeros(shape, dtype=torch.float64)}
    jaxtyping.config.update("jaxtyping_disable", True)  # users have the operation's own messages alone
    try:
        with pytest.raises(ValueError, match=message):
            lora_conv_transpose3d(**inputs, scaling=SCALING, **case.settings)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match=r"backend: found 'fast', expected one of \['auto', 'reference'\]"):
        lora_conv_transpose3d(*tensors(CASES[0]), SCALING, stride=2, backend="fast")
