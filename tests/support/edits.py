"""Pairs of pictures for a base model that edits."""

from pathlib import Path

from tests.support.pictures import make_picture


def save_pairs(folder: Path, sizes=((96, 96),) * 4, sources: int = 1) -> Path:
    """A picture of each size with an instruction, and what it is made from, in other shapes."""
    folder.mkdir()
    for number, (width, height) in enumerate(sizes):
        make_picture(number, width, height).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("make it blue\n")
        for place in range(1, sources + 1):
            name = f"{number}_source.png" if sources == 1 else f"{number}_source_{place}.png"
            make_picture(10 * place + number, width, height + 32 * (place - 1)).save(folder / name)
    return folder
