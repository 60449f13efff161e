import os
import re
import warnings
from importlib import import_module

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from medseqft_kernels import cosine_topk
from medseqft_kernels.cosine_topk import blocked as blocked_form
from medseqft_kernels.cosine_topk.cases import CASES
from medseqft_kernels.cosine_topk.reference import reference
from medseqft_kernels.dispatch import read_table
from medseqft_kernels.tolerance import TOLERANCE, relative_error

BACKENDS = ("reference", "blocked", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ON_INTERPRETER = int(os.environ.get("MEDSEQFT_INTERPRETER_EXAMPLES", 25))


@pytest.fixture
def small_blocks(monkeypatch):
    """Several blocks of queries and of keys at the sizes of a test."""
    monkeypatch.setattr(blocked_form, "QUERIES", 5)
    monkeypatch.setattr(blocked_form, "KEYS", 7)


def drawn(case, device, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn((rows, case.e), generator=draw).to(dtype).to(device) for rows in (case.n, case.m)]


def cosines(queries, keys):
    """SciPy's, in float64; it says NaN for a zero vector, where the operation says 0."""
    found = 1 - cdist(*(each.detach().cpu().double().numpy() for each in (queries, keys)), "cosine")
    zero = [(each == 0).all(dim=1).cpu().numpy() for each in (queries, keys)]
    found[zero[0]] = 0
    found[:, zero[1]] = 0
    return found


def best(similarity, k):
    """Indices of the k largest, descending, of equal ones the smaller index first."""
    return np.argsort(-similarity, axis=1, kind="stable")[:, :k]


def is_right(values, index, similarity, k):
    """Values are the k largest cosines, and each is that of its key, none named twice."""
    index = index.cpu().numpy()
    rows = np.arange(len(index))[:, None]
    want = similarity[rows, best(similarity, k)]
    assert values.shape == index.shape == want.shape
    assert all(len(set(row)) == k for row in index.tolist())
    assert np.abs(values.detach().cpu().double().numpy() - want).max(initial=0) < 1e-6
    assert np.abs(similarity[rows, index] - want).max(initial=0) < 1e-6
    return True


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_largest_cosines_are_scipy_s(case, backend, dtype, device, needs_triton, small_blocks, poisoned_empty):
    queries, keys = drawn(case, device, dtype)
    values, index = cosine_topk(queries, keys, case.k, backend=backend)
    assert values.dtype == torch.float32
    assert index.dtype == torch.int64
    assert is_right(values, index, cosines(queries, keys), case.k)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_stays_float64(backend, device, needs_triton, small_blocks):
    queries, keys = drawn(CASES[1], device, torch.float64)
    values, index = cosine_topk(queries, keys, 5, backend=backend)
    similarity = cosines(queries, keys)
    want = np.take_along_axis(similarity, best(similarity, 5), 1)
    assert relative_error(values, torch.from_numpy(want)) < TOLERANCE[torch.float64]
    assert np.array_equal(index.cpu().numpy(), best(similarity, 5))


@pytest.mark.parametrize("backend", BACKENDS)
def test_cosines_worked_by_hand(backend, device, needs_triton):
    queries = torch.tensor([[3.0, 4.0], [0.0, 0.0]], device=device)
    keys = torch.tensor([[0.0, 0.0], [-8.0, 6.0], [1.0, 0.0], [0.0, 7.0], [30.0, 40.0]], device=device)
    values, index = cosine_topk(queries, keys, 5, backend=backend)
    assert index.tolist() == [[4, 3, 2, 0, 1], [0, 1, 2, 3, 4]]
    assert values.flatten().tolist() == pytest.approx([1, 0.8, 0.6, 0, 0, 0, 0, 0, 0, 0], abs=1e-6)


def exact_vectors(rows, draw):
    """Cosines of these are 0, ±½ and ±1, exactly, in whatever order they are summed: ties everywhere."""
    signs = 2.0 * torch.randint(0, 2, (rows, 4), generator=draw) - 1
    single = functional.one_hot(torch.randint(0, 4, (rows,), generator=draw), 4) * signs
    kind = torch.randint(0, 5, (rows, 1), generator=draw)
    return torch.where(kind < 2, signs, torch.where(kind < 4, single, 0.0)) * 2.0 ** torch.randint(
        -3, 4, (rows, 1), generator=draw
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_of_equal_similarities_the_smaller_index_comes_first(backend, dtype, device, needs_triton, small_blocks):
    draw = torch.Generator().manual_seed(0)
    queries, keys = (exact_vectors(rows, draw).to(dtype).to(device) for rows in (9, 270))
    similarity = cosines(queries, keys).round(6)
    tried = (3, 33, 64)
    for k in tried:
        values, index = cosine_topk(queries, keys, k, backend=backend)
        assert np.array_equal(index.cpu().numpy(), best(similarity, k))
        assert np.array_equal(values.cpu().numpy(), np.take_along_axis(similarity, index.cpu().numpy(), 1))
    assert len(tried) == 3


@pytest.mark.parametrize("k", [2, 7, 8])  # with and without a slot to spare
@pytest.mark.parametrize("programs", [1, 2, 1000])
def test_stretches_of_keys_of_any_length_give_the_same(programs, k, device, needs_triton):
    from medseqft_kernels.cosine_topk.triton import launch

    draw = torch.Generator().manual_seed(0)
    queries, keys = (exact_vectors(rows, draw).to(device) for rows in (40, 400))
    _, index = launch(queries, keys, k, programs=programs)
    assert np.array_equal(index.cpu().numpy(), best(cosines(queries, keys).round(6), k))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_length_does_not_matter_however_extreme(backend, dtype, device, needs_triton, small_blocks):
    queries, keys = drawn(CASES[0], device, dtype)
    similarity = cosines(queries, keys)
    tiny = torch.tensor([2.0**-110, 2.0**110, 1.0], device=device)[:, None].to(dtype)
    big = torch.tensor([2.0**120, 2.0**-120, 1.0, 2.0**80, 2.0**-60], device=device)[:, None].to(dtype)
    assert is_right(*cosine_topk(queries * tiny, keys * big, 4, backend=backend), similarity, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_no_number_ranks_last(backend, device, needs_triton, small_blocks):
    queries, keys = drawn(CASES[0], device)
    keys[1, 2] = float("nan")
    keys[3, 0] = float("inf")
    queries[2, 1] = float("-inf")
    values, index = cosine_topk(queries, keys, 5, backend=backend)
    assert index[:2, 3:].tolist() == [[1, 3], [1, 3]]
    assert values[:2, 3:].isnan().all()
    assert values[:2, :3].isfinite().all()
    assert values[2].isnan().all()
    assert index[2].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("backend", BACKENDS)
def test_inputs_may_be_views_of_poisoned_memory_and_stay_as_they_are(backend, device, needs_triton, poisoned_empty):
    queries, keys = drawn(CASES[0], device)
    wide = torch.full((9, 20), float("nan"), device=device)
    tall = torch.full((20, 11), float("nan"), device=device)
    views = wide[2:5, 3:17:2].copy_(queries), tall[4:11, 1:6].T.copy_(keys)
    before = wide.clone(), tall.clone()
    results = [cosine_topk(*views, 3, backend=backend) for _ in range(2)]
    assert is_right(*results[0], cosines(queries, keys), 3)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
    for now, then in zip((wide, tall), before, strict=True):
        assert torch.equal(now.nan_to_num(nan=9), then.nan_to_num(nan=9))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("n", "m", "k"), [(0, 4, 2), (3, 4, 0), (0, 0, 0), (2, 0, 0)])
def test_nothing_asked_for_gives_nothing(n, m, k, backend, device, needs_triton):
    queries, keys = (torch.randn((rows, 3), device=device, requires_grad=True) for rows in (n, m))
    values, index = cosine_topk(queries, keys, k, backend=backend)
    assert values.shape == index.shape == (n, k)
    values.sum().backward()
    assert not queries.grad.any()
    assert not keys.grad.any()


def test_the_kernel_leaves_large_k_to_the_blocked_form(device, needs_triton):
    queries, keys = torch.randn((2, 4), device=device), torch.randn((80, 4), device=device)
    for one, other in zip(
        *(cosine_topk(queries, keys, 65, backend=name) for name in ("triton", "blocked")), strict=True
    ):
        assert torch.equal(one, other)


@st.composite
def calls(draw, most):
    n, m, e = draw(st.integers(1, 12)), draw(st.integers(1, most)), draw(st.integers(1, 40))
    numbers = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    queries, keys = (torch.randn((rows, e), generator=numbers) for rows in (n, m))
    keys[torch.rand(m, generator=numbers) < 0.1] = 0
    return queries, keys, draw(st.integers(1, min(m, 64)))


@pytest.mark.parametrize(
    ("backend", "examples", "most"),
    [("reference", 300, 40), ("blocked", 300, 40), pytest.param("triton", ON_INTERPRETER, 300, marks=pytest.mark.soak)],
    ids=BACKENDS,
)
def test_any_shape_agrees_with_scipy(backend, examples, most, device, needs_triton, small_blocks):
    ran = []

    @settings(max_examples=examples)
    @given(calls(most))
    def agrees(call):
        queries, keys, k = call
        ran.append(k)
        values, index = cosine_topk(queries.to(device), keys.to(device), k, backend=backend)
        assert is_right(values, index, cosines(queries, keys), k)

    agrees()
    assert len(ran) >= examples


def test_no_form_but_the_reference_holds_the_matrix(device, small_blocks):
    class Largest(TorchDispatchMode):
        seen = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes = [each.numel() for each in tree_leaves(out) if isinstance(each, torch.Tensor)]
            self.seen = max(self.seen, *sizes, 0)
            return out

    queries, keys = torch.randn((200, 3), device=device), torch.randn((300, 3), device=device)
    with Largest() as blocked:
        blocked_form.blocked(queries, keys, 2)
    assert blocked.seen == 300 * 3
    with Largest() as whole:
        reference(queries, keys, 2)
    assert whole.seen == 200 * 300


def gradients(queries, keys, k, backend):
    queries, keys = (each.detach().clone().requires_grad_() for each in (queries, keys))
    values, index = cosine_topk(queries, keys, k, backend=backend)
    upstream = torch.randn(values.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return index, upstream, torch.autograd.grad(values, (queries, keys), upstream.to(values))


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_torch_s_cosine_similarity(backend, dtype, device, needs_triton, small_blocks):
    queries, keys = drawn(CASES[1], device, dtype)
    index, upstream, got = gradients(queries, keys, 5, backend)
    exact = [each.detach().double().cpu().requires_grad_() for each in (queries, keys)]
    chosen = functional.cosine_similarity(exact[0][:, None], exact[1][index.cpu()], dim=2, eps=0)
    want = torch.autograd.grad(chosen, exact, upstream)
    assert [each.dtype for each in got] == [dtype, dtype]
    errors = [relative_error(one, other) for one, other in zip(got, want, strict=True)]
    assert max(errors) < TOLERANCE[dtype]


@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_gradients_are_the_finite_differences(backend, small_blocks):
    draw = torch.Generator().manual_seed(3)
    rows = [torch.randn((many, 3), generator=draw, dtype=torch.float64).requires_grad_() for many in (4, 9)]
    assert torch.autograd.gradcheck(lambda q, k: cosine_topk(q, k, 3, backend=backend)[0], rows)


def test_zero_vectors_have_no_gradient_and_only_what_is_asked_for_is_computed(device):
    queries, keys = drawn(CASES[0], device)
    queries[1], keys[2] = 0, 0
    _, _, (of_queries, of_keys) = gradients(queries, keys, 5, "blocked")
    assert not of_queries[1].any()
    assert not of_keys[2].any()
    assert of_queries.isfinite().all()
    assert of_keys.isfinite().all()
    alone = queries.clone().requires_grad_()
    cosine_topk(alone, keys, 5)[0].sum().backward()
    assert keys.grad is None
    values, index = cosine_topk(queries, keys.clone().requires_grad_(), 2)
    assert values.requires_grad
    assert not index.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("needs", [(False, False), (True, True), (False, True)])
def test_the_custom_op_passes_opcheck(backend, needs, device, needs_triton, as_users_run_it):
    rows = [each.requires_grad_(need) for each, need in zip(drawn(CASES[0], device), needs, strict=True)]
    torch.library.opcheck(torch.ops.medseqft.cosine_topk.default, (*rows, 2, backend))


def test_the_compiler_takes_it_in_one_graph(device, as_users_run_it):
    def loss(queries, keys):
        values, index = cosine_topk(queries, keys, 2)
        return (values * (index + 1)).sum()

    rows = [each.requires_grad_() for each in drawn(CASES[0], device)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        got = torch.autograd.grad(compiled(*rows), rows)
    assert all(torch.equal(one, other) for one, other in zip(got, torch.autograd.grad(loss(*rows), rows), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend, device, needs_triton):
    rows = [each.requires_grad_() for each in drawn(CASES[0], device)]
    with torch.autocast(device.type, torch.bfloat16):
        inside = cosine_topk(*rows, 3, backend=backend)
        slopes = torch.autograd.grad(inside[0].sum(), rows)
    outside = cosine_topk(*rows, 3, backend=backend)
    same = zip((*inside, *slopes), (*outside, *torch.autograd.grad(outside[0].sum(), rows)), strict=True)
    assert all(torch.equal(one, other) for one, other in same)


ONES = torch.ones(3, 2)
WRONG = {
    "queries": [(ONES[0], ONES, 1), (torch.ones(3, 0), torch.ones(3, 0), 1), (ONES.int(), ONES.int(), 1)],
    "keys": [(ONES, torch.ones(3, 4), 1), (ONES, ONES.double(), 1), (ONES, ONES[0], 1)],
    "k": [(ONES, ONES, 4), (ONES, ONES, -1)],
}


@pytest.mark.parametrize(("name", "call"), [(name, each) for name, all_ in WRONG.items() for each in all_])
def test_a_wrong_argument_is_named(name, call, as_users_run_it):
    with pytest.raises(ValueError, match=f"^{name}: found .*, expected "):
        cosine_topk(*call)


def test_a_backend_that_is_unknown_or_cannot_run_is_named(monkeypatch, as_users_run_it):
    with pytest.raises(ValueError, match=re.escape("backend: found 'cuda', expected one of")):
        cosine_topk(ONES, ONES, 1, backend="cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    with pytest.raises(ValueError, match=r"^backend: found 'triton', expected Triton installed and a GPU"):
        cosine_topk(ONES, ONES, 1, backend="triton")


def test_auto_is_the_blocked_form_without_a_gpu_and_the_reference_where_that_is_forced(monkeypatch):
    module, taken = import_module("medseqft_kernels.cosine_topk.op"), []

    def noted(name):
        form = getattr(module, name)
        return lambda *call: taken.append(name) or form(*call)

    for name in ("blocked", "reference"):
        monkeypatch.setattr(module, name, noted(name))
    cosine_topk(ONES, ONES, 1)
    monkeypatch.setenv("MEDSEQFT_KERNELS", "reference")
    cosine_topk(ONES, ONES, 1)
    assert taken == ["blocked", "reference"]


def test_on_a_gpu_auto_would_measure_both_forms_and_remember(device, needs_triton):
    choose = import_module("medseqft_kernels.cosine_topk.op")._fastest
    taken = choose((3, 4, 5, 2), "bfloat16", str(device), True)
    table = read_table(device)
    assert list(table) == ["cosine_topk 3x4 5x4 k2 bfloat16"]
    assert set(table["cosine_topk 3x4 5x4 k2 bfloat16"]["seconds"]) == {"blocked", "triton"}
    assert taken == table["cosine_topk 3x4 5x4 k2 bfloat16"]["choice"]
