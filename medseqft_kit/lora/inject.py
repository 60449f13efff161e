"""Put LoRA on a foundation model's backbone: a new model that shares the frozen weights with the one it is given."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from medseqft_kit.errors import AdapterError
from medseqft_kit.lora.layers import ADAPTERS, LoRALayer, shared
from medseqft_kit.lora.orthogonal import without
from medseqft_kit.lora.spectrum import a_of_rows, difference, factors, groups_of, rows_of_a
from medseqft_kit.lora.targets import targeted
from medseqft_kit.models.foundation import FoundationModel
from medseqft_kit.randomness import torch_generator

NORMS = (nn.GroupNorm, nn.LayerNorm, _BatchNorm, _InstanceNorm)


@dataclass(frozen=True)
class LoRASettings:
    """What an adapter looks like.

    Parameters
    ----------
    rank
        r of every adapted layer that `ranks` does not name.
    alpha
        The adapter's part is scaled by alpha / r; None means alpha = r, layer by layer.
    targets
        ``"all"`` convolution and linear layers of the backbone, or patterns of module names in it: a full name, an
        ending of one at a dot (as in PEFT), or a regular expression for the whole name. Each must match.
    train_norms
        Whether the affine parameters of norm layers are trained with the adapter.
    train_a
        Whether A is trained, or B alone.
    ranks, alphas
        r and alpha of single layers, by their full names in the backbone; each must be an adapted layer.

    Raises
    ------
    AdapterError
        If a value makes no adapter.
    """

    rank: int = 16
    alpha: int | float | None = None
    targets: str | tuple[str, ...] = "all"
    train_norms: bool = True
    train_a: bool = True
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, int | float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ranks = [self.rank, *self.ranks.values()]
        if min(ranks) < 1:
            raise AdapterError("the rank of an adapter is too small.", found=str(min(ranks)), expected="at least 1")
        alphas = [self.effective_alpha, *self.alphas.values()]
        if min(alphas) <= 0:
            raise AdapterError("alpha of an adapter is too small.", found=str(min(alphas)), expected="more than 0")
        if self.targets != "all" and (isinstance(self.targets, str) or not self.targets):
            raise AdapterError(
                "the targets of an adapter are not a list.",
                found=repr(self.targets),
                expected='"all", or a tuple of at least one module name',
            )

    @property
    def effective_alpha(self) -> float:
        """Alpha of a layer of rank `rank`, with its default filled in."""
        return float(self.rank if self.alpha is None else self.alpha)

    def rank_of(self, name: str) -> int:
        """R of the layer `name`."""
        return self.ranks.get(name, self.rank)

    def alpha_of(self, name: str) -> float:
        """Alpha of the layer `name`."""
        return float(self.alphas.get(name, self.rank_of(name) if self.alpha is None else self.alpha))


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
        memo = _replacements(model, settings, layers)
        self._assemble_(model.spec, {name: copy.deepcopy(part, memo) for name, part in model.named_children()})
        self.training = model.training
        self.settings, self.adapted = settings, tuple(layers)
        for _, norm in norms(self.backbone) if settings.train_norms else ():
            if isinstance(norm, nn.GroupNorm):
                norm.register_forward_pre_hook(_with_gradient)

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
        for name, norm in norms(self.backbone):
            own = [*norm.named_buffers(), *(norm.named_parameters() if self.settings.train_norms else [])]
            state |= {f"{name}.{key}": value for key, value in own}
        return state

    def trainable_count(self) -> int:
        """Number of parameters that require a gradient."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)


