"""One way to time every operation: correctness first, then all providers in turn, then a table and a JSON file.

A row is one operation on one shape, dtype and memory format; a provider is one way to compute it. Every provider is
held against the row's reference before anything is timed, and a row in which one is wrong shows no time at all. Then
each round runs every provider once, so that a machine which slows down meanwhile slows all of them.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from medseqft_kernels.dispatch import pinned
from medseqft_kernels.tolerance import relative_error

LOOSE = 1e-2
"""Largest error of a rival: that it computes the same. How exactly it does is in the table, and its own affair."""

Timer = Callable[[Callable[[], object]], float]


class Provider(NamedTuple):
    """One way to compute a row."""

    run: Callable[[], Mapping[str, Tensor]]
    """What is timed; returns its results by name, each of which the reference has too."""
    rival: bool = False
    """Not ours: if it cannot run (a compiler fails), that is a remark, and it only has to be as exact as `LOOSE`."""


class Work(NamedTuple):
    """A row with its tensors made."""

    providers: Mapping[str, Provider]
    reference: Callable[[], Mapping[str, Tensor]]
    """All results that any provider returns."""
    tolerance: float
    """Largest ‖got − want‖ / ‖want‖ of any result."""
    comparable: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = dict
    """Makes of a provider's results, off the clock, what is held against the reference: of a choice, how good it is."""


@dataclass(frozen=True)
class Row:
    """One line of the plan; `build` is called when its turn comes."""

    operation: str
    shape: str
    dtype: str
    format: str
    build: Callable[[], Work]
    floor: str | None = None
    """The provider that no other can beat, to which all are related."""
    rival: str | None = None
    """The provider that a user would otherwise take."""

    @property
    def label(self) -> str:
        """All but the operation, in one line."""
        return f"{self.shape} {self.dtype} {self.format}"


@dataclass(frozen=True)
class Result:
    """What one provider made of one row; times in seconds, None where the row or the provider shows none."""

    operation: str
    shape: str
    dtype: str
    format: str
    provider: str
    status: str
    """``ok``; ``wrong``; ``failed``; ``does not apply``; or ``withheld``: right, in a row where another is not."""
    error: float | None = None
    median: float | None = None
    p20: float | None = None
    p80: float | None = None
    repeats: int = 0
    peak_bytes: int | None = None
    """Largest allocation during a call, beyond what the row's tensors hold; None on a CPU."""
    note: str = ""


@dataclass(frozen=True)
class Limits:
    """How long a row is timed: at least and at most so many rounds, none begun after so many seconds in between."""

    rounds: tuple[int, int] = (3, 20)
    seconds: float = 10.0


