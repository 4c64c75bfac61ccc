"""Pre-training at toy size: what it leaves behind, that a run which was cut off ends the same, and what the gate counts."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memweave.errors import ConflictError, FormatError, InputError, OperationError, SettingsError
from memweave.recipes.memory_r1 import teaching
from memweave.serving import local_server, weights_version
from memweave.serving.policy_folder import load_policy_folder
from memweave.tracing.records import Sampling
from memweave.worlds.dialog_language import read, read_question

torch = pytest.importorskip("torch")

from memweave.recipes import pretraining as course  # noqa: E402 - after importorskip
from memweave.recipes.memory_r1 import pretraining  # noqa: E402
from memweave.recipes.memory_r1.measuring import Gate, measure, with_distractors  # noqa: E402
from memweave.recipes.memory_r1.pretraining import MARKERS, PretrainSettings, pretrain, texts  # noqa: E402

TINY = PretrainSettings(
    clean_steps=3,
    habit_steps=2,
    lessons=2,
    asked=2,
    grow=2,
    manager_size=3,
    answerer_size=3,
    vocab_size=420,
    hidden=64,
    layers=3,
    heads=2,
    intermediate=64,
    context=512,
    save_every=2,
)
FILES = {
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "memweave_policy.json",
    "model.safetensors",
    "pretraining.json",
    "tokenizer.json",
    "tokenizer_config.json",
}


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Train the tokenizer on few texts, ask little of the gate, use one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "texts", partial(texts, count=40))
        patch.setattr(pretraining, "measure", partial(measure, banks=3, asked=2, sizes=(2, 2)))
        yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of an uninterrupted run, which tests only read."""
    out: Path = tmp_path_factory.mktemp("runs") / "whole"
    pretrain(out, TINY)
    return out


def test_a_run_leaves_a_policy_and_its_report(whole: Path) -> None:
    assert {file.name for file in whole.iterdir()} == FILES
    assert [file.name for file in whole.parent.iterdir()] == ["whole"]
    found = json.loads((whole / "pretraining.json").read_text())
    assert found["settings"] == asdict(TINY)
    assert found["parameters"] == (420 + len(MARKERS)) * 64 + 3 * (7 * 64 * 64 + 3 * 64 + 2 * 64) + 64
    assert 0 < found["loss"] < 7  # about log 420, that of guessing
    assert found["gate"]["asked"] == 6
    assert found["minutes"] >= 0
    folder = load_policy_folder(whole)
    assert (folder.context_length, folder.ours) == (512, True)


def test_training_changes_the_weights_in_both_phases(whole: Path, tmp_path: Path) -> None:
    pretrain(tmp_path / "clean", replace(TINY, habit_steps=0))
    fresh = course.Run.open(tmp_path / "fresh.part", pretraining.DialogCourse(TINY), resume=False).policy()
    assert len({weights_version(whole), weights_version(tmp_path / "clean"), weights_version(fresh)}) == 3
    clean = json.loads((tmp_path / "clean" / "pretraining.json").read_text())
    assert clean["gate"] == json.loads((whole / "pretraining.json").read_text())["gate"]


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[tuple[int, int, float]] = []
    pretrain(tmp_path / "run", replace(TINY, seed=1), report=lambda *now: told.append(now))
    assert [(step, steps) for step, steps, _ in told] == [(2, 5), (3, 5), (5, 5)]
    assert all(0 < loss < 20 for _, _, loss in told)


def cut_off(out: Path, step: int, settings: PretrainSettings = TINY) -> None:
    """Begin a run, and interrupt it before it saves what it learned until `step`."""

    def interrupt(done: int, steps: int, loss: float) -> None:
        if done == step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(out, settings, report=interrupt)
    assert not out.exists()
    assert (out.parent / f"{out.name}.part").is_dir()


