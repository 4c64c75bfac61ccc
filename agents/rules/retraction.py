"""Statements that take something back: what ended, was cancelled, or should not have been said.

A cue counts only with the speaker as its subject and nothing but harmless words between ("I have finally sold the van"): "I could
never give up cheese" and "he quit" take nothing back.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from memweave.agents.rules.attributes import canonical
from memweave.agents.rules.dates import ABSOLUTE
from memweave.agents.rules.lexicon import LIGHT
from memweave.agents.rules.text import content, sentences, stem


@dataclass(frozen=True)
class Retraction:
    """What a statement takes back."""

    about: frozenset[str]
    """Stems of what it names."""
    phrase: str
    """What it names, as written."""
    cue: str
    lasting: bool
    """Whether it is worth remembering ("I sold the van"), unlike "forget what I said"."""


_BETWEEN = (
    r"(?: (?:have|had to|have to|finally|just|also|already|recently|actually|now|sadly|really|decided to|ended up|unfortunately|then"
    r"|even|we|officially)){0,3}"
)
_AFTER = "when|because|since|after|before|and|but|so|last|this|yesterday|today|in|on|for|at the|to a|any ?more|any longer|instead|as"
_OBJECT = rf"(?P<about>[\w'& -]{{2,80}}?)(?=[,.;:!?()–—]| -|$| (?:{_AFTER})\b)"
_ENDED = (
    "quit|quitted|gave up|given up|give up|dropped(?: out of)?|drop(?: out of)?|stopped|cancelled|canceled|cancel|called off|call off|sold"
    "|sell|got rid of|gave away|given away|broke up with|broken up with|resigned from|withdrew from|pulled out of|unsubscribed from"
    "|moved out of"
)
_SAID = r"(?:what|everything|anything|all) I (?:said|told you|mentioned|wrote) about|the (?:thing|bit|part|story) about|about"
_CUES: Final[tuple[tuple[bool, re.Pattern[str]], ...]] = tuple(
    (lasting, re.compile(pattern))
    for lasting, pattern in (
        (True, rf"\b(?:I|[Ww]e){_BETWEEN} (?P<cue>{_ENDED}) (?!(?:at|by|in|for|to|off|over|on)\b){_OBJECT}"),
        (True, rf"\bI (?:am |have )?(?P<cue>no longer) {_OBJECT}"),
        (
            True,
            r"\bI (?P<cue>do not|don't|doesn't|does not|am not|can't|cannot|won't)(?: really)?"
            r" (?P<about>[\w' -]{2,60}?) any ?(?:more|longer)\b",
        ),
        (
            True,
            r"\b(?:[Tt]he|[Mm]y|[Oo]ur) (?P<about>[\w'& -]{2,60}?) (?:is|was|has been|got|have been|are|were)(?: now)?"
            r" (?P<cue>cancelled|canceled|called off|not happening)(?=[ ,.!;]|$)",
        ),
        (False, rf"\b(?P<cue>[Ff]orget|[Ss]cratch|[Ii]gnore|[Dd]isregard|[Nn]ever mind) (?:{_SAID}) {_OBJECT}"),
        (False, rf"\bI was (?P<cue>wrong|mistaken|lying|kidding|joking) about {_OBJECT}"),
    )
)
_BARE = re.compile(
    r"(?:\w{1,60} said: )?(?:wait,? |sorry,? |no,? )?(?:scratch|forget|ignore|disregard|strike) (?:that|it|what I said)[.!]*$",
    re.IGNORECASE,
)
_UNREAL: Final = re.compile(
    r"\b(?:if|would|could|might|may|want to|wish|never|didn't|thinking|almost|nearly|should|can't wait|used to have to)\b"
)
_LIGHT: Final = frozenset(stem(word) for word in LIGHT)


@lru_cache(maxsize=8_192)
def retractions(text: str, speaker: str) -> tuple[Retraction, ...]:
    """Return what a statement of `speaker` takes back, if anything."""
    found: list[Retraction] = []
    for sentence in sentences(canonical(text, speaker)):
        for lasting, pattern in _CUES:
            match = pattern.search(sentence)
            if match is None or _UNREAL.search(sentence, 0, match.start("about")):
                continue
            about = content(match["about"])
            if about:
                found.append(Retraction(about, match["about"].strip(), match["cue"], lasting))
                break
    return tuple(found)


def is_bare(text: str) -> bool:
    """Return whether the statement only takes back, without naming what ("Scratch that")."""
    return _BARE.match(text) is not None


@lru_cache(maxsize=8_192)
def subject_matter(text: str, speaker: str) -> tuple[frozenset[str], ...]:
    """Return, for each sentence of a statement, the stems that say what it is about: no dates, no verbs of beginning."""
    return tuple(content(ABSOLUTE.sub(" ", s)) - _LIGHT - {"i"} for s in sentences(canonical(text, speaker)))


def takes_back(retraction: Retraction, text: str, speaker: str) -> float:
    """Return how well a statement matches what is taken back, in [0, 1]; 0 unless it is mainly about that.

    One sentence must consist mostly of the words named (60 %), and cover most of them (half), the last one or all of the light ones aside.
    """
    named = retraction.about - _LIGHT or retraction.about
    best = 0.0
    for sentence in subject_matter(text, speaker):
        shared = named & sentence
        if sentence and len(shared) / len(sentence) >= 0.5 and len(shared) / len(named) >= 0.6:
            best = max(best, (len(shared) / len(sentence) + len(shared) / len(named)) / 2)
    return best
