"""Captions that are written for the person: what is asked of the model, what is made of it, where it goes."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import Qwen3VLForConditionalGeneration

from dopsd_app import caption as verb
from dopsd_app import cli
from dopsd_app.data.drafts import new_draft, read_draft, set_caption, set_settings
from dopsd_app.data.uploads import add_pictures
from dopsd_app.gpus import Gpu
from dopsd_app.jobs import captioning, worker
from dopsd_app.jobs.captioning import (
    Written,
    ask_for_draft,
    ask_for_folder,
    cancel_captions,
    latest_captions,
    read_written,
    use_length,
)
from dopsd_app.jobs.events import CaptionWritten, Warned, read_events
from dopsd_app.jobs.job import RunError, place_command
from dopsd_app.jobs.queue import waiting_jobs
from dopsd_app.models.captioner import BEGIN, END, load_captioner
from dopsd_app.models.captioner_download import CaptionerPaths
from dopsd_app.models.captioner_facts import AREAS, LARGE, SMALL
from dopsd_app.models.captioner_words import HOW_LONG, Concept, clean_caption, instruction, plain_word
from dopsd_app.models.repository import cache_folder
from dopsd_app.models.vision_language import picture_text, read_picture
from dopsd_app.planning.captioning import captioners_that_fit, why_none
from dopsd_app.planning.machine import Machine
from dopsd_app.torch_build import TorchBuild, installed_torch
from tests.support.downloader import Downloader
from tests.support.imitation_hub import ImitationHub
from tests.support.pictures import make_picture
from tests.support.real_layout import save_z_image_repository
from tests.support.tiny_captioner import save_captioner_repository

GIB = 2**30
AREA = 64**2, 96**2
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


def load(folder, quantization="none"):
    place = CaptionerPaths(folder, folder)
    return load_captioner(place, torch.float32, torch.device("cpu"), quantization, AREA)


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


def shown(captioner, picture, question):
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
        tokens, seen = shown(captioner, picture, question)
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


def with_card(gigabytes, free=None):
    card = Gpu(
        "NVIDIA GeForce RTX 4070", gigabytes * GIB, (free or gigabytes) * GIB, capability=(8, 9), driver=600
    )
    return Machine((card,), TorchBuild("2.9.0", "12.8", ("sm_80", "sm_86", "sm_90")), 32 * GIB, 24 * GIB, 8)


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


def on_processor(gigabytes, cores=2):
    return Machine((), installed_torch(), gigabytes * GIB, gigabytes * GIB, cores)


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


# --- the job


def in_cache(folder, captioner, monkeypatch, tmp_path):
    """Puts a folder into the Hub's cache as a captioner's repository."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    repository = cache_folder(captioner.repository)
    (repository / "snapshots").mkdir(parents=True)
    (repository / "snapshots" / ("a" * 40)).symlink_to(folder)


@pytest.fixture
def machine(folder, monkeypatch, tmp_path):
    """A processor with the smaller captioner, which looks at small pictures."""
    in_cache(folder, SMALL, monkeypatch, tmp_path)
    monkeypatch.setattr(verb, "read_machine", lambda: on_processor(16))
    monkeypatch.setitem(AREAS, False, AREA)
    monkeypatch.setattr(captioning, "start_next", lambda _: None)  # the test itself is the worker


@pytest.fixture
def draft(tmp_path):
    for number in range(4):
        make_picture(number, 96, 64).save(tmp_path / f"{number}.png")
    draft = add_pictures(new_draft(tmp_path / "drafts"), sorted(tmp_path.glob("*.png"))).draft
    return set_settings(draft, trigger_word="zorp")


def captions(draft):
    return [item.caption for item in read_draft(draft.path).items]


def do(job):
    assert worker.work(job) == 0, job.status.reason
    return job


