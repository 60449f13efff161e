"""Imported models compute what the network they come from computes; that network is the referee."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import swin_unetr
from monai.networks.nets.segresnet import SegResNet
from monai.networks.nets.swin_unetr import SwinUNETR
from torch import Tensor, nn

import medseqft_kit as mk
from medseqft_kit.errors import ModelError
from medseqft_kit.models.swin_merging import LegacyPatchMerging
from medseqft_kit.models.weights.importing import Wishes, import_foundation
from medseqft_kit.models.weights.resenc_names import with_aliases

Scramble = Callable[[Any], Any]


def image(side: int, channels: int = 1) -> Tensor:
    return torch.randn(1, channels, side, side, side, generator=torch.Generator().manual_seed(0))


def merged_as_in_monai_1_4(self: nn.Module, x: Tensor) -> Tensor:
    """The join of eight sub-volumes, written out as issue 4757 of MONAI quotes it."""
    parts = [
        x[:, 0::2, 0::2, 0::2], x[:, 1::2, 0::2, 0::2], x[:, 0::2, 1::2, 0::2], x[:, 0::2, 0::2, 1::2],
        x[:, 1::2, 0::2, 1::2], x[:, 0::2, 1::2, 0::2], x[:, 0::2, 0::2, 1::2], x[:, 1::2, 1::2, 1::2],
    ]  # fmt: skip
    return self.reduction(self.norm(torch.cat(parts, -1)))  # type: ignore[operator]


def test_the_two_merging_orders_are_those_of_a_volume_of_eight_voxels() -> None:
    volume = torch.arange(8.0).reshape(1, 2, 2, 2, 1)
    orders = []
    for kind in (LegacyPatchMerging, swin_unetr.PatchMerging):
        module = kind(1)
        module.norm, module.reduction = nn.Identity(), nn.Identity()
        orders.append(module(volume).flatten().tolist())
    assert orders == [[0, 4, 2, 1, 5, 2, 1, 7], [0, 4, 2, 1, 6, 5, 3, 7]]


def test_legacy_merging_loads_strictly_and_pads_odd_sides() -> None:
    legacy, current = LegacyPatchMerging(2), swin_unetr.PatchMerging(2)
    legacy.load_state_dict(current.state_dict(), strict=True)
    odd = torch.randn(1, 3, 4, 5, 2)
    even = F.pad(odd, (0, 0, 0, 1, 0, 0, 0, 1))
    assert legacy(odd).shape == current(odd).shape == (1, 2, 2, 3, 4)
    torch.testing.assert_close(legacy(odd), legacy(even))


@pytest.fixture(scope="module")
def small_swin() -> SwinUNETR:
    net = SwinUNETR(in_channels=1, out_channels=14, feature_size=12)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net.eval()


@pytest.fixture(scope="module")
def swin_features(small_swin: SwinUNETR) -> dict[str, list[Tensor]]:
    """Encoder stages of the plain network under both mergings, the old one patched into MONAI by hand."""
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        current = small_swin.swinViT(image(64), small_swin.normalize)
        patch.setattr(swin_unetr.PatchMerging, "forward", merged_as_in_monai_1_4)
        legacy = small_swin.swinViT(image(64), small_swin.normalize)
    return {"current": list(current), "legacy": list(legacy)}


@pytest.fixture(scope="module")
def released(small_swin: SwinUNETR, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As model_swinvit.pt is: `module.` names, fc1/fc2, three heads, an optimiser beside them."""
    encoder = small_swin.swinViT.state_dict()
    state = {f"module.{name.replace('.mlp.linear', '.mlp.fc')}": value for name, value in encoder.items()}
    for name, shape in {
        "norm.weight": (192,), "norm.bias": (192,), "rotation_head.weight": (4, 192), "rotation_head.bias": (4,),
        "contrastive_head.weight": (512, 192), "contrastive_head.bias": (512,),
        "convTrans3d.weight": (192, 1, 32, 32, 32), "convTrans3d.bias": (1,),
    }.items():  # fmt: skip
        state[f"module.{name}"] = torch.randn(shape)
    path = tmp_path_factory.mktemp("released") / "any_name.bin"
    torch.save({"state_dict": state, "optimizer": {"state": {}}, "epoch": 3}, path)
    return path


