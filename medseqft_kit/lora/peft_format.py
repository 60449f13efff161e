"""Adapters on disk, in PEFT's format where PEFT has one.

A folder holds

- ``adapter_config.json`` and ``adapter_model.safetensors``, which ``PeftModel.from_pretrained(model.backbone, folder)``
  reads (it puts its layers into that very backbone: give it a copy);
- ``extra.safetensors``, which PEFT ignores: adapters of layers that PEFT cannot hold (transposed convolutions; dilated
  ones and those that do not pad with zeros, because PEFT's A forgets both), the norms' affine parameters and running
  statistics.

PEFT alone gives the adapted model only if ``extra.safetensors`` is empty; :func:`load_adapter` always does. To load
both by hand, let PEFT read the folder and copy the norms' tensors, whose names are paths in the backbone, into it.

A grouped convolution's A is written dense with zeros outside its own group, as PEFT's layer expects it, and read back
grouped. A dense A that is not of this form stays dense: it runs, and merging it is refused.

Ranks and alphas of single layers are PEFT's ``rank_pattern`` and ``alpha_pattern``, with a pattern for one full name
each; those of layers that PEFT cannot hold are among them, since PEFT skips a pattern that fits none of its layers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from medseqft_kit.errors import AdapterError
from medseqft_kit.lora.grouped import dense_a, fits_peft, grouped_a
from medseqft_kit.lora.inject import AdaptedModel, LoRASettings, inject
from medseqft_kit.lora.layers import LoRAConv3d
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.runs.atomic import write_json, write_tensors

CONFIG, WEIGHTS, EXTRA = "adapter_config.json", "adapter_model.safetensors", "extra.safetensors"
_PREFIX = "base_model.model."
_SUFFIXES = {"lora_a": ".lora_A.weight", "lora_b": ".lora_B.weight"}
_PLAIN = {
    "bias": "none",
    "fan_in_fan_out": False,
    "lora_bias": False,
    "modules_to_save": None,
    "use_dora": False,
    "use_rslora": False,
}
"""PEFT's options that we write at these values and refuse at others."""


def save_adapter(adapted: AdaptedModel, folder: Path) -> None:
    """Write the adapter of `adapted` into `folder`; equal adapters give equal bytes, and each file appears whole."""
    layers = adapted.layers()
    peft = {name: layer for name, layer in layers.items() if fits_peft(layer)}
    weights = {_PREFIX + name + _SUFFIXES["lora_a"]: dense_a(layer) for name, layer in peft.items()}
    weights |= {_PREFIX + name + _SUFFIXES["lora_b"]: layer.lora_b for name, layer in peft.items()}
    held = {f"{name}.{part}" for name in peft for part in _SUFFIXES}
    extra = {name: value for name, value in adapted.adapter_state().items() if name not in held}
    beside = {
        "layers": [name for name in layers if name not in peft],
        "train_norms": adapted.settings.train_norms,
    }
    write_tensors(folder / EXTRA, extra)
    write_tensors(folder / WEIGHTS, weights, {"medseqft": json.dumps(beside, sort_keys=True)})
    config = _peft_config(adapted.settings, sorted(peft), sorted(layers))
    write_json(folder / CONFIG, dict(sorted(config.items())))


def load_adapter(model: FoundationModel, folder: str | Path) -> AdaptedModel:
    """The adapter in `folder`, on the backbone of `model`, which stays as it is.

    Reads what :func:`save_adapter` wrote, and LoRA adapters that PEFT wrote for the backbone.

    Raises
    ------
    AdapterError
        If a file is missing or damaged, uses an option of PEFT that we do not have, or does not fit the model.
    """
    folder = Path(folder)
    config = _read_config(folder / CONFIG)
    weights, beside = _read_tensors(folder / WEIGHTS)
    state, names = _from_peft(weights)
    if beside is not None:
        state |= _read_tensors(folder / EXTRA)[0]
        names += beside["layers"]
    norms = beside is not None and beside["train_norms"]
    if not names:
        raise AdapterError(f"the folder {folder} holds no adapter.", expected="at least one adapted layer")
    ranks, alphas = (_by_layer(config.get(f"{each}_pattern") or {}, names) for each in ("rank", "alpha"))
    targets = tuple(names)
    settings = LoRASettings(config["r"], config["lora_alpha"], targets, norms, ranks=ranks, alphas=alphas)
    adapted = inject(model, settings, seed=0)
    _fill_(adapted, state, {name for name in adapted.adapter_state() if beside is not None or ".lora_" in name})
    return adapted


