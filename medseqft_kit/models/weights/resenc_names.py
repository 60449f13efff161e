"""The names that one tensor of a residual encoder U-Net has in a file.

dynamic-network-architectures registers a convolution as ``conv`` and as ``all_modules.0``, a norm as ``norm`` and as
``all_modules.1``, and the whole encoder again as ``decoder.encoder``.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_TWICE = (("conv", "all_modules.0"), ("norm", "all_modules.1"))


def canonical(name: str) -> str:
    """The name that is used here, from any of a tensor's names in a file.

    >>> canonical("decoder.encoder.stem.convs.0.all_modules.0.weight")
    'encoder.stem.convs.0.conv.weight'
    """
    for first, again in _TWICE:
        name = name.replace(f".{again}.", f".{first}.")
    return name.removeprefix("decoder.") if name.startswith("decoder.encoder.") else name


def aliases(name: str) -> tuple[str, ...]:
    """All names in a file, from the one that is used here.

    >>> aliases("decoder.stages.0.convs.0.norm.weight")
    ('decoder.stages.0.convs.0.norm.weight', 'decoder.stages.0.convs.0.all_modules.1.weight')
    """
    inside = [name, *(name.replace(f".{first}.", f".{again}.") for first, again in _TWICE if f".{first}." in name)]
    return (*inside, *(f"decoder.{each}" for each in inside if name.startswith("encoder.")))


def with_aliases(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under all names, as nnU-Net and the plain network load it; the tensors are shared."""
    return {alias: value for name, value in state.items() for alias in aliases(name)}
