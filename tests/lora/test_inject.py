import dataclasses

import pytest
import torch
from torch import nn

from medseqft_kit.errors import AdapterError
from medseqft_kit.lora.inject import LoRASettings, inject, match_targets
from medseqft_kit.lora.layers import LoRAConv3d, LoRAConvTranspose3d, LoRALinear
from medseqft_kit.models.foundation import FoundationModel

LAYERS = ("stem", "point", "dilated", "reflecting", "grouped", "depthwise", "mix", "up", "grouped_up")
NORMS = ("norm", "layer_norm", "instance_norm")


def crop(side=8):
    return torch.randn(2, 1, side, side, side, generator=torch.Generator().manual_seed(0))


def relative(got, want):
    return float((got.detach() - want.detach()).norm() / want.detach().norm())


def test_all_adapts_every_convolution_and_linear_layer_of_the_backbone_and_nothing_else(toy):
    adapted = inject(toy(), LoRASettings(rank=8), seed=0)
    assert isinstance(adapted, FoundationModel)
    assert adapted.adapted == LAYERS
    kinds = {type(layer) for layer in adapted.layers().values()}
    assert kinds == {LoRAConv3d, LoRAConvTranspose3d, LoRALinear}
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    lora = {f"backbone.{layer}.{part}" for layer in LAYERS for part in ("lora_a", "lora_b")}
    norms = {f"backbone.{norm}.{part}" for norm in NORMS for part in ("weight", "bias")}
    assert trainable == lora | norms
    assert adapted.trainable_count() == sum(dict(adapted.named_parameters())[name].numel() for name in trainable)


def test_adapter_starts_as_the_model_itself(toy):
    model = toy().eval()
    adapted = inject(model, LoRASettings(rank=8), seed=0)
    want, got = model.encode(crop()).named(), adapted.encode(crop()).named()
    assert len(want) == 3
    assert all(torch.equal(got[name], want[name]) for name in ("stage_0", "stage_1"))
    # PyTorch's matmul takes another kernel for a weight that requires a gradient: after the linear layer bits differ.
    assert relative(got["decoded"], want["decoded"]) < 1e-6
    assert relative(adapted(crop(), "organ"), model(crop(), "organ")) < 1e-6


def test_callers_model_is_bit_identical_after_injection_and_a_training_step(toy, state, same):
    model = toy().train()
    model.backbone.stem.weight.requires_grad_(False)
    before, random = state(model), torch.random.get_rng_state()
    adapted = inject(model, LoRASettings(rank=8), seed=0)
    assert torch.equal(random, torch.random.get_rng_state())
    optimizer = torch.optim.SGD([each for each in adapted.parameters() if each.requires_grad], lr=0.1)
    adapted(crop(), "organ").square().mean().backward()
    optimizer.step()
    assert adapted.backbone.norm.num_batches_tracked == 1  # its statistics moved, and are its own
    assert same(before, state(model))
    assert all(each.grad is None for each in model.parameters())


def test_frozen_weights_share_memory_and_own_parameters_do_not(toy):
    model = toy()
    adapted = inject(model, LoRASettings(rank=8), seed=0)
    places = {name: each.data_ptr() for name, each in model.named_parameters()}
    shared = {n for n, each in adapted.named_parameters() if places.get(n) == each.data_ptr()}
    assert shared == {name for name in places if name.split(".")[1] not in NORMS}
    assert adapted.backbone.norm.running_mean.data_ptr() != model.backbone.norm.running_mean.data_ptr()


def test_norms_are_frozen_and_shared_if_they_are_not_trained(toy):
    model = toy()
    adapted = inject(model, LoRASettings(rank=8, train_norms=False), seed=0)
    assert adapted.backbone.norm.weight.data_ptr() == model.backbone.norm.weight.data_ptr()
    assert not adapted.backbone.norm.weight.requires_grad
    assert {name for name in adapted.adapter_state() if "norm" in name} == {
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
    }


def test_a_is_drawn_from_seed_and_name_alone_and_b_is_zero(toy):
    alone = inject(toy(), LoRASettings(rank=8, targets=("up",)), seed=3)
    among = inject(toy(), LoRASettings(rank=8), seed=3)
    other = inject(toy(), LoRASettings(rank=8), seed=4)
    assert torch.equal(alone.backbone.up.lora_a, among.backbone.up.lora_a)
    assert not torch.equal(alone.backbone.up.lora_a, other.backbone.up.lora_a)
    layers = among.layers()
    assert len(layers) == 9
    assert all(not layer.lora_b.any() for layer in layers.values())
    assert layers["dilated"].lora_a.shape == layers["reflecting"].lora_a.shape
    assert not torch.equal(layers["dilated"].lora_a, layers["reflecting"].lora_a)


@pytest.mark.parametrize("name", ["dilated", "up"])
def test_a_is_uniform_within_one_over_the_root_of_its_fan_in(toy, name):
    a = inject(toy(), LoRASettings(rank=4, targets=(name,)), seed=0).layers()[name].lora_a.detach()
    # 8 channels × 27 taps come in, whatever the rank; the extreme of 864 draws lies within 2 % of the bound.
    assert float(a.abs().max()) == pytest.approx((8 * 27) ** -0.5, rel=0.02)