def wall(run: Callable[[], object]) -> float:
    """Seconds that a call takes on the CPU."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


class GpuTimer:
    """Seconds between two events on a GPU's stream; its second-level cache is filled with something else first."""

    def __init__(self, device: torch.device) -> None:
        self.flush = torch.empty(2**28, dtype=torch.uint8, device=device)

    def __call__(self, run: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize(self.flush.device)
        self.flush.zero_()  # also keeps the GPU busy until the first kernel is launched
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize(self.flush.device)
        return begin.elapsed_time(end) / 1000


def compiled_name(provider: str | None) -> str:
    """The provider that is what `torch.compile` makes of another one."""
    return f"{provider} compiled"


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """What `torch.compile` makes of it; each row gets code of its own, as if it were the only one."""
    torch.compiler.reset()
    return torch.compile(function, dynamic=False)


def timer_for(device: torch.device) -> Timer:
    """Events on a GPU, a clock on the wall elsewhere."""
    return GpuTimer(device) if device.type == "cuda" else wall


def measure(runs: Mapping[str, Callable[[], object]], timer: Timer, limits: Limits) -> dict[str, list[float]]:
    """Times of each provider, one of each in every round; the first of a round changes from round to round."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    gc.collect()
    for done in range(limits.rounds[1]):
        if done >= limits.rounds[0] and sum(map(sum, times.values())) >= limits.seconds:
            break
        first = done % max(1, len(names))
        for name in names[first:] + names[:first]:
            times[name].append(timer(runs[name]))
    return times


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile, linear between neighbours."""
    return float(torch.tensor(values, dtype=torch.float64).quantile(q))


def run_row(row: Row, timer: Timer, limits: Limits, device: torch.device) -> list[Result]:
    """Check every provider of a row; time them all if none is wrong."""
    work = row.build()
    checked = {name: _check(name, provider, work, device) for name, provider in work.providers.items()}
    green = not any(
        found["status"] in ("wrong", "failed") and not _excused(work, name, found) for name, found in checked.items()
    )
    runs = {name: work.providers[name].run for name, found in checked.items() if found["status"] == "ok"}
    times = measure(runs, timer, limits) if green else {}
    results = []
    for name, found in checked.items():
        if name in times:
            each = times[name]
            spread = {"median": statistics.median(each), "p20": quantile(each, 0.2), "p80": quantile(each, 0.8)}
            found = {**found, **spread, "repeats": len(each)}
        elif found["status"] == "ok":
            found = {**found, "status": "withheld"}
        results.append(Result(row.operation, row.shape, row.dtype, row.format, name, **found))
    return results


def _excused(work: Work, name: str, found: Mapping[str, Any]) -> bool:
    return work.providers[name].rival and found["status"] == "failed"


def _check(name: str, provider: Provider, work: Work, device: torch.device) -> dict[str, Any]:
    """The first call, which compiles and tunes as well: whether it runs, and how far it is from the reference."""
    chosen: dict[str, str] = {}
    try:
        with pinned(chosen):
            results = provider.run()
    except ValueError as problem:  # how our operations say that a backend is not for these tensors
        return {"status": "does not apply", "note": _first_line(problem)}
    except Exception as problem:  # a compiler may raise anything; what it was is in the table
        return {"status": "failed", "note": f"{type(problem).__name__}: {_first_line(problem)}"}
    results, want = work.comparable(results), work.reference()
    errors = [relative_error(results[name], want[name]) for name in results]
    error = math.nan if any(map(math.isnan, errors)) or not errors else max(errors)
    del results
    return {
        "status": "ok" if error <= (max(LOOSE, work.tolerance) if provider.rival else work.tolerance) else "wrong",
        "error": error,
        "peak_bytes": _peak(provider, device) if device.type == "cuda" else None,
        "note": f"took {', '.join(chosen.values())}" if name == "auto" and chosen else "",
    }


def _first_line(problem: BaseException) -> str:
    return next(iter(str(problem).strip().splitlines()), "")[:160]


def _peak(provider: Provider, device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    provider.run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def is_red(results: Iterable[Result]) -> bool:
    """Whether a row's speed is withheld."""
    return any(result.status in ("wrong", "withheld") for result in results) or not any(
        result.status == "ok" for result in results
    )


def lines(row: Row, results: Sequence[Result]) -> Iterator[str]:
    """A row as text: times, their relation to floor and rival, and the error; or why there is no time."""
    yield f"{row.operation}  {row.label}"
    medians = {result.provider: result.median for result in results}
    for result in results:
        if result.status == "does not apply":
            continue
        error = "" if result.error is None else f"  error {result.error:.1e}"
        text = f"  {result.provider:<26}"
        if result.median is None or result.p20 is None or result.p80 is None:
            yield f"{text} {result.status}{error}  {result.note}".rstrip()
            continue
        text += f" {1e3 * result.median:10.3f} ms  [{1e3 * result.p20:.3f}, {1e3 * result.p80:.3f}]"
        text += f"  {result.repeats} rounds{error}"
        floor, rival = medians.get(row.floor or ""), medians.get(row.rival or "")
        text += f"  {result.median / floor:.2f} x {row.floor}" if floor else ""
        text += f"  {rival / result.median:.2f} times as fast as {row.rival}" if rival else ""
        text += f"  {result.peak_bytes / 1e6:.0f} MB" if result.peak_bytes is not None else ""
        yield f"{text}  {result.note}".rstrip()
    absent = [result.provider for result in results if result.status == "does not apply"]
    if absent:
        yield f"  does not apply: {', '.join(absent)}"


def summary(rows: Sequence[Row], results: Sequence[Result]) -> list[dict[str, Any]]:
    """For each operation, dtype and format: geometric means and worst rows over the floor and against the rival.

    ``slower_than_rival`` lists the shapes on which `auto` loses to the rival beyond noise (p20 over its p80),
    ``slower_than_compiled`` those on which it loses to what `torch.compile` makes of the rival.
    """
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.operation, row.dtype, row.format), []).append(row)
    found = []
    for (operation, dtype, form), members in groups.items():
        timed: dict[Row, dict[str | None, Result]] = {
            row: {r.provider: r for r in results if _of(r) == (operation, row.shape, dtype, form) and r.median}
            for row in members
        }
        names = dict.fromkeys(str(name) for each in timed.values() for name in each)
        found.append(
            {
                "operation": operation,
                "dtype": dtype,
                "format": form,
                "rows": len(members),
                "providers": {name: _relations(name, timed) for name in names},
                "slower_than_rival": [row.shape for row, each in timed.items() if _loses(each, row.rival)],
                "slower_than_compiled": [
                    row.shape for row, each in timed.items() if _loses(each, compiled_name(row.rival))
                ],
            }
        )
    return found


