"""The recipes of Memory-R1 end to end in this process: one or two steps of a tiny policy in a small world."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import BaseMessage

from memweave.errors import OperationError, SettingsError
from memweave.recipes import Place, Recipe, RecipeResult, find_recipe
from memweave.recipes.memory_r1 import dialogs, training
from memweave.recipes.recipe import Stage, Staging
from memweave.records import Scope, new_id, utc_now
from memweave.tracing import Trace, TraceStore
from memweave.trainers.rollouts import Task
from memweave.worlds import dialog_world
from memweave.worlds.dialog_world import DialogWorld

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from memweave.recipes.memory_r1.pretraining import MARKERS, texts  # noqa: E402 - after importorskip
from memweave.recipes.running import run_recipe  # noqa: E402
from memweave.serving import create_policy, weights_version  # noqa: E402

ROLES = ("manager", "answerer")
SMALL_WORLD = DialogWorld(sessions=1, session_turns=14, keys=2, friend_keys=1, follow_ups=2)
SIZES = {"train": 2, "val": 1, "test": 1, "ood": 1}


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Play in a small world, on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "DialogWorld", lambda: SMALL_WORLD)
        short_window = replace(training.MATERIAL["grpo-window24"], window=3)  # of 14 turns
        more = replace(training.MATERIAL["grpo-data600"], dialogues=4)
        changed = {"grpo-window24": short_window, "grpo-data600": more}
        patch.setattr(training, "MATERIAL", training.MATERIAL | changed)
        patch.setattr(dialog_world, "SIZES", SIZES)
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a policy that knows nothing."""
    folder: Path = tmp_path_factory.mktemp("policies") / "base"
    create_policy(folder, texts(0, count=40), vocab_size=420, layers=1, whole=MARKERS, initializer_range=0.2)
    return folder


def by_ids(role: str) -> Callable[[Task, Any, Trace], float]:
    """Return a reward that differs between episodes; exact match of a policy that knows nothing is 0 everywhere."""

    def reward(task: Task, output: Any, trace: Trace) -> float:
        assert len(output["answers"]) == len(task.metadata["gold"])  # type: ignore[arg-type]  # JSON of a task
        ids = [token for g in trace.generations if g.actor == role for token in g.token_ids or ()]
        return sum(token % 3 == 0 for token in ids) / len(ids)

    return reward


Hook = Callable[[Staging, Stage], Stage | None]


def short(role: str, hook: Hook = lambda given, stage: None) -> Recipe:
    """Return the recipe that trains `role`, with short replies and a reward that differs. hook: sees its stage, and may change it."""
    recipe = find_recipe(f"memory-r1-{role}")

    def stage(given: Staging) -> Stage:
        made = recipe.stage(given)
        assert made.reward is (dialogs.lenient_reward if given.arm == "grpo-lenient" else dialogs.reward)
        return replace(hook(given, made) or made, reward=by_ids(role))

    few = {"steps": 2, "tasks_per_step": 2, "group_size": 2, "eval_tasks": 2, "test_size": 0, "save_every": 1}
    settings = replace(recipe.settings.changed(**few), lora_rank=4)
    return replace(recipe, stage=stage, settings=settings, max_tokens={"manager": 6, "answerer": 4})


Said = tuple[RecipeResult, Path]


class Enough(Exception):
    """A test has seen what it wanted before anything was learned."""


def staged(role: str, base: Path, out: Path, look: Callable[[Staging, Stage], object], **how: Any) -> None:
    """Let `look` see the stage of a run, and end the run there."""

    def hook(given: Staging, stage: Stage) -> None:
        look(given, stage)
        raise Enough

    with pytest.raises(Enough):
        play(role, base, out, hook=hook, **how)


def play(
    role: str,
    base: Path,
    out: Path,
    *,
    arm: str = "grpo",
    partner: Path | None = None,
    resume: bool = False,
    hook: Hook = lambda given, stage: None,
    **changed: object,
) -> RecipeResult:
    recipe = short(role, hook)
    place = Place(out=out, base=base, partner=partner, resume=resume, quiet=True)
    return run_recipe(recipe, recipe.settings.changed(**changed), place, arm=arm)