def test_alpha_over_rank_scales_the_adapter(toy):
    adapted = inject(toy(), LoRASettings(rank=8, alpha=2), seed=0)
    assert {layer.scaling for layer in adapted.layers().values()} == {0.25}
    assert {layer.scaling for layer in inject(toy(), LoRASettings(rank=8), seed=0).layers().values()} == {1.0}


def test_targets_match_full_names_endings_and_expressions():
    names = ("a.attn.qkv", "a.attn.proj", "b.conv", "conv", "c.preconv")
    assert match_targets(names, ("qkv", "attn.proj")) == ("a.attn.qkv", "a.attn.proj")
    assert match_targets(names, ("conv",)) == ("conv",)  # a full name is that layer alone
    assert match_targets(names[:3], ("conv",)) == ("b.conv",)  # an ending, at a dot
    assert match_targets(names, (r".*conv",)) == ("b.conv", "conv", "c.preconv")
    assert match_targets(names, "all") == names


def test_misspelt_target_is_refused_with_the_nearest_names(toy):
    with pytest.raises(AdapterError) as caught:
        inject(toy(), LoRASettings(targets=("stem", "dilatd", "groupd_up")), seed=0)
    text = str(caught.value)
    assert "'dilatd', 'groupd_up'" in text
    assert "'stem'" not in text
    assert "'dilatd': one of dilated" in text
    assert "'groupd_up': one of grouped_up" in text


def test_misspelt_ending_is_answered_with_endings():
    model = FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8))
    with pytest.raises(AdapterError, match=r"'conv1.cnv': one of conv1.conv"):
        inject(model, LoRASettings(targets=("conv1.cnv",)), seed=0)


def test_container_of_a_layer_is_answered_with_the_layer():
    model = FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8))
    with pytest.raises(AdapterError, match=r"'convInit': one of .*convInit\.conv"):
        inject(model, LoRASettings(targets=("convInit",)), seed=0)


def test_broken_expression_is_refused(toy):
    with pytest.raises(AdapterError, match="'(' is no regular expression".replace("(", r"\(")):
        inject(toy(), LoRASettings(targets=("(",)), seed=0)


def test_rank_that_groups_do_not_divide_is_refused_at_injection(toy):
    with pytest.raises(AdapterError, match=r"depthwise.*\n.*rank 4, 8 groups\n.*multiple of 8"):
        inject(toy(), LoRASettings(rank=4), seed=0)


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"alpha": -1.0}, {"targets": ()}, {"targets": "stem"}], ids=str)
def test_settings_that_make_no_adapter_are_refused(wrong):
    with pytest.raises(AdapterError):
        LoRASettings(**wrong)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LoRASettings().rank = 3


def test_adapted_model_is_not_adapted_again(toy):
    with pytest.raises(AdapterError, match="carries adapters already"):
        inject(inject(toy(), LoRASettings(rank=8), seed=0), LoRASettings(rank=8), seed=0)


def test_layer_used_twice_is_adapted_in_both_places(toy):
    model = toy()
    model.backbone.again = model.backbone.point
    adapted = inject(model, LoRASettings(rank=8), seed=0)
    assert adapted.backbone.again is adapted.backbone.point


def test_subclass_of_a_layer_keeps_its_own_forward(toy):
    class Standardised(nn.Conv3d):
        pass

    model = toy()
    model.backbone.point = Standardised(8, 8, 1)
    assert "point" not in inject(model, LoRASettings(rank=8), seed=0).adapted


def adaptable(model):
    return [m for m in model.backbone.modules() if isinstance(m, nn.Conv3d | nn.ConvTranspose3d | nn.Linear)]


def test_segresnet_adapts_and_every_adapter_learns():
    model = FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8))
    adapted = inject(model, LoRASettings(rank=2), seed=0)
    assert len(adapted.adapted) == len(adaptable(model)) > 10
    adapted.encode(crop()).decoded.square().mean().backward()
    assert [name for name, layer in adapted.layers().items() if layer.lora_b.grad is None] == []
    assert all(each.grad is None for each in adapted.parameters() if not each.requires_grad)


def test_swinunetr_adapts_attention_perceptrons_embedding_and_upsampling():
    model = FoundationModel.build("swinunetr", "tiny", patch=(64, 64, 64))
    adapted = inject(model, LoRASettings(rank=2), seed=0)
    assert len(adapted.adapted) == len(adaptable(model)) > 50
    endings = {name.rsplit(".", 1)[-1] for name in adapted.adapted}
    assert {"qkv", "proj", "linear1", "linear2", "reduction", "conv"} <= endings
    assert {type(layer) for layer in adapted.layers().values()} == {LoRAConv3d, LoRAConvTranspose3d, LoRALinear}
    with torch.no_grad():
        assert torch.isfinite(adapted.encode(crop(64)[:1]).decoded).all()