def _peft_config(settings: LoRASettings, targets: list[str], layers: list[str]) -> dict[str, Any]:
    alpha = _whole(settings.effective_alpha)
    ranks = {name: settings.rank_of(name) for name in layers}
    alphas = {name: _whole(settings.alpha_of(name)) for name in layers}
    return {
        **_PLAIN,
        "alpha_pattern": {_pattern(name): each for name, each in alphas.items() if each != alpha},
        "base_model_name_or_path": None,
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": settings.rank,
        "rank_pattern": {_pattern(name): each for name, each in ranks.items() if each != settings.rank},
        "target_modules": targets,
        "task_type": None,
    }


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value


def _pattern(name: str) -> str:
    """A pattern of PEFT that fits `name` alone: it would take a bare name for an ending of others too."""
    return f"^{re.escape(name)}"


def _by_layer(patterns: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """What PEFT's patterns say of each layer: the first that fits a name or its ending at a dot counts."""
    fitting = {name: [key for key in patterns if re.match(rf"(.*\.)?({key})$", name)] for name in names}
    return {name: patterns[keys[0]] for name, keys in fitting.items() if keys}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise AdapterError(
            f"the adapter's settings {path} cannot be read.", found=str(problem), expected="PEFT's JSON file"
        ) from problem
    wrong = {key: config[key] for key, value in _PLAIN.items() if (config.get(key) or value) != value}
    if config.get("peft_type") != "LORA" or wrong or not {"r", "lora_alpha"} <= config.keys():
        raise AdapterError(
            f"the adapter {path.parent} is not plain LoRA.",
            found=f"peft_type {config.get('peft_type')}, {wrong or 'r or lora_alpha missing'}",
            expected=f"peft_type LORA with {_PLAIN}",
        )
    return config


def _read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # not a dict
            return tensors, json.loads((file.metadata() or {}).get("medseqft", "null"))
    except (OSError, SafetensorError) as problem:
        raise AdapterError(
            f"the adapter's file {path} cannot be read.", found=str(problem), expected="a whole safetensors file"
        ) from problem


def _from_peft(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors by our names, and the names of the layers they belong to; unknown keys stay and are reported later."""
    state: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = key.removeprefix(_PREFIX)
        for part, suffix in _SUFFIXES.items():
            name = name.removesuffix(suffix) + f".{part}" if name.endswith(suffix) else name
        state[name] = value
    return state, [name.removesuffix(".lora_a") for name in state if name.endswith(".lora_a")]


def _fill_(adapted: AdaptedModel, given: Mapping[str, Tensor], expected: set[str]) -> None:
    """Put the tensors of a file in their places, or say which do not fit; a foreign dense A replaces the grouped A."""
    ready = dict(given)
    for name, layer in adapted.layers().items():
        a = ready.get(f"{name}.lora_a")
        if isinstance(layer, LoRAConv3d) and layer.groups > 1 and a is not None and a.shape[1] == layer.in_channels:
            a = ready[f"{name}.lora_a"] = grouped_a(layer, a)
            layer.lora_a = layer.lora_a if a.shape == layer.lora_a.shape else nn.Parameter(a.to(layer.lora_a))
    own = adapted.adapter_state()
    problems = [f"{name} is missing" for name in sorted(expected - ready.keys())]
    problems += [f"{name} belongs nowhere" for name in sorted(ready.keys() - own.keys())]
    problems += [
        f"{name} is {tuple(ready[name].shape)}, not {tuple(own[name].shape)}"
        for name in sorted(ready.keys() & own.keys())
        if ready[name].shape != own[name].shape
    ]
    if problems:
        raise AdapterError(
            "the adapter does not fit the model.",
            found="; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else ""),
            expected="the tensors of an adapter made for this architecture and size",
        )
    with torch.no_grad():
        for name, value in ready.items():
            own[name].copy_(value)