def _of(result: Result) -> tuple[str, str, str, str]:
    return result.operation, result.shape, result.dtype, result.format


def _loses(timed: Mapping[str | None, Result], to: str | None) -> bool:
    auto, rival = timed.get("auto"), timed.get(to)
    return bool(auto and rival and auto.p20 and rival.p80 and auto.p20 > rival.p80)


def _relations(name: str, timed: Mapping[Row, Mapping[str | None, Result]]) -> dict[str, Any]:
    over_floor: dict[str, float] = {}
    rival_over_it: dict[str, float] = {}
    for row, each in timed.items():
        own, floor, rival = (each[key].median if key in each else None for key in (name, row.floor, row.rival))
        if own and floor:
            over_floor[row.shape] = own / floor
        if own and rival:
            rival_over_it[row.shape] = rival / own
    return {
        "times_floor": _mean_and_worst(over_floor, max),
        "rival_over_it": _mean_and_worst(rival_over_it, min),
    }


def _mean_and_worst(ratios: Mapping[str, float], worst: Callable[..., str]) -> dict[str, Any] | None:
    if not ratios:
        return None
    shape = worst(ratios, key=ratios.__getitem__)
    mean = statistics.geometric_mean(ratios.values())
    return {"geometric_mean": mean, "worst": ratios[shape], "worst_shape": shape, "rows": len(ratios)}


def summary_lines(found: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The summary as text."""
    for group in found:
        yield f"{group['operation']}  {group['dtype']} {group['format']}, {group['rows']} rows"
        for name, relations in group["providers"].items():
            text = f"  {name:<26}"
            for key, words in (("times_floor", "times the floor"), ("rival_over_it", "times the rival's speed")):
                if relations[key]:
                    mean, worst, shape = (relations[key][part] for part in ("geometric_mean", "worst", "worst_shape"))
                    text += f"  {mean:5.2f} {words} (worst {worst:.2f}: {shape})"
            yield text
        if "auto" in group["providers"]:
            lost = [("the rival", group["slower_than_rival"])]
            if any(name.endswith(" compiled") for name in group["providers"]):
                lost.append(("the compiled rival", group["slower_than_compiled"]))
            for whom, shapes in lost:
                yield f"  auto slower than {whom} beyond noise: {', '.join(shapes) or 'on no shape'}"


def as_json(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Results as plain values; NaN, which JSON does not have, becomes text."""
    rows = [asdict(result) for result in results]
    return [{key: repr(value) if value != value else value for key, value in row.items()} for row in rows]
