import copy
import json
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional

from medseqft_kernels import lora_conv3d
from medseqft_kernels.adapter import fitting
from medseqft_kernels.lora_conv3d.backends import BACKENDS
from medseqft_kernels.lora_conv3d.cases import CASES, TOLERANCE, Case
from medseqft_kernels.lora_conv3d.forms import Geometry, forward_concatenated
from medseqft_kernels.lora_conv3d.reference import merged_weight, reference
from medseqft_kernels.tolerance import CANCELLING, relative_error

NAMES = ("x", "weight", "bias", "lora_a", "lora_b")
SCALING = 0.7


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
    """By name; the gradient that comes from above is the same numbers for every precision of the operation.

    The weight is frozen, as it is in use: with a gradient of its own, every backend is the reference.
    """
    inputs = [each.detach().clone().requires_grad_() for each in inputs]
    inputs[1].requires_grad_(False)
    wanted = [each for each in inputs if each.requires_grad]
    out = function(*inputs)
    upstream = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(upstream_dtype).to(out.dtype)
    found = torch.autograd.grad(out, wanted, upstream)
    return {"out": out.detach(), **dict(zip((name for name in NAMES if name != "weight"), found, strict=True))}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_is_the_convolution_with_the_block_diagonal_weight(case):
    x, weight, bias, a, b = (each.detach() for each in tensors(case))
    dense = block_diagonal(weight, a, b, SCALING, case.groups)
    want = functional.conv3d(x, dense, bias, case.stride, case.padding, case.dilation)
    got = lora_conv3d(x, weight, bias, a, b, SCALING, **case.settings)
    assert relative_error(got, want) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_merged_weight_gives_the_same_output(case):
    for dtype in (torch.float64, torch.float32):
        x, weight, bias, a, b = (each.detach() for each in tensors(case, dtype))
        merged = merged_weight(weight, a, b, SCALING, case.groups)
        got = functional.conv3d(x, merged, bias, case.stride, case.padding, case.dilation, case.groups)
        want = lora_conv3d(x, weight, bias, a, b, SCALING, **case.settings)
        assert merged.dtype == dtype
        assert relative_error(got, want) < TOLERANCE[dtype]


WIDE, NARROW = (torch.float64, torch.float32), (torch.float16, torch.bfloat16)
FORMS = [name for name in BACKENDS if name != "triton"]
FITS = [("auto", dtype) for dtype in (*WIDE, *NARROW)] + [("reference", torch.float32)]
FITS += [(name, dtype) for name in FORMS for dtype in (WIDE if BACKENDS[name].merges else WIDE + NARROW)]


def test_every_form_is_tested_in_every_dtype_in_which_it_is_exact():
    assert len(FORMS) == 6
    assert len(FITS) == 5 + 4 * 2 + 2 * 4
    for name, dtype in FITS:
        assert name == "auto" or name in fitting(BACKENDS, dtype, torch.device("cpu"))


