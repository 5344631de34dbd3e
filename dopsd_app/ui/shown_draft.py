"""Which draft a tab shows, and of which of its pictures there are cards: it lives in the tab."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from dopsd_app.data.draft_file import DraftError, Item
from dopsd_app.data.drafts import Draft, current_draft, default_drafts_dir, find_draft
from dopsd_app.errors import KnownFailure
from dopsd_app.files import make_value
from dopsd_app.ui.crops import CropShape, crop_shape

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Shown = TypeVar("Shown", bound="DataclassInstance")
NO_SHAPE = CropShape(0, 0)
ON_A_PAGE = 20  # cards: a page that describes more of them opens more slowly


@dataclass(frozen=True)
class ShownDraft:
    """The draft of a tab, and the cards that it shows."""

    id: str
    keys: tuple[str, ...]  # of the pictures on the cards
    page: int = 0  # of the cards, from 0
    shape: CropShape = NO_SHAPE  # of the crops on them


def show_page(draft: Draft, page: int) -> ShownDraft:
    """A page of a draft's cards, or the last one where there are fewer."""
    page = min(max(page, 0), count_pages(draft) - 1)
    items = draft.items[page * ON_A_PAGE : (page + 1) * ON_A_PAGE]
    return ShownDraft(draft.id, tuple(item.key for item in items), page, crop_shape(draft))


def count_pages(draft: Draft) -> int:
    """How many pages the cards of a draft take; one where there are none."""
    return max(1, -(-len(draft.items) // ON_A_PAGE))


def page_of(draft: Draft, key: str) -> int:
    """The page with the card of this picture."""
    return next(number for number, item in enumerate(draft.items) if item.key == key) // ON_A_PAGE


def items_of(draft: Draft, shown: ShownDraft) -> list[Item | None]:
    """The pictures on the cards, in their order; None for one that another tab has removed meanwhile."""
    by_key = {item.key: item for item in draft.items}
    return [by_key.get(key) for key in shown.keys]


def key_at(shown: object, number: int) -> str:
    """The key of the picture that the tab shows on this card."""
    keys = read_shown(ShownDraft, shown).keys
    if not 0 <= number < len(keys):
        raise DraftError("This picture is no longer in the draft. Reload the page.")
    return keys[number]


def the_draft(draft_id: str) -> Draft:
    """The draft of this id, or for an empty one the draft that was changed last."""
    drafts_dir = default_drafts_dir()
    return find_draft(drafts_dir, draft_id) if draft_id else current_draft(drafts_dir)


def read_shown(kind: type[Shown], shown: object) -> Shown:
    """The value that a tab holds of what it shows, as it was sent."""
    try:
        return make_value(kind, shown)
    except ValueError as error:
        raise KnownFailure("The server cannot use what was sent. Reload the page and try again.") from error


def draft_of(shown: object) -> Draft:
    """The draft that a tab shows."""
    return find_draft(default_drafts_dir(), read_shown(ShownDraft, shown).id)
