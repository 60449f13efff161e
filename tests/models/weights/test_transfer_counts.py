"""Every published format arrives with the number of tensors that the network has for it; the sums are those of MONAI.

The last convolution of a supervised network (2 tensors) is a task head here and is set aside: 157 + 2 are the 159 keys
of a SwinUNETR, 165 + 2 the 167 of one with `use_v2`, 81 + 2 the 83 of a SegResNet.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from medseqft_kit.errors import ModelError
from medseqft_kit.models.weights import resenc, segresnet, suprem, swinunetr, swinvit, voco
from medseqft_kit.models.weights.foreign import FOREIGN
from medseqft_kit.models.weights.importing import Wishes, planned
from medseqft_kit.models.weights.reading import Checkpoint, _stripped
from medseqft_kit.models.weights.recipe import Card
from medseqft_kit.models.weights.resenc_names import aliases, canonical

MAE = {"trainer_name": "BaseMAETrainer_BS8", "nnssl_adaptation_plan": {}, "init_args": {}}
BESIDE: dict[str, dict[str, Any]] = {
    "swinunetr_btcv_base_f48": {"best_acc": 0.8, "epoch": 4999},
    "nnssl_ResEncL_OpenMind_MAE_network_weights": MAE,
    "nnssl_ResEncL_encoder_only": MAE,
    "nnunetv2_ResidualEncoderUNet_L_6stage_in1_out3": {"trainer_name": "nnUNetTrainer", "init_args": {}},
}
"""What is at the top of a file besides the state dict."""
Row = tuple[str, str | None, Card, str, str, tuple[int, int, int, int]]
# Key list, wrapper, family, "architecture size settings", objective,
# tensors: (in the backbone, in the SSL head, left at random, unused).
FORMATS: list[Row] = [
    ("monai_model_swinvit_pt", "state_dict", swinvit.CARD, "swinunetr base legacy", "triple", (126, 8, 31, 0)),
    ("swinunetr_btcv_base_f48", "state_dict", swinunetr.BTCV, "swinunetr base legacy", "none", (157, 0, 0, 2)),
    ("swinunetr_btcv_small_f24", "state_dict", swinunetr.BTCV, "swinunetr small legacy", "none", (157, 0, 0, 2)),
    ("swinunetr_btcv_tiny_f12", None, swinunetr.BTCV, "swinunetr tiny legacy", "none", (157, 0, 0, 2)),
    ("bundle_swin_unetr_btcv_segmentation", "model", swinunetr.BTCV, "swinunetr base legacy", "none", (157, 0, 0, 2)),
    ("voco_B_SSL_head_released", None, voco.CARD, "swinunetr base legacy v2", "none", (145, 0, 20, 0)),
    ("voco_L_SSL_head_released", None, voco.CARD, "swinunetr large legacy v2", "none", (145, 0, 20, 0)),
    ("voco_H_SSL_head_released", None, voco.CARD, "swinunetr huge legacy v2", "none", (145, 0, 20, 0)),
    ("voco_B_training_VoCoHead", "state_dict", voco.CARD, "swinunetr base legacy v2", "position", (145, 12, 20, 0)),
    ("voco_H_training_VoCoHead", "state_dict", voco.CARD, "swinunetr huge legacy v2", "position", (145, 12, 20, 0)),
    ("voco_VoComni_B", None, swinunetr.VOCOMNI, "swinunetr base legacy v2", "none", (165, 0, 0, 2)),
    ("voco_VoComni_L", None, swinunetr.VOCOMNI, "swinunetr large legacy v2", "none", (165, 0, 0, 2)),
    ("voco_VoComni_H", None, swinunetr.VOCOMNI, "swinunetr huge legacy v2", "none", (165, 0, 0, 2)),
    ("suprem_swinunetr_net", "net", suprem.CARD, "swinunetr base legacy", "none", (157, 0, 0, 13)),
    ("suprem_segresnet_net", "net", suprem.CARD, "segresnet base", "none", (81, 0, 0, 2)),
    ("bundle_wholeBody_ct_segmentation", "model", segresnet.WHOLE_BODY, "segresnet large", "none", (81, 0, 0, 2)),
    ("bundle_brats_mri_segmentation", None, segresnet.BRATS, "segresnet base", "none", (81, 0, 0, 2)),
    ("nnssl_ResEncL_OpenMind_MAE_network_weights", "network_weights", resenc.OPENMIND, "resenc large", "mae",
     (254, 2, 0, 8)),
    ("nnssl_ResEncL_encoder_only", "network_weights", resenc.OPENMIND, "resenc large", "none", (224, 0, 30, 0)),
    ("nnunetv2_ResidualEncoderUNet_L_6stage_in1_out3", "network_weights", resenc.NNUNET, "resenc large", "none",
     (254, 0, 0, 10)),
]  # fmt: skip
REFUSED = {
    "MedCoSS": ["medcoss_pretrain_model", "medcoss_downstream_LASeg_unetr"],
    "UniMiSS": ["unimiss_tiny_student", "unimiss_tiny_teacher", "unimiss_small_student", "unimissplus_teacher"],
    "nnssl Primus": ["nnssl_PrimusM_OpenMind_MAE_network_weights", "nnssl_PrimusM_160_network"],
    "TransVW": ["transvw_TransVW_chest_ct_pt"],
    "SuPreM U-Net": ["suprem_unet_net"],
    "Models Genesis": ["models_genesis_Genesis_Chest_CT_pt", "suprem_unet3d_finetune_model_nclass1"],
    "MedicalNet": ["medicalnet_resnet_10", "medicalnet_resnet_18", "medicalnet_resnet_34", "medicalnet_resnet_50"],
    "VISTA3D": ["vista3d132_monai", "vista3d_research_monai1.3"],
    "CT-FM": ["ctfm_SegResEncoder", "ctfm_SegResNetDS_out118"],
    "nnU-Net v1": ["nnunetv1_GenericUNet_5pool_in1_out3"],
    "PlainConvUNet": ["nnunetv2_PlainConvUNet_6stage_in1_out3", "voco_VoComni_nnunet_inferred"],
    "MONAI U-Net": ["bundle_spleen_ct_segmentation", "bundle_prostate_mri_anatomy"],
}


@pytest.mark.parametrize("row", FORMATS, ids=lambda row: str(row[0]))
def test_a_format_arrives_with_its_exact_number_of_tensors_and_every_name_is_accounted_for(
    row: Row, blank: Callable[..., Checkpoint], keys: Callable[[str], dict[str, Any]]
) -> None:
    name, wrapper, card, network, objective, counts = row
    architecture, size, *settings = network.split()
    plan = planned(blank(name, wrapper, **BESIDE.get(name, {})))
    transfer, spec = plan.transfer, plan.spec
    known = {"legacy": ("downsample", "legacy"), "v2": ("use_v2", True)}
    assert plan.recipe.card.name == card.name
    assert (spec.architecture, spec.size, spec.objective["name"]) == (architecture, size, objective)
    assert spec.network == dict(known[word] for word in settings)
    arrived = (transfer.transferred("backbone"), transfer.transferred("SSL head"))
    assert (*arrived, len(transfer.of("missing")), len(transfer.of("unused"))) == counts
    assert len(transfer.of("mismatched", "adapted")) == 0
    twice = {956: 264, 448: 224}  # of a ResEnc
    assert sum(arrived) + counts[3] == twice.get(len(keys(name)), len(keys(name)))
    assert spec.scale == ((-1.0, 1.0) if card.inputs.window is None else (0.0, 1.0))
    said = " ".join(plan.notes)
    assert ("legacy" in said) == (architecture == "swinunetr")
    assert ("no SSL head" in said) == (objective == "none")
    assert spec.origin["licence"] == plan.recipe.card.licence


def test_renaming_is_that_of_monais_own_loader(
    blank: Callable[..., Checkpoint], keys: Callable[[str], dict[str, Any]]
) -> None:
    want = {
        source.removeprefix("module."): target
        for source, target in keys("map_model_swinvit_to_SwinUNETR").items()
        if target is not None
    }
    rows = planned(blank("monai_model_swinvit_pt", "state_dict")).transfer.of("matched", "renamed", part="backbone")
    assert {row.source: (row.target or "").removeprefix("backbone.net.") for row in rows} == want
    assert len(want) == 126


def test_the_names_of_a_tensor_are_those_of_the_published_alias_table(keys: Callable[[str], dict[str, Any]]) -> None:
    want = keys("alias_nnunet_ResEncL")
    assert {name: sorted([name, *others]) for name, others in want.items()} == {
        name: sorted(aliases(name)) for name in want
    }
    names = list(keys("nnssl_ResEncL_OpenMind_MAE_network_weights"))
    assert {canonical(name) for name in names} == want.keys()
    assert (len(names), len(want)) == (956, 264)


@pytest.mark.parametrize(("family", "name"), [(family, name) for family, names in REFUSED.items() for name in names])
def test_a_known_family_that_cannot_be_used_is_refused_with_the_reason(
    family: str, name: str, blank: Callable[..., Checkpoint]
) -> None:
    known = next(foreign for foreign in FOREIGN if family in foreign.name)
    with pytest.raises(ModelError) as refused:
        planned(blank(name))
    assert known.name in refused.value.summary
    assert refused.value.found == known.reason
    assert refused.value.next_step == f"take {known.instead}"


def test_a_denoising_encoder_is_refused_too() -> None:
    # Its names follow from MONAI's filter of them; no list of them is published.
    names = ("encoder.mask_token", "encoder.patch_embed.proj.weight", "encoder.layers1.0.0.blocks.0.norm1.weight")
    with pytest.raises(ModelError, match="weights of DAE"):
        planned(Checkpoint(Path("dae.pth"), {name: torch.zeros(1) for name in names}))
    assert len({family.name for family in FOREIGN}) == len(REFUSED) + 1 == len(FOREIGN)


@pytest.mark.parametrize("prefix", ["swinViT.", "swin_vit.", "module.swinViT."])
def test_dialects_of_the_pre_training_code_are_read_and_an_unknown_head_is_left_out(
    prefix: str, blank: Callable[..., Checkpoint]
) -> None:
    released = blank("monai_model_swinvit_pt", "state_dict")
    encoder = {name: value for name, value in released.tensors.items() if name.startswith(("patch_embed.", "layers"))}
    heads = {name: value for name, value in released.tensors.items() if name.startswith(("rotation", "contrast"))}
    outer, inner = ("module.", "swinViT.") if prefix.startswith("module.") else ("", prefix)
    dialect = {f"{outer}{inner}{name.replace('.fc', '.linear')}": value for name, value in encoder.items()}
    dialect |= {f"{outer}{name}": value for name, value in heads.items()}
    whole = {
        **dialect,
        **{f"{outer}{name}": released.tensors[name] for name in ("convTrans3d.weight", "convTrans3d.bias")},
    }
    vae = {**dialect, f"{outer}conv.0.weight": heads["rotation_head.weight"]}
    same = planned(Checkpoint(released.path, _stripped(whole)))
    assert (same.transfer.transferred("backbone"), same.transfer.transferred("SSL head")) == (126, 6)
    assert {row.target for row in same.transfer.of("missing", part="SSL head")} == {
        "ssl_head.norm.weight",
        "ssl_head.norm.bias",
    }
    other = planned(Checkpoint(released.path, _stripped(vae)))
    assert other.spec.objective == {"name": "none"}
    assert len(other.transfer.of("unused")) == 5


def test_a_file_with_a_tensor_too_few_or_of_another_shape_is_refused_with_the_count(
    blank: Callable[..., Checkpoint],
) -> None:
    whole = blank("voco_VoComni_B")
    name = "decoder3.conv_block.conv1.conv.weight"
    torn = {key: value for key, value in whole.tensors.items() if key != name}
    with pytest.raises(ModelError, match=r"(?s)164 tensors fit; 1 do not.*decoder3.*not in the file.*all of 165"):
        planned(Checkpoint(whole.path, torn))
    bent = {**whole.tensors, name: whole.tensors[name].flatten(1)}
    with pytest.raises(ModelError, match=r"(?s)164 tensors fit.*\(48, 5184\)|\(96, .*in the network"):
        planned(Checkpoint(whole.path, bent))


def test_more_channels_repeat_the_first_convolutions_and_the_head_and_say_so(blank: Callable[..., Checkpoint]) -> None:
    plan = planned(blank("monai_model_swinvit_pt", "state_dict"), Wishes(channels=4))
    adapted = {row.target for row in plan.transfer.of("adapted")}
    assert adapted == {
        "backbone.net.swinViT.patch_embed.proj.weight",
        "ssl_head.convTrans3d.weight",
        "ssl_head.convTrans3d.bias",
    }
    assert plan.transfer.transferred() == 134
    assert plan.spec.channels == 4
    assert "divided by 4" in " ".join(plan.notes)
    full = planned(blank("voco_VoComni_B"), Wishes(channels=2)).transfer.of("adapted")
    assert len(full) == 3  # patch embedding, and the two convolutions of encoder1 that read the image
    with pytest.raises(ModelError, match=r"(?s)1 wanted, 4 in the file"):
        planned(blank("bundle_brats_mri_segmentation"), Wishes(channels=1))
