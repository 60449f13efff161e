"""`lora_conv3d` as a layer: on its own, and in the place of PEFT's Conv3d layers (see `replace_peft_layers`)."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from medseqft_kernels.checks import require
from medseqft_kernels.lora_conv3d.op import lora_conv3d

Model = TypeVar("Model", bound=nn.Module)
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class LoRAConv3d(nn.Module):
    """base(x) + s·B(A(dropout(x))) in one call of :func:`lora_conv3d`, with the state dict of PEFT's layer.

    Its keys are ``base_layer.weight``, ``base_layer.bias``, ``lora_A.<adapter>.weight`` and
    ``lora_B.<adapter>.weight``. While dropout acts (training, p > 0), A sees another input than the frozen convolution,
    and the formula runs as it stands.

    Parameters
    ----------
    frozen
        The convolution to adapt. It stays as it is; the layer shares the memory of its weight and bias, and freezes
        only its own view of them.
    rank
        r, a multiple of the groups of `frozen`. A is (r, Cin, k³), dense as PEFT's is; B is (Cout, r/groups, 1, 1, 1).
    alpha
        The adapter is scaled by s = alpha / r.
    dropout
        Probability p with which a value of A's input is dropped in training.
    adapter
        The adapter's name in the state dict.
    generator
        Draws A, uniform within ±1/√fan_in as PEFT does; without it PyTorch's global one does. B starts at zero.

    Raises
    ------
    ValueError
        If the rank is not positive, or not a multiple of the groups.
    """

    def __init__(
        self,
        frozen: nn.Conv3d,
        rank: int,
        alpha: int | float,
        dropout: float = 0.0,
        adapter: str = "default",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(rank > 0 and rank % frozen.groups == 0, "rank", rank, f"a positive multiple of {frozen.groups} groups")
        as_frozen: dict[str, Any] = {"device": frozen.weight.device, "dtype": frozen.weight.dtype, "bias": False}
        geometry: dict[str, Any] = {name: getattr(frozen, name) for name in ("stride", "padding", "dilation")}
        a = nn.utils.skip_init(
            nn.Conv3d,
            frozen.in_channels,
            rank,
            frozen.kernel_size,
            padding_mode=frozen.padding_mode,
            **geometry,
            **as_frozen,
        )
        b = nn.utils.skip_init(nn.Conv3d, rank, frozen.out_channels, 1, groups=frozen.groups, **as_frozen)
        nn.init.kaiming_uniform_(a.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(b.weight)
        self.base_layer = _sharing(frozen)
        self.lora_dropout = nn.ModuleDict({adapter: nn.Dropout(dropout) if dropout else nn.Identity()})
        self.lora_A = nn.ModuleDict({adapter: a})
        self.lora_B = nn.ModuleDict({adapter: b})
        self.scaling: dict[str, int | float] = {adapter: alpha / rank}
        self._active = adapter
        self.train(frozen.training)

    @classmethod
    def from_peft(cls, layer: nn.Module, name: str = "the layer") -> LoRAConv3d:
        """The layer that computes what PEFT's Conv3d `layer`, called `name` in messages, computes.

        `layer` stays as it is: the frozen weights are shared with it, adapters are copied, those that are not active
        too.

        Raises
        ------
        ValueError
            If one fused call cannot compute what `layer` does; the message names it and says why.
        """
        reason = obstacle(layer)
        if reason is not None:
            raise ValueError(f"{name}: {reason}; such a layer stays with PEFT")
        given: Any = layer
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.base_layer = _sharing(given.base_layer)
        for part in ("lora_dropout", "lora_A", "lora_B"):
            setattr(made, part, copy.deepcopy(getattr(given, part)))
        made.scaling, made._active = dict(given.scaling), _active_in(given)[0]
        return made.train(layer.training)

    @property
    def active_adapters(self) -> list[str]:
        """The one adapter that computes."""
        return [self._active]

    def forward(self, x: Float[Tensor, "*b cin d h w"]) -> Float[Tensor, "*b cout i j k"]:
        """Output of the adapted convolution."""
        if obstacle(self) is None and not drops(self):
            return fused(self, x)
        adapter = self._active
        thin = self.lora_A[adapter](self.lora_dropout[adapter](x))
        out: Tensor = self.base_layer(x) + self.lora_B[adapter](thin) * self.scaling[adapter]
        return out


def obstacle(layer: Any) -> str | None:
    """Why the state that a LoRA `layer` is in is not one call of `lora_conv3d`, or None if it is.

    `layer` is PEFT's Conv3d or one of ours. Dropout, which comes and goes with the training mode, is another question:
    :func:`drops`.
    """
    base = layer.base_layer
    if type(base) is not nn.Conv3d:
        return f"its base layer is a {type(base).__name__}, not a plain Conv3d"
    if getattr(layer, "disable_adapters", False):
        return "its adapters are disabled"
    if getattr(layer, "merged", False):
        return "an adapter is merged into its weight"
    active = _active_in(layer)
    if len(active) != 1:
        return f"{len(active)} adapters are active on it, not one"
    adapter = active[0]
    variant = getattr(layer, "lora_variant", {}).get(adapter)
    if variant is not None:
        return f"its adapter {adapter!r} is of the variant {type(variant).__name__}"
    a, b = layer.lora_A[adapter], layer.lora_B[adapter]
    if not base.weight.dtype == a.weight.dtype == b.weight.dtype:
        return f"its weight is {base.weight.dtype}, its adapter {a.weight.dtype}"
    if any(_is_hooked(part) for part in (base, a, b, layer.lora_dropout[adapter])):
        return "a hook on one of its parts would not be called"
    return _other_geometry(base, a)


def drops(layer: Any) -> bool:
    """Whether the active adapter's dropout changes its input now."""
    dropout = layer.lora_dropout[_active_in(layer)[0]]
    if type(dropout) is nn.Dropout:
        return dropout.training and dropout.p > 0
    return type(dropout) is not nn.Identity


