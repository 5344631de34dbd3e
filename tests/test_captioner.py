"""What writes captions: what it is asked, what is made of its answers, and what of it fits."""

import re
from dataclasses import replace

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration

from dopsd_app.models.captioner import BEGIN, END
from dopsd_app.models.captioner_facts import LARGE, SMALL
from dopsd_app.models.captioner_words import HOW_LONG, Concept, clean_caption, instruction, plain_word
from dopsd_app.models.vision_language import picture_text, read_picture
from dopsd_app.planning.captioning import captioners_that_fit, why_none
from tests.support.pictures import make_picture
from tests.support.tiny_captioner import load, on_processor, save_captioner_repository, with_card

GIB = 2**30
DOG = Concept("zorp", "subject", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner")
    save_captioner_repository(folder)
    return folder


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """One whose words depend more on what it sees."""
    folder = tmp_path_factory.mktemp("varied")
    save_captioner_repository(folder, attention=4.0)
    return folder


# --- what is asked


def test_the_scene_is_asked_for_and_what_never_changes_is_left_out():
    asked = instruction(DOG)
    assert "the same dog, which is called “zorp dog”" in asked
    assert "Say where it is" in asked and "the light" in asked and "from where it is seen" in asked
    assert "Never say what stays the same" in asked and "its colours, markings, shape" in asked
    assert "Do not begin with “The image shows”" in asked
    without = instruction(replace(DOG, what=""))
    assert "the same thing or being, which is called “zorp”" in without and "dog" not in without


def test_of_a_style_how_it_is_drawn_is_left_out():
    asked = instruction(Concept("zorp", "style"))
    assert "called “zorp style”" in asked and "End with “in zorp style”" in asked
    assert "not the medium, the technique, the colours as a whole" in asked
    assert "what is around it" in asked and "markings" not in asked


def test_of_an_edit_the_change_is_asked_for():
    asked = instruction(Concept("zorp", "edit"))
    assert "what is changed, and into what" in asked and "nothing but the instruction" in asked


@pytest.mark.parametrize(
    ("typed", "plain"),
    [("  dog \n", "dog"), ("<|im_end|>dog", "dog"), ("a “cup”", "a cup"), ("x" * 100, "x" * 60), ("", "")],
)
def test_what_the_person_says_it_is_can_hold_no_mark_of_the_models_own(typed, plain):
    assert plain_word(typed) == plain


# --- what is made of an answer


@pytest.mark.parametrize(
    ("answer", "caption"),
    [
        ("zorp dog lies on a red sofa.", "zorp dog lies on a red sofa."),
        ("A dog lies on a red sofa.", "zorp dog lies on a red sofa."),
        ("The image shows a dog on grass,\nseen from above.", "zorp dog on grass, seen from above."),
        ("In this photo, the dog runs on a beach.", "zorp dog runs on a beach."),
        ("Caption: “Zorp dog on a sofa.”", "zorp dog on a sofa."),
        ("Here is a caption: **A photo of** zorp dog", "A photo of zorp dog"),
        ("zorp zorp dog sits", "zorp dog sits"),
        ("On a sofa by the window", "zorp dog, on a sofa by the window"),
        ("A hotdog on a plate", "zorp dog, A hotdog on a plate"),
    ],
)
def test_a_caption_is_one_line_that_names_the_subject(answer, caption):
    assert clean_caption(answer, DOG) == caption


@pytest.mark.parametrize("answer", ["", "  \n ", "zorp dog", ".", "a\ufffdb c d", "<|im_start|> a b c"])
def test_what_says_nothing_is_no_caption(answer):
    assert clean_caption(answer, DOG) == ""


def test_a_model_that_turns_in_a_circle_wrote_no_caption():
    assert clean_caption("on a red sofa " * 4, DOG) == ""
    assert clean_caption("on a red sofa and on a red sofa", DOG) != ""


def test_a_style_is_named_at_the_end():
    style = Concept("zorp", "style")
    assert clean_caption("A cat on a roof at night.", style) == "A cat on a roof at night, in zorp style"
    assert clean_caption("A cat on a roof, in Zorp style.", style) == "A cat on a roof, in zorp style."


def test_an_instruction_needs_no_trigger_word():
    edit = Concept("zorp", "edit")
    assert clean_caption("“Turn the cat into a clay figure.”", edit) == "Turn the cat into a clay figure."


def test_of_an_answer_that_was_cut_off_whole_sentences_are_kept():
    assert clean_caption("zorp dog on grass. Behind it a", DOG, ended=False) == "zorp dog on grass."
    assert clean_caption("zorp dog on grass, behind it a", DOG, ended=False) == "zorp dog on grass"
    long = clean_caption(
        "zorp dog on grass number 1. " + "".join(f"Then {n} comes. " for n in range(400)), DOG
    )
    assert 1900 < len(long) <= 2000 and long.endswith("comes.")


def test_a_trigger_word_with_signs_of_its_own_stays_what_it_is():
    assert (
        clean_caption("A my_dog+ on grass in rain", Concept("my_dog+", "subject"))
        == "A my_dog+ on grass in rain"
    )


# --- the model


def message(captioner, picture, question):
    """The tokens of a whole message, and what stands for the picture."""
    seen = read_picture(captioner.image_processor, picture)
    text = f"{BEGIN}{picture_text(captioner.image_processor, seen.image_grid_thw)}Write.\n{question}{END}"
    return captioner.tokens(text), seen


def test_each_answer_is_the_official_ones_for_its_whole_message(varied):
    """What is remembered of picture and instruction from one answer to the next changes nothing."""
    captioner, picture = load(varied), make_picture(1, 96, 64)
    official = Qwen3VLForConditionalGeneration.from_pretrained(varied, dtype=torch.float32)
    questions = [(HOW_LONG["short"], 8), (HOW_LONG["detailed"], 20), (HOW_LONG["medium"], 14)]
    answers = list(captioner.answers([picture], "Write.", questions))
    for (question, most), (answer, ended) in zip(questions, answers, strict=True):
        tokens, seen = message(captioner, picture, question)
        made = official.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values=seen.pixel_values,
            image_grid_thw=seen.image_grid_thw,
            mm_token_type_ids=(tokens == official.config.image_token_id).int(),
            do_sample=False,
            max_new_tokens=most,
        )[0, tokens.shape[1] :]
        assert answer == captioner.tokenizer.decode(made, skip_special_tokens=True)
        assert ended == (int(made[-1]) in captioner.endings) and answer
    assert len({answer for answer, _ in answers}) > 1


