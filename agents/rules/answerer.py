"""The answerer without a model: quotes the memories that match the question best, and cuts a short answer out of them.

Words are weighed by how rare they are among the memories shown. An attribute that the question asks for ("where does Mara live")
is read with the manager's patterns; otherwise the kind of question decides what is cut out. It compares words, not
meanings, so it is a baseline, and it says `not in memory` rather than guess when nothing matches.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from datetime import date
from typing import Final

from langchain_core.runnables import RunnableConfig

from memweave.agents.roles import AnswerRequest, dated, one_line
from memweave.agents.rules import spans
from memweave.agents.rules.asking import Kind, Question, read_question
from memweave.agents.rules.attributes import Slot, slots
from memweave.agents.rules.dates import dates_in, day
from memweave.agents.rules.lexicon import PETS
from memweave.agents.rules.retraction import retractions
from memweave.agents.rules.text import content, negated, neighbours, sentences, stem, words
from memweave.agents.rules.voice import said_prefix
from memweave.records import Memory

NOT_IN_MEMORY: Final = "not in memory"
"""The answer when no memory matches."""

MOST_QUOTED: Final = 5
"""Memories quoted at most; a list may rest on more."""

LONGEST_QUOTE: Final = 1_000
"""In characters: a longer memory is cut in the quotation."""

_MARKER = "**Answer:**"
_BEFORE = re.compile(r" ?\(before: [^()]{0,200}\)")
_OPENING = re.compile(r"(?:(?:[A-Z][a-z]{1,12}ly|So|And|But|Now),? )?")


@dataclass(frozen=True)
class _Match:
    number: int
    memory: Memory
    score: float
    """Share of the weight of the question's words that the memory has, and up to 0.3 for whole terms and dates."""
    sentence: str
    """The sentence that matches best."""
    told: date | None


class RuleAnswerer:
    """Answers by rules; the same request always gives the same answer."""

    name = "rule"
    policy_version: str | None = None

    def reply(self, request: AnswerRequest, config: RunnableConfig | None = None) -> str:
        """Return the quoted memories and `**Answer:** ...`."""
        answer, used = answer_from(request.question, request.memories)
        lines = [f"- {one_line(dated(request.memories[i]))[:LONGEST_QUOTE]} [{i}]" for i in used[:MOST_QUOTED]]
        return "\n".join([*lines, f"{_MARKER} {one_line(answer) or NOT_IN_MEMORY}"])

    async def areply(self, request: AnswerRequest, config: RunnableConfig | None = None) -> str:
        """Return the quoted memories and `**Answer:** ...`."""
        return self.reply(request, config)


def answer_from(text: str, memories: tuple[Memory, ...]) -> tuple[str, list[int]]:
    """Return the answer to a question and the numbers of the memories it rests on, best first."""
    question = read_question(text, [m.speaker for m in memories if m.speaker])
    matches = _ranked(question, memories)
    if question.attribute is not None:
        found = _from_attribute(question, memories)
        if found is not None:
            return found
    if not matches or matches[0].score == 0:
        return NOT_IN_MEMORY, []
    answer, used = _cut(question, matches)
    return answer, [m.number for m in used]


# finding


def _own(question: Question, memory: Memory) -> bool:
    """Return whether the memory is of a participant that the question is about (of anybody, when it names none)."""
    return not question.speakers or memory.speaker is None or memory.speaker in question.speakers


def _ranked(question: Question, memories: tuple[Memory, ...]) -> list[_Match]:
    """Return the memories by the weight of the question's words in them, the younger first among equals."""
    stems = [content(m.text[:20_000]) for m in memories]
    spread = Counter(s for found in stems for s in found)
    weight = {s: math.log(1 + len(memories) / (1 + spread[s])) + 0.1 for s in question.stems}
    total = sum(weight.values()) or 1.0
    everywhere = frozenset().union(*stems) if stems else frozenset()
    pairs = neighbours(question.text)
    matches = []
    for number, (memory, found) in enumerate(zip(memories, stems, strict=True)):
        score = sum(weight[s] for s in question.stems & found) / total
        if question.names & everywhere - found:
            score *= 0.5
        if question.names and not question.names & everywhere:
            score = 0.0
        score *= 1.0 if _own(question, memory) else 0.3
        sentence = _best_sentence(memory, weight)
        if score:  # whole terms, and a date where one is asked for, decide between memories with the same words
            score += 0.2 * len(pairs & neighbours(memory.text[:20_000])) / (len(pairs) or 1)
            score += 0.1 * (question.kind is Kind.WHEN and bool(dates_in(sentence)))
        matches.append(
            _Match(number, memory, score, sentence, memory.observed_at.date() if memory.observed_at else None)
        )
    return sorted(
        matches, key=lambda m: (-round(m.score, 6), -(m.told.toordinal() if m.told else 0), len(m.memory.text))
    )


def _best_sentence(memory: Memory, weight: dict[str, float]) -> str:
    text = spans.EARLIER.sub(" ", _BEFORE.sub("", memory.text[:20_000]))
    said, asked = said_prefix(text)
    parts = list(sentences(said)) or [said]
    if asked:
        return parts[0]
    return max(parts, key=lambda part: sum(weight[s] for s in weight.keys() & content(part)))


# answering


