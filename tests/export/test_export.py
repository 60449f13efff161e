"""What is exported computes what the run's model does, in other people's hands: MONAI, PEFT, onnxruntime, PyTorch."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from peft import PeftModel

from medseqft_kit.cli.commands import results
from medseqft_kit.errors import AdapterError, ConfigError, ModelError
from medseqft_kit.evaluation.inference import predict_logits
from medseqft_kit.evaluation.predict import Predictor
from medseqft_kit.evaluation.segment import segment
from medseqft_kit.export import checking
from medseqft_kit.export.adapter import write_adapter
from medseqft_kit.export.bundle import write_bundle
from medseqft_kit.export.bundle_check import scripts_of
from medseqft_kit.export.write import export
from medseqft_kit.lora.inject import LoRASettings, inject, norms
from medseqft_kit.lora.peft_format import save_adapter
from medseqft_kit.models.foundation import FoundationModel, ModelSpec, frozen_copy, load_foundation, save_foundation
from medseqft_kit.models.precision import Precision
from medseqft_kit.tasks.types import Case, Task
from medseqft_kit.volumes.preprocess import Preprocessing, preprocess

FLOAT32 = 1e-5
"""Relative: the same products in another order; a network that is another one is 0.1 and more away."""


def relative(got, want):
    got, want = (np.asarray(each, np.float64) for each in (got, want))
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def patches(batch, side=16, channels=1, seed=5):
    return torch.randn(batch, channels, side, side, side, generator=torch.Generator().manual_seed(seed))


def logits(run, task, which, image):
    model = load_foundation(run.stage_of(task)[0] / f"{which}.safetensors").eval()
    with torch.no_grad():
        return model(image, task)


@pytest.mark.parametrize(("task", "classes", "which"), [("liver", 3, "adapted"), ("chest", 2, "merged")])
def test_the_state_dict_is_a_monai_networks_and_the_program_runs_alone(run, plain, tmp_path, task, classes, which):
    differences = export(run.path, task, "torch", tmp_path / "out", which)
    assert set(differences) == {"network.pt", "program.pt2"}
    assert max(differences.values()) < FLOAT32
    image, network = patches(2), plain(classes)
    want = logits(run, task, which, image)
    assert relative(network(image).detach(), want) > 0.1
    network.load_state_dict(torch.load(tmp_path / "out" / "network.pt", weights_only=True))
    assert relative(network(image).detach(), want) < FLOAT32
    program = torch.export.load(tmp_path / "out" / "program.pt2").module()
    assert relative(program(image).detach(), want) < FLOAT32
    assert program(patches(5)).shape == (5, classes, 16, 16, 16)
    facts = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (facts["task"], facts["model"], facts["patch"]) == (task, which, [16, 16, 16])
    assert facts["preprocessing"]["spacing_mm"] == [4.0, 5.0, 4.5]
    assert facts["network"]["class"] == "monai.networks.nets.SegResNet"
    assert facts["network"]["arguments"]["out_channels"] == classes


def test_the_onnx_model_runs_in_onnxruntime_on_any_batch_and_says_what_it_is(run, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    (difference,) = export(run.path, "chest", "onnx", tmp_path / "out", "adapted").values()
    assert difference < FLOAT32
    session = onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx")
    for batch in (1, 4):
        image = patches(batch)
        (got,) = session.run(None, {"image": image.numpy()})
        assert relative(got, logits(run, "chest", "adapted", image)) < FLOAT32
    told = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
    assert (told["task"], told["model"], told["channels"]) == ("chest", "adapted", ["CT"])
    assert list(told["classes"].values()) == [0, 1]
    assert told["preprocessing"]["intensities"] == [{"clip": [-175.0, 250.0], "scale_to": [-1, 1]}]


def test_the_adapter_on_the_network_that_the_stage_started_from_is_m_t_in_peft(run, plain, tmp_path):
    export(run.path, "chest", "peft", tmp_path / "out")
    network, image = plain(2), patches(2)
    start = torch.load(tmp_path / "out" / "network.pt", weights_only=True)
    network.load_state_dict(start)
    before = load_foundation(run.stage_of("liver")[0] / "merged.safetensors").backbone.net.state_dict()
    assert len(before) > 30
    assert all(torch.equal(start[name], value) for name, value in before.items())
    alone, want = network(image).detach(), logits(run, "chest", "merged", image)
    peft = PeftModel.from_pretrained(network, str(tmp_path / "out")).eval()
    assert relative(alone, want) > 1e-3
    assert relative(peft(image).detach(), want) < FLOAT32
    pointwise = [name for name, module in plain(2).named_modules() if getattr(module, "kernel_size", 0) == (1, 1, 1)]
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert "convInit.conv" in config["target_modules"]
    assert "conv_final.2.conv" in config["modules_to_save"]
    # PEFT runs an adapter on a 1×1×1 convolution and cannot merge it, so that nothing here may rest on merging
    assert {*pointwise} - {"conv_final.2.conv"} <= {*config["target_modules"]}
    assert len(pointwise) > 1
    with pytest.raises(RuntimeError, match="size of tensor"):
        peft.merge_and_unload()


def test_the_adapter_of_a_first_stage_goes_on_m_0_and_is_never_m_t_s_adapted_model(run, tmp_path):
    export(run.path, "liver", "peft", tmp_path / "out", "merged")
    start = torch.load(tmp_path / "out" / "network.pt", weights_only=True)
    foundation = load_foundation(run.path / "foundation.safetensors").backbone.net.state_dict()
    assert all(torch.equal(start[name], value) for name, value in foundation.items())
    with pytest.raises(ConfigError, match="M_t, not"):
        export(run.path, "liver", "peft", tmp_path / "other", "adapted")


def test_monais_own_runner_segments_a_file_as_the_kit_does(run, image, tmp_path):
    pytest.importorskip("ignite")
    bundle = tmp_path / "chest"
    differences = export(run.path, "chest", "bundle", bundle, "adapted")
    assert differences["models/model.pt"] < FLOAT32
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / image.name).write_bytes(image.read_bytes())
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", "configs/inference.json"]
    command += ["--dataset_dir", str(tmp_path / "images"), "--output_dir", str(tmp_path / "found")]
    ran = subprocess.run(command, cwd=bundle, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr[-3000:]
    (written,) = (tmp_path / "found").iterdir()
    got, original = nib.load(written), nib.load(image)
    assert got.shape == original.shape
    np.testing.assert_allclose(got.affine, original.affine, atol=1e-4)
    predictor = run.model("chest", "adapted")
    volume = preprocess(predictor.task, Case("x", (image,)), predictor.preprocessing)
    assert volume.grid.shape != volume.original.shape
    fp32 = Precision("cpu", "fp32")
    want = segment([lambda it: predict_logits(predictor.model, "chest", it, fp32)], volume, predictor.task)
    values = predictor.task.to_values(want.classes)
    assert len(np.unique(values)) > 1
    assert (np.asarray(got.dataobj) != values).mean() <= 1e-4


def test_a_bundle_says_all_that_monais_schema_and_workflow_ask_for(run, tmp_path):
    pytest.importorskip("ignite")
    from monai.bundle import ConfigWorkflow, verify_net_in_out

    bundle = tmp_path / "liver"
    export(run.path, "liver", "bundle", bundle)
    meta, config = bundle / "configs" / "metadata.json", bundle / "configs" / "inference.json"
    told = json.loads(meta.read_text())
    # what the schema of July 2024 requires, and of which kind
    texts = ["schema", "version", "monai_version", "pytorch_version", "numpy_version"]
    texts += ["task", "description", "authors", "copyright"]
    assert all(isinstance(told[name], str) and told[name] for name in texts)
    assert all(isinstance(told[name], dict) for name in ("changelog", "required_packages_version", "eval_metrics"))
    assert told["version"] in told["changelog"]
    tensors = [told["network_data_format"]["inputs"]["image"], told["network_data_format"]["outputs"]["pred"]]
    for tensor, channels in zip(tensors, (1, 3), strict=True):
        assert all(isinstance(tensor[name], str) for name in ("type", "format", "dtype"))
        assert tensor["num_channels"] == channels == len(tensor["channel_def"])
        assert tensor["spatial_shape"] == [16, 16, 16]
        assert all(isinstance(bound, int | float) for bound in tensor["value_range"])
    verify_net_in_out(net_id="network_def", meta_file=str(meta), config_file=str(config), device="cpu")
    places = {"bundle_root": str(bundle), "dataset_dir": str(tmp_path)}
    workflow = ConfigWorkflow(config_file=str(config), meta_file=str(meta), workflow_type="infer", **places)
    with scripts_of(bundle):
        workflow.initialize()
        assert not workflow.check_properties()
    assert not any(name.startswith("scripts.") for name in sys.modules)
    for file in ("LICENSE", "docs/README.md", "models/model.pt", "scripts/air.py"):
        assert (bundle / file).stat().st_size > 100
    assert "jaxtyping import" not in (bundle / "scripts/air.py").read_text()


def by_hand(channels, spec=None, structures=None, spacing=(1.0, 1.5, 1.0), scale=(-1.0, 1.0)):
    """A predictor with random weights that nobody trained."""
    spec = spec or ModelSpec(size="tiny", channels=len(channels), patch=(16, 16, 16))
    model = FoundationModel.of_spec(spec, seed=3).eval()
    structures = structures or {"near": (7,), "far": (300,)}
    model.add_head_("organs", len(structures) + 1, seed=2)
    declared = frozenset({0, *(value for group in structures.values() for value in group)})
    task = Task("organs", Path("nowhere"), "msd", channels, structures, declared, ())
    return Predictor(model, task, Preprocessing(spacing, (-100.0, 300.0), scale))


@pytest.mark.parametrize("scale", [(-1.0, 1.0), (0.0, 1.0)], ids=["default", "0 to 1"])
@pytest.mark.parametrize("channels", [("MR", "CT"), ("other",), ("PET",)], ids=lambda channels: "-".join(channels))
def test_a_bundle_prepares_every_modality_as_the_kit_does(channels, scale, tmp_path):
    pytest.importorskip("ignite")
    spacing = None if channels == ("PET",) else (1.0, 1.5, 1.0)
    share = write_bundle(by_hand(channels, spacing=spacing, scale=scale), "adapted", tmp_path)["differing voxels"]
    assert share <= 1e-4
    assert (tmp_path / "scripts" / "intensity.py").exists() == (channels != ("PET",))


@pytest.fixture
def one_patch(monkeypatch):
    """SwinUNETR's smallest patch is 64³: one is enough."""
    monkeypatch.setattr(checking, "BATCHES", (1,))


