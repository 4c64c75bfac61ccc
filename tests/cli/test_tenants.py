"""No command shows or changes what belongs to another tenant or user; a command without a probe here fails the suite."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import typer

from memweave.cli.app import app
from memweave.graph_records import NewQuery, NewStrategy, RolloutOutcome, StrategyKind
from memweave.memory_stores import CaseBank, StrategyGraph, open_bank
from memweave.records import MemoryOp, NewCase, OpKind, ProposedOp, Scope, Turn

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

SECRET = "xylophone"
VICTIM = Scope(tenant="acme", user="anna")
OTHERS = [Scope(tenant="umbrella", user="anna"), Scope(tenant="acme", user="ben")]

PROBES = {
    "remember": ["remember", "chat.jsonl"],
    "ask": ["ask", "What does Anna play?"],
    "memory list": ["memory", "list"],
    "memory log": ["memory", "log"],
    "memory log --run": ["memory", "log", "--run", "r1"],
    "memory log --memory": ["memory", "log", "--memory", "{memory}"],
    "memory undo": ["memory", "undo", "{op}"],
    "memory undo --run": ["memory", "undo", "--run", "r1"],
    "memory as-of": ["memory", "as-of", "2999-01-01"],
    "memory export": ["memory", "export"],
    "memory import": ["memory", "import", "exported.jsonl"],
    "memory purge": ["memory", "purge", "--yes"],
    "cases list": ["cases", "list"],
    "cases export": ["cases", "export"],
    "cases import": ["cases", "import", "pool.jsonl"],
    "strategies list": ["strategies", "list"],
    "strategies show": ["strategies", "show"],
    "strategies show --html": ["strategies", "show", "--html", "page.html"],
    "strategies check": ["strategies", "check"],
    "strategies versions": ["strategies", "versions"],
    "strategies rollback": ["strategies", "rollback", "1"],
    "strategies export": ["strategies", "export"],
    "strategies import": ["strategies", "import", "graph.jsonl"],
}
SCOPELESS = {
    "demo": "writes to a folder and user of its own",
    "memory rebuild": "remakes the index of the whole folder and shows none of it",
    "eval retrieval": "works in a folder of its own",
    "eval qa": "works in a folder of its own",
    **dict.fromkeys(
        (
            "eval world dialog",
            "eval world memhop",
            "eval world planworld",
            "eval world fsmqa",
            "eval world babyai",
            "eval world babyai-strategies",
        ),
        "works on a world of its own, in a folder that is gone afterwards",
    ),
    "pretrain": "makes a policy and knows no memories",
    "train": "trains on worlds of its own, and writes to the folder of the run",
    "traces list": "traces belong to whoever may read the file: docs/tracing.md, Privacy",
    "traces show": "traces belong to whoever may read the file: docs/tracing.md, Privacy",
    "traces doctor": "traces belong to whoever may read the file: docs/tracing.md, Privacy",
    "traces export": "traces belong to whoever may read the file: docs/tracing.md, Privacy",
    "serve": "serves a policy and knows no memories",
    "mcp": "reads from standard input until its client ends it: test_mcp.py has its probe",
}


def leaves(command: object, path: str = "") -> set[str]:
    """Return the paths of all commands below `command`."""
    below = getattr(command, "commands", None)
    if below is None:
        return {path}
    return {leaf for name, child in below.items() for leaf in leaves(child, f"{path} {name}".strip())}


ALL = leaves(typer.main.get_command(app))


def test_every_command_has_a_probe_or_a_reason() -> None:
    probed = {path.partition(" --")[0] for path in PROBES}
    assert probed | SCOPELESS.keys() == ALL
    assert probed & SCOPELESS.keys() == set()


@pytest.mark.parametrize("path", sorted(ALL))
def test_every_command_can_speak_json(cli: Cli, path: str) -> None:
    assert "--json" in cli(*path.split(), "--help").out


@pytest.fixture
def op(cli: Cli, tmp_path: Path) -> MemoryOp:
    """Give the victim a memory and a pending turn, and the others a file to read and an export of their own."""
    (tmp_path / "chat.jsonl").write_text(json.dumps({"id": "m1", "speaker": "Ben", "text": "I live in Oslo."}) + "\n")
    with open_bank(tmp_path / ".memweave", embedding="hashing") as bank:
        proposal = ProposedOp(
            kind=OpKind.ADD, text=f"Anna plays the {SECRET}", reason=SECRET, actor="rule", speaker="Anna", run_id="r1"
        )
        done = bank.apply([proposal], scope=VICTIM)[0]
        bank.accept([Turn(source_id="m1", speaker="Anna", text=f"My {SECRET} is new")], scope=VICTIM)
        own = ProposedOp(kind=OpKind.ADD, text="Carl has a boat", reason="new", actor="rule")
        bank.apply([own], scope=Scope(user="carl"))
        case = NewCase(task=f"tune the {SECRET}", plan=SECRET, reward=1.0)
        CaseBank(bank).write(case, scope=VICTIM)
        graph = StrategyGraph(bank)
        for owner, word in ((VICTIM, SECRET), (Scope(user="carl"), "boat")):
            taken = RolloutOutcome(states=("Start", "End"), reward=1.0)
            graph.add(NewQuery(text=f"who has a {word}?"), [taken], scope=owner)
            new = NewStrategy(summary=f"look at the {word}", kind=StrategyKind.POSITIVE, score=50)
            graph.write(new, [path.id for path in graph.paths(scope=owner)], scope=owner, reason=word)
        (tmp_path / "graph.jsonl").write_text("\n".join(graph.export(scope=Scope(user="carl"))))
        (tmp_path / "pool.jsonl").write_text(json.dumps({"question": "Who?", "plan": "ask", "reward": 1}))
        (tmp_path / "exported.jsonl").write_text("\n".join(bank.export(scope=Scope(user="carl"))))
    return done


def state(home: Path) -> tuple[list[str], int, int, int, list[str]]:
    with open_bank(home) as bank:
        texts = [memory.text for memory in bank.memories(scope=VICTIM)]
        cases = CaseBank(bank).count(scope=VICTIM)
        graph = [line for line in StrategyGraph(bank).export(scope=VICTIM) if "exported_at" not in line]
        return texts, len(bank.log(scope=VICTIM)), len(bank.turns(scope=VICTIM)), cases, graph


@pytest.mark.parametrize("other", OTHERS, ids=str)
@pytest.mark.parametrize("path", PROBES)
def test_nothing_of_another_scope_is_shown_or_changed(
    cli: Cli, op: MemoryOp, tmp_path: Path, path: str, other: Scope
) -> None:
    before = state(tmp_path / ".memweave")
    assert op.memory_id is not None
    arguments = [part.format(op=op.id.hex, memory=op.memory_id.hex) for part in PROBES[path]]
    for form in ((), ("--json",)):
        result = cli(*arguments, *form, "--tenant", other.tenant, "--user", other.user)
        assert SECRET not in result.out + result.err
    assert state(tmp_path / ".memweave") == before
