"""The extractor without a model: which facts does a turn state?

Sentences are kept unless they are questions, greetings, thanks or reactions; sentences that lean on one another stay together; dates
become absolute; "I" becomes the speaker's name where that is safe. What is not understood is kept as it was said.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import date
from typing import Final

from langchain_core.runnables import RunnableConfig

from memweave.agents.roles import ExtractRequest
from memweave.agents.rules import chatter
from memweave.agents.rules.attributes import slots
from memweave.agents.rules.dates import resolve
from memweave.agents.rules.text import clean, sentences, words
from memweave.agents.rules.voice import stated_by
from memweave.records import Turn

LONG_FACT: Final = 300
"""In characters: a sentence is not joined to a fact that has reached this length."""

DOCUMENT: Final = 20_000
"""In characters: a longer turn is a document, not speech; it is kept whole, in passages."""

PASSAGE: Final = 1_000
"""In characters: length of a passage of a document."""

_PHOTO = re.compile(
    r"\[(?:shares?|shared|sends?|sent) (?:an? |\d{1,3} )?(?:photo|image|picture|video)s?(?::([^\]\[]{0,4000}+))?\]"
)
_DEPICTS = re.compile(r"(?:an? )?(?:photo(?:graph(?:y)?)?|image|picture|screenshot)s? of\b", re.IGNORECASE)


@dataclass
class _Group:
    """Sentences that belong together."""

    question: str | None = None
    sentences: list[str] = field(default_factory=list)

    def text(self) -> str:
        return " ".join(self.sentences)


class RuleExtractor:
    """Extracts facts by rules; the same turn always gives the same facts."""

    name = "rule"
    policy_version: str | None = None

    def reply(self, request: ExtractRequest, config: RunnableConfig | None = None) -> str:
        """Return `{"facts": [...]}`."""
        return json.dumps({"facts": facts(request.turn, request.history)}, ensure_ascii=False)

    async def areply(self, request: ExtractRequest, config: RunnableConfig | None = None) -> str:
        """Return `{"facts": [...]}`."""
        return self.reply(request, config)


def facts(turn: Turn, history: tuple[Turn, ...] = ()) -> list[str]:
    """Return the facts that `turn` states, each understandable by itself, in order and without repetition."""
    said = turn.observed_at.date() if turn.observed_at else None
    addressee = next((t.speaker for t in reversed(history) if t.speaker != turn.speaker), None)
    text = clean(turn.text)
    photos = [_photo(turn.speaker, caption) for caption in _PHOTO.findall(text)]
    text = _PHOTO.sub("\n", text)
    if len(text) > DOCUMENT:
        return list(dict.fromkeys([*_passages(turn.speaker, text), *photos]))
    names = chatter.lower_names([turn.speaker, *(t.speaker for t in history[-8:])])
    groups = _groups(text, chatter.question_of(clean(turn.previous) if turn.previous else None, names), names)
    stated = [part for group in groups for part in _apart(_fact(group, turn.speaker, addressee, said), turn.speaker)]
    return list(dict.fromkeys(fact for fact in [*stated, *photos] if fact))


def _apart(fact: str, speaker: str) -> list[str]:
    """Cut "Mara lives in Ghent, and Mara works at the library" in two, so that each half can change by itself."""
    for joint in re.finditer(rf",? and (?={re.escape(speaker)} )", fact):
        head, tail = f"{fact[: joint.start()]}.", fact[joint.end() :]
        if slots(head, speaker) and slots(tail, speaker):
            return [head, *_apart(tail, speaker)]
    return [fact]


def _groups(text: str, question: str | None, names: frozenset[str]) -> list[_Group]:
    """Sort the sentences of a turn into facts, dropping what carries no information."""
    groups: list[_Group] = []
    open_group: _Group | None = None
    answer: str | None = None
    for raw in sentences(text):
        sentence: str | None = raw
        if chatter.is_question(raw):
            sentence = chatter.statement_in(raw)
        if sentence is None or chatter.is_small_talk(sentence, names):
            if answer is None and sentence is not None and chatter.answers(sentence, question):
                answer = sentence
            open_group = None if sentence is None else open_group
            continue
        sentence = chatter.trimmed(chatter.opened(sentence, names))
        if len(words(sentence)) < 2 and (question is None or not raw.startswith(sentence)):
            continue  # "Mel!", "Details."
        fresh = not raw.startswith(sentence[:12])  # an opener was taken off: a new topic
        leans = chatter.leans_back(sentence)
        if open_group is not None and leans and not fresh and len(open_group.text()) < LONG_FACT:
            open_group.sentences.append(sentence)
            continue
        needs_question = (chatter.is_fragment(sentence) or chatter.is_anaphoric(sentence)) and open_group is None
        open_group = _Group(question if needs_question else None, [sentence])
        groups.append(open_group)
    if not groups and answer is not None:
        groups.append(_Group(question, [answer]))
    return groups


def _fact(group: _Group, speaker: str, addressee: str | None, said: date | None) -> str:
    text = " ".join(resolve(sentence, said) for sentence in group.sentences)
    if group.question is None and text[:4].lower() == "and ":
        text = text[4:]
    text = text[:1].upper() + text[1:]
    if text[-1].isalnum():
        text += "."
    return stated_by(text, speaker, addressee=addressee, question=group.question)


def _photo(speaker: str, caption: str) -> str:
    caption = " ".join(caption.split())
    if not caption:
        return ""
    return f"{speaker} shared {caption}." if _DEPICTS.match(caption) else f"{speaker} shared a photo: {caption}."


def _passages(speaker: str, text: str) -> list[str]:
    """Return a long text in passages that end where sentences end."""
    passages: list[str] = []
    current: list[str] = []
    length = 0
    for sentence in sentences(text):
        if current and length + len(sentence) > PASSAGE:
            passages.append(" ".join(current))
            current, length = [], 0
        current.append(sentence)
        length += len(sentence) + 1
    if current:
        passages.append(" ".join(current))
    return [f"{speaker} wrote: {passage}" for passage in passages]
