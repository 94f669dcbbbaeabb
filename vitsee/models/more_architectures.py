"""Architectures that timm can build but does not name. Importing this module registers them with timm."""

from __future__ import annotations

from typing import Any

from timm.models import mlp_mixer, register_model


@register_model
def mixer_custom(pretrained: bool = False, **kwargs: Any) -> mlp_mixer.MlpMixer:
    """Build an MLP-Mixer of any size; model.args may set img_size, patch_size, num_blocks, embed_dim, mlp_ratio."""
    kwargs["pretrained_cfg"] = mlp_mixer._cfg()
    return mlp_mixer._create_mixer("mixer_custom", False, **kwargs)
