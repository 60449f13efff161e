"""One function for each command: read the arguments, call the package, print the result."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

app = typer.Typer(
    name="medseqft",
    help="Sequential fine-tuning of 3D medical foundation models (MedSeqFT, arXiv 2509.06096).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Out = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="See docs/configuration.md.")]
FoundationArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="Weights of M_0 (safetensors).")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as budget.steps=600.")
]
Plane = Literal["random", "through", "line"]
Selection = Literal["mds", "highest", "random", "kmeans", "herding"]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A folder made by `medseqft run`.")]


@app.command()
def demo(out: Out = Path("demo")) -> None:
    """The whole method on phantoms, against parallel fine-tuning; ends with a table and a report."""
    from medseqft_kit.cli.comparison import compare_strategies
    from medseqft_kit.cli.demo import demo_config

    compare_strategies(demo_config(out), out)


@app.command()
def phantoms(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where the data sets are written.")],
    cases: Annotated[int, typer.Option(help="Labelled cases of each task.")] = 24,
    side: Annotated[int, typer.Option(help="Voxels along each axis.")] = 48,
    seed: Annotated[int, typer.Option(help="Draws the patients.")] = 0,
) -> None:
    """Write the generated phantom data sets (Decathlon layout)."""
    from medseqft_kit.phantoms.write import write_phantoms
    from medseqft_kit.progress import rich_progress

    with rich_progress() as progress:
        written = write_phantoms(
            folder,
            cases=cases,
            shape=(side, side, side),
            seed=seed,
            progress=progress,
        )
    for path in written.values():
        typer.echo(path)


@app.command()
def check(
    datasets: Annotated[list[Path], typer.Argument(metavar="DATASET…", help="Folders in a known layout.")],
    strict: Annotated[bool, typer.Option("--strict", help="Warnings count as errors.")] = False,
) -> None:
    """Read every header and label; say what is wrong, where, how bad it is and how to mend it."""
    from rich.console import Console

    from medseqft_kit.progress import rich_progress
    from medseqft_kit.tasks.check import check_task
    from medseqft_kit.tasks.check_table import findings_table

    with rich_progress() as progress:
        reports = [check_task(dataset, strict, progress=progress) for dataset in datasets]
    for dataset, report in zip(datasets, reports, strict=True):
        typer.echo(f"{dataset}: {report.summary}")
        if report.findings:
            Console().print(findings_table(report))
    if not all(report.ok for report in reports):
        raise typer.Exit(1)


@app.command()
def pretrain(config: ConfigFile, out: Out) -> None:
    """Make an M_0 from the unlabelled volumes that the configuration names."""
    from medseqft_kit.config import load_config
    from medseqft_kit.progress import rich_progress
    from medseqft_kit.tuning.experiment import foundation_model, read_plans

    settings = load_config(config)
    with rich_progress() as progress:
        foundation_model(settings, read_plans(settings), out, progress)
    typer.echo(out / "pretraining" / "foundation.safetensors")


@app.command()
def run(config: ConfigFile, out: Out = Path("runs"), changes: Changes = None) -> None:
    """Run a whole sequence; the same command on the same folder continues it."""
    from medseqft_kit.cli.tables import show_cases
    from medseqft_kit.config import assignments, load_config, varied
    from medseqft_kit.progress import rich_progress
    from medseqft_kit.tuning.experiment import run_sequence

    settings = varied(load_config(config), assignments(changes or []))
    with rich_progress() as progress:
        result = run_sequence(settings, out, progress)
    show_cases(result.cases())
    typer.echo(f"report: {result.report()}")


@app.command()
def compare(
    config: ConfigFile,
    out: Out = Path("comparison"),
    strategies: Annotated[
        str | None,
        typer.Option(help="Names, separated by commas, or `all`; those of the configuration's `compare` by default."),
    ] = None,
    pilot: Annotated[
        Path | None, typer.Option(help="A finished comparison: say first how many seeds its differences take.")
    ] = None,
    changes: Changes = None,
) -> None:
    """The same data, budget and seeds under several strategies; tables with intervals and tests, and a report.

    The same command on the same folder continues it.
    """
    from medseqft_kit.cli.comparison import compare_strategies, show_pilot
    from medseqft_kit.config import assignments, load_config, varied

    if pilot is not None:
        show_pilot(pilot)
    settings = varied(load_config(config), assignments(changes or []))
    compare_strategies(settings, out, strategies.split(",") if strategies else None)


@app.command()
def transfer(
    run: RunArgument,
    every_stage: Annotated[bool, typer.Option("--every-stage", help="Every M_t, not M_n alone.")] = False,
) -> None:
    """Tune a run's M_n, M_0 and fresh weights on the unseen tasks of its configuration, with few and all labels."""
    from medseqft_kit.cli.comparison import transfer_run

    transfer_run(run, every_stage)


