"""What a check found, one row each, and the report they make."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from medseqft_kit.tasks.catalogue import DataSet
from medseqft_kit.tasks.types import Task

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Finding:
    """One thing wrong with one file.

    Parameters
    ----------
    severity
        An error stops a run; a warning does not, unless the check is strict.
    case
        Id of the case; empty where the finding is about the whole data set.
    file
        Path relative to the data set's folder where it lies inside.
    found, expected
        The two values that disagree.
    next_step
        What to do about it.
    """

    severity: Severity
    task: str
    case: str
    file: str
    problem: str
    found: str
    expected: str
    next_step: str


@dataclass(frozen=True)
class CheckReport:
    """Everything found in one data set, in the order of the cases.

    Parameters
    ----------
    task
        Name of the data set.
    cases
        Number of cases checked, labelled and unlabelled.
    images
        Hash of an image's voxels to its file: what tells whether another data set holds the same image.
    public
        The public data sets that this is, of the catalogue.
    """

    task: str
    cases: int
    findings: tuple[Finding, ...]
    images: Mapping[str, str] = field(default_factory=dict, repr=False)
    public: tuple[DataSet, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that stop a run."""
        return tuple(finding for finding in self.findings if finding.severity == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """Findings that do not."""
        return tuple(finding for finding in self.findings if finding.severity == "warning")

    @property
    def ok(self) -> bool:
        """Whether there is no error."""
        return not self.errors

    @property
    def summary(self) -> str:
        """One line: cases, errors, warnings."""
        count = Counter(finding.severity for finding in self.findings)
        return f"{self.task}: {self.cases} cases, {count['error']} errors, {count['warning']} warnings"

    def strict(self) -> CheckReport:
        """The same report with every warning an error."""
        return replace(self, findings=tuple(replace(finding, severity="error") for finding in self.findings))


def finding(
    task: Task,
    case: str,
    path: Path,
    problem: str,
    *,
    found: str,
    expected: str,
    next_step: str,
    severity: Severity = "error",
) -> Finding:
    """A finding about `path`, shown relative to the data set's folder."""
    return Finding(severity, task.name, case, shown(task, path), problem, found, expected, next_step)


def shown(task: Task, path: Path) -> str:
    """A path relative to the data set's folder, where it lies inside."""
    return str(path.relative_to(task.root) if path.is_relative_to(task.root) else path)
