"""What a captioner is asked, and what is made of its answer: one line that names what is to be learned.

What captions say, a LoRA keeps to those words; what they leave out, the trigger word learns. So scenes are
described, and never what stays the same.
"""

import re
from dataclasses import dataclass

from dopsd_app.config import EDIT, STYLE
from dopsd_app.data.caption_file import MAX_CAPTION, plain_line
from dopsd_app.data.captions import holds

LONGEST_WORD = 60  # characters of what the person says that it is
FEWEST_WORDS = 2  # of a caption, the trigger word not counted
MOST_ALIKE = 4  # times that the same three words may come: more is a model that turns in a circle
HOW_LONG = {
    "short": "Write one short phrase of at most 12 words.",
    "medium": "Write one or two sentences, together 20 to 35 words.",
    "detailed": "Write three or four sentences, together 50 to 80 words.",
}
_SUBJECT = (
    "All pictures of this set show {the_same}, which is called “{name}”. Write a caption for this one.\n"
    "Say where it is, what it does or how it is placed, from where it is seen and how much of the picture it"
    " fills, the light, and what else is to be seen.\n"
    "Never say what stays the same in all the pictures: its colours, markings, shape, size, material, breed,"
    " age, face or hair. Call it only “{name}”, and name it once, as early as you can."
)
_STYLE = (
    "All pictures of this set are made in one style, which is called “{trigger} style”. Write a caption for"
    " this one.\n"
    "Say who or what is to be seen, what it does, where, how it is placed in the picture, the time of day and"
    " what is around it.\n"
    "Never say how the picture is made: not the medium, the technique, the colours as a whole, the lines, the"
    " texture, the mood or an artist. End with “in {trigger} style”."
)
_EDIT = (
    "The last picture was made from what stands before it. Write the instruction that somebody would give to"
    " have it made: what is changed, and into what. Begin with a verb. Do not describe what stays as it is."
)
_ALWAYS = (
    "Say only what can be seen, in plain English. Do not begin with “The image shows” or the like. No"
    " quotation marks, no list, no heading, no opinion. Write nothing but the {wanted}."
)
# What models begin with all the same.
_LEAD_IN = re.compile(
    r"(?:(?:here is|here's)[^:]*:|(?:short |medium |detailed )?(?:caption|description|instruction)s?\s*:"
    r"|in (?:this|the) (?:image|picture|photo|photograph|scene),?\s"
    r"|(?:the|this) (?:image|picture|photo|photograph|scene)"
    r" (?:shows|depicts|features|captures|displays|is of|contains|presents)\s"
    r"|(?:we|one) (?:can )?sees?\s)\s*",
    re.IGNORECASE,
)
_QUOTES = '"“”„‟«»`'


@dataclass(frozen=True)
class Concept:
    """What captions are to name, and what they leave out."""

    trigger_word: str
    kind: str  # of `config.KINDS`
    what: str = ""  # an ordinary word for it, where the person has said one: "dog"

    @property
    def name(self) -> str:
        """What a subject is called in a caption."""
        return " ".join(part for part in (self.trigger_word, self.what) if part)


def instruction(concept: Concept) -> str:
    """What is asked beside the picture, whatever the length; of an edit, beside what it is made from too."""
    the_same = f"the same {concept.what}" if concept.what else "the same thing or being"
    about = {STYLE: _STYLE, EDIT: _EDIT}.get(concept.kind, _SUBJECT)
    about = about.format(name=concept.name, the_same=the_same, trigger=concept.trigger_word)
    wanted = "instruction" if concept.kind == EDIT else "caption"
    return f"{about}\n{_ALWAYS.format(wanted=wanted)}"


def plain_word(text: str) -> str:
    """What the person says that it is, as one short line that can hold no mark of the model's own."""
    return plain_line(re.sub(r"<\|.*?\|>|[<>|“”\"]", " ", text))[:LONGEST_WORD].strip()


def clean_caption(answer: str, concept: Concept, *, ended: bool = True) -> str:
    """An answer as a caption; "" where it is none.

    One line without quotes and lead-in that names the concept. Of an answer that was cut off, whole sentences
    are kept.
    """
    text = plain_line(answer)
    if "\ufffd" in text or "<|" in text:
        return ""
    text = text.replace("*", "").strip(_QUOTES + " -•#")
    while found := _LEAD_IN.match(text):
        text = text[found.end() :].strip(_QUOTES + " -:,")
    text = "".join(character for character in text if character not in _QUOTES)
    text = _shortened(text, ended)
    if len(re.findall(r"\w+", text.replace(concept.name, ""))) < FEWEST_WORDS or _turns_in_a_circle(text):
        return ""
    return _shortened(_named(text, concept), True)


def _shortened(text: str, ended: bool) -> str:
    """Whole sentences of a text that was cut off or is too long; of a single one, up to its last comma."""
    if ended and len(text) <= MAX_CAPTION:
        return text
    text = text[:MAX_CAPTION]
    whole = re.match(r".*[.!?](?=\s|$)", text)
    if whole:
        return whole[0]
    for mark in (",", " "):
        if mark in text.strip():
            return text.rpartition(mark)[0].rstrip(" ,;:-")
    return text


def _turns_in_a_circle(text: str) -> bool:
    words = re.findall(r"\w+", text.lower())
    alike: dict[tuple[str, ...], int] = {}
    for place in range(len(words) - 2):
        three = tuple(words[place : place + 3])
        alike[three] = alike.get(three, 0) + 1
    return max(alike.values(), default=0) >= MOST_ALIKE


def _named(text: str, concept: Concept) -> str:
    """The text with the trigger word in it, spelt as the person spells it, and never twice in a row."""
    trigger = concept.trigger_word
    if not trigger or concept.kind == EDIT:
        return text
    text = re.sub(rf"(?<!\w){re.escape(trigger)}(?!\w)", lambda _: trigger, text, flags=re.IGNORECASE)
    text = re.sub(rf"(?<!\w)(?:{re.escape(trigger)}\s+)+(?={re.escape(trigger)}(?!\w))", "", text)
    if holds(text, trigger):
        return text
    if concept.kind == STYLE:
        return f"{text.rstrip(' .,;')}, in {trigger} style"
    if concept.what:
        pattern = rf"(?<!\w)(?:(?:an?|the|this|that)\s+)?{re.escape(concept.what)}(?!\w)"
        named, count = re.subn(pattern, lambda _: concept.name, text, count=1, flags=re.IGNORECASE)
        if count:
            return named
    return f"{concept.name}, {text[:1].lower() + text[1:] if text[1:2].islower() else text}"
