"""How often the rule manager's UPDATE and DELETE are right, on real dialogue, judged by hand.

    python experiments/judge_rule_manager.py --path $MEMWEAVE_DATA/locomo/locomo_train_val.json            precision
    python experiments/judge_rule_manager.py --path ... --show                                             the operations, to judge them

Replays LoCoMo conv-26 through the rule pipeline (MiniLM embeddings) and joins every UPDATE and DELETE with
experiments/judgements/rule_manager_conv26.jsonl, which names an operation by its source turn, the source turns of the memory it changes
and a hash of both texts: LoCoMo's text is not ours to publish. If there are more than 50, a seeded sample of 50 is judged.

An operation is right when (1) the memory it changes is about the same person and the same matter, (2) nothing that still holds is
lost or contradicted, and (3) the new text says what the turn says.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer

from memweave.graphs.memory_r1_construction import create_construction_graph
from memweave.memory_stores import open_bank
from memweave.records import MemoryOp, OpKind, Scope, StoredTurn
from memweave.worlds.locomo import read_locomo

SAMPLE: Final = 50
SEED: Final = 0
JUDGEMENTS: Final = Path(__file__).parent / "judgements" / "rule_manager_conv26.jsonl"


def replay(path: Path) -> tuple[list[MemoryOp], dict[str, StoredTurn]]:
    """Return the UPDATE and DELETE operations of the rule manager on conv-26, and all turns by source id."""
    conversation = next(c for c in read_locomo(path) if c.sample_id == "conv-26")
    scope = Scope(user="conv-26")
    with tempfile.TemporaryDirectory() as home, open_bank(home, embedding="minilm") as bank:
        bank.accept(conversation.turns, scope=scope)
        create_construction_graph(bank, scope=scope, events=False).invoke({})
        ops = [op for op in bank.log(scope=scope) if op.kind in (OpKind.UPDATE, OpKind.DELETE)]
        return ops, {turn.source_id: turn for turn in bank.turns(scope=scope)}


def name_of(op: MemoryOp) -> dict[str, str | list[str]]:
    """Return what identifies an operation without its text."""
    assert op.before is not None  # an UPDATE or DELETE has one
    texts = f"{op.before.text}\0{op.after.text if op.after else ''}"
    digest = hashlib.sha256(texts.encode()).hexdigest()[:16]
    return {
        "kind": op.kind.value,
        "source": op.source_ids[0],
        "memory_sources": list(op.before.source_ids),
        "texts": digest,
    }


def wilson(right: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a proportion."""
    z, p = 1.96, right / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return centre - half, centre + half


def main(
    path: Annotated[Path, typer.Option(help="LoCoMo file with conv-26.")],
    show: Annotated[bool, typer.Option(help="Print the operations, one JSON object each, with their texts.")] = False,
) -> None:
    """Print the precision of UPDATE and DELETE, or the operations to be judged."""
    ops, turns = replay(path)
    sample = ops if len(ops) <= SAMPLE else random.Random(SEED).sample(ops, SAMPLE)
    if show:
        for op in sample:
            assert op.before is not None  # an UPDATE or DELETE has one
            texts = {
                "said": turns[op.source_ids[0]].text,
                "before": op.before.text,
                "after": op.after.text if op.after else None,
                "reason": op.reason,
            }
            print(json.dumps({**name_of(op), **texts}, ensure_ascii=False))
        return
    judged = {json.dumps(j["op"], sort_keys=True): j for j in map(json.loads, JUDGEMENTS.read_text().splitlines())}
    verdicts = [judged.get(json.dumps(name_of(op), sort_keys=True)) for op in sample]
    missing = sum(v is None for v in verdicts)
    if missing:
        raise SystemExit(f"{missing} of {len(sample)} operations are not judged yet: run with --show and judge them")
    right = sum(bool(v and v["right"]) for v in verdicts)
    low, high = wilson(right, len(sample))
    print(f"{len(ops)} UPDATE or DELETE on conv-26, {len(sample)} judged, {right} right: ", end="")
    print(f"precision {right / len(sample):.2f} [{low:.2f}, {high:.2f}]")


if __name__ == "__main__":
    typer.run(main)
