"""A set of pictures with captions: every check it must pass, and the crop that teacher and training see."""

import hashlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from dopsd_app.config import TrainConfig
from dopsd_app.data.caption_file import PLACEHOLDER, put_trigger_word
from dopsd_app.data.crops import MIDDLE, lost_share, nearest_bucket, write_crops
from dopsd_app.data.crops import crop as crop
from dopsd_app.data.crops import crop_box as crop_box
from dopsd_app.data.example import Example, Note, most_sources
from dopsd_app.data.folder import name_in, scan_folder
from dopsd_app.data.near_copies import fingerprint, near_copies
from dopsd_app.data.picture_file import PicturesError, Problem, decode, load_picture, shown
from dopsd_app.data.source_pictures import FOLDERS, check_sources

MIN_PICTURES, MAX_PICTURES = 4, 200
MANY = 40  # pictures, from which on it is said how often each is seen
NO_TRIGGER_WORD = "Captions hold [trigger], and there is no trigger word to stand for it. Make one up."
LOST = 0.25  # of a picture's area in the crop, above which it is told
SOFT = 1.05  # times that a picture is enlarged, above which it is told


@dataclass(frozen=True)
class Dataset:
    examples: tuple[Example, ...]
    notes: tuple[Note, ...]
    clean: bool = False  # whether the pictures are already as `copy_examples` writes them

    @property
    def sources(self) -> int:
        """The most pictures to start from that one picture has; 0 where nothing is edited."""
        return most_sources(self.examples)


def read_examples(folder: str | Path, *, minimum_side: int, resolution: int = 0) -> Dataset:
    """Reads and checks the pictures and captions of a folder, or raises PicturesError with every problem.

    Captions: one per line in .txt files beside the pictures, or in metadata.jsonl as `datasets` writes it,
    which then counts alone. Pictures are in natural order: 2.png before 10.png. `minimum_side` is in pixels.
    For editing, `cat_source.png` (or `cat_source_1.png`, ...) is what `cat.png` is made from; or a folder
    `source` holds it under the same name, beside the pictures or beside their folder `target`; or a line of
    metadata.jsonl names it. In crops.json stands where crops lie that are not to be the middle. With the
    `resolution` of training, the notes tell what it enlarges and cuts off.
    """
    if not Path(folder).is_dir():
        raise PicturesError([Problem("", f"There is no folder {shown(str(folder))}. Check where it is.")])
    scan = scan_folder(Path(folder))
    findings = [*scan.said, *check_count(len(scan.examples), "the folder")]
    examples = scan.examples[:MAX_PICTURES]  # of thousands only so many are opened and spoken of
    findings += _inspect(examples, scan.folder, minimum_side, resolution)
    named = [(name_in(example.image, scan.folder), example) for example in examples]
    findings += check_sources([(name, len(example.source_images)) for name, example in named])
    findings += note_lines([(name, len(example.captions)) for name, example in named])
    names = ["", *(name for name, _ in named)]
    problems = [finding for finding in findings if isinstance(finding, Problem) and finding.picture in names]
    if problems:
        raise PicturesError(sorted(problems, key=lambda problem: names.index(problem.picture)))
    return Dataset(examples, tuple(finding for finding in findings if isinstance(finding, Note)))


def fill_placeholders(dataset: Dataset, trigger_word: str) -> Dataset:
    """The data set with the trigger word for `[trigger]` in captions; PicturesError where there is none."""
    held = [caption for example in dataset.examples for caption in example.captions]
    if not trigger_word and any(map(PLACEHOLDER.search, held)):
        raise PicturesError([Problem("", NO_TRIGGER_WORD)])
    examples = tuple(
        replace(example, captions=tuple(put_trigger_word(text, trigger_word) for text in example.captions))
        for example in dataset.examples
    )
    return replace(dataset, examples=examples)


def fill_prompts(config: TrainConfig) -> TrainConfig:
    """The settings with the trigger word for `[trigger]` in the prompts of previews, where there is one."""
    if not config.trigger_word:
        return config
    prompts = tuple(put_trigger_word(prompt, config.trigger_word) for prompt in config.preview_prompts)
    return replace(config, preview_prompts=prompts)


def check_count(count: int, holder: str) -> list[Problem]:
    """The problem with having so many pictures, if there is one; `holder` is who has them."""
    if MIN_PICTURES <= count <= MAX_PICTURES:
        return []
    change = "Remove some." if count > MAX_PICTURES else "Add more."
    needed = f"{MIN_PICTURES} to {MAX_PICTURES} are needed, but {holder} has {count}"
    return [Problem("", f"Pictures: {needed}. {change}")]


@dataclass(frozen=True)
class PictureFacts:
    """What the checks of a set need to know of a picture once it was opened."""

    name: str  # as in Problem
    size: tuple[int, int]  # pixels: width, height
    pixels: str  # their hash
    focus: tuple[float, float] = MIDDLE  # where the crop lies
    fingerprint: str = ""  # as in `near_copies`; empty where nobody looked


def hash_pixels(picture: Image.Image) -> str:
    """Equal for equal pixels, whatever file they came from."""
    return hashlib.sha256(picture.tobytes()).hexdigest()


def remarks_on(size: tuple[int, int], focus: tuple[float, float] = MIDDLE) -> list[str]:
    """What becomes of a picture of this size: the rest of a sentence that begins with its name.

    Nothing of one whose crop was moved: whoever did that has seen it.
    """
    if max(size) <= 2 * min(size) or focus != MIDDLE:
        return []
    height, width = nearest_bucket(*size, 1000, 1)  # of any resolution the shapes are nearly the same
    lost = lost_share(size, width / height)
    if lost <= LOST:
        return ["is more than twice as long as it is wide: only its middle is used."]
    return [
        f"is far longer than it is wide: {lost:.0%} of it falls away, and only its middle is used. Move the"
        " crop where the subject is cut off."
    ]


