"""What there is to say of a draft's pictures and captions: on their cards, above them and at the foot."""

from dataclasses import dataclass

from dopsd_app.data.captions import advise
from dopsd_app.data.drafts import Draft, judge_draft
from dopsd_app.data.pictures import MIN_PICTURES
from dopsd_app.ui import words

Sentences = dict[str, tuple[str, ...]]  # by picture key; "" is the whole set


@dataclass(frozen=True)
class Findings:
    """Of a whole draft."""

    problems: Sentences  # but for captions that are empty
    advice: Sentences
    notes: Sentences
    uncaptioned: tuple[str, ...]  # keys of pictures whose caption is empty

    @property
    def unready(self) -> set[str]:
        """The keys of the pictures that something is missing of."""
        return {key for key in self.problems if key} | set(self.uncaptioned)

    @property
    def whole_set(self) -> str:
        """What is said above the cards."""
        return (
            words.lines(self.problems.get("", ()), "problem")
            + words.lines(self.notes.get("", ()), "note")
            + words.lines(self.advice.get("", ()), "advice")
        )

    def on_card(self, key: str) -> str:
        """What stands on the card of a picture; that its caption is empty is a mark, and no alarm."""
        mark = "<p class='mark'>No caption yet</p>" if key in self.uncaptioned else ""
        return (
            mark
            + words.lines(self.problems.get(key, ()), "problem")
            + words.lines(self.advice.get(key, ()), "advice")
            + words.lines(self.notes.get(key, ()), "note")
        )


def find(draft: Draft) -> Findings:
    """What there is to say of a draft; nothing of one without pictures."""
    if not draft.items:
        return Findings({}, {}, {}, ())
    empty = tuple(item.key for item in draft.items if not item.caption.strip())
    problems, notes = judge_draft(draft, captions=False)
    waiting = [
        f"{name} belongs to no picture here. It is kept until its picture comes." for name in draft.waiting
    ]
    notes = {**notes, "": (*waiting, *notes.get("", ()))}
    return Findings(problems, advise(draft), notes, empty)


def what_is_missing(draft: Draft, findings: Findings) -> str:
    """What keeps from going on, in one short line; empty where nothing does."""
    if not draft.items:
        return f"Add {MIN_PICTURES} pictures or more."
    missing = []
    if (more := MIN_PICTURES - len(draft.items)) > 0:
        missing.append(f"{words.count(more, 'picture')} must be added")
    if findings.uncaptioned:
        number = len(findings.uncaptioned)
        missing.append(f"{words.count(number, 'picture')} {'has' if number == 1 else 'have'} no caption")
    if number := len([key for key in findings.problems if key]):
        missing.append(f"{words.count(number, 'picture')} {'has' if number == 1 else 'have'} a problem")
    if not missing:
        return " ".join(findings.problems.get("", ())[:1])
    return f"{', '.join(missing[:-1])}{' and ' if missing[1:] else ''}{missing[-1]}."
