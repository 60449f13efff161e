"""The training loop on a model of one convolution: steps against plain torch, resume, checks, NaN."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from medseqft_kit.errors import NumericsError
from medseqft_kit.models.precision import Precision
from medseqft_kit.runs.interrupt import Interrupted
from medseqft_kit.settings import Optimizer
from medseqft_kit.tasks.layouts import load_task
from medseqft_kit.tuning import trainer
from medseqft_kit.tuning.checkpoint import before
from medseqft_kit.tuning.trainer import Check, Training, train
from medseqft_kit.volumes.batches import Batch, BatchSource
from medseqft_kit.volumes.preprocess import Preprocessing, resolve
from medseqft_kit.volumes.store import prepare


@pytest.fixture(scope="module")
def source(phantoms: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> BatchSource:
    task = load_task(phantoms["Phantom01_Liver"])
    cases = [case.id for case in task.cases[:2]]
    volumes = prepare(task, resolve(Preprocessing(), task), cases, tmp_path_factory.mktemp("store"))
    return BatchSource(volumes.entries(), (8, 8, 8), 2, 0, "test")


def rows_of(training: Training) -> list[dict[str, Any]]:
    return train(training).history


def _model() -> nn.Module:
    model = nn.Sequential(nn.Conv3d(1, 1, 1), nn.Conv3d(1, 1, 1))
    with torch.no_grad():
        for index, parameter in enumerate(model.parameters()):
            parameter.fill_(0.5 + 0.1 * index)
    return model


def _training(source: BatchSource, folder: Path, steps: int = 6, **more: Any) -> Training:
    model = more.pop("model", None) or _model()

    def losses(batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        return {"error": (model(batches[0].image) - 1).square().mean()}

    values: dict[str, Any] = {
        "name": "adapt",
        "model": model,
        "losses": losses,
        "sources": (source,),
        "steps": steps,
        "learning_rates": {"": 0.01, "1.": 0.05},
        "optimizer": Optimizer(weight_decay=0.1, clip=0.5),
        "precision": Precision("cpu", "fp32"),
        "checkpoint": folder / "checkpoint.safetensors",
    }
    return Training(**{**values, **more})


def test_training_is_plain_adamw_with_warm_up_cosine_clipping_and_a_rate_for_the_head(
    source: BatchSource, tmp_path: Path
) -> None:
    training = _training(source, tmp_path, steps=20)
    rows = rows_of(training)
    model = _model()
    optimizer = torch.optim.AdamW([
        {"params": model[0].parameters(), "lr": 0.01},  # type: ignore[index]
        {"params": model[1].parameters(), "lr": 0.05},  # type: ignore[index]
    ], weight_decay=0.1)  # fmt: skip
    warm_up = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda s: (s + 1) / 2 if s < 2 else 0.5 * (1 + math.cos(math.pi * (s - 2) / 18))
    )
    for step in range(20):
        loss = (model(source.batch(step).image) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        warm_up.step()
        assert rows[step]["error"] == pytest.approx(loss.item(), rel=1e-4)
    assert len(rows) == 20
    for ours, theirs in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_stopped_training_continues_to_the_same_bits(
    source: BatchSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _training(source, tmp_path / "whole")
    expected = rows_of(whole)
    monkeypatch.setattr(trainer, "stop_requested", lambda: True)
    parts = 0
    for _ in range(5):
        with pytest.raises(Interrupted, match="of 6 of adapt"):
            rows_of(_training(source, tmp_path / "parts", workers=parts % 2))
        parts += 1
    monkeypatch.setattr(trainer, "stop_requested", lambda: False)
    last = _training(source, tmp_path / "parts")
    assert rows_of(last) == expected
    assert parts == 5
    for ours, theirs in zip(last.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_heads_that_take_turns_continue_to_the_same_bits(
    source: BatchSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each head has taken its own number of steps, which AdamW's bias correction depends on."""

    def turns(folder: Path) -> Training:
        model = nn.ModuleList([nn.Conv3d(1, 1, 1), nn.Conv3d(1, 1, 1)])
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.fill_(0.5)

        def losses(batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
            return {"error": (model[step % 2](batches[0].image) - 1).square().mean()}

        return _training(source, folder, steps=8, model=model, losses=losses, learning_rates={"": 0.05})

    whole = turns(tmp_path / "whole")
    rows_of(whole)
    monkeypatch.setattr(trainer, "stop_requested", lambda: True)
    with pytest.raises(Interrupted):
        rows_of(turns(tmp_path / "parts"))
    with pytest.raises(Interrupted):
        rows_of(turns(tmp_path / "parts"))
    monkeypatch.setattr(trainer, "stop_requested", lambda: False)
    last = turns(tmp_path / "parts")
    rows_of(last)
    for ours, theirs in zip(last.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_tensors_that_the_losses_carry_along_come_back_in_place(
    source: BatchSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counting(folder: Path) -> tuple[Training, Tensor]:
        count, plain = torch.zeros(()), _training(source, folder)

        def losses(batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
            count.add_(1)
            return {"error": plain.losses(batches, step)["error"] * count}

        return replace(plain, losses=losses, carried={"count": count}), count

    expected = rows_of(counting(tmp_path / "whole")[0])
    monkeypatch.setattr(trainer, "stop_requested", lambda: True)
    with pytest.raises(Interrupted):
        rows_of(counting(tmp_path / "parts")[0])
    monkeypatch.setattr(trainer, "stop_requested", lambda: False)
    training, count = counting(tmp_path / "parts")
    assert rows_of(training) == expected
    assert count == 6


def test_sharpness_takes_the_gradient_uphill_by_its_radius(source: BatchSource, tmp_path: Path) -> None:
    """One step of SAM (arXiv 2010.01412, eq. 2–3) written out with autograd; plain descent would go elsewhere."""
    rho = 0.3
    training = _training(source, tmp_path, steps=1, sharpness=rho)
    rows_of(training)
    model, image = _model(), source.batch(0).image
    parameters = list(model.parameters())
    gradients = torch.autograd.grad((model(image) - 1).square().mean(), parameters)
    length = torch.sqrt(sum((gradient.square().sum() for gradient in gradients), torch.zeros(())))
    before = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.add_(rho * gradient / length)
    uphill = torch.autograd.grad((model(image) - 1).square().mean(), parameters)
    with torch.no_grad():
        for parameter, value, gradient in zip(parameters, before, uphill, strict=True):
            parameter.copy_(value)
            parameter.grad = gradient
    nn.utils.clip_grad_norm_(parameters, 0.5)
    rates = [0.01, 0.01, 0.05, 0.05]
    groups = [{"params": [each], "lr": rate} for each, rate in zip(parameters, rates, strict=True)]
    torch.optim.AdamW(groups, weight_decay=0.1, eps=1e-8).step()
    moved = [(ours - value).detach() for ours, value in zip(training.model.parameters(), before, strict=True)]
    assert any(change.abs().max() > 1e-3 for change in moved)
    for ours, theirs in zip(training.model.parameters(), parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_sharpness_needs_steps_to_be_told_from_plain_descent(source: BatchSource, tmp_path: Path) -> None:
    """AdamW's first step is the gradient's sign; after a few the two part."""
    plain, sharp = _training(source, tmp_path / "a"), _training(source, tmp_path / "b", sharpness=0.3)
    assert rows_of(plain)[0]["error"] == rows_of(sharp)[0]["error"]
    ends = zip(plain.model.parameters(), sharp.model.parameters(), strict=True)
    assert any(not torch.equal(ours, theirs) for ours, theirs in ends)


def test_a_student_that_is_good_enough_takes_no_step(source: BatchSource, tmp_path: Path) -> None:
    def check(step: int) -> Check:
        return Check({"validation_dice": 0.9}, done=True)

    rows = rows_of(_training(source, tmp_path, check=check, checks_first=True))
    assert rows == [{"phase": "adapt", "step": -1, "validation_dice": 0.9, "done": True}]


def test_a_training_of_no_steps_checks_what_it_was_given(source: BatchSource, tmp_path: Path) -> None:
    training = _training(source, tmp_path, steps=0, check=lambda step: Check({"validation_dice": 0.4}))
    assert rows_of(training) == [{"phase": "adapt", "step": -1, "validation_dice": 0.4}]
    for ours, theirs in zip(training.model.parameters(), _model().parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_checks_come_at_equal_distances_and_may_end_the_training(source: BatchSource, tmp_path: Path) -> None:
    seen: list[int] = []

    def check(step: int) -> Check:
        seen.append(step)
        return Check({"validation_dice": 0.5}, done=step >= 7)

    rows = rows_of(_training(source, tmp_path, steps=20, check=check, checks=5))
    assert seen == [3, 7]
    assert rows[-1] == {"phase": "adapt", "step": 7, "validation_dice": 0.5, "done": True}
    assert sum("total" in row for row in rows) == 8
    # Asked again, a training that ended early is not taken up again.
    assert rows_of(_training(source, tmp_path, steps=20, check=check, checks=5)) == rows


def test_a_loss_that_is_no_number_stops_with_step_cases_and_a_saved_batch(source: BatchSource, tmp_path: Path) -> None:
    training = _training(source, tmp_path)

    def losses(batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        return {"error": training.losses(batches, step)["error"] * (math.nan if step == 3 else 1.0)}

    with pytest.raises(NumericsError, match="at step 3") as caught:
        rows_of(replace(training, losses=losses))
    assert source.batch(3).cases[0] in str(caught.value)
    from safetensors.torch import load_file

    saved = load_file(next(tmp_path.glob("not_a_number_*")))
    assert torch.equal(saved["image_0"], source.batch(3).image)


def _interrupted_twice(source: BatchSource, folder: Path) -> Path:
    """A training whose steps 2 and 3 each left a checkpoint, stopped there; the newer one."""
    training = _training(source, folder, checkpoint_seconds=0.0)

    def losses(batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        if step == 3:
            raise KeyboardInterrupt
        return dict(training.losses(batches, step))

    with pytest.raises(KeyboardInterrupt):
        rows_of(replace(training, losses=losses))
    return training.checkpoint


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def _flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(bytes(content))


def _empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _flip_a_bit, _empty])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(
    source: BatchSource, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    expected = rows_of(_training(source, tmp_path / "whole"))
    checkpoint = _interrupted_twice(source, tmp_path / "torn")
    damage(checkpoint)
    training, steps = _training(source, tmp_path / "torn"), []

    def losses(batches: Sequence[Batch], step: int) -> dict[str, Tensor]:
        steps.append(step)
        return dict(training.losses(batches, step))

    with pytest.warns(UserWarning, match=f"{checkpoint} is damaged"):
        assert rows_of(replace(training, losses=losses)) == expected
    assert steps == [2, 3, 4, 5]


def test_where_both_checkpoints_are_damaged_the_training_starts_over(source: BatchSource, tmp_path: Path) -> None:
    expected = rows_of(_training(source, tmp_path / "whole"))
    checkpoint = _interrupted_twice(source, tmp_path / "torn")
    _cut(checkpoint)
    _flip_a_bit(before(checkpoint))
    with pytest.warns(UserWarning, match="is damaged") as warned:
        assert rows_of(_training(source, tmp_path / "torn")) == expected
    assert len(warned) == 2
