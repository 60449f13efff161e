"""SSL heads: names and shapes of the files that bring them, and projections that know no batch mates."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from medseqft_kit.errors import ModelError
from medseqft_kit.models.registry import build_backbone
from medseqft_kit.models.ssl_heads import ProjectionHead, TripleHead, build_ssl_head

# As model_swinvit.pt and VoCo's training checkpoint (B) have them, prefix stripped.
RELEASED = {
    "norm.weight": (768,),
    "norm.bias": (768,),
    "rotation_head.weight": (4, 768),
    "rotation_head.bias": (4,),
    "contrastive_head.weight": (512, 768),
    "contrastive_head.bias": (512,),
    "convTrans3d.weight": (768, 1, 32, 32, 32),
    "convTrans3d.bias": (1,),
}
TRAINED = {
    f"{who}.{layer}.0.{kind}": shape
    for who in ("student", "teacher")
    for layer, width in (("layer1", 1152), ("layer2", 1024), ("layer3", 1024))
    for kind, shape in (("weight", (1024, width)), ("bias", (1024,)))
}


@pytest.mark.parametrize(
    ("objective", "want"), [({"name": "triple"}, RELEASED), ({"name": "position", "projection": 1024}, TRAINED)]
)
def test_heads_of_swinunetr_base_have_the_names_and_shapes_of_the_files(
    objective: dict[str, object], want: dict[str, tuple[int, ...]]
) -> None:
    backbone = build_backbone("swinunetr", "base", 1)
    with torch.device("meta"):
        head = build_ssl_head(backbone, 1, objective)
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == want


def test_masked_objectives_read_the_decoder_through_one_convolution() -> None:
    backbone = build_backbone("segresnet", "tiny", 2)
    for name in ("masked", "mae"):
        head = build_ssl_head(backbone, 2, {"name": name})
        assert isinstance(head, nn.Conv3d)
        assert tuple(head.weight.shape) == (2, 8, 1, 1, 1)


def test_the_triple_reads_its_first_two_voxels_and_restores_the_whole_crop() -> None:
    head = TripleHead(3, 2, 1)
    stage = torch.randn(2, 3, 2, 1, 3, generator=torch.Generator().manual_seed(0))
    said = head(stage)
    torch.testing.assert_close(said.rotation, head.rotation_head(stage[:, :, 0, 0, 0]))
    torch.testing.assert_close(said.contrast, head.contrastive_head(stage[:, :, 0, 0, 1]))
    assert said.contrast.shape == (2, 512)
    assert said.restored.shape == (2, 1, 4, 2, 6)
    block = torch.einsum("c,codhw->odhw", stage[1, :, 1, 0, 2], head.convTrans3d.weight)
    block = block + head.convTrans3d.get_parameter("bias")
    torch.testing.assert_close(said.restored[1, :, 2:, :, 4:], block)


def test_projections_are_normalised_over_the_crops_given_in_training_and_evaluation_alike() -> None:
    head = ProjectionHead(5, 4).eval()
    pooled = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    hidden = pooled
    weights = head.state_dict()
    for layer in ("layer1", "layer2"):
        made = functional.linear(hidden, weights[f"{layer}.0.weight"], weights[f"{layer}.0.bias"])
        spread = (made.var(dim=0, unbiased=False) + 1e-5).sqrt()
        hidden = ((made - made.mean(dim=0)) / spread).clamp(min=0)
    want = functional.linear(hidden, weights["layer3.0.weight"], weights["layer3.0.bias"])
    torch.testing.assert_close(head(pooled), want)
    torch.testing.assert_close(head.train()(pooled), want)


def test_an_unknown_name_and_an_impossible_width_are_refused() -> None:
    backbone = build_backbone("segresnet", "tiny", 1)
    with pytest.raises(ModelError, match=r"(?s)no SSL head.*None.*masked, mae, triple, position"):
        build_ssl_head(backbone, 1, {})
    for width in (0, "wide"):
        with pytest.raises(ModelError, match="width cannot be built"):
            build_ssl_head(backbone, 1, {"name": "position", "projection": width})