@pytest.mark.parametrize("merging", ["legacy", "current"])
def test_each_merging_gives_its_own_features(
    merging: Any, released: Path, swin_features: dict[str, list[Tensor]]
) -> None:
    model = import_foundation(released, Wishes(merging=merging)).model.eval()
    with torch.no_grad():
        stages = model.backbone.stages(image(64))
    assert len(stages) == 5
    for ours, want in zip(stages, swin_features[merging], strict=True):
        torch.testing.assert_close(ours, want)
    other = swin_features["current" if merging == "legacy" else "legacy"]
    apart = [float((ours - far).norm() / far.norm()) for ours, far in zip(stages[1:], other[1:], strict=True)]
    assert min(apart) > 0.01  # a thousand times what counts as equal above


def test_the_importer_picks_the_legacy_merging_says_so_and_the_saved_model_keeps_it(
    released: Path, swin_features: dict[str, list[Tensor]], tmp_path: Path
) -> None:
    with pytest.warns(UserWarning, match=r"MONAI SwinUNETR, self-supervised.*Apache-2\.0.*legacy"):
        model = mk.load_foundation(released)
    mk.save_foundation(model, tmp_path / "ours.safetensors")
    again = mk.load_foundation(tmp_path / "ours.safetensors").eval()
    assert again.spec == model.spec
    assert again.spec.network == {"downsample": "legacy"}
    with torch.no_grad():
        torch.testing.assert_close(again.backbone.stages(image(64))[-1], swin_features["legacy"][-1])
    state = torch.load(released, weights_only=True)["state_dict"]
    heads = model.ssl_head.state_dict()
    assert all(torch.equal(heads[name], state[f"module.{name}"]) for name in heads)
    assert len(heads) == 8


def test_every_tensor_of_a_file_of_base_size_arrives_where_monais_map_says(
    keys: Callable[[str], dict[str, Any]], numbered: Callable[[Any], dict[str, Tensor]], tmp_path: Path
) -> None:
    state = numbered(keys("monai_model_swinvit_pt"))
    state = {key: value.to(torch.int64) if key.endswith("_index") else value for key, value in state.items()}
    torch.save({"state_dict": state}, tmp_path / "model.pt")
    model = import_foundation(tmp_path / "model.pt").model
    ours, arrived = model.state_dict(), 0
    for source, target in keys("map_model_swinvit_to_SwinUNETR").items():
        name = f"backbone.net.{target}" if target else f"ssl_head.{source.removeprefix('module.')}"
        assert ours[name].shape == state[source].shape
        assert bool((ours[name] == state[source].flatten()[0]).all()), name
        arrived += 1
    assert arrived == 134


def test_suprem_comes_out_of_its_prefixes_without_its_text_driven_heads(
    small_swin: SwinUNETR, swin_features: dict[str, list[Tensor]], tmp_path: Path
) -> None:
    state = {f"backbone.{name}": value for name, value in small_swin.state_dict().items() if "out." not in name}
    heads = {"organ_embedding": torch.zeros(32, 512), "controller.bias": torch.zeros(153), "GAP.0.bias": torch.zeros(8)}
    torch.save({"net": {f"module.{name}": value for name, value in {**state, **heads}.items()}}, tmp_path / "b.pth")
    imported = import_foundation(tmp_path / "b.pth")
    assert imported.card.name == "SuPreM"
    assert {row.source for row in imported.transfer.of("unused")} == heads.keys()
    with torch.no_grad():
        torch.testing.assert_close(imported.model.eval().backbone.stages(image(64))[-1], swin_features["legacy"][-1])


def test_vocomni_is_read_with_its_extra_convolutions_and_decodes_as_monai_does(
    scrambled: Scramble, tmp_path: Path
) -> None:
    plain: Any = SwinUNETR(1, 21, feature_size=12, use_v2=True, downsample=LegacyPatchMerging)
    net: Any = scrambled(plain)
    torch.save(net.state_dict(), tmp_path / "a.pt")
    imported = import_foundation(tmp_path / "a.pt")
    assert imported.card.name == "VoComni"
    with torch.no_grad():
        decoded = imported.model.eval().encode(image(64)).decoded
        torch.testing.assert_close(net.out(decoded), net(image(64)))