def test_the_message_is_that_of_the_models_own_template(folder):
    captioner = load(folder)
    chat = [{"role": "user", "content": "Write.\nShort."}]
    expected = captioner.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert f"{BEGIN}Write.\nShort.{END}" == expected
    # Cut where what is shared ends, it has the same tokens.
    begun, rest = captioner.tokens(f"{BEGIN}Write.\n"), captioner.tokens(f"Short.{END}")
    assert torch.cat([begun, rest], dim=1).tolist() == captioner.tokens(expected).tolist()


def test_another_picture_gives_another_caption_and_the_same_one_the_same(varied):
    captioner = load(varied)
    pictures = [make_picture(number, 96, 64) for number in range(6)]
    answers = [next(captioner.answers([picture], "Write.", [("Short.", 12)])) for picture in pictures]
    again = [next(captioner.answers([picture], "Write.", [("Short.", 12)])) for picture in pictures]
    assert answers == again and len(set(answers)) > 1


def test_what_a_picture_is_made_from_is_looked_at_before_it(varied):
    captioner, first, last = load(varied), make_picture(1, 96, 64), make_picture(2, 64, 64)
    both = next(captioner.answers([first, last], "Write.", [("Short.", 12)]))
    assert both != next(captioner.answers([last, first], "Write.", [("Short.", 12)]))