def inject(
    model: FoundationModel,
    settings: LoRASettings,
    seed: int,
    towards: FoundationModel | None = None,
    spanned: Mapping[str, Tensor] = MappingProxyType({}),
) -> AdaptedModel:
    """A new model with LoRA on the backbone of `model`, which stays as it is, bit for bit.

    A starts from Kaiming's uniform draw, from `seed` and the layer's name alone; B starts at zero, so the new model
    computes what `model` does. SSL head and task heads are shared and frozen.

    Parameters
    ----------
    model
        What the adapters go on; carries none.
    settings
        What they look like.
    seed
        Of A.
    towards
        A model of the same architecture. The adapters start as the best approximation of its weights that their ranks
        allow, in place of zero, and trained norms as copies of its norms, running statistics included: the new model
        starts near `towards`. Rows of A for which there is no difference to take start as usual. Biases stay.
    spanned
        Layer to orthonormal rows for each group (:mod:`medseqft_kit.lora.orthogonal`) that A is kept orthogonal to.

    Raises
    ------
    AdapterError
        If a target matches nothing (the nearest names are listed), `settings.ranks` names a layer that is not adapted,
        a layer's groups do not divide its rank, `towards` is of another architecture, the model is an adapted one
        already, or not one layer has a direction left that `spanned` does not span.
    """
    if isinstance(model, AdaptedModel):
        raise AdapterError("the model carries adapters already.", next_step="merge them before new ones are put on")
    found = targeted(model.backbone, settings.targets)
    _refuse_strangers(settings, found)
    layers: dict[str, LoRALayer] = {}
    for name, frozen in found.items():
        rank = settings.rank_of(name)
        _refuse_uneven(name, groups_of(frozen), rank)
        generator = torch_generator(seed, "lora", name)
        layers[name] = ADAPTERS[type(frozen)](frozen, rank, settings.alpha_of(name), generator)
        if name in spanned:
            _keep_off_(layers[name], spanned[name])
        if towards is not None:
            wanted = difference(model, towards, name)
            _move_(layers[name], without(wanted, spanned[name]) if name in spanned else wanted)
        layers[name].lora_a.requires_grad_(settings.train_a)
    if not any(layer.lora_a.any() for layer in layers.values()):
        raise AdapterError(
            "earlier adapters span every direction of every adapted layer: an orthogonal one has nowhere to go.",
            found=f"{len(layers)} layers without a free direction",
            expected="fewer directions taken by each task",
            next_step="lower `lora.rank`, add layers to `lora.targets`, or turn `lora.orthogonal` off",
        )
    adapted = AdaptedModel(model, settings, layers)
    if towards is not None and settings.train_norms:
        _copy_norms_(adapted.backbone, towards.backbone)
    return adapted


def _keep_off_(layer: LoRALayer, basis: Tensor) -> None:
    """Take out of A what lies in the rows of `basis`."""
    with torch.no_grad():
        layer.lora_a.copy_(a_of_rows(layer, without(rows_of_a(layer, layer.lora_a), basis), layer.lora_a))


def _move_(layer: LoRALayer, wanted: Float[Tensor, "groups outputs inputs"]) -> None:
    """Set A and B to the best factors of `wanted`; a row without one stays as it is, since 0 · 0 would never move."""
    rows = rows_of_a(layer, layer.lora_a).clone()
    a, b = factors(wanted, rows.shape[1], layer.scaling)
    columns = b.new_zeros(len(rows), b.shape[1], rows.shape[1])
    columns[:, :, : b.shape[2]] = b
    rows[:, : a.shape[1]] = torch.where(b.any(dim=1).unsqueeze(2), a, rows[:, : a.shape[1]])
    with torch.no_grad():
        layer.lora_a.copy_(a_of_rows(layer, rows, layer.lora_a))
        layer.lora_b.copy_(columns.reshape(layer.lora_b.shape))


def _copy_norms_(backbone: nn.Module, source: nn.Module) -> None:
    wanted = dict(norms(source))
    for name, norm in norms(backbone):
        norm.load_state_dict(wanted[name].state_dict())


def _refuse_strangers(settings: LoRASettings, found: Mapping[str, nn.Module]) -> None:
    strangers = sorted((settings.ranks.keys() | settings.alphas.keys()) - found.keys())
    if strangers:
        raise AdapterError(
            "ranks are given for layers that are not adapted.",
            found=", ".join(strangers),
            expected=f"some of {', '.join(found)}",
        )


def _refuse_uneven(name: str, groups: int, rank: int) -> None:
    if rank % groups:
        raise AdapterError(
            f"the convolution {name} cannot be adapted at this rank.",
            found=f"rank {rank}, {groups} groups",
            expected=f"a rank that is a multiple of {groups}",
            next_step="change `lora.rank`, or leave the layer out of `lora.targets`",
        )


def norms(backbone: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The norm layers of a backbone by name."""
    return ((name, module) for name, module in backbone.named_modules() if isinstance(module, NORMS))


def _with_gradient(norm: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """Ask for the gradient of a group norm's input, wanted or not.

    Without it the backward pass of PyTorch 2.13 on a CPU, channels last, writes where it must not and the process dies:
    a norm that is trained in front of the first adapted layer has such an input.
    """
    (image,) = inputs
    wanted = image.requires_grad or not torch.is_grad_enabled() or image.device.type != "cpu"
    return (image if wanted else image.detach().requires_grad_(),)


def _replacements(model: FoundationModel, settings: LoRASettings, layers: dict[str, LoRALayer]) -> dict[int, Any]:
    """A memo for deepcopy: adapters for their layers, frozen parameters on shared memory, own ones for norms.

    Buffers and modules that are not in it are copied, so no statistic that a forward pass updates is shared.
    """
    memo: dict[int, Any] = {id(parameter): shared(parameter) for parameter in model.parameters()}
    for _, norm in norms(model.backbone) if settings.train_norms else ():
        memo |= {id(each): nn.Parameter(each.detach().clone()) for each in norm.parameters()}
    modules = dict(model.backbone.named_modules())
    return memo | {id(modules[name]): layer for name, layer in layers.items()}
