"""Operations of MedSeqFT, each in a folder of its own name with reference, checks, cases and derivation.

A function and its folder share a name. Imported here, the function is what ``medseqft_kernels.lora_conv3d`` means; the
folder's modules are reached by ``from medseqft_kernels.lora_conv3d.reference import ...``.
"""

from medseqft_kernels.contrastive_loss.op import contrastive_loss
from medseqft_kernels.cosine_topk.op import cosine_topk
from medseqft_kernels.gather_crops.op import gather_crops
from medseqft_kernels.lora_conv3d.op import lora_conv3d
from medseqft_kernels.lora_conv_transpose3d.op import lora_conv_transpose3d
from medseqft_kernels.lora_linear.op import lora_linear
from medseqft_kernels.masked_reconstruction_loss.op import masked_reconstruction_loss
from medseqft_kernels.modules import LoRAConv3d, replace_peft_layers, restore_peft_layers

__all__ = [
    "LoRAConv3d",
    "contrastive_loss",
    "cosine_topk",
    "gather_crops",
    "lora_conv3d",
    "lora_conv_transpose3d",
    "lora_linear",
    "masked_reconstruction_loss",
    "replace_peft_layers",
    "restore_peft_layers",
]
