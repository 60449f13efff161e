"""Operations of MedSeqFT, each in a folder of its own name with reference, checks, cases and derivation.

A function and its folder share a name. Imported here, the function is what ``medseqft_kernels.lora_conv3d`` means; the
folder's modules are reached by ``from medseqft_kernels.lora_conv3d.reference import ...``.
"""

from medseqft_kernels.lora_conv3d import op as _conv3d
from medseqft_kernels.lora_conv3d.op import lora_conv3d
from medseqft_kernels.lora_conv_transpose3d import op as _conv_transpose3d
from medseqft_kernels.lora_conv_transpose3d.op import lora_conv_transpose3d
from medseqft_kernels.lora_linear import op as _linear
from medseqft_kernels.lora_linear.op import lora_linear

__all__ = ["AUTO", "lora_conv3d", "lora_conv_transpose3d", "lora_linear"]

AUTO = {
    "lora_conv3d": _conv3d.AUTO,
    "lora_linear": _linear.AUTO,
    "lora_conv_transpose3d": _conv_transpose3d.AUTO,
}
"""Operation to what its `auto` takes: a run writes this into its manifest."""