def fused(layer: Any, x: Tensor) -> Tensor:
    """`layer` applied to `x` in one call, where there is neither an obstacle nor dropout."""
    (adapter,), base = _active_in(layer), layer.base_layer
    a, b, scaling = layer.lora_A[adapter].weight, layer.lora_B[adapter], layer.scaling[adapter]
    bias, padding = base.bias, base.padding
    if b.bias is not None:  # PEFT's `lora_bias`
        bias = scaling * b.bias if bias is None else bias + scaling * b.bias
    if base.padding_mode != "zeros":  # as nn.Conv3d does it
        x, padding = functional.pad(x, base._reversed_padding_repeated_twice, mode=base.padding_mode), 0
    settings = {"stride": base.stride, "padding": padding, "dilation": base.dilation, "groups": base.groups}
    return lora_conv3d(x, base.weight, bias, a, b.weight, scaling, **settings)


@dataclass(frozen=True)
class Replaced(Generic[Model]):
    """What :func:`replace_peft_layers` made, and what it left as it was."""

    model: Model
    """The copy."""
    replaced: tuple[str, ...]
    """Names of the Conv3d LoRA layers that are fused now."""
    left: dict[str, str]
    """Names of those that are still PEFT's own, each with the reason."""


def replace_peft_layers(model: Model) -> Replaced[Model]:
    """A deep copy of a PEFT model in which the Conv3d LoRA layers compute in one fused call.

    The given model is untouched. The copy has the same state dict, outputs and gradients, and PEFT's methods work on it
    (switching, disabling, merging, adding and saving adapters). A layer that gets into a state which one call cannot
    represent, or whose dropout acts, computes with PEFT's own forward pass for as long. Layers that are in such a state
    now, or can never be represented, are left alone and listed in the result. Among them are convolutions that are
    dilated or do not pad with zeros: PEFT gives them an A that ignores both.

    Raises
    ------
    ImportError
        If PEFT is not installed.
    """
    from peft.tuners.lora.layer import Conv3d

    from medseqft_kernels.peft_layer import FusedConv3d

    copied = copy.deepcopy(model)
    replaced, left = [], {}
    for name, layer in copied.named_modules():
        if not isinstance(layer, Conv3d):
            continue
        known = type(layer) in (Conv3d, FusedConv3d)
        reason = obstacle(layer) if known else f"its class {type(layer).__name__} is not PEFT's own Conv3d"
        if known:
            layer.__class__ = Conv3d if reason else FusedConv3d
        if reason:
            left[name] = reason
        else:
            replaced.append(name)
    return Replaced(copied, tuple(replaced), left)


def restore_peft_layers(model: Model) -> Model:
    """A deep copy of `model` in which every fused layer is PEFT's own again; the given model is untouched."""
    from peft.tuners.lora.layer import Conv3d

    from medseqft_kernels.peft_layer import FusedConv3d

    copied = copy.deepcopy(model)
    fused_layers: list[Any] = [layer for layer in copied.modules() if type(layer) is FusedConv3d]
    for layer in fused_layers:
        layer.__class__ = Conv3d
    return copied


def _active_in(layer: Any) -> list[str]:
    """The active adapters that `layer` has: a model's other layers may have others."""
    return [name for name in layer.active_adapters if name in layer.lora_A]


def _sharing(frozen: nn.Conv3d) -> nn.Conv3d:
    """A copy of the module on the same memory, frozen."""
    memo: dict[int, Any] = {id(each): nn.Parameter(each.detach(), requires_grad=False) for each in frozen.parameters()}
    return copy.deepcopy(frozen, memo)


def _is_hooked(module: nn.Module) -> bool:
    """Whether calling `module` does more than its class says: hooks, or a forward put on the instance."""
    return "forward" in vars(module) or any(getattr(module, hooks) for hooks in HOOKS)


def _other_geometry(base: nn.Conv3d, a: nn.Conv3d) -> str | None:
    """Where A, as a convolution of its own, goes over its input otherwise than the frozen one."""
    wide = [axis for axis in range(3) if base.kernel_size[axis] > 1]
    if any(base.dilation[axis] != a.dilation[axis] for axis in wide):
        return f"its dilation is {base.dilation}, that of its A {a.dilation}"
    if base.padding_mode != a.padding_mode and any(base._reversed_padding_repeated_twice):
        return f"it pads with {base.padding_mode}, its A with {a.padding_mode}"
    for setting in ("kernel_size", "stride", "padding"):
        found, expected = getattr(a, setting), getattr(base, setting)
        if found != expected:
            return f"its {setting} is {expected}, that of its A {found}"
    return None
