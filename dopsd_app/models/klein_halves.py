"""Blocks of FLUX.2 klein in halves: diffusers' own blocks, with less of them at once in memory."""

from typing import Any, cast

import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.embeddings import apply_rotary_emb
from diffusers.models.transformers.transformer_flux2 import Flux2Modulation
from torch import Tensor

from dopsd_app.models.blocks import Run, chunks_of, in_chunks

Rotary = tuple[Tensor, Tensor]


# --- blocks with a stream for the picture and one for the text


def double_in_halves(
    block: Any,
    attend: Run,
    feed: Run,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    temb_mod_img: Tensor,
    temb_mod_txt: Tensor,
    image_rotary_emb: Rotary,
    joint_attention_kwargs: None = None,
) -> tuple[Tensor, Tensor]:
    """`Flux2TransformerBlock`: attention for all tokens, then the feed-forward layers in chunks of each."""
    text, picture = attend(
        _attend, block, hidden_states, encoder_hidden_states, temb_mod_img, temb_mod_txt, image_rotary_emb
    )
    picture = in_chunks(lambda tokens: feed(_feed_forward_picture, block, tokens, temb_mod_img), picture)
    text = in_chunks(lambda tokens: feed(_feed_forward_text, block, tokens, temb_mod_txt), text)
    return text, picture


def _attend(
    block: Any, picture: Tensor, text: Tensor, mod_picture: Tensor, mod_text: Tensor, rotary: Rotary
) -> tuple[Tensor, Tensor]:
    (shift, scale, gate), _ = Flux2Modulation.split(mod_picture, 2)
    (text_shift, text_scale, text_gate), _ = Flux2Modulation.split(mod_text, 2)
    of_picture, of_text = block.attn(
        hidden_states=(1 + scale) * block.norm1(picture) + shift,
        encoder_hidden_states=(1 + text_scale) * block.norm1_context(text) + text_shift,
        image_rotary_emb=rotary,
    )
    return text + text_gate * of_text, picture + gate * of_picture


def _feed_forward_picture(block: Any, tokens: Tensor, mod: Tensor) -> Tensor:
    _, (shift, scale, gate) = Flux2Modulation.split(mod, 2)
    return tokens + gate * block.ff(block.norm2(tokens) * (1 + scale) + shift)


def _feed_forward_text(block: Any, tokens: Tensor, mod: Tensor) -> Tensor:
    _, (shift, scale, gate) = Flux2Modulation.split(mod, 2)
    return _clipped(tokens + gate * block.ff_context(block.norm2_context(tokens) * (1 + scale) + shift))


# --- blocks in which attention and feed-forward layers are side by side


def single_in_halves(
    block: Any,
    attend: Run,
    feed: Run,
    hidden_states: Tensor,
    encoder_hidden_states: None,
    temb_mod: Tensor,
    image_rotary_emb: Rotary,
    joint_attention_kwargs: None = None,
) -> Tensor:
    """`Flux2SingleTransformerBlock`: attention for all tokens, then all else in chunks of them.

    One product makes queries, keys, values and the feed-forward layers' input, nine times the width of a
    token. For a graph it is computed twice, in chunks, and each half takes its part: what is never there is
    all of it. Without one it is computed once, in chunks, of which both parts are kept.
    """
    if not torch.is_grad_enabled():
        return attend(_attend_and_feed, block, hidden_states, temb_mod, image_rotary_emb)
    attended = attend(_attend_alone, block, hidden_states, temb_mod, image_rotary_emb)
    return in_chunks(
        lambda tokens, seen: feed(_feed_forward_beside, block, tokens, seen, temb_mod),
        hidden_states,
        attended,
    )


def _attend_alone(block: Any, tokens: Tensor, mod: Tensor, rotary: Rotary) -> Tensor:
    """What attention sees (B, T, D), before the product that the feed-forward layers share."""
    inner = 3 * block.attn.inner_dim
    joined = in_chunks(lambda chunk: _project(block, chunk, mod)[..., :inner], tokens)
    return _see(block.attn, joined, rotary)


def _feed_forward_beside(block: Any, tokens: Tensor, attended: Tensor, mod: Tensor) -> Tensor:
    joined = _project(block, tokens, mod)[..., 3 * block.attn.inner_dim :]
    return _feed(block, tokens, attended, joined, mod)


def _attend_and_feed(block: Any, tokens: Tensor, mod: Tensor, rotary: Rotary) -> Tensor:
    attn = block.attn
    inner = 3 * attn.inner_dim
    seen = tokens.new_empty(*tokens.shape[:2], inner)
    fed = tokens.new_empty(*tokens.shape[:2], attn.mlp_hidden_dim)
    for chunk, of_seen, of_fed in chunks_of(tokens, seen, fed):
        joined = _project(block, chunk, mod)
        of_seen.copy_(joined[..., :inner])
        of_fed.copy_(attn.mlp_act_fn(joined[..., inner:]))
    attended = _see(attn, seen, rotary)
    del seen
    return in_chunks(lambda *parts: _put_out(block, *parts, mod), tokens, attended, fed)


def _see(attn: Any, joined: Tensor, rotary: Rotary) -> Tensor:
    """What attention makes of queries, keys and values side by side (B, T, 3 D)."""
    query, key, value = (each.unflatten(-1, (-1, attn.head_dim)) for each in joined.chunk(3, dim=-1))
    query, key = (_rotated(norm(each), rotary) for norm, each in ((attn.norm_q, query), (attn.norm_k, key)))
    # As the block's own processor asks for it.
    return dispatch_attention_fn(query, key, value, backend=attn.processor._attention_backend).flatten(2, 3)


def _rotated(heads: Tensor, rotary: Any) -> Tensor:
    # Its annotations ask for one tensor of two, and tell of two that it returns.
    return cast(Tensor, apply_rotary_emb(heads, rotary, sequence_dim=1))


def _feed(block: Any, tokens: Tensor, attended: Tensor, joined: Tensor, mod: Tensor) -> Tensor:
    """The block's result for tokens, with gates and inputs of the feed-forward layers side by side."""
    return _put_out(block, tokens, attended, block.attn.mlp_act_fn(joined), mod)


def _put_out(block: Any, tokens: Tensor, attended: Tensor, fed: Tensor, mod: Tensor) -> Tensor:
    _, _, gate = Flux2Modulation.split(mod, 1)[0]
    return _clipped(tokens + gate * block.attn.to_out(torch.cat([attended, fed], dim=-1)))


def _project(block: Any, tokens: Tensor, mod: Tensor) -> Tensor:
    """Queries, keys, values and the feed-forward layers' input of tokens (B, T, D), side by side."""
    shift, scale, _ = Flux2Modulation.split(mod, 1)[0]
    return block.attn.to_qkv_mlp_proj((1 + scale) * block.norm(tokens) + shift)


def _clipped(tokens: Tensor) -> Tensor:
    """As the blocks do, for float16, whose largest number it is."""
    return tokens.clip(-65504, 65504) if tokens.dtype == torch.float16 else tokens
