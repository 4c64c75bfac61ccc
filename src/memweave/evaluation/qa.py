"""Question answering: an agent reads a data set into memory, answers its questions, and is scored.

Three agents. `memory-r1`: turns go through the construction graph, questions through the answering graph. `rag`: every raw turn or
passage is a memory, questions go through the same answering graph. `full-context`: no retrieval, the answerer sees the whole
conversation in order (HotpotQA, MuSiQue: the passages that come with the question). The answerer is the same in all three.

A reply that cannot be used is data: no answer, score 0, counted. A model that cannot be reached ends the run; what is finished
stays in the folder, and the next run continues there.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar, cast

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, LLMResult
from langchain_core.runnables import RunnableConfig

import memweave
from memweave.agents.answerer import parse_answer_reply
from memweave.agents.judge import parse_judge_reply
from memweave.agents.llm import PolicyLike, as_answerer, as_judge
from memweave.agents.prompts import PromptRole, load_prompt, prompt_hash
from memweave.agents.roles import Answerer, AnswerRequest, Attempt, ExtractRequest, Judge, JudgeRequest, ManageRequest
from memweave.embeddings import Embedder
from memweave.errors import ModelReplyError, SettingsError, UnavailableError
from memweave.evaluation.qa_folder import CollectionResult, QAResult, QASettings, RunFolder, Usage
from memweave.evaluation.qa_report import QAReport, summarise
from memweave.evaluation.qa_task import QAQuestion, QATask, Source
from memweave.evaluation.retrieval import Report
from memweave.graphs.memory_r1 import MemoryR1Context, create_answering_graph, create_construction_graph
from memweave.graphs.memory_r1_answering import AnsweringGraph, AnsweringOutput
from memweave.graphs.memory_r1_construction import ConstructionOutput
from memweave.memory_stores import MemoryBank, SearchConfig, open_bank
from memweave.metrics import answer_scores, recall_at_k
from memweave.records import Memory, OpStatus, Scope

AGENTS: Final = ("memory-r1", "rag", "full-context")
_ATTEMPTS: Final = 3
"""Replies asked for, of the answerer without a graph and of the judge."""
_TENANT: Final = "evaluation"

ItemT = TypeVar("ItemT")


@dataclass(frozen=True)
class QAModels:
    """Who plays which role: `"rule"`, a model's specification, a chat model or a policy."""

    answerer: PolicyLike[AnswerRequest]
    extractor: PolicyLike[ExtractRequest] = "rule"
    manager: PolicyLike[ManageRequest] = "rule"
    judge: PolicyLike[JudgeRequest] | None = None


def qa_settings(
    task: QATask,
    *,
    agent: str,
    model: str,
    extractor: str,
    manager: str,
    judge: str | None,
    embedding: str,
) -> QASettings:
    """Return what identifies a run: names of models (or `rule`), and hashes of everything else that matters.

    Raises: SettingsError for an unknown agent.
    """
    if agent not in AGENTS:
        raise SettingsError(f"--agent {agent!r} is not known; choose {', '.join(AGENTS)}.")
    builds = agent == "memory-r1"
    roles: dict[PromptRole, str | None] = {
        "answerer": model,
        "extractor": extractor if builds else None,
        "manager": manager if builds else None,
        "judge": judge,
    }
    return QASettings(
        dataset=task.dataset,
        data=task.fingerprint(),
        agent=agent,
        model=model,
        extractor=roles["extractor"],
        manager=roles["manager"],
        judge=judge,
        embedding=embedding,
        search=prompt_hash(SearchConfig().model_dump_json()),
        prompts={role: load_prompt(role).hash for role, name in roles.items() if name not in (None, "rule")},
        memweave=memweave.__version__,
    )


