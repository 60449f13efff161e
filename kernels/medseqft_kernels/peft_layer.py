"""The fused layer of a PEFT model; in a file of its own, for it needs PEFT, which is imported only where it is used."""

from __future__ import annotations

from typing import Any

from peft.tuners.lora.layer import Conv3d
from torch import Tensor

from medseqft_kernels.modules import LoRAConv3d, drops, fused, obstacle


class FusedConv3d(LoRAConv3d, Conv3d):  # type: ignore[misc]
    """PEFT's Conv3d layer with another forward pass; an instance is one of PEFT's whose class was exchanged.

    Parameters, names and every method but `forward` are PEFT's, so the model around it goes on working.
    """

    active_adapters = Conv3d.active_adapters

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """PEFT's output, fused where the layer's present state and the arguments allow it."""
        if args or kwargs or obstacle(self) is not None or drops(self):
            out: Tensor = Conv3d.forward(self, x, *args, **kwargs)
            return out
        return fused(self, x)
