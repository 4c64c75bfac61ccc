"""Third person: "I live in Bremen" becomes "Jonas lives in Bremen".

A memory is read without its conversation, so a fact names who it is about. The rewrite is done only where it is safe; anything else is
kept word for word behind "Jonas said:". The name is repeated rather than guessing "he" or "she".
"""

from __future__ import annotations

import re
from typing import Final

from memweave.agents.rules.lexicon import ADVERBS, ANAPHORS, BASE_VERBS, IRREGULAR_PAST, MODALS, SAME_IN_PAST

_FIRST = re.compile(r"(?<![\w'-])(?:I'm|I've|I'd|I'll|I|[Mm]e|[Mm]y|[Mm]ine|[Mm]yself)(?![\w'-])")
_PLURAL_OR_ADDRESSED = re.compile(
    r"\b(?:we|us|our|ours|ourselves|let's|you|your|yours|yourself|y'all|ya|we'\w{1,2}|you'\w{1,2})\b", re.IGNORECASE
)
_NEXT = re.compile(r"[\s,]{0,3}+([A-Za-z]+(?:'[a-z]+)?)")
_AND = re.compile(
    r"\b(?:and|or|but) (?P<adverb>\w+ly |also |still |just |then |now )?(?P<verb>[a-z]+)\b(?! (?:is|was|are|were|of)\b)"
)
_INVERTED = re.compile(
    r"\b(?:am|was|do|did|have|had|can|could|will|would|should|must|may|might|nor|neither) $", re.IGNORECASE
)
_SUBJECT = re.compile(r"\b(?:I|he|she|it|they|that|which|who|to|we|you)\b|[.!?;]")
_WHOSE: Final = re.compile(
    r"^(?P<name>[^:\"]{1,256}?)(?:, asked \"(?P<question>[^\"]{1,400})\",)? said(?: to (?P<to>[^:\"]{1,256}?))?: "
)

IRREGULAR_THIRD: Final = {
    "am": "is",
    "have": "has",
    "haven't": "hasn't",
    "do": "does",
    "don't": "doesn't",
    "'m": "is",
    "ain't": "isn't",
}
KEPT: Final = MODALS | {
    "was",
    "wasn't",
    "were",
    "weren't",
    "had",
    "hadn't",
    "did",
    "didn't",
    "is",
    "has",
    "hasn't",
    "been",
}


def third_person(text: str, name: str) -> str | None:
    """Return `text` with its first person put into the third, or `None` where that is not safe.

    Safe means: only I, me and my; each I is followed (after adverbs) by a verb whose third person is known.
    """
    if _PLURAL_OR_ADDRESSED.search(text):
        return None
    parts: list[str] = []
    position, found = 0, False
    for match in _FIRST.finditer(text):
        if match.start() < position:
            continue
        found = True
        parts.append(text[position : match.start()])
        rewritten = _rewrite(text, match, name)
        if rewritten is None:
            return None
        piece, position = rewritten
        parts.append(piece)
    return "".join([*parts, text[position:]]) if found else None


def _rewrite(text: str, match: re.Match[str], name: str) -> tuple[str, int] | None:
    """Return what replaces one first-person word and the verb after it, and where the text goes on."""
    word, end = match.group(), match.end()
    lower = word.lower()
    if lower == "me":
        return name, end
    if lower in ("my", "mine"):
        return f"{name}'s", end
    if lower == "myself":
        return None
    if word == "I'm":
        return f"{name} is", end
    if word == "I've":
        return f"{name} has", end
    if word == "I'll":
        return f"{name} will", end
    if word == "I'd":
        following = _verb_after(text, end)
        verb = following[1] if following else ""
        return f"{name} {'had' if verb == 'better' or verb.endswith('ed') or verb in _PARTICIPLES else 'would'}", end
    return _subject(text, match, name)


_FINITE: Final = IRREGULAR_THIRD.keys() | KEPT | {"are", "says", "said"}
_PARTICIPLES: Final = frozenset(IRREGULAR_PAST) - frozenset(IRREGULAR_PAST.values()) - {"made"}


