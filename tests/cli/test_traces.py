"""`memweave traces ...`: what it shows of recorded runs, and that nothing in them steers the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from memweave.records import new_id, utc_now
from memweave.tracing import (
    ChatMessage,
    Generation,
    MemoryEvent,
    MemoryRef,
    Sampling,
    Score,
    Trace,
    TraceStatus,
    TraceStore,
    read_jsonl,
)

if TYPE_CHECKING:
    from tests.cli.conftest import Cli

ESCAPE = "\x1b]0;owned\x07\x1b[31m"


def made(replica: int, *, run: str = "run", score: Score | None = None, status: TraceStatus = TraceStatus.OK) -> Trace:
    memory = MemoryRef(id=new_id(), version=2)
    generation = Generation(
        index=0, node="manage", role="manager", step=3, namespace="sub:1|manage:2", policy="run-manager-v1", policy_version="v1",
        prompt_token_ids=(1, 2, 3), token_ids=(4, 0), logprobs=(-0.5, -0.25), finish_reason="stop", started_at=utc_now(), seconds=0.5,
        sampling=Sampling(temperature=1.0, logprobs="processed"),
        messages=(ChatMessage(role="system", text="Be brief."), ChatMessage(role="user", text="x" * 500 + f"\n{ESCAPE}the end")),
        reply=f"{ESCAPE}line one\nline two", memories_read=(memory,),
    )  # fmt: skip
    event = MemoryEvent(
        op_id="1",
        kind="UPDATE",
        status="applied",
        memory=memory,
        text=f"{ESCAPE}lives in Rome",
        reason="moved",
        generation=0,
    )
    return Trace(
        id=new_id(), graph="agent", run=run, iteration=4, group="task", replica=replica, generations=(generation,),
        memory_events=(event,), score=score, status=status, error=ESCAPE if status is not TraceStatus.OK else None,
        started_at=utc_now(), ended_at=utc_now(),
    )  # fmt: skip


@pytest.fixture
def store(cli: Cli, tmp_path: Path) -> Callable[..., list[Trace]]:
    """Return a function that puts traces into the default place."""

    def put(*traces: Trace) -> list[Trace]:
        with TraceStore(tmp_path / ".memweave" / "traces.db") as opened:
            opened.add_many(traces)
        return list(traces)

    return put


def test_list_shows_the_newest_first(cli: Cli, store: Callable[..., list[Trace]]) -> None:
    first, second, other = store(made(0, score=Score(value=0.25)), made(1), made(2, run="other"))
    shown = cli("traces", "list").out
    assert shown.index(other.id.hex[-8:]) < shown.index(second.id.hex[-8:]) < shown.index(first.id.hex[-8:])
    row = next(line for line in shown.splitlines() if first.id.hex[-8:] in line)
    for part in ("agent", "run", "4", "task #0", "ok", "3+2", "0.25"):
        assert part in row
    listed = cli("traces", "list", "--run", "run", "--limit", "1", "--json").json
    assert [(each["id"], each["calls"], each["sampled_tokens"]) for each in listed["traces"]] == [
        (str(second.id), 1, 2)
    ]
    assert listed["total"] == 2
    assert "1 of 2 traces; --limit 2 shows all" in cli("traces", "list", "--run", "run", "-n", "1").err
    assert "No traces match" in cli("traces", "list", "--status", "failed").err


def test_show_tells_a_run_call_by_call(cli: Cli, store: Callable[..., list[Trace]]) -> None:
    (trace,) = store(made(0, score=Score(value=0.5, parts={"manager": 0.25})))
    out = cli("traces", "show", trace.id.hex[-8:]).out
    for part in ("manage as manager", "in sub", "run-manager-v1 v1", "3 + 2 tokens", "stop", "0.50 s", "the end", "line one",
                 "line two", "~ UPDATE", "lives in Rome", "(moved)", "score 0.5 of 0 to 1  (manager 0.25)", "shown: 1 memory"):  # fmt: skip
        assert part in out
    assert "Be brief." not in out
    assert "Be brief." in cli("traces", "show", "--full").out
    assert Trace.model_validate(cli("traces", "show", str(trace.id), "--json").json) == trace


def test_no_text_of_a_model_or_user_steers_the_terminal(cli: Cli, store: Callable[..., list[Trace]]) -> None:
    store(made(0, status=TraceStatus.FAILED))
    for arguments in (("list",), ("show",), ("show", "--full"), ("doctor",)):
        result = cli("traces", *arguments)
        assert "\x1b" not in result.out + result.err
        assert "\x07" not in result.out + result.err


def test_doctor_fails_on_errors_and_says_what_to_do(cli: Cli, store: Callable[..., list[Trace]]) -> None:
    first, _ = store(made(0), made(1))
    result = cli("traces", "doctor")
    assert result.code == 1
    assert "error missing_reward  2 times" in result.out
    assert first.id.hex[-8:] in cli("traces", "doctor", "--all").out
    assert "it is never taken as 0" in result.out
    found = cli("traces", "doctor", "--json")
    assert found.code == 1
    assert (found.json["traces"], found.json["errors"], found.json["warnings"]) == (2, 3, 0)
    assert {each["code"] for each in found.json["findings"]} == {"missing_reward", "group_of_one"}


def test_doctor_is_content_with_sound_traces_and_with_warnings(cli: Cli, store: Callable[..., list[Trace]]) -> None:
    store(made(0, score=Score(value=0.0)), made(1, score=Score(value=1.0)))
    result = cli("traces", "doctor")
    assert (result.code, result.out) == (0, "")
    assert "2 traces: all is well." in result.err
    assert cli("traces", "doctor", "--temperature", "0.7").code == 1
    store(made(2, run="b", score=Score(value=1.0)), made(3, run="b", score=Score(value=1.0)))
    warned = cli("traces", "doctor", "--run", "b")
    assert warned.code == 0
    assert "warning zero_variance" in warned.out


def test_export_and_read_back(cli: Cli, store: Callable[..., list[Trace]], tmp_path: Path) -> None:
    traces = store(made(0), made(1))
    assert cli("traces", "export", "t.jsonl").code == 0
    assert list(read_jsonl(tmp_path / "t.jsonl")) == traces[::-1]
    assert cli("traces", "export").out == (tmp_path / "t.jsonl").read_text()
    assert cli("traces", "export", "--json").json["lines"] == (tmp_path / "t.jsonl").read_text().splitlines()
    assert cli("traces", "export", "one.jsonl", "--limit", "1", "--json").json == {"file": "one.jsonl", "traces": 1}
    done = cli("traces", "export", "t.parquet")
    assert (done.code, done.out) == (0, "")
    assert done.err.splitlines() == ["Wrote 2 rows to t.parquet."]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("show", "0badcafe"), "there is no trace '0badcafe'"),
        (("show", "xyz!"), "is not an id"),
        (("list", "--status", "fine"), "'fine' is not one of ok, failed"),
        (("list", "--store", "nowhere.db"), "there is no trace store at nowhere.db"),
        (("list", "--home", "nowhere"), "there is no trace store at nowhere/traces.db"),
        (("export", "t.txt"), "ends in .jsonl or .parquet"),
        (("export", "taken.jsonl"), "exists already"),
        (("doctor", "--tokenizer", "nowhere"), "there is no tokenizer at nowhere"),
    ],
)
def test_misuse_is_one_line_that_names_the_remedy(
    cli: Cli, store: Callable[..., list[Trace]], tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    store(made(0))
    (tmp_path / "taken.jsonl").write_text("precious")
    result = cli("traces", *arguments)
    assert result.code == 2
    assert says in result.error
    assert result.out == ""
    assert not (tmp_path / "nowhere").exists()
    assert not (tmp_path / "nowhere.db").exists()


def test_an_ambiguous_id_lists_what_it_fits(cli: Cli, store: Callable[..., list[Trace]]) -> None:
    first, _ = store(made(0), made(1))
    result = cli("traces", "show", first.id.hex[:6])  # the first digits are the time
    assert result.code == 2
    assert str(first.id) in result.error
