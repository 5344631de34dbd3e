"""A picture that is taken into a draft: its files, its place on the list, and what it is made from."""

import secrets
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePath

from PIL import Image

from dopsd_app.data.caption_file import caption_stem
from dopsd_app.data.creatures import is_creature
from dopsd_app.data.draft_file import DraftContent, DraftError, Item, Source, change_content
from dopsd_app.data.drafts import Draft, check_keys, delete_files
from dopsd_app.data.folder import LISTED
from dopsd_app.data.near_copies import fingerprint
from dopsd_app.data.picture_file import decode, fold_name, shown
from dopsd_app.data.pictures import MAX_PICTURES, hash_pixels
from dopsd_app.data.source_pictures import MAX_SOURCES
from dopsd_app.errors import KnownFailure

TOO_MANY = f"{MAX_PICTURES} pictures are the most"  # how the sentence begins that is said first
THUMBNAIL_SIDE = 512  # pixels
KEPT_SIDE = 2048  # pixels of the shorter side: the largest crop needs 1536, and a photograph saves in a third


def add_source(draft: Draft, key: str, path: Path) -> list[str]:
    """Adds a picture to what that of this key is made from; returns why it was left out, where it was.

    One of the same name takes the place of the earlier one.
    """
    name = shown(path.name)
    try:
        picture, remarks = decode(path, name)
        kept = keep(draft, picture, name, stem_of(path.name), remarks)
    except KnownFailure as error:
        return [str(error)]
    source = Source(key=kept.key, name=name, size=kept.size, remarks=kept.remarks)
    replaced: list[str] = []

    def add(content: DraftContent) -> DraftContent:
        check_keys(content, [key])
        item = next(item for item in content.items if item.key == key)
        others = tuple(other for other in item.sources if other.name != name)
        if len(others) >= MAX_SOURCES:
            raise DraftError(f"{name} was left out: {MAX_SOURCES} source pictures are the most.")
        replaced.extend(other.key for other in item.sources if other.name == name)
        changed = replace(item, sources=(*others, source))
        items = tuple(changed if other.key == key else other for other in content.items)
        return replace(content, items=items)

    try:
        change_content(draft.path, add)
    except DraftError as error:
        delete_files(draft, source.key)
        return [str(error)]
    for old in replaced:
        delete_files(draft, old)
    return []


def keep(draft: Draft, picture: Image.Image, name: str, stem: str, remarks: Iterable[str]) -> Item:
    """Writes the picture, pixels only, and its thumbnail; returns what is to be known of it."""
    key = secrets.token_hex(6)
    if (short := min(picture.size)) > KEPT_SIDE:
        width, height = (round(side * KEPT_SIDE / short) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    thumbnail = picture.copy()
    thumbnail.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE), Image.Resampling.LANCZOS)
    try:
        picture.save(draft.pictures / f"{key}.png", compress_level=1)  # as copy_examples does
        thumbnail.save(draft.thumbnails / f"{key}.webp", quality=85)
    except OSError as error:
        delete_files(draft, key)
        raise DraftError(f"The picture could not be kept: {error.strerror}. Free some space.") from error
    return Item(
        key=key,
        name=name,
        stem=stem,
        size=picture.size,
        pixels=hash_pixels(picture),
        remarks=tuple(remarks),
        fingerprint=fingerprint(thumbnail),
        creature=is_creature(thumbnail),
    )


def enlist(draft: Draft, item: Item) -> None:
    """Puts a picture on the draft's list; `DraftError` says why not."""

    def enlist(content: DraftContent) -> DraftContent:
        if len(content.items) >= MAX_PICTURES:  # another tab was faster
            raise DraftError(too_many([item.name], 1))
        names = {other.name for other in content.items}
        for other in content.items:
            if (other.pixels, other.size) == (item.pixels, item.size):
                new = f"The new {item.name}" if item.name in names else item.name
                old = "the one that is there" if other.name == item.name else other.name
                raise DraftError(f"{new} is the same picture as {old}. It was left out.")
        name = next(name for name in _names(item.name) if name not in names)
        return replace(content, items=(*content.items, replace(item, name=name)))

    change_content(draft.path, enlist)


def too_many(left_out: list[str], sent: int) -> str:
    named = ", ".join(left_out[:LISTED]) + (", …" if len(left_out) > LISTED else "")
    were = "1 was" if len(left_out) == 1 else f"{len(left_out)} were"
    return f"{TOO_MANY} of a draft: of the {sent} that came, {were} left out ({named}). Remove some first."


def _names(name: str):
    """A name, and then the same with numbers: the page and its messages must tell two pictures apart."""
    yield name
    path = PurePath(name)
    for number in range(2, MAX_PICTURES + 2):
        yield f"{path.stem} ({number}){path.suffix}"


def stem_of(file_name: str) -> str:
    """What a picture and its caption file share; a name from Windows may hold backslashes."""
    return fold_name(caption_stem(file_name))
