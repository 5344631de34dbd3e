"""The text encoder of the base models here, a Qwen3 with its tokenizer."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3Config, Qwen3Model

from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.frozen import load_frozen


def load_text_encoder(folder: Path, dtype: torch.dtype, device: torch.device) -> Qwen3Model:
    """The text encoder of a pipeline's folder, without the head that would write text."""
    # Given here: a configuration from anywhere could name code on the Hub in its place.
    config = Qwen3Config.from_pretrained(folder / "text_encoder", attn_implementation="sdpa")
    return load_frozen(lambda: Qwen3Model(config), folder / "text_encoder", dtype, device, prefix="model.")


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