def merged_by_hand(start, adapted):
    """Weights alone: running adapters on 64³ takes minutes where kernels are interpreted, as they are in tests."""
    merged = frozen_copy(start)
    with torch.no_grad():
        modules = dict(merged.backbone.named_modules())
        changed = {name: layer.merged() for name, layer in adapted.layers().items()} | dict(norms(adapted.backbone))
        for name, module in changed.items():
            modules[name].load_state_dict(module.state_dict())
    return merged


def test_an_adapter_of_swinunetr_with_the_old_patch_merging_holds_its_transposed_convolutions(one_patch, tmp_path):
    swin = by_hand(("CT",), ModelSpec("swinunetr", "tiny", 1, (64, 64, 64), network={"downsample": "legacy"}))
    start, folder = swin.model, tmp_path / "stage"
    adapted = inject(start, LoRASettings(2), seed=0)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    save_adapter(adapted, folder)
    save_foundation(start, tmp_path / "start.safetensors")
    merged = replace(swin, model=merged_by_hand(start, adapted))
    (tmp_path / "out").mkdir()
    (difference,) = write_adapter(
        merged, "merged", tmp_path / "out", adapter=folder, base=tmp_path / "start.safetensors"
    ).values()
    assert difference < FLOAT32
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert {"out.conv.conv", "decoder1.transp_conv.conv"} <= set(config["modules_to_save"])
    first = torch.load(tmp_path / "out" / "network.pt", weights_only=True)["encoder1.layer.conv1.conv.weight"]
    assert relative(first, merged.model.backbone.net.encoder1.layer.conv1.conv.weight) > 0.01


