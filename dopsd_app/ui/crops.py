"""The crop of a picture on its card: what training sees of it, which can be moved with mouse and keys."""

from dataclasses import dataclass

from dopsd_app.config import TrainConfig
from dopsd_app.data.crops import crop_box, lost_share, nearest_bucket
from dopsd_app.data.draft_file import Item, Source
from dopsd_app.data.drafts import Draft, draft_config
from dopsd_app.errors import KnownFailure
from dopsd_app.models.catalog import CATALOG, find_facts
from dopsd_app.ui import words
from dopsd_app.ui.server.picture_files import address

MOVABLE = 0.01  # of the picture: where less falls away, there is nothing to choose

# The light part of a picture is what training sees. It is moved with the mouse, or with a finger on its grip:
# elsewhere a finger scrolls the page. A click that moves nothing enlarges the picture.
DRAG = """
if (!window.dopsdCrops) {
    window.dopsdCrops = true;
    let held = null;
    const place = (kept, across, down) => {
        const shares = [across, down].map((share) => Math.min(1, Math.max(0, share)));
        // What a picture is made from is cropped as it is.
        for (const { style } of [kept, ...(kept.closest(".pair")?.querySelectorAll(".kept.still") ?? [])]) {
            style.left = `${(100 - parseFloat(style.width)) * shares[0]}%`;
            style.top = `${(100 - parseFloat(style.height)) * shares[1]}%`;
        }
        [kept.dataset.across, kept.dataset.down] = shares;
        const now = shares[kept.ariaOrientation == "horizontal" ? 0 : 1];
        kept.ariaValueNow = Math.round(100 * now);
    };
    const send = (kept) => {
        const { key, across, down } = kept.dataset;
        window.dopsdMoved = { key, across: Number(across), down: Number(down) };
        document.getElementById("move-crop").click();
    };
    document.addEventListener("pointerdown", (event) => {
        const kept = event.target.closest?.(".kept:not(.still)");
        if (!kept || event.button || (event.pointerType == "touch" && !event.target.closest(".grip"))) return;
        const whole = kept.parentElement.getBoundingClientRect();
        held = {
            kept, x: event.clientX, y: event.clientY, moved: false,
            across: Number(kept.dataset.across), down: Number(kept.dataset.down),
            free: [
                whole.width * (1 - parseFloat(kept.style.width) / 100),
                whole.height * (1 - parseFloat(kept.style.height) / 100),
            ],
        };
        kept.setPointerCapture(event.pointerId);
    });
    document.addEventListener("pointermove", (event) => {
        if (!held) return;
        const [x, y] = [event.clientX - held.x, event.clientY - held.y];
        held.moved ||= Math.hypot(x, y) > 4;
        if (!held.moved) return;
        const [free_x, free_y] = held.free;
        const across = free_x > 1 ? held.across + x / free_x : held.across;
        place(held.kept, across, free_y > 1 ? held.down + y / free_y : held.down);
    });
    const release = () => {
        if (held?.moved) send(held.kept);
        window.dopsdDragged = Boolean(held?.moved);
        held = null;
    };
    document.addEventListener("pointerup", release);
    document.addEventListener("pointercancel", release);
    document.addEventListener("click", (event) => {
        const kept = event.target.closest?.(".kept");
        if (kept && !window.dopsdDragged) kept.parentElement.querySelector(".enlarge")?.click();
    });
    const keys = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    document.addEventListener("keydown", (event) => {
        const kept = event.target, step = keys[event.key];
        if (!step || !kept.matches?.(".kept")) return;
        event.preventDefault();
        const { across, down } = kept.dataset;
        place(kept, Number(across) + 0.05 * step[0], Number(down) + 0.05 * step[1]);
    });
    document.addEventListener("keyup", (event) => {
        if (keys[event.key] && event.target.matches?.(".kept")) send(event.target);
    });
}
"""
SEND = "(shown) => [shown, window.dopsdMoved]"


@dataclass(frozen=True)
class MovedCrop:
    """Where a person has moved a crop to, as the page's script sends it."""

    key: str  # of the picture
    across: float  # 0: the left is kept, 1: the right
    down: float


@dataclass(frozen=True)
class CropShape:
    """What decides the shape of a draft's crops."""

    resolution: int
    multiple: int  # pixels: the sides are multiples of it

    def aspect(self, size: tuple[int, int]) -> float:
        """Width by height of the crop of a picture of this size."""
        height, width = nearest_bucket(*size, self.resolution, self.multiple)
        return width / height


def crop_shape(draft: Draft) -> CropShape:
    """The shape of the crops that the draft's settings ask for; of the usual ones, while they cannot work."""
    try:
        config = draft_config(draft)
        return CropShape(
            config.resolution, find_facts(config.base_model, config.revision).sizes.side_multiple
        )
    except KnownFailure:  # reported where the settings and the base model are
        usual = TrainConfig()
        return CropShape(usual.resolution, CATALOG[usual.base_model].sizes.side_multiple)


def framed(draft: Draft, item: Item, shape: CropShape) -> str:
    """A picture, darkened where it falls away."""
    return _framed(draft, item, _kept(item, shape))


def framed_source(draft: Draft, source: Source, item: Item, shape: CropShape) -> str:
    """What a picture is made from, darkened where it falls away: it is cropped as the picture is."""
    aspect, kept = shape.aspect(item.size), ""
    if lost_share(source.size, aspect) >= MOVABLE:
        kept = f"<div class='kept still' style='{_place(source.size, aspect, item.focus)}'></div>"
    return _framed(draft, source, kept)


def _framed(draft: Draft, item: Item | Source, kept: str) -> str:
    whole = address(draft.pictures / f"{item.key}.png", words.ENLARGED)
    small = words.image(draft.thumbnail(item), item.name)
    picture = f"<a class='enlarge' href='{words.text(whole)}' data-group='cards'>{small}</a>"
    width, height = item.size
    return (
        f"<div class='frame'><div class='crop' style='--ratio:{width / height:.4f}'>"
        f"{picture}{kept}</div></div>"
    )


def _place(size: tuple[int, int], aspect: float, focus: tuple[float, float]) -> str:
    left, top, right, bottom = crop_box(size, aspect, focus)
    return f"left:{left:.2%};top:{top:.2%};width:{right - left:.2%};height:{bottom - top:.2%}"


def _kept(item: Item, shape: CropShape) -> str:
    """The part that training sees, where a part falls away: a slider along which it is moved."""
    aspect = shape.aspect(item.size)
    if lost_share(item.size, aspect) < MOVABLE:
        return ""
    across, down = item.focus
    lies_across = item.size[0] / item.size[1] > aspect
    place = _place(item.size, aspect, item.focus)
    return (
        f"<div class='kept' role='slider' tabindex='0' aria-label='Crop of {words.text(item.name)}'"
        f" aria-orientation='{'horizontal' if lies_across else 'vertical'}' aria-valuemin='0'"
        f" aria-valuemax='100' aria-valuenow='{100 * (across if lies_across else down):.0f}'"
        f" data-key='{words.text(item.key)}' data-across='{across}' data-down='{down}' style='{place}'"
        f" title='Training sees this part. Drag it, or move it with the arrow keys.'>"
        f"<span class='grip' aria-hidden='true'>{'↔' if lies_across else '↕'}</span></div>"
    )
