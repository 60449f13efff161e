import pytest
import torch
from torch import nn

from medseqft_kit.errors import AdapterError
from medseqft_kit.lora.inject import LoRASettings, inject
from medseqft_kit.lora.merge import MERGE_BOUND, merge, merged_model, relative_difference
from medseqft_kit.models.foundation import FoundationModel, load_foundation, save_foundation


def crop(dtype=torch.float32, side=8):
    return torch.randn(1, 1, side, side, side, generator=torch.Generator().manual_seed(0)).to(dtype)


def relative(got, want):
    return float((got.detach().double() - want.detach().double()).norm() / want.detach().double().norm())


def test_merged_equals_adapted_in_float64_and_fp32(toy, shaken):
    bounds = {torch.float64: 1e-12, torch.float32: 1e-5}
    for dtype, bound in bounds.items():
        model = toy().to(dtype).eval()
        adapted = shaken(inject(model, LoRASettings(rank=8, alpha=4), seed=0))
        merged, difference = merge(adapted)
        assert difference < bound
        want = adapted.encode(crop(dtype)).named()
        assert len(want) == 3
        for name, got in merged.encode(crop(dtype)).named().items():
            assert relative(got, want[name]) < bound
        assert relative(merged(crop(dtype), "organ"), adapted(crop(dtype), "organ")) < bound
        # The adapter did something, so that agreement says something.
        assert relative(model.encode(crop(dtype)).decoded, want["decoded"]) > 0.05


def test_merged_model_is_plain_whole_and_trainable(toy, shaken):
    model = toy()
    adapted = shaken(inject(model, LoRASettings(rank=8), seed=0))
    merged, _ = merge(adapted)
    assert type(merged) is FoundationModel
    assert [type(module) for module in merged.modules()] == [type(module) for module in model.modules()]
    assert merged.state_dict().keys() == model.state_dict().keys()
    assert all(each.requires_grad for each in merged.parameters())
    taken = {each.data_ptr() for one in (model, adapted) for each in one.parameters()}
    assert not taken & {each.data_ptr() for each in merged.parameters()}
    assert torch.equal(merged.backbone.norm.weight, adapted.backbone.norm.weight)


def test_what_is_merged_is_what_the_proof_is_of(toy, shaken, state, same):
    adapted = shaken(inject(toy(), LoRASettings(rank=8), seed=0))
    proved, _ = merge(adapted)
    assert same(state(merged_model(adapted)), state(proved))


def test_merge_is_stored_as_any_foundation_model(tmp_path, shaken):
    adapted = shaken(inject(FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8)), LoRASettings(rank=2), seed=0))
    merged, difference = merge(adapted.eval())
    save_foundation(merged, tmp_path / "merged.safetensors")
    again = load_foundation(tmp_path / "merged.safetensors").eval()
    assert 0 < difference < 1e-5
    assert torch.equal(again.encode(crop()).decoded, merged.encode(crop()).decoded)


def test_callers_model_adapted_model_and_random_state_are_bit_identical_after_merge(toy, shaken, state, same):
    model = toy().train()
    adapted = shaken(inject(model, LoRASettings(rank=8), seed=0))
    adapted.backbone.norm.eval()  # a mixed state comes back as it was
    before, random = (state(model), state(adapted)), torch.random.get_rng_state()
    merged, _ = merge(adapted)
    assert same(before[0], state(model))
    assert same(before[1], state(adapted))
    assert torch.equal(random, torch.random.get_rng_state())
    assert merged.training
    assert not merged.backbone.norm.training


def test_difference_is_the_largest_over_the_features(toy):
    one, other = toy().eval(), toy().eval()
    with torch.no_grad():
        other.backbone.grouped_up.weight.mul_(3)
        other.backbone.grouped_up.bias.mul_(3)
    assert relative_difference(other, one, seed=0) == pytest.approx(2, rel=1e-5)
    assert relative_difference(one, toy().eval(), seed=0) == 0


def test_merge_is_checked_in_fp32_even_under_autocast(toy, shaken):
    adapted = shaken(inject(toy(), LoRASettings(rank=8), seed=0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, difference = merge(adapted)
    assert difference < 1e-5


def test_adapter_with_nan_is_refused_at_merge(toy):
    adapted = inject(toy(), LoRASettings(rank=8), seed=0)
    with torch.no_grad():
        adapted.backbone.stem.lora_b[0] = torch.nan
    with pytest.raises(AdapterError, match=rf"relative difference of nan\n.*at most {MERGE_BOUND:g}"):
        merge(adapted)


def test_merge_that_is_off_is_refused(toy, shaken, monkeypatch):
    adapted = shaken(inject(toy(), LoRASettings(rank=8), seed=0))

    def doubled(layer):
        with torch.no_grad():
            plain = nn.Linear(8, 8)
            plain.weight.copy_(layer.weight + 2 * layer.lora_b @ layer.lora_a)
            plain.bias.copy_(layer.bias)
        return plain

    monkeypatch.setattr(type(adapted.backbone.mix), "merged", doubled)
    with pytest.raises(AdapterError, match="does not compute what the adapted one does"):
        merge(adapted)


def test_dense_adapter_of_a_grouped_convolution_is_refused_with_the_reason(toy):
    adapted = inject(toy(), LoRASettings(rank=8), seed=0)
    adapted.backbone.grouped.lora_a = nn.Parameter(torch.randn(8, 8, 3, 3, 3))
    assert torch.isfinite(adapted.encode(crop()).decoded).all()
    with pytest.raises(AdapterError, match=r"adapter of grouped cannot be merged.\n.*no grouped weight equals it"):
        merge(adapted)


def test_merged_weights_keep_channels_last(shaken):
    model = FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8)).to(memory_format=torch.channels_last_3d)
    merged, _ = merge(shaken(inject(model, LoRASettings(rank=2), seed=0)))
    convolutions = [module.weight for module in merged.modules() if isinstance(module, nn.Conv3d)]
    assert len(convolutions) > 10
    assert all(weight.is_contiguous(memory_format=torch.channels_last_3d) for weight in convolutions)
