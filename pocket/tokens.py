"""The tokenizer: byte-level BPE over the world's captions, so that any text works, with Qwen3's markup."""

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from dopsd_app.checks.judge.world import random_concept, random_scene
from pocket.captions import full_caption, usual_caption

VOCABULARY = 768
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
VISION_START, VISION_END, IMAGE = "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"
IMAGE_TOKENS = 16  # of a 64x64 picture: 8-pixel patches, merged two by two
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
)


def train_tokenizer() -> PreTrainedTokenizerFast:
    """Learn the merges from captions of training concepts; deterministic."""
    rng = np.random.default_rng(3)
    texts = ["user\n", "assistant\n"] * 500
    for i in range(20_000):
        concept, scene = random_concept(rng), random_scene(rng)
        texts.append(full_caption(concept, scene) if i % 5 == 0 else usual_caption(concept, scene, rng))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, START, END, VISION_START, VISION_END, IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=[START, VISION_START, VISION_END, IMAGE],
        padding_side="right",
        model_max_length=1024,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def message_tokens(tokenizer: PreTrainedTokenizerFast, caption: str, picture: bool = False) -> list[int]:
    """Token ids of one user turn, templated once: the caption, after a picture if asked."""
    content = (VISION_START + IMAGE * IMAGE_TOKENS + VISION_END if picture else "") + caption
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=False,
        add_generation_prompt=True,
        enable_thinking=True,
    )
    return tokenizer(text)["input_ids"]