def test_a_segresnet_of_suprem_computes_what_monais_does_and_reads_more_channels(
    scrambled: Scramble, tmp_path: Path
) -> None:
    net: Any = scrambled(SegResNet(init_filters=16, out_channels=32, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1)))
    torch.save({"net": {f"module.{k}": v for k, v in net.state_dict().items()}, "epoch": 2100}, tmp_path / "s.pth")
    imported = import_foundation(tmp_path / "s.pth")
    assert imported.card.name == "SuPreM"
    assert "NON-COMMERCIAL" in imported.card.licence
    three = import_foundation(tmp_path / "s.pth", Wishes(channels=3)).model.eval()
    with torch.no_grad():
        decoded = imported.model.eval().encode(image(16)).decoded
        torch.testing.assert_close(net.conv_final[2](decoded), net(image(16)))
        torch.testing.assert_close(three.encode(image(16).expand(1, 3, 16, 16, 16)).decoded, decoded)


def resenc(strides: list[list[int]], kernels: list[list[int]], classes: int, channels: int = 1) -> Any:
    unet = pytest.importorskip(
        "dynamic_network_architectures.architectures.unet", reason="the extra [resenc] is not installed"
    )
    return unet.ResidualEncoderUNet(
        channels, 3, [8, 12, 16], nn.Conv3d, kernels, strides, [1, 2, 1], classes, [1, 2], True,
        nn.InstanceNorm3d, {"eps": 1e-5, "affine": True}, None, None, nn.LeakyReLU, {"inplace": True},
    )  # fmt: skip


ISOTROPIC = ([[1, 1, 1], [2, 2, 2], [2, 2, 2]], [[3, 3, 3]] * 3)
FLAT = ([[1, 1, 1], [1, 2, 2], [2, 2, 2]], [[1, 3, 3], [3, 3, 3], [3, 3, 3]])  # thick slices first


def turned(volume: Tensor, order: list[int]) -> Tensor:
    return volume.permute(0, 1, *(2 + axis for axis in order))


def test_the_reconstruction_of_a_masked_autoencoder_is_nnssls_own_on_a_volume_of_ours(
    scrambled: Scramble, tmp_path: Path
) -> None:
    net = scrambled(resenc(*ISOTROPIC, classes=1))
    plan = {
        "pretrain_plan": {"transpose_forward": [0, 1, 2], "configurations": {"onemmiso": {"patch_size": [32, 16, 24]}}}
    }
    content = {"network_weights": net.state_dict(), "trainer_name": "BaseMAETrainer_BS8", "nnssl_adaptation_plan": plan}
    torch.save(content, tmp_path / "checkpoint.pth")
    imported = import_foundation(tmp_path / "checkpoint.pth")
    model = imported.model.eval()
    assert model.spec.objective == {"name": "mae", "ratio": 0.75, "block": 16}
    assert model.spec.patch == (24, 16, 32)
    # SimpleITK's array of a volume is (z, y, x), which is what nnssl feeds its network with.
    volume = torch.randn(1, 1, 16, 8, 24)
    with torch.no_grad():
        want = turned(net(turned(volume, [2, 1, 0])), [2, 1, 0])
        torch.testing.assert_close(model.reconstruct(model.encode(volume)), want)
    assert len({*net.state_dict()}) > len(model.backbone.net.state_dict()) == len([*model.backbone.net.parameters()])


def test_an_nnunet_of_thick_slices_is_read_with_its_strides_and_the_transposition_of_its_plan(
    scrambled: Scramble, tmp_path: Path
) -> None:
    net = scrambled(resenc(*FLAT, classes=3))
    configuration = {"patch_size": [8, 32, 32], "spacing": [5.0, 0.7, 0.8]}
    plans = {"transpose_forward": [1, 0, 2], "configurations": {"2d": {}, "3d_fullres": configuration}}
    arguments = {"plans": plans, "configuration": "3d_fullres", "fold": 0, "device": torch.device("cpu")}
    torch.save(
        {"network_weights": net.state_dict(), "init_args": arguments, "trainer_name": "nnUNetTrainer"},
        tmp_path / "c.pth",
    )
    imported = import_foundation(tmp_path / "c.pth")
    model = imported.model.eval()
    # Axes of the network are (y, z, x): its first stride of 1 is along our y.
    assert model.spec.network["strides"] == [[1, 1, 1], [2, 1, 2], [2, 2, 2]]
    assert imported.card.inputs.spacing == (0.8, 5.0, 0.7)
    assert model.spec.patch == (32, 8, 32)
    assert model.spec.objective == {"name": "none"}
    volume = torch.randn(1, 1, 16, 8, 8)
    with torch.no_grad():
        want = turned(net(turned(volume, [1, 2, 0])), [2, 0, 1])
        torch.testing.assert_close(net.decoder.seg_layers[-1](model.encode(volume).decoded), want)