def test_every_picture_without_a_caption_gets_one(machine, draft, tmp_path):
    first = draft.items[0].key
    draft = set_caption(draft, first, "zorp, as I typed it")
    job = do(ask_for_draft(tmp_path / "runs", draft, "medium", "dog"))
    assert captions(draft)[0] == "zorp, as I typed it"
    assert all(re.fullmatch(r"zorp dog, .* close", text) for text in captions(draft)[1:])
    events = [event for event in read_events(job.events_file) if isinstance(event, CaptionWritten)]
    assert [(event.step, event.key, event.text) for event in events] == [
        (number, item.key, item.caption)
        for number, item in enumerate(read_draft(draft.path).items[1:], start=1)
    ]
    assert job.result == {"put": 3, "kept": 0, "unusable": 0} and job.status.state == "finished"
    written = read_written(draft.path)
    assert (written.length, written.what, set(written.texts)) == ("medium", "dog", {e.key for e in events})
    assert written.is_ours(events[0].key, events[0].text) and not written.is_ours(
        first, "zorp, as I typed it"
    )


def test_what_is_typed_while_it_is_at_work_stays(machine, draft, tmp_path, monkeypatch):
    second = draft.items[1].key
    describe = verb.describe

    def describe_while_typing(captioner, request, asked, lengths):
        if asked.key == second:
            set_caption(draft, second, "zorp on")
        return describe(captioner, request, asked, lengths)

    monkeypatch.setattr(verb, "describe", describe_while_typing)
    job = do(ask_for_draft(tmp_path / "runs", draft, "short", ""))
    assert captions(draft)[1] == "zorp on" and captions(draft)[2].startswith("zorp, ")
    assert job.result == {"put": 3, "kept": 1, "unusable": 0}
    assert "short" in read_written(draft.path).texts[second]  # it can be asked for


def test_again_is_written_over_what_stood_there_when_it_was_asked(machine, draft, tmp_path):
    keys = [item.key for item in draft.items]
    draft = set_caption(set_caption(draft, keys[0], "mine"), keys[1], "mine too")
    do(ask_for_draft(tmp_path / "runs", draft, "short", "", [keys[1]]))
    first, second, *others = captions(draft)
    assert first == "mine" and second.startswith("zorp, ") and others == ["", ""]


def test_cancelled_between_two_pictures_it_keeps_what_is_written(machine, draft, tmp_path, monkeypatch):
    job = ask_for_draft(tmp_path / "runs", draft, "short", "")
    describe = verb.describe

    def describe_and_cancel(*arguments):
        place_command(job, "stop")
        return describe(*arguments)

    monkeypatch.setattr(verb, "describe", describe_and_cancel)
    do(job)
    assert job.status.state == "stopped"
    assert [bool(text) for text in captions(draft)] == [True, False, False, False]


def test_what_cannot_be_used_is_not_put(machine, draft, tmp_path, monkeypatch):
    monkeypatch.setattr(verb, "clean_caption", lambda *_, **__: "")
    job = do(ask_for_draft(tmp_path / "runs", draft, "short", ""))
    assert captions(draft) == [""] * 4 and job.result == {"put": 0, "kept": 0, "unusable": 4}


def test_where_the_memory_runs_out_the_next_smaller_one_goes_on(machine, draft, tmp_path, monkeypatch):
    load, precisions = verb.load_captioner, []

    def load_once(place, precision, *others):
        precisions.append(precision)
        if len(precisions) == 1:
            raise MemoryError("not enough memory")
        return load(place, precision, *others)

    monkeypatch.setattr(verb, "load_captioner", load_once)
    job = do(ask_for_draft(tmp_path / "runs", draft, "short", ""))
    assert precisions == [torch.float32, torch.bfloat16] and all(captions(draft))
    assert [event.message for event in read_events(job.events_file) if isinstance(event, Warned)] == [
        "The memory ran out with Qwen3-VL 2B. Qwen3-VL 2B in 16 bits goes on."
    ]


def test_where_nothing_fits_it_says_so_before_anything_is_fetched(draft, tmp_path, monkeypatch):
    monkeypatch.setattr(captioning, "start_next", lambda _: None)
    monkeypatch.setattr(verb, "read_machine", lambda: on_processor(4))
    job = ask_for_draft(tmp_path / "runs", draft, "short", "")
    assert worker.work(job) == 1 and "and this computer has 4.0 GB" in job.status.reason
    full = replace(on_processor(16), free_memory=2 * GIB)
    monkeypatch.setattr(verb, "read_machine", lambda: full)
    job = ask_for_draft(tmp_path / "runs", draft, "short", "")
    assert worker.work(job) == 1 and "Close other programs" in job.status.reason


