"""The study of graph memory on FSM-QA, played by the script: build, weights, arms, evaluation, worth."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from langchain_core.messages import BaseMessage
from langchain_core.outputs import ChatResult

from memweave.errors import FormatError, InputError, ModelReplyError, OperationError, SettingsError, UnavailableError
from memweave.graphs.graph_memory_play import Job
from memweave.graphs.graph_memory_state import Guidance
from memweave.memory_stores import StrategyGraph
from memweave.recipes.graph_memory import weighing
from memweave.recipes.graph_memory.arms import ARMS, advise, measured
from memweave.recipes.graph_memory.building import BuildSettings, Built, build
from memweave.recipes.graph_memory.evaluation import FSMQAEvalSettings, evaluate_fsmqa
from memweave.recipes.graph_memory.keeping import HOME, MADE, SCOPE, Kept, open_graph
from memweave.recipes.graph_memory.players import player
from memweave.recipes.graph_memory.rollouts import Episodes, query_task, questions
from memweave.recipes.graph_memory.script import FSMQAScript
from memweave.recipes.graph_memory.utility import monte_carlo, spearman, utility
from memweave.recipes.graph_memory.weighing import WEIGHTS_ARMS, WeightsSettings, train
from memweave.worlds.fsmqa import KINDS, score

SMALL = BuildSettings(queries=20, samples=4)
FEW = WeightsSettings(arm="chosen", queries=20, epochs=2, val=8, learning_rate=0.1)


def weights(kept: Kept) -> list[float]:
    with kept.opened() as graph:
        return [edge.weight for edge in graph.edges(scope=SCOPE)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build(tmp_path_factory.mktemp("built"), SMALL, FSMQAScript())


@pytest.fixture(scope="module")
def trained(built: Built, tmp_path_factory: pytest.TempPathFactory) -> weighing.Trained:
    return train(tmp_path_factory.mktemp("weights"), built.kept, FEW, FSMQAScript())


# rollouts


def test_a_pair_has_the_same_luck_whoever_plays_beside_it() -> None:
    tasks = questions("val", 12, 0)
    nothing: dict[str, Guidance | None] = dict.fromkeys(task.id for task in tasks)
    model = FSMQAScript(seed=3)
    alone = [measured(model, [task], nothing, seed=5).right for task in tasks]
    together = measured(model, tasks, nothing, seed=5).right
    assert "".join(alone) == together == measured(FSMQAScript(seed=3), tasks[::-1], nothing, seed=5).right[::-1]
    others = {measured(FSMQAScript(seed=seed), tasks, nothing, seed=5).right for seed in range(3)}
    assert len(others) > 1


def test_the_luck_of_searches_is_that_of_the_seed_and_the_pair() -> None:
    tasks = questions("val", 20, 0)
    nothing: dict[str, Guidance | None] = dict.fromkeys(task.id for task in tasks)
    model = FSMQAScript(seed=None)  # what it does depends on what it finds only
    assert measured(model, tasks, nothing, seed=1) == measured(model, tasks, nothing, seed=1)
    assert len({measured(model, tasks, nothing, seed=seed).right for seed in range(3)}) > 1
    of = Episodes.of(model, tasks)
    first, second = (
        of(Job(query_task(tasks[0]), arm, number, pair=4)) for arm, number in (("with", 8), ("without", 9))
    )  # type: ignore[arg-type]
    bases = [graph.config["configurable"]["fsmqa_knowledge_base"] for graph in (first, second)]  # type: ignore[index]
    assert bases[0] is not bases[1]
    assert bases[0].seed == bases[1].seed


def test_a_question_as_the_machines_take_it_hides_its_kind() -> None:
    task = questions("ood-chains", 1, 2)[0]
    asked = query_task(task)
    assert (asked.query_id, asked.split, asked.ground_truth) == ("ood-chains-2-0", "ood-chains", (task.answer,))
    assert score(task, asked.ground_truth[0]) == 1.0
    assert task.kind not in asked.model_dump_json()


# build


def test_a_graph_has_what_its_runs_have_shown(built: Built) -> None:
    assert (built.queries, built.rollouts, built.failures) == (20, 80, {})
    assert 0.2 < built.right < 0.8
    assert sum(built.decisions.values()) == 20
    assert built.decisions["create"] == len(built.strategies) >= 4
    with built.kept.opened() as graph:
        assert graph.check(scope=SCOPE) == []
        assert {query.query_id for query in graph.queries(scope=SCOPE)} == {t.id for t in questions("build", 20, 0)}
        assert len(graph.edges(scope=SCOPE)) == built.edges
        assert set(weights(built.kept)) == {1.0}


def test_a_graph_is_built_the_same_again_whatever_runs_at_once(built: Built, tmp_path: Path) -> None:
    again = build(tmp_path, replace(SMALL, at_once=1), FSMQAScript())
    assert replace(again, kept=built.kept) == built
    assert again.kept.trajectories().keys() == built.kept.trajectories().keys()
    other = build(tmp_path / "other", replace(SMALL, seed=1), FSMQAScript(seed=1))
    assert other.decisions != built.decisions or other.strategies != built.strategies


def test_only_right_runs_are_kept_as_trajectories(built: Built) -> None:
    kept = built.kept.trajectories()
    assert 0 < len(kept) < 20
    tasks = {task.id: task for task in questions("build", 20, 0)}
    for name, text in kept.items():
        assert text.startswith(tasks[name].text)
        assert text.endswith(f"<answer>{tasks[name].answer}</answer>")
        assert "\n" not in text


def test_injected_strategies_are_marked_and_are_the_share_that_was_asked_for(tmp_path: Path) -> None:
    found = build(tmp_path, replace(SMALL, arm="probe"), FSMQAScript())
    with found.kept.opened() as graph:
        own = graph.strategies(scope=SCOPE)
        marked = [each for each in own if each.metadata.get("injected")]
        assert len(marked) == found.injected == round(0.3 / 0.7 * (len(own) - len(marked)))
        assert graph.check(scope=SCOPE) == []
        linked = {edge.target for edge in graph.edges(scope=SCOPE)}
        assert {each.id for each in marked} <= linked


def test_the_coarse_machine_makes_a_graph_of_its_own(tmp_path: Path, built: Built) -> None:
    found = build(tmp_path, replace(SMALL, arm="coarse"), FSMQAScript())
    assert found.kept.made.reading.machine == "coarse"
    assert found.paths < built.paths
    with found.kept.opened() as graph:
        assert {path.machine for path in graph.paths(scope=SCOPE)} == {found.kept.made.reading.settings().machine}


class Small(FSMQAScript):
    """Refuses every request after the first of an episode, as a policy does whose context is full."""

    def _generate(self, messages: list[BaseMessage], *rest: Any, **kwargs: Any) -> ChatResult:
        if len(messages) > 2:
            raise ModelReplyError("the prompt does not fit into the context")
        return super()._generate(messages, *rest, **kwargs)


def test_an_episode_that_outgrows_the_context_is_a_wrong_answer() -> None:
    tasks = questions("val", 12, 0)
    nothing: dict[str, Guidance | None] = dict.fromkeys(task.id for task in tasks)
    found = measured(Small(), tasks, nothing, seed=5)
    whole = measured(FSMQAScript(), tasks, nothing, seed=5)
    assert len(found.right) == 12
    assert 0 < found.unreadable < 1
    assert whole.unreadable == 0
    assert all(mark == "0" or mark == other for mark, other in zip(found.right, whole.right, strict=True))


# what is kept


def test_a_graph_is_read_packed_too(built: Built, tmp_path: Path) -> None:
    shutil.copytree(built.kept.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("memory"))
    plain = tmp_path / "copy" / "graph.jsonl"
    with gzip.open(tmp_path / "copy" / "graph.jsonl.gz", "wb") as out:
        out.write(plain.read_bytes())
    plain.unlink()
    assert weights(Kept.find(tmp_path / "copy")) == weights(built.kept)


def test_a_folder_without_a_graph_and_a_broken_one_are_named(built: Built, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no graph of FSM-QA. Make one: memweave train graph-memory-weights"):
        Kept.find(tmp_path)
    shutil.copytree(built.kept.folder, tmp_path / "copy")
    assert Kept.find(tmp_path / "copy").made == built.kept.made
    assert Kept.find(tmp_path / "copy" / "graph.jsonl").made == built.kept.made
    (tmp_path / "copy" / MADE).write_text('{"format": 9}')
    with pytest.raises(FormatError, match="has format 9"):
        Kept.find(tmp_path / "copy")
    (tmp_path / "copy" / MADE).write_text("[]")
    with pytest.raises(FormatError, match="cannot be read"):
        Kept.find(tmp_path / "copy")


# weights


def test_training_moves_weights_and_says_what_it_cost(trained: weighing.Trained, built: Built) -> None:
    assert trained.updates == 40
    assert trained.rollouts == 80 == trained.kept.made.weight_rollouts
    assert trained.kept.made.interactions == 80 + 80
    assert 0 < trained.nonzero < 0.6
    assert len(trained.gaps) == 2
    assert len(trained.val) == 3
    assert set(weights(trained.kept)) != {1.0}
    assert trained.kept.trajectories() == built.kept.trajectories()
    rows = [json.loads(line) for line in (trained.kept.folder / weighing.LOG).read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert [row["epoch"] for row in rows] == [1] * 20 + [2] * 20
    assert {row["query_id"] for row in rows[:20]} == {task.id for task in questions("weights", 20, 0)}
    assert all(row["gap"] == row["reward_with"] - row["reward_without"] for row in rows)
    assert (trained.kept.folder / "curves.png").stat().st_size > 5_000
    with open_graph(trained.kept.folder / HOME, trained.kept.made.reading) as graph:
        assert len(graph.versions(scope=SCOPE)) >= 3  # 0, and after each epoch


class _Off(FSMQAScript):
    """The script, until it is away."""

    left: int = 0

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        self.left -= 1
        if self.left < 0:
            raise UnavailableError("the policy is away")
        return super()._generate(messages, stop, run_manager, **kwargs)


def test_a_run_that_was_cut_off_goes_on_and_ends_as_if_it_had_not_been(
    built: Built, trained: weighing.Trained, tmp_path: Path
) -> None:
    settings = replace(FEW, at_once=1)  # with more at once, what is left of a batch is drawn with newer weights
    whole = train(_made(tmp_path / "whole"), built.kept, settings, FSMQAScript())
    folder = _made(tmp_path / "run")
    for left in (40, 70):
        with pytest.raises((UnavailableError, OperationError)):
            train(folder, built.kept, settings, _Off(left=left))
    found = train(folder, built.kept, settings, FSMQAScript())
    assert (found.updates, found.val, found.gaps) == (whole.updates, whole.val, whole.gaps)
    assert weights(found.kept) == pytest.approx(weights(whole.kept))
    assert (folder / weighing.LOG).read_text().count("\n") == 40


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_without_a_baseline_only_one_side_counts_and_is_charged(built: Built, tmp_path: Path) -> None:
    found = train(_made(tmp_path / "w"), built.kept, replace(FEW, arm="with-only", epochs=1), FSMQAScript())
    assert (found.updates, found.rollouts) == (20, 20)
    rows = [json.loads(line) for line in (found.kept.folder / weighing.LOG).read_text().splitlines()]
    assert {row["gap"] for row in rows} == {0.0, 1.0}


def test_several_rollouts_per_arm_give_gaps_in_between(built: Built, tmp_path: Path) -> None:
    found = train(_made(tmp_path / "w"), built.kept, replace(FEW, arm="n4", epochs=1), FSMQAScript())
    assert found.rollouts == 20 * 8
    gaps = {abs(json.loads(line)["gap"]) for line in (found.kept.folder / weighing.LOG).read_text().splitlines()}
    assert gaps & {0.25, 0.5, 0.75}


def test_every_strategy_is_tried_on_a_question_and_a_cut_changes_nothing(built: Built, tmp_path: Path) -> None:
    settings = replace(FEW, arm="every", epochs=1, queries=6, at_once=1)
    whole = train(_made(tmp_path / "whole"), built.kept, settings, FSMQAScript())
    rows = [json.loads(line) for line in (whole.kept.folder / weighing.LOG).read_text().splitlines()]
    tried = Counter(row["query_id"] for row in rows)
    assert len(tried) == 6
    assert min(tried.values()) > 2
    assert len({(row["query_id"], row["strategy"]) for row in rows}) == len(rows) == whole.updates
    assert whole.rollouts == len(rows) + 6
    folder, applied = _made(tmp_path / "run"), StrategyGraph.apply
    left = tried[rows[0]["query_id"]] + 2  # so in the middle of the second question

    def apply(self: StrategyGraph, *given: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return applied(self, *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StrategyGraph, "apply", apply)
        with pytest.raises(KeyboardInterrupt):
            train(folder, built.kept, settings, FSMQAScript())
    found = train(folder, built.kept, settings, FSMQAScript())
    assert (found.updates, found.rollouts, found.gaps) == (whole.updates, whole.rollouts, whole.gaps)
    assert weights(found.kept) == pytest.approx(weights(whole.kept))


def test_by_default_all_strategies_are_tried_and_count_nearly_alike(built: Built, tmp_path: Path) -> None:
    found = train(_made(tmp_path / "w"), built.kept, WeightsSettings(queries=6, val=0), FSMQAScript())
    rows = [json.loads(line) for line in (found.kept.folder / weighing.LOG).read_text().splitlines()]
    for question in {row["query_id"] for row in rows}:
        probabilities = [row["probability"] for row in rows if row["query_id"] == question]
        assert sum(probabilities) == pytest.approx(1, abs=0.02)  # weights move a little from step to step
        assert max(probabilities) < 1.5 * min(probabilities)


def test_arms_differ_from_the_chosen_one_in_what_they_are_called_after() -> None:
    chosen = WEIGHTS_ARMS["chosen"]
    assert replace(WEIGHTS_ARMS["with-only"], estimator="gap") == chosen
    assert replace(WEIGHTS_ARMS["n4"], samples=1) == chosen
    assert replace(WEIGHTS_ARMS["probe"], build="faithful") == chosen
    faithful = WEIGHTS_ARMS["faithful"]
    assert (faithful.reading.temperature, faithful.reading.degree_normalised, faithful.samples) == (1.0, False, 1)


# arms


def test_each_arm_advises_as_it_says(trained: weighing.Trained) -> None:
    tasks = questions("val", 6, 0)
    trajectories = trained.kept.trajectories()
    with trained.kept.opened() as graph:
        known = {each.id: each for each in graph.strategies(scope=SCOPE)}
        found = {arm: advise(arm, graph, tasks, k=3, seed=0, trajectories=trajectories) for arm in ARMS}
        assert set(found["none"].values()) == {None}
        assert set(advise("trained", graph, tasks, k=0, seed=0).values()) == {None}
        for arm in ("uniform", "trained", "random", "similarity", "confidence"):
            for task in tasks:
                given = found[arm][task.id]
                assert given is not None
                assert len(given.strategies) == 3
                assert given.text.startswith("<advice>\n- ")
        for task in tasks:
            raw = found["raw"][task.id]
            assert raw is not None
            assert raw.strategies == ()
            assert raw.text.count("\n- ") == 3
            for line in raw.text.splitlines()[1:-1]:
                assert line.removeprefix("- ") in trajectories.values()
            scores = [known[each.id].score for each in found["confidence"][task.id].strategies]  # type: ignore[union-attr]
            assert scores == sorted(scores, reverse=True)
        assert found["random"] == advise("random", graph, tasks, k=3, seed=0)
        assert found["random"] != advise("random", graph, tasks, k=3, seed=1)
        with pytest.raises(SettingsError, match="there is no arm 'best'"):
            advise("best", graph, tasks, k=3, seed=0)


# worth


def test_spearman_is_the_correlation_of_ranks() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 40]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [9, 7, 5, 1]) == pytest.approx(-1)
    assert spearman([1, 2, 3], [2, 2, 2]) == 0.0
    assert spearman([1, 2, 3, 4], [1, 2, 2, 3]) == pytest.approx(4.5 / np.sqrt(5 * 4.5))
    rng = random.Random(0)
    one, other = ([rng.random() for _ in range(30)] for _ in range(2))
    assert spearman(one, other) == pytest.approx(spearman([x**3 for x in one], other))


def test_worth_is_measured_by_kind_and_ranks_are_compared_with_it(trained: weighing.Trained) -> None:
    tasks = questions("val", 24, 0)
    with trained.kept.opened() as graph:
        worth = monte_carlo(FSMQAScript(), graph, tasks, rollouts=6, seed=0)
        assert set(worth) == {each.id for each in graph.strategies(scope=SCOPE)}
        assert {kind for each in worth.values() for kind in each} == {task.kind for task in tasks} <= set(KINDS)
        assert any(abs(gap) > 0.3 for each in worth.values() for gap in each.values())
        found = utility(FSMQAScript(), graph, tasks, rollouts=6, seed=0)
        assert len(found.before) == len(found.after) <= 24
        assert all(-1 <= each <= 1 for each in (*found.before, *found.after))
        assert found.before != found.after  # the weights are not all 1 any more


# evaluation


def test_arms_are_compared_on_the_same_questions(trained: weighing.Trained) -> None:
    settings = FSMQAEvalSettings(
        arms=("none", "uniform", "random"),
        splits=("val", "ood-chains"),
        ks=(0, 2),
        temperatures=(0.0, 1.0),
        episodes=10,
    )
    found = evaluate_fsmqa(settings, "script", graphs=[trained.kept.folder])
    keys = [(cell.arm, cell.split, cell.k, cell.temperature) for cell in found.cells]
    assert len(set(keys)) == len(keys) == 2 * 2 * 3  # k 0 is the arm none
    assert {(arm, k) for arm, _, k, _ in keys} == {("none", 0), ("uniform", 2), ("random", 2)}
    for cell in found.cells:
        times = cell.right["0"]
        assert len(times) == (3 if cell.temperature else 1)
        assert {len(marks) for marks in times} == {10}
        marks = "".join(times)
        assert cell.score == pytest.approx(marks.count("1") / len(marks))
        assert cell.low <= cell.score <= cell.high
    assert found.graphs["0"]["weight_rollouts"] == 80
    again = evaluate_fsmqa(settings, "script", graphs=[trained.kept.folder])
    assert again.cells == found.cells
    json.dumps(found.payload())


def test_without_a_graph_each_seed_makes_one(tmp_path: Path) -> None:
    settings = FSMQAEvalSettings(
        arms=("none", "trained"),
        splits=("val",),
        episodes=6,
        seeds=2,
        build=BuildSettings(queries=10, samples=4),
        weights=WeightsSettings(arm="chosen", queries=6, epochs=1),
    )
    found = evaluate_fsmqa(settings, "script")
    assert set(found.graphs) == {"0", "1"}
    assert {made["seed"] for made in found.graphs.values()} == {0, 1}
    assert {made["weight_rollouts"] for made in found.graphs.values()} == {12}
    alone = evaluate_fsmqa(replace(settings, arms=("none",)), "script")
    assert alone.graphs == {}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"arms": ("best",)}, "there is no agent 'best'. There are: none, uniform"),
        ({"splits": ("train",)}, "there is no split 'train'. There are: build"),
        ({"ks": (-1,)}, "give 0 or more"),
        ({"seeds": 0}, "0 seeds"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(given: dict[str, Any], says: str) -> None:
    with pytest.raises((SettingsError, InputError), match=says):
        FSMQAEvalSettings(**given)


def test_graphs_are_one_for_each_seed(built: Built) -> None:
    with pytest.raises(InputError, match="1 graphs for 2 seeds"):
        evaluate_fsmqa(FSMQAEvalSettings(seeds=2), "script", graphs=[built.kept.folder])


@pytest.mark.parametrize(
    ("name", "error", "says"),
    [
        ("nobody", SettingsError, "no policy is called 'nobody'"),
        ("base", InputError, "nowhere does not exist. Make it: memweave pretrain --world fsmqa"),
    ],
)
def test_a_policy_that_is_not_there_is_named(name: str, error: type[Exception], says: str) -> None:
    with ExitStack() as opened, pytest.raises(error, match=says):
        player(name, opened, base=Path("nowhere"))


def test_players_are_the_script_and_models(tmp_path: Path) -> None:
    with ExitStack() as opened:
        greedy, sampled = (player("script", opened, temperature=heat) for heat in (0.0, 1.0))
        tasks = questions("val", 20, 0)
        nothing: dict[str, Guidance | None] = dict.fromkeys(task.id for task in tasks)
        play: Callable[[Any], str] = lambda model: measured(model, tasks, nothing, seed=0).right  # noqa: E731
        assert play(greedy) != play(sampled)


def test_where_advice_is_not_taken_no_weight_changes(built: Built, tmp_path: Path) -> None:
    with ExitStack() as opened:
        deaf = player("script-deaf", opened)
        found = train(_made(tmp_path / "w"), built.kept, replace(FEW, epochs=1), deaf)
    assert (found.updates, found.nonzero) == (20, 0.0)
    assert set(weights(found.kept)) == {1.0}