@pytest.mark.parametrize("step", [2, 3, 5])
def test_a_run_that_was_cut_off_ends_with_the_same_weights(whole: Path, tmp_path: Path, step: int) -> None:
    out = tmp_path / "run"
    cut_off(out, step)
    for name in (".pretraining.pt", ".model.safetensors"):  # killed while it wrote these
        (tmp_path / "run.part" / name).write_bytes(b"half a file")
    found = pretrain(out, TINY, resume=True)
    assert [file.name for file in tmp_path.iterdir()] == ["run"]
    assert weights_version(out) == weights_version(whole)
    assert {file.name for file in out.iterdir()} == FILES
    same = json.loads((whole / "pretraining.json").read_text())
    assert (found["gate"], found["loss"]) == (same["gate"], same["loss"])


@pytest.mark.parametrize("settings", [TINY, replace(TINY, habit_steps=0)], ids=["before habits", "at the end"])
def test_a_run_that_was_cut_off_in_the_gate_measures_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: PretrainSettings
) -> None:
    def interrupted(policy: Path, seed: int) -> Gate:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pretrain(tmp_path / "run", settings)
    assert pretrain(tmp_path / "run", settings, resume=True)["gate"]["asked"] == 6


def test_what_cannot_be_gone_on_with_is_refused(tmp_path: Path) -> None:
    out, state = tmp_path / "run", tmp_path / "run.part" / "pretraining.pt"
    cut_off(out, 3)
    before = state.read_bytes()
    with pytest.raises(SettingsError, match=r"other settings \(habit_steps: 2 then, 4 now; seed: 0 then, 1 now\)"):
        pretrain(out, replace(TINY, seed=1, habit_steps=4), resume=True)
    assert state.read_bytes() == before
    state.write_bytes(before[:-100])
    with pytest.raises(FormatError, match=r"pretraining\.pt cannot be read; start without resume"):
        pretrain(out, TINY, resume=True)


def test_a_folder_that_exists_is_refused(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="exists already; choose another folder"):
        pretrain(whole, TINY)
    with pytest.raises(ConflictError):
        pretrain(tmp_path, TINY, resume=True)
    assert {file.name for file in whole.iterdir()} == FILES
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"learning_rate": 1e35}, r"the loss is (nan|inf) at step 2; lower learning_rate \(1e\+35\)"),
        ({"habit_learning_rate": 1e35}, r"the loss is (nan|inf) at step 5; lower habit_learning_rate \(1e\+35\)"),
    ],
    ids=["clean", "habits"],
)
def test_a_loss_that_is_no_number_is_named(tmp_path: Path, changed: dict[str, Any], says: str) -> None:
    with pytest.raises(OperationError, match=says):
        pretrain(tmp_path / "run", replace(TINY, **changed))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("step", [1, 2], ids=["before the gate", "at the end"])