async def run_qa(
    task: QATask,
    settings: QASettings,
    models: QAModels,
    folder: Path,
    *,
    embedding: str | Embedder,
    concurrency: int = 8,
    report: Report | None = None,
) -> QAReport:
    """Run what `folder` does not hold yet, and return the report of the whole task.

    concurrency: questions (or collections) worked on at a time.
    Raises: ConflictError for a folder with other settings, UnavailableError when a model cannot be reached.
    """
    run = RunFolder(folder, settings)
    tell = report or _silent
    async with open_bank(folder / "bank", embedding=embedding) as bank:
        worker = _Worker(run, bank, task, settings.agent, models)
        todo = [(name, source) for name, source in task.sources.items() if name not in run.collections]
        await _bounded(todo, worker.read, concurrency, tell, "reading into memory", len(task.sources))
        asked = [question for question in task.questions if question.id not in run.answers]
        await _bounded(asked, worker.answer, concurrency, tell, "answering", len(task.questions))
    answers = [run.answers[question.id] for question in task.questions]
    return summarise(settings, answers, [run.collections[name] for name in task.sources])


class _Worker:
    """Does one collection or one question at a time, and records it when it is done."""

    def __init__(self, run: RunFolder, bank: MemoryBank, task: QATask, agent: str, models: QAModels) -> None:
        self._run = run
        self._bank = bank
        self._sources = task.sources
        self._agent = agent
        self._models = models
        self._answerer: Answerer = as_answerer(models.answerer)
        self._judge: Judge | None = None if models.judge is None else as_judge(models.judge)
        self._graph: AnsweringGraph = create_answering_graph(bank, answerer=self._answerer)

    async def read(self, item: tuple[str, Source]) -> None:
        """Read one collection into memory."""
        name, source = item
        scope = Scope(tenant=_TENANT, user=name)
        started = time.perf_counter()
        meter = UsageMeter()
        failed = 0
        if self._agent == "memory-r1":
            failed = await self._construct(source, scope, meter)
        elif not await self._bank.amemories(scope=scope, limit=1):
            # One transaction: after a crash it is all there, or nothing.
            await self._bank.aapply(source.raw.memories, scope=scope)
        log = await self._bank.alog(scope=scope)
        result = CollectionResult(
            name=name,
            turns=len(source.turns),
            failed_turns=failed,
            memories=len(await self._bank.amemories(scope=scope)),
            operations=dict(Counter("FAILED" if op.status is OpStatus.FAILED else str(op.kind) for op in log)),
            usage=meter.usage,
            seconds=time.perf_counter() - started,
        )
        self._run.add_collection(result)

    async def _construct(self, source: Source, scope: Scope, meter: UsageMeter) -> int:
        """Run the construction graph on the turns; returns how many turns failed."""
        await self._bank.aaccept(source.turns, scope=scope)
        graph = create_construction_graph(
            self._bank,
            extractor=self._models.extractor,
            manager=self._models.manager,
            scope=scope,
            max_turns=len(source.turns),
        )
        outcome = cast("ConstructionOutput", await graph.ainvoke({}, _metered(meter)))
        if outcome["stopped"]:
            raise UnavailableError(outcome["stopped"])
        return len(outcome["failed"])

    async def answer(self, question: QAQuestion) -> None:
        """Answer one question and score it."""
        scope = Scope(tenant=_TENANT, user=question.collection)
        meter, judge_meter = UsageMeter(), UsageMeter()
        started = time.perf_counter()
        if self._agent == "full-context":
            answer, error, shown = await self._answer_from_all(question, scope, meter)
        else:
            outcome = cast(
                "AnsweringOutput",
                await self._graph.ainvoke(
                    {"question": question.question},
                    _metered(meter),
                    context=MemoryR1Context(user=scope.user, tenant=scope.tenant),
                ),
            )
            answer, error, shown = outcome["answer"], outcome["error"], outcome["memories"]
        seconds = time.perf_counter() - started
        scores = [answer_scores(answer, gold) for gold in question.golds]
        correct, judge_error = await self._judged(question, answer, judge_meter)
        sources = list(dict.fromkeys(source for memory in shown for source in memory.source_ids))
        result = QAResult(
            id=question.id,
            collection=question.collection,
            category=question.category,
            question=question.question,
            golds=question.golds,
            answer=answer,
            error=error,
            em=max(s.em for s in scores),
            f1=max(s.f1 for s in scores),
            bleu1=max(s.bleu1 for s in scores),
            correct=correct,
            judge_error=judge_error,
            evidence_shown=recall_at_k(sources, question.evidence, max(len(sources), 1)) if question.evidence else None,
            memories=len(shown),
            usage=meter.usage,
            judge_usage=judge_meter.usage,
            seconds=seconds,
        )
        self._run.add_answer(result)

    async def _answer_from_all(
        self, question: QAQuestion, scope: Scope, meter: UsageMeter
    ) -> tuple[str | None, str | None, list[Memory]]:
        """Show the answerer everything, in the order in which it was said."""
        known = {memory.source_ids[0]: memory for memory in await self._bank.amemories(scope=scope)}
        said = [turn.source_id for turn in self._sources[question.collection].turns]
        memories = [known[source_id] for source_id in said if question.context is None or source_id in question.context]
        request = AnswerRequest(question=question.question, memories=tuple(_as_transcript(m) for m in memories))
        try:
            answer = await _until_usable(
                lambda failed: self._answerer.areply(request.model_copy(update={"failed": failed}), _metered(meter)),
                lambda reply: parse_answer_reply(reply, request).text,
            )
        except ModelReplyError as error:
            return None, str(error), memories
        return answer, None, memories

    async def _judged(
        self, question: QAQuestion, answer: str | None, meter: UsageMeter
    ) -> tuple[bool | None, str | None]:
        """Return the judge's verdict, or why there is none. No answer is wrong without asking."""
        if self._judge is None:
            return None, None
        if answer is None:
            return False, None
        judge = self._judge
        reference = " or ".join(question.golds)
        request = JudgeRequest(question=question.question, reference=reference, answer=answer)
        try:
            correct = await _until_usable(
                lambda failed: judge.areply(request.model_copy(update={"failed": failed}), _metered(meter)),
                lambda reply: parse_judge_reply(reply, request).correct,
            )
        except ModelReplyError as error:
            return None, str(error)
        return correct, None


