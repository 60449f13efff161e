import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from medseqft_kernels import lora_conv_transpose3d
from medseqft_kernels.convolution_forms import forward_concatenated
from medseqft_kernels.lora_conv_transpose3d.backends import BACKENDS
from medseqft_kernels.lora_conv_transpose3d.cases import CASES, TOLERANCE, Case
from medseqft_kernels.lora_conv_transpose3d.forms import Geometry
from medseqft_kernels.lora_conv_transpose3d.reference import merged_weight, reference
from medseqft_kernels.tolerance import CANCELLING, relative_error

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


WIDE, NARROW = (torch.float64, torch.float32), (torch.float16, torch.bfloat16)
FORMS = [name for name in BACKENDS if name != "triton"]
FITS = [(name, dtype) for name in ("auto", "reference") for dtype in (*WIDE, *NARROW)]
FITS += [(name, dtype) for name in FORMS for dtype in (WIDE if BACKENDS[name].merges else WIDE + NARROW)]


def frozen(inputs):
    """The weight wants no gradient, so that the operation's own formulas are taken."""
    return [each.detach().requires_grad_(index != 1) for index, each in enumerate(inputs)]


def outputs_and_gradients(function, inputs, upstream_dtype):
    """The gradient that comes from above is the same numbers for every precision of the operation."""
    inputs = frozen(inputs)
    out = function(*inputs)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(upstream_dtype).to(out.dtype)
    wanted = [each for each in inputs if each.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, upstream)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_is_the_transposed_convolution_of_the_hand_merged_weight(case):
    for dtype in (torch.float64, torch.float32):
        x, weight, bias, a, b = (each.detach() for each in tensors(case, dtype))
        by_hand = hand_merged(weight.double(), a.double(), b.double(), SCALING, case.groups)
        want = functional.conv_transpose3d(x.double(), by_hand, bias.double(), **case.settings)
        got = lora_conv_transpose3d(x, weight, bias, a, b, SCALING, **case.settings)
        assert relative_error(got, want) < TOLERANCE[dtype]
        merged = merged_weight(weight, a, b, SCALING, case.groups)
        assert merged.dtype == dtype
        assert relative_error(merged, by_hand) < TOLERANCE[dtype]


@pytest.mark.parametrize(("backend", "dtype"), FITS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_match_float64(case, backend, dtype):
    inputs = tensors(case, dtype)
    exact = [each.double() for each in inputs]
    got = outputs_and_gradients(
        lambda *t: lora_conv_transpose3d(*t, SCALING, **case.settings, backend=backend), inputs, dtype
    )
    want = outputs_and_gradients(lambda *t: reference(*t, SCALING, **case.settings), exact, dtype)
    assert len(got) == 5
    assert {each.dtype for each in got} == {dtype}
    assert max(map(relative_error, got, want)) < TOLERANCE[dtype]


GRADCHECKED = (
    Case("overlapping", 2, 2, (2, 1, 2), (3, 2, 1), (2, 2, 1), output_padding=(1, 0, 0), rank=2, batch=1),
    Case("grouped", 2, 4, (2, 1, 2), groups=2, rank=2, batch=1),
)


@pytest.mark.parametrize("backend", ["reference", *FORMS])
@pytest.mark.parametrize("case", GRADCHECKED, ids=str)
def test_gradients_are_the_finite_differences(case, backend):
    def call(*inputs):
        return lora_conv_transpose3d(*inputs, SCALING, **case.settings, backend=backend)

    assert torch.autograd.gradcheck(call, frozen(tensors(case)))


@st.composite
def drawn_cases(draw):
    groups, stride, dilation = (draw(st.integers(1, 3)) for _ in range(3))
    kernel = draw(st.tuples(*[st.integers(1, 3)] * 3))
    inputs, outputs, rank = (draw(st.integers(1, 3)) * groups for _ in range(3))
    padding = draw(st.integers(0, 1))
    least = [1 + -(-max(0, 2 * padding - dilation * (k - 1)) // stride) for k in kernel]  # one voxel out at least
    size = tuple(max(draw(st.integers(1, 4)), n) for n in least)
    more = draw(st.integers(0, max(stride, dilation) - 1))
    batch = draw(st.integers(1, 2))
    return Case("drawn", inputs, outputs, size, kernel, stride, padding, more, groups, dilation, rank, batch)


@pytest.mark.parametrize("backend", FORMS)
def test_any_shape_equals_its_merged_convolution(backend):
    ran = []

    @settings(max_examples=300)
    @given(drawn_cases())
    def check(case):
        drawn = tensors(case)
        x, weight, bias, a, b = (each.detach() for each in drawn)
        merged = hand_merged(weight, a, b, SCALING, case.groups)
        want = functional.conv_transpose3d(x, merged, bias, **case.settings)
        got = outputs_and_gradients(
            lambda *t: lora_conv_transpose3d(*t, SCALING, **case.settings, backend=backend), drawn, torch.float64
        )
        wanted = outputs_and_gradients(lambda *t: reference(*t, SCALING, **case.settings), drawn, torch.float64)
        assert relative_error(got[0], want) < TOLERANCE[torch.float64]
        assert max(map(relative_error, got, wanted)) < CANCELLING
        ran.append(case)

    check()
    assert len(ran) >= 300


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_the_adapters_own_part_survives_where_it_is_a_thousandth_of_the_weight(dtype):
    x, weight, _, a, b = (each.detach().to(dtype) for each in tensors(Case("small adapter", 16, 12, (5, 5, 5))))
    delta = merged_weight(torch.zeros_like(weight).double(), a.double(), b.double(), 1.0)
    scaling = float(1e-3 * weight.double().norm() / delta.norm())
    walk = Geometry((2, 2, 2), (0, 0, 0), (0, 0, 0), (1, 1, 1))
    got, without = (forward_concatenated(x, weight, None, a, b, s, walk, torch.float32)[0] for s in (scaling, 0.0))
    want = scaling * functional.conv_transpose3d(x.double(), delta, stride=2)
    assert relative_error(got - without, want) < 0.02


@pytest.mark.parametrize("backend", FORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_opcheck_accepts_the_custom_op(backend, layout):
    x, *rest = frozen(tensors(CASES[0], torch.float32))
    x = x.detach().to(memory_format=layout).requires_grad_()
    settings = (SCALING, [2] * 3, [0] * 3, [0] * 3, [1] * 3, backend)
    operation = torch.ops.medseqft.lora_conv_transpose3d
    assert set(torch.library.opcheck(operation.default, (x, *rest, *settings)).values()) == {"SUCCESS"}
    y, u = operation(x, *rest, *settings)
    weight, _, a, b = rest
    plain = [each.detach() for each in (torch.ones_like(y), x, weight, a, b, u)]
    checked = torch.library.opcheck(
        torch.ops.medseqft.lora_conv_transpose3d_backward.default, (*plain, *settings, True, True)
    )
    assert set(checked.values()) == {"SUCCESS"}


def test_autocast_computes_in_bf16_with_fp32_parameters():
    x, weight, bias, a, b = frozen(tensors(CASES[0], torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = lora_conv_transpose3d(x, weight, bias, a, b, SCALING, stride=2)
    assert got.dtype == torch.bfloat16
    want = lora_conv_transpose3d(x, weight, bias, a, b, SCALING, stride=2)
    assert relative_error(got, want) < TOLERANCE[torch.bfloat16]


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
    with pytest.raises(
        ValueError, match=r"backend: found 'fast', expected one of \['auto', 'reference', 'merged-projected'"
    ):
        lora_conv_transpose3d(*tensors(CASES[0]), SCALING, stride=2, backend="fast")