@pytest.mark.parametrize(("backend", "dtype"), FITS, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_and_gradients_match_float64(case, backend, dtype):
    inputs = tensors(case, dtype)
    exact = [each.double() for each in inputs]
    got = outputs_and_gradients(lambda *t: lora_conv3d(*t, SCALING, **case.settings, backend=backend), inputs, dtype)
    want = outputs_and_gradients(lambda *t: reference(*t, SCALING, **case.settings), exact, dtype)
    assert {each.dtype for each in got.values()} == {dtype}
    wrong = {name: relative_error(got[name], want[name]) for name in got}
    assert len(wrong) == 5
    assert {name: value for name, value in wrong.items() if not value < TOLERANCE[dtype]} == {}


GRADCHECKED = (
    Case("odd", 2, 2, (3, 2, 3), kernel=(3, 1, 2), padding=1, rank=2, batch=1),
    Case("grouped and strided", 2, 4, (3, 3, 2), kernel=(2, 2, 1), stride=2, groups=2, rank=2, batch=1),
)


@pytest.mark.parametrize("case", GRADCHECKED, ids=str)
def test_gradients_are_the_finite_differences(case):
    checked = [
        torch.autograd.gradcheck(
            lambda *t, name=name: lora_conv3d(*t, SCALING, **case.settings, backend=name), _frozen(tensors(case))
        )
        for name in FORMS
    ]
    assert checked == [True] * 6


def _frozen(inputs):
    """The weight wants no gradient, so that the operation's own formulas are taken."""
    inputs[1].requires_grad_(False)
    return inputs


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
    assert relative_error(got, want) < TOLERANCE[torch.float64]
    ours, theirs = (torch.autograd.grad(out.square().sum(), (x, a, b)) for out in (got, want))
    compared = [relative_error(one, other) for one, other in zip(ours, theirs, strict=True)]
    assert len(compared) == 3
    assert max(compared) < TOLERANCE[torch.float64]


def test_dense_a_on_a_grouped_convolution_runs_and_is_refused_at_merge():
    case = next(case for case in CASES if case.groups == 2)
    x, weight, bias, a, b = (each.detach() for each in tensors(case, dense=True))
    dense = block_diagonal(weight, a, b, SCALING, case.groups)
    want = functional.conv3d(x, dense, bias, case.stride, case.padding, case.dilation)
    assert relative_error(lora_conv3d(x, weight, bias, a, b, SCALING, **case.settings), want) < TOLERANCE[torch.float64]
    with pytest.raises(ValueError, match=r"lora_a: found \(4, 4, 3, 3, 3\).*no grouped weight equals it"):
        merged_weight(weight, a, b, SCALING, case.groups)


def test_one_volume_without_a_batch_axis_and_an_empty_batch():
    _, weight, bias, a, b = tensors(CASES[0])
    x = torch.randn(3, 5, 4, 4, 4, dtype=torch.float64)
    batched = lora_conv3d(x, weight, bias, a, b, SCALING, padding=1)
    torch.testing.assert_close(lora_conv3d(x[1], weight, bias, a, b, SCALING, padding=1), batched[1])
    assert lora_conv3d(x[:0], weight, bias, a, b, SCALING, padding=1).shape == (0, 7, 4, 4, 4)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_residual_block_may_add_to_the_output_in_place(kernel):
    tried = 0
    for name in fitting(BACKENDS, torch.float32, torch.device("cpu")):
        x = torch.randn(2, 8, 4, 4, 4, requires_grad=True)
        a, b = (torch.randn(*shape, requires_grad=True) for shape in ((2, 8, *3 * (kernel,)), (6, 2, 1, 1, 1)))
        weight = torch.randn(6, 8, *3 * (kernel,))
        # Channels last, a result may be a permuted matrix product or a part of a wider one.
        crop = (x * 1).contiguous(memory_format=torch.channels_last_3d)
        y = lora_conv3d(crop, weight, None, a, b, SCALING, padding=kernel // 2, backend=name)
        y += 1
        y.sum().backward()
        assert x.grad is not None
        tried += 1
    assert tried >= 5


def test_channels_last_input_gives_channels_last_output():
    x, weight, bias, a, b = tensors(CASES[0], torch.float32)
    got = lora_conv3d(x.to(memory_format=torch.channels_last_3d), weight, bias, a, b, SCALING, padding=1)
    assert got.is_contiguous(memory_format=torch.channels_last_3d)
    assert relative_error(got, lora_conv3d(x, weight, bias, a, b, SCALING, padding=1)) < TOLERANCE[torch.float32]


def test_autocast_computes_in_bf16_with_fp32_parameters():
    x, weight, bias, a, b = tensors(CASES[0], torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = lora_conv3d(x, weight, bias, a, b, SCALING, padding=1)
    assert got.dtype == torch.bfloat16
    assert relative_error(got, lora_conv3d(x, weight, bias, a, b, SCALING, padding=1)) < TOLERANCE[torch.bfloat16]


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
    with pytest.raises(
        ValueError, match=r"backend: found 'cudnn', expected one of \['auto', 'reference', 'merged-projected'"
    ):
        lora_conv3d(x, weight, bias, a, b, SCALING, padding=1, backend="cudnn")


@st.composite
def drawn_cases(draw, groups=1):
    size = draw(st.tuples(*[st.integers(1, 6)] * 3))
    kernel = draw(st.tuples(*[st.integers(1, 4)] * 3))
    stride = draw(st.tuples(*[st.integers(1, 3)] * 3))
    padding = draw(st.tuples(*[st.integers(0, 3)] * 3))
    dilation = draw(st.integers(1, 3))
    widths = [width * groups for width in draw(st.tuples(*[st.integers(1, 3)] * 3))]
    reach = [dilation * (k - 1) + 1 - 2 * p for k, p in zip(kernel, padding, strict=True)]
    size = tuple(max(n, least) for n, least in zip(size, reach, strict=True))
    batch = draw(st.integers(1, 2))
    return Case("drawn", *widths[:2], size, kernel, stride, padding, dilation, groups, widths[2], batch)


@pytest.mark.parametrize("name", FORMS)
def test_any_shape_gives_the_references_output_and_gradients(name):
    ran = []

    @settings(max_examples=300)
    @given(case=drawn_cases())
    def check(case):
        inputs = tensors(case)
        got = outputs_and_gradients(lambda *t: lora_conv3d(*t, SCALING, **case.settings, backend=name), inputs, WIDE[0])
        want = outputs_and_gradients(lambda *t: reference(*t, SCALING, **case.settings), inputs, WIDE[0])
        for key in want:
            assert relative_error(got[key], want[key]) < CANCELLING, key
        ran.append(case)

    check()
    assert len(ran) >= 300


def test_any_grouped_shape_equals_its_block_diagonal_convolution():
    ran = []

    @settings(max_examples=60)
    @given(case=st.integers(1, 3).flatmap(lambda groups: drawn_cases(groups)))
    def check(case):
        x, weight, bias, a, b = (each.detach() for each in tensors(case))
        dense = block_diagonal(weight, a, b, SCALING, case.groups)
        want = functional.conv3d(x, dense, bias, case.stride, case.padding, case.dilation)
        got = lora_conv3d(x, weight, bias, a, b, SCALING, **case.settings)
        assert relative_error(got, want) < TOLERANCE[torch.float64]
        merged = merged_weight(weight, a, b, SCALING, case.groups)
        assert relative_error(functional.conv3d(x, merged, bias, **case.settings), want) < TOLERANCE[torch.float64]
        ran.append(case)

    check()
    assert len(ran) >= 60


@pytest.mark.parametrize("name", [name for name in FORMS if BACKENDS[name].merges])
def test_a_merging_form_is_refused_where_it_would_round_the_adapter_away(name):
    x, weight, bias, a, b = _frozen(tensors(CASES[0], torch.float32))
    narrow = [each.detach().bfloat16() for each in (x, weight, bias, a, b)]
    with pytest.raises(ValueError, match=rf"backend: found '{name}', expected for bfloat16 on cpu one of"):
        lora_conv3d(*narrow, SCALING, padding=1, backend=name)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="bfloat16"):
        lora_conv3d(x, weight, bias, a, b, SCALING, padding=1, backend=name)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_the_adapters_own_part_survives_where_it_is_a_thousandth_of_the_weight(dtype):
    case = Case("small adapter", 16, 16, (6, 6, 6))
    x, weight, _, a, b = (each.detach().to(dtype) for each in tensors(case))
    delta = merged_weight(torch.zeros_like(weight).double(), a.double(), b.double(), 1.0)
    scaling = float(1e-3 * weight.double().norm() / delta.norm())
    walk = Geometry((1, 1, 1), (1, 1, 1), (1, 1, 1))
    got, frozen = (
        forward_concatenated(x, weight, None, a, b, s, walk, out_dtype=torch.float32)[0] for s in (scaling, 0.0)
    )
    want = scaling * functional.conv3d(x.double(), delta, padding=1)
    assert relative_error(got - frozen, want) < 0.02
    merged = (weight.float() + scaling * delta.float()).to(dtype)  # what must not be done: the test sees it
    rounded = functional.conv3d(x, merged, padding=1).float() - functional.conv3d(x, weight, padding=1).float()
    assert relative_error(rounded, want) > 0.1


@pytest.mark.parametrize("name", FORMS)
def test_nothing_is_kept_beyond_a_frozen_convolutions_tensors_and_r_channels(name):
    x, weight, bias, a, b = tensors(CASES[0], torch.float32)
    weight.requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = lora_conv3d(x, weight, bias, a, b, SCALING, padding=1, backend=name)
    given_in = {each.data_ptr() for each in (x, weight, bias, a, b)}
    extra = sum(each.numel() for each in kept if each.data_ptr() not in given_in)
    assert len(kept) >= 4
    assert extra <= y.numel() // y.shape[1] * a.shape[0]


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d], ids=str)
def test_opcheck_accepts_the_custom_op(name, layout):
    x, weight, bias, a, b = _frozen(tensors(CASES[1], torch.float32))
    x = x.detach().to(memory_format=layout).requires_grad_()
    arguments = (x, weight, bias, a, b, SCALING, [2] * 3, [1] * 3, [1] * 3, name)
    assert set(torch.library.opcheck(torch.ops.medseqft.lora_conv3d.default, arguments).values()) == {"SUCCESS"}
    y, u = torch.ops.medseqft.lora_conv3d(*arguments)
    plain = [each.detach() for each in (torch.ones_like(y), x, weight, a, b, u)]
    backward = (*plain, SCALING, [2] * 3, [1] * 3, [1] * 3, name, True, True)
    checked = torch.library.opcheck(torch.ops.medseqft.lora_conv3d_backward.default, backward)
    assert set(checked.values()) == {"SUCCESS"}