@pytest.fixture(scope="module")
def manager(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """Return a whole run of the manager with its test, and its folder, which tests only read."""
    out = tmp_path_factory.mktemp("runs") / "manager"
    return play("manager", base, out, test_size=1), out


@pytest.fixture(scope="module")
def answerer(base: Path, manager: Said, tmp_path_factory: pytest.TempPathFactory) -> Said:
    """Return a whole run of the answerer on the bank of that manager, with its test."""
    out = tmp_path_factory.mktemp("runs") / "answerer"
    return play("answerer", base, out, partner=manager[1] / "policy", test_size=1), out


def episodes(out: Path) -> list[Trace]:
    with TraceStore(out / "traces.db") as store:
        return list(store.query())


def versions(out: Path, role: str) -> set[str | None]:
    return {g.policy_version for trace in episodes(out) for g in trace.generations if g.actor == role}


def log(out: Path) -> list[dict[str, float]]:
    lines = (out / "checkpoints" / "log.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if "tokens/trained" in entry]


def damage(folder: Path) -> None:
    """Change one bit of the weights in `folder`."""
    (weights,) = folder.glob("*.safetensors")
    raw = bytearray(weights.read_bytes())
    raw[-2] ^= 1
    weights.write_bytes(bytes(raw))


def complete(result: RecipeResult, out: Path, arm: str) -> None:
    """Check what every run must return."""
    assert (result.arm, result.server, result.policy, result.excluded) == (arm, "local", out / "policy", 0)
    assert weights_version(out / "policy") == result.policy_version != result.frozen[partner_of(result.recipe)]
    found = json.loads(json.dumps(result.payload()))
    assert found["settings"]["tasks_per_step"] == 2


def partner_of(recipe: str) -> str:
    return "answerer" if recipe.endswith("manager") else "manager"


# every arm runs


@pytest.mark.parametrize(
    ("role", "arm"),
    [
        ("manager", "ppo"),
        ("manager", "shuffled"),
        ("manager", "grpo-window24"),
        ("manager", "grpo-rollout"),
        ("answerer", "ppo"),
        ("answerer", "shuffled"),
        ("answerer", "grpo-lenient"),
    ],
)
def test_arms_that_learn_from_episodes(base: Path, tmp_path: Path, role: str, arm: str) -> None:
    result = play(role, base, tmp_path / "run", arm=arm, steps=1)
    complete(result, tmp_path / "run", arm)
    assert (result.steps, result.episodes, len(result.rewards), result.test) == (1, 4, 1, {})
    assert result.start is not None
    assert result.end is not None
    assert result.generated_tokens > 0
    assert list(result.zero_std) in ([0.0], [0.5], [1.0])  # two groups
    assert result.logprob_difference is not None
    assert result.logprob_difference <= 1e-3
    assert result.frozen == {partner_of(result.recipe): weights_version(base)}


@pytest.mark.parametrize("role", ROLES)
def test_the_arm_that_imitates(base: Path, tmp_path: Path, role: str) -> None:
    result = play(role, base, tmp_path / "run", arm="sft", steps=3)
    complete(result, tmp_path / "run", "sft")
    assert (result.start, result.end, list(result.rewards), result.episodes, result.logprob_difference) == (
        None, None, [], 0, None,
    )  # fmt: skip
    assert result.seconds > 0
    assert (tmp_path / "run" / "policy" / "config.json").exists()  # all weights, not an adapter


def test_arms_differ_in_what_their_episodes_are(base: Path, tmp_path: Path) -> None:
    """One turn on a bank of the turns before it, or a whole dialogue on an empty bank; compared on the same tasks."""
    said: dict[str, set[int]] = {}
    memories: dict[str, int] = {}

    def look(given: Staging, stage: Stage) -> None:
        said[given.arm] = {len(task.input["turns"]) for task in stage.train}
        assert {len(task.input["turns"]) for task in stage.held_out} == {1}
        assert stage.bank is not None
        shown = [stage.bank.count(scope=Scope(user=str((task.context or {})["user"]))) for task in stage.train]
        memories[given.arm] = sum(shown)

    for arm in ("grpo", "grpo-window24", "grpo-rollout"):
        staged("manager", base, tmp_path / arm, look, arm=arm)
    assert said == {"grpo": {1}, "grpo-window24": {1}, "grpo-rollout": {14}}
    assert memories["grpo"] > memories["grpo-window24"] > memories["grpo-rollout"] == 0


@pytest.mark.parametrize("role", ROLES)
def test_arms_differ_in_how_many_dialogues_they_learn_from(base: Path, tmp_path: Path, role: str) -> None:
    asked: dict[str, set[str]] = {}

    def look(given: Staging, stage: Stage) -> None:
        asked[given.arm] = {str((task.context or {})["user"]).partition("@")[0] for task in stage.train}

    for arm in ("grpo", "grpo-data40", "grpo-data600"):
        staged(role, base, tmp_path / arm, look, arm=arm)
    assert {arm: len(dialogues) for arm, dialogues in asked.items()} == {
        "grpo": 2,
        "grpo-data40": 3,
        "grpo-data600": 4,
    }
    assert asked["grpo"] < asked["grpo-data40"] < asked["grpo-data600"]


def test_the_lenient_reward_counts_answers_that_say_more() -> None:
    task = Task(id="t", input={}, metadata={"gold": ["May", "dog and cat"]})
    trace = Trace(id=new_id(), started_at=utc_now(), ended_at=utc_now())
    for answers, exact, lenient in (
        (["May", "dog and cat"], 1.0, 1.0),
        (["May or June", "a cat and a dog"], 0.0, 1.0),
        (["June", "cat and dog and duck"], 0.0, 0.5),
        ([None, "dog"], 0.0, 0.0),
    ):
        said = {"answers": answers}
        strict, loose = dialogs.reward(task, said, trace), dialogs.lenient_reward(task, said, trace)
        assert (strict.value, loose.value, loose.parts) == (exact, lenient, {"exact": exact})


# what a run returns


def test_the_manager_is_tested_on_whole_dialogues_at_every_budget(manager: Said) -> None:
    result, out = manager
    complete(result, out, "grpo")
    assert set(result.test) == {"greedy-6", "greedy-12", "greedy-60", "sampled-6", "ood-6"}
    check_marks(result.test)
    assert len({marks["bank_size"] for name, marks in cells(result.test).items() if name.startswith("greedy")}) == 1


def test_the_answerer_is_tested_in_four_cells(answerer: Said, manager: Said) -> None:
    result, out = answerer
    complete(result, out, "grpo")
    budgets = {"greedy-6", "greedy-12", "greedy-60", "sampled-6"}
    others = {"partner/base", "base/base", "base/trained", "partner/oracle", "ood-base-6", "ood-6"}
    sharpened = {f"partner/base-t{t}" for t in ("1", "0.7", "0.5", "0.3")}
    assert set(result.test) == budgets | others | sharpened
    check_marks(result.test)


def test_what_does_not_depend_on_the_arm_is_asked_by_one_arm_only(base: Path, tmp_path: Path) -> None:
    result = play("answerer", base, tmp_path / "run", arm="shuffled", steps=1, test_size=1)
    assert set(result.test) == {"greedy-6", "greedy-12", "greedy-60", "sampled-6", "ood-6"}


def test_without_a_partner_there_is_one_manager_to_test_with(base: Path, tmp_path: Path) -> None:
    result = play("answerer", base, tmp_path / "run", steps=1, test_size=1)
    assert {"partner/base", "greedy-6"} <= set(result.test)
    assert not any(name.startswith("base/") for name in result.test)


def cells(test: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return dict(test)


def check_marks(test: Mapping[str, Any]) -> None:
    for name, marks in cells(test).items():
        (dialogue,) = SMALL_WORLD.dialogues("ood" if name.startswith("ood") else "test", 1)
        assert list(marks["right"]) == [dialogue.id]
        right = marks["right"][dialogue.id]
        assert len(right) == len(dialogue.questions)
        assert marks["score"] == right.count("1") / len(right)
        assert marks["failed_turns"] == sum(
            bool(SMALL_WORLD.extract(turn)) for turn in dialogue.turns
        )  # 6 tokens are few


# the partner is frozen


@pytest.mark.parametrize("role", ROLES)
def test_only_the_role_in_training_is_trained(
    role: str, manager: Said, answerer: Said, base: Path, tmp_path: Path
) -> None:
    result, out = manager if role == "manager" else answerer
    other = partner_of(result.recipe)
    frozen = weights_version(base) if role == "manager" else manager[0].policy_version
    assert result.frozen == {other: frozen}
    own = versions(out, role)
    assert result.policy_version in own
    assert len(own) == 4  # the base policy, an untrained adapter, after one step, after two
    run = [trace for trace in episodes(out) if trace.run == f"{result.recipe}-grpo-s0"]
    sampled = dict.fromkeys(range(result.steps), 0)
    others = dict(sampled)
    for trace in run:
        assert trace.iteration is not None
        for generation in trace.generations:
            kind = sampled if generation.actor == role else others
            kind[trace.iteration] += len(generation.token_ids or ()) if kind is sampled else 1
    for step, entry in enumerate(log(out)):
        assert entry["tokens/trained"] <= sampled[step]
        assert entry.get("rows/refused/other_actor", 0) == others[step]
        assert entry["rows/refused"] == others[step]
    if role == "manager":
        assert versions(out, other) == {frozen}
        assert min(others.values()) > 0
    else:
        assert versions(out, other) == set()  # it had done its work before: the bank is its own


def test_the_partner_and_not_the_base_fills_the_bank(manager: Said, base: Path, tmp_path: Path) -> None:
    """What is published for the role in training must not play the frozen one, and the other way round."""
    said: dict[str, tuple[str, float]] = {}

    def look(given: Staging, stage: Stage) -> None:
        models = {
            "frozen": given.model_of("manager"),
            "own": given.model_of("answerer"),
            "base": given.base_at("manager", 1.0),
        }
        said.update({name: said_by(model.invoke("Alice")) for name, model in models.items()})

    staged("answerer", base, tmp_path / "run", look, partner=manager[1] / "policy")
    own = weights_version(base)
    assert said == {"frozen": (manager[0].policy_version, 0.0), "own": (own, 1.0), "base": (own, 1.0)}


def test_after_training_the_test_can_call_all_three(manager: Said, base: Path, tmp_path: Path) -> None:
    def look(given: Staging, stage: Stage) -> Stage:
        models = {
            "frozen": given.model_at("manager", 0.5),
            "own": given.model_at("answerer", 0.5),
            "base": given.base_at("answerer", 0.5),
        }
        return replace(stage, test=lambda: {name: said_by(model.invoke("Alice"))[0] for name, model in models.items()})

    result = play("answerer", base, tmp_path / "run", partner=manager[1] / "policy", steps=1, hook=look)
    versions = {"frozen": manager[0].policy_version, "own": result.policy_version, "base": weights_version(base)}
    assert result.test == versions
    assert len(set(versions.values())) == 3


def said_by(reply: BaseMessage) -> tuple[str, float]:
    """Return which weights replied, and at what temperature."""
    return reply.response_metadata["policy_version"], reply.response_metadata["sampling"]["temperature"]


def test_a_partner_that_somebody_writes_to_spoils_the_run(manager: Said, base: Path, tmp_path: Path) -> None:
    partner = tmp_path / "partner"
    shutil.copytree(manager[1] / "policy", partner)
    version = weights_version(partner)
    with pytest.raises(OperationError, match=f"the manager should have been frozen at {version}.*on disk: ") as error:
        play("answerer", base, tmp_path / "run", partner=partner, steps=1, hook=lambda *_: damage(partner))
    assert weights_version(partner) in str(error.value)
    assert "served" not in str(error.value)  # the weights in memory were not touched


def test_a_partner_that_is_published_over_spoils_the_run(
    manager: Said, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memweave.serving.local_server import LocalServer

    publish = LocalServer.publish

    def careless(self: LocalServer, weights: Path, *, run: str, role: str = "policy") -> Any:
        return publish(self, weights, run=run, role="frozen")

    monkeypatch.setattr(LocalServer, "publish", careless)
    with pytest.raises(OperationError, match="the manager should have been frozen at .*served: "):
        play("answerer", base, tmp_path / "run", partner=manager[1] / "policy", arm="sft", steps=1)


def test_manager_then_answerer_then_manager_again(manager: Said, answerer: Said, base: Path, tmp_path: Path) -> None:
    """The order of the specification (section 5, B8), each on what came before."""
    again = play("manager", base, tmp_path / "again", partner=answerer[1] / "policy", steps=1)
    complete(again, tmp_path / "again", "grpo")
    assert answerer[0].frozen == {"manager": manager[0].policy_version}
    assert again.frozen == {"answerer": answerer[0].policy_version}
    assert versions(tmp_path / "again", "answerer") == {answerer[0].policy_version}


# what is refused


def test_a_run_goes_on_as_what_it_was(manager: Said, answerer: Said, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    shutil.copy(answerer[1] / "run.json", out)
    partner = manager[1] / "policy"
    on = partial(play, "answerer", out=out, resume=True)
    with pytest.raises(
        SettingsError, match=f"partner: '{weights_version(partner)}' then, '{weights_version(base)}' now"
    ):
        on(base=base, test_size=1)
    with pytest.raises(SettingsError, match="arm: 'grpo' then, 'ppo' now"):
        on(base=base, partner=partner, arm="ppo", test_size=1)
    with pytest.raises(SettingsError, match="test_size: 1 then, 0 now"):
        on(base=base, partner=partner)
    other = tmp_path / "other"
    shutil.copytree(base, other)
    damage(other)
    with pytest.raises(SettingsError, match=f"base: '{weights_version(base)}' then, '{weights_version(other)}' now"):
        on(base=other, partner=partner, test_size=1)
    with pytest.raises(SettingsError, match="recipe: 'memory-r1-answerer' then, 'memory-r1-manager' now"):
        play("manager", base, out, partner=partner, resume=True, test_size=1)


@pytest.mark.parametrize("arm", ["grpo", "sft"])
def test_a_run_that_is_done_says_the_same_again(base: Path, tmp_path: Path, arm: str) -> None:
    out = tmp_path / "run"
    first, again = (play("manager", base, out, arm=arm, steps=1, resume=resume) for resume in (False, True))
    for name in ("start", "end", "rewards", "episodes", "policy_version", "frozen"):
        assert getattr(first, name) == getattr(again, name)


def test_imitation_does_not_go_on_for_longer(base: Path, tmp_path: Path) -> None:
    play("manager", base, tmp_path / "run", arm="sft", steps=1)
    with pytest.raises(SettingsError, match=r"imitated for 1 step\(s\).* cannot go on to 2. Start a new run"):
        play("manager", base, tmp_path / "run", arm="sft", steps=2, resume=True)


def test_a_recipe_of_one_role_takes_no_partner(base: Path, tmp_path: Path) -> None:
    recipe = find_recipe("two-node")
    with pytest.raises(SettingsError, match="recipe two-node has one role only; it takes no partner"):
        run_recipe(recipe, recipe.settings, Place(out=tmp_path / "run", base=base, partner=base))
    assert not (tmp_path / "run").exists()


def test_all_weights_are_not_for_a_vllm(base: Path, tmp_path: Path, closed_port: Callable[[], int]) -> None:
    recipe = short("manager")
    place = Place(out=tmp_path / "run", base=base, server_url=f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(
        SettingsError, match="trains all weights, which a vLLM server cannot take over; run it in-process"
    ):
        run_recipe(recipe, recipe.settings, place, arm="sft")
    assert not (tmp_path / "run").exists()


# demonstrations


def test_demonstrations_are_what_a_perfect_manager_does(base: Path, tmp_path: Path) -> None:
    found: list[Sequence[Sequence[Mapping[str, str]]]] = []

    def look(given: Staging, stage: Stage) -> None:
        assert stage.examples is not None
        found.append(stage.examples())

    staged("manager", base, tmp_path / "run", look, arm="sft")
    (conversations,) = found
    told = sum(
        bool(SMALL_WORLD.extract(turn)) for dialogue in SMALL_WORLD.dialogues("train", 2) for turn in dialogue.turns
    )
    assert len(conversations) == told
    for messages in conversations:
        assert [message["role"] for message in messages] == ["user", "assistant"]
        assert isinstance(json.loads(messages[-1]["content"])["memory"], list)