@app.command()
def landscape(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders; several share one colour scale.")],
    task: Annotated[str, typer.Option("--task", help="Whose training loss and Dice.")],
    plane: Annotated[
        Plane, typer.Option(help="random: around a model; through: three models; line: between two.")
    ] = "random",
    models: Annotated[str, typer.Option(help="One, three or two of M_0, M'_1, M_1, …, with commas between.")] = "",
    steps: Annotated[int, typer.Option(min=2, help="Points along each axis.")] = 21,
    reach: Annotated[float, typer.Option(help="Of a random plane, in multiples of the filters' norms.")] = 1.0,
    crops: Annotated[int, typer.Option(min=1, help="Training crops that each point is judged by.")] = 16,
    seed: Annotated[int, typer.Option(help="Draws the random directions.")] = 0,
) -> None:
    """Training loss and Dice around or between the models of a run, as data and pictures.

    Interrupted, the same command goes on. Several processes share the work: accelerate launch -m medseqft_kit …
    """
    from medseqft_kit.analysis.landscape_of_run import View
    from medseqft_kit.cli.analysis import landscape_runs

    named = tuple(name for name in models.split(",") if name)
    landscape_runs(runs, View(task, plane, named, steps, reach, crops, seed))


@app.command()
def drift(run: RunArgument) -> None:
    """How far the weights and representations of a run have moved from M_0 and from stage to stage, layer by layer."""
    from medseqft_kit.cli.analysis import drift_run

    drift_run(run)


@app.command()
def add(
    run: RunArgument,
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="The next task's data set.")],
    name: Annotated[str | None, typer.Option(help="Name of the task; the folder's by default.")] = None,
    labels: Annotated[
        str | None, typer.Option(help="Label mapping as YAML, for instance '{organ: [1, 2], tumour: 3}'.")
    ] = None,
    train_cases: Annotated[int | None, typer.Option(help="Labelled cases used; all by default.")] = None,
) -> None:
    """The next task arrives: one more stage on an existing run; old tasks are evaluated before and after."""
    from medseqft_kit.cli.tables import show_cases
    from medseqft_kit.config import parse_task
    from medseqft_kit.progress import rich_progress
    from medseqft_kit.tuning.plan import TaskPlan
    from medseqft_kit.tuning.sequence import Run

    section = parse_task(dataset, name, labels, train_cases)
    with rich_progress() as progress:
        result = Run(run, progress).add(TaskPlan.from_section(section))
    show_cases(result.cases())
    typer.echo(f"report: {result.report()}")


@app.command()
def score(
    model: FoundationArgument,
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A data set; labels are not read.")],
    out: Out,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Cases in the buffer.")],
    max_draws: Annotated[int, typer.Option("--max-draws", min=16, help="Most crops and masks of a volume.")] = 1000,
    approximate: Annotated[bool, typer.Option("--approximate", help="Decide by normal intervals: cheaper.")] = False,
    exhaustive: Annotated[bool, typer.Option("--exhaustive", help="All draws of every volume, as the paper.")] = False,
    delta: Annotated[float, typer.Option(help="Probability that a certified choice is wrong.")] = 0.05,
    tolerance: Annotated[float, typer.Option(help="Scores that differ by less are ties.")] = 0.0,
    seed: Annotated[int, typer.Option(help="Draws the crops and masks.")] = 0,
) -> None:
    """MDS: race for the K volumes with the lowest SSL loss of M_0; write scores.csv and buffer.json.

    Interrupted, the same command goes on. Several processes share the work: accelerate launch -m medseqft_kit score …
    """
    from medseqft_kit.cli.selection import score_dataset
    from medseqft_kit.errors import ConfigError
    from medseqft_kit.selection.race import Method, Rules

    if approximate and exhaustive:
        raise ConfigError("a race is approximate or exhaustive.", found="--approximate --exhaustive", expected="one")
    method: Method = "approximate" if approximate else "exhaustive" if exhaustive else "certified"
    score_dataset(model, dataset, out, top_k, Rules(method, delta, tolerance, max_draws), seed)