def test_what_cannot_be_asked_is_refused_in_words(machine, draft, tmp_path):
    runs = tmp_path / "runs"
    with pytest.raises(RunError, match="Write the trigger word first"):
        ask_for_draft(runs, set_settings(draft, trigger_word=None), "short", "")
    with pytest.raises(RunError, match="`length` must be one of short, medium, detailed, got 'long'"):
        ask_for_draft(runs, draft, "long", "")
    with pytest.raises(RunError, match="No picture lacks a caption"):
        ask_for_draft(runs, draft, "short", "", [])
    with pytest.raises(RunError, match="Say first what each picture is made from"):
        ask_for_draft(runs, set_settings(draft, kind="edit"), "short", "")
    job = ask_for_draft(runs, draft, "short", "")
    with pytest.raises(RunError, match="already"):
        ask_for_draft(runs, draft, "short", "")
    assert latest_captions(runs, draft.path) == job and latest_captions(runs, tmp_path) is None
    cancel_captions(runs, draft.path)
    assert job.status.state == "stopped"


def test_another_length_is_taken_at_once_where_nobody_has_changed_the_caption(machine, draft, tmp_path):
    runs = tmp_path / "runs"
    do(ask_for_draft(runs, draft, "short", ""))
    texts = {
        item.key: {"short": item.caption, "detailed": f"{item.caption} in detail"}
        for item in read_draft(draft.path).items
    }
    (draft.path / captioning.WRITTEN).write_text(json.dumps(asdict(Written(texts=texts))))
    set_caption(draft, draft.items[0].key, "zorp, and my own words")
    draft = use_length(draft, "detailed")
    assert captions(draft)[0] == "zorp, and my own words"
    assert all(text.endswith("in detail") for text in captions(draft)[1:])
    assert read_written(draft.path).length == "detailed"
    assert captions(use_length(draft, "medium")) == captions(draft)  # never written: it stays


