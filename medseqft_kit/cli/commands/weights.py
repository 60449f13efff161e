"""Public weights: look at a file, and make a model of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def import_(
    weights: Annotated[str, typer.Argument(metavar="FILE", help="A file, or hf://owner/repository/file.")],
    out: Annotated[Path | None, typer.Option(help="Write the model there (safetensors).")] = None,
    channels: Annotated[int | None, typer.Option(help="Channels of the images to come; as in the file.")] = None,
    patch_merging: Annotated[
        Literal["legacy", "current"] | None,
        typer.Option(help="Of SwinUNETR: of MONAI up to 1.4, or since; as its family was trained."),
    ] = None,
) -> None:
    """Recognise a public weight file: what of it is used, its licence, its preprocessing; and make a model of it."""
    from medseqft_kit.cli.importing import show_import
    from medseqft_kit.models.foundation import save_foundation
    from medseqft_kit.models.weights.importing import Wishes, import_foundation

    imported = import_foundation(weights, Wishes(channels, None, patch_merging))
    show_import(imported)
    if out is not None:
        save_foundation(imported.model, out)
        typer.echo(out)