def _verb_after(text: str, position: int) -> re.Match[str] | None:
    """Return the first word after `position` that is not an adverb."""
    while (following := _NEXT.match(text, position)) is not None and following[1].lower() in ADVERBS:
        position = following.end()
    return following


def _shares_subject(text: str, position: int) -> bool:
    """Return whether the "I" at `position` is the second half of a subject ("Lena and I are flying"): the verb stays plural."""
    clause = re.split(r"[,.;:!?]", text[max(0, position - 80) : position])[-1]
    before = clause.split()
    if len(before) < 2 or before.pop() not in ("and", "or", "nor") or len(before) > 4:
        return False
    return not any(
        w.startswith("I'") or w in ("I", "it", "he", "she", "they") or _third(w) == w or w.lower() in _FINITE
        for w in before
    )


def _subject(text: str, match: re.Match[str], name: str) -> tuple[str, int] | None:
    """Rewrite "I" and its verb."""
    end = match.end()
    if _INVERTED.search(text, max(0, match.start() - 12), match.start()):
        return None  # "How could I forget"
    if _shares_subject(text, match.start()):
        return name, end
    following = _verb_after(text, end)
    if following is None:
        return None
    verb = following[1]
    form = _third(verb)
    if form is None:
        return None
    tail, position = "", following.end()
    if form != verb and verb in BASE_VERBS:
        tail, position = _coordinated(text, position)
    return f"{name}{text[end : following.start(1)]}{form}{tail}", position


def _third(verb: str) -> str | None:
    """Return the third person singular of the verb form after "I", or `None` when it is not known to be one."""
    lower = verb.lower()
    if lower in IRREGULAR_THIRD:
        return IRREGULAR_THIRD[lower]
    if lower in KEPT or lower in SAME_IN_PAST or (lower in IRREGULAR_PAST and lower not in BASE_VERBS):
        return verb
    if lower in BASE_VERBS:
        if lower.endswith(("s", "x", "z", "ch", "sh", "o")):
            return verb + "es"
        return verb[:-1] + "ies" if lower.endswith("y") and lower[-2] not in "aeiou" else verb + "s"
    return verb if lower.endswith("ed") else None


def _coordinated(text: str, start: int) -> tuple[str, int]:
    """Inflect a verb that shares the subject: "I live here and work there"."""
    match = _AND.search(text, start, start + 200)
    if match is None or match["verb"] not in BASE_VERBS or _SUBJECT.search(text, start, match.start()):
        return "", start
    return text[start : match.start("verb")] + (_third(match["verb"]) or match["verb"]), match.end("verb")


def stated_by(text: str, speaker: str, *, addressee: str | None = None, question: str | None = None) -> str:
    """Return `text` as a fact of `speaker`: in the third person where safe, otherwise quoted.

    question: what it answers, kept when the text cannot be understood without it.
    """
    if question is None and not leans_or_orders(text) and (rewritten := third_person(text, speaker)) is not None:
        return rewritten
    asked = f', asked "{question}",' if question else ""
    to = (
        f" to {addressee}"
        if addressee and re.search(r"\byou(?:r|rs|'\w{1,2})?\b", text, re.IGNORECASE) and not question
        else ""
    )
    return f"{speaker}{asked} said{to}: {text}"


def leans_or_orders(text: str) -> bool:
    """Return whether the text opens with a pronoun for something else, or without a subject: a name inside would mislead."""
    first = _NEXT.match(text)
    return first is None or first[1].lower() in ANAPHORS | BASE_VERBS | {"gonna", "been", "gotta", "wanna"}


def said_prefix(text: str) -> tuple[str, str | None]:
    """Return (the words that were said, the question that they answer): what `stated_by` put in front is taken off."""
    match = _WHOSE.match(text)
    return (text[match.end() :], match["question"]) if match else (text, None)