def test_weights_that_the_last_step_of_a_phase_broke_are_no_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """The loss of that step is a number, its gradient is not."""
    count = 0

    def breaking(model: Any, batch: Any) -> Any:
        nonlocal count
        count += 1
        weight = next(model.parameters())
        return whole_loss(model, batch) + ((weight * 0).sum().sqrt() if count == step else 0)

    whole_loss = course.loss_of
    monkeypatch.setattr(course, "loss_of", breaking)
    with pytest.raises(InputError, match=r"are not finite numbers \(NaN\)"):
        pretrain(tmp_path / "run", replace(TINY, clean_steps=1, habit_steps=1))
    assert count == step
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"clean_steps": 0}, "clean_steps = 0 must be at least 1"),
        ({"habit_steps": -1}, "habit_steps = -1 must be at least 0"),
        ({"learning_rate": float("nan")}, "learning_rate = nan must be a number above 0"),
        ({"habit_learning_rate": 0.0}, "habit_learning_rate = 0.0 must be a number above 0"),
        ({"distill": "none"}, "distill = 'none': an answerer writes in one of select_then_answer, direct, direct_with"),
    ],
)
def test_impossible_settings(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        replace(TINY, **changed)


# the gate


def test_the_gate_of_a_policy_that_learned_nothing(whole: Path) -> None:
    gate = measure(whole, 3, banks=4, asked=3, sizes=(2, 3))
    assert gate.asked == 12
    assert {"lookups", "answerer", "manager"} <= gate.by_kind.keys()
    assert all(0 <= share <= 1 for share in gate.by_kind.values())
    assert (gate.lookups, gate.answers, gate.operations) == (0, gate.by_kind["answerer"], gate.by_kind["manager"])
    assert not gate.passed
    assert gate == measure(whole, 3, banks=4, asked=3, sizes=(2, 3))


Reply = Callable[[str, Sequence[str], Sequence[str]], str]
"""What is replied to (role, memories, facts or the question)."""


@dataclass
class Taught:
    """Stands where a policy is served; reads each prompt and replies as a function says."""

    said: Reply
    path: Path
    asked: int = 0

    def __call__(self, policy: Path) -> Taught:
        self.folder = load_policy_folder(policy)
        return self

    def __enter__(self) -> Taught:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, prompt: Sequence[int], sampling: Sampling) -> Future[SimpleNamespace]:
        assert sampling.temperature == 0
        self.asked += 1
        tokenizer = self.folder.tokenizer()
        text = str(tokenizer.decode(list(prompt), skip_special_tokens=True))
        memories = re.findall(r"^- (.*) \[\d+\]$", text, re.MULTILINE)
        if "Question: " in text:
            reply = self.said("answerer", memories, [text.rpartition("Question: ")[2]])
        else:
            facts = re.findall(r"^- (.*)$", text.partition("New facts")[2], re.MULTILINE)
            reply = self.said("manager", memories, facts)
        ids = tokenizer.backend_tokenizer.encode(reply, add_special_tokens=False).ids
        found: Future[SimpleNamespace] = Future()
        found.set_result(SimpleNamespace(token_ids=[*ids, self.folder.eos_ids[0]]))
        return found


def perfect(role: str, memories: Sequence[str], asked: Sequence[str]) -> str:
    return teaching.manage(memories, asked) if role == "manager" else teaching.answer(memories, asked[0])


@pytest.fixture
def gate_of(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Reply], Gate]:
    def run(reply: Reply) -> Gate:
        served = Taught(reply, whole)
        monkeypatch.setattr(local_server, "LocalServer", served)
        gate = measure(whole, 0, banks=40)
        assert served.asked == 2 * gate.asked == 320
        return gate

    return run


def test_the_gate_of_a_perfect_policy(gate_of: Callable[[Reply], Gate]) -> None:
    gate = gate_of(perfect)
    assert (gate.lookups, gate.answers, gate.operations) == (1, 1, 1)
    assert set(gate.by_kind.values()) == {1}
    assert {"ADD", "UPDATE", "DELETE", "NOOP", "lookup", "list", "when", "count", "absent"} <= gate.by_kind.keys()
    assert gate.passed


def test_how_something_is_quoted_does_not_count_but_every_operation_does(gate_of: Callable[[Reply], Gate]) -> None:
    def loose(role: str, memories: Sequence[str], asked: Sequence[str]) -> str:
        if role == "answerer":
            return "**Answer:**" + teaching.answer(memories, asked[0]).rpartition("**Answer:**")[2]
        reply = json.loads(teaching.manage(memories, asked))
        return json.dumps({"memory": [item | {"reason": "because"} for item in reply["memory"]]})

    gate = gate_of(loose)
    assert (gate.answers, gate.operations) == (1, 1)

    def careless(role: str, memories: Sequence[str], asked: Sequence[str]) -> str:
        return perfect(role, memories, asked).replace('"UPDATE", "id": 0', '"UPDATE", "id": 1')

    gate = gate_of(careless)
    assert gate.by_kind["UPDATE"] < 1
    assert all(gate.by_kind[kind] == 1 for kind in ("ADD", "DELETE", "NOOP"))

    garbage = gate_of(lambda role, memories, asked: '{"memory": [3]}')
    assert (garbage.lookups, garbage.answers, garbage.operations) == (0, 0, 0)


