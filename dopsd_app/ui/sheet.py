"""Many pictures as one: columns with their names on top, and each row with its prompt at the left."""

import unicodedata
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dopsd_app.files import replace_file

LONGEST, SHORTEST = (
    512,
    256,
)  # pixels of one picture's longer side: larger ones are scaled down, smaller ones up
GAP, LABEL = 8, 220  # pixels between the pictures, and of the prompts' column
SIZE = 20  # pixels of the letters
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
PAPER, INK = "white", "#1f2937"


def save_sheet(file: Path, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Path]]]) -> None:
    """Saves rows of (name, pictures) as one PNG; where a picture is not there, its place stays empty."""
    pictures = [[_open(picture) for picture in row] for _, row in rows]
    sizes = [picture.size for row in pictures for picture in row if picture]
    width, height = (max(side) for side in zip(*sizes, strict=True))
    font = ImageFont.load_default(SIZE)
    names = [_writable(name, font) or f"Row {number}" for number, (name, _) in enumerate(rows, start=1)]
    top = GAP + max(_height(_wrap(name, font, width), font) for name in columns) + GAP
    heights = [max(height, _height(_wrap(name, font, LABEL), font)) + GAP for name in names]
    sheet = Image.new("RGB", (GAP + LABEL + (GAP + width) * len(columns) + GAP, top + sum(heights)), PAPER)
    pen = ImageDraw.Draw(sheet)
    lefts = [GAP + LABEL + GAP + (width + GAP) * place for place in range(len(columns))]
    for left, name in zip(lefts, columns, strict=True):
        pen.multiline_text((left, GAP), _wrap(name, font, width), INK, font)
    for name, row, high in zip(names, pictures, heights, strict=True):
        pen.multiline_text((GAP, top), _wrap(name, font, LABEL), INK, font)
        for left, picture in zip(lefts, row, strict=True):
            if picture:
                sheet.paste(picture, (left, top))
        top += high
    content = BytesIO()
    sheet.save(content, format="PNG", compress_level=3)
    replace_file(file, content.getvalue())


def _open(file: Path) -> Image.Image | None:
    try:
        with Image.open(file, formats=["PNG"]) as opened:
            picture = opened.convert("RGB")
    except FileNotFoundError:
        return None
    longest = max(picture.size)
    share = min(LONGEST, longest) / longest if longest >= SHORTEST else SHORTEST // longest
    size = max(1, round(picture.width * share)), max(1, round(picture.height * share))
    return picture.resize(size, Image.Resampling.LANCZOS)


def _writable(text: str, font: Font) -> str:
    """The text as far as Pillow's own font, which knows no accents, writes it; empty for another script."""
    plain = "".join(sign for sign in unicodedata.normalize("NFKD", text) if not unicodedata.combining(sign))
    missing = _shape("\ufffe", font)
    return plain if all(sign.isspace() or _shape(sign, font) != missing for sign in plain) else ""


def _shape(sign: str, font: Font) -> bytes:
    drawn = Image.new("L", (2 * SIZE, 2 * SIZE))
    ImageDraw.Draw(drawn).text((0, 0), sign, 255, font)
    return drawn.tobytes()


def _wrap(text: str, font: Font, width: int) -> str:
    """The text in lines that are no wider than this; a longer word is cut."""
    lines, line = [], ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and font.getlength(longer) > width:
            lines.append(line)
            line = word
        else:
            line = longer
        while font.getlength(line) > width:
            fits = next(n for n in range(len(line), 0, -1) if n == 1 or font.getlength(line[:n]) <= width)
            lines.append(line[:fits])
            line = line[fits:]
    return "\n".join([*lines, line])


def _height(text: str, font: Font) -> int:
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    return int(pen.multiline_textbbox((0, 0), text, font)[3]) + 1
