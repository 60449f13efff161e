import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from medseqft_kit.errors import AdapterError
from medseqft_kit.lora.inject import LoRASettings, inject
from medseqft_kit.lora.layers import LoRAConv3d, LoRAConvTranspose3d, LoRALinear
from medseqft_kit.lora.merge import merge
from medseqft_kit.lora.targets import match_targets
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


def test_norms_in_front_of_the_first_adapter_are_trained_channels_last():
    """PyTorch 2.13's group norm ends the process here if its input needs no gradient."""
    model = FoundationModel.build(size="tiny", patch=(8, 8, 8))
    model.add_head_("organ", 2)
    gradients = []
    for dtype, memory in ((torch.float32, torch.channels_last_3d), (torch.float64, torch.contiguous_format)):
        adapted = inject(model, LoRASettings(rank=2, targets=(r".*up_layers.*conv1\.conv",)), seed=0).to(dtype)
        image = crop().to(dtype).contiguous(memory_format=memory)
        adapted.to(memory_format=memory)(image, "organ").square().mean().backward()
        found = {name: each.grad for name, each in adapted.named_parameters() if each.requires_grad}
        gradients.append({name: grad for name, grad in found.items() if "down_layers" in name})
    assert len(gradients[0]) >= 4
    assert all(relative(grad, gradients[1][name]) < 1e-4 for name, grad in gradients[0].items())


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


def test_layers_have_ranks_and_alphas_of_their_own(toy):
    settings = LoRASettings(rank=8, ranks={"mix": 3, "grouped": 4}, alphas={"mix": 6})
    layers = inject(toy(), settings, seed=0).layers()
    assert layers["mix"].lora_a.shape == (3, 8)
    assert layers["grouped"].lora_b.shape == (8, 2, 1, 1, 1)
    assert layers["point"].lora_a.shape[0] == 8
    assert {name: layers[name].scaling for name in ("mix", "grouped", "point")} == {"mix": 2, "grouped": 1, "point": 1}
    halved = inject(toy(), LoRASettings(rank=8, alpha=4, ranks={"mix": 2}), seed=0).layers()
    assert {name: halved[name].scaling for name in ("mix", "point")} == {"mix": 2, "point": 0.5}


def test_ranks_of_layers_that_are_not_adapted_are_refused(toy):
    with pytest.raises(AdapterError, match=r"found +stem, stranger\n +expected +some of mix"):
        inject(toy(), LoRASettings(targets=("mix",), ranks={"stem": 8}, alphas={"stranger": 1.0}), seed=0)


@pytest.fixture
def moved(toy):
    """A model whose weights, norms and statistics are others, but not its biases."""

    def build():
        model, draw = toy(), torch.Generator().manual_seed(1)
        for name, tensor in model.backbone.state_dict().items():
            if tensor.is_floating_point() and ("norm" in name or name.endswith("weight")):
                tensor.add_(torch.rand(tensor.shape, generator=draw))
        return model

    return build


@pytest.mark.parametrize("alpha", [None, 4])
def test_full_rank_towards_a_model_is_that_model(toy, moved, alpha, state, same):
    model, towards = toy().eval(), moved().eval()
    before = state(model), state(towards)
    adapted = inject(model, LoRASettings(rank=8, alpha=alpha), seed=0, towards=towards)
    merged, _ = merge(adapted)
    compared = 0
    for name, want in towards.backbone.state_dict().items():
        assert relative(merged.backbone.state_dict()[name].double(), want.double()) < 1e-5 or not want.any(), name
        compared += 1
    assert compared > 25
    assert relative(adapted.encode(crop()).decoded, towards.encode(crop()).decoded) < 1e-4
    assert same(before[0], state(model))
    assert same(before[1], state(towards))


def test_low_rank_towards_a_model_is_the_nearest_of_that_rank(toy, moved):
    """NumPy's truncated decomposition is the referee, for a plain, a grouped and a transposed convolution."""
    model, towards = toy(), moved()
    layers = inject(model, LoRASettings(rank=8, ranks={"dilated": 2, "grouped": 4, "up": 3}), 0, towards).layers()
    views = {
        "dilated": (2, lambda w: w.reshape(1, 8, -1)),
        "grouped": (2, lambda w: w.reshape(2, 4, -1)),
        "up": (3, lambda w: w.swapaxes(0, 1).reshape(1, 8, -1)),
    }
    for name, (rank, view) in views.items():
        before, after = (each.backbone.get_submodule(name).weight.detach().double() for each in (model, towards))
        u, values, vt = np.linalg.svd(view((after - before).numpy()), full_matrices=False)
        best = (u[..., :rank] * values[:, None, :rank]) @ vt[:, :rank]
        got = view((layers[name].merged().weight.detach().double() - before).numpy())
        assert np.linalg.norm(got - best) / np.linalg.norm(best) < 1e-5, name


def test_norms_follow_only_if_they_are_trained(toy, moved):
    model, towards = toy(), moved()
    for train_norms, source in ((True, towards), (False, model)):
        adapted = inject(model, LoRASettings(rank=8, train_norms=train_norms), seed=0, towards=towards)
        for norm in NORMS:
            ours, theirs = (each.backbone.get_submodule(norm).state_dict() for each in (adapted, source))
            assert all(torch.equal(ours[key], value) for key, value in theirs.items())


def test_rows_without_a_difference_can_still_learn(toy):
    """Two of eight directions of `mix` differ: the other rows of A are drawn as ever, and B is zero there alone."""
    model, towards = toy(), toy()
    with torch.no_grad():
        towards.backbone.mix.weight[:2] += torch.eye(8)[:2]
    settings = LoRASettings(rank=8)
    layers, plain = inject(model, settings, 0, towards).layers(), inject(model, settings, 0).layers()
    assert torch.equal(layers["mix"].lora_a[2:], plain["mix"].lora_a[2:])
    assert not layers["mix"].lora_b[:, 2:].any()
    assert layers["mix"].lora_b[:, :2].any()
    others = [name for name in LAYERS if name != "mix"]
    assert all(torch.equal(layers[name].lora_a, plain[name].lora_a) for name in others)
    assert not any(layers[name].lora_b.any() for name in others)


def test_a_may_stay_as_it_is_drawn(toy):
    adapted = inject(toy(), LoRASettings(rank=8, train_a=False, train_norms=False), seed=0)
    trainable = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trainable == {f"backbone.{layer}.lora_b" for layer in LAYERS}


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


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"alpha": -1.0},
        {"targets": ()},
        {"targets": "stem"},
        {"ranks": {"stem": 0}},
        {"alphas": {"stem": 0.0}},
    ],
    ids=str,
)
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


def test_swinunetr_adapts_attention_perceptrons_embedding_and_upsampling(monkeypatch):
    monkeypatch.setenv("MEDSEQFT_KERNELS", "reference")  # half a minute would go into measuring its fifty shapes
    model = FoundationModel.build("swinunetr", "tiny", patch=(64, 64, 64))
    adapted = inject(model, LoRASettings(rank=2), seed=0)
    assert len(adapted.adapted) == len(adaptable(model)) > 50
    endings = {name.rsplit(".", 1)[-1] for name in adapted.adapted}
    assert {"qkv", "proj", "linear1", "linear2", "reduction", "conv"} <= endings
    assert {type(layer) for layer in adapted.layers().values()} == {LoRAConv3d, LoRAConvTranspose3d, LoRALinear}
    with torch.no_grad():
        assert torch.isfinite(adapted.encode(crop(64)[:1]).decoded).all()
