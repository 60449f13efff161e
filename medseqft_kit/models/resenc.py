"""nnU-Net's residual encoder U-Net, with every weight under one name.

The network is built by dynamic-network-architectures, as in nnU-Net and nnssl; importing this module needs that
package. It registers each convolution and norm twice (``conv`` and ``all_modules.0``), and the encoder again inside the
decoder: 264 tensors have 956 names in a file. Here each has the first one (`models.weights.resenc_names`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dynamic_network_architectures.architectures.unet import ResidualEncoderUNet
from dynamic_network_architectures.building_blocks.simple_conv_blocks import ConvDropoutNormReLU
from torch import Tensor, nn


class Block(ConvDropoutNormReLU):
    """The same computation through `conv`, `norm` and `nonlin` themselves, in place of their list `all_modules`.

    A layer that is replaced by name (an adapter) takes part, and the state dict has each weight once.
    """

    def forward(self, features: Tensor) -> Tensor:
        """Convolution, norm and activation, as far as the block has them."""
        for name in ("conv", "norm", "nonlin"):
            features = getattr(self, name)(features) if hasattr(self, name) else features
        return features


def residual_encoder_unet(settings: Mapping[str, Any], channels: int) -> Any:
    """The network without its segmentation layers, freshly initialised as in nnU-Net.

    Parameters
    ----------
    settings
        `features` and `blocks` of the stages; `kernels` and `strides` of the stages, three numbers each;
        `decoder_convolutions` of the decoder's stages, from coarse to fine.
    """
    net = ResidualEncoderUNet(
        input_channels=channels,
        n_stages=len(settings["features"]),
        features_per_stage=list(settings["features"]),
        conv_op=nn.Conv3d,
        kernel_sizes=[list(kernel) for kernel in settings["kernels"]],
        strides=[list(stride) for stride in settings["strides"]],
        n_blocks_per_stage=list(settings["blocks"]),
        num_classes=1,
        n_conv_per_stage_decoder=list(settings["decoder_convolutions"]),
        conv_bias=True,
        norm_op=nn.InstanceNorm3d,
        norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU,
        nonlin_kwargs={"inplace": True},
    )
    net.apply(net.initialize)
    for block in list(net.modules()):
        if isinstance(block, ConvDropoutNormReLU):
            block.__class__ = Block
            del block.all_modules
    del net.decoder.encoder  # the decoder needed its sizes only
    net.decoder.seg_layers = nn.ModuleList()  # task heads are kept outside
    return net