def test_the_gate_sees_habits(gate_of: Callable[[Reply], Gate]) -> None:
    rng = random.Random(0)

    def teacher(role: str, memories: Sequence[str], asked: Sequence[str]) -> str:
        if role == "manager":
            return teaching.manage(memories, asked, rng)
        return teaching.answer(memories, asked[0], rng)

    gate = gate_of(teacher)
    assert gate.by_kind["ADD"] == gate.by_kind["count"] == gate.by_kind["absent"] == 1
    assert gate.by_kind["DELETE"] < 0.6
    assert gate.by_kind["lookup"] < 1
    assert 0.2 < gate.by_kind["when"] < 0.9  # of courses


def test_a_form_changes_what_is_learned_and_not_what_is_asked(whole: Path, tmp_path: Path) -> None:
    found = pretrain(tmp_path / "direct", replace(TINY, distill="direct"))
    assert found["settings"]["distill"] == "direct"
    assert weights_version(tmp_path / "direct") != weights_version(whole)
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "direct" / name).read_bytes() == (whole / name).read_bytes()


def test_a_device_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="The device 'abacus' cannot be used here"):
        pretrain(tmp_path / "run", TINY, device="abacus")
    assert list(tmp_path.iterdir()) == []


# distractors


@pytest.fixture
def distracted(whole: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Reply, Sequence[int]], dict[int, Any]]:
    def run(reply: Reply, counts: Sequence[int]) -> dict[int, Any]:
        monkeypatch.setattr(local_server, "LocalServer", Taught(reply, whole))
        return with_distractors(whole, 0, counts, asked=30)

    return run


def test_distractors_are_memories_of_other_things(
    distracted: Callable[[Reply, Sequence[int]], dict[int, Any]],
) -> None:
    shown: list[tuple[tuple[str, ...], str]] = []

    def seen(role: str, memories: Sequence[str], asked: Sequence[str]) -> str:
        shown.append((tuple(memories), asked[0]))
        return perfect(role, memories, asked)

    found = distracted(seen, [0, 5, 54])
    assert {count: each["right"] for count, each in found.items()} == {0: 1.0, 5: 1.0, 54: 1.0}
    alone, some, many = shown[:30], shown[30:60], shown[60:]
    for (few, question), (more, same), (most, again) in zip(alone, some, many, strict=True):
        assert question == same == again
        (key,) = read_question(question).keys  # type: ignore[union-attr]  # lookups only
        assert all((said := read(text)) is not None and said.key == key for text in few)
        assert (len(more), len(most)) == (len(few) + 5, len(few) + 54)
        assert [text for text in most if (said := read(text)) and said.key == key] == list(few)
        assert set(few) <= set(more) <= set(most)


def test_marks_belong_to_the_same_questions_at_every_count(
    distracted: Callable[[Reply, Sequence[int]], dict[int, Any]],
) -> None:
    def only_alone(role: str, memories: Sequence[str], asked: Sequence[str]) -> str:
        return perfect(role, memories, asked) if len(memories) < 4 else "**Answer:** Atlantis"

    found = distracted(only_alone, [0, 10])
    assert found[0]["right"] > 0.9
    assert (found[10]["right"], found[10]["marks"]) == (0.0, "0" * 30)
    assert found[0]["asked"] == len(found[0]["marks"]) == 30


@pytest.mark.parametrize("count", [-1, 55])
def test_a_count_that_no_prompt_can_show_is_refused(whole: Path, count: int) -> None:
    with pytest.raises(InputError, match=f"{count} distractors: give 0 to 54"):
        with_distractors(whole, 0, [0, count])


def test_the_line_of_the_gate() -> None:
    gate = Gate(course.GATE, 0.2, 0.2, {}, 1)
    assert gate.passed
    assert not replace(gate, lookups=course.GATE - 0.001).passed
