"""Captions that are written for the person: the job, the command and the page, and where they go."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants

from dopsd_app import caption as verb
from dopsd_app import cli
from dopsd_app.data.drafts import (
    new_draft,
    read_draft,
    remove_picture,
    set_caption,
    set_focus,
    set_settings,
)
from dopsd_app.data.folder import scan_folder
from dopsd_app.data.uploads import add_pictures
from dopsd_app.errors import KnownFailure
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
from dopsd_app.models.captioner import load_captioner
from dopsd_app.models.captioner_download import CaptionerPaths
from dopsd_app.models.captioner_facts import AREAS, LARGE, SMALL
from dopsd_app.models.captioner_words import Concept
from dopsd_app.models.repository import cache_folder
from dopsd_app.ui import captions as ui
from dopsd_app.ui.page import add_page
from dopsd_app.ui.shown_draft import show_page
from tests.support.downloader import Downloader
from tests.support.imitation_hub import ImitationHub
from tests.support.layout import lay_out
from tests.support.pictures import make_picture
from tests.support.real_layout import save_z_image_repository
from tests.support.tiny_captioner import AREA, load, on_processor, save_captioner_repository, with_card

GIB = 2**30
DOG = Concept("zorp", "subject", "dog")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("captioner")
    save_captioner_repository(folder)
    return folder


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
    assert (
        job.result == {"put": 3, "kept": 0, "unusable": 0, "unreadable": 0} and job.status.state == "finished"
    )
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
    assert job.result == {"put": 3, "kept": 1, "unusable": 0, "unreadable": 0}
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
    assert captions(draft) == [""] * 4 and job.result == {"put": 0, "kept": 0, "unusable": 4, "unreadable": 0}


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
    assert job.result == {"put": 1, "kept": 1, "unusable": 0, "unreadable": 0}


def test_a_picture_that_is_gone_or_damaged_is_counted_and_the_others_go_on(machine, draft, tmp_path):
    job = ask_for_draft(tmp_path / "runs", draft, "short", "")
    remove_picture(draft, draft.items[1].key)
    do(job)
    assert [bool(text) for text in captions(draft)] == [True] * 3
    assert job.result == {"put": 3, "kept": 0, "unusable": 0, "unreadable": 1}
    assert "1 picture could not be read or was removed." in ui._ending(job, job.status)


def test_a_damaged_file_of_a_folder_is_named(machine, photos, tmp_path):
    (photos / "1.png").write_bytes(b"\x89PNG")
    job = do(ask_for_folder(tmp_path / "runs", photos, DOG, "short", overwrite=False))
    assert job.result == {"put": 1, "kept": 0, "unusable": 0, "unreadable": 1}
    [warned] = [event for event in read_events(job.events_file) if isinstance(event, Warned)]
    assert warned.message.startswith("1.png cannot be read")


def test_what_training_cuts_off_is_not_described(machine, draft, tmp_path):
    make_picture(1, 300, 100).save(tmp_path / "wide.png")
    draft = add_pictures(draft, [tmp_path / "wide.png"]).draft
    item = draft.items[-1]
    draft = set_settings(set_focus(draft, item.key, (1, 0.5)), preset="z-image-subject")
    request = captioning.read_asked(ask_for_draft(tmp_path / "runs", draft, "short", "", [item.key]))
    [seen] = verb.read_pictures(request, request.pictures[0])
    whole = verb.load_picture(draft.pictures / f"{item.key}.png")
    assert 190 < seen.width <= 200  # of a shape of 2:1 at the most, about
    assert seen.tobytes() == whole.crop((300 - seen.width, 0, 300, 100)).tobytes()


def test_written_over_is_the_file_that_is_read_for_a_picture(machine, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, name in enumerate(["0.png", "1.png", "1.jpg", "2.png", "3.png"]):
        make_picture(number, 96, 64).save(folder / name)
    (folder / "0.png.txt").write_text("zero")
    (folder / "1.txt").write_text("one")
    (folder / "2.json").write_text('{"caption": "two"}')
    do(ask_for_folder(tmp_path / "runs", folder, DOG, "short", overwrite=True))
    files = {path.name for path in folder.iterdir() if path.suffix not in (".png", ".jpg")}
    assert files == {"0.png.txt", "1.txt", "1.png.txt", "2.json", "2.txt", "3.txt"}
    examples = scan_folder(folder).examples
    assert all(example.captions[0].startswith("zorp dog, ") for example in examples)
    assert len({example.caption_file for example in examples}) == 5


def test_of_an_edit_the_instruction_is_written_from_both_pictures(machine, tmp_path, monkeypatch):
    folder, looked_at = tmp_path / "edit", []
    folder.mkdir()
    for name, size in (("cat", (96, 64)), ("cat_source", (64, 64))):
        make_picture(1, *size).save(folder / f"{name}.png")
    load_picture = verb.load_picture
    monkeypatch.setattr(
        verb, "load_picture", lambda path: looked_at.append(Path(path).name) or load_picture(path)
    )
    concept = Concept("", "edit")
    do(ask_for_folder(tmp_path / "runs", folder, concept, "short", overwrite=False))
    assert looked_at == ["cat_source.png", "cat.png"]
    assert (folder / "cat.txt").read_text().startswith("green old")
    assert not (folder / "cat_source.txt").exists()


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


def test_a_caption_of_another_tools_counts_as_one(machine, photos, tmp_path):
    (photos / "1.caption").write_text("by another tool")
    job = ask_for_folder(tmp_path / "runs", photos, DOG, "short", overwrite=False)
    assert [asked.key for asked in captioning.read_asked(job).pictures] == ["2.png"]


def test_the_command_tells_what_cannot_be(machine, photos, tmp_path, monkeypatch, capsys):
    assert run_command(monkeypatch, tmp_path, tmp_path / "none", "--trigger-word", "zorp") == 2
    assert "There is no folder" in capsys.readouterr().err
    assert run_command(monkeypatch, tmp_path, photos) == 2
    assert "Write the trigger word first" in capsys.readouterr().err
    (photos / "metadata.jsonl").write_text('{"file_name": "0.png", "text": "a"}')
    assert run_command(monkeypatch, tmp_path, photos, "--trigger-word", "zorp") == 2
    assert "metadata.jsonl" in capsys.readouterr().err


# --- the page


@pytest.fixture(scope="module")
def step():
    return lay_out(add_page).pictures


@pytest.fixture
def shown(machine, draft, tmp_path, monkeypatch):
    """What a tab holds that shows the draft."""
    monkeypatch.setenv("DOPSD_DRAFTS", str(tmp_path / "drafts"))
    monkeypatch.setenv("DOPSD_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(ui, "read_machine", lambda: on_processor(16))
    return asdict(show_page(draft, 0))


def boxes(step, answer):
    """The captions that an answer puts into boxes, by card."""
    slots = step.cards.slots
    return {slot.number: answer[slot.caption.box] for slot in slots if slot.caption.box in answer}


def ask(step, shown, handler, length="short", **typed):
    """What a click answers; `typed` is in the boxes of some cards, and still on its way."""
    values = {part: "" for part in step.cards.typed} | {step.draft: shown}
    values |= {step.cards.slots[int(card[1:])].caption.box: text for card, text in typed.items()}
    writer = step.writer
    values |= {writer.length: length, writer.what: "dog", writer.digests: None, writer.told: None}
    return handler(values)


def test_captions_come_into_the_boxes_as_they_are_written_and_once(step, shown, draft, tmp_path, monkeypatch):
    ask(step, shown, step.writer.write_empty)
    answers, sent, told = [], None, None
    describe = verb.describe

    def describe_and_poll(*arguments):
        nonlocal sent, told
        answers.append(answer := step.writer.poll(shown, sent, told))
        sent, told = answer.get(step.writer.digests, sent), answer.get(step.writer.told, told)
        return describe(*arguments)

    monkeypatch.setattr(verb, "describe", describe_and_poll)
    do(latest_captions(tmp_path / "runs", draft.path))
    assert [list(boxes(step, answer)) for answer in answers] == [[], [0], [1], [2]]
    last = step.writer.poll(shown, sent, told)
    assert boxes(step, last) == {3: captions(draft)[3]} and "4 captions written" in last[step.writer.status]
    assert step.go in last  # one can go on now
    sent, told = last[step.writer.digests], last[step.writer.told]
    assert step.writer.poll(shown, sent, told) == {}


def test_what_is_in_a_box_already_is_not_filled_again_where_a_page_is_opened(step, shown, draft, tmp_path):
    ask(step, shown, step.writer.write_empty)
    do(latest_captions(tmp_path / "runs", draft.path))
    opened = step.writer.show(read_draft(draft.path))
    assert boxes(step, step.writer.poll(shown, None, opened[step.writer.told])) == {}


def test_what_was_changed_after_it_was_written_is_not_put_back(step, shown, draft, tmp_path):
    ask(step, shown, step.writer.write_empty)
    do(latest_captions(tmp_path / "runs", draft.path))
    set_caption(draft, draft.items[1].key, "zorp, changed")
    assert list(boxes(step, step.writer.poll(shown, None, None))) == [0, 2, 3]


def test_a_box_that_is_being_typed_into_is_not_filled(step, shown, draft, tmp_path):
    ask(step, shown, step.writer.write_empty)
    do(latest_captions(tmp_path / "runs", draft.path))
    assert list(boxes(step, ask(step, shown, step.writer.tick, c2="zorp, typed just now"))) == [0, 1, 3]


def test_ones_own_caption_is_written_over_after_a_question_alone(step, shown, draft, tmp_path):
    set_caption(draft, draft.items[1].key, "zorp, in my own words")
    writer, clicked = step.writer, SimpleNamespace(target=SimpleNamespace(elem_id="write-2"))
    answer = ask(step, shown, lambda values: writer.write_one(values, clicked))
    assert answer[writer.over.subject] == draft.items[1].key
    assert latest_captions(tmp_path / "runs", draft.path) is None
    with pytest.raises(KnownFailure):
        writer.write_over("../x", shown, "short", "dog", None, None)
    writer.write_over(draft.items[1].key, shown, "short", "dog", None, None)
    do(job := latest_captions(tmp_path / "runs", draft.path))
    assert captions(draft)[1] != "zorp, in my own words"
    # What was written for the person is written again at once.
    ask(step, shown, lambda values: writer.write_one(values, clicked))
    assert latest_captions(tmp_path / "runs", draft.path).id != job.id


def test_words_that_are_still_on_their_way_make_no_empty_caption(step, shown, draft, tmp_path):
    ask(step, shown, step.writer.write_empty, c2="zorp, typed just now")
    asked = captioning.read_asked(latest_captions(tmp_path / "runs", draft.path))
    keys = [item.key for item in draft.items]
    assert [each.key for each in asked.pictures] == [keys[0], keys[1], keys[3]]
    assert captions(draft)[2] == "zorp, typed just now"


def test_all_again_asks_only_where_some_are_the_persons_own(step, shown, draft, tmp_path):
    set_caption(draft, draft.items[0].key, "zorp, my own")
    answer = ask(step, shown, step.writer.ask_to_write_all)
    question = answer[step.writer.asking.confirm]
    assert question.value == "Write 4 captions again, of which 1 is your own"
    assert latest_captions(tmp_path / "runs", draft.path) is None
    step.writer.write_all(draft.id, shown, "short", "dog", None, None)
    do(latest_captions(tmp_path / "runs", draft.path))
    assert all(text.startswith("zorp dog, ") for text in captions(draft))
    answer = ask(step, shown, step.writer.ask_to_write_all)
    assert step.writer.asking.confirm not in answer
    assert latest_captions(tmp_path / "runs", draft.path).status.state == "queued"


def test_what_it_takes_is_told_and_where_nothing_fits_there_is_no_button(step, shown, draft, monkeypatch):
    writer = step.writer
    answer = writer.show(draft)
    assert "Qwen3-VL 2B looks at the pictures, about 2 min each on this processor" in answer[writer.status]
    assert "It is on this computer." in answer[writer.status] and answer[writer.choices]["visible"]
    monkeypatch.setattr(ui, "read_machine", lambda: with_card(8))
    answer = writer.show(draft)
    assert "Qwen3-VL 4B in 4 bits looks at the pictures, 8.4 s each, " in answer[writer.status]
    assert "It is fetched once, 8.9 GB." in answer[writer.status]
    monkeypatch.setattr(ui, "read_machine", lambda: on_processor(4))
    answer = writer.show(draft)
    assert not answer[writer.choices]["visible"] and not answer[writer.one[0]]["visible"]
    assert "this computer has 4.0 GB. Fill captions from a pattern below" in answer[writer.status]


def test_of_a_style_nobody_is_asked_what_it_is(step, draft):
    assert step.writer.show_kind(draft)[step.writer.what].visible
    assert not step.writer.show_kind(set_settings(draft, kind="style"))[step.writer.what].visible
