"""What the benchmarks of frozen layers with an adapter share: tensors, passes with their gradients, and providers.

`plain(x, weight)` is the frozen layer here, without a bias.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from harness import Provider, compiled, compiled_name
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

Plain = Callable[[Tensor, Tensor], Tensor]
Forward = Callable[[Tensor], Tensor]


class Tensors(NamedTuple):
    """Of one row, shared by all its providers; x, A and B want gradients, and g is the gradient of y."""

    x: Tensor
    weight: Tensor
    a: Tensor
    b: Tensor
    g: Tensor


def drawn(
    shapes: Sequence[tuple[int, ...]],
    fan_in: int,
    plain: Plain,
    dtype: torch.dtype,
    device: torch.device,
    layout: torch.memory_format = torch.contiguous_format,
) -> Tensors:
    """Normal numbers of the given shapes of x, W, A and B, scaled such that y is of the order of 1."""
    draw = torch.Generator(device).manual_seed(0)

    def randn(shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
        numbers = (scale * torch.randn(shape, generator=draw, device=device)).to(dtype)
        return numbers.to(memory_format=layout) if len(shape) == 5 else numbers

    rank = shapes[3][1]
    scales = (1.0, fan_in**-0.5, fan_in**-0.5, rank**-0.5)
    x, weight, a, b = map(randn, shapes, scales)
    g = randn(tuple(plain(x, weight).shape))
    return Tensors(x.requires_grad_(), weight, a.requires_grad_(), b.requires_grad_(), g)


def frozen(plain: Plain, x: Tensor, weight: Tensor, g: Tensor) -> dict[str, Tensor]:
    """The floor: the layer alone, and what it passes back."""
    y = plain(x, weight)
    return {"frozen y": y.detach(), "frozen gx": torch.autograd.grad(y, x, g)[0]}


def adapted(forward: Forward, x: Tensor, parameters: Sequence[Tensor], g: Tensor) -> dict[str, Tensor]:
    """A layer with its adapter, forward and backward."""
    y = forward(x)
    gradients = torch.autograd.grad(y, [x, *parameters], g)
    return {"y": y.detach(), **dict(zip(("gx", "gA", "gB"), gradients, strict=True))}


def providers(
    tensors: Tensors,
    plain: Plain,
    operation: Callable[..., Tensor],
    backends: Iterable[str],
    rival: tuple[str, Forward, Sequence[Tensor]],
    compile_too: bool,
) -> dict[str, Provider]:
    """The frozen layer, the rival (name, layer and its A and B), what `torch.compile` makes of it, and ours."""
    x, weight, a, b, g = tensors
    name, layer, own = rival
    found = {
        "frozen": Provider(partial(frozen, plain, x, weight, g), rival=True),
        name: Provider(partial(adapted, layer, x, own, g), rival=True),
    }
    if compile_too:
        found[compiled_name(name)] = Provider(partial(adapted, compiled(layer), x, own, g), rival=True)

    def ours(backend: str) -> Provider:
        return Provider(
            partial(adapted, lambda x: operation(x, weight, None, a, b, 1.0, backend=backend), x, (a, b), g)
        )

    return found | {backend: ours(backend) for backend in (*backends, "auto")}


def exact(tensors: Tensors, plain: Plain, formula: Callable[..., Tensor]) -> dict[str, Tensor]:
    """All results in float64: of the formula and of the frozen layer, by PyTorch's autograd."""
    x, weight, a, b, g = (each.detach().double() for each in tensors)
    for each in (x, a, b):
        each.requires_grad_()
    results = adapted(lambda x: formula(x, weight, None, a, b, 1.0), x, (a, b), g)
    return results | frozen(plain, x, weight, g)


def peft_layer(plain: nn.Module, tensors: Tensors) -> tuple[Any, list[Tensor]]:
    """PEFT's layer with scaling 1 on copies of the given tensors, in their dtype and memory format; and its A and B."""
    _, weight, a, b, _ = tensors
    config = LoraConfig(r=a.shape[0], lora_alpha=a.shape[0], target_modules=["0"])
    whole = nn.Sequential(plain.to(weight.device, weight.dtype))
    model: Any = get_peft_model(whole, config, autocast_adapter_dtype=False)
    peft = model.base_model.model[0]
    parts: Mapping[nn.Module, Tensor] = {peft.base_layer: weight, peft.lora_A["default"]: a, peft.lora_B["default"]: b}
    for part, tensor in parts.items():
        part.weight = nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad)
    return peft, [peft.lora_A["default"].weight, peft.lora_B["default"].weight]
