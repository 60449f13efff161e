import json
import math
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import medseqft_kernels
from medseqft_kernels.dispatch import fastest
from medseqft_kernels.lora_conv3d.cases import CASES
from medseqft_kernels.lora_conv3d.reference import reference
from medseqft_kernels.tolerance import relative_error

PACKAGE = Path(medseqft_kernels.__file__).resolve().parent
FOLDER = PACKAGE.parent / "benchmarks"
OPERATIONS = sorted(folder.parent.name for folder in PACKAGE.glob("*/op.py"))
CPU = torch.device("cpu")
RIGHT = {"x": torch.tensor([3.0]), "y": torch.tensor([1.0, 2.0])}


@pytest.fixture(scope="module")
def bench():
    """The scripts, which import each other by name as they do when they are run."""
    names = [script.stem for script in FOLDER.glob("*.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        yield SimpleNamespace(**{name: import_module(name) for name in names})
    for name in names:
        del sys.modules[name]


class Clock:
    """A timer whose calls take the seconds that a provider is said to take; it writes down who was called."""

    def __init__(self, seconds):
        self.seconds, self.calls = seconds, []

    def __call__(self, run):
        run()
        return self.seconds(self.calls[-1], len(self.calls))

    def runs(self, names):
        return {name: (lambda name=name: self.calls.append(name)) for name in names}


def row(bench, providers, **baselines):
    given = {"floor": None, "rival": None} | baselines
    work = bench.harness.Work(providers, lambda: RIGHT, 1e-6)
    return bench.harness.Row("op", "2-3", "float32", "contiguous", lambda: work, **given)


def returning(result):
    return lambda: {"x": RIGHT["x"], "y": result}


def raising(problem):
    def run(*_):
        raise problem

    return run


def statuses(results):
    return {result.provider: result.status for result in results}


def test_each_round_runs_every_provider_once_and_another_one_first(bench):
    clock = Clock(lambda name, n: 0.001)
    times = bench.harness.measure(clock.runs("abc"), clock, bench.harness.Limits((3, 5), 100.0))
    rounds = ["".join(clock.calls[begin : begin + 3]) for begin in range(0, len(clock.calls), 3)]
    assert rounds == ["abc", "bca", "cab", "abc", "bca"]
    assert {name: len(each) for name, each in times.items()} == {"a": 5, "b": 5, "c": 5}


def test_a_machine_that_slows_down_slows_all_providers_alike(bench):
    clock = Clock(lambda name, n: 1.0 if n <= 6 else 3.0)
    times = bench.harness.measure(clock.runs("ab"), clock, bench.harness.Limits((6, 6), 100.0))
    assert sorted(times["a"]) == sorted(times["b"]) == [1, 1, 1, 3, 3, 3]


@pytest.mark.parametrize(("seconds", "rounds"), [(0.01, 20), (1.0, 4), (60.0, 3)])
def test_rounds_are_fewer_where_they_are_slow(bench, seconds, rounds):
    clock = Clock(lambda name, n: seconds)
    bench.harness.measure(clock.runs("ab"), clock, bench.harness.Limits((3, 20), 7.0))
    assert len(clock.calls) == 2 * rounds


def test_quantiles_are_linear_between_neighbours(bench):
    assert bench.harness.quantile([5, 1, 4, 2, 3], 0.2) == pytest.approx(1.8)
    assert bench.harness.quantile([5, 1, 4, 2, 3], 0.8) == pytest.approx(4.2)
    assert bench.harness.quantile([7.0], 0.2) == 7


def test_a_row_shows_median_spread_and_error(bench):
    clock = Clock(lambda name, n: float(n))  # first call of a round is the check, which is not timed
    provider = bench.harness.Provider(lambda: clock.calls.append("a") or {"y": RIGHT["y"] * (1 + 5e-7)})
    clock.calls.append("before")
    (result,) = bench.harness.run_row(row(bench, {"a": provider}), clock, bench.harness.Limits((5, 5), 99.0), CPU)
    assert (result.status, result.repeats, result.peak_bytes) == ("ok", 5, None)
    assert (result.median, result.p20, result.p80) == pytest.approx((5, 3.8, 6.2))
    assert result.error == pytest.approx(5e-7, rel=0.2)


@pytest.mark.parametrize("result", [RIGHT["y"] + 1e-3, RIGHT["y"] * math.nan], ids=["far", "nan"])
def test_a_wrong_provider_withholds_the_speed_of_the_whole_row(bench, result):
    providers = {
        "good": bench.harness.Provider(returning(RIGHT["y"])),
        "bad": bench.harness.Provider(returning(result)),
    }
    the_row = row(bench, providers)
    results = bench.harness.run_row(the_row, raising(AssertionError("timed")), bench.harness.Limits(), CPU)
    assert statuses(results) == {"good": "withheld", "bad": "wrong"}
    assert bench.harness.is_red(results)
    assert all(each.median is None for each in results)
    shown = list(bench.harness.lines(the_row, results))
    assert len(shown) == 3
    assert not any(" ms" in line for line in shown)


@pytest.mark.parametrize(("error", "status"), [(1e-3, "ok"), (1e-1, "wrong")])
def test_a_rival_may_be_less_exact_but_not_compute_another_function(bench, error, status):
    providers = {"rival": bench.harness.Provider(returning(RIGHT["y"] * (1 + error)), rival=True)}
    (result,) = bench.harness.run_row(row(bench, providers), bench.harness.wall, bench.harness.Limits(), CPU)
    assert result.status == status
    assert result.error == pytest.approx(error, rel=0.01)


@pytest.mark.parametrize(("rival", "status", "red"), [(True, "ok", False), (False, "withheld", True)])
def test_a_rival_that_fails_is_a_remark_and_one_of_ours_is_a_fault(bench, rival, status, red):
    providers = {
        "good": bench.harness.Provider(returning(RIGHT["y"])),
        "crash": bench.harness.Provider(raising(RuntimeError("no compiler\nmore")), rival),
    }
    results = bench.harness.run_row(row(bench, providers), bench.harness.wall, bench.harness.Limits(), CPU)
    assert statuses(results) == {"good": status, "crash": "failed"}
    assert results[1].note == "RuntimeError: no compiler"
    assert bench.harness.is_red(results) is red


def test_a_backend_that_refuses_its_tensors_does_not_apply(bench):
    providers = {
        "good": bench.harness.Provider(returning(RIGHT["y"])),
        "other": bench.harness.Provider(raising(ValueError("backend: found 'other', expected fp32"))),
    }
    results = bench.harness.run_row(row(bench, providers), bench.harness.wall, bench.harness.Limits(), CPU)
    assert statuses(results) == {"good": "ok", "other": "does not apply"}
    assert not bench.harness.is_red(results)
    assert list(bench.harness.lines(row(bench, providers), results))[-1] == "  does not apply: other"


def test_what_auto_took_is_in_its_row(bench):
    def auto():
        fastest("op: a question", CPU, lambda: {"reference": lambda: None})
        return RIGHT

    providers = {"auto": bench.harness.Provider(auto), "good": bench.harness.Provider(returning(RIGHT["y"]))}
    results = bench.harness.run_row(row(bench, providers), bench.harness.wall, bench.harness.Limits(), CPU)
    assert [result.note for result in results] == ["took reference", ""]


def results_of(bench, medians, spread=0.0):
    rows, results = [], []
    for shape, by_provider in medians.items():
        each = bench.harness.Row("op", shape, "float32", "contiguous", dict, "frozen", "peft")
        rows.append(each)
        for name, median in by_provider.items():
            times = {"median": median, "p20": median - spread, "p80": median + spread}
            results.append(bench.harness.Result("op", shape, "float32", "contiguous", name, "ok", 0.0, **times))
    return rows, results


def test_the_summary_is_what_one_works_out_by_hand(bench):
    medians = {
        "small": {"frozen": 1.0, "peft": 4.0, "auto": 2.0},
        "large": {"frozen": 10.0, "peft": 20.0, "auto": 80.0, "triton": 15.0},
    }
    (found,) = bench.harness.summary(*results_of(bench, medians))
    auto = found["providers"]["auto"]
    assert auto["times_floor"] == {"geometric_mean": pytest.approx(4), "worst": 8, "worst_shape": "large", "rows": 2}
    assert auto["rival_over_it"]["geometric_mean"] == pytest.approx(math.sqrt(2 * 0.25))
    assert auto["rival_over_it"]["worst_shape"] == "large"
    assert found["providers"]["triton"]["times_floor"] == {
        "geometric_mean": pytest.approx(1.5),
        "worst": 1.5,
        "worst_shape": "large",
        "rows": 1,
    }
    assert found["slower_than_rival"] == ["large"]
    text = "\n".join(bench.harness.summary_lines([found]))
    assert "auto slower than the rival beyond noise: large" in text


@pytest.mark.parametrize(("spread", "slower"), [(0.4, ["x"]), (0.6, [])])
def test_auto_is_slower_than_the_rival_only_beyond_both_spreads(bench, spread, slower):
    medians = {"x": {"frozen": 1.0, "peft": 2.0, "auto": 3.0}}
    (found,) = bench.harness.summary(*results_of(bench, medians, spread))
    assert found["slower_than_rival"] == slower


def test_a_loss_to_the_compiled_rival_alone_is_told(bench):
    medians = {
        "won": {"frozen": 1.0, "peft": 4.0, "peft compiled": 3.0, "auto": 2.0},
        "lost": {"frozen": 1.0, "peft": 4.0, "peft compiled": 1.0, "auto": 2.0},
    }
    (found,) = bench.harness.summary(*results_of(bench, medians))
    assert (found["slower_than_rival"], found["slower_than_compiled"]) == ([], ["lost"])
    text = list(bench.harness.summary_lines([found]))
    assert "  auto slower than the rival beyond noise: on no shape" in text
    assert "  auto slower than the compiled rival beyond noise: lost" in text
    del medians["won"]["peft compiled"], medians["lost"]["peft compiled"]
    (found,) = bench.harness.summary(*results_of(bench, medians))
    assert not any("compiled" in line for line in bench.harness.summary_lines([found]))


@pytest.fixture
def run(bench, monkeypatch, tmp_path):
    """`run.main` on rows made here; returns the status and the file's content."""
    monkeypatch.setenv("TRITON_INTERPRET", "0")

    def call(providers, *arguments):
        rows = [row(bench, providers, floor="a", rival="a")]
        module = SimpleNamespace(rows=lambda device, **options: rows)
        monkeypatch.setattr(bench.run, "import_module", lambda name: module)
        status = bench.run.main(["lora_conv3d", "--out", str(tmp_path), *arguments])
        files = list(tmp_path.iterdir())
        assert len(files) <= 1
        return status, json.loads(files[0].read_text()) if files else None

    return call


def test_a_run_prints_a_table_and_replaces_its_file_whole(bench, run, capsys):
    providers = {name: bench.harness.Provider(returning(RIGHT["y"])) for name in ("a", "auto")}
    assert run({"old": bench.harness.Provider(returning(RIGHT["y"]))})[0] == 0
    capsys.readouterr()
    status, content = run(providers, "--repeats", "4")
    assert status == 0
    assert content["complete"]
    assert [(each["provider"], each["status"], each["repeats"]) for each in content["rows"]] == [
        ("a", "ok", 4),
        ("auto", "ok", 4),
    ]
    assert set(content["rows"][0]) >= {
        "operation", "shape", "dtype", "format", "provider", "median", "p20", "p80", "repeats", "error", "peak_bytes",
    }  # fmt: skip
    assert content["machine"]["torch"] == torch.__version__
    assert content["machine"]["threads"] == torch.get_num_threads()
    assert set(content["machine"]) >= {"device", "processor", "triton", "peft", "commit"}
    assert content["summary"][0]["providers"]["auto"]["times_floor"]["rows"] == 1
    assert content["wrong"] == []
    printed = capsys.readouterr().out
    assert printed.index("op  2-3 float32 contiguous") < printed.index("times the floor")
    assert " ms " in printed


def test_a_wrong_result_is_named_and_makes_the_run_fail(bench, run, capsys):
    providers = {
        "a": bench.harness.Provider(returning(RIGHT["y"])),
        "bad": bench.harness.Provider(returning(RIGHT["y"] * math.nan)),
    }
    status, content = run(providers)
    assert status == 1
    assert content["wrong"] == ["op 2-3 float32 contiguous"]
    assert [each["status"] for each in content["rows"]] == ["withheld", "wrong"]
    assert [each["error"] for each in content["rows"]] == [0.0, "nan"]
    printed = capsys.readouterr().out
    assert "WRONG, no speed shown: op 2-3 float32 contiguous" in printed
    assert " ms " not in printed


def test_a_filter_takes_a_part_and_one_that_takes_nothing_fails(bench, run, capsys):
    providers = {"a": bench.harness.Provider(returning(RIGHT["y"]))}
    assert run(providers, "--shapes", "2-3.*contiguous", "--list") == (0, None)
    assert capsys.readouterr().out == "op  2-3 float32 contiguous\n"
    status, _ = run(providers, "--shapes", "channels-last")
    assert status == 1
    assert "no row matches --shapes 'channels-last'" in capsys.readouterr().err


def test_an_unknown_operation_is_refused_with_those_that_there_are(bench, capsys):
    with pytest.raises(SystemExit):
        bench.run.main(["lora_conv4d"])
    assert "no such operation: lora_conv4d; there are" in capsys.readouterr().err


def test_shapes_are_those_of_the_two_networks(bench):
    layers, where = bench.shapes.Layer, bench.shapes.layers()
    cube, three, one, two = (96,) * 3, (3,) * 3, (1,) * 3, (2,) * 3
    zero = (0,) * 3
    by_hand = {
        layers("conv3d", 1, 48, cube, three, one, one): "swinunetr",  # encoder 1
        layers("conv3d", 48, 48, cube, three, one, one): "swinunetr",
        layers("conv3d", 96, 48, cube, three, one, one): "swinunetr",  # decoder 1, after the skip connection
        layers("conv3d", 1, 48, cube, two, two, zero): "swinunetr",  # patch embedding
        layers("conv3d", 768, 768, three, three, one, one): "swinunetr",  # encoder 10, 96 / 32 = 3
        layers("conv3d", 1, 16, cube, three, one, one): "segresnet",
        layers("conv3d", 16, 32, cube, three, two, one): "segresnet",
        layers("conv3d", 128, 128, (12,) * 3, three, one, one): "segresnet",
        layers("conv_transpose3d", 768, 384, three, two, two, zero): "swinunetr",
        layers("linear", 48, 144, (7**6,)): "swinunetr",  # windows of 7³ on 48³, padded to 49³
        layers("linear", 48, 192, (48**3,)): "swinunetr",
    }
    assert {layer: where.get(layer) for layer in by_hand} == {layer: (name,) for layer, name in by_hand.items()}
    counts = {kind: len(bench.shapes.of_kind(kind)) for kind in ("conv3d", "conv_transpose3d", "linear")}
    assert counts == {"conv3d": 32, "conv_transpose3d": 5, "linear": 17}
    assert sum(counts.values()) == len(where)


def test_names_and_operations_of_a_shape(bench):
    layer = bench.shapes.Layer("conv3d", 16, 32, (96, 96, 96), (3, 3, 3), (2, 2, 2), (1, 1, 1))
    assert layer.name == "16-32 k3 s2 p1 96x96x96"
    assert layer.operations == 2 * 48**3 * 16 * 32 * 27
    flat = bench.shapes.Layer("conv3d", 2, 2, (4, 4, 4), (1, 3, 3), (1, 1, 1), (0, 1, 1))
    assert flat.name == "2-2 k1x3x3 s1 p0x1x1 4x4x4"
    assert bench.shapes.Layer("linear", 4, 8, (10,)).name == "4-8 10"
    assert bench.shapes.Layer("linear", 4, 8, (10,)).operations == 2 * 10 * 4 * 8


def test_every_shape_is_timed_in_both_formats_but_the_largest_that_take_minutes(bench):
    labels = [row.label for row in bench.lora_conv3d.rows(CPU) if row.dtype == "float32"]
    everything = [row.label for row in bench.lora_conv3d.rows(CPU, everything=True) if row.dtype == "float32"]
    assert len(everything) == len(set(everything)) == 2 * 32
    left = sorted(set(everything) - set(labels))
    assert all(label.endswith("96x96x96 r4 float32 contiguous") for label in left)
    sizes = [" ".join(label.split()[1:3]) for label in left]
    assert sizes == ["16-16 k3", "1-48 k1", "1-48 k3", "48-2 k1", "48-48 k3", "96-48 k1", "96-48 k3"]
    assert len(list(bench.lora_conv3d.rows(CPU, ranks=(4, 16)))) == 2 * len(list(bench.lora_conv3d.rows(CPU)))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_exact_results_are_those_of_the_formula_slab_by_slab(bench, monkeypatch, case):
    if case.groups > 1 or case.dilation > 1 or case.padding == "same":
        case = replace(case, groups=1, dilation=1, padding=1)
    three = [(each,) * 3 if isinstance(each, int) else each for each in (case.stride, case.padding)]
    layer = bench.shapes.Layer("conv3d", case.inputs, case.outputs, case.size, case.kernel, *three)
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(1, case.inputs, *case.size, generator=draw, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(case.outputs, case.inputs, *case.kernel, generator=draw, dtype=torch.float64)
    a = torch.randn(4, case.inputs, *case.kernel, generator=draw, dtype=torch.float64, requires_grad=True)
    b = torch.randn(case.outputs, 4, 1, 1, 1, generator=draw, dtype=torch.float64, requires_grad=True)
    walk = {"stride": case.stride, "padding": case.padding}
    y, frozen = reference(x, weight, None, a, b, 1.0, **walk), torch.conv3d(x, weight, None, **walk)
    assert tuple(y.shape[2:]) == layer.places
    g = torch.randn(y.shape, generator=draw, dtype=torch.float64)
    want = dict(zip(("gx", "gA", "gB"), torch.autograd.grad(y, (x, a, b), g), strict=True))
    want |= {"y": y, "frozen y": frozen, "frozen gx": torch.autograd.grad(frozen, x, g)[0]}
    compared = 0
    for unfolded in (1, 2**28):  # slabs of one row, and a single one
        monkeypatch.setattr(bench.lora_conv3d, "UNFOLDED_BYTES", unfolded)
        got = bench.lora_conv3d.exact(layer, (x, weight, a, b, g))
        assert got.keys() == want.keys()
        for name in want:
            assert relative_error(got[name], want[name]) < 1e-12, name
            compared += 1
    assert compared == 12


def test_all_providers_of_lora_conv3d_agree_in_every_dtype_and_format(bench, monkeypatch):
    monkeypatch.setattr(bench.lora_conv3d, "dtypes", lambda device: [torch.float32, torch.bfloat16])
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    layer = bench.shapes.Layer("conv3d", 3, 5, (4, 5, 6), (3, 3, 3), (2, 2, 2), (1, 1, 1))
    seen = 0
    for each in bench.lora_conv3d.rows(CPU, shapes={"tiny": layer}, compiled=False):
        results = bench.harness.run_row(each, bench.harness.wall, bench.harness.Limits((1, 1)), CPU)
        timed = [result for result in results if result.status != "does not apply"]
        assert set(statuses(timed).values()) == {"ok"}, timed
        assert [result.provider for result in timed[:2]] == ["frozen", "peft"]
        assert timed[-1].provider == "auto"
        assert all(result.median > 0 for result in timed)
        seen += 1
    assert seen == 4


def test_a_compiled_rival_is_in_the_row_unless_it_is_left_out(bench):
    layer = bench.shapes.Layer("conv3d", 1, 2, (3, 3, 3), (1, 1, 1), (1, 1, 1), (0, 0, 0))
    for compiled in (True, False):
        (first, *_) = bench.lora_conv3d.rows(CPU, shapes={"tiny": layer}, compiled=compiled)
        assert ("peft compiled" in first.build().providers) is compiled


def test_every_operation_has_a_benchmark_of_its_name_and_nothing_else_counts_as_one(bench):
    assert len(OPERATIONS) == 7
    assert OPERATIONS == bench.run.OPERATIONS
    assert set(OPERATIONS) <= set(medseqft_kernels.__all__)


# How many rows `make bench` has, and how many with --everything, where fp32 alone is timed.
PLANNED = {
    "contrastive_loss": (3, 3),
    "cosine_topk": (2, 2),
    "gather_crops": (5, 8),
    "lora_conv3d": (57, 64),
    "lora_conv_transpose3d": (5, 10),
    "lora_linear": (5, 17),
    "masked_reconstruction_loss": (5, 5),
}


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_plans_distinct_rows_with_a_floor_and_a_rival(bench, monkeypatch, operation):
    module = getattr(bench, operation)
    if hasattr(module, "dtypes"):
        monkeypatch.setattr(module, "dtypes", lambda device: [torch.float32])
    for everything, planned in zip((False, True), PLANNED[operation], strict=True):
        rows = list(module.rows(CPU, ranks=(4,), everything=everything, compiled=True))
        assert len({each.label for each in rows}) == len(rows) == planned
        assert {each.operation for each in rows} == {operation}
        assert all(each.floor and each.rival for each in rows)


# Of each operation small shapes, and who is in their rows besides `auto`.
TINY = {
    "contrastive_loss": ([(5, 7)], {"products", "reference", "blocked"}),
    "cosine_topk": ([(4, 9, 6, 3)], {"product", "product and topk", "reference", "blocked"}),
    "gather_crops": (
        [((3, 16, 2, 20), torch.int16, True), ((3, 16, 2, 20), torch.float32, False)],
        {"floor", "slices", "MONAI", "reference"},
    ),
    "lora_conv_transpose3d": (
        {"tiny": ("conv_transpose3d", 4, 3, (2, 3, 4), (2, 2, 2), (2, 2, 2), (0, 0, 0))},
        {"frozen", "reference", "merged-projected", "merged-thin", "concatenated-thin"},
    ),
    "lora_linear": (
        {"tiny": ("linear", 4, 6, (5,))},
        {"frozen", "peft", "merged-projected", "merged-thin", "concatenated-thin"},
    ),
    "masked_reconstruction_loss": ([(2, 16, None), (2, 16, 8)], {"floor", "reference", "lean"}),
}


@pytest.mark.parametrize("operation", sorted({*OPERATIONS} - {"lora_conv3d"}))  # which has a test of its own
def test_all_providers_of_an_operation_agree_and_are_related_to_floor_and_rival(bench, monkeypatch, operation):
    module, (shapes, expected) = getattr(bench, operation), TINY[operation]
    if hasattr(module, "dtypes"):
        monkeypatch.setattr(module, "dtypes", lambda device: [torch.float32, torch.bfloat16])
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    if isinstance(shapes, dict):
        shapes = {name: bench.shapes.Layer(*layer) for name, layer in shapes.items()}
    rows = list(module.rows(CPU, shapes=shapes, compiled=False))
    assert len(rows) == len(shapes) * (2 if hasattr(module, "dtypes") else 1)  # crops have the dtype of what is stored
    for each in rows:
        results = bench.harness.run_row(each, bench.harness.wall, bench.harness.Limits((1, 1)), CPU)
        timed = {result.provider: result for result in results if result.status != "does not apply"}
        assert set(statuses(timed.values()).values()) == {"ok"}, timed
        absent = {result.provider for result in results} - timed.keys()
        rounds_too_often = {name for name in expected if name.startswith("merged") and each.dtype == "bfloat16"}
        assert absent - {"triton"} == rounds_too_often
        assert timed.keys() == expected - absent | {"auto"}
        (found,) = bench.harness.summary([each], results)
        assert found["providers"].keys() == timed.keys()
        for name, relations in found["providers"].items():
            ratios = [relations[key]["geometric_mean"] for key in ("times_floor", "rival_over_it")]
            by_hand = [timed[name].median / timed[each.floor].median, timed[each.rival].median / timed[name].median]
            assert ratios == pytest.approx(by_hand)


SPOILT = {
    "cosine_topk": lambda found: (found[0], found[1].roll(1, 0)),
    "gather_crops": lambda found: found._replace(masked=found.masked * 1.001),
}


@pytest.mark.parametrize("operation", sorted({*OPERATIONS} - {"lora_conv3d"}))
def test_a_backend_that_is_off_by_a_thousandth_turns_a_row_red(bench, monkeypatch, operation):
    module, (shapes, _) = getattr(bench, operation), TINY[operation]
    if hasattr(module, "dtypes"):
        monkeypatch.setattr(module, "dtypes", lambda device: [torch.float32])
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    if isinstance(shapes, dict):
        shapes = {name: bench.shapes.Layer(*layer) for name, layer in shapes.items()}
    right, spoilt = getattr(module, operation), SPOILT.get(operation, lambda found: found * 1.001)

    def wrong(*arguments, **settings):
        found = right(*arguments, **settings)
        return spoilt(found) if settings["backend"] == "auto" else found

    monkeypatch.setattr(module, operation, wrong)
    rows = list(module.rows(CPU, shapes=shapes, compiled=False))
    assert len(rows) == len(shapes)
    for each in rows:
        results = bench.harness.run_row(each, raising(AssertionError("timed")), bench.harness.Limits((1, 1)), CPU)
        assert [name for name, status in statuses(results).items() if status == "wrong"] == ["auto"]
        assert bench.harness.is_red(results)


def test_a_choice_is_compared_by_how_good_it_is(bench):
    queries, keys = torch.tensor([[1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0], [2.0, 0.0], [1.0, 1.0]])
    for index, cosines in (([0, 2], [1.0, 1.0]), ([2, 0], [1.0, 1.0]), ([0, 3], [1.0, math.sqrt(0.5)])):
        found = bench.cosine_topk.comparable(queries, keys, {"index": torch.tensor([index])})
        assert found["cosines of index"].tolist() == [pytest.approx(cosines)]
    picked = {"values": torch.tensor([[1.0, 1.0]])}
    assert bench.cosine_topk.comparable(queries, keys, picked) == picked


def test_control_variates_written_by_hand_are_those_of_the_operation(bench):
    what = bench.gather_crops.drawn((3, 16, 2, 20), torch.float32, CPU)
    found = medseqft_kernels.gather_crops(what.volumes, what.volume, what.corner, (16, 16, 16), mask=what.mask)
    by_hand = bench.gather_crops.control_variates(found.target, what.mask)
    for name, want in (("gradient_energy", found.gradient_energy), ("local_variance", found.local_variance)):
        assert relative_error(by_hand[name], want) < 1e-5, name


def test_the_linear_layers_picked_exist(bench):
    picked = bench.lora_linear.PICKED
    layers = {(each.inputs, each.outputs) for each in bench.shapes.of_kind("linear").values()}
    assert picked.keys() <= layers


def test_a_layer_that_is_compiled_is_beside_the_one_that_is_not(bench):
    tiny = {name: TINY[name][0] for name in ("lora_linear", "masked_reconstruction_loss", "contrastive_loss")}
    tiny["lora_linear"] = {"tiny": bench.shapes.Layer(*tiny["lora_linear"]["tiny"])}
    for operation, shapes in tiny.items():
        for compiled in (True, False):
            (first, *_) = getattr(bench, operation).rows(CPU, shapes=shapes, compiled=compiled)
            assert (f"{first.rival} compiled" in first.build().providers) is compiled


def test_the_page_of_goals_says_what_is_held_missed_and_not_measured(bench, tmp_path):
    def group(layout, floor, rival, worst):
        figures = {
            "times_floor": {"geometric_mean": floor, "worst": 9.0, "rows": 2},
            "rival_over_it": {"geometric_mean": rival, "worst": worst, "rows": 2},
        }
        return {"operation": "lora_conv3d", "dtype": "float32", "format": layout, "providers": {"auto": figures}}

    summary = [group("contiguous", 1.0, 1.0, 0.9), group("channels-last", 1.44, 4.0, 1.2)]
    (tmp_path / "some-machine.json").write_text(json.dumps({"summary": summary}))
    (tmp_path / "training.json").write_text(json.dumps({"medians": {"MONAI, plain": 3.0, "ours, fp32": 2.5}}))
    sizes = {
        size: {"medians": {"bare forward passes": 2.0, "ours": ours}} for size, ours in (("small", 2.4), ("base", 2.1))
    }
    (tmp_path / "landscape.json").write_text(json.dumps(sizes))
    rows = {name: tuple(rest) for name, *rest in bench.goals.page(tmp_path)}
    assert len(rows) == 10
    conv = "lora_conv3d, fp32, both formats"
    assert rows[f"{conv}: times the frozen convolution"] == ("≤ 1.35", "1.20", "held")  # √(1.0 · 1.44)
    assert rows[f"{conv}: times faster than PEFT"] == ("≥ 1.5", "2.00", "held")
    assert rows[f"{conv}: the same, worst shape"] == ("≥ 0.95", "0.90", "MISSED")
    assert rows["training, fp32: times the steps of a plain MONAI loop"] == ("≥ 1.5", "1.20", "MISSED")
    assert rows["landscape, small: times the bare forward passes"] == ("≤ 1.1", "1.20", "MISSED")
    assert rows["landscape, base: times the bare forward passes"] == ("≤ 1.1", "1.05", "held")
    assert rows["MDS, certified: times faster than a plain loop"][1:] == ("–", "not measured")