COMPILED = """
import json, os, sys, torch
from pathlib import Path
from medseqft_kernels import lora_conv3d
from medseqft_kernels.adapter import fitting
draw = torch.Generator().manual_seed(0)
shapes = (2, 5, 5, 6, 7), (7, 5, 3, 3, 3), (7,), (4, 5, 3, 3, 3), (7, 4)
x, weight, bias, a, b = (torch.randn(shape, generator=draw) for shape in shapes)
another = torch.randn((3, 5, 4, 5, 6), generator=draw).requires_grad_()  # the compiler goes over to symbols for it
x, *adapter = [each.requires_grad_() for each in (x, bias, a, b)]
errors = {}
for name in sys.argv[2:]:
    def call(x):
        return torch.sin(lora_conv3d(x, weight, bias, a, b, 0.7, stride=2, padding=1, backend=name)).sum()
    torch._dynamo.reset()
    compiled = torch.compile(call, fullgraph=True, backend=sys.argv[1])
    for volumes in (x, another):
        got, want = (torch.autograd.grad(each(volumes), [volumes, *adapter]) for each in (compiled, call))
        found = [float((one - other).norm() / other.norm()) for one, other in zip(got, want, strict=True)]
        errors[name] = max(errors.get(name, 0.0), *found)
(table,) = Path(os.environ["MEDSEQFT_CACHE"]).glob("*.json")
print(json.dumps([errors, list(json.loads(table.read_text()))]))
"""