def test_beside_pictures_in_a_folder_captions_become_files(machine, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(2):
        make_picture(number, 96, 64).save(folder / f"{number}.png")
    job = ask_for_folder(tmp_path / "runs", folder, DOG, "short", overwrite=False)
    (folder / "1.txt").write_text("written meanwhile")
    do(job)
    assert (folder / "0.txt").read_text().startswith("zorp dog, ")
    assert (folder / "1.txt").read_text() == "written meanwhile"
    assert job.result == {"put": 1, "kept": 1, "unusable": 0}


# --- from the Hub


@pytest.fixture(scope="module")
def hub_and_process(tmp_path_factory):
    with ImitationHub() as hub, Downloader(hub, tmp_path_factory.mktemp("process")) as call:
        yield hub, call


@pytest.fixture
def hub(hub_and_process, folder):
    hub = hub_and_process[0]
    hub.reset()
    for captioner in (LARGE, SMALL):
        hub.add_model(captioner.repository, folder)
    return hub


@pytest.mark.process
def test_a_newcomer_gets_captions_with_all_that_is_fetched_for_them(
    hub, hub_and_process, draft, tmp_path, monkeypatch
):
    monkeypatch.setattr(captioning, "start_next", lambda _: None)
    job = ask_for_draft(tmp_path / "runs", draft, "medium", "dog")
    told = hub_and_process[1](tmp_path / "home", "write_captions", str(job.path), gigabytes=16)
    assert job.status.state == "finished", job.status.reason
    kinds = [kind for number, kind in enumerate(told) if told[number - 1 : number] != [kind]]
    assert kinds[:3] == ["loading", "downloading", "loading"] and kinds[-1] == "Finished"
    assert told.count("CaptionWritten") == 4
    assert all(text.startswith("zorp dog, ") for text in captions(draft))


@pytest.mark.process
def test_fetched_whole_it_is_here_and_each_file_is_what_the_hub_has(hub, hub_and_process, folder, tmp_path):
    fetched = hub_and_process[1](tmp_path, "fetch_captioner", SMALL.repository)
    assert (fetched["lacking"], fetched["after"]) == (SMALL.stored_bytes, 0)
    assert fetched["folder"] == fetched["eyes"]
    for file in Path(fetched["folder"]).iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes()
    hub.served.clear()
    assert hub_and_process[1](tmp_path, "fetch_captioner", SMALL.repository)["steps"] == [] == hub.served


@pytest.mark.process
def test_eyes_that_a_teacher_has_already_are_not_fetched_again(
    hub, hub_and_process, folder, tmp_path_factory, tmp_path
):
    base = tmp_path_factory.mktemp("z-image")
    save_z_image_repository(base)
    hub.add_model("Tongyi-MAI/Z-Image-Turbo", base)
    call = hub_and_process[1]
    eyes = call(tmp_path, "fetch", "Tongyi-MAI/Z-Image-Turbo")["eyes"]
    hub.served.clear()
    fetched = call(tmp_path, "fetch_captioner", LARGE.repository)
    assert (fetched["lacking"], fetched["after"]) == (LARGE.stored_bytes - 2 * LARGE.eyes, 0)
    assert fetched["eyes"] == eyes
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    seeing = (Path(eyes) / "model.safetensors").stat().st_size
    sent = sum(each.sent for each in hub.served if each.path.endswith(".safetensors"))
    assert sent < weights - seeing + 200_000  # the rest, with the headers of two files
    place = CaptionerPaths(Path(fetched["folder"]), Path(fetched["eyes"]))
    captioner = load_captioner(place, torch.float32, torch.device("cpu"), "none", AREA)
    asked = [make_picture(1, 96, 64)], "Write.", [("Short.", 8)]
    assert list(captioner.answers(*asked)) == list(load(folder).answers(*asked))


# --- the command


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        make_picture(number, 96, 64).save(folder / f"{number}.png")
    (folder / "0.txt").write_text("my own")
    return folder


def run_command(monkeypatch, tmp_path, *arguments):
    """The command, beside a worker that is this process."""

    def start(runs_dir):
        if waiting := waiting_jobs(runs_dir):
            do(waiting[0])

    monkeypatch.setattr(captioning, "start_next", start)
    return cli.main(["caption", *map(str, arguments), "--runs", str(tmp_path / "runs")])


def test_the_command_writes_files_beside_pictures_and_none_that_is_there(
    machine, photos, tmp_path, monkeypatch, capsys
):
    assert run_command(monkeypatch, tmp_path, photos, "--trigger-word", "zorp", "--what", "dog") == 0
    assert (photos / "0.txt").read_text() == "my own"
    for number in (1, 2):
        assert (photos / f"{number}.txt").read_text().startswith("zorp dog, ")
    told = capsys.readouterr().out
    assert "1.png: zorp dog, " in told and "2 captions written." in told and "0.png" not in told
    assert run_command(monkeypatch, tmp_path, photos, "--trigger-word", "zorp") == 2
    assert "No picture lacks a caption" in capsys.readouterr().err
    assert run_command(monkeypatch, tmp_path, photos, "--trigger-word", "blorp", "--overwrite") == 0
    assert all((photos / f"{number}.txt").read_text().startswith("blorp, ") for number in range(3))


def test_the_command_tells_what_cannot_be(machine, photos, tmp_path, monkeypatch, capsys):
    assert run_command(monkeypatch, tmp_path, tmp_path / "none", "--trigger-word", "zorp") == 2
    assert "There is no folder" in capsys.readouterr().err
    assert run_command(monkeypatch, tmp_path, photos) == 2
    assert "Write the trigger word first" in capsys.readouterr().err
    (photos / "metadata.jsonl").write_text("{}")
    assert run_command(monkeypatch, tmp_path, photos, "--trigger-word", "zorp") == 2
    assert "metadata.jsonl" in capsys.readouterr().err