def test_what_does_not_compute_the_same_is_an_error_and_leaves_nothing_behind(run, tmp_path, monkeypatch):
    import medseqft_kit.export.torch_format as written

    honest = written.plain_state

    def damaged(model, task):
        return {name: value * 1.001 if "up_layers" in name else value for name, value in honest(model, task).items()}

    monkeypatch.setattr(written, "plain_state", damaged)
    with pytest.raises(ModelError, match="does not compute what the model does"):
        export(run.path, "liver", "torch", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_is_said_before_anything_is_written(run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    refused = [
        (ConfigError, "holds something", ("liver", "torch", tmp_path / "full")),
        (ConfigError, "no such format", ("liver", "keras", tmp_path / "out")),
        (ConfigError, "no such model", ("liver", "torch", tmp_path / "out", "agreement")),
    ]
    for error, words, arguments in refused:
        with pytest.raises(error, match=words):
            export(run.path, *arguments)
    predictor = by_hand(("CT",))
    with pytest.raises(AdapterError, match="no adapter"):
        write_adapter(predictor, "merged", tmp_path, adapter=tmp_path / "adapter", base=tmp_path / "base")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    assert (tmp_path / "full" / "file").read_text() == "mine"


def test_the_command_says_how_far_the_copy_is_from_the_model(run, tmp_path, capsys):
    results.export(run.path, "liver", tmp_path / "out", "torch", None)
    shown = capsys.readouterr().out.splitlines()
    assert shown[-1] == str(tmp_path / "out")
    assert [line.split(":")[0] for line in shown[:-1]] == ["network.pt", "program.pt2"]
