import copy
import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from medseqft_kit.errors import AdapterError
from medseqft_kit.lora.inject import LoRASettings, inject
from medseqft_kit.lora.merge import merge
from medseqft_kit.lora.peft_format import load_adapter, save_adapter
from medseqft_kit.models.foundation import FoundationModel

PEFT_HOLDS = ("stem", "point", "grouped", "depthwise", "mix")
PEFT_CANNOT = ("dilated", "reflecting", "up", "grouped_up")


def crop(side=8):
    return torch.randn(2, 1, side, side, side, generator=torch.Generator().manual_seed(0))


def relative(got, want):
    return float((got.detach() - want.detach()).norm() / want.detach().norm())


def from_peft(model, folder):
    """The backbone with PEFT's own layers; PEFT changes what it is given, so it gets a copy."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*groups > 1")
        warnings.filterwarnings("error", message=".*(missing|unexpected).*")
        return PeftModel.from_pretrained(copy.deepcopy(model.backbone), folder).eval()


def test_peft_loads_the_folder_and_gives_the_same_features(toy, shaken, tmp_path):
    model = toy().eval()
    settings = LoRASettings(rank=8, alpha=4, targets=PEFT_HOLDS, train_norms=False)
    adapted = shaken(inject(model, settings, seed=0))
    save_adapter(adapted, tmp_path)
    theirs = from_peft(model, tmp_path)(crop()).named()
    ours = adapted.encode(crop()).named()
    assert len(ours) == 3
    assert max(relative(theirs[name], ours[name]) for name in ours) < 1e-5
    assert relative(model.encode(crop()).decoded, ours["decoded"]) > 0.01


def test_peft_loads_a_real_backbone_and_the_norms_by_hand(shaken, tmp_path):
    model = FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8)).eval()
    adapted = shaken(inject(model, LoRASettings(rank=2), seed=0))
    save_adapter(adapted, tmp_path)
    peft = from_peft(model, tmp_path)
    want = adapted.encode(crop()).decoded
    assert relative(peft(crop()).decoded, want) > 1e-3  # without the norms it is another model
    extra = load_file(tmp_path / "extra.safetensors")
    missing = peft.base_model.model.load_state_dict(extra, strict=False)
    assert len(extra) > 10
    assert missing.unexpected_keys == []
    assert relative(peft(crop()).decoded, want) < 1e-5


def test_what_peft_cannot_hold_goes_into_the_extra_file(toy, shaken, tmp_path):
    adapted = shaken(inject(toy(), LoRASettings(rank=8), seed=0))
    save_adapter(adapted, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "extra.safetensors",
    ]
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert list(config) == sorted(config)
    assert config["target_modules"] == sorted(PEFT_HOLDS)
    assert (config["r"], config["lora_alpha"], config["modules_to_save"]) == (8, 8, None)
    weights = load_file(tmp_path / "adapter_model.safetensors")
    wanted = {f"base_model.model.{name}.lora_{part}.weight" for name in PEFT_HOLDS for part in "AB"}
    assert weights.keys() == wanted
    assert weights["base_model.model.grouped.lora_A.weight"].shape == (8, 8, 3, 3, 3)
    extra = load_file(tmp_path / "extra.safetensors")
    norms = {"norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    norms |= {f"{name}.{part}" for name in ("layer_norm", "instance_norm") for part in ("weight", "bias")}
    assert extra.keys() == norms | {f"{name}.{part}" for name in PEFT_CANNOT for part in ("lora_a", "lora_b")}


def test_grouped_a_is_embedded_with_zeros_outside_its_own_group(toy, shaken, tmp_path):
    adapted = shaken(inject(toy(), LoRASettings(rank=8), seed=0))
    save_adapter(adapted, tmp_path)
    dense = load_file(tmp_path / "adapter_model.safetensors")["base_model.model.grouped.lora_A.weight"]
    a = adapted.backbone.grouped.lora_a
    assert torch.equal(dense[:4, :4], a[:4])
    assert torch.equal(dense[4:, 4:], a[4:])
    assert not dense[:4, 4:].any()
    assert not dense[4:, :4].any()


@pytest.mark.parametrize("train_norms", [True, False])
def test_saved_and_loaded_adapter_is_the_same_model_bit_for_bit(toy, shaken, tmp_path, train_norms):
    model = toy().train()
    adapted = shaken(inject(model, LoRASettings(rank=8, alpha=3.7, train_norms=train_norms), seed=0))
    adapted(crop(), "organ")  # in training mode, so that BatchNorm's statistics move
    save_adapter(adapted, tmp_path / "one")
    loaded = load_adapter(model, tmp_path / "one")
    assert loaded.adapted == adapted.adapted
    assert loaded.backbone.norm.num_batches_tracked == 1
    assert torch.equal(loaded.eval()(crop(), "organ"), adapted.eval()(crop(), "organ"))
    assert merge(loaded)[1] == merge(adapted)[1]
    save_adapter(loaded, tmp_path / "two")
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert len(files) == 3
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


def test_models_are_bit_identical_after_saving_and_loading(toy, shaken, state, same, tmp_path):
    model = toy().train()
    adapted = shaken(inject(model, LoRASettings(rank=8), seed=0))
    before, random = (state(model), state(adapted)), torch.random.get_rng_state()
    save_adapter(adapted, tmp_path)
    load_adapter(model, tmp_path)
    assert same(before[0], state(model))
    assert same(before[1], state(adapted))
    assert torch.equal(random, torch.random.get_rng_state())


RANKS = {"stem": 3, "grouped": 4, "mix": 5, "up": 2, "grouped_up": 4, "dilated": 8}


@pytest.mark.parametrize("alpha", [None, 4])
def test_peft_loads_ranks_of_single_layers_and_gives_the_same_features(toy, shaken, tmp_path, alpha):
    model = toy().eval()
    model.backbone.inner = nn.ModuleDict({"mix": nn.Linear(8, 8)})  # an ending that the pattern of `mix` must not take
    ranks = {name: rank for name, rank in RANKS.items() if name in PEFT_HOLDS}
    targets = (*PEFT_HOLDS, "inner.mix")
    settings = LoRASettings(8, alpha, targets, train_norms=False, ranks=ranks, alphas={"point": 2})
    adapted = shaken(inject(model, settings, seed=0))
    save_adapter(adapted, tmp_path)
    peft = from_peft(model, tmp_path)
    ours, theirs = adapted.encode(crop()).named(), peft(crop()).named()
    assert max(relative(theirs[name], ours[name]) for name in ours) < 1e-5
    assert relative(model.encode(crop()).decoded, ours["decoded"]) > 0.01
    modules = dict(peft.base_model.model.named_modules())
    assert {name: modules[name].r["default"] for name in targets} == {
        **dict.fromkeys(targets, 8),
        **ranks,
    }
    assert {name: modules[name].scaling["default"] for name in targets} == pytest.approx(
        {name: layer.scaling for name, layer in adapted.layers().items()}
    )


@pytest.mark.parametrize("alpha", [None, 3.5])
def test_ranks_of_single_layers_come_back_bit_for_bit(toy, shaken, tmp_path, alpha):
    model = toy().eval()
    adapted = shaken(inject(model, LoRASettings(8, alpha, ranks=RANKS, alphas={"up": 1.5}), seed=0))
    save_adapter(adapted, tmp_path / "one")
    loaded = load_adapter(model, tmp_path / "one")
    layers, others = loaded.layers(), adapted.layers()
    assert {name: layer.scaling for name, layer in layers.items()} == {n: each.scaling for n, each in others.items()}
    assert layers["up"].lora_a.shape == (8, 2, 3, 3, 3)
    assert torch.equal(loaded.encode(crop()).decoded, adapted.encode(crop()).decoded)
    save_adapter(loaded, tmp_path / "two")
    for file in ("adapter_config.json", "adapter_model.safetensors", "extra.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_patterns_that_peft_wrote_are_read_as_peft_reads_them(toy, tmp_path):
    model = toy().eval()
    peft = peft_adapter(model, tmp_path, rank_pattern={"mi.": 3, "stem": 2}, alpha_pattern={"(point|mix)": 6})
    loaded = load_adapter(model, tmp_path)
    layers = loaded.layers()
    assert {name: layers[name].lora_a.shape[0] for name in PEFT_HOLDS} == {
        "stem": 2,
        "point": 8,
        "grouped": 8,
        "depthwise": 8,
        "mix": 3,
    }
    assert [layers[name].scaling for name in ("stem", "point", "mix")] == [2, 0.75, 2]
    assert relative(loaded.encode(crop()).decoded, peft(crop()).decoded) < 1e-5


def peft_adapter(model, folder, **options):
    """An adapter that PEFT made and wrote, with dense A on the grouped convolutions."""
    config = LoraConfig(r=8, lora_alpha=4, target_modules=list(PEFT_HOLDS), **options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*groups > 1")
        peft = get_peft_model(copy.deepcopy(model.backbone), config)
    for name, parameter in peft.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    peft.save_pretrained(folder)
    return peft.eval()


def test_adapter_that_peft_wrote_runs_and_its_dense_a_is_refused_at_merge(toy, tmp_path):
    model = toy().eval()
    peft = peft_adapter(model, tmp_path)
    loaded = load_adapter(model, tmp_path)
    assert set(loaded.adapted) == set(PEFT_HOLDS)
    assert loaded.backbone.grouped.lora_a.shape == (8, 8, 3, 3, 3)
    assert relative(loaded.encode(crop()).decoded, peft(crop()).decoded) < 1e-5
    with pytest.raises(AdapterError, match="no grouped weight equals it"):
        merge(loaded)


def test_adapter_with_options_that_we_lack_is_refused(toy, tmp_path):
    peft_adapter(toy(), tmp_path, use_rslora=True)
    with pytest.raises(AdapterError, match="use_rslora"):
        load_adapter(toy(), tmp_path)


def test_missing_and_truncated_files_are_named(toy, tmp_path):
    adapted = inject(toy(), LoRASettings(rank=8), seed=0)
    names = ("adapter_config.json", "adapter_model.safetensors", "extra.safetensors")
    for name in names:
        save_adapter(adapted, tmp_path)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(AdapterError, match=name.replace(".", r"\.")):
            load_adapter(toy(), tmp_path)
        (tmp_path / name).unlink()
        with pytest.raises(AdapterError, match=name.replace(".", r"\.")):
            load_adapter(toy(), tmp_path)


def test_adapter_of_another_model_is_refused(toy, tmp_path):
    save_adapter(inject(toy(), LoRASettings(rank=8), seed=0), tmp_path)
    with pytest.raises(AdapterError, match=r"norm.num_batches_tracked belongs nowhere"):
        load_adapter(toy(batch_norm=False), tmp_path)
    with pytest.raises(AdapterError, match="matches no convolution or linear layer"):
        load_adapter(FoundationModel.build("segresnet", "tiny", patch=(8, 8, 8)), tmp_path)


def test_tensor_that_is_missing_superfluous_or_misshapen_is_named(toy, tmp_path):
    save_adapter(inject(toy(), LoRASettings(rank=8), seed=0), tmp_path)
    extra = load_file(tmp_path / "extra.safetensors")
    for change, message in (
        ({"norm.weight": None}, "norm.weight is missing"),
        ({"stranger": torch.zeros(1)}, "stranger belongs nowhere"),
        ({"norm.weight": torch.zeros(9)}, r"norm.weight is \(9,\), not \(8,\)"),
        ({"up.lora_a": torch.zeros(8, 4, 3, 3, 3)}, r"up.lora_a is \(8, 4, 3, 3, 3\), not \(8, 8, 3, 3, 3\)"),
    ):
        changed = {name: value for name, value in {**extra, **change}.items() if value is not None}
        save_file(changed, tmp_path / "extra.safetensors")
        with pytest.raises(AdapterError, match=message):
            load_adapter(toy(), tmp_path)


def test_folder_without_an_adapter_is_refused(toy, tmp_path):
    save_adapter(inject(toy(), LoRASettings(rank=8), seed=0), tmp_path)
    save_file({}, tmp_path / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="holds no adapter"):
        load_adapter(toy(), tmp_path)
