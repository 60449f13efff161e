"""The command line, `medseqft`. Everything heavy is imported inside the command that needs it."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; a user's mistake ends in its message and exit code 1, never in a traceback."""
    import medseqft_kit.short_start  # noqa: F401  # before anything imports MONAI
    from medseqft_kit.cli.app import app
    from medseqft_kit.errors import MedSeqFTError
    from medseqft_kit.runs.interrupt import Interrupted

    try:
        app()
    except MedSeqFTError as problem:
        print(problem, file=sys.stderr)
        raise SystemExit(1) from None
    except Interrupted as stop:
        print(f"{stop}.\n  The same command continues from here.", file=sys.stderr)
        raise SystemExit(130) from None