def _from_attribute(question: Question, memories: tuple[Memory, ...]) -> tuple[str, list[int]] | None:
    """Return the current value of the attribute that the question asks for, or all values of one that adds up."""
    found: list[tuple[float, int, Slot]] = []
    for number, memory in enumerate(memories):
        if not _own(question, memory) or not memory.speaker:
            continue
        for slot in slots(_BEFORE.sub("", memory.text), memory.speaker):
            fits = slot.attribute == question.attribute and slot.subject == question.subject
            if fits and (slot.attribute != "date" or _same_event(question, slot)):
                found.append((memory.observed_at.timestamp() if memory.observed_at else 0.0, number, slot))
    if not found:
        return None
    found.sort(key=lambda item: (-item[0], -item[1]))
    if found[0][2].accumulates:
        return _all_values(question, list(reversed(found)))
    _, number, slot = found[0]
    if question.kind is Kind.CHOICE:
        held = [option for option in question.options if content(option) & slot.key]
        return (held[0], [number]) if len(held) == 1 else None
    if question.kind is Kind.YES_NO:
        return ("Yes" if slot.key & question.stems else "No"), [number]
    return slot.value, [number]


def _same_event(question: Question, slot: Slot) -> bool:
    proper = {name.lower() for name in slot.names if name[0].isupper()}
    return not proper or not question.names or bool(proper & question.names)


def _all_values(question: Question, found: list[tuple[float, int, Slot]]) -> tuple[str, list[int]]:
    """Return how many, or which, of an attribute that adds up."""
    numbers = list(dict.fromkeys(number for _, number, _ in found))
    values = list(dict.fromkeys(slot.value for _, _, slot in found))
    if question.kind is Kind.HOW_MANY:
        noun = next((stem(w) for w in words(question.text) if stem(w) in _PET_STEMS), None)
        return str(spans.count([slot.value for _, _, slot in found], noun)), numbers
    return " and ".join([", ".join(values[:-1]), values[-1]] if len(values) > 1 else values), numbers


_PET_STEMS: Final = frozenset(stem(w) for w in PETS)


def _cut(question: Question, matches: list[_Match]) -> tuple[str, list[_Match]]:
    """Cut the answer out of the best matches, by the kind of question; also return those that it came from."""
    best = matches[0]
    if question.kind is Kind.CHOICE:
        return _choice(question, matches)
    ended = best.memory.speaker is not None and bool(retractions(best.memory.text, best.memory.speaker))
    if question.kind is Kind.YES_NO:
        return "No" if ended or negated(best.sentence) else "Yes", [best]
    telling = _without_subject(best.sentence, best.memory.speaker)
    if ended and question.now:
        return spans.shortened(spans.first_clause(telling)), [best]
    cut: str | None = None
    if question.kind is Kind.WHEN:
        cut = spans.date_in(best.sentence) or spans.date_in(_BEFORE.sub("", best.memory.text)) or _told(best)
    elif question.kind is Kind.WHERE:
        cut = spans.place_in(best.sentence, question.stems)
    elif question.kind is Kind.WHO:
        cut = spans.person_in(best.sentence, question.stems | question.names) or best.memory.speaker
    elif found := _from_several(question, matches):
        return found
    return cut or spans.rest_of(telling, question.stems, question.verb) or spans.shortened(best.memory.text), [best]


def _from_several(question: Question, matches: list[_Match]) -> tuple[str, list[_Match]] | None:
    """Look for a length of time, a number, names or a definition, in the best memory that has one."""
    if question.attribute == "name":
        return _names(question, matches)
    for match in matches if question.names else matches[:3]:
        cut: str | None = None
        if question.kind is Kind.HOW_LONG:
            cut = spans.duration_in(match.sentence)
        elif question.kind is Kind.HOW_MANY:
            cut = spans.number_in(match.sentence)
        elif question.names:
            cut = spans.what_is(match.memory.text, question.names)
        if cut:
            return cut, [match]
    return None


def _names(question: Question, matches: list[_Match]) -> tuple[str, list[_Match]] | None:
    """Return the names that the memories give; of pets, those in memories that speak of a pet."""
    noun = next((stem(w) for w in words(question.text) if stem(w) in _PET_STEMS), None)
    if noun is None:
        likely = [m for m in matches if m.score >= matches[0].score * 0.5]
    else:
        likely = [m for m in matches if _own(question, m.memory) and content(m.memory.text) & _PET_STEMS]
    likely.sort(key=lambda m: m.told.toordinal() if m.told else 0)
    given = [(m, names) for m in likely if (names := spans.names_given(m.memory.text, noun))]
    if not given:
        return None
    found = dict.fromkeys(name for _, names in given for name in names)
    return " and ".join(found), [m for m, _ in given]


def _without_subject(sentence: str, speaker: str | None) -> str:
    """Return the sentence from its verb on, when its subject is the speaker."""
    start = match.end() if (match := _OPENING.match(sentence)) else 0
    for subject in (f"{speaker} ", "I "):
        if sentence.startswith(subject, start):
            return sentence[start + len(subject) :]
    return sentence


def _told(match: _Match) -> str | None:
    return day(match.told) if match.told else None


def _choice(question: Question, matches: list[_Match]) -> tuple[str, list[_Match]]:
    """Return the option that the best match speaks for: its speaker, or the word that it contains."""
    for match in matches:
        speaker = match.memory.speaker
        spoken_for = [o for o in question.options if speaker and speaker in o]
        held = [o for o in question.options if content(o) & content(_BEFORE.sub("", match.sentence))]
        if len(spoken_for or held) == 1 and match.score:
            return (spoken_for or held)[0], [match]
    return spans.shortened(matches[0].sentence), matches[:1]
