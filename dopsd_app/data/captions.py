"""Advice on captions and the trigger word: what usually spoils a LoRA. Never a refusal.

What the captions say, the model keeps to those words; what they leave out is what the trigger word learns.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence

from dopsd_app.config import EDIT
from dopsd_app.data.caption_file import put_trigger_word
from dopsd_app.data.drafts import Draft

FEWEST, NEARLY_ALL = (
    4,
    0.8,
)  # pictures from which, and share in which, a word counts as one that never changes
NAMED = 6  # words in one message

# Words that build sentences: English, German, French, Spanish, Italian, Portuguese, Dutch.
SENTENCE_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a an the this that these those its it his her their my is are was be been being has have with
    without of in on at to from by for and or but as near next beside behind under over above below
    between into onto out up down off against through while there one two three some very der die das den
    dem des ein eine einen einem einer eines ist sind hat mit ohne von vom im am auf aus bei zu zum zur
    für und oder vor hinter neben unter über zwischen le la les l un une du de d est sont avec sans dans
    sur sous à au aux et ou devant derrière entre par pour el los las una unos unas es son está están con
    sin en sobre bajo y o al del ante tras por para il lo gli i uno è sono senza nel nella sul sulla e
    tra fra di da os um uma são tem com sem em no na nos nas ao sob do dos het een zijn heeft met zonder
    van op aan uit bij naar voor achter naast onder boven tussen""",
    )
)
# Words that place things in a picture or say that it is one; they stand beside what changes.
FRAME_WORDS = frozenset(
    re.findall(
        r"\w+",
        """background foreground scene front back left right middle center centre side top bottom corner
    view shot photo photograph picture image hintergrund vordergrund links rechts mitte foto bild fond
    gauche droite arrière plan fondo izquierda derecha imagen""",
    )
)
ORDINARY_WORDS = frozenset(
    re.findall(
        r"\w+",
        """animal anime art artist artwork baby bag bear bird black blue boat book bottle boy brown
    building cake car cartoon cat character chair child city cloud coat comic concept creature cup cute
    dog doll dragon drawing dress face fantasy fish flower food fox friend fruit girl glass green guy
    hair hand hat head horse house human illustration image kid kitten lady landscape light logo man me
    mascot model monster mountain mouse my myself object orange painting paint pattern person pet photo
    picture pink plant plush portrait product puppy purple rabbit red robot room self shirt shoe shoes
    sketch sky sneaker son daughter style subject sunglasses table texture thing toy train tree trigger
    watch watercolor watercolour wave white wife husband wolf woman word world yellow hund katze mann
    frau kind stil gesicht haus auto chien chat homme femme perro gato hombre mujer estilo""",
    )
)


# Weights of a word, LoRAs, and the mark behind which kohya's scripts keep tags where they are.
_SIGNS = re.compile(r"\([^()]*:\s*\d*\.?\d+\s*\)|<\s*(?:lora|lyco|hypernet)\s*:[^>]*>|\|\|\|", re.IGNORECASE)


def advise(draft: Draft) -> dict[str, tuple[str, ...]]:
    """Advice on a draft by picture key; "" is the whole set. Empty captions are `check_draft`'s.

    None on instructions of an edit: they need no trigger word, and may all be the same.
    """
    if draft.kind == EDIT:
        return {}
    trigger = draft.trigger_word.strip() or "[trigger]"
    captions = {item.key: put_trigger_word(item.caption, trigger).splitlines() for item in draft.items}
    return lint_captions(captions, draft.trigger_word, draft.kind)


def lint_captions(
    captions: Mapping[str, Sequence[str]], trigger_word: str, kind: str
) -> dict[str, tuple[str, ...]]:
    """Advice on the captions of each picture, by the picture's key; "" is the whole set.

    `kind` is what is to be learned: "subject" or "style".
    """
    trigger_word = trigger_word.strip()
    lines = {key: [line.strip() for line in texts if line.strip()] for key, texts in captions.items()}
    written = [texts for texts in lines.values() if texts]
    advice = {"": (*_on_trigger_word(trigger_word), *_on_set(written, trigger_word, kind))}
    advice |= {key: (*_on_picture(texts, trigger_word), *_on_signs(texts)) for key, texts in lines.items()}
    return {key: sentences for key, sentences in advice.items() if sentences}


