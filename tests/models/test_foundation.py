"""Foundation models: MONAI's own network is the referee of the taken-apart backbone."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from accelerate import init_empty_weights
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from safetensors.torch import save_file
from torch import nn

from medseqft_kit.errors import ModelError
from medseqft_kit.models.foundation import (
    FoundationModel,
    ModelSpec,
    frozen_copy,
    load_foundation,
    save_foundation,
    with_objective,
)
from medseqft_kit.models.registry import ARCHITECTURES, build_backbone

OBJECTIVES: list[dict[str, object]] = [
    {"name": "masked", "ratio": 0.25},
    {"name": "mae"},
    {"name": "triple", "temperature": 0.1},
    {"name": "position"},
    {"name": "none"},
    {"name": "position", "projection": 4, "grid": [2, 1, 1]},
]


def _as_monai(model: FoundationModel, task: str) -> dict[str, torch.Tensor]:
    """The plain MONAI state dict that a backbone and a head make together."""
    key = model.backbone.head_key
    head = {f"{key}.{name}": value for name, value in model.heads[task].state_dict().items()}
    return {**model.backbone.net.state_dict(), **head}


@pytest.mark.parametrize(
    ("architecture", "size", "patch", "network"),
    [
        ("segresnet", "tiny", 16, SegResNet(init_filters=8, blocks_down=(1, 1, 1), blocks_up=(1, 1), out_channels=3)),
        ("segresnet", "small", 16, SegResNet(init_filters=8, out_channels=3, blocks_down=(1, 2, 2, 2))),
        ("swinunetr", "tiny", 64, SwinUNETR(in_channels=1, out_channels=3, feature_size=12)),
    ],
    ids=["segresnet-tiny", "segresnet-small", "swinunetr-tiny"],
)
def test_backbone_and_head_are_the_plain_monai_network(
    architecture: str, size: str, patch: int, network: nn.Module
) -> None:
    model = FoundationModel.build(architecture, size, patch=(patch, patch, patch)).eval()
    model.add_head_("task", 3)
    network.load_state_dict(_as_monai(model, "task"))
    image = torch.randn(1, 1, patch, patch, patch, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        features = model.encode(image)
        torch.testing.assert_close(model.logits(features, "task"), network.eval()(image))
    sides = [stage.shape[-1] for stage in features.stages]
    assert sides == sorted(sides, reverse=True)
    with torch.no_grad():
        assert all(torch.equal(*pair) for pair in zip(model.backbone.stages(image), features.stages, strict=True))
    assert features.decoded.shape == (1, model.backbone.width, patch, patch, patch)
    assert list(features.named()) == [*(f"stage_{i}" for i in range(len(sides))), "decoded"]


@pytest.mark.parametrize(("architecture", "sizes"), [("segresnet", 4), ("swinunetr", 5), ("resenc", 1)])
def test_every_size_builds_and_tells_widths_and_scale_of_stages_and_skips_right(architecture: str, sizes: int) -> None:
    if architecture == "resenc":
        pytest.importorskip("dynamic_network_architectures", reason="the extra [resenc] is not installed")
    told = 0
    for size in ARCHITECTURES[architecture].sizes:
        with init_empty_weights():  # shapes alone
            model = FoundationModel.build(architecture, size, patch=(64, 64, 64))
            backbone = build_backbone(architecture, size, 1).to("meta")
        assert backbone.width == model.backbone.width == model.ssl_head.in_channels
        image = torch.empty(1, 1, 64, 64, 64, device="meta")
        stages, skips = backbone.stages(image), backbone.skips(image)
        assert tuple(stage.shape[1] for stage in stages) == backbone.widths
        assert tuple(skip.shape[1] for skip in skips) == backbone.skip_widths
        assert stages[-1].shape[2:] == (64 // backbone.coarsest,) * 3
        assert backbone(image).decoded.shape == (1, backbone.width, 64, 64, 64)
        told += 1
    assert told == sizes
    assert set(ARCHITECTURES) == {"segresnet", "swinunetr", "resenc"}


def test_settings_of_a_network_are_kept_and_files_from_before_there_were_any_are_read(tmp_path: Path) -> None:
    spec = ModelSpec(size="tiny", patch=(8, 8, 8), network={"blocks_down": [1, 2, 1]}, origin={"family": "ours"})
    model = FoundationModel.of_spec(spec)
    assert len(model.backbone.net.down_layers[1]) == 3  # a convolution and two blocks
    save_foundation(model, tmp_path / "new.safetensors")
    assert load_foundation(tmp_path / "new.safetensors").spec == spec
    old = FoundationModel.build(size="tiny", patch=(8, 8, 8))
    entries = {name: value for name, value in asdict(old.spec).items() if name not in ("network", "origin")}
    header = json.dumps({"spec": entries, "heads": {}})
    save_file(old.state_dict(), tmp_path / "old.safetensors", metadata={"medseqft": header})
    assert load_foundation(tmp_path / "old.safetensors").spec == old.spec


def test_a_patch_may_be_chosen_and_channels_are_held_against_the_file(tmp_path: Path) -> None:
    save_foundation(FoundationModel.build(size="tiny", patch=(8, 8, 8)), tmp_path / "m.safetensors")
    assert load_foundation(tmp_path / "m.safetensors", patch=(16, 8, 24)).spec.patch == (16, 8, 24)
    with pytest.raises(ModelError, match=r"(?s)another number of channels.*found     1.*expected  2"):
        load_foundation(tmp_path / "m.safetensors", channels=2)


def test_a_fresh_ssl_head_leaves_backbone_and_task_heads_as_they_are() -> None:
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8), objective={"name": "none"})
    model.add_head_("liver", 2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    other = with_objective(model, {"name": "masked"}, seed=1)
    assert other.spec.objective == {"name": "masked"}
    after = other.state_dict()
    assert sorted(after.keys() - before.keys()) == ["ssl_head.bias", "ssl_head.weight"]
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert list(model.state_dict()) == list(before)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda each: str(each["name"]))
def test_saved_and_loaded_models_are_equal(objective: dict[str, object], tmp_path: Path) -> None:
    model = FoundationModel.build(size="tiny", patch=(8, 16, 8), channels=2, seed=3, objective=objective)
    model.add_head_("liver", 3)
    model.add_head_("lungs", 2)
    save_foundation(model, tmp_path / "m.safetensors")
    loaded = load_foundation(tmp_path / "m.safetensors")
    assert loaded.spec == model.spec
    assert list(loaded.heads) == ["liver", "lungs"]
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    copy = frozen_copy(model).state_dict()
    assert all(torch.equal(copy[name], value) for name, value in model.state_dict().items())
    assert len(copy) == len(loaded.state_dict())


def test_the_same_seed_builds_the_same_weights_and_touches_no_global_state(random_state_untouched: None) -> None:
    first, second, other = (FoundationModel.build(size="tiny", patch=(8, 8, 8), seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert not torch.equal(first.ssl_head.weight, other.ssl_head.weight)


def test_a_frozen_copy_shares_nothing_and_requires_no_gradient() -> None:
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8))
    copy = frozen_copy(model)
    pointers = {parameter.data_ptr() for parameter in model.parameters()}
    assert not any(p.requires_grad or p.data_ptr() in pointers for p in copy.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("architecture", "patch", "said"),
    [("segresnet", (12, 8, 8), "multiples of 8"), ("swinunetr", (32, 64, 64), "at least 64")],
)
def test_a_patch_that_does_not_fit_is_refused(architecture: str, patch: tuple[int, int, int], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        FoundationModel.build(architecture, "tiny", patch=patch)


def test_unknown_architectures_and_sizes_are_refused_with_the_known_ones() -> None:
    for architecture, size in (("unet", "tiny"), ("segresnet", "huge")):
        with pytest.raises(ModelError, match="swinunetr"):
            FoundationModel.build(architecture, size)


def test_damaged_foreign_and_missing_files_are_refused(tmp_path: Path) -> None:
    torn, foreign = tmp_path / "torn.safetensors", tmp_path / "foreign.safetensors"
    save_foundation(FoundationModel.build(size="tiny", patch=(8, 8, 8)), torn)
    torn.write_bytes(torn.read_bytes()[:-100])
    save_file({"weight": torch.zeros(2)}, foreign)
    for path, said in ((torn, "cannot be read"), (foreign, "which network"), (tmp_path / "none", "cannot be read")):
        with pytest.raises(ModelError, match=said):
            load_foundation(path)


def test_a_fresh_head_has_hes_scale_so_that_no_class_starts_out_of_reach() -> None:
    model = FoundationModel.build(size="base", patch=(8, 8, 8))
    model.add_head_("many", 2000, seed=4)
    weight = model.heads["many"].get_parameter("weight")
    assert weight.std().item() == pytest.approx((2 / 16) ** 0.5, rel=0.02)
    assert not model.heads["many"].get_parameter("bias").any()
    again = FoundationModel.build(size="base", patch=(8, 8, 8), seed=9)
    again.add_head_("many", 2000, seed=4)
    assert torch.equal(again.heads["many"].get_parameter("weight"), weight)
