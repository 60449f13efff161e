"""Pre-training through the protocol: the same masked training as ever, other objectives, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import medseqft_kit as mk
from medseqft_kit.config import Config, Model, Pretrain, parse_config, varied
from medseqft_kit.errors import ConfigError, DataError, ModelError, RunError
from medseqft_kit.models.foundation import FoundationModel, ModelSpec, with_objective
from medseqft_kit.objectives.base import crops_of
from medseqft_kit.objectives.masked import MaskedAutoencoding, MaskedReconstruction
from medseqft_kit.objectives.registry import objective_of
from medseqft_kit.settings import Settings
from medseqft_kit.tuning.experiment import foundation_model, read_plans, run_sequence
from medseqft_kit.tuning.pretraining import Pretraining, pretrain_foundation


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mk.write_phantoms(tmp_path_factory.mktemp("data"), cases=5, shape=(24, 24, 24))["Phantom00_Unlabelled"]


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


def a_model_without_ssl_head(*fresh: str) -> FoundationModel:
    spec = ModelSpec(size="tiny", patch=(16, 16, 16), objective={"name": "none"}, origin={"fresh": list(fresh)})
    return FoundationModel.of_spec(spec, seed=5)


def test_a_head_is_fitted_alone_with_what_did_not_come_with_the_weights(data: Path, tmp_path: Path) -> None:
    for number, fresh in enumerate(((), ("backbone.net.up_",))):
        start = a_model_without_ssl_head(*fresh)
        before = {name: value.clone() for name, value in start.state_dict().items()}
        model = pretrain_foundation(replace(plan(data, "masked"), start=start), tmp_path / str(number))
        after = model.state_dict()
        moved = {name for name, value in before.items() if not torch.equal(after[name], value)}
        assert moved == {name for name in before if name.startswith("backbone.net.up_") and fresh}
        assert objective_of(model) == MaskedReconstruction()
        assert model.spec.patch == (16, 16, 16)
        fitted = with_objective(start, model.spec.objective, Settings().seed).ssl_head.weight
        assert not torch.equal(model.ssl_head.weight, fitted)
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())


def test_a_head_is_fitted_on_volumes_as_the_weights_expect_them(data: Path, tmp_path: Path) -> None:
    start = a_model_without_ssl_head()
    start.spec = replace(start.spec, scale=(0.0, 1.0))
    ct = plan(data.parent / "Phantom01_Liver", "masked")
    assert pretrain_foundation(replace(ct, start=start), tmp_path).spec.scale == (0.0, 1.0)
    images = [np.load(file) for file in tmp_path.glob("store/*/image.npy")]
    assert images
    assert {float(image.min()) for image in images} == {0.0}


def test_a_second_head_and_other_channels_are_refused(data: Path, tmp_path: Path) -> None:
    with_head = FoundationModel.build(size="tiny", patch=(16, 16, 16))
    with pytest.raises(ConfigError, match=r"(?s)bring an SSL head.*objective masked.*remove `foundation.pretrain`"):
        pretrain_foundation(replace(plan(data, "masked"), start=with_head), tmp_path)
    spec = ModelSpec(size="tiny", patch=(16, 16, 16), channels=2, objective={"name": "none"})
    with pytest.raises(DataError, match=r"(?s)another number of channels.*found     1.*expected  2"):
        pretrain_foundation(replace(plan(data, "masked"), start=FoundationModel.of_spec(spec)), tmp_path)


def configured(data: Path, weights: Path, **more: Any) -> Config:
    foundation = {"weights": str(weights), **more.pop("foundation", {})}
    tasks = [{"name": "liver", "data": str(data.parent / "Phantom01_Liver"), "train_cases": 2}]
    budget = {"steps": 2, "batch": 1, "checks": 1, "validation_cases": 1}
    strategy = {"name": "medseqft", "buffer": {"k": 1, "max_draws": 16}, "lora": {"rank": 1}}
    return parse_config({"foundation": foundation, "tasks": tasks, "budget": budget, "strategy": strategy, **more})


def test_mds_without_a_head_is_refused_before_training_and_fitting_one_is_the_next_step(
    data: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "m.safetensors"
    mk.save_foundation(a_model_without_ssl_head(), weights)
    with pytest.raises(ModelError, match=r"(?s)no SSL head.*foundation\.pretrain\.data.*random, kmeans or herding"):
        run_sequence(configured(data, weights), tmp_path / "refused")
    assert not (tmp_path / "refused" / "manifest.json").exists()
    pretrain = {"pretrain": {"data": [str(data)], "steps": 2, "batch": 1, "cases": 2}}
    config = configured(data, weights, foundation=pretrain)
    fitted = foundation_model(config, read_plans(config), tmp_path / "run")
    assert objective_of(fitted) == MaskedReconstruction()
    weights_of_backbone = fitted.backbone.state_dict()
    given = a_model_without_ssl_head().backbone.state_dict()
    assert all(torch.equal(weights_of_backbone[name], value) for name, value in given.items())
    again = foundation_model(config, read_plans(config), tmp_path / "run")
    assert torch.equal(again.ssl_head.weight, fitted.ssl_head.weight)
    other = configured(data, tmp_path / "other.safetensors", foundation=pretrain)
    with pytest.raises(RunError, match=r"(?s)pre-training of other settings.*different: weights"):
        foundation_model(other, read_plans(other), tmp_path / "run")


def test_a_model_section_that_contradicts_the_weights_is_refused_and_a_patch_is_taken(
    data: Path, tmp_path: Path
) -> None:
    weights = tmp_path / "m.safetensors"
    mk.save_foundation(a_model_without_ssl_head(), weights)
    wrong = configured(data, weights, model={"architecture": "swinunetr", "size": "tiny", "patch": [64, 64, 64]})
    with pytest.raises(
        ConfigError, match=r"(?s)model\.architecture: swinunetr\n.*architecture segresnet, as in the file"
    ):
        foundation_model(wrong, [], tmp_path)
    # A change on the command line does not turn defaults into demands.
    same = varied(configured(data, weights, model={"patch": [24, 24, 24]}), {"seed": 3})
    assert foundation_model(same, [], tmp_path).spec.patch == (24, 24, 24)
    assert foundation_model(varied(configured(data, weights), {"seed": 3}), [], tmp_path).spec.patch == (16, 16, 16)
    hub = parse_config({"foundation": {"weights": "hf://owner/repository/file.pt"}}, base=tmp_path)
    assert hub.foundation.weights == "hf://owner/repository/file.pt"
