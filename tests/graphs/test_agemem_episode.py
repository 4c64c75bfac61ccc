"""One AgeMem episode by hand: what is fed, when a stage ends, what counts, in every variant and both protocols."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage
from pydantic import ValidationError

from memweave.agents.memory_tools import ADD, DELETE, FILTER, LONG_TERM, RETRIEVE, SHORT_TERM, SUMMARY, UPDATE
from memweave.agents.prompts import load_prompt
from memweave.agents.tool_protocol import tools_block
from memweave.errors import InputError, ScopeError, SettingsError, UnavailableError
from memweave.graphs.agemem_episode import EpisodeOutput, EpisodeTask, create_agemem_episode_graph
from memweave.graphs.agemem_reward import tool_counts
from memweave.graphs.agemem_state import Variant
from memweave.memory_stores import MemoryBank, use_bank
from memweave.records import OpKind, Scope
from memweave.testing.models import ScriptedChatModel
from memweave.tracing import MemoryRef, Score, Tracer
from tests.graphs.agemem_play import Bound, Ours, Speaker, arrived, remember, said, stored, streamed

Run = Callable[..., Any]
TEXT = Speaker("text")

TASK = EpisodeTask(
    id="task",
    messages=("Anna's boss is Boris.", "Anna's boss is now Clara."),
    distractors=("The soup was cold.", "It rained all day."),
    question="Who is the boss of Anna?",
    key_phrases=("Anna", "boss"),
)


def words(messages: Sequence[BaseMessage]) -> int:
    """Count words, and one for each message."""
    return sum(1 + len(message.text.split()) for message in messages)


def play(
    model: ScriptedChatModel, bank: MemoryBank, scope: Scope, run: Run, task: EpisodeTask = TASK, **options: Any
) -> Any:
    """Play an episode in the text protocol with a one-line prompt, as our own policies do."""
    given = {"protocol": "text", "profile": "none", "count_tokens": words, "auto_retrieve": False, **options}
    graph = create_agemem_episode_graph(model, bank, scope=scope, **given)
    return run(graph, {"task": task})


def always(reply: AIMessage | str) -> ScriptedChatModel:
    return ScriptedChatModel(lambda messages: reply)


def stages(output: Any) -> list[int]:
    return [step.stage for step in output["log"].steps]


def after_system(call: Sequence[BaseMessage]) -> list[str]:
    return said(call)[1:]


# an episode that goes well


def test_facts_are_stored_the_context_is_wiped_and_the_question_is_answered_from_memory(
    bank: MemoryBank, scope: Scope, run: Run
) -> None:
    judged: list[tuple[EpisodeTask, EpisodeOutput]] = []

    def judge(task: EpisodeTask, outcome: EpisodeOutput) -> Score:
        judged.append((task, outcome))
        return Score(value=0.25)

    model = Ours(
        [
            TEXT.calls((ADD, {"content": "Anna's boss is Boris."}), think="new"),
            TEXT.calls((UPDATE, {"memory_id": "1", "content": "Anna's boss is Clara."}), think="changed"),
            TEXT.calls((FILTER, {"criteria": "The soup was cold."})),
            TEXT.answer("Indeed."),
            TEXT.calls((RETRIEVE, {"query": "Anna's boss"})),
            TEXT.answer("Clara"),
        ]
    )
    output = play(model, bank, scope, run, rounds=(1, 1, 3), judge=judge)
    assert output["answer"] == "Clara"
    assert output["stored"] == ["Anna's boss is Clara."]
    assert output["reward"] == Score(value=0.25)
    assert [op.kind for op in output["operations"]] == [OpKind.ADD, OpKind.UPDATE]
    assert output["preserved"] is True
    log = output["log"]
    assert stages(output) == [1, 1, 2, 2, 3, 3]
    assert [step.round for step in log.steps] == [1, 1, 1, 1, 1, 2]
    assert [step.think for step in log.steps][:2] == ["new", "changed"]
    assert (log.answered, log.overflowed, log.exhausted, log.limit, log.rounds) == (True, False, False, 8_192, 3)
    assert log.used == log.steps[-1].tokens
    assert log.steps[4].calls[0].retrieved == ("Anna's boss is Clara.",)
    system = f"Tools: {', '.join((*LONG_TERM, *SHORT_TERM))}."
    assert [said(call)[0] for call in model.calls] == [system] * 6
    assert after_system(model.calls[0]) == ["Anna's boss is Boris."]
    assert after_system(model.calls[1])[-2:] == ["Added [1].", "Anna's boss is now Clara."]
    assert after_system(model.calls[2]) == ["The soup was cold."]  # nothing of stage 1 is left
    assert after_system(model.calls[3])[-2:] == ["Removed 1 message.", "It rained all day."]
    assert after_system(model.calls[4])[-2:] == [TEXT.answer("Indeed.").text, "Who is the boss of Anna?"]
    assert "It rained all day." in after_system(model.calls[4])  # stage 3 goes on from stage 2
    assert after_system(model.calls[5])[-1] == "- Anna's boss is Clara. [1]"
    ((given, outcome),) = judged
    assert given == TASK
    assert dict(outcome) == {"answer": "Clara", "log": log, "stored": ["Anna's boss is Clara."], "preserved": True}


def test_a_trace_of_an_episode_has_its_turns_and_what_they_wrote(bank: MemoryBank, scope: Scope) -> None:
    model = Ours(
        [TEXT.calls((ADD, {"content": "tea"})), TEXT.calls((ADD, {"content": "rye"})), *[TEXT.answer("x")] * 3]
    )
    graph = create_agemem_episode_graph(model, bank, scope=scope, rounds=(1, 1, 1), profile="none")
    tracer = Tracer()
    graph.invoke({"task": TASK}, {"callbacks": [tracer]})
    trace = tracer.last
    assert trace is not None
    assert [g.role for g in trace.generations] == ["agent"] * 5
    tea, rye = bank.memories(scope=scope)
    assert [g.memories_written for g in trace.generations[:3]] == [
        (MemoryRef(id=tea.id, version=1),),
        (MemoryRef(id=rye.id, version=1),),
        (),
    ]
    assert trace.generations[1].memories_read == (MemoryRef(id=tea.id, version=1),)  # put beside the second message
    assert trace.generations[2].memories_read == ()
    assert trace.graph == "agemem-episode"
    assert [g.stage for g in trace.generations] == [1, 1, 2, 2, 3]


# rounds


def test_every_message_has_its_turns_and_the_question_its_own(bank: MemoryBank, scope: Scope, run: Run) -> None:
    output = play(always("no tags"), bank, scope, run, rounds=(2, 3, 4))
    assert [(step.stage, step.round) for step in output["log"].steps] == [
        *[(1, 1), (1, 2)] * 2,
        *[(2, 1), (2, 2), (2, 3)] * 2,
        *[(3, n) for n in (1, 2, 3, 4)],
    ]
    assert (output["answer"], output["log"].answered, output["log"].exhausted) == (None, False, True)
    assert output["log"].overflowed is False
    assert all(step.problems == ("no_block",) for step in output["log"].steps)
    assert output["reward"] is None


def test_an_answer_ends_a_message_in_stages_one_and_two_and_the_episode_in_stage_three(
    bank: MemoryBank, scope: Scope, run: Run
) -> None:
    output = play(always(TEXT.answer("Clara")), bank, scope, run, rounds=(5, 5, 5))
    assert stages(output) == [1, 1, 2, 2, 3]
    assert (output["answer"], output["log"].exhausted) == ("Clara", False)


def test_an_answer_in_the_last_round_is_in_time(bank: MemoryBank, scope: Scope, run: Run) -> None:
    replies: list[Any] = [*["x"] * 5, TEXT.answer("Clara")]
    output = play(ScriptedChatModel(replies), bank, scope, run, rounds=(1, 1, 2))
    assert (output["answer"], output["log"].exhausted, output["log"].answered) == ("Clara", False, True)


def test_an_answer_of_an_earlier_stage_is_no_answer(bank: MemoryBank, scope: Scope, run: Run) -> None:
    replies = [TEXT.answer("Boris")] * 4 + ["x"]
    output = play(ScriptedChatModel(replies), bank, scope, run, rounds=(1, 1, 1))
    assert (output["answer"], output["log"].exhausted) == (None, True)


def test_without_distractors_the_question_follows_on_an_empty_context(bank: MemoryBank, scope: Scope, run: Run) -> None:
    task = TASK.model_copy(update={"distractors": ()})
    model = always(TEXT.answer("Clara"))
    output = play(model, bank, scope, run, task)
    assert stages(output) == [1, 1, 3]
    assert after_system(model.calls[2]) == ["Who is the boss of Anna?"]


# too many tokens


def test_a_stage_that_overflows_ends_and_the_next_begins_on_an_empty_context(
    bank: MemoryBank, scope: Scope, run: Run
) -> None:
    long = TEXT.calls((ADD, {"content": "word " * 40}))
    model = ScriptedChatModel([long, *[TEXT.answer("x")] * 3])
    output = play(model, bank, scope, run, rounds=(3, 1, 1), context_tokens=40)
    assert stages(output) == [1, 2, 2, 3]  # the second message of stage 1 is left out
    assert after_system(model.calls[1]) == ["The soup was cold."]
    assert "Clara" not in "\n".join(model.prompts)
    steps = output["log"].steps
    assert [(step.overflow, step.late) for step in steps] == [
        (True, False),
        (False, True),
        (False, True),
        (False, True),
    ]
    assert (output["log"].overflowed, output["answer"]) == (True, "x")
    assert steps[0].tokens > 40 >= steps[1].tokens


def test_after_an_overflow_in_stage_two_there_is_no_room_for_the_question(
    bank: MemoryBank, scope: Scope, run: Run
) -> None:
    model = ScriptedChatModel([TEXT.answer("x"), TEXT.answer("x"), TEXT.answer("word " * 40)])
    output = play(model, bank, scope, run, context_tokens=40)
    assert stages(output) == [1, 1, 2]
    assert TASK.question not in "\n".join(model.prompts)
    log = output["log"]
    assert (output["answer"], log.answered, log.overflowed, log.exhausted) == (None, False, True, False)
    assert log.used > 40


def test_an_answer_that_overflows_is_none(bank: MemoryBank, scope: Scope, run: Run) -> None:
    model = ScriptedChatModel([*[TEXT.answer("x")] * 4, TEXT.answer("Clara " * 40)])
    output = play(model, bank, scope, run, context_tokens=60)
    assert stages(output) == [1, 1, 2, 2, 3]
    log = output["log"]
    assert (output["answer"], log.answered, log.overflowed, log.exhausted) == (None, False, True, False)


@pytest.mark.parametrize(
    ("field", "expected", "answer"),
    [("messages", [2, 2, 3], "x"), ("distractors", [1, 1], None), ("question", [1, 1, 2, 2], None)],
)
def test_a_message_that_is_too_long_by_itself_is_not_answered(
    bank: MemoryBank, scope: Scope, run: Run, field: str, expected: list[int], answer: str | None
) -> None:
    long = "word " * 60
    task = TASK.model_copy(update={field: long if field == "question" else (long, "Well.")})
    model = always(TEXT.answer("x"))
    output = play(model, bank, scope, run, task, context_tokens=50)
    assert stages(output) == expected
    assert (output["answer"], output["log"].overflowed) == (answer, True)
    assert long not in "\n".join(model.prompts)
    assert all(step.late == (field == "messages") for step in output["log"].steps)


def test_memories_beside_a_message_can_be_too_much(bank: MemoryBank, scope: Scope, run: Run) -> None:
    remember(bank, scope, "Anna " * 60)
    model = always(TEXT.answer("x"))
    output = play(model, bank, scope, run, context_tokens=50, auto_retrieve=True)
    assert stages(output) == [2, 2, 3]
    assert output["log"].overflowed


def test_an_episode_in_which_the_policy_never_had_a_turn(bank: MemoryBank, scope: Scope, run: Run) -> None:
    output = play(always("x"), bank, scope, run, context_tokens=1)
    assert (output["log"].steps, output["answer"], output["log"].overflowed) == ((), None, True)


# variants


@pytest.mark.parametrize("variant", ["full", "rag", "none"])
def test_where_memories_are_put_beside_messages(bank: MemoryBank, scope: Scope, run: Run, variant: Variant) -> None:
    remember(bank, scope, "Anna's boss is Boris.", "The soup was cold.", "Anna's cousin is Uwe.")
    model = Ours(lambda messages: TEXT.answer("x"))
    output = play(model, bank, scope, run, variant=variant, auto_retrieve=True, recalled=1, top_k=2)
    beside = [call[-1].text.splitlines() if call[-1].type == "tool" else [] for call in model.calls]
    assert [len(lines) for lines in beside] == {"full": [1, 1, 0, 0, 0], "rag": [1, 1, 2, 2, 2], "none": [0] * 5}[
        variant
    ]
    if variant != "none":
        assert beside[0] == ["- Anna's boss is Boris. [1]"]
    assert tool_counts(output["log"].steps) == {}  # that was no call of RETRIEVE
    assert said(model.calls[0])[0] == {
        "full": f"Tools: {', '.join((*LONG_TERM, *SHORT_TERM))}.",
        "rag": f"Tools: {', '.join(LONG_TERM)}.",
        "none": "Tools: none.",
    }[variant]  # fmt: skip


def test_without_auto_retrieve_only_rag_puts_memories_beside_messages(bank: MemoryBank, scope: Scope, run: Run) -> None:
    remember(bank, scope, "Anna's boss is Boris.")
    model = always(TEXT.answer("x"))
    play(model, bank, scope, run, auto_retrieve=False)
    assert "[1]" not in "\n".join(model.prompts)


def test_memories_below_the_floor_are_not_put_beside_a_message(bank: MemoryBank, scope: Scope, run: Run) -> None:
    remember(bank, scope, "Anna's boss is Boris.", "Anna has a boat.")
    model = Ours(lambda messages: TEXT.answer("x"))
    play(model, bank, scope, run, auto_retrieve=True, recall_floor=0.9)
    assert model.calls[0][-1].text == "- Anna's boss is Boris. [1]"
    assert "boat" not in "\n".join(model.prompts)


def test_a_message_without_words_is_not_searched_with(bank: MemoryBank, scope: Scope, run: Run) -> None:
    remember(bank, scope, "tea")
    task = EpisodeTask(id="t", messages=(" ",), distractors=("",), question=" ")
    output = play(always(TEXT.answer("x")), bank, scope, run, task, variant="rag")
    assert output["answer"] == "x"


def test_tools_that_a_variant_does_not_have_fail_and_are_counted(bank: MemoryBank, scope: Scope, run: Run) -> None:
    asks = TEXT.calls(
        (RETRIEVE, {"query": "x"}), (ADD, {"content": "tea"}), (DELETE, {"memory_id": "9", "confirmation": True})
    )
    variants: tuple[tuple[Variant, dict[str, int]], ...] = (
        ("full", {"Retrieve_memory/1": 2, "Add_memory/1": 2, "failed/1": 2}),
        ("rag", {"failed/1": 4, "Add_memory/1": 2}),
        ("none", {"failed/1": 6}),
    )
    for variant, expected in variants:
        user = Scope(tenant=scope.tenant, user=variant)
        replies = [asks, asks, *[TEXT.answer("x")] * 3]
        output = play(ScriptedChatModel(replies), bank, user, run, variant=variant, rounds=(1, 1, 1))
        assert tool_counts(output["log"].steps) == expected
        assert len(stored(bank, user)) == (0 if variant == "none" else 2)


def test_a_summary_never_takes_the_question_away(bank: MemoryBank, scope: Scope, run: Run) -> None:
    calls = TEXT.calls((SUMMARY, {"span": "all"}), (FILTER, {"criteria": TASK.question}))
    model = ScriptedChatModel([*[TEXT.answer("x")] * 4, calls, TEXT.answer("Clara")])
    output = play(model, bank, scope, run, filter_threshold=0.9)
    last = after_system(model.calls[-1])
    assert last[0].startswith("<summary>")
    assert last[1] == TASK.question
    assert (output["preserved"], output["log"].steps[-2].calls[0].removed) == (True, 4)


def test_what_the_question_names_is_looked_for_in_the_final_context(bank: MemoryBank, scope: Scope, run: Run) -> None:
    for phrases, found in ((("anna", "BOSS"), True), (("Anna", "yacht"), False), ((), True)):
        task = TASK.model_copy(update={"key_phrases": phrases})
        assert play(always(TEXT.answer("x")), bank, scope, run, task)["preserved"] is found
    assert play(always("x"), bank, scope, run, TASK)["preserved"] is True  # without an answer, at the end
    for limit in (1, 20):  # there was no room for the question
        unasked = play(always(TEXT.answer("word " * 9)), bank, scope, run, TASK, context_tokens=limit)
        assert (unasked["answer"], unasked["preserved"]) == (None, False)


def test_new_memories_have_no_date(bank: MemoryBank, scope: Scope, run: Run) -> None:
    """An episode is not told when it happens; a date in a prompt would only be noise."""
    play(always(TEXT.calls((ADD, {"content": "tea"}))), bank, scope, run)
    assert {memory.observed_at for memory in bank.memories(scope=scope)} == {None}


# hosted models


@pytest.mark.parametrize("protocol", ["native", "text"])
def test_a_hosted_model_plays_with_the_full_prompt(bank: MemoryBank, scope: Scope, run: Run, protocol: Any) -> None:
    speaker = Speaker(protocol)
    model = Bound(
        [
            speaker.calls((ADD, {"content": "Anna's boss is Clara."}), think="new"),
            speaker.answer("Noted."),
            speaker.answer("Hm."),
            speaker.answer("Hm."),
            speaker.calls((RETRIEVE, {"query": "boss"}), ("x", {})),
            speaker.answer("Clara"),
        ]
    )
    graph = create_agemem_episode_graph(model, bank, scope=scope, protocol=protocol, rounds=(1, 1, 2))
    output = run(graph, {"task": TASK})
    assert (output["answer"], output["stored"]) == ("Clara", ["Anna's boss is Clara."])
    assert tool_counts(output["log"].steps) == {"Add_memory/1": 1, "Retrieve_memory/3": 1, "failed/3": 1}
    if protocol == "native":
        assert model.calls[0][0].text == load_prompt("agemem").text
        assert model.tools == [*LONG_TERM, *SHORT_TERM]
        assert [m.type for m in model.calls[5]][-4:] == ["human", "ai", "tool", "tool"]
        assert "<memories>\n- Anna's boss is Clara. [1]\n</memories>" in said(model.calls[1])
    else:
        assert model.calls[0][0].text.startswith(load_prompt("agemem_text").text)
        assert model.calls[0][0].text.endswith("</tools>")
        assert {m.type for call in model.calls for m in call} == {"system", "human", "ai"}
    assert tools_block(()) not in model.calls[0][0].text


@pytest.mark.parametrize("variant", ["full", "rag"])
@pytest.mark.parametrize("protocol", ["native", "text"])
def test_what_is_streamed_as_messages_is_what_was_said(
    bank: MemoryBank, scope: Scope, stream: Callable[..., list[Any]], protocol: Any, variant: Variant
) -> None:
    speaker = Speaker(protocol)
    ok = speaker.answer("ok")
    short = [speaker.calls((SUMMARY, {"span": "all"})), ok] if variant == "full" else [ok]
    model = ScriptedChatModel([speaker.calls((ADD, {"content": "Boris is the boss."})), ok, ok, *short, ok, ok])
    graph = create_agemem_episode_graph(model, bank, scope=scope, protocol=protocol, variant=variant)
    parts = stream(graph, {"task": TASK}, stream_mode=["messages", "updates"])
    assert [message.id for message in streamed(parts)] == [message.id for message in arrived(parts)]
    assert not any(message.type == "system" or message.name == "summary" for message in streamed(parts))


def test_a_prompt_of_the_run_replaces_the_shipped_one(bank: MemoryBank, scope: Scope) -> None:
    model = always(TEXT.answer("x"))
    graph: Any = create_agemem_episode_graph(model, bank, protocol="text", profile="none")
    graph.invoke({"task": TASK}, context={"user": "u", "tenant": scope.tenant, "agent_prompt": "Be quick."})
    assert {said(call)[0] for call in model.calls} == {"Be quick."}


# what cannot be


def test_a_bank_in_use_wins_and_a_scope_is_needed(bank: MemoryBank, scope: Scope) -> None:
    def nobodys() -> MemoryBank:
        raise AssertionError("the episode opened a bank of its own")

    graph: Any = create_agemem_episode_graph(always(TEXT.calls((ADD, {"content": "tea"}))), nobodys, protocol="text")
    with use_bank(bank.branch(scope=scope)):
        output = graph.invoke({"task": TASK}, context={"user": scope.user, "tenant": scope.tenant})
        with pytest.raises(ScopeError):
            graph.invoke({"task": TASK})
    assert set(output["stored"]) == {"tea"}
    assert stored(bank, scope) == []


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"rounds": (1, 0, 1)}, InputError, "give 1 at least"),
        ({"context_tokens": 0}, InputError, "give 1 at least"),
        ({"recalled": 0}, InputError, "give 1 at least"),
        ({"variant": "half"}, SettingsError, "none of full, rag, none"),
    ],
)
def test_options_that_cannot_be_are_refused(
    bank: MemoryBank, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        create_agemem_episode_graph(ScriptedChatModel([]), bank, **options)


def test_tasks_that_cannot_be_are_refused(bank: MemoryBank, scope: Scope, run: Run) -> None:
    graph = create_agemem_episode_graph(ScriptedChatModel([]), bank, scope=scope)
    with pytest.raises(InputError, match="has no task"):
        run(graph, {})
    with pytest.raises(InputError, match="may take 505 turns, and an episode at most 400"):
        run(graph, {"task": EpisodeTask(id="t", messages=("x",) * 100, question="?")})
    for wrong in ({"messages": ()}, {"question": ""}):
        with pytest.raises(ValidationError):
            EpisodeTask.model_validate({"id": "t", "messages": ("x",), "question": "?", **wrong})


def test_a_model_that_is_away_is_no_outcome(bank: MemoryBank, scope: Scope, run: Run) -> None:
    dead = ScriptedChatModel(lambda messages: ConnectionError("refused"))
    with pytest.raises(UnavailableError):
        play(dead, bank, scope, run)