@app.command()
def select(
    model: FoundationArgument,
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="A data set; labels are not read.")],
    out: Out,
    method: Annotated[Selection, typer.Option(help="How.")],
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Cases in the buffer.")],
    max_draws: Annotated[int, typer.Option("--max-draws", min=16, help="Most crops and masks of a volume.")] = 1000,
    seed: Annotated[int, typer.Option(help="Draws whatever is random.")] = 0,
) -> None:
    """Fill a buffer by MDS or one of its alternatives; write buffer.json, and scores.csv where there are scores."""
    from medseqft_kit.cli.selection import select_cases
    from medseqft_kit.settings import Buffer as BufferSettings

    select_cases(model, dataset, out, BufferSettings(selection=method, k=top_k, max_draws=max_draws), seed)


@app.command()
def predict(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE…", help="NIfTI; channels as NAME_0000, NAME_0001 …")],
    out: Out,
    task: Annotated[str | None, typer.Option(help="Which task; needed where the run has several.")] = None,
    which: Annotated[str | None, typer.Option(help="adapted (M'_t) or merged (M_t); the run's own choice.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Mix M_0 and M'_t for each image, by agreement.")] = False,
) -> None:
    """Segment images; each result is a NIfTI in the image's own geometry with the data set's label values."""
    from medseqft_kit.errors import ConfigError
    from medseqft_kit.evaluation.load import load_predictor
    from medseqft_kit.evaluation.predict import examinations, write_predictions
    from medseqft_kit.progress import rich_progress
    from medseqft_kit.tuning.sequence import Run

    tasks = Run(run).tasks
    if task is None and len(tasks) > 1:
        raise ConfigError(f"{run} answers several tasks.", found=", ".join(tasks), expected="--task NAME")
    if which not in (None, "adapted", "merged"):
        raise ConfigError("there is no such predictor.", found=which, expected="--which adapted or --which merged")
    if merge and which is not None:
        raise ConfigError(
            "--merge is a predictor of its own.", found=f"--which {which} --merge", expected="one of the two"
        )
    name = task or tasks[0]
    predictor = load_predictor(run, name, "agreement") if merge else Run(run).model(name, which)  # type: ignore[arg-type]
    with rich_progress() as progress:
        groups = examinations(images, len(predictor.task.channels))
        written = write_predictions(predictor, groups, out, progress)
    for path in written:
        typer.echo(path)


@app.command()
def evaluate(run: RunArgument) -> None:
    """Metrics of a run, of every stage, task and predictor, computed from its cases.csv files alone."""
    from medseqft_kit.cli.tables import show_cases
    from medseqft_kit.tuning.sequence import Run

    show_cases(Run(run).cases())


@app.command()
def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder or a comparison folder.")],
) -> None:
    """Write the self-contained HTML report of a run or a comparison."""
    from medseqft_kit.report.page import write_comparison_report, write_report

    single = (run / "manifest.json").is_file()
    typer.echo(f"report: {write_report(run) if single else write_comparison_report(run)}")


@app.command()
def doctor(
    tune: Annotated[bool, typer.Option("--tune", help="Measure the kernel backends of a run ahead of time.")] = False,
    config: Annotated[Path | None, typer.Option(help="The run to tune for; without it, the default settings.")] = None,
) -> None:
    """Versions, device, CPU features, and which kernel backend is taken for what."""
    from medseqft_kit.cli.doctor import diagnose, show, tune_kernels

    if tune:
        tune_kernels(config)
    show(diagnose())
