"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="See docs/configuration.md.")]
FoundationArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="Weights of M_0 (safetensors).")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as budget.steps=600.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A folder made by `medseqft run`.")]
