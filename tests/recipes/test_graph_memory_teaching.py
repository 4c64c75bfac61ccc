"""FSM-QA played by the script: its moves, its habits, how it takes advice, and what advice can be worth."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from memweave.agents.cognition import load_machine
from memweave.agents.leaks import Source
from memweave.agents.strategist import InductionRequest, Proposal, RuleStrategist
from memweave.graph_records import Strategy, StrategyKind
from memweave.graphs.graph_memory_guidance import Advisor
from memweave.graphs.graph_memory_rollout import create_rollout_graph
from memweave.graphs.graph_memory_state import Guidance
from memweave.memory_stores.strategy_graph import ScoredStrategy
from memweave.recipes.graph_memory.advising import (
    Advice,
    acts,
    advice_line,
    advice_text,
    random_advice,
    read_advice,
)
from memweave.recipes.graph_memory.headroom import advice_for, headroom, mean, played, utilities
from memweave.recipes.graph_memory.script import FSMQAScript
from memweave.recipes.graph_memory.simulating import Episode, first_said, play, response, scripted
from memweave.recipes.graph_memory.teaching import (
    ADVISED,
    BASE,
    EVEN,
    FIRST,
    Habits,
    Move,
    act,
    consistent,
    possible,
    read,
    reply,
    shares,
)
from memweave.recipes.lesson_rows import Said
from memweave.records import Scope
from memweave.worlds.fsmqa import FSMQA, KINDS, RANK, FSMQASettings, FSMQATask, Kind, fact, search_tool

CERTAIN = FSMQASettings(p_miss=0.0, p_noise=0.0, p_outdated=1.0, alignment=1.0)
ASKED = "Anna, Boris: friend, boss. Maybe Clara. zude puva"


def tasks(kind: Kind, number: int = 20, settings: FSMQASettings = CERTAIN) -> list[FSMQATask]:
    return FSMQA(replace(settings, mixture=tuple(float(each is kind) for each in KINDS))).tasks("test", number)


def always(move: Move) -> Habits:
    """Return habits of one first move, and of answering from what was found."""
    return Habits((tuple(float(move is each) for each in FIRST),) * 6, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0), compliance=0.0)


def score_of(kind: Kind, habits: Habits, settings: FSMQASettings = CERTAIN) -> float:
    return mean(played(tasks(kind, 25, settings), settings, habits, lambda task: (), seed=0, greedy=True))


def turns(*texts: str) -> list[Said]:
    """Return a conversation about `ASKED`: turns of the agent and what searches found, in turn."""
    said: list[Said] = [("user", ASKED)]
    for i, text in enumerate(texts):
        said.append(response(text) if i % 2 else ("assistant", text))
    return said


def test_every_turn_by_hand() -> None:
    one = act(read(turns()), Move.ONE)
    assert one == (
        '<think>plan one: Anna friend</think><tool_call>{"name": "search", "arguments": {"relation": "friend", "entity": "Anna"}}'
        "</tool_call>"
    )
    assert act(read(turns()), Move.BELIEF) == "<think>answer from belief: Clara</think><answer>Clara</answer>"
    found = read(turns(one, "Boris friend: Hugo [1]\nAnna friend: David [2]"))
    assert possible(found) == (Move.EVIDENCE, Move.RECHECK, Move.ASSUME)
    assert act(found, Move.EVIDENCE) == (
        "<think>Anna friend: David [2], answer from evidence: David</think><answer>David</answer>"
    )
    assert act(found, Move.ASSUME) == "<think>Anna friend: David [2], assume: Clara</think><answer>Clara</answer>"
    missing = read(turns(one, "Boris friend: Hugo [1]"))
    assert possible(missing) == (Move.RECHECK, Move.ASSUME)
    assert act(missing, Move.RECHECK).startswith(
        "<think>Anna friend: nothing, re-check: Anna friend</think><tool_call>"
    )


def test_a_sequential_plan_goes_on_with_what_it_found_and_a_parallel_one_compares() -> None:
    first = act(read(turns()), Move.SEQ)
    seen = read(turns(first, "Anna friend: David [1]"))
    assert possible(seen) == (Move.SEARCH,)
    second = act(seen, Move.SEARCH)
    assert '{"relation": "boss", "entity": "David"}' in second
    seen = read(turns(first, "Anna friend: David [1]", second, "David boss: Elena [3]"))
    assert act(seen, Move.EVIDENCE).endswith("<answer>Elena</answer>")
    both = act(read(turns()), Move.PAR)
    assert both.count("<tool_call>") == 2
    said = [*turns(both), response("Anna rank: 3 [1]"), response("Boris rank: 7 [1]")]
    assert act(read(said), Move.EVIDENCE).endswith("answer from evidence: Boris</think><answer>Boris</answer>")


def test_searching_ends() -> None:
    again = Habits(((0.0, 1.0, 0.0, 0.0),) * 6, (0.0, 1.0, 0.0), (0.0, 1.0, 0.0))
    for kind in KINDS:
        for task in tasks(kind, 5):
            episode = Episode.of(task, CERTAIN)
            play([episode], scripted(again, None))
            assert episode.calls <= 4
            assert episode.answer is not None


@pytest.mark.parametrize(
    ("kind", "right"),
    [
        (Kind.KNOWN, Move.BELIEF), (Kind.SINGLE, Move.ONE), (Kind.SEQUENTIAL, Move.SEQ), (Kind.PARALLEL, Move.PAR),
        (Kind.MISLEADING, Move.ONE), (Kind.UNSEARCHABLE, Move.BELIEF),
    ],
)  # fmt: skip
def test_each_kind_has_its_own_strategy(kind: Kind, right: Move) -> None:
    scores = {move: score_of(kind, always(move)) for move in FIRST}
    assert max(scores, key=scores.__getitem__) is right
    assert scores[right] >= 0.7
    assert sum(scores.values()) - scores[right] <= 0.5  # all the others together


def test_no_strategy_is_good_everywhere() -> None:
    world = FSMQASettings()
    for move in FIRST:
        everywhere = FSMQA(world).tasks("test", 300)
        assert mean(played(everywhere, world, always(move), lambda task: (), seed=0, greedy=True)) < 0.5


def test_the_base_is_wrong_for_half_of_the_kinds_and_sampling_finds_the_right_move_there() -> None:
    world = FSMQASettings()
    questions = FSMQA(world).tasks("test", 300)
    greedy = played(questions, world, BASE, lambda task: (), seed=0, greedy=True)
    sampled = played(questions, world, BASE, lambda task: (), seed=0, greedy=False)
    assert 0.4 <= mean(greedy) <= 0.6
    share = {kind: sum(marks) / len(marks) for kind, marks in greedy.items()}
    assert all(share[kind] > 0.75 for kind in (Kind.KNOWN, Kind.SINGLE, Kind.PARALLEL))
    assert all(share[kind] < 0.4 for kind in (Kind.SEQUENTIAL, Kind.MISLEADING, Kind.UNSEARCHABLE))
    assert all(sum(sampled[kind]) / len(sampled[kind]) > 0.1 for kind in KINDS)


def test_moves_have_the_shares_of_habits_and_advice() -> None:
    habits = replace(EVEN, compliance=0.4)
    assert shares(read(turns()), habits) == pytest.approx(dict.fromkeys(FIRST, 0.25))
    advice = advice_text([advice_for("SequentialDependentPlanning")])
    seen = read([("user", advice), *turns()])
    assert shares(seen, habits)[Move.SEQ] == pytest.approx(0.4 + 0.6 * 0.25)
    twice = read(
        [
            ("user", advice_text([advice_for("SequentialDependentPlanning"), advice_for("KnowledgeSufficient")])),
            *turns(),
        ]
    )
    found = shares(twice, habits)
    assert found[Move.SEQ] == pytest.approx(0.4 + 0.36 * 0.25)
    assert found[Move.BELIEF] == pytest.approx(0.6 * 0.4 + 0.36 * 0.25)
    rng = random.Random(0)
    made = Counter(reply([("user", advice), *turns()], habits, rng).split(":")[0] for _ in range(2_000))
    assert made["<think>plan seq"] / 2_000 == pytest.approx(0.55, abs=0.03)


def test_advice_that_cannot_be_followed_now_changes_nothing() -> None:
    plain = shares(read(turns()), BASE)
    for state in ("SufficientInformation", "ToolExecution", "AssumptionBasedReasoning"):
        assert shares(read([("user", advice_text([advice_for(state)])), *turns()]), BASE) == pytest.approx(plain)


def test_habits_go_by_the_words_of_a_question() -> None:
    for place, kind in enumerate(KINDS):
        for task in tasks(kind, 10):
            assert read(first_said(task)).kind is kind
            assert shares(read(first_said(task)), BASE) == pytest.approx(
                dict(zip(FIRST, BASE.first[place], strict=True))
            )


def test_advice_is_worded_as_the_strategist_and_the_prompt_have_it_and_read_back() -> None:
    paths = [
        ("Start", "CorrectGoalEstablished", "KnowledgeUncertainGap", "StrategyPlanning", plan, "ToolExecution")
        for plan in ("SequentialDependentPlanning", "SingleStepPlanning")
    ]
    made = RuleStrategist().induce(
        InductionRequest(
            kind=StrategyKind.CONTRAST, successes=(paths[0],), failures=(paths[1],), source=Source(question="Who?")
        )
    )
    assert isinstance(made, Proposal)
    piece = Advice(str(made.new.metadata["when"]), ("SequentialDependentPlanning",), ("SingleStepPlanning",))
    strategy = Strategy(
        **made.new.model_dump(), id=UUID(int=1), scope=Scope(user="u"), recorded_at=datetime.now(UTC), version=1, evidence=1,
        contradictions=0,
    )  # fmt: skip
    shown, _ = Advisor(profile="none").advise([ScoredStrategy(strategy, 1.0, 1.0, 1.0)])
    assert shown is not None
    assert shown.text == advice_text([piece])
    assert [(each.take, each.instead) for each in read_advice(advice_text([piece] * 2))] == [
        (piece.take, piece.instead)
    ] * 2
    many = Advice(None, ("ToolExecution",), ("SingleStepPlanning", "KnowledgeSufficient"))
    assert [(each.take, each.instead) for each in read_advice(advice_line(many))] == [(many.take, many.instead)]
    assert read_advice("consider nothing of the sort instead of something else.") == []
    assert read_advice("") == []


def test_every_choice_that_advice_can_name_means_a_move() -> None:
    assert set(ADVISED) <= {state.name for state in load_machine("cognitive").states}
    assert set(acts()) <= set(ADVISED)
    assert not {first for first in acts().values() for second in acts().values() if first != second and first in second}


def test_random_advice_recommends_everything_alike() -> None:
    found = Counter(piece.take[0] for piece in random_advice(random.Random(0), 4_000))
    assert set(found) == set(acts())
    assert max(found.values()) < 1.4 * min(found.values())


def test_a_turn_is_consistent_when_it_does_what_it_names() -> None:
    rng = random.Random(0)
    for kind in KINDS:
        for task in tasks(kind, 5, FSMQASettings()):
            episode = Episode.of(task, FSMQASettings(), random_advice(rng, 2))
            play([episode], scripted(EVEN, rng))
            assert all(consistent(turn.said, turn.reply) for turn in episode.turns)
    assert not consistent(turns(), "<think>answer from belief: Clara</think><answer>Boris</answer>")
    assert not consistent(turns(), "<think>plan one: Boris friend</think><answer>Clara</answer>")
    assert not consistent(turns(), "nothing")


def test_the_simulated_episode_is_what_the_graph_plays() -> None:
    """The same messages, the same answer, the same reward, with advice and without."""
    advice = advice_text([advice_for("SequentialDependentPlanning")])
    for kind in KINDS:
        for task in tasks(kind, 1, FSMQASettings()):
            for text in ("", advice):
                episode = Episode(task, Episode.of(task, FSMQASettings(), seed=3).base, first_said(task, text))
                play([episode], scripted(BASE, None))
                model = FSMQAScript(seed=None)
                graph = create_rollout_graph(model, [search_tool(task, seed=3)], profile="none", protocol="text")
                guidance = Guidance(text=text) if text else None
                found = graph.invoke({"query": task.text, "guidance": guidance, "ground_truth": task.answer})
                assert (found["answer"], found["reward"]) == (episode.answer, episode.score)
                assert [message.text for message in model.calls[-1]] == [said for _, said in episode.turns[-1].said]


def test_the_right_advice_helps_and_advice_at_random_does_not() -> None:
    for greedy in (True, False):
        found = headroom(greedy=greedy, seeds=1, number=150)
        assert found["best x 3"] > found["none"] + 0.15
        assert found["best"] > found["none"] + 0.08
        assert found["random"] < found["none"] + 0.03
        assert found["of another kind"] < found["none"]


def test_every_kind_has_advice_that_helps_and_advice_that_harms() -> None:
    worth = utilities(FSMQASettings(), BASE, greedy=False, number=240, seeds=1)
    for kind in KINDS:
        gains = [each[kind] for each in worth.values()]
        assert max(gains) > (0.08 if kind in (Kind.SEQUENTIAL, Kind.MISLEADING, Kind.UNSEARCHABLE) else 0)
        assert min(gains) < -0.03
    assert max(min(each.values()) for each in worth.values()) < 0  # no piece of advice is good everywhere


def test_the_script_is_reproducible_and_takes_other_compliance() -> None:
    def moves(**given: float) -> Sequence[str]:
        model = FSMQAScript(seed=1, **given)  # type: ignore[arg-type]
        advice = advice_text([advice_for("ParallelIndependentPlanning")])
        return [model.invoke([("user", advice), ("user", ASKED)]).text for _ in range(20)]

    assert moves() == moves()
    assert all("plan par" in text for text in moves(compliance=1.0))


def test_a_text_that_is_no_question_is_refused() -> None:
    with pytest.raises(ValueError, match="no question of FSM-QA: hello"):
        read([("user", "hello")])


def test_ranks_are_looked_up_for_both_people() -> None:
    task = tasks(Kind.PARALLEL, 1)[0]
    episode = Episode.of(task, CERTAIN)
    play([episode], scripted(always(Move.PAR), None))
    shown = "\n".join(text for role, text in episode.said if role == "tool")
    assert all(f"{person} {RANK}: {fact(task, RANK, person)}" in shown for person in task.people)
    assert episode.score == 1.0
