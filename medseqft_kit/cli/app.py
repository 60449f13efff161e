"""The command line: which commands there are, in the order of `medseqft --help`."""

from __future__ import annotations

import typer

from medseqft_kit.cli.commands import data, inspection, results, selection, tuning, weights

app = typer.Typer(
    name="medseqft",
    help="Sequential fine-tuning of 3D medical foundation models (MedSeqFT, arXiv 2509.06096).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

COMMANDS = (
    tuning.demo,
    data.phantoms,
    data.fetch,
    data.check,
    weights.import_,
    tuning.pretrain,
    tuning.run,
    tuning.compare,
    tuning.transfer,
    inspection.landscape,
    inspection.drift,
    tuning.add,
    selection.score,
    selection.select,
    results.predict,
    results.evaluate,
    results.report,
    results.export,
    inspection.doctor,
)

for command in COMMANDS:
    app.command(command.__name__.rstrip("_"))(command)  # `import` is a word of Python's own
