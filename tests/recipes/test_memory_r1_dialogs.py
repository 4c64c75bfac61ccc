"""DialogWorld as training material: banks, tasks, reward, players that learn nothing, remembering and asking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from memweave.agents.roles import AnswerRequest, ManageRequest
from memweave.errors import ContextLengthError, InputError, UnavailableError
from memweave.graphs.memory_r1_context import MemoryR1Context
from memweave.memory_stores import MemoryBank, SearchConfig
from memweave.recipes.memory_r1 import dialogs, players
from memweave.recipes.memory_r1.players import Player
from memweave.recipes.memory_r1.training import SHORT_WINDOW
from memweave.records import Memory, Scope, Turn
from memweave.trainers.rollouts import Task
from memweave.worlds.dialog_language import Act, Statement, in_third_person
from memweave.worlds.dialog_world import Dialogue, DialogWorld, EventKind, Question, QuestionKind

QUIET = DialogWorld(miss=0, leak=0, repeat=0)
"""The world with an extractor that makes no mistake."""
ORACLE, ANSWERS = players.MANAGERS["oracle"], players.ANSWERERS["oracle"]


@pytest.fixture
def scratch() -> Iterator[MemoryBank]:
    with dialogs.scratch_bank() as bank:
        yield bank


def turns(*said: str, dialogue: str = "d") -> list[Turn]:
    """Return turns, each written `Speaker: text`."""
    return [
        Turn(source_id=f"{dialogue}-{i}", dialogue=dialogue, speaker=who, text=text)
        for i, (who, text) in enumerate(line.split(": ", 1) for line in said)
    ]


def spoken(*said: str, asked: Sequence[Question] = ()) -> Dialogue:
    """Return a dialogue of which only the turns and the questions matter."""
    made = turns(*said)
    nothing = Statement("Anna", "chatter", Act.SET, ("is tired today",))
    return Dialogue("d", "val", tuple(made), (nothing,) * len(made), (EventKind.CHATTER,) * len(made), tuple(asked))


def where(evidence: str) -> Question:
    return Question("d-q0", "Where does Anna live?", "Oslo", QuestionKind.LOOKUP, (("Anna", "city", ""),), (evidence,))


def memories(bank: MemoryBank, user: str = "d") -> list[Memory]:
    """Return what the bank holds of a user, in the order in which it was written."""
    return sorted(bank.memories(scope=Scope(user=user)), key=lambda memory: memory.recorded_at)


def texts(bank: MemoryBank, user: str = "d") -> list[str]:
    return [memory.text for memory in memories(bank, user)]


# temporal banks and tasks


@pytest.mark.parametrize(
    ("said", "bank"),
    [
        (["Anna: I live in Rome", "Anna: Well, I moved to Oslo"], [("Anna", "Anna moved to Oslo")]),
        (["Anna: I have a dog", "Anna: I also have a cat"], [("Anna", "Anna has a dog and a cat")]),
        (["Anna: I live in Rome", "Anna: I no longer live in Rome"], []),
        (["Anna: I live in Rome", "Anna: I have a home in Rome"], [("Anna", "Anna lives in Rome")]),
        (["Anna: I need a coffee", "Anna: I no longer live in Rome"], []),
        (
            ["Anna: I live in Rome", "Bob: I live in Oslo", "Anna: Carl lives in Lima", "Bob: I moved to Paris"],
            [("Anna", "Anna lives in Rome"), ("Anna", "Carl lives in Lima"), ("Bob", "Bob moved to Paris")],
        ),
    ],
)
def test_a_temporal_bank_is_what_a_perfect_manager_makes(said: list[str], bank: list[tuple[str, str]]) -> None:
    assert dialogs.temporal_bank(QUIET, turns(*said)) == bank


@pytest.mark.parametrize("window", [50, 24])
@pytest.mark.parametrize(("quiet", "remembered"), [(0, True), (1, False)])
def test_the_window_holds_exactly_so_many_turns_before(window: int, quiet: int, remembered: bool) -> None:
    chatter = ["Anna: I need a coffee"] * (window - 1 + quiet)
    said = ["Anna: I live in Rome", *chatter, "Anna: I moved to Oslo"]
    dialogue = spoken(*said, asked=[where(f"d-{len(said) - 1}")])
    prepared = dialogs.manager_turns(QUIET, [dialogue], window)
    assert prepared.memories == {f"d@{len(said) - 1}": [("Anna", "Anna lives in Rome")] if remembered else []}
    assert (dialogs.WINDOW, SHORT_WINDOW) == (50, 24)
    if window == dialogs.WINDOW:
        assert dialogs.manager_turns(QUIET, [dialogue]) == prepared


def test_single_turn_tasks_are_the_turns_that_questions_are_linked_to() -> None:
    world = DialogWorld()
    val = world.dialogues("val")
    linked: dict[str, list[Question]] = {}
    for dialogue in val:
        for question in dialogue.questions:
            linked.setdefault(question.evidence[-1], []).append(question)
    spoken_turns = {turn.source_id: turn for dialogue in val for turn in dialogue.turns}
    expected = {source: asked for source, asked in linked.items() if world.extract(spoken_turns[source])}
    tasks = {task.input["turns"][0].source_id: task for task in dialogs.manager_turns(world, val).tasks}
    assert tasks.keys() == expected.keys()
    assert 0 < len(expected) < len(linked)  # the extractor misses some, and there is nothing to decide there
    for source, asked in expected.items():
        assert tasks[source].input == {"turns": [spoken_turns[source]], "questions": [q.text for q in asked]}
        assert tasks[source].metadata == {dialogs.GOLD: [q.gold for q in asked]}
        assert tasks[source].context == {"user": tasks[source].id}


def test_every_question_is_a_task_and_every_dialogue_is_one() -> None:
    val = QUIET.dialogues("val", 2)
    one_by_one = dialogs.questions(val)
    assert [task.id for task in one_by_one.tasks] == [q.id for dialogue in val for q in dialogue.questions]
    assert {(task.context or {})["user"] for task in one_by_one.tasks} == {dialogue.id for dialogue in val}
    assert all(task.input["turns"] == [] for task in one_by_one.tasks)
    whole = dialogs.whole_dialogues(val).tasks
    assert [len(task.input["turns"]) for task in whole] == [60, 60]
    assert [len(task.input["questions"]) for task in whole] == [len(dialogue.questions) for dialogue in val]


def test_the_reward_is_the_mean_exact_match() -> None:
    task = Task(id="t", input={}, metadata={dialogs.GOLD: ["Rome", "dog and cat", "two"]})
    trace: Any = None  # the reward does not look at it
    assert dialogs.reward(task, {"answers": ["rome.", "dog", "two"]}, trace).value == pytest.approx(2 / 3)
    assert dialogs.reward(task, {"answers": [None, None, None]}, trace).value == 0
    with pytest.raises(ValueError, match="shorter"):
        dialogs.reward(task, {"answers": ["Rome"]}, trace)


def test_filling_writes_the_memories_of_each_user_in_order(scratch: MemoryBank) -> None:
    lines = {
        "a": [("Anna", "one"), ("Bob", "two"), ("Anna", "one"), ("Anna", "three")],
        "b": [("Anna", "one")],
        "none": [],
    }
    dialogs.Prepared((), lines).fill(scratch)
    assert {user: [(m.speaker, m.text) for m in memories(scratch, user)] for user in lines} == lines


def test_what_ties_is_not_shown_by_age() -> None:
    """Ids decide between memories of equal score: they say nothing of the age, and are the same in every run."""
    lines = {"a": [("Anna", f"memory {i}") for i in range(40)]}
    order = []
    for _ in range(2):
        with dialogs.scratch_bank() as bank:
            dialogs.Prepared((), lines).fill(bank)
            order.append([m.text for m in sorted(bank.memories(scope=Scope(user="a")), key=lambda m: m.id)])
    assert order[0] == order[1]
    first = [lines["a"].index(("Anna", text)) for text in order[0]]
    assert first != sorted(first)
    assert 10 < sum(first[:20]) / 20 < 30


# players that learn nothing


def test_oracles_answer_everything_where_nothing_is_missed_and_everything_is_shown(scratch: MemoryBank) -> None:
    val = QUIET.dialogues("val", 4)
    assert dialogs.construct(scratch, QUIET, val, ORACLE) == 0
    outcome = dialogs.ask(scratch, QUIET, val, ANSWERS, budget=200)
    assert outcome.score == 1.0
    assert outcome.unanswered == outcome.failed_turns == 0
    assert (outcome.f1, outcome.lenient) == (1.0, 1.0)
    golds = [question.gold for each in val for question in each.questions]
    assert abs(outcome.words - sum(len(gold.split()) for gold in golds) / len(golds)) < 1e-9
    assert {each: len(marks) for each, marks in outcome.right.items()} == {d.id: len(d.questions) for d in val}


def test_a_perfect_manager_in_the_graph_leaves_what_replaying_it_gives(scratch: MemoryBank) -> None:
    val = QUIET.dialogues("val", 4)
    dialogs.construct(scratch, QUIET, val, ORACLE)
    for dialogue in val:
        replayed = dialogs.temporal_bank(QUIET, dialogue.turns)
        kept = memories(scratch, dialogue.id)
        by_speaker = {s: [m.text for m in kept if m.speaker == s] for s, _ in replayed}
        assert by_speaker == {s: [text for who, text in replayed if who == s] for s in by_speaker}
        assert len(kept) == len(replayed)


def test_always_add_keeps_every_fact_and_always_noop_none(scratch: MemoryBank) -> None:
    world = DialogWorld(leak=1.0)
    val = world.dialogues("val", 2)
    assert dialogs.construct(scratch, world, val[:1], players.MANAGERS["always-add"]) == 0
    facts = [fact for turn in val[0].turns for fact in dict.fromkeys(world.extract(turn))]
    assert texts(scratch, val[0].id) == facts
    dialogs.construct(scratch, world, val[1:], players.MANAGERS["always-noop"])
    assert texts(scratch, val[1].id) == []


def test_exact_key_updates_what_has_the_same_person_and_relation(scratch: MemoryBank) -> None:
    said = ["Anna: I live in Rome", "Anna: I have a dog", "Anna: Carl lives in Lima", "Anna: I moved to Oslo"]
    said += ["Anna: I also have a cat", "Anna: I no longer live in Oslo", "Anna: I need a coffee"]
    loud = DialogWorld(miss=0, leak=1.0, repeat=1.0)
    dialogs.construct(scratch, loud, [spoken(*said)], players.MANAGERS["exact-key"])
    assert texts(scratch) == ["Carl lives in Lima", "Anna moved to Oslo", "Anna also has a cat"]


def test_raw_turns_are_all_shown_in_order_when_the_budget_holds_them(scratch: MemoryBank) -> None:
    (dialogue,) = DialogWorld().dialogues("val", 1)
    dialogs.raw_turns([dialogue]).fill(scratch)
    seen: list[AnswerRequest] = []

    def look(request: AnswerRequest) -> str:
        seen.append(request)
        return ANSWERS.reply(request)

    outcome = dialogs.ask(scratch, DialogWorld(), [dialogue], Player[AnswerRequest]("looks", look), budget=1_000)
    assert (outcome.score, outcome.bank_size) == (1.0, 60)
    said = [(turn.speaker, in_third_person(turn.text, turn.speaker)) for turn in dialogue.turns]
    for request in seen:
        shown = [(memory.speaker, memory.text) for memory in request.memories]
        for speaker in {who for who, _ in said}:
            assert [one for one in shown if one[0] == speaker] == [one for one in said if one[0] == speaker]
        assert len(shown) == 60


def test_raw_turns_are_ranked_by_words_alone_and_the_rest_follows() -> None:
    (dialogue,) = DialogWorld().dialogues("val", 1)
    plain = {**dialogs.BM25.model_dump(), "dense_weight": 0.0}
    scope = Scope(user=dialogue.id)
    ranked: list[list[list[str]]] = []
    for config in (SearchConfig.model_validate(plain), dialogs.BM25):
        with dialogs.scratch_bank(config) as bank:
            dialogs.raw_turns([dialogue]).fill(bank)
            branch = bank.branch(scope=scope)
            asked = [branch.search(question.text, scope=scope, limit=100) for question in dialogue.questions]
            ranked.append([[hit.memory.text for hit in hits] for hits in asked])
    for words, everything in zip(*ranked, strict=True):
        assert 0 < len(words) < len(everything) == 60
        assert everything[: len(words)] == words


# what goes wrong


def _too_long(request: object) -> str:
    raise ContextLengthError("The prompt has 2000 tokens; the context holds 1024")


def _away(request: object) -> str:
    raise UnavailableError("The model does not answer")


def test_a_prompt_that_does_not_fit_is_an_error_and_no_wrong_answer(scratch: MemoryBank) -> None:
    val = QUIET.dialogues("val", 2)
    with pytest.raises(ContextLengthError, match=r"val-000\d: The prompt has 2000 tokens"):
        dialogs.construct(scratch, QUIET, val, Player[ManageRequest]("long", _too_long))
    with pytest.raises(ContextLengthError, match=r"val-000\d: The prompt has 2000 tokens"):
        dialogs.ask(scratch, QUIET, val, Player[AnswerRequest]("long", _too_long))


def test_an_episode_of_training_with_such_a_prompt_fails_too(scratch: MemoryBank) -> None:
    from memweave.memory_stores import use_bank

    (dialogue,) = QUIET.dialogues("val", 1)
    task = dialogs.whole_dialogues([dialogue]).tasks[0]
    long = Player[ManageRequest]("long", _too_long)
    with use_bank(scratch), pytest.raises(InputError, match="The prompt has 2000 tokens"):
        dialogs.episode_graph(QUIET, long, ANSWERS).invoke(task.input, context=MemoryR1Context(user=task.id))


def test_a_model_that_is_away_leaves_no_half_dialogue(scratch: MemoryBank) -> None:
    val = QUIET.dialogues("val", 1)
    with pytest.raises(
        UnavailableError,
        match="val-0000: the episode ended before all turns were remembered: The model does not answer",
    ):
        dialogs.construct(scratch, QUIET, val, Player[ManageRequest]("away", _away))
    with pytest.raises(UnavailableError, match="does not answer"):
        dialogs.ask(scratch, QUIET, val, Player[AnswerRequest]("away", _away))
    assert texts(scratch, "val-0000") == []


def test_replies_that_cannot_be_used_are_counted(scratch: MemoryBank) -> None:
    val = QUIET.dialogues("val", 1)
    failed = dialogs.construct(
        scratch, QUIET, val, Player[ManageRequest]("prose", lambda request: "I would rather not.")
    )
    assert failed == sum(bool(QUIET.extract(turn)) for turn in val[0].turns)
    outcome = dialogs.ask(scratch, QUIET, val, Player[AnswerRequest]("mute", lambda request: ""), failed_turns=failed)
    assert (outcome.score, outcome.unanswered, outcome.failed_turns) == (0.0, len(val[0].questions), failed)


def test_a_bank_that_knows_the_dialogue_is_refused(scratch: MemoryBank) -> None:
    val = QUIET.dialogues("val", 1)
    dialogs.construct(scratch, QUIET, val, ORACLE)
    with pytest.raises(InputError, match="memories of val-0000 already"):
        dialogs.construct(scratch, QUIET, val, ORACLE)
