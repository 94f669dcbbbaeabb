"""Architectures that timm can build but does not name. Importing this module registers them with timm."""

from __future__ import annotations

from typing import Any

from timm.models import mlp_mixer, register_model, resnet
from torch import nn


@register_model
def mixer_custom(pretrained: bool = False, **kwargs: Any) -> mlp_mixer.MlpMixer:
    """Build an MLP-Mixer of any size; model.args may set img_size, patch_size, num_blocks, embed_dim, mlp_ratio."""
    kwargs["pretrained_cfg"] = mlp_mixer._cfg()
    return mlp_mixer._create_mixer("mixer_custom", False, **kwargs)


@register_model
def resnet_custom(pretrained: bool = False, **kwargs: Any) -> resnet.ResNet:
    """Build a ResNet for small images: its stem keeps their size, as for CIFAR (He et al. 2016, section 4.2).

    model.args: the arguments of timm's resnet50_gn.
    """
    net = resnet.resnet50_gn(False, **kwargs)
    stem = net.conv1
    net.conv1 = nn.Conv2d(stem.in_channels, stem.out_channels, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(net.conv1.weight, mode="fan_out", nonlinearity="relu")
    net.maxpool = nn.Identity()
    return net
