"""What a run has to give: segmentations, metrics, the report."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from medseqft_kit.cli.commands.arguments import Out, RunArgument


def predict(
    run: RunArgument,
    images: Annotated[
        list[Path],
        typer.Argument(metavar="IMAGE…", help="NIfTI, or folders of DICOM; channels as NAME_0000, NAME_0001 …"),
    ],
    out: Out,
    task: Annotated[str | None, typer.Option(help="Which task; needed where the run has several.")] = None,
    which: Annotated[str | None, typer.Option(help="adapted (M'_t) or merged (M_t); the run's own choice.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Mix M_0 and M'_t for each image, by agreement.")] = False,
    others: Annotated[
        list[Path] | None, typer.Option("--with", metavar="RUN", help="Average with this run's model too; repeatable.")
    ] = None,
    flips: Annotated[str | None, typer.Option(help="Average over flips along axes (RAS), such as 0,1,2.")] = None,
    largest_component: Annotated[
        str | None, typer.Option(metavar="STRUCTURE,…", help="Keep the largest connected component alone of these.")
    ] = None,
    uncertainty: Annotated[bool, typer.Option("--uncertainty", help="Write the predictive entropy, 0…1, too.")] = False,
    dicom_seg: Annotated[
        bool, typer.Option("--dicom-seg", help="Write DICOM SEG too, as NAME_seg.dcm; for DICOM images.")
    ] = False,
) -> None:
    """Segment images; each result is a NIfTI in the image's own geometry with the data set's label values."""
    from medseqft_kit.errors import ConfigError
    from medseqft_kit.evaluation.dicom_seg import require_dicom, write_dicom_segs
    from medseqft_kit.evaluation.load import load_predictor
    from medseqft_kit.evaluation.options import changed_options
    from medseqft_kit.evaluation.predict import ensemble, examinations, write_predictions
    from medseqft_kit.evaluation.record import read_record, record_predictions
    from medseqft_kit.progress import rich_progress
    from medseqft_kit.tuning.run import Run

    tasks = Run(run).tasks
    if task is None and len(tasks) > 1:
        raise ConfigError(f"{run} answers several tasks.", found=", ".join(tasks), expected="--task NAME")
    if which not in (None, "adapted", "merged"):
        raise ConfigError("there is no such predictor.", found=which, expected="--which adapted or --which merged")
    if merge and which is not None:
        raise ConfigError(
            "--merge is a predictor of its own.", found=f"--which {which} --merge", expected="one of the two"
        )
    name, runs = task or tasks[0], [run, *(others or [])]
    models = [{"run": str(each), "which": "agreement" if merge else which or Run(each).headline} for each in runs]
    members = [load_predictor(model["run"], name, model["which"]) for model in models]  # type: ignore[arg-type]
    predictor = ensemble(members)
    options = changed_options(predictor.options, flips, largest_component, uncertainty)
    predictor = replace(predictor, options=options)
    read_record(out)
    groups = examinations(images, len(predictor.task.channels))
    if dicom_seg:
        require_dicom(groups)
    with rich_progress() as progress:
        written = write_predictions(predictor, groups, out, progress)
        segs = write_dicom_segs(predictor.task, groups, written, progress) if dicom_seg else []
    record_predictions(out, written, predictor, models)
    for path in (*written, *segs):
        typer.echo(path)


def evaluate(run: RunArgument) -> None:
    """Metrics of a run, of every stage, task and predictor, computed from its cases.csv files alone."""
    from medseqft_kit.cli.tables import show_cases
    from medseqft_kit.tuning.run import Run

    show_cases(Run(run).cases())


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or a comparison folder.")],
) -> None:
    """Write the self-contained HTML report of a run or a comparison."""
    from medseqft_kit.report.page import write_comparison_report, write_report

    single = (run / "manifest.json").is_file()
    typer.echo(f"report: {write_report(run) if single else write_comparison_report(run)}")


def export(
    run: RunArgument,
    task: Annotated[str, typer.Argument(metavar="TASK", help="A finished task of the run.")],
    out: Annotated[Path, typer.Option("--out", help="A new folder.")],
    form: Annotated[
        str, typer.Option("--format", metavar="peft|bundle|onnx|torch", help="See docs/exporting.md.")
    ] = "torch",
    which: Annotated[str | None, typer.Option(help="adapted (M'_t) or merged (M_t); the run's own choice.")] = None,
) -> None:
    """Write a task's model for others to load; what was written is run and compared before it gets its name."""
    from medseqft_kit.export.write import export as write

    differences = write(run, task, form, out, which)
    for what, difference in differences.items():
        typer.echo(f"{what}: {difference:.2g} from the model in the run")
    typer.echo(out)
