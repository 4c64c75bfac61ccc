"""HotpotQA and MuSiQue: questions, gold passages and one shared corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memweave.errors import InputError
from memweave.worlds.hotpotqa import read_hotpotqa
from memweave.worlds.musique import read_musique

HOTPOT: dict[str, Any] = {
    "_id": "h1",
    "question": "Which river?",
    "answer": "Weser",
    "type": "bridge",
    "supporting_facts": [["Bremen", 0], ["Weser", 1], ["Bremen", 2]],
    "context": [["Bremen", ["A city.", " On a river."]], ["Weser", ["A river."]]],
}
MUSIQUE: dict[str, Any] = {
    "id": "3hop__1_2_3",
    "question": "Which river?",
    "answer": "Weser",
    "answer_aliases": ["the Weser"],
    "paragraphs": [
        {"idx": 0, "title": "Bremen", "paragraph_text": "A city.", "is_supporting": True},
        {"idx": 1, "title": "Bremen", "paragraph_text": "A state.", "is_supporting": False},
        {"idx": 2, "title": "Weser", "paragraph_text": "A river.", "is_supporting": True},
    ],
}


def write(path: Path, value: object) -> Path:
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return path


def test_hotpotqa_joins_sentences_and_merges_the_corpus(tmp_path: Path) -> None:
    write(tmp_path / "hotpotqa_corpus.json", {"Bremen": ["A city.", " On a river."], "Elbe": ["Another river."]})
    write(tmp_path / "hotpotqa.json", [HOTPOT])
    found = read_hotpotqa(tmp_path)
    assert [p.memory_text for p in found.passages] == [
        "Bremen: A city. On a river.",
        "Elbe: Another river.",
        "Weser: A river.",
    ]
    (question,) = found.questions
    assert (question.id, question.gold, question.kind) == ("h1", ("Bremen", "Weser"), "bridge")


def test_musique_tells_paragraphs_of_one_title_apart(tmp_path: Path) -> None:
    write(tmp_path / "musique_corpus.json", [{"title": "Bremen", "text": "A state."}])
    found = read_musique(write(tmp_path / "musique.json", [MUSIQUE]))
    assert [(p.id, p.text) for p in found.passages] == [
        ("Bremen", "A state."),
        ("Bremen#2", "A city."),
        ("Weser", "A river."),
    ]
    (question,) = found.questions
    assert (question.gold, question.kind, question.aliases) == (("Bremen#2", "Weser"), "3hop", ("the Weser",))


def test_musique_as_published_is_one_question_per_line(tmp_path: Path) -> None:
    path = write(tmp_path / "musique.jsonl", f"{json.dumps(MUSIQUE)}\n{json.dumps({**MUSIQUE, 'id': '2hop__1_2'})}\n")
    assert [q.kind for q in read_musique(path).questions] == ["3hop", "2hop"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"supporting_facts": []}, "question 0: has no supporting facts"),
        ({"supporting_facts": [["Rhine", 0]]}, "'Rhine' is in neither the context nor the corpus"),
        ({"supporting_facts": [["Weser"]]}, r"expected a pair \[title, ...\], found 1"),
        ({"context": None}, "`context`: expected a list"),
        ({"context": [["Bremen", [1]]]}, "'Bremen': sentences must be strings"),
        ({"question": ""}, "`question` is empty"),
        ({"answer": None}, "`answer` must be a string"),
    ],
)
def test_hotpotqa_refuses_by_name(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "hotpotqa.json", [{**HOTPOT, **change}])
    with pytest.raises(InputError, match=message) as caught:
        read_hotpotqa(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "list of questions is empty"),
        ([{**MUSIQUE, "paragraphs": MUSIQUE["paragraphs"][1:2]}], "question 0: has no supporting paragraph"),
        ([{**MUSIQUE, "paragraphs": [{"title": "x"}]}], "question 0: `text` must be a string"),
        ("{}\n{", "line 2: not valid JSON"),
        ("nonsense", "not valid JSON"),
    ],
)
def test_musique_refuses_by_name(tmp_path: Path, value: object, message: str) -> None:
    path = write(tmp_path / "musique.json", value)
    with pytest.raises(InputError, match=message) as caught:
        read_musique(path)
    assert str(path) in str(caught.value)


def test_a_folder_must_hold_one_file_of_questions(tmp_path: Path) -> None:
    write(tmp_path / "hotpot_corpus.json", {})
    with pytest.raises(InputError, match=r"holds 0 files hotpot\*.json"):
        read_hotpotqa(tmp_path)
    write(tmp_path / "hotpot_a.json", [])
    write(tmp_path / "hotpot_b.json", [])
    with pytest.raises(InputError, match=r"holds 2 files hotpot\*.json"):
        read_hotpotqa(tmp_path)


@pytest.mark.data
def test_the_released_sets(data: Path) -> None:
    hotpot, musique = read_hotpotqa(data / "hotpotqa"), read_musique(data / "musique")
    assert (len(hotpot.passages), len(hotpot.questions)) == (994, 100)
    assert (len(musique.passages), len(musique.questions)) == (1890, 100)
    assert {len(q.gold) for q in hotpot.questions} == {2}
    assert [sum(q.kind == f"{n}hop" for q in musique.questions) for n in (2, 3, 4)] == [68, 27, 5]
    assert all(len(q.gold) == int(q.kind[0]) for q in musique.questions)
