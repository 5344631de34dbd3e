"""Failures that are expected, and how the others are explained."""


class KnownFailure(ValueError):
    """A failure with a sentence for the person: what is wrong, which value, what to do."""

    detail = ""  # for the log: another's own words


def unexpected(error: Exception) -> str:
    """The first line of an error that nobody foresaw."""
    first = str(error).strip().partition("\n")[0][:300].rstrip(".")
    return f"Unexpected error, {type(error).__name__}: {first}."


def is_out_of_memory(error: Exception) -> bool:
    """Whether the GPU's memory or the computer's was too small."""
    text = str(error).lower()
    names = {kind.__name__ for kind in type(error).__mro__}  # by name: torch is not imported for this
    return bool(names & {"OutOfMemoryError", "MemoryError"}) or any(
        words in text
        for words in ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
    )
