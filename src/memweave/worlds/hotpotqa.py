"""HotpotQA: questions that need two Wikipedia paragraphs (Yang et al., 2018). https://hotpotqa.github.io, CC BY-SA 4.0.

A file is a list of questions, as published:

    {"_id": "...", "question": "...", "answer": "...", "type": "bridge", "supporting_facts": [["title", 0]],
     "context": [["title", ["First sentence.", " Second."]], ...]}

A shared corpus `NAME_corpus.json`, {title: [sentences]}, may lie beside `NAME.json`; the paragraphs of all questions
are in it or are added to it. Titles are unique, as in HotpotQA's own Wikipedia dump.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import JsonValue

from memweave.errors import InputError
from memweave.worlds.files import as_list, as_object, as_text, load_json
from memweave.worlds.passages import Corpus, PassageQuestion, PassageSet, corpus_file, question_file


def read_hotpotqa(path: Path | str) -> PassageSet:
    """Read questions (a file, or the folder with it) and the corpus.

    Raises: InputError naming the file and the question.
    """
    file = question_file(Path(path), prefix="hotpot")
    corpus = Corpus()
    ids: dict[str, str] = {}
    beside = corpus_file(file)
    if beside is not None:
        for title, sentences in as_object(load_json(beside), str(beside)).items():
            ids[title] = corpus.add(title, _text(sentences, f"{beside}, {title!r}"))
    items = as_list(load_json(file), str(file))
    if not items:
        raise InputError(f"{file}: the list of questions is empty.")
    questions = tuple(_question(item, n, corpus, ids, f"{file}, question {n}") for n, item in enumerate(items))
    return PassageSet(name="hotpotqa", passages=corpus.passages(), questions=questions)


def _question(value: JsonValue, number: int, corpus: Corpus, ids: dict[str, str], place: str) -> PassageQuestion:
    item = as_object(value, place)
    context: dict[str, None] = {}
    for entry in as_list(item.get("context"), f"{place}, `context`"):
        title, sentences = _pair(entry, f"{place}, `context`")
        if title not in ids:
            ids[title] = corpus.add(title, _text(sentences, f"{place}, {title!r}"))
        context[ids[title]] = None
    gold: dict[str, None] = {}
    for fact in as_list(item.get("supporting_facts"), f"{place}, `supporting_facts`"):
        title, _ = _pair(fact, f"{place}, `supporting_facts`")
        if title not in ids:
            raise InputError(f"{place}: the supporting passage {title!r} is in neither the context nor the corpus.")
        gold[ids[title]] = None
    if not gold:
        raise InputError(f"{place}: has no supporting facts.")
    return PassageQuestion(
        id=str(item.get("_id", item.get("id", number))),
        question=as_text(item.get("question"), place, name="question"),
        answer=as_text(item.get("answer"), place, name="answer"),
        gold=tuple(gold),
        context=tuple(context),
        kind=str(item.get("type", "unknown")),
    )


def _pair(value: JsonValue, place: str) -> tuple[str, JsonValue]:
    pair = as_list(value, place)
    if len(pair) != 2:
        raise InputError(f"{place}: expected a pair [title, ...], found {len(pair)} items.")
    return as_text(pair[0], place, name="title"), pair[1]


def _text(value: JsonValue, place: str) -> str:
    """Join a paragraph's sentences; they carry their own leading spaces."""
    sentences = as_list(value, place)
    if not all(isinstance(sentence, str) for sentence in sentences):
        raise InputError(f"{place}: sentences must be strings.")
    return as_text("".join(str(sentence) for sentence in sentences), place, name="text")
