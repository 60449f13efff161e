"""Put LoRA on a foundation model's backbone: a new model that shares the frozen weights with the one it is given."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from medseqft_kit.errors import AdapterError
from medseqft_kit.lora.layers import ADAPTERS, LoRALayer, shared
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.randomness import torch_generator

NORMS = (nn.GroupNorm, nn.LayerNorm, _BatchNorm, _InstanceNorm)


@dataclass(frozen=True)
class LoRASettings:
    """What an adapter looks like.

    Parameters
    ----------
    rank
        r of every adapted layer.
    alpha
        The adapter's part is scaled by alpha / rank; None means alpha = rank.
    targets
        ``"all"`` convolution and linear layers of the backbone, or patterns of module names in it: a full name, an
        ending of one at a dot (as in PEFT), or a regular expression for the whole name. Each must match.
    train_norms
        Whether the affine parameters of norm layers are trained with the adapter.

    Raises
    ------
    AdapterError
        If a value makes no adapter.
    """

    rank: int = 16
    alpha: int | float | None = None
    targets: str | tuple[str, ...] = "all"
    train_norms: bool = True

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise AdapterError("the rank of an adapter is too small.", found=str(self.rank), expected="at least 1")
        if self.effective_alpha <= 0:
            raise AdapterError("alpha of an adapter is too small.", found=str(self.alpha), expected="more than 0")
        if self.targets != "all" and (isinstance(self.targets, str) or not self.targets):
            raise AdapterError(
                "the targets of an adapter are not a list.",
                found=repr(self.targets),
                expected='"all", or a tuple of at least one module name',
            )

    @property
    def effective_alpha(self) -> float:
        """Alpha with its default filled in."""
        return float(self.rank if self.alpha is None else self.alpha)


class AdaptedModel(FoundationModel):
    """A foundation model whose backbone carries adapters; made by :func:`inject`.

    It encodes and predicts like any foundation model. What is trained, and nothing else, requires a gradient. The
    frozen weights are the memory of the model it was made from, so that model must not be trained meanwhile.

    Attributes
    ----------
    settings
        The adapters' settings.
    adapted
        Names of the adapted layers in the backbone.
    """

    settings: LoRASettings
    adapted: tuple[str, ...]

    def __init__(self, model: FoundationModel, settings: LoRASettings, layers: dict[str, LoRALayer]) -> None:
        nn.Module.__init__(self)  # the parts come from `model`; building a backbone would be for nothing
        self.spec, self.training = model.spec, model.training
        self.settings, self.adapted = settings, tuple(layers)
        memo = _replacements(model, settings, layers)
        for name, part in model.named_children():
            self.add_module(name, copy.deepcopy(part, memo))

    def layers(self) -> dict[str, LoRALayer]:
        """The adapted layers by their names in the backbone."""
        modules: dict[str, Any] = dict(self.backbone.named_modules())
        return {name: modules[name] for name in self.adapted}

    def adapter_state(self) -> dict[str, Tensor]:
        """All that distinguishes this model from the one it was made from, by name in the backbone.

        A and B of each layer, the norms' affine parameters if they are trained, and the norms' running statistics.
        """
        state: dict[str, Tensor] = {}
        for name, layer in self.layers().items():
            state |= {f"{name}.lora_a": layer.lora_a, f"{name}.lora_b": layer.lora_b}
        for name, norm in _norms(self.backbone):
            own = [*norm.named_buffers(), *(norm.named_parameters() if self.settings.train_norms else [])]
            state |= {f"{name}.{key}": value for key, value in own}
        return state

    def trainable_count(self) -> int:
        """Number of parameters that require a gradient."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def inject(model: FoundationModel, settings: LoRASettings, seed: int) -> AdaptedModel:
    """A new model with LoRA on the backbone of `model`, which stays as it is, bit for bit.

    A starts from Kaiming's uniform draw, from `seed` and the layer's name alone; B starts at zero, so the new model
    computes what `model` does. SSL head and task heads are shared and frozen.

    Raises
    ------
    AdapterError
        If a target matches nothing (the nearest names are listed), a layer's groups do not divide the rank, or the
        model is an adapted one already.
    """
    if isinstance(model, AdaptedModel):
        raise AdapterError("the model carries adapters already.", next_step="merge them before new ones are put on")
    found = {name: module for name, module in model.backbone.named_modules() if type(module) in ADAPTERS}
    layers: dict[str, LoRALayer] = {}
    for name in match_targets(tuple(found), settings.targets):
        frozen = found[name]
        _refuse_uneven(name, getattr(frozen, "groups", 1), settings.rank)
        generator = torch_generator(seed, "lora", name)
        layers[name] = ADAPTERS[type(frozen)](frozen, settings.rank, settings.effective_alpha, generator)
    return AdaptedModel(model, settings, layers)


