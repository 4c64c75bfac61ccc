"""Question answering runs: agents, scores, failures, resuming. Models are scripted."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.runnables import RunnableConfig

from memweave.agents.roles import AnswerRequest
from memweave.errors import ConflictError, FormatError, InputError, SettingsError, UnavailableError
from memweave.evaluation.datasets import Dataset, load_passages
from memweave.evaluation.qa import QAModels, qa_settings, run_qa
from memweave.evaluation.qa_folder import QAResult, QASettings
from memweave.evaluation.qa_report import QAReport
from memweave.evaluation.qa_task import QATask, locomo_qa, passage_qa
from memweave.testing.models import ScriptedChatModel
from memweave.worlds.locomo import read_locomo
from tests.evaluation.samples import write_hotpotqa, write_locomo

pytestmark = pytest.mark.anyio

ANSWERS = {
    "Which breed is Pepper the dog?": "- adopted [0]\n**Answer:** a whippet",
    "What does Ben play?": "**Answer:** the cello",
    "Is Ben musical?": "I cannot say.\n**Answer:** no",
    "Where does Ben work?": "**Answer:** Radio Weser",
}


@pytest.fixture
def task(tmp_path: Path) -> QATask:
    return locomo_qa(read_locomo(write_locomo(tmp_path)))


def answer(messages: list[BaseMessage]) -> str:
    text = messages[-1].text
    return next(reply for question, reply in ANSWERS.items() if question in text)


def settings(task: QATask, agent: str = "rag", **changes: Any) -> QASettings:
    names = {"model": "m", "extractor": "x", "manager": "y", "judge": None, "embedding": "hashing:256"} | changes
    return qa_settings(task, agent=agent, **names)


async def run(task: QATask, folder: Path, models: QAModels, agent: str = "rag", **options: Any) -> QAReport:
    whole = options.pop("whole", task)
    return await run_qa(task, settings(whole, agent), models, folder, embedding="hashing", **options)


def lines(folder: Path) -> list[QAResult]:
    return [QAResult.model_validate_json(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


async def test_rag_answers_from_raw_turns(task: QATask, tmp_path: Path) -> None:
    model = ScriptedChatModel(answer)
    report = await run(task, tmp_path / "run", QAModels(answerer=model))
    assert len(model.calls) == 4
    assert report.overall.n == 4
    assert report.overall.em.mean == 0.5, "whippet and Radio Weser"
    assert report.by_category["1"].f1.mean == pytest.approx(2 / 3), "cello of cello, oboe"
    assert report.by_category["3"].em.mean == 0.0
    assert report.overall.failed == 0
    assert report.overall.judge is None
    assert report.by_category["4"].evidence_shown is not None
    assert report.by_category["4"].evidence_shown.mean == 1.0
    assert report.by_category["3"].evidence_shown is None, "its evidence is not known"
    assert report.tokens.calls == 4
    assert report.tokens.prompt_tokens > report.tokens.completion_tokens > 0
    assert [(c.name, c.turns, c.memories, c.failed_turns) for c in report.construction] == [
        ("conv-1", 5, 5, 0),
        ("conv-2", 2, 2, 0),
    ]
    asked_about_pepper = next(prompt for prompt in model.prompts if "Pepper the dog" in prompt)
    assert "2023-05-01: I adopted a whippet called Pepper." in asked_about_pepper
    assert "Salt" not in asked_about_pepper, "another conversation's memories are another scope's"


async def test_memory_r1_builds_its_memory_with_extractor_and_manager(task: QATask, tmp_path: Path) -> None:
    extractor = ScriptedChatModel(lambda messages: '{"facts": ["Ann has a whippet"]}')
    manager = ScriptedChatModel(
        lambda messages: '{"memory": [{"event": "ADD", "text": "Ann has a whippet", "reason": "new"}]}'
    )
    models = QAModels(answerer=ScriptedChatModel(answer), extractor=extractor, manager=manager)
    report = await run(task, tmp_path / "run", models, "memory-r1")
    assert (len(extractor.calls), len(manager.calls)) == (7, 7)
    first = report.construction[0]
    assert first.turns == 5
    assert first.usage.calls == 10
    assert first.operations["ADD"] == first.memories
    assert report.overall.em.mean == 0.5


async def test_turns_without_a_usable_reply_are_counted_and_the_run_goes_on(task: QATask, tmp_path: Path) -> None:
    models = QAModels(
        answerer=ScriptedChatModel(answer),
        extractor=ScriptedChatModel(lambda messages: "no idea"),
        manager=ScriptedChatModel([]),
    )
    report = await run(task, tmp_path / "run", models, "memory-r1")
    assert [c.failed_turns for c in report.construction] == [5, 2]
    assert report.construction[0].operations == {"FAILED": 5}


async def test_full_context_shows_everything_in_order(task: QATask, tmp_path: Path) -> None:
    model = ScriptedChatModel(answer)
    report = await run(task, tmp_path / "run", QAModels(answerer=model), "full-context")
    prompt = next(prompt for prompt in model.prompts if "Pepper the dog" in prompt)
    said = ["Ann: I adopted a whippet called Pepper.", "Ben: How lovely!", "Ben: I play the cello.", "Ann: It rains"]
    places = [prompt.index(text) for text in said]
    assert places == sorted(places)
    assert report.memories_shown == pytest.approx((5 * 3 + 2) / 4)


async def test_full_context_of_a_passage_question_is_its_own_passages(tmp_path: Path) -> None:
    (tmp_path / "hotpotqa_corpus.json").write_text(json.dumps({"Rhine": ["A river."]}))
    task = passage_qa(load_passages(Dataset.HOTPOTQA, write_hotpotqa(tmp_path)))
    model = ScriptedChatModel(lambda messages: "**Answer:** Weser")
    report = await run(task, tmp_path / "run", QAModels(answerer=model), "full-context")
    assert report.overall.em.mean == 0.5
    assert report.construction[0].memories == 5
    assert all("Rhine" not in prompt and "Hamburg: A city on the Elbe." in prompt for prompt in model.prompts)


async def test_any_accepted_answer_counts(tmp_path: Path) -> None:
    whole = passage_qa(load_passages(Dataset.HOTPOTQA, write_hotpotqa(tmp_path)))
    first = whole.questions[0].model_copy(update={"golds": ("Weser", "river Weser")})
    task = QATask(whole.dataset, whole.sources, (first,))
    model = ScriptedChatModel(["**Answer:** the river Weser"])
    assert (await run(task, tmp_path / "run", QAModels(answerer=model))).overall.em.mean == 1.0


async def test_a_second_run_asks_only_what_is_missing(task: QATask, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    await run(task.first(2), folder, QAModels(answerer=ScriptedChatModel(answer)), whole=task)
    assert len(lines(folder)) == 2
    again = ScriptedChatModel(answer)
    report = await run(task, folder, QAModels(answerer=again))
    assert len(again.calls) == 2
    assert report.overall.n == 4
    untouched = ScriptedChatModel([])
    assert await run(task, folder, QAModels(answerer=untouched)) == report


async def test_a_line_that_was_cut_off_is_answered_again(task: QATask, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    report = await run(task, folder, QAModels(answerer=ScriptedChatModel(answer)))
    file = folder / "answers.jsonl"
    file.write_bytes(file.read_bytes()[:-20])
    again = ScriptedChatModel(answer)
    after = await run(task, folder, QAModels(answerer=again))
    assert len(again.calls) == 1
    assert after.overall == report.overall
    assert len(lines(folder)) == 4


async def test_a_line_that_makes_no_sense_is_refused_by_number(task: QATask, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    await run(task, folder, QAModels(answerer=ScriptedChatModel(answer)))
    file = folder / "answers.jsonl"
    first, *rest = file.read_text().splitlines()
    file.write_text("\n".join([first, "{}", *rest]) + "\n")
    with pytest.raises(InputError, match=r"answers.jsonl, line 2: .*Remove the line"):
        await run(task, folder, QAModels(answerer=ScriptedChatModel(answer)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": "other"}, "model was 'm', now 'other'"),
        ({"judge": "j"}, "judge was None, now 'j'"),
        ({"embedding": "minilm"}, "embedding was 'hashing:256', now 'minilm'"),
        ({"agent": "full-context"}, "agent was 'rag', now 'full-context'"),
    ],
)
async def test_other_settings_are_refused(task: QATask, tmp_path: Path, changes: dict[str, str], says: str) -> None:
    folder = tmp_path / "run"
    await run(task, folder, QAModels(answerer=ScriptedChatModel(answer)))
    model = ScriptedChatModel([])
    with pytest.raises(ConflictError, match=says):
        await run_qa(task, settings(task, **changes), QAModels(answerer=model), folder, embedding="hashing")
    assert len(lines(folder)) == 4


async def test_other_data_a_foreign_folder_and_a_newer_format_are_refused(task: QATask, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    await run(task, folder, QAModels(answerer=ScriptedChatModel(answer)))
    (tmp_path / "other").mkdir()
    other = locomo_qa(read_locomo(write_locomo(tmp_path / "other", question="What breed is Pepper?")))
    with pytest.raises(ConflictError, match="data was"):
        await run(other, folder, QAModels(answerer=ScriptedChatModel([])))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign/notes.txt").write_text("mine")
    with pytest.raises(ConflictError, match="not empty and holds no run"):
        await run(task, tmp_path / "foreign", QAModels(answerer=ScriptedChatModel([])))
    (folder / "run.json").write_text('{"format": 99}')
    with pytest.raises(FormatError, match="format 99"):
        await run(task, folder, QAModels(answerer=ScriptedChatModel([])))
    (folder / "run.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        await run(task, folder, QAModels(answerer=ScriptedChatModel([])))


async def test_a_model_that_cannot_be_reached_ends_the_run_and_what_is_finished_stays(
    task: QATask, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    broken = ScriptedChatModel(["**Answer:** one", "**Answer:** two", ConnectionError("refused")])
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await run(task, folder, QAModels(answerer=broken), concurrency=1)
    assert [result.answer for result in lines(folder)] == ["one", "two"]
    report = await run(task, folder, QAModels(answerer=ScriptedChatModel(answer)))
    assert report.overall.n == 4


async def test_an_unreachable_manager_ends_the_run_and_the_turns_wait(task: QATask, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    broken = QAModels(
        answerer=ScriptedChatModel([]),
        extractor=ScriptedChatModel([ConnectionError("refused")] * 2),
        manager=ScriptedChatModel([]),
    )
    with pytest.raises(UnavailableError, match="cannot be reached"):
        await run(task, folder, broken, "memory-r1")
    nothing = QAModels(
        answerer=ScriptedChatModel(answer),
        extractor=ScriptedChatModel(lambda messages: '{"facts": []}'),
        manager=ScriptedChatModel([]),
    )
    report = await run(task, folder, nothing, "memory-r1")
    assert [c.failed_turns for c in report.construction] == [0, 0]


async def test_a_reply_that_cannot_be_used_scores_zero_after_three_attempts(task: QATask, tmp_path: Path) -> None:
    for agent in ("rag", "full-context"):
        model = ScriptedChatModel(lambda messages: "")
        report = await run(task.first(1), tmp_path / agent, QAModels(answerer=model), agent, whole=task)
        (result,) = lines(tmp_path / agent)
        assert (result.answer, result.em, result.f1) == (None, 0.0, 0.0)
        assert result.error
        assert len(model.calls) == 3
        assert report.overall.failed == 1


@pytest.mark.parametrize(
    ("reply", "correct", "undecided"),
    [('{"label": "CORRECT"}', True, 0), ('{"label": "WRONG", "reason": "no"}', False, 0), ("hmm", None, 1)],
)
async def test_the_judge_grades_and_may_fail_to_decide(
    task: QATask, tmp_path: Path, reply: str, correct: bool | None, undecided: int
) -> None:
    judge = ScriptedChatModel(lambda messages: reply)
    models = QAModels(answerer=ScriptedChatModel(answer), judge=judge)
    report = await run(task.first(1), tmp_path / "run", models, whole=task)
    (result,) = lines(tmp_path / "run")
    assert result.correct is correct
    assert report.overall.judge_undecided == undecided
    assert (report.overall.judge is None) == (correct is None)
    assert result.judge_usage.calls == len(judge.calls) == (3 if correct is None else 1)
    assert report.judge_tokens.calls == len(judge.calls)
    assert report.tokens.calls == 1


async def test_no_answer_is_wrong_without_asking_the_judge(task: QATask, tmp_path: Path) -> None:
    models = QAModels(answerer=ScriptedChatModel(lambda messages: ""), judge=ScriptedChatModel([]))
    report = await run(task.first(1), tmp_path / "run", models, whole=task)
    assert report.overall.judge is not None
    assert report.overall.judge.mean == 0.0


class Answerer:
    """Answers when it is let, and knows how many questions it is working on."""

    name = "stub"
    policy_version = None

    def __init__(self, wait: Callable[[int], bool] = lambda number: False) -> None:
        self.active = self.most = self.started = 0
        self.wait = wait
        self.stuck = asyncio.Event()

    def reply(self, request: AnswerRequest, config: RunnableConfig | None = None) -> str:
        raise AssertionError("an evaluation is async")

    async def areply(self, request: AnswerRequest, config: RunnableConfig | None = None) -> str:
        self.started += 1
        self.active += 1
        self.most = max(self.most, self.active)
        if self.wait(self.started):
            self.stuck.set()
            await asyncio.Event().wait()
        for _ in range(20):
            await asyncio.sleep(0)
        self.active -= 1
        return "**Answer:** cello"


@pytest.mark.parametrize("concurrency", [1, 2])
async def test_concurrency_is_bounded(task: QATask, tmp_path: Path, concurrency: int) -> None:
    many = QATask(
        task.dataset,
        task.sources,
        tuple(q.model_copy(update={"id": f"{q.id}-{n}"}) for n in range(4) for q in task.questions),
    )
    answerer = Answerer()
    report = await run(many, tmp_path / "run", QAModels(answerer=answerer), concurrency=concurrency)
    assert report.overall.n == 16
    assert answerer.most <= concurrency


async def test_an_interrupted_run_keeps_whole_lines_and_continues(task: QATask, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    answerer = Answerer(wait=lambda number: number == 3)
    running = asyncio.create_task(run(task, folder, QAModels(answerer=answerer), concurrency=1))
    await answerer.stuck.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert len(lines(folder)) == 2
    report = await run(task, folder, QAModels(answerer=Answerer()))
    assert report.overall.n == 4


async def test_replies_without_a_token_count_are_counted_as_such(task: QATask, tmp_path: Path) -> None:
    class Silent(ScriptedChatModel):
        def _generate(self, *args: Any, **kwargs: Any) -> Any:
            result = super()._generate(*args, **kwargs)
            bare = AIMessage(result.generations[0].message.text)
            result.generations[0].message = bare
            return result

    report = await run(task.first(1), tmp_path / "run", QAModels(answerer=Silent(answer)), whole=task)
    assert (report.tokens.calls, report.tokens.uncounted, report.tokens.prompt_tokens) == (1, 1, 0)


async def test_progress_counts_what_was_done_before(task: QATask, tmp_path: Path) -> None:
    models = QAModels(answerer=ScriptedChatModel(answer))
    await run(task.first(2), tmp_path / "run", models, whole=task)
    seen: list[tuple[str, int, int]] = []
    await run(task, tmp_path / "run", models, report=lambda *step: seen.append(step))
    assert seen == [
        ("reading into memory", 1, 2),
        ("reading into memory", 2, 2),
        ("answering", 2, 4),
        ("answering", 3, 4),
        ("answering", 4, 4),
    ]


async def test_payload(task: QATask, tmp_path: Path) -> None:
    report = await run(task, tmp_path / "run", QAModels(answerer=ScriptedChatModel(answer)))
    payload: dict[str, Any] = report.payload()
    json.dumps(payload)
    assert (payload["dataset"], payload["agent"], payload["model"], payload["n"]) == ("locomo", "rag", "m", 4)
    assert payload["scores"]["em"]["mean"] == 0.5
    assert set(payload["scores"]) == {"em", "f1", "bleu1", "evidence_shown"}
    assert payload["by_category"]["4"]["em"]["mean"] == 1.0
    assert payload["latency_s"]["p50"] <= payload["latency_s"]["p95"]
    assert payload["construction"]["memories"] == 7
    assert payload["judge"] is None


async def test_a_run_does_not_block_the_event_loop_thread_with_the_model(task: QATask, tmp_path: Path) -> None:
    here = threading.get_ident()
    threads: set[int] = set()

    def reply(messages: list[BaseMessage]) -> str:
        threads.add(threading.get_ident())
        return answer(messages)

    await run(task, tmp_path / "run", QAModels(answerer=ScriptedChatModel(reply)))
    assert here not in threads


async def test_an_unknown_agent_and_no_question_are_refused(task: QATask) -> None:
    with pytest.raises(SettingsError, match="choose memory-r1, rag, full-context"):
        settings(task, "mem0")
    with pytest.raises(InputError, match="no question"):
        QATask("locomo", task.sources, ()).first(None)


async def test_settings_hash_prompts_of_models_only(task: QATask) -> None:
    assert set(settings(task, "memory-r1").prompts) == {"answerer", "extractor", "manager"}
    assert set(settings(task, "memory-r1", extractor="rule", manager="rule", judge="j").prompts) == {
        "answerer",
        "judge",
    }
    assert settings(task, "rag").manager is None
    assert settings(task.first(1)).data != settings(task).data
