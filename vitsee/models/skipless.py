"""Blocks without skip connections: each sublayer outputs its branch alone (Raghu et al. 2021, Fig. 8)."""

from __future__ import annotations

from collections.abc import Iterable

from timm.models import mlp_mixer, vision_transformer
from torch import Tensor, nn

from vitsee.errors import UserError


class SkiplessBlock(vision_transformer.Block):
    """A ViT block without the skips around its attention and its MLP."""

    has_skip = False

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        attention = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        x = self.drop_path1(self.ls1(attention))
        return self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class SkiplessMixerBlock(mlp_mixer.MixerBlock):
    """An MLP-Mixer block without the skips around its two MLPs."""

    has_skip = False

    def forward(self, x: Tensor) -> Tensor:
        mixed = self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return self.drop_path(self.mlp_channels(self.norm2(self.drop_path(mixed))))


OF: dict[type[nn.Module], type[nn.Module]] = {
    vision_transformer.Block: SkiplessBlock,
    mlp_mixer.MixerBlock: SkiplessMixerBlock,
}
"""Maps block classes to their versions without skips, which have the same parameters."""


def remove_skips(net: nn.Module, numbers: Iterable[int]) -> None:
    """Remove both skip connections of these blocks, counted from 0 (or from the end: -1 is the last).

    Raises UserError for blocks that do not exist or whose class is not supported.
    """
    blocks = getattr(net, "blocks", ())
    for number in numbers:
        if not -len(blocks) <= number < len(blocks):
            raise UserError(
                f"model.remove_skip: there is no block {number}; "
                + (
                    f"the blocks are 0 … {len(blocks) - 1}"
                    if len(blocks)
                    else f"{type(net).__name__} does not have a list of blocks"
                )
            )
        block = blocks[number]
        if type(block) in OF.values():
            raise UserError(f"model.remove_skip lists block {number} twice")
        if type(block) not in OF:
            known = ", ".join(f"{kind.__module__.split('.')[-1]}.{kind.__name__}" for kind in OF)
            raise UserError(
                f"model.remove_skip: blocks of {type(net).__name__} are "
                f"{type(block).__module__.split('.')[-1]}.{type(block).__name__}, but skips can be removed "
                f"only from: {known}"
            )
        block.__class__ = OF[type(block)]


def initialise(net: nn.Module) -> None:
    """Initialise the linear layers of blocks without skips as in Glorot and Bengio (2010) and the ViT paper's code.

    timm's smaller weights (0.02) are meant for branches that are added to a skip. Without a skip, almost no
    signal reaches the later blocks, and small models do not begin to learn.
    """
    for block in net.modules():
        if type(block) in OF.values():
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
