"""Errors for people: which file, what was found, what was expected, what to do next.

Everything a user can cause derives from :class:`MedSeqFTError`; the command line prints its text without a traceback.
`assert` is kept for our own mistakes.
"""

from __future__ import annotations


class MedSeqFTError(Exception):
    """A user's mistake or a damaged input, said in five lines at most.

    Parameters
    ----------
    summary
        One sentence: which task, case or file, and what is wrong.
    found, expected
        The two values that disagree, as text.
    next_step
        What the user can do, a command where there is one.
    unchanged
        Whether to say that nothing was changed.
    """

    def __init__(
        self,
        summary: str,
        *,
        found: str | None = None,
        expected: str | None = None,
        next_step: str | None = None,
        unchanged: bool = True,
    ) -> None:
        self.summary, self.found, self.expected, self.next_step = summary, found, expected, next_step
        self.unchanged = unchanged
        super().__init__(str(self))

    def __str__(self) -> str:
        lines = [f"{type(self).__name__}: {self.summary}"]
        if self.found is not None:
            lines.append(f"  found     {self.found}")
        if self.expected is not None:
            lines.append(f"  expected  {self.expected}")
        if self.unchanged:
            lines.append("  Nothing was changed.")
        if self.next_step is not None:
            lines.append(f"  next: {self.next_step}")
        return "\n".join(lines)

    def __reduce__(self):  # type: ignore[no-untyped-def]  # keyword-only arguments would be lost between processes
        return (_rebuild, (type(self), self.summary, self.found, self.expected, self.next_step, self.unchanged))


def _rebuild(
    kind: type[MedSeqFTError],
    summary: str,
    found: str | None,
    expected: str | None,
    next_step: str | None,
    unchanged: bool,
) -> MedSeqFTError:
    return kind(summary, found=found, expected=expected, next_step=next_step, unchanged=unchanged)


class DataError(MedSeqFTError):
    """A data set, a volume or a label that cannot be used as it is."""


class GeometryMismatch(DataError):
    """Image and label lie on different grids."""


class ConfigError(MedSeqFTError):
    """A configuration that does not say something we can run."""


class RunError(MedSeqFTError):
    """A run folder that is damaged, locked or made by other settings."""


class ModelError(MedSeqFTError):
    """Weights or an architecture that do not fit."""


class AdapterError(ModelError):
    """A LoRA target, rank or file that does not fit the model."""


class NumericsError(MedSeqFTError):
    """A loss that is no longer a number."""
