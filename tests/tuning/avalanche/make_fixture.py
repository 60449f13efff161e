"""Write what Avalanche computes on one tiny problem: EWC, LwF and replay, in float64, beside this file.

It needs an environment of its own, and no GPU::

    python3 -m venv /tmp/avalanche
    /tmp/avalanche/bin/pip install torch==2.13.0 torchvision==0.28.0 avalanche-lib==0.6.0
    /tmp/avalanche/bin/python tests/tuning/avalanche/make_fixture.py

Three tasks of four points in the plane and three classes each; a network 2 → 4 → 4 with a head 4 → 3 for each task.
Weights and points are multiples of 1/16, so they are the same numbers in any format. Each strategy takes plain SGD
steps through the tasks in order, without shuffling.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

try:
    import torchvision  # type: ignore[import-not-found]
except RuntimeError:
    # PyPI's build is for CUDA. Beside a CPU build of PyTorch its operators are missing, and it asks for these two.
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

import avalanche  # type: ignore[import-not-found]  # not in the project's environment
from avalanche.benchmarks import (  # type: ignore[import-not-found]
    benchmark_from_datasets,
    with_classes_timeline,
    with_task_labels,
)
from avalanche.benchmarks.utils.classification_dataset import (  # type: ignore[import-not-found]
    _make_taskaware_tensor_classification_dataset as labelled_points,
)
from avalanche.models.dynamic_modules import MultiTaskModule  # type: ignore[import-not-found]
from avalanche.training.supervised import EWC, LwF, Replay  # type: ignore[import-not-found]

SETTINGS = {"tasks": 3, "epochs": 3, "rate": 0.25, "ewc_lambda": 0.5, "lwf_alpha": 0.75, "temperature": 2.0}
CLASSES = ((0, 1, 2, 0), (2, 1, 0, 1), (1, 2, 0, 2))
"""Classes of the four points of each task."""


def main() -> None:
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)  # replay draws the order of what it keeps
    problem = _problem()
    numbers = {
        "made_with": {
            "avalanche": avalanche.__version__,
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "settings": SETTINGS,
        "problem": problem,
        "ewc": _ewc(problem),
        "lwf": _lwf(problem),
        "replay": _replay(problem),
    }
    Path(__file__).with_name("fixture.json").write_text(json.dumps(numbers) + "\n", encoding="utf-8")


class Network(MultiTaskModule):
    """Two layers that the tasks share, a linear head for each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 4), nn.Linear(4, 4)
        self.heads = nn.ModuleList(nn.Linear(4, 3) for _ in range(3))

    def forward_single_task(self, x: Tensor, task_label: int) -> Tensor:
        return self.heads[task_label](torch.tanh(self.second(torch.tanh(self.first(x)))))


def _problem() -> dict[str, Any]:
    draw = random.Random(0)

    def drawn(*shape: int) -> list[Any]:
        if len(shape) == 1:
            return [draw.randint(-16, 16) / 16 for _ in range(shape[0])]
        return [drawn(*shape[1:]) for _ in range(shape[0])]

    weights = {name: drawn(*value.shape) for name, value in Network().named_parameters()}
    points = [{"x": drawn(4, 2), "y": list(classes)} for classes in CLASSES]
    shared = {name: each for name, each in Network().named_parameters() if not name.startswith("heads.")}
    elsewhere = {name: drawn(*each.shape) for name, each in shared.items()}
    return {"weights": weights, "points": points, "elsewhere": elsewhere}


def _ewc(problem: Mapping[str, Any]) -> dict[str, Any]:
    """Importances after each task; the penalty and its gradient at other shared weights, after all; the last weights.

    The importances are averages over batches, so batches of one point make them averages over points. The heads stay
    where they were, so the penalty is that of the shared weights.
    """
    strategy = _strategy(EWC, problem, ewc_lambda=SETTINGS["ewc_lambda"], train_mb_size=1)
    weights = _train(strategy, problem)
    (plugin,) = (each for each in strategy.plugins if type(each).__name__ == "EWCPlugin")
    importances = [{name: each.data.tolist() for name, each in plugin.importances[task].items()} for task in range(3)]
    _load_(strategy.model, problem["elsewhere"])
    after = SimpleNamespace(
        clock=SimpleNamespace(train_exp_counter=3), model=strategy.model, device="cpu", loss=torch.zeros(())
    )
    plugin.before_backward(after)
    parameters = dict(strategy.model.named_parameters())
    gradients = torch.autograd.grad(after.loss, list(parameters.values()))
    gradient = {name: each.tolist() for name, each in zip(parameters, gradients, strict=True)}
    return {"importances": importances, "penalty": after.loss.item(), "gradient": gradient, "weights": weights}


def _lwf(problem: Mapping[str, Any]) -> dict[str, Any]:
    """The distillation loss of logits; the weights after training through the tasks, all points in one batch."""
    chosen = {"alpha": SETTINGS["lwf_alpha"], "temperature": SETTINGS["temperature"]}
    strategy = _strategy(LwF, problem, **chosen, train_mb_size=4)
    weights = _train(strategy, problem)
    (plugin,) = (each for each in strategy.plugins if type(each).__name__ == "LwFPlugin")
    points = torch.tensor(problem["points"][0]["x"])
    _load_(strategy.model, problem["weights"])
    teacher = strategy.model(points, 0)
    _load_(strategy.model, problem["elsewhere"])
    student = strategy.model(points, 0)
    loss = plugin.lwf._distillation_loss(student, teacher, {0, 1, 2}).item()
    return {"student": student.tolist(), "teacher": teacher.tolist(), "loss": loss, "weights": weights}


def _replay(problem: Mapping[str, Any]) -> dict[str, Any]:
    """The weights after two tasks; the second task's batches hold its four points and the four of the first."""
    strategy = _strategy(Replay, problem, mem_size=4, train_mb_size=4)
    return {"weights": _train(strategy, problem, tasks=2)}


def _strategy(kind: Callable[..., Any], problem: Mapping[str, Any], **settings: Any) -> Any:
    model = Network()
    _load_(model, problem["weights"])
    optimizer = torch.optim.SGD(model.parameters(), lr=SETTINGS["rate"])
    common = {"train_epochs": SETTINGS["epochs"], "device": "cpu", "evaluator": None}
    return kind(model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), **common, **settings)


def _train(strategy: Any, problem: Mapping[str, Any], tasks: int = 3) -> dict[str, Any]:
    sets = [
        labelled_points(torch.tensor(each["x"]), torch.tensor(each["y"]), task_labels=task)
        for task, each in enumerate(problem["points"][:tasks])
    ]
    for experience in with_classes_timeline(with_task_labels(benchmark_from_datasets(train=sets))).train_stream:
        strategy.train(experience, shuffle=False)
    return {name: value.tolist() for name, value in strategy.model.named_parameters()}


def _load_(model: nn.Module, weights: Mapping[str, Any]) -> None:
    model.load_state_dict({name: torch.tensor(value) for name, value in weights.items()}, strict=False)


if __name__ == "__main__":
    main()