def note_enlarged(pictures: Sequence[PictureFacts], resolution: int) -> Iterator[Note]:
    """One sentence on the pictures that are smaller than what training crops them to."""
    enlarged = []
    for picture in pictures:
        height, width = nearest_bucket(*picture.size, resolution, 1)
        factor = max(width / picture.size[0], height / picture.size[1])
        if factor > SOFT:
            enlarged.append((factor, picture.name))
    if enlarged:
        factor, name = max(enlarged, key=lambda pair: pair[0])
        most = f"{name} {factor:.1f} times" if len(enlarged) > 1 else f"{factor:.1f} times"
        few = f"{len(enlarged)} of {len(pictures)} pictures are"
        if len(enlarged) == 1:
            few = f"{name} is"
        yield Note(
            "",
            f"{few} smaller than the {resolution} x {resolution} pixels of training and will be enlarged,"
            f" {most}: what is drawn may become as soft. Use larger pictures, or a lower resolution.",
        )


def note_many(count: int, steps: int, batch_size: int) -> Iterator[Note]:
    """How often each of many pictures is seen."""
    if count >= MANY:
        seen = steps * batch_size / count
        yield Note(
            "",
            f"Of {count} pictures, {steps} steps show each about {seen:.0f} times. A subject rarely needs"
            f" more than {MANY}: fewer that differ often teach as much, and more ask for more steps.",
        )


def note_lines(captions: Sequence[tuple[str, int]]) -> Iterator[Note]:
    """One sentence on the pictures, by name, that have several captions: nobody may have meant that."""
    several = [(name, count) for name, count in captions if count > 1]
    if several:
        name, count = several[0]
        more = len(several) - 1
        others = f" ({more} more {'has' if more == 1 else 'have'} several)" if more else ""
        yield Note(
            "",
            f"{name} has {count} captions, one per line{others}: each step draws one of them. Join the lines"
            " where they are one sentence that was wrapped.",
        )


def check_set(pictures: Iterable[PictureFacts], minimum_side: int) -> Iterator[Problem | Note]:
    """Refuses small pictures and the second of two equal ones; notes near copies and very long ones."""
    pictures = tuple(pictures)
    first: dict[tuple, str] = {}  # size and pixels: the first picture that has them
    near = dict(near_copies([(picture.name, picture.fingerprint) for picture in pictures]))
    for picture in pictures:
        name, (width, height) = picture.name, picture.size
        if min(width, height) < minimum_side:
            size = f"{width} x {height} pixels, and each side needs {minimum_side} or more"
            yield Problem(name, f"{name} has {size}. Use a larger picture.")
        yield from (Note(name, f"{name} {remark}") for remark in remarks_on(picture.size, picture.focus))
        same = first.setdefault((picture.size, picture.pixels), name)
        if same != name:
            yield Problem(name, f"{name} is the same picture as {same}. Remove one of them.")
        elif name in near:
            yield Note(
                name, f"{name} is nearly the same picture as {near[name]}: one that differs teaches more."
            )


def copy_examples(dataset: Dataset, destination: str | Path) -> None:
    """Writes the repaired pictures and their captions as 01.png, 01.txt, ... into a folder, which it creates.

    Only pixels are written: no place, camera or colour profile. `read_examples` reads the same from there.
    Pictures to start from become sources/01-1.png, ... Where crops were moved, they stand in crops.json.
    """
    destination = Path(destination)
    destination.mkdir(parents=True)
    for number, example in enumerate(dataset.examples, start=1):
        if dataset.clean:
            shutil.copyfile(example.image, destination / f"{number:02}.png")
        else:
            # Level 1 writes photographs six times faster than the default; the files are a sixth larger.
            load_picture(example.image).save(destination / f"{number:02}.png", compress_level=1)
        for place, source in enumerate(example.source_images, start=1):
            file = destination / FOLDERS[1] / f"{number:02}-{place}.png"
            file.parent.mkdir(exist_ok=True)
            load_picture(source).save(file, compress_level=1)
        captions = "".join(f"{caption}\n" for caption in example.captions)
        (destination / f"{number:02}.txt").write_text(captions, encoding="utf-8", newline="\n")
    focuses = {f"{number:02}.png": example.focus for number, example in enumerate(dataset.examples, start=1)}
    write_crops(destination, focuses)


def _inspect(
    examples: Iterable[Example], folder: Path, minimum_side: int, resolution: int
) -> Iterator[Problem | Note]:
    """Opens the pictures one by one: what is wrong with each, with the set, and what was repaired."""
    facts = []
    for example in examples:
        name = name_in(example.image, folder)
        try:
            picture, remarks = decode(example.image, name)
        except PicturesError as error:
            yield from error.problems
            continue
        pixels = hash_pixels(picture)
        facts.append(PictureFacts(name, picture.size, pixels, example.focus, fingerprint(picture)))
        for remark in remarks:
            yield Note(name, f"{name} {remark}")
        yield from _inspect_sources(example, folder)
    yield from check_set(facts, minimum_side)
    if resolution:
        yield from note_enlarged(facts, resolution)


def _inspect_sources(example: Example, folder: Path) -> Iterator[Problem | Note]:
    """What there is to say of the pictures that an example is made from, reported of the example."""
    name = name_in(example.image, folder)
    for path in example.source_images:
        shown_name = name_in(path, folder)
        try:
            picture, remarks = decode(path, shown_name)
        except PicturesError as error:
            yield from (Problem(name, problem.message) for problem in error.problems)
            continue
        yield from (Note(name, f"{shown_name} {remark}") for remark in [*remarks, *remarks_on(picture.size)])
