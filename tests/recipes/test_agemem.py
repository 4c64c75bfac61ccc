"""AgeMem's lessons, gate, recipes and evaluation, on a policy that is too small to be good."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memweave.agents.memory_tools import LONG_TERM, SHORT_TERM
from memweave.agents.tool_protocol import read_text_turn, tools_line
from memweave.errors import InputError, SettingsError
from memweave.graphs.agemem_reward import ANSWER_ONLY, PAPER
from memweave.recipes import Place, find_recipe
from memweave.recipes.agemem import episodes, players, teaching
from memweave.recipes.agemem.lessons import conversations, rows
from memweave.recipes.agemem.simulating import Simulator, teacher
from memweave.recipes.agemem.teaching import CLEAN, Habits
from memweave.recipes.lesson_rows import Reply, context_tokens, prompt_ids, token_row
from memweave.serving.policy_folder import PolicyFolder, create_policy
from memweave.worlds.memhop import MemHop, MemHopSettings, MemHopTask, memory_quality, score

torch = pytest.importorskip("torch")

from memweave.recipes import pretraining  # noqa: E402 - after importorskip
from memweave.recipes.agemem.evaluation import evaluate_memhop  # noqa: E402
from memweave.recipes.agemem.lessons import texts  # noqa: E402
from memweave.recipes.agemem.measuring import measure  # noqa: E402
from memweave.recipes.agemem.pretraining import WHOLE, MemHopCourse, MemHopPretrainSettings  # noqa: E402
from memweave.recipes.running import MEMHOP_BASE, run_recipe  # noqa: E402

FULL = (*LONG_TERM, *SHORT_TERM)
WORLD = MemHop()


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyFolder:
    folder = tmp_path_factory.mktemp("policy") / "base"
    return create_policy(
        folder, texts(0, 60), vocab_size=500, layers=2, context=768, initializer_range=0.05, whole=WHOLE
    )


def _play(habits: Habits, task: MemHopTask, seed: int = 0) -> Simulator:
    simulator = Simulator(teacher(habits, random.Random(seed)), FULL)
    simulator.play(task)
    return simulator


# the scripts


def test_a_teacher_without_habits_is_always_right() -> None:
    for task in WORLD.tasks("val"):
        assert score(task, _play(CLEAN, task).out.answer) == 1.0


def test_a_teacher_without_habits_leaves_exactly_what_holds() -> None:
    for task in WORLD.tasks("val", 40):
        stored = _play(CLEAN, task).out.memories.values()
        assert sorted(stored) == sorted(fact.text for fact in task.facts)


def test_each_habit_costs_answers_that_only_it_explains() -> None:
    tasks = WORLD.tasks("train", 300)

    def right(habits: Habits) -> float:
        return sum(score(task, _play(habits, task).out.answer) for task in tasks) / len(tasks)

    for name in ("skip", "keep_old", "stop_early"):
        assert right(replace(CLEAN, **{name: 1.0})) < 0.95
    assert right(Habits()) < min(right(replace(CLEAN, **{n: getattr(Habits(), n)})) for n in ("skip", "keep_old"))


def test_lessons_of_both_teachers_can_be_read_and_name_known_tools() -> None:
    rng = random.Random(3)
    for habits in (CLEAN, Habits()):
        for row in rows(rng, 60, habits, MemHopSettings()):
            for each in row:
                turn = read_text_turn(each.reply)
                assert not turn.problems
                assert {call["name"] for call in turn.calls} <= set(FULL)


# tokens


def test_a_row_has_the_tokens_of_the_chat_template_and_learns_replies_only(policy: PolicyFolder) -> None:
    tokenizer = policy.tokenizer()
    rng = random.Random(1)
    for row in rows(rng, 20, CLEAN, MemHopSettings()):
        said = [{"role": role, "content": text} for role, text in (*row[-1].said, ("assistant", row[-1].reply))]
        wanted = tokenizer.encode(str(tokenizer.apply_chat_template(said, tokenize=False)), add_special_tokens=False)
        ids, labels = token_row(policy, row, -100)
        assert ids == wanted
        learned = [label for label in labels if label != -100]
        replies = "".join(f"{each.reply}<|end|>" for each in row)
        assert tokenizer.decode(learned) == replies
        for place, label in enumerate(labels):
            assert label in (-100, ids[place + 1] if place + 1 < len(ids) else -100)


def test_the_prompt_and_its_length_are_those_of_the_chat_template(policy: PolicyFolder) -> None:
    tokenizer = policy.tokenizer()
    turn = _play(CLEAN, WORLD.tasks("val", 1)[0]).out.turns[-1]
    said = [{"role": role, "content": text} for role, text in turn.said]
    text = str(tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True))
    assert prompt_ids(policy, turn.said) == tokenizer.encode(text, add_special_tokens=False)
    assert context_tokens(policy, turn.said) == len(prompt_ids(policy, turn.said)) - 1  # the role of the reply


def test_a_context_that_was_rewritten_begins_a_row() -> None:
    busy = replace(CLEAN, manage=0.5)
    for seed, task in enumerate(WORLD.tasks("train", 30)):
        turns = _play(busy, task, seed).out.turns
        found = conversations(turns)
        assert [each.reply for row in found for each in row] == [turn.reply for turn in turns]
        for row in found:
            for before, after in zip(row, row[1:], strict=False):
                assert after.said[: len(before.said) + 1] == (*before.said, ("assistant", before.reply))
        assert len(found) >= 2  # stages 1 and 2 have nothing in common
    assert conversations([]) == []
    assert conversations(turns[:1]) == [[Reply(turns[0].said, turns[0].reply)]]


# the gate and pre-training


def test_the_gate_of_an_untrained_policy_is_missed(policy: PolicyFolder) -> None:
    found = measure(policy.path, 0, episodes=4)
    assert found["lookups"] == 0.0
    assert set(found["by_kind"]) >= {"answer", "lookups", "steps", "store"}
    assert found["asked"] >= 4
    assert found == measure(policy.path, 0, episodes=4)


def test_a_policy_that_plays_as_the_script_passes_the_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    from memweave.recipes.agemem import measuring

    def scripted(policy: Path, prompts: list[list[tuple[str, str]]], longest: int) -> list[str]:
        return [teaching.reply(said, measuring.PERFECT, random.Random(0)) for said in prompts]

    monkeypatch.setattr(measuring, "replies", scripted)
    found = measure(Path("/nowhere"), 0, episodes=40)
    assert set(found["by_kind"].values()) == {1.0}
    monkeypatch.setattr(measuring, "PERFECT", replace(measuring.PERFECT, stop_early=1.0))
    assert measure(Path("/nowhere"), 0, episodes=40)["by_kind"]["answer"] < 1.0


def test_pretraining_makes_a_policy_with_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from memweave.recipes.agemem import pretraining as own

    monkeypatch.setattr(own, "texts", lambda seed: texts(seed, 60))
    monkeypatch.setattr(own, "measure", lambda path, seed: measure(path, seed, episodes=2))
    small = MemHopPretrainSettings(
        clean_steps=2, habit_steps=1, lessons=2, vocab_size=500, hidden=64, layers=3, heads=2, intermediate=64
    )
    report = pretraining.pretrain(tmp_path / "p", MemHopCourse(small))
    assert report["gate"]["lookups"] == 0.0
    assert report["settings"]["habits"]["unstored"] == ["teacher"]
    assert json.loads((tmp_path / "p" / "pretraining.json").read_text()) == report


# the judge


def test_what_is_measured_of_a_scripted_episode() -> None:
    task = next(t for t in WORLD.tasks("val") if t.hops == 2 and t.stale)
    found = episodes.evaluate(players.script("script-tidy"), Path("/nowhere"), [task], PAPER, count=len)
    assert found.right == "1"
    means = found.means
    assert means["em"] == means["task"] == 1.0
    assert means["calls:Add_memory"] == 6
    assert means["calls:Update_memory"] == means["maintenance"] == 1.0
    assert means["storage"] == pytest.approx(
        1 / 6
    )  # the last fact of the chain was corrected later: only the first is still true
    assert means["mq"] == pytest.approx(memory_quality(task, [fact.text for fact in task.facts]))
    assert means["preservation"] == 1.0


def test_the_reward_of_the_task_is_the_score_of_the_evaluation() -> None:
    tasks = WORLD.tasks("val", 12)
    found = episodes.evaluate(players.script("script-habits", 5), Path("/nowhere"), tasks, ANSWER_ONLY, count=len)
    assert 0 < found.score < 1
    assert found.means["em"] == found.score
    assert found.means["reward"] == pytest.approx(found.score)  # everybody answered


# recipes


ARMS = [
    ("agemem", "grpo"),
    ("agemem-answer-only", "no-both"),
    ("agemem-rag", "grpo"),
    *(("agemem", arm) for arm in ("code", "terminal-only", "per-stage", "step-pooled", "tool-steps")),
]


@pytest.mark.parametrize(("name", "arm"), ARMS)
def test_a_recipe_trains_and_tests(name: str, arm: str, policy: PolicyFolder, tmp_path: Path) -> None:
    recipe = find_recipe(name)
    settings = recipe.settings.changed(
        steps=1, tasks_per_step=1, group_size=2, eval_tasks=1, test_size=2, seed=1, save_every=1
    )
    said: list[str] = []
    base = (
        MEMHOP_BASE if arm == "terminal-only" else policy.path
    )  # an untrained policy fills its context before stage 3
    found = run_recipe(recipe, settings, Place(out=tmp_path / "run", base=base, quiet=True, say=said.append), arm=arm)
    assert (found.recipe, found.arm, found.steps, found.episodes) == (name, arm, 1, 2)
    assert set(found.test) == {"greedy", "sampled", "ood"}
    greedy = found.test["greedy"]
    assert isinstance(greedy, dict)
    assert len(str(greedy["right"])) == 2
    assert set(found.parts) >= {"em", "mq", "tokens", "task", "context", "memory", "calls:Add_memory"}
    assert ("stage-1" in found.parts) == (arm == "per-stage")
    assert any("ood" in line for line in said)


@pytest.mark.parametrize("arm", ["terminal-only", "per-stage", "step-pooled", "tool-steps"])
def test_arms_of_credit_differ_in_nothing_else(arm: str) -> None:
    from memweave.recipes.agemem.training import MATERIAL

    plain, own = MATERIAL["agemem", "grpo"], MATERIAL["agemem", arm]
    assert replace(own, reward=replace(own.reward, by_stage=False)) == plain
    assert find_recipe("agemem").arm(arm).preset is find_recipe("agemem").arm("grpo").preset


def test_the_stages_of_played_episodes_are_what_their_credit_goes_by(policy: PolicyFolder, tmp_path: Path) -> None:
    from memweave.recipes.agemem.training import CREDITS, MATERIAL
    from memweave.trainers.credit import Group
    from memweave.trainers.rollouts import Rollouts

    tasks = WORLD.tasks("val", 2)
    judge = episodes.memhop_judge(tasks, MATERIAL["agemem", "per-stage"].reward)
    graph = episodes.episode_graph(players.script("script-habits", 5), policy.path, judge, count=len)
    with episodes.scratch_bank() as bank, Rollouts(graph, episodes.graph_reward, bank=bank) as rollouts:
        groups: list[Group] = rollouts.run(episodes.rollout_tasks(tasks), group_size=3, run="r", training=False)
    turns = {(t.id, g.index): g.stage for each in groups for t in each.traces for g in t.generations}
    assert set(turns.values()) == {1, 2, 3}
    for name, stages in (("terminal-only", {3}), ("per-stage", {1, 2, 3}), ("tool-steps", {1, 2, 3})):
        credit = CREDITS[name].credit
        assert credit is not None
        found = credit(0)(groups)
        assert {turns[key] for key in found.advantages} == stages
        assert found.report.credited + sum(found.report.excluded.values()) == len(turns)
    for trace in (trace for each in groups for trace in each.traces):
        assert trace.score is not None
        shares = [trace.score.parts[f"stage-{stage}"] for stage in (1, 2, 3)]
        assert sum(shares) == pytest.approx(trace.score.value)


def test_controls_are_played_in_their_own_world() -> None:
    from memweave.recipes.agemem.training import MATERIAL

    neither = MATERIAL["agemem-answer-only", "no-both"].world
    assert (neither.p_stale, neither.distractors) == (0.0, 0)
    assert all(not t.distractors and not t.stale for t in MemHop(neither).tasks("test", 50))
    assert {arm for recipe, arm in MATERIAL if recipe == "agemem"} == set(find_recipe("agemem").arms)


# evaluation


def test_evaluation_of_scripts_and_policies(policy: PolicyFolder) -> None:
    told: list[tuple[str, int, int]] = []
    found = evaluate_memhop(
        "full", "script", number=10, seeds=2, base=policy.path, report=lambda *each: told.append(each)
    )
    assert (found.episodes, set(found.right), len(found.right["0"])) == (20, {"0", "1"}, 10)
    assert found.score == pytest.approx(sum(marks.count("1") for marks in found.right.values()) / 20)
    assert found.low <= found.score <= found.high
    assert told[-1] == ("script plays, seed 1", 10, 10)
    untrained = evaluate_memhop("none", str(policy.path), number=2, base=policy.path)
    assert untrained.score == 0.0
    assert json.loads(json.dumps(found.payload()))["world"] == "memhop"


@pytest.mark.parametrize(
    ("changed", "error", "says"),
    [
        ({"agent": "both"}, SettingsError, "there is no agent 'both'. There are: full, rag, none"),
        ({"policy": "best"}, SettingsError, "no policy is called 'best'. There are: base, script"),
        ({"number": 0}, InputError, "no episode is to be played"),
        ({"number": 10_000}, InputError, "the split test has 300 episodes, not 10000"),
        ({"seeds": 0}, InputError, "0 seeds"),
        ({"base": Path("/nowhere")}, InputError, "the base policy /nowhere does not exist. Make it: memweave pretrain"),
    ],
)
def test_what_cannot_be_evaluated(
    changed: dict[str, object], error: type[Exception], says: str, policy: PolicyFolder
) -> None:
    given: dict[str, object] = {"agent": "full", "policy": "script", "base": policy.path, **changed}
    with pytest.raises(error, match=says):
        evaluate_memhop(**given)  # type: ignore[arg-type]


def test_a_folder_without_a_policy_is_named(policy: PolicyFolder, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds neither an adapter nor a policy"):
        evaluate_memhop("full", str(tmp_path), number=1, base=policy.path)


def test_the_line_that_names_the_tools_is_the_graphs(policy: PolicyFolder) -> None:
    seen: list[str] = []
    task = WORLD.tasks("val", 1)

    def play(messages: list[object]) -> str:
        seen.append(str(getattr(messages[0], "text", "")))
        return teaching.IDLE

    from memweave.testing.models import ScriptedChatModel

    episodes.evaluate(ScriptedChatModel(play), policy.path, task, PAPER)  # type: ignore[arg-type]
    assert set(seen) == {tools_line(FULL)}
