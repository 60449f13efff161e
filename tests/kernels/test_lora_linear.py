import copy

import jaxtyping
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn

from medseqft_kernels import lora_linear
from medseqft_kernels.lora_linear.cases import CASES, TOLERANCE, Case
from medseqft_kernels.lora_linear.reference import merged_weight, reference

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


def relative(got, want):
    return float((got.detach().double() - want.detach().double()).norm() / want.detach().double().norm())


def outputs_and_gradients(function, inputs, upstream_dtype):
    """The gradient that comes from above is the same numbers for every precision of the operation."""
    inputs = [each.detach().clone().requires_grad_() for each in inputs]
    out = function(*inputs)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(upstream_dtype).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, inputs, upstream)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_match_float64(case, dtype):
    inputs = tensors(case, dtype)
    got = outputs_and_gradients(lambda *t: lora_linear(*t, SCALING), inputs, dtype)
    want = outputs_and_gradients(lambda *t: reference(*t, SCALING), [each.double() for each in inputs], dtype)
    assert len(got) == 6
    assert max(map(relative, got, want)) < TOLERANCE[dtype]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_the_finite_differences(case):
    assert torch.autograd.gradcheck(lambda *t: lora_linear(*t, SCALING), tensors(case))


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
    assert relative(got, want) < TOLERANCE[torch.float64]
    ours, theirs = (torch.autograd.grad(out.square().sum(), (x, a, b)) for out in (got, want))
    compared = [relative(one, other) for one, other in zip(ours, theirs, strict=True)]
    assert len(compared) == 3
    assert max(compared) < TOLERANCE[torch.float64]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9), st.lists(st.integers(1, 4), max_size=3))
def test_any_shape_equals_the_product_with_the_merged_weight(inputs, outputs, rank, leading):
    x, weight, bias, a, b = (each.detach() for each in tensors(Case("drawn", inputs, outputs, tuple(leading), rank)))
    want = x @ (weight + SCALING * torch.einsum("or,ri->oi", b, a)).T + bias
    assert relative(lora_linear(x, weight, bias, a, b, SCALING), want) < TOLERANCE[torch.float64]
    assert relative(x @ merged_weight(weight, a, b, SCALING).T + bias, want) < TOLERANCE[torch.float64]


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
    with pytest.raises(ValueError, match=r"backend: found 'fast', expected one of \['auto', 'reference'\]"):
        lora_linear(*tensors(CASES[0]), SCALING, backend="fast")