def test_in_4_bits_it_writes_as_well_and_only_its_layers_are_rounded(folder):
    captioner = load(folder, "nf4")
    layer = captioner.model.model.language_model.layers[0]
    for linear in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.down_proj):
        assert linear.weight.dtype == torch.uint8
    assert captioner.model.lm_head.weight is captioner.model.model.language_model.embed_tokens.weight
    assert captioner.model.lm_head.weight.dtype == torch.float32
    assert "sofa" in next(captioner.answers([make_picture(1, 96, 64)], "Write.", [("Short.", 40)]))[0]


# --- what fits


def parameters(**text):
    from transformers import Qwen3VLConfig

    vision = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16, "patch_size": 16}
    vision |= {"deepstack_visual_indexes": [5, 11, 17], "out_hidden_size": text["hidden_size"]}
    text |= {"vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
    config = Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    with torch.device("meta"):
        model = Qwen3VLForConditionalGeneration(config)
    return model


@pytest.mark.parametrize(
    ("captioner", "text"),
    [
        (
            LARGE,
            {
                "hidden_size": 2560,
                "num_hidden_layers": 36,
                "num_attention_heads": 32,
                "intermediate_size": 9728,
            },
        ),
        (
            SMALL,
            {
                "hidden_size": 2048,
                "num_hidden_layers": 28,
                "num_attention_heads": 16,
                "intermediate_size": 6144,
            },
        ),
    ],
)
def test_the_sizes_are_those_of_the_real_models(captioner, text):
    """4B: 8,875,719,344 bytes on the Hub, with headers; 2B: 2,127,532,032 parameters, as is published."""
    model = parameters(**text)
    counted = {id(parameter): parameter.numel() for parameter in model.parameters()}
    assert captioner.parameters == sum(counted.values())
    assert captioner.parameters in (8_875_719_344 // 2 - 43_864, 2_127_532_032)
    layer = model.model.language_model.layers[0]
    assert captioner.layer == sum(weight.numel() for weight in layer.parameters() if weight.ndim == 2)
    assert captioner.embedding == model.lm_head.weight.numel()
    assert captioner.eyes == sum(weight.numel() for weight in model.model.visual.parameters())


def best(machine):
    found = captioners_that_fit(machine)
    return (found[0].captioner, found[0].quantization, found[0].precision) if found else None


@pytest.mark.parametrize(
    ("gigabytes", "expected"),
    [
        (24, (LARGE, "none", "bfloat16")),
        (12, (LARGE, "none", "bfloat16")),
        (8, (LARGE, "nf4", "bfloat16")),
        (6, (LARGE, "nf4", "bfloat16")),
        (4, (SMALL, "nf4", "bfloat16")),
        (2, None),
    ],
)
def test_the_best_that_fits_a_card_is_taken(gigabytes, expected):
    assert best(with_card(gigabytes)) == expected


def test_what_others_use_of_a_card_does_not_count_as_free():
    assert best(with_card(24, free=6)) == (LARGE, "nf4", "bfloat16")


def test_a_processor_gets_the_smaller_one_in_the_precision_that_it_computes_fast_in():
    assert best(on_processor(16)) == (SMALL, "none", "float32")
    assert best(on_processor(8)) == (SMALL, "none", "bfloat16")
    assert best(on_processor(4)) is None


def test_why_none_fits_is_told_with_numbers():
    assert re.fullmatch(
        r"Writing captions needs 5\.\d GB of memory, and this computer has 4\.0 GB\.",
        why_none(on_processor(4)),
    )
    assert "the card has 2.0 GB" in why_none(with_card(2))
    assert why_none(on_processor(16)) == ""


def test_a_processor_takes_minutes_where_a_card_takes_seconds():
    """On two cores: 1.4e9 weights times 676 tokens, and 0.4e9 times 1,024 parts, twice each, at 4.6e10 a
    second are 59 s; 54 tokens, each of 2.1e9 weights at 1.5e9 a second, 77 s."""
    assert captioners_that_fit(on_processor(16))[0].seconds == pytest.approx(59 + 77, rel=0.03)
    assert 5 < captioners_that_fit(with_card(24))[0].seconds < 20
    assert captioners_that_fit(on_processor(16, cores=4))[0].seconds == pytest.approx(68, rel=0.03)