@pytest.mark.parametrize(("compiler", "names"), [("aot_eager", ["auto", *FORMS]), ("inductor", ["auto"])], ids=str)
def test_a_compiled_call_is_one_graph_and_gives_the_same(compiler, names):
    """In a process of its own, where no run-time check of annotations stands in the compiler's way."""
    command = [sys.executable, "-c", COMPILED, compiler, *names]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    errors, asked = json.loads(run.stdout)
    assert list(errors) == names
    assert [question[:28] for question in asked] == ["lora_conv3d: x 2x5x5x6x7, we", "lora_conv3d: x 3x5x4x5x6, we"]
    assert all("stride 2x2x2, padding 1x1x1, dilation 1x1x1" in question for question in asked)
    assert max(errors.values()) < TOLERANCE[torch.float32]


def test_gradients_are_computed_only_where_they_are_asked_for(monkeypatch):
    x, weight, bias, a, b = tensors(CASES[0], torch.float32)
    asked = []
    real = BACKENDS["merged-projected"]
    spy = real._replace(backward=lambda *arguments: asked.append(arguments[-2:]) or real.backward(*arguments))
    monkeypatch.setitem(BACKENDS, "merged-projected", spy)
    for wanted in ((x,), (a, b), (x, a, b), (bias,)):
        for each in (x, weight, bias, a, b):
            each.requires_grad_(any(each is one for one in wanted))
        y = lora_conv3d(x, weight, bias, a, b, SCALING, padding=1, backend="merged-projected")
        torch.autograd.grad(y.sum(), wanted)
    assert asked == [(True, False), (False, True), (True, True)]


def test_inputs_are_left_as_they_were():
    inputs = tensors(CASES[0], torch.float32)
    before = [each.detach().clone() for each in inputs]
    for name in FORMS:
        outputs_and_gradients(lambda *t, name=name: lora_conv3d(*t, SCALING, padding=1, backend=name), inputs, WIDE[1])
    assert [torch.equal(one, other) for one, other in zip(inputs, before, strict=True)] == [True] * 5
