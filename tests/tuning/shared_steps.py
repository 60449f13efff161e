"""Twenty steps of distilled fine-tuning with two batches each, by as many processes as started this script.

``python shared_steps.py TASK OUT`` on its own, or under ``torchrun``; writes a model of each number format into OUT.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import medseqft_kit.short_start  # noqa: F401
from medseqft_kit.models.foundation import FoundationModel, frozen_copy
from medseqft_kit.models.precision import Precision
from medseqft_kit.runs.ranks import Ranks
from medseqft_kit.settings import Distill, Optimizer
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tuning import trainer
from medseqft_kit.tuning.phases.base import State
from medseqft_kit.tuning.phases.full import FullTuning
from medseqft_kit.volumes.batches import Batch, BatchSource
from medseqft_kit.volumes.preprocess import Preprocessing, resolve
from medseqft_kit.volumes.store import prepare


def main(data: str, out: str) -> None:
    """Train in both formats, and write what came of it."""
    torch.set_num_threads(1)
    Path(out).mkdir(exist_ok=True)
    ranks = Ranks.here()
    _train(data, torch.float64, ranks, Path(out) / "float64.safetensors")
    trainer._optimizer = _descent  # type: ignore[assignment]  # AdamW divides rounding by rounding
    _train(data, torch.float32, ranks, Path(out) / "float32.safetensors")


def _train(data: str, kind: torch.dtype, ranks: Ranks, out: Path) -> None:
    task = load_task(data)
    cases = [case.id for case in task.cases[:3]]
    volumes = prepare(task, resolve(Preprocessing(), task), cases, out.parent / "store")
    sources = tuple(
        BatchSource(volumes.entries(), (8, 8, 8), 2, 0, stream, labelled=stream == "task")
        for stream in ("task", "buffer")
    )
    teacher = FoundationModel.build(size="tiny", patch=(8, 8, 8), seed=1).to(kind)
    student = frozen_copy(teacher)
    student.add_head_(task.name, task.classes)
    student.to(kind).requires_grad_(True).train()
    phase, state = FullTuning(Distill(weight=0.3)), State(student, teacher)

    def losses(batches: Sequence[Batch], number: int) -> dict[str, Tensor]:
        return phase.losses(state, [Batch(each.image.to(kind), each.label, each.cases, each.task) for each in batches])

    training = trainer.Training(
        name="adapt",
        model=student,
        losses=losses,
        sources=sources,
        steps=20,
        learning_rates={"": 3e-3},
        optimizer=Optimizer(),
        precision=Precision("cpu", "fp32"),
        checkpoint=out.with_suffix(".checkpoint"),
        batches=2,
        ranks=ranks,
        sharpness=0.05 if kind == torch.float64 else 0.0,
    )
    rows = trainer.train(training).history
    if ranks.first:
        losses_of_steps = torch.tensor([row["total"] for row in rows], dtype=torch.float64)
        weights = {name: value.contiguous() for name, value in student.state_dict().items()}
        save_file({**weights, "losses": losses_of_steps, "processes": torch.tensor(ranks.count)}, out)


def _descent(training: trainer.Training) -> torch.optim.Optimizer:
    groups = [{"params": list(training.model.parameters()), "lr": 1e-2, "peak": 1e-2}]
    return torch.optim.SGD(groups, momentum=0.9)


if __name__ == "__main__":
    main(*sys.argv[1:])