class UsageMeter(BaseCallbackHandler):
    """Adds up the tokens of all model calls under one run."""

    run_inline = True

    def __init__(self) -> None:
        self.usage = Usage()

    def on_llm_end(self, response: LLMResult, **kwargs: object) -> None:
        """Count one finished call."""
        messages = [g.message for batch in response.generations for g in batch if isinstance(g, ChatGeneration)]
        counted = [m.usage_metadata for m in messages if isinstance(m, AIMessage) and m.usage_metadata is not None]
        self.usage += Usage(
            calls=1,
            uncounted=0 if counted else 1,
            prompt_tokens=sum(usage["input_tokens"] for usage in counted),
            completion_tokens=sum(usage["output_tokens"] for usage in counted),
        )


async def _until_usable(ask: Callable[[tuple[Attempt, ...]], Awaitable[str]], parse: Callable[[str], ItemT]) -> ItemT:
    """Ask until a reply can be parsed, showing what was wrong. Raises: ModelReplyError after the last attempt."""
    failed: tuple[Attempt, ...] = ()
    while True:
        reply = await ask(failed)
        try:
            return parse(reply)
        except ModelReplyError as error:
            failed = (*failed, Attempt(reply=reply, error=str(error)))
            if len(failed) == _ATTEMPTS:
                raise


async def _bounded(
    items: Iterable[ItemT],
    work: Callable[[ItemT], Awaitable[None]],
    concurrency: int,
    tell: Report,
    stage: str,
    total: int,
) -> None:
    """Work on all items, `concurrency` at a time. The first error stops the others and is raised as it is."""
    waiting = list(items)
    queue = iter(waiting)
    done = total - len(waiting)
    tell(stage, done, total)

    async def drain() -> None:
        nonlocal done
        for item in queue:
            await work(item)
            done += 1
            tell(stage, done, total)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(waiting))):
                group.create_task(drain())
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def _metered(meter: UsageMeter) -> RunnableConfig:
    return {"callbacks": [meter]}


def _as_transcript(memory: Memory) -> Memory:
    """Put the speaker into the text, so that the answerer sees one transcript and not a block per change of speaker."""
    if memory.speaker is None:
        return memory
    return memory.model_copy(update={"text": f"{memory.speaker}: {memory.text}", "speaker": None})


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
