"""The text encoder of the base models here, a Qwen3 with its tokenizer."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3Model
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.frozen import (
    StoredTensor,
    load_frozen,
    move,
    open_weights,
    placeholder,
    read_headers,
)

PREFIX = "model."  # of the text encoder's tensors, where it lies as a language model
BY_LAYER = r"layers\.\d+\..*|embed_tokens\.weight"  # what is read when a pass comes to it, if anything is


def load_text_encoder(
    folder: Path, dtype: torch.dtype, device: torch.device, *, by_layer: bool = False
) -> Qwen3Model:
    """The text encoder of a pipeline's folder, without the head that would write text.

    Where its weights are read `by_layer`, they are in no memory between two captions.
    """
    folder = folder / "text_encoder"
    # Given here: a configuration from anywhere could name code on the Hub in its place.
    config = Qwen3Config.from_pretrained(folder, attn_implementation="sdpa")
    text_encoder = load_frozen(
        lambda: Qwen3Model(config), folder, dtype, device, prefix=PREFIX, unread=BY_LAYER if by_layer else ""
    )
    if by_layer:
        read_by_layer(text_encoder, folder)
    return text_encoder


def read_by_layer(model: Qwen3Model | Qwen3VLTextModel, folder: Path) -> None:
    """Has a model read each layer from a text encoder's folder when a pass comes to it, and drop it after.

    Words are looked up in the file, so that their table never is on the device. The model's own weights are
    placeholders, in the dtype and on the device where the pass computes.
    """
    stored = read_headers(folder, PREFIX)
    for number, layer in enumerate(model.layers):
        weights = {
            parameter: stored[f"layers.{number}.{name}"] for name, parameter in layer.named_parameters()
        }
        layer.register_forward_pre_hook(partial(_bring, weights))
        layer.register_forward_hook(partial(_drop, weights), always_call=True)
    table = model.embed_tokens
    table.forward = partial(_look_up, stored["embed_tokens.weight"], table.weight)


def _bring(weights: dict[Parameter, StoredTensor], *_: Any) -> None:
    with ExitStack() as opened:
        # Once for the layer: a large file's header takes as long to read as a tensor.
        files = {stored.file for stored in weights.values()}
        readers = {file: opened.enter_context(open_weights(file)) for file in files}
        for parameter, stored in weights.items():
            mapped = readers[stored.file].get_tensor(stored.name)
            parameter.data = move(mapped, parameter.dtype, parameter.device)


def _drop(weights: dict[Parameter, StoredTensor], *_: Any) -> None:
    for parameter in weights:
        parameter.data = placeholder(parameter.shape, parameter.dtype, parameter.device)


def _look_up(stored: StoredTensor, like: Tensor, input: Tensor) -> Tensor:
    """The embeddings (..., D) of tokens."""
    with open_weights(stored.file) as file:
        rows = torch.nn.functional.embedding(input.cpu(), file.get_tensor(stored.name))
    return rows.to(like.device).to(like.dtype)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a pipeline's folder; `BaseModelError` for one that cannot be used."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise BaseModelError(f"The tokenizer of {folder.name} cannot be used: {error}") from error
    # Its annotation counts a class that is None where a library is missing.
    return cast(PreTrainedTokenizerBase, tokenizer)


def message(tokenizer: PreTrainedTokenizerBase, content: str, *, thinking: bool) -> str:
    """One user message under the chat template, up to where the answer would begin."""
    # From a fresh list: a pipeline may write its template into the list that it is given.
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=thinking,
    )
    # Its annotation counts what it gives when it is asked for tokens.
    return cast(str, text)


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """The tokens (1, L) of a text."""
    return tokenizer(text, return_tensors="pt").input_ids
