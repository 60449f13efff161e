"""Pre-training through the protocol: the same masked training as ever, other objectives, and what is refused."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

import medseqft_kit as mk
from medseqft_kit.config import Model, Pretrain
from medseqft_kit.errors import ConfigError, ModelError
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.objectives.base import crops_of
from medseqft_kit.objectives.masked import MaskedAutoencoding, MaskedReconstruction
from medseqft_kit.objectives.registry import objective_of
from medseqft_kit.settings import Settings
from medseqft_kit.tuning.pretraining import Pretraining, pretrain_foundation


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mk.write_phantoms(tmp_path_factory.mktemp("data"), cases=3, shape=(24, 24, 24))["Phantom00_Unlabelled"]


def plan(data: Path, objective: str) -> Pretraining:
    # `model_construct`: the configuration offers no other objective than the masked one.
    pretrain = Pretrain.model_construct(
        data=(data,),
        objective=objective,  # type: ignore[arg-type]
        steps=2,
        batch=2,
        learning_rate=1e-3,
        cases=None,
    )
    model = Model(architecture="segresnet", size="tiny", patch=(32, 32, 32))  # two of nnssl's blocks along a side
    return Pretraining(pretrain, model, Settings())


@pytest.mark.parametrize("kind", [MaskedReconstruction, MaskedAutoencoding])
def test_a_masked_objective_is_trained_and_named_by_the_model(
    kind: type[MaskedReconstruction], data: Path, tmp_path: Path
) -> None:
    model = pretrain_foundation(plan(data, kind.name), tmp_path)
    assert objective_of(model) == kind()
    assert (tmp_path / "pretraining.jsonl").read_text().count('"reconstruction"') == 2
    fresh = FoundationModel.build(size="tiny", patch=(32, 32, 32), seed=Settings().seed)
    assert not torch.equal(model.ssl_head.weight, fresh.ssl_head.weight)


def test_objectives_over_blocks_and_without_heads_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)triple is not offered.*8 draws of a block.*one crop of each image"):
        pretrain_foundation(plan(data, "triple"), tmp_path / "triple")
    with pytest.raises(ModelError, match="projection heads"):
        pretrain_foundation(plan(data, "position"), tmp_path / "position")


def test_masked_training_takes_the_same_steps_bit_for_bit_as_with_the_loss_written_out() -> None:
    objective = MaskedReconstruction()
    ours = FoundationModel.build(size="tiny", patch=(16, 16, 16)).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]  # torch's stub
    plain = copy.deepcopy(ours)
    optimisers = [torch.optim.AdamW(each.parameters(), lr=1e-3) for each in (ours, plain)]
    for step in range(3):
        image = torch.randn(2, 1, 16, 16, 16, generator=torch.Generator().manual_seed(step))
        mask = torch.stack([objective.draw_mask((16, 16, 16), np.random.default_rng(2 * step + i)) for i in range(2)])
        hidden, pretext = mask[:, None], {"mask": mask}
        restored = plain.reconstruct(plain.encode(image.masked_fill(hidden, 0.0)))
        error = ((restored.float() - image).square() * hidden).sum(dim=(1, 2, 3, 4)) / hidden.sum(dim=(1, 2, 3, 4))
        for loss, optimiser in zip(
            (objective.losses(ours, crops_of(image, pretext), pretext), error), optimisers, strict=True
        ):
            optimiser.zero_grad()
            loss.mean().backward()
            optimiser.step()
    for (name, a), b in zip(ours.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(a, b), name