def _on_trigger_word(trigger_word: str) -> list[str]:
    if not trigger_word:
        return ["There is no trigger word. Make one up: it stands for what is new, in captions and prompts."]
    words = _words(trigger_word)
    if words and all(word in ORDINARY_WORDS | SENTENCE_WORDS for word in words):
        return [
            f"The model has a meaning of its own for “{trigger_word}”, and every prompt with it may change. A"
            f" made-up word keeps that apart, alone or before it: “zorp {words[-1]}”."
        ]
    return []


def _on_picture(texts: list[str], trigger_word: str) -> tuple[str, ...]:
    if not texts or not trigger_word:
        return ()
    lacking = [text for text in texts if not holds(text.lower(), trigger_word.lower())]
    if lacking:
        where = (
            "The caption" if len(texts) == 1 else "Each caption" if lacking == texts else f"“{lacking[0]}”"
        )
        return (f"{where} lacks the trigger word “{trigger_word}”.",)
    if not all(holds(text, trigger_word) for text in texts):
        return (f"Write the trigger word as everywhere, with the same capitals: “{trigger_word}”.",)
    return ()


def _on_signs(texts: list[str]) -> list[str]:
    """What other programs take out of a prompt, and this one's text encoder reads as letters."""
    for text in texts:
        if found := _SIGNS.search(text):
            sign = found[0][:40]
            return [f"“{sign}” is learned as it stands: such signs mean nothing here. Leave them out."]
    return []


def _on_set(pictures: list[list[str]], trigger_word: str, kind: str) -> list[str]:
    if len(pictures) > 1 and all(texts == pictures[0] for texts in pictures):
        return ["All captions are the same. Say what differs: place, pose, light, what else is to be seen."]
    unchanging = _unchanging_words(pictures, trigger_word, kind)
    if not unchanging:
        return []
    named = ", ".join(f"“{word}”" for word in unchanging[:NAMED])
    stand = "stands" if len(unchanging) == 1 else "stand"
    what = "What belongs to the style" if kind == "style" else "What never changes about the subject"
    return [
        f"{named} {stand} in nearly every caption. {what} is for the trigger word to learn: leave it out,"
        " and describe the rest."
    ]


def _unchanging_words(pictures: list[list[str]], trigger_word: str, kind: str) -> list[str]:
    """Words of nearly all pictures' captions, in their order, that may describe the concept."""
    if len(pictures) < FEWEST or not trigger_word:
        return []
    trigger = re.compile(rf"\w*{re.escape(trigger_word)}\w*", re.IGNORECASE)  # "zorps", too
    pictures = [[trigger.sub(" ", text) for text in texts] for texts in pictures]
    passed_over = SENTENCE_WORDS | FRAME_WORDS
    passed_over |= {"style", "stil", "estilo", "stile", "stijl"} if kind == "style" else set()
    counts: Counter[str] = Counter()
    for texts in pictures:
        lines = Counter(word for text in texts for word in set(_words(text)))
        counts.update(word for word, count in lines.items() if 2 * count >= len(texts))
    order = list(dict.fromkeys(word for texts in pictures for text in texts for word in _words(text)))
    return [word for word in order if counts[word] >= NEARLY_ALL * len(pictures) and word not in passed_over]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W\d_]+(?:[-'\u2019][^\W\d_]+)*", text.lower())


def holds(text: str, word: str) -> bool:
    """Whether a text has the word as a whole; letters of scripts without capitals may touch it.

    Those scripts either put no spaces between words, as Chinese, or hang endings on them, as Korean.
    """
    for found in re.finditer(re.escape(word), text):
        before, after = text[: found.start()][-1:], text[found.end() :][:1]
        touching = [character for character in before + after if character.isalnum()]
        if all(unicodedata.category(character) == "Lo" for character in touching):
            return True
    return False
