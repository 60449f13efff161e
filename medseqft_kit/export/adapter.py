"""`peft`: a stage's adapter, complete, for the plain MONAI network.

``network.pt`` is the state dict of the network that the stage started from, M_{t-1}. Beside it lies an adapter that
``PeftModel.from_pretrained(network, folder)`` puts on it: LoRA on the layers that PEFT can hold, and under PEFT's
`modules_to_save` all else that the stage changed: norms, the task's head, and layers that PEFT's LoRA does not know
(transposed convolutions, for one), merged. Nothing is left beside it, as it is in a run's own ``adapter/``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from medseqft_kit.errors import AdapterError
from medseqft_kit.evaluation.predict import Predictor
from medseqft_kit.export.checking import checked
from medseqft_kit.export.facts import facts
from medseqft_kit.export.networks import plain_network, plain_state
from medseqft_kit.export.torch_format import FACTS, STATE
from medseqft_kit.lora.grouped import fits_peft
from medseqft_kit.lora.inject import AdaptedModel, norms
from medseqft_kit.lora.peft_format import CONFIG, WEIGHTS, load_adapter
from medseqft_kit.models.foundation import load_foundation
from medseqft_kit.runs.atomic import read_tensors, write_json, write_tensors

PREFIX = "base_model.model."
"""PEFT's own, before the name of every parameter."""


def write_adapter(predictor: Predictor, which: str, folder: Path, *, adapter: Path, base: Path) -> dict[str, float]:
    """Write ``network.pt``, PEFT's two files and ``model.json``; the difference that was measured.

    Parameters
    ----------
    adapter
        A stage's ``adapter/``.
    base
        Weights of the model that it goes on.

    Raises
    ------
    AdapterError
        If the stage has no adapter.
    """
    if not (adapter / CONFIG).is_file():
        raise AdapterError(
            f"the stage of {predictor.task.name} has no adapter.",
            found=f"no {adapter}",
            expected="a strategy that trains adapters, such as medseqft or parallel_lora",
            next_step="--format torch writes the whole network",
        )
    task, model, start = predictor.task.name, predictor.model, load_foundation(base)
    start.heads[task] = model.heads[task]
    network, saved = plain_network(model, task), _saved_modules(load_adapter(start, adapter), task)
    torch.save(plain_state(start, task), folder / STATE)
    config = json.loads((adapter / CONFIG).read_text(encoding="utf-8"))
    weights = {_plain(key): value for key, value in read_tensors(adapter / WEIGHTS).items()}
    weights |= {f"{PREFIX}{name}.{key}": value for name, state in saved.items() for key, value in state.items()}
    write_json(folder / CONFIG, _for_plain(config, sorted(saved)))
    write_tensors(folder / WEIGHTS, weights)
    write_json(folder / FACTS, facts(predictor, which))
    return {WEIGHTS: checked("adapter", model, task, _loaded(network.build(), folder))}


def _saved_modules(adapted: AdaptedModel, task: str) -> dict[str, dict[str, Tensor]]:
    """State dicts of all modules that the stage changed and PEFT's LoRA does not hold, by name in the plain network."""
    changed = dict(norms(adapted.backbone))
    changed |= {name: layer.merged() for name, layer in adapted.layers().items() if not fits_peft(layer)}
    states = {name.removeprefix("net."): module.state_dict() for name, module in changed.items()}
    states[adapted.backbone.head_key] = adapted.heads[task].state_dict()
    return {name: state for name, state in states.items() if state}


def _for_plain(config: Mapping[str, Any], saved: list[str]) -> dict[str, Any]:
    """The settings of an adapter for our backbone, for the network inside it."""
    patterns = {
        name: {key.replace(r"^net\.", "^", 1): value for key, value in config[name].items()}
        for name in ("rank_pattern", "alpha_pattern")
    }
    targets = [_plain(name) for name in config["target_modules"]]
    return {**config, **patterns, "target_modules": targets, "modules_to_save": saved}


def _plain(name: str) -> str:
    return PREFIX + name.removeprefix(f"{PREFIX}net.") if name.startswith(PREFIX) else name.removeprefix("net.")


def _loaded(network: nn.Module, folder: Path) -> nn.Module:
    """What somebody gets who has the folder, MONAI and PEFT."""
    network.load_state_dict(torch.load(folder / STATE, weights_only=True))
    adapted: nn.Module = PeftModel.from_pretrained(network, str(folder)).eval()
    return adapted
