"""A block of Z-Image in two halves: diffusers' `ZImageTransformerBlock`, less of it at once in memory."""

from typing import Any

from torch import Tensor

from dopsd_app.models.blocks import Run, in_chunks


def forward_in_halves(
    block: Any,
    attend: Run,
    feed: Run,
    x: Tensor,
    attn_mask: Tensor | None,
    freqs_cis: Tensor,
    adaln_input: Tensor | None = None,
    *_of_several_pictures: None,
) -> Tensor:
    """The block's forward: attention for all tokens (B, T, D), then the feed-forward layers in chunks."""
    x = attend(_attend, block, x, attn_mask, freqs_cis, adaln_input)
    return in_chunks(lambda tokens: feed(_feed_forward, block, tokens, adaln_input), x)


def _attend(
    block: Any, x: Tensor, attn_mask: Tensor | None, freqs_cis: Tensor, adaln_input: Tensor | None
) -> Tensor:
    normed = block.attention_norm1(x)
    if adaln_input is None:
        attended = block.attention(normed, attention_mask=attn_mask, freqs_cis=freqs_cis)
        return x + block.attention_norm2(attended)
    scale, gate, _, _ = _modulation(block, adaln_input)
    attended = block.attention(normed * scale, attention_mask=attn_mask, freqs_cis=freqs_cis)
    return x + gate * block.attention_norm2(attended)


def _feed_forward(block: Any, x: Tensor, adaln_input: Tensor | None) -> Tensor:
    normed = block.ffn_norm1(x)
    if adaln_input is None:
        return x + block.ffn_norm2(block.feed_forward(normed))
    _, _, scale, gate = _modulation(block, adaln_input)
    return x + gate * block.ffn_norm2(block.feed_forward(normed * scale))


def _modulation(block: Any, adaln_input: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Scale and gate of the attention and of the feed-forward layers, each (B, 1, D).

    Made in each half: so little work that it need not be handed on, which would keep it.
    """
    of_attention, gate_attention, of_feed_forward, gate_feed_forward = (
        block.adaLN_modulation(adaln_input).unsqueeze(1).chunk(4, dim=2)
    )
    return 1.0 + of_attention, gate_attention.tanh(), 1.0 + of_feed_forward, gate_feed_forward.tanh()
