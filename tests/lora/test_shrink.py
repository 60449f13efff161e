import torch
from torch import nn

from medseqft_kit.lora.inject import LoRASettings, inject
from medseqft_kit.lora.merge import merge
from medseqft_kit.lora.shrink import shrunk


def test_merged_weights_lie_at_the_share_of_the_way(toy, shaken):
    start = toy().double()
    whole = shaken(inject(start, LoRASettings(rank=8, alpha=4), seed=0))
    there, origin = merge(whole)[0].state_dict(), start.state_dict()
    shares = (0.0, 0.25, 0.5, 1.0)
    for share in shares:
        got = merge(shrunk(whole, start, share))[0].state_dict()
        moved = 0
        for name, value in got.items():
            if not name.startswith("backbone."):
                assert torch.equal(value, there[name])
                continue
            if value.is_floating_point():
                torch.testing.assert_close(value, (1 - share) * origin[name] + share * there[name], rtol=0, atol=1e-12)
            moved += not torch.equal(there[name], origin[name])
        assert moved >= 3  # adapted layers and a norm: agreement says something


def test_running_statistics_are_mixed_and_counts_are_kept(toy, shaken):
    start = toy()
    start.backbone.norm = nn.BatchNorm3d(start.backbone.norm.num_features)
    whole = shaken(inject(start, LoRASettings(rank=8), seed=0))
    with torch.no_grad():
        whole.backbone.norm.running_mean.fill_(3.0)
        whole.backbone.norm.num_batches_tracked.fill_(7)
    got = shrunk(whole, start, 0.25).backbone.norm
    assert torch.equal(got.running_mean, torch.full_like(got.running_mean, 0.75))
    assert int(got.num_batches_tracked) == 7


def test_the_adapted_model_and_its_start_stay_as_they_are(toy, shaken, state, same):
    start = toy()
    whole = shaken(inject(start, LoRASettings(rank=8), seed=0))
    before = state(start), state(whole)
    shrunk(whole, start, 0.5)
    assert same(before[0], state(start))
    assert same(before[1], state(whole))