def test_a_widened_stem_gives_the_plain_network_the_same_features_under_all_of_its_names(
    scrambled: Scramble, tmp_path: Path
) -> None:
    net = scrambled(resenc(*ISOTROPIC, classes=1))
    torch.save({"network_weights": net.state_dict()}, tmp_path / "c.pth")
    model = import_foundation(tmp_path / "c.pth", Wishes(channels=2)).model.eval()
    # Instance norms hide a factor in the features, so the weights themselves are looked at too.
    stem = model.backbone.net.encoder.stem.convs[0].conv.weight
    torch.testing.assert_close(stem.sum(1, keepdim=True), turned(net.encoder.stem.convs[0].conv.weight, [2, 1, 0]))
    plain = resenc(*ISOTROPIC, classes=1, channels=2).eval()
    head = {f"{model.backbone.head_key}.{name}": torch.zeros_like(value) for name, value in
            net.decoder.seg_layers[-1].state_dict().items()}  # fmt: skip
    coarse = {f"decoder.{n}": v for n, v in net.decoder.state_dict().items() if n.startswith("seg_layers.0")}
    plain.load_state_dict(with_aliases({**model.backbone.net.state_dict(), **head, **coarse}), strict=True)
    volume = image(8)
    with torch.no_grad():
        want = turned(net.encoder(turned(volume, [2, 1, 0]))[-1], [2, 1, 0])
        torch.testing.assert_close(plain.encoder(volume.expand(1, 2, 8, 8, 8))[-1], want)


def test_adapters_on_a_resenc_take_part_in_its_forward_pass(scrambled: Scramble, tmp_path: Path) -> None:
    from medseqft_kit.lora.inject import LoRASettings, inject

    net = scrambled(resenc(*ISOTROPIC, classes=1))
    torch.save({"network_weights": net.state_dict()}, tmp_path / "c.pth")
    model = import_foundation(tmp_path / "c.pth", Wishes(patch=(8, 8, 8))).model.eval()
    adapted = inject(model, LoRASettings(rank=2), seed=0).eval()
    assert "net.encoder.stem.convs.0.conv" in adapted.adapted
    with torch.no_grad():
        before = adapted.encode(image(8)).decoded
        torch.testing.assert_close(before, model.encode(image(8)).decoded)
        for layer in adapted.layers().values():
            layer.lora_b.normal_()
        assert not torch.allclose(adapted.encode(image(8)).decoded, before)


def test_names_of_one_tensor_that_disagree_are_refused(scrambled: Scramble, tmp_path: Path) -> None:
    state = dict(scrambled(resenc(*ISOTROPIC, classes=1)).state_dict())
    state["encoder.stem.convs.0.all_modules.0.weight"] = torch.zeros_like(state["encoder.stem.convs.0.conv.weight"])
    torch.save({"network_weights": state}, tmp_path / "c.pth")
    with pytest.raises(ModelError, match=r"(?s)two different things.*all_modules\.0\.weight differ"):
        import_foundation(tmp_path / "c.pth")


def test_resenc_without_its_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "medseqft_kit.models.resenc", raising=False)
    monkeypatch.setitem(sys.modules, "dynamic_network_architectures.architectures.unet", None)
    with pytest.raises(ModelError, match=r"(?s)not installed.*extra `resenc`.*pip install --no-deps"):
        mk.FoundationModel.build("resenc", "large", patch=(64, 64, 64))


def test_a_file_with_command_line_arguments_and_numpy_loads_and_says_what_it_pickles(tmp_path: Path) -> None:
    import numpy as np

    net = SegResNet(init_filters=8, out_channels=2, blocks_down=(1, 1, 1), blocks_up=(1, 1))
    torch.save(
        {"state_dict": net.state_dict(), "args": argparse.Namespace(lr=1), "best_acc": np.float64(1)}, tmp_path / "s.pt"
    )
    imported = import_foundation(tmp_path / "s.pt")
    assert imported.model.spec.size == "tiny"
    assert "unknown" in imported.card.licence
    assert "command-line arguments" in imported.notes[0]
    assert "argparse.Namespace" in imported.notes[0]
