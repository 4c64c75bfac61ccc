"""Small files in the formats of the public data sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def _conversation(number: int, sessions: list[list[tuple[str, str]]], qa: list[dict[str, Any]]) -> dict[str, Any]:
    conversation: dict[str, Any] = {"speaker_a": "Ann", "speaker_b": "Ben"}
    for s, turns in enumerate(sessions, start=1):
        conversation[f"session_{s}_date_time"] = f"1:56 pm on {s} May, 2023"
        conversation[f"session_{s}"] = [
            {"speaker": speaker, "dia_id": f"D{s}:{t}", "text": text}
            for t, (speaker, text) in enumerate(turns, start=1)
        ]
    return {"sample_id": f"conv-{number}", "conversation": conversation, "qa": qa}


def write_locomo(folder: Path, *, question: str = "Which breed is Pepper the dog?") -> Path:
    """Write two conversations: 7 turns, questions of categories 4, 1, 3 (without evidence), 5 and 4."""
    first = _conversation(
        1,
        [
            [("Ann", "I adopted a whippet called Pepper."), ("Ben", "How lovely!")],
            [("Ben", "I play the cello."), ("Ann", "It rains in Bremen."), ("Ben", "I also play the oboe.")],
        ],
        [
            {"question": question, "answer": "whippet", "evidence": ["D1:1"], "category": 4},
            {"question": "What does Ben play?", "answer": "cello, oboe", "evidence": ["D2:1", "D2:3"], "category": 1},
            {"question": "Is Ben musical?", "answer": "Yes", "evidence": [], "category": 3},
            {"question": "Who plays the tuba?", "evidence": ["D2:1"], "category": 5, "adversarial_answer": "Ben"},
        ],
    )
    second = _conversation(
        2,
        [[("Ann", "I adopted a whippet called Salt."), ("Ben", "I work at Radio Weser.")]],
        [{"question": "Where does Ben work?", "answer": "Radio Weser", "evidence": ["D1:2"], "category": 4}],
    )
    path = folder / "locomo.json"
    path.write_text(json.dumps([first, second]))
    return path


def write_hotpotqa(folder: Path) -> Path:
    """Write two questions over four passages."""
    context = [
        ["Bremen", ["A city on the Weser."]],
        ["Weser", ["A river.", " It ends in the North Sea."]],
        ["Elbe", ["Another river."]],
        ["Hamburg", ["A city on the Elbe."]],
    ]
    items = [
        {
            "_id": name.lower(),
            "question": f"Which river is {name} on?",
            "answer": river,
            "type": "bridge",
            "supporting_facts": [[name, 0], [river, 0]],
            "context": context,
        }
        for name, river in (("Bremen", "Weser"), ("Hamburg", "Elbe"))
    ]
    path = folder / "hotpotqa.json"
    path.write_text(json.dumps(items))
    return path
