"""The UNet of Stable Diffusion 1, 2 and XL, and the ControlNets that are copies of its first half.

Source: CompVis' and Stability's code; ControlNets: lllyasviel's.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from sdbatch.naming.rule import Names, Rule, highest, pairs

TOP = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "middle_block.1": "mid_block.attentions.0",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def unet_names(names: Collection[str]) -> Names:
    """The names of a UNet of this size, in whichever spelling the given ones are."""
    return Names(_rules(names))


def controlnet_names(names: Collection[str]) -> Names:
    """The names of a ControlNet of this size."""
    rules = _rules(names)
    count = 1 + max(highest(names, r"zero_convs\.(\d+)\."), highest(names, r"controlnet_down_blocks\.(\d+)\."))
    rules += pairs({f"zero_convs.{index}.0": f"controlnet_down_blocks.{index}" for index in range(count)})
    hints = max(highest(names, r"input_hint_block\.(\d+)\.") // 2 - 1, 1 + highest(names, r"controlnet_cond_embedding\.blocks\.(\d+)\."))
    layers = ("conv_in", *(f"blocks.{index}" for index in range(hints)), "conv_out")
    # Between two convolutions lies an activation, which has a number but no weights.
    rules += pairs({f"input_hint_block.{2 * index}": f"controlnet_cond_embedding.{layer}" for index, layer in enumerate(layers)})
    return Names([*rules, *pairs({"middle_block_out.0": "controlnet_mid_block"})])


def _rules(names: Collection[str]) -> list[Rule]:
    layers, blocks, attention_ups = _size(names)
    step = layers + 1
    rules = [*pairs(TOP), *_resnet("middle_block.0", "mid_block.resnets.0"), *_resnet("middle_block.2", "mid_block.resnets.1")]
    for block in range(blocks):
        for layer in range(layers):
            rules += _layer(f"input_blocks.{1 + block * step + layer}", f"down_blocks.{block}", layer)
        rules += pairs({f"input_blocks.{(block + 1) * step}.0.op": f"down_blocks.{block}.downsamplers.0.conv"})
        for layer in range(step):
            rules += _layer(f"output_blocks.{block * step + layer}", f"up_blocks.{block}", layer)
        # It follows the attention where the block has one.
        place = f"output_blocks.{block * step + layers}.{2 if block in attention_ups else 1}.conv"
        rules += pairs({place: f"up_blocks.{block}.upsamplers.0.conv"})
    return rules


def _layer(original: str, block: str, layer: int) -> list[Rule]:
    return [*_resnet(f"{original}.0", f"{block}.resnets.{layer}"), *pairs({f"{original}.1": f"{block}.attentions.{layer}"})]


def _resnet(original: str, ours: str) -> list[Rule]:
    return pairs(RESNET, f"{original}.", f"{ours}.")


def _size(names: Collection[str]) -> tuple[int, int, frozenset[int]]:
    """Residual layers per block, blocks, and which up blocks have attention."""
    if (blocks := 1 + highest(names, r"down_blocks\.(\d+)\.")) > 0:
        ups = frozenset(int(found[1]) for name in names if (found := re.match(r"up_blocks\.(\d+)\.attentions\.", name)))
        return 1 + highest(names, r"down_blocks\.0\.resnets\.(\d+)\."), blocks, ups
    downs = sorted(int(found[1]) for name in names if (found := re.match(r"input_blocks\.(\d+)\.0\.op\.weight", name)))
    step = downs[0] if downs else 1 + highest(names, r"input_blocks\.(\d+)\.")
    given = frozenset(names)
    ups = frozenset(block for block in range(len(downs) + 1) if f"output_blocks.{block * step}.1.norm.weight" in given)
    return step - 1, len(downs) + 1, ups
