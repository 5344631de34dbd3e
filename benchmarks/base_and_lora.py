"""The README's first picture, what the built-in base draws before and after training, at the same seeds.

python -m benchmarks.base_and_lora    trains on assets/examples/zorp with the default preset, then draws
"""

import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dopsd_app.config import DEFAULT_PRESET, load_preset

EXAMPLE = Path("assets/examples/zorp")
OUT = Path("assets/base_and_lora.webp")
# Scenes that no training caption has, each with the first seed: nothing was chosen by what came out.
PROMPTS = (
    "zorp on a rose background",
    "zorp on a snow background",
    "a small zorp on the left in a mint scene",
)
SCALE, GAP, LABEL = 3, 12, 150
INK, PAPER = (40, 40, 46), (255, 255, 255)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        runs, out = Path(folder, "runs"), Path(folder, "pictures")
        _dopsd("train", "--images", EXAMPLE, "--trigger-word", EXAMPLE.name, "--runs", runs)
        prompts = [word for prompt in PROMPTS for word in ("--prompt", prompt)]
        _dopsd("generate", "latest", *prompts, "--base-too", "--runs", runs, "--out", out)
        base = sorted(out.glob("*_base.png"))
        lora = sorted(set(out.glob("*.png")) - set(base))
        make_sheet(sorted(EXAMPLE.glob("*.png"))[: len(PROMPTS)], base, lora).save(OUT, lossless=True)
    print(f"{OUT}: {OUT.stat().st_size} bytes")


def _dopsd(*arguments) -> None:
    subprocess.run([sys.executable, "-m", "dopsd_app", *map(str, arguments)], check=True)


def make_sheet(training: list[Path], base: list[Path], lora: list[Path]) -> Image.Image:
    """Three rows with a label each: some training pictures, the base's, and the LoRA's below the base's."""
    side = load_preset(DEFAULT_PRESET).settings["resolution"] * SCALE
    rows = {"three of six\ntraining pictures": training, "the base alone": base, "base and LoRA": lora}
    font = ImageFont.load_default(16)
    columns = LABEL + len(base) * (side + GAP)
    sheet = Image.new("RGB", (columns, len(rows) * (side + GAP) + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for row, (label, files) in enumerate(rows.items()):
        top = GAP + row * (side + GAP)
        pen.multiline_text((GAP, top + side // 2), label, INK, font, anchor="lm")
        for column, file in enumerate(files):
            with Image.open(file) as picture:
                larger = picture.convert("RGB").resize((side, side), Image.Resampling.NEAREST)
            sheet.paste(larger, (LABEL + column * (side + GAP), top))
    return sheet


if __name__ == "__main__":
    main()
