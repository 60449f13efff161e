import copy
import os

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from medseqft_kernels import lora_linear
from medseqft_kernels.lora_linear.backends import BACKENDS
from medseqft_kernels.lora_linear.cases import CASES, TOLERANCE, Case
from medseqft_kernels.lora_linear.forms import forward_concatenated
from medseqft_kernels.lora_linear.reference import merged_weight, reference
from medseqft_kernels.tolerance import CANCELLING, relative_error

NAMES = ("x", "weight", "bias", "lora_a", "lora_b")
SCALING = 0.7


def tensors(case, dtype=torch.float64):
    draw = torch.Generator().manual_seed(0)
    shapes = (
        (*case.leading, case.inputs),
        (case.outputs, case.inputs),
        (case.outputs,),
        (case.rank, case.inputs),
        (case.outputs, case.rank),
    )
    return [torch.randn(shape, generator=draw, dtype=torch.float64).to(dtype).requires_grad_() for shape in shapes]


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
    draw = torch.Generator().manual_seed(1)
    upstream = torch.randn(out.shape, generator=draw).to(out.device).to(upstream_dtype).to(out.dtype)
    wanted = [each for each in inputs if each.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, upstream)]


@pytest.mark.parametrize(("backend", "dtype"), FITS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_match_float64(case, backend, dtype):
    inputs = tensors(case, dtype)
    got = outputs_and_gradients(lambda *t: lora_linear(*t, SCALING, backend=backend), inputs, dtype)
    want = outputs_and_gradients(lambda *t: reference(*t, SCALING), [each.double() for each in inputs], dtype)
    assert len(got) == 5
    assert {each.dtype for each in got} == {dtype}
    assert max(map(relative_error, got, want)) < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", ["reference", *FORMS])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_the_finite_differences(case, backend):
    assert torch.autograd.gradcheck(lambda *t: lora_linear(*t, SCALING, backend=backend), frozen(tensors(case)))


@pytest.mark.parametrize("bias", [True, False])
def test_output_and_gradients_match_peft(bias):
    torch.manual_seed(0)
    frozen = nn.Linear(5, 7, bias=bias).double()
    config = LoraConfig(r=3, lora_alpha=2, target_modules=["0"])
    peft = get_peft_model(nn.Sequential(copy.deepcopy(frozen)), config).base_model.model[0]
    a, b = peft.lora_A.default.weight, peft.lora_B.default.weight
    nn.init.normal_(b)
    x = torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True)
    got, want = lora_linear(x, frozen.weight, frozen.bias, a, b, 2 / 3), peft(x)
    assert relative_error(got, want) < TOLERANCE[torch.float64]
    ours, theirs = (torch.autograd.grad(out.square().sum(), (x, a, b)) for out in (got, want))
    compared = [relative_error(one, other) for one, other in zip(ours, theirs, strict=True)]
    assert len(compared) == 3
    assert max(compared) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("backend", FORMS)
def test_any_shape_equals_the_product_with_the_merged_weight(backend):
    ran = []
    sizes, leading = st.integers(1, 9), st.lists(st.integers(0, 4), max_size=3)

    @settings(max_examples=300)
    @given(sizes, sizes, sizes, leading)
    def check(inputs, outputs, rank, leading):
        drawn = tensors(Case("drawn", inputs, outputs, tuple(leading), rank))
        x, weight, bias, a, b = (each.detach() for each in drawn)
        want = x @ (weight + SCALING * torch.einsum("or,ri->oi", b, a)).T + bias
        assert relative_error(lora_linear(x, weight, bias, a, b, SCALING), want) < TOLERANCE[torch.float64]
        assert relative_error(x @ merged_weight(weight, a, b, SCALING).T + bias, want) < TOLERANCE[torch.float64]
        got = outputs_and_gradients(lambda *t: lora_linear(*t, SCALING, backend=backend), drawn, torch.float64)
        wanted = outputs_and_gradients(lambda *t: reference(*t, SCALING), drawn, torch.float64)
        assert max(map(relative_error, got, wanted)) < CANCELLING
        ran.append(leading)

    check()
    assert len(ran) >= 300


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_the_adapters_own_part_survives_where_it_is_a_thousandth_of_the_weight(dtype):
    x, weight, _, a, b = (each.detach().to(dtype) for each in tensors(Case("small adapter", 64, 48, (50,))))
    delta = b.double() @ a.double()
    scaling = float(1e-3 * weight.double().norm() / delta.norm())
    got, without = (forward_concatenated(x, weight, None, a, b, s, torch.float32)[0] for s in (scaling, 0.0))
    assert relative_error(got - without, scaling * x.double() @ delta.T) < 0.02