def match_targets(names: tuple[str, ...], targets: str | tuple[str, ...]) -> tuple[str, ...]:
    """Those of `names` that a target matches, in the order of `names`.

    >>> match_targets(("net.qkv", "net.proj"), ("qkv",))
    ('net.qkv',)
    """
    matched = {"all": set(names)} if targets == "all" else {target: _matches(names, target) for target in targets}
    unmatched = [target for target, hits in matched.items() if not hits]
    if unmatched:
        raise AdapterError(
            "a LoRA target matches no convolution or linear layer of the backbone.",
            found=", ".join(map(repr, unmatched)),
            expected="; ".join(f"{target!r}: one of {', '.join(_nearest(names, target))}" for target in unmatched),
            next_step="correct `lora.targets`; 'all' takes every such layer",
        )
    chosen = set().union(*matched.values())
    return tuple(name for name in names if name in chosen)


def _matches(names: tuple[str, ...], target: str) -> set[str]:
    if target in names:
        return {target}
    try:
        pattern = re.compile(target)
    except re.error as problem:
        raise AdapterError(
            f"the LoRA target {target!r} is no regular expression.", found=str(problem), expected="a name or a pattern"
        ) from problem
    return {name for name in names if name.endswith(f".{target}") or pattern.fullmatch(name)}


def _nearest(names: tuple[str, ...], target: str) -> list[str]:
    """Full names and endings that look like `target`; the first few names if none does."""
    length = target.count(".") + 1
    endings = {".".join(name.split(".")[-parts:]) for name in names for parts in (length, length + 1)}
    containing = [name for name in names if target in name]
    close = get_close_matches(target, sorted(endings | set(names)), n=3, cutoff=0.5)
    return list(dict.fromkeys([*close, *containing]))[:4] or [*names[:4]] or ["(the backbone has no such layer)"]


def _refuse_uneven(name: str, groups: int, rank: int) -> None:
    if rank % groups:
        raise AdapterError(
            f"the convolution {name} cannot be adapted at this rank.",
            found=f"rank {rank}, {groups} groups",
            expected=f"a rank that is a multiple of {groups}",
            next_step="change `lora.rank`, or leave the layer out of `lora.targets`",
        )


def _norms(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    return ((name, module) for name, module in backbone.named_modules() if isinstance(module, NORMS))


def _replacements(model: FoundationModel, settings: LoRASettings, layers: dict[str, LoRALayer]) -> dict[int, Any]:
    """A memo for deepcopy: adapters for their layers, frozen parameters on shared memory, own ones for norms.

    Buffers and modules that are not in it are copied, so no statistic that a forward pass updates is shared.
    """
    memo: dict[int, Any] = {id(parameter): shared(parameter) for parameter in model.parameters()}
    for _, norm in _norms(model.backbone) if settings.train_norms else ():
        memo |= {id(each): nn.Parameter(each.detach().clone()) for each in norm.parameters()}
    modules = dict(model.backbone.named_modules())
    return memo | {id(modules[name]): layer for name, layer in layers.items()}
