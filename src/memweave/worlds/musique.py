"""MuSiQue: questions composed of two to four hops (Trivedi et al., 2022). https://github.com/stonybrooknlp/musique, CC
BY 4.0.

A file is a list of questions, or one question per line, as published:

    {"id": "2hop__150763_14904", "question": "...", "answer": "...", "answer_aliases": ["..."],
     "paragraphs": [{"idx": 0, "title": "...", "paragraph_text": "...", "is_supporting": false}, ...]}

A shared corpus `NAME_corpus.json`, [{"title": ..., "text": ...}], may lie beside `NAME.json`; the paragraphs of all
questions are in it or are added to it.
"""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import JsonValue

from memweave.errors import InputError
from memweave.worlds.files import as_list, as_object, as_text, load_json, read_text
from memweave.worlds.passages import Corpus, PassageQuestion, PassageSet, corpus_file, question_file


def read_musique(path: Path | str) -> PassageSet:
    """Read questions (a file, or the folder with it) and the corpus.

    Raises: InputError naming the file and the question.
    """
    file = question_file(Path(path), prefix="musique")
    corpus = Corpus()
    beside = corpus_file(file)
    if beside is not None:
        for number, value in enumerate(as_list(load_json(beside), str(beside))):
            place = f"{beside}, passage {number}"
            item = as_object(value, place)
            _add(corpus, item.get("title"), item.get("text"), place)
    items = _items(file)
    if not items:
        raise InputError(f"{file}: the list of questions is empty.")
    questions = tuple(
        _question(item, number, corpus, f"{file}, question {number}") for number, item in enumerate(items)
    )
    return PassageSet(name="musique", passages=corpus.passages(), questions=questions)


def _items(file: Path) -> list[JsonValue]:
    text = read_text(file)
    if text.lstrip()[:1] != "{":
        return as_list(load_json(file, text), str(file))
    items: list[JsonValue] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                items.append(json.loads(line))
            except ValueError as error:
                raise InputError(f"{file}, line {number}: not valid JSON ({error}).") from None
    return items


def _question(value: JsonValue, number: int, corpus: Corpus, place: str) -> PassageQuestion:
    item = as_object(value, place)
    gold: dict[str, None] = {}
    context: dict[str, None] = {}
    for entry in as_list(item.get("paragraphs"), f"{place}, `paragraphs`"):
        paragraph = as_object(entry, f"{place}, `paragraphs`")
        passage_id = _add(corpus, paragraph.get("title"), paragraph.get("paragraph_text"), place)
        context[passage_id] = None
        if paragraph.get("is_supporting") is True:
            gold[passage_id] = None
    if not gold:
        raise InputError(f"{place}: has no supporting paragraph.")
    question_id = str(item.get("id", number))
    aliases = as_list(item.get("answer_aliases") or [], f"{place}, `answer_aliases`")
    return PassageQuestion(
        id=question_id,
        question=as_text(item.get("question"), place, name="question"),
        answer=as_text(item.get("answer"), place, name="answer"),
        aliases=tuple(str(alias) for alias in aliases),
        gold=tuple(gold),
        context=tuple(context),
        kind=question_id[:4] if question_id[1:4] == "hop" else "unknown",
    )


def _add(corpus: Corpus, title: JsonValue, text: JsonValue, place: str) -> str:
    return corpus.add(as_text(title, place, name="title"), as_text(text, place, name="text"))
