"""Why a teacher does not see a draft's pictures, as far as the draft itself tells."""

from dataclasses import dataclass

from dopsd_app.data.captions import advise
from dopsd_app.data.crops import nearest_bucket
from dopsd_app.data.drafts import Draft
from dopsd_app.ui import words
from dopsd_app.ui.base_choice import unsuited_pictures
from dopsd_app.ui.crops import crop_shape

ENLARGED = 2.0  # times: from there on, a picture shows the teacher a blur


@dataclass(frozen=True)
class Cause:
    """The likeliest cause, and what to do about it."""

    sentence: str  # empty where the draft tells of none
    action: str  # what the button says that leads there
    alone: bool = False  # whether nothing else needs to be tried


def find_cause(draft: Draft) -> Cause:
    """The likeliest cause of a verdict that the teacher sees nothing."""
    if unsuited_pictures(draft):
        sentence = (
            "The cause is the base model. The built-in one draws cartoon creatures and nothing else, so no"
            " other picture can tell it anything. Choose a real base model."
        )
        return Cause(sentence, "Choose another base model", alone=True)
    number, shape = 0, crop_shape(draft)
    for item in draft.items:
        height, _ = nearest_bucket(*item.size, shape.resolution, shape.multiple)
        number += height / item.size[1] >= ENLARGED
    if number > len(draft.items) / 2:
        are = "picture is" if number == 1 else "pictures are"
        sentence = (
            f"A likely cause: {number} {are} enlarged to twice the size or more for {shape.resolution}"
            " pixels, and enlarged pictures are blurred. Add larger ones."
        )
        return Cause(sentence, "Change the pictures")
    if said := advise(draft).get("", ()):
        return Cause(f"A likely cause are the captions. {' '.join(said)}", "Change the captions")
    return Cause("", "Change pictures and captions")


def words_for(sentence: str, cause: Cause) -> str:
    """A verdict's sentence with the cause, as paragraphs."""
    said = [cause.sentence] if cause.alone else [sentence, cause.sentence]
    return "".join(f"<p>{words.message(part)}</p>" for part in said if part)
