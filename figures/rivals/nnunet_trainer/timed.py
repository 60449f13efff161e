"""Run by nnU-Net's own Python: ``nnUNetv2_train`` and ``nnUNetv2_predict`` with a trainer whose budget is in seconds.

nnU-Net's commands look for a trainer by importing all that it ships. Some of those need torchvision, and where PyTorch
is a build for CPUs, PyPI's torchvision cannot be imported. Here the trainer is handed to the same functions directly.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from nnunetv2.inference import predict_from_raw_data
from nnunetv2.run import run_training
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from schedule import schedule

WARM, MEASURED = 2, 4
"""Training iterations before, and in, the measurement."""


class nnUNetTrainerTimed(nnUNetTrainer):  # noqa: N801  # as nnU-Net names its trainers
    """Trains for ``RIVAL_SECONDS`` of wall time; measuring comes on top and is undone. Writes ``timing.json``."""

    def on_train_start(self) -> None:
        """Measure, put the weights back, and plan epochs and iterations."""
        super().on_train_start()
        self.num_val_iterations_per_epoch = 1
        self._best_ema = float("inf")  # the last model counts: no time for files of the best one, nor for pictures
        self.logger.plot_progress_png = lambda *_: None
        self.per_iteration, validation = self._measured()
        budget = float(os.environ["RIVAL_SECONDS"])
        self.num_epochs, self.num_iterations_per_epoch = schedule(budget, self.per_iteration, validation)
        self.optimizer, self.lr_scheduler = self.configure_optimizers()  # without the momentum of the measurement
        self.began = time.perf_counter()

    def _measured(self) -> tuple[float, float]:
        """Seconds of a training and of a validation iteration, waiting for the batch included."""
        weights = copy.deepcopy(self.network.state_dict())
        self.network.train()
        times = [self._seconds(self.train_step, self.dataloader_train) for _ in range(WARM + MEASURED)]
        self.network.eval()
        with torch.no_grad():
            validation = self._seconds(self.validation_step, self.dataloader_val)
        self.network.load_state_dict(weights)
        return sum(times[WARM:]) / MEASURED, validation

    @staticmethod
    def _seconds(step: Callable[[dict], dict], batches: Iterator[dict]) -> float:
        start = time.perf_counter()
        step(next(batches))
        return time.perf_counter() - start

    def on_train_end(self) -> None:
        """Say what it came to."""
        facts = {
            "batch": self.batch_size,
            "patch": [int(side) for side in self.configuration_manager.patch_size],
            "parameters": sum(parameter.numel() for parameter in self.network.parameters()),
            "epochs": self.num_epochs,
            "iterations": self.num_epochs * self.num_iterations_per_epoch,
            "seconds_per_iteration": round(self.per_iteration, 3),
            "seconds": round(time.perf_counter() - self.began, 1),
        }
        Path(self.output_folder, "timing.json").write_text(json.dumps(facts), encoding="utf-8")
        super().on_train_end()

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Nothing: the test cases are predicted afterwards, and no choice hangs on the validation cases."""


def train(dataset: str, configuration: str, plans: str, pretrained: str | None) -> None:
    """What ``nnUNetv2_train … -device cpu -pretrained_weights …`` does, on fold 0."""
    run_training.run_training(
        dataset,
        configuration,
        0,
        nnUNetTrainerTimed.__name__,
        plans,
        pretrained_weights=pretrained,
        device=torch.device("cpu"),
    )


def predict(model: str, images: str, out: str) -> None:
    """What ``nnUNetv2_predict_from_modelfolder … -device cpu`` does, with the weights at the end of training."""
    predictor = predict_from_raw_data.nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"))
    predictor.initialize_from_trained_model_folder(model, (0,), "checkpoint_final.pth")
    predictor.predict_from_files(images, out, num_processes_preprocessing=1, num_processes_segmentation_export=1)


def main() -> None:
    """Read the arguments, and train or predict on one thread."""
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    training, predicting = verbs.add_parser("train"), verbs.add_parser("predict")
    for name in ("dataset", "configuration", "plans"):
        training.add_argument(name)
    training.add_argument("--pretrained")
    for name in ("model", "images", "out"):
        predicting.add_argument(name)
    chosen = vars(parser.parse_args())
    torch.set_num_threads(1)
    for module in (run_training, predict_from_raw_data):
        module.recursive_find_trainer_class_by_name = lambda name: nnUNetTrainerTimed
    {"train": train, "predict": predict}[chosen.pop("verb")](**chosen)


if __name__ == "__main__":
    main()
