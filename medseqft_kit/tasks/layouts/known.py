"""Defects of public data sets that others have found: which cases, what is wrong, who says so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from medseqft_kit.tasks.facts import CaseFacts
from medseqft_kit.tasks.findings import Finding, Severity, finding
from medseqft_kit.tasks.types import Task


def always(facts: CaseFacts) -> bool:
    """For what no file shows: a structure drawn wrongly, slices of another phase."""
    return True


@dataclass(frozen=True)
class KnownDefect:
    """One defect.

    Parameters
    ----------
    problem
        What the check calls it.
    source
        Where it was reported.
    next_step
        What to do about it.
    cases
        Ids; empty: any case that shows it.
    shows
        Whether a case's files have it: repaired copies are then not complained of.
    """

    problem: str
    source: str
    next_step: str
    cases: frozenset[str] = frozenset()
    shows: Callable[[CaseFacts], bool] = always
    severity: Severity = "warning"


def known_defects(defects: tuple[KnownDefect, ...], task: Task, facts: CaseFacts) -> Iterator[Finding]:
    """Those that a case has."""
    for defect in defects:
        if (not defect.cases or facts.case.id in defect.cases) and defect.shows(facts):
            yield finding(
                task,
                facts.case.id,
                facts.case.images[0],
                defect.problem,
                found=f"known of this data set, {defect.source}",
                expected="a case without it",
                next_step=defect.next_step,
                severity=defect.severity,
            )


def cases(prefix: str, numbers: str) -> frozenset[str]:
    """Ids from numbers as text.

    >>> sorted(cases("s", "0001 0042"))
    ['s0001', 's0042']
    """
    return frozenset(prefix + number for number in numbers.split())
