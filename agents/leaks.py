"""Does a strategy speak of the question that it was made from? Then it is no strategy, and may give an answer away (specification 2.4).

    leaks("Consider checking when Anna was born.", Source(question="Where does Anna live?"))   # ["the name 'Anna'"]

Looked for: names, numbers, quotations and runs of words of the question, its answers or what was found; and words of the question or
answers that are too rare for general advice. The check errs on the side of refusing: a strategy that is refused costs one more try.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

from memweave.agents.prompts import load_prompt
from memweave.agents.rules.lexicon import STOP
from memweave.agents.rules.text import content, stem, words
from memweave.records import Record

RUN: Final = 5
"""Words in a row that a strategy and a text have in common only when one was copied from the other."""

_QUOTED: Final = re.compile(r"[\"“”«»]([^\"“”«»]{2,200})[\"“”«»]|(?<!\w)['‘]([^'‘’]{2,200})['’](?!\w)")
_COMMON: Final = """
actor age album answer artist author band battle birth book born brother capital century chain character child city claim club coach
company compare comparison country date daughter day death detail die difference directly director doctor early entity event evidence fact
family father film final find first founder friend game genre give group guess head history hop hypothesis independent information
intermediate item key king language large last late leader league link list live location long member month mother movie music name
nation national neighbour novel number object office old order parent part party people person place play player point position president
prize product queen query question rank record region relation release result river role school science search second series short
show similar singer sister size small son song source specific spouse sport start state step story study subject team term thing third
time title topic tool town tv type university value verify version war whether wife win word work write writer year young
"""
"""Words that general advice about questions may use, whatever was asked."""


class Source(Record):
    """What a strategy was made from, and may not repeat."""

    question: str
    answers: tuple[str, ...] = ()
    """That were given, and the right one if it is known."""
    found: tuple[str, ...] = ()
    """Results of tools."""


def leaks(text: str, source: Source, *, allowed: str = "") -> list[str]:
    """Return what a text tells of its source, one phrase each; `[]` for one that may be kept. allowed: words that may be used as well."""
    asked = " \n ".join([source.question, *source.answers])
    everything = " \n ".join([asked, *source.found])
    named = [f"the name {name!r}" for name in _shared_names(text, everything, allowed)]
    numbers = [f"the number {number}" for number in _shared_numbers(text, asked, everything)]
    quoted = [f"the quotation {span!r:.60}" for span in _quoted(text) if _within(span, everything)]
    copied = [f"the words {run!r}" for run in _shared_runs(text, everything)]
    general = _general() | content(allowed)
    rare = sorted(word for word in content(text) & content(asked) - general if not word.isdigit())
    told = " ".join([*named, *quoted, *copied]).lower()
    return [*named, *numbers, *quoted, *copied, *(f"the word {word!r}" for word in rare if word not in told)]


def _shared_names(text: str, everything: str, allowed: str) -> list[str]:
    """Return capitalised words that both have, where neither is a common word at the beginning of a sentence."""
    general = _general() | content(allowed)
    there = {word for word in words(everything) if word[0].isupper()}
    shared = {word for word in words(text) if word[0].isupper() and word in there}
    return sorted(word for word in shared if word.lower() not in STOP and stem(word) not in general)


def _shared_numbers(text: str, asked: str, everything: str) -> list[str]:
    """Return numbers of question and answers, and longer ones (years, amounts) of what was found: a passage's own number is no leak."""
    said = set(_numbers(text))
    return sorted(said & (set(_numbers(asked)) | {number for number in _numbers(everything) if len(number) > 1}))


def _numbers(text: str) -> list[str]:
    return [found.replace(",", "") for found in re.findall(r"\d+(?:,\d{3})*(?:\.\d+)?", text)]


def _quoted(text: str) -> Iterator[str]:
    for match in _QUOTED.finditer(text):
        yield (match[1] or match[2]).strip(" .,;:")


def _within(span: str, everything: str) -> bool:
    wanted = " ".join(word.lower() for word in words(span))
    return bool(wanted) and f" {wanted} " in f" {' '.join(word.lower() for word in words(everything))} "


def _shared_runs(text: str, everything: str) -> list[str]:
    """Return the first run of `RUN` words that both have, if any."""
    there = {run for line in everything.splitlines() for run in _runs(line)}
    return [run for run in _runs(text) if run in there][:1]


def _runs(text: str) -> list[str]:
    said = [word.lower() for word in words(text)]
    return [" ".join(said[i : i + RUN]) for i in range(len(said) - RUN + 1)]


@lru_cache(maxsize=1)
def _general() -> frozenset[str]:
    """Return the stems that general advice may use: common words, and those in which we ask for advice."""
    return content(_COMMON) | content(load_prompt("strategist").text)