@pytest.mark.parametrize("backend", FORMS)
def test_opcheck_accepts_the_custom_op(backend):
    arguments = (*frozen(tensors(Case("two axes", 6, 5, (4,)), torch.float32)), SCALING, backend)
    assert set(torch.library.opcheck(torch.ops.medseqft.lora_linear.default, arguments).values()) == {"SUCCESS"}
    y, u = torch.ops.medseqft.lora_linear(*arguments)
    x, weight, _, a, b = (each.detach() for each in arguments[:5])
    backward = (torch.ones_like(y.detach()), x, weight, a, b, u.detach(), SCALING, backend, True, True)
    checked = torch.library.opcheck(torch.ops.medseqft.lora_linear_backward.default, backward)
    assert set(checked.values()) == {"SUCCESS"}


def test_autocast_computes_in_bf16_with_fp32_parameters():
    x, weight, bias, a, b = frozen(tensors(CASES[0], torch.float32))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = lora_linear(x, weight, bias, a, b, SCALING)
    assert got.dtype == torch.bfloat16
    assert relative_error(got, lora_linear(x, weight, bias, a, b, SCALING)) < TOLERANCE[torch.bfloat16]


@pytest.mark.parametrize(
    ("tensor", "shape", "message"),
    [
        ("x", (3, 5), r"x: found \(3, 5\), expected \(…, 6\)"),
        ("weight", (18,), r"weight: found \(18,\), expected \(Cout, Cin\)"),
        ("bias", (6,), r"bias: found \(6,\), expected \(18,\) or None"),
        ("lora_a", (4, 5), r"lora_a: found \(4, 5\), expected \(r, 6\)"),
        ("lora_b", (18, 3), r"lora_b: found \(18, 3\), expected \(18, 4\)"),
    ],
)
def test_wrong_shape_names_tensor_found_and_expected(tensor, shape, message):
    inputs = dict(zip(NAMES, tensors(CASES[0]), strict=True)) | {tensor: torch.zeros(shape, dtype=torch.float64)}
    jaxtyping.config.update("jaxtyping_disable", True)  # users have the operation's own messages alone
    try:
        with pytest.raises(ValueError, match=message):
            lora_linear(**inputs, scaling=SCALING)
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_unknown_backend_is_refused():
    with pytest.raises(
        ValueError, match=r"backend: found 'fast', expected one of \['auto', 'reference', 'merged-projected'"
    ):
        lora_linear(*tensors(CASES[0]), SCALING, backend="fast")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_triton_matches_float64(needs_triton, device, poisoned_empty, case, dtype):
    inputs = [each.detach().to(device) for each in tensors(case, dtype)]
    got = outputs_and_gradients(lambda *t: lora_linear(*t, SCALING, backend="triton"), inputs, dtype)
    want = outputs_and_gradients(lambda *t: reference(*t, SCALING), [each.double() for each in inputs], dtype)
    assert len(got) == 5
    assert {each.dtype for each in got} == {dtype}
    assert max(map(relative_error, got, want)) < TOLERANCE[dtype]


@pytest.mark.soak
def test_any_shape_is_right_in_triton(needs_triton, device):
    ran, most = [], int(os.environ.get("MEDSEQFT_INTERPRETER_EXAMPLES", "25"))
    sizes, leading = st.integers(1, 20), st.lists(st.integers(0, 4), max_size=2)

    @settings(max_examples=most)
    @given(sizes, sizes, st.integers(1, 5), leading)
    def check(inputs, outputs, rank, leading):
        drawn = tensors(Case("drawn", inputs, outputs, tuple(leading), rank), torch.float32)
        drawn = [each.detach().to(device) for each in drawn]
        got = outputs_and_gradients(lambda *t: lora_linear(*t, SCALING, backend="triton"), drawn, torch.float32)
        exact = [each.double() for each in drawn]
        want = outputs_and_gradients(lambda *t: reference(*t, SCALING), exact, torch.float32)
        # a gradient of one number may be a sum that cancels to a hundredth
        assert max(map(relative_error, got, want)) < 100 * TOLERANCE[torch.float32]
        ran.append(leading)

    check()
    assert len(ran) >= most
