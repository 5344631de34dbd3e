"""Qwen3-VL whole, which looks at pictures and writes: always the likeliest token, so that it repeats itself.

All captions of a picture share what is asked before their lengths differ, the picture included: that is
computed once, and remembered.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoTokenizer,
    DynamicCache,
    PreTrainedTokenizerBase,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)
from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLTextModel

from dopsd_app.models.architecture import BaseModelError
from dopsd_app.models.captioner_download import CONFIG, LANGUAGE_PREFIX, CaptionerPaths
from dopsd_app.models.frozen import load_frozen
from dopsd_app.models.vision_language import (
    load_image_processor,
    load_vision_tower,
    picture_text,
    read_picture,
)

# The layers that are rounded; the embeddings, with which it also writes, stay as they are.
ROUNDED = r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
BEGIN, END = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"  # as its chat template writes them
ENDINGS = ("<|im_end|>", "<|endoftext|>")


class LoadedCaptioner:
    """The loaded model."""

    def __init__(
        self,
        model: Qwen3VLForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Qwen2VLImageProcessorPil,
    ):
        self.model, self.tokenizer, self.image_processor = model, tokenizer, image_processor
        self.endings = set(cast(list[int], tokenizer.convert_tokens_to_ids(list(ENDINGS))))

    @torch.no_grad()
    def answers(
        self, pictures: Sequence[Image.Image], asked: str, questions: Iterable[tuple[str, int]]
    ) -> Iterator[tuple[str, bool]]:
        """For each question, that begins a line after what is `asked` before all, what is written to it.

        A question comes with the tokens that it is answered in at the most. With an answer comes whether it
        was ended, and not cut off.
        """
        seen = [read_picture(self.image_processor, picture) for picture in pictures]
        texts = [picture_text(self.image_processor, each.image_grid_thw) for each in seen]
        start = self.tokens(f"{BEGIN}{''.join(texts)}{asked}\n")
        memory = DynamicCache(config=self.model.model.language_model.config)
        kinds = (start == self.model.config.image_token_id).int()
        grids = torch.cat([each.image_grid_thw for each in seen]).to(start.device)
        pixels = torch.cat([each.pixel_values for each in seen]).to(start.device, self.model.dtype)
        # Its annotations ask for classes that nobody makes.
        positions, shift = cast(Any, self.model.model).get_rope_index(start, kinds, image_grid_thw=grids)
        self.model.model(
            input_ids=start,
            position_ids=positions,
            past_key_values=memory,
            pixel_values=pixels,
            image_grid_thw=grids,
            mm_token_type_ids=kinds,
            use_cache=True,
        )
        shared = memory.get_seq_length()
        for question, most in questions:
            yield self._answer(memory, int(shift), self.tokens(question + END), most)
            memory.crop(shared - memory.get_seq_length())

    def _answer(self, memory: DynamicCache, shift: int, tokens: Tensor, most: int) -> tuple[str, bool]:
        """What is written after these tokens (1, L). A picture takes fewer places than tokens, by `shift`."""
        written: list[int] = []
        while len(written) < most:
            begin = memory.get_seq_length()
            places = torch.arange(begin, begin + tokens.shape[1], device=tokens.device) + shift
            output = self.model(
                input_ids=tokens,
                position_ids=places.expand(3, 1, -1),
                past_key_values=memory,
                use_cache=True,
                logits_to_keep=1,
            )
            token = int(output.logits[0, -1].argmax())
            if token in self.endings:
                return self._text(written), True
            written.append(token)
            tokens = tokens.new_tensor([[token]])
        return self._text(written), False

    def _text(self, tokens: list[int]) -> str:
        return cast(str, self.tokenizer.decode(tokens, skip_special_tokens=True))

    def tokens(self, text: str) -> Tensor:
        """The tokens (1, L) of a text, where the model is."""
        return self.tokenizer(text, return_tensors="pt").input_ids.to(self.model.device)


def load_captioner(
    place: CaptionerPaths,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str,
    area: tuple[int, int],
) -> LoadedCaptioner:
    """Loads it; pictures are scaled to between so many pixels. `BaseModelError` for what is damaged."""
    config = _read_config(place.folder)
    text_config = config.text_config
    assert isinstance(text_config, Qwen3VLTextConfig)  # once it is made
    language_model = load_frozen(
        lambda: Qwen3VLTextModel(text_config),
        place.folder,
        dtype,
        device,
        prefix=LANGUAGE_PREFIX,
        quantization=quantization,
        targets=ROUNDED,
    )
    with torch.device("meta"):  # no second copy of the weights
        model = Qwen3VLForConditionalGeneration(config)
    model.model.visual = load_vision_tower(place.eyes, dtype, device)
    model.model.language_model = language_model
    model.lm_head.weight = language_model.embed_tokens.weight
    tokenizer = AutoTokenizer.from_pretrained(place.folder, trust_remote_code=False)
    return LoadedCaptioner(
        model.eval().requires_grad_(False),
        # Its annotation counts a class that is None where a library is missing.
        cast(PreTrainedTokenizerBase, tokenizer),
        load_image_processor(place.eyes, area),
    )


def _read_config(folder: Path) -> Qwen3VLConfig:
    try:
        fields = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not fields.get("tie_word_embeddings"):
            raise ValueError("it does not write with its own embeddings")
        # Given here: a configuration from anywhere could name code on the Hub in its place.
        return Qwen3VLConfig.from_dict({**fields, "attn_implementation": "sdpa"})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BaseModelError(f"The {CONFIG} in {folder} is damaged: delete that folder. ({error})") from error
