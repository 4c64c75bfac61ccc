"""A judge for AgeMem's episodes that needs no generator's truth: any chat model, asked what the reward needs to know (2.4).

    judge = ModelJudge("openai:gpt-4.1-mini", answers={"cat": "Tom"})
    graph = create_agemem_episode_graph(policy, bank, judge=judge)

What it asks is in `memweave.agents.episode_judge`; what becomes of it in `agemem_reward`. The policy never sees the true answers.
"""

from __future__ import annotations

from collections.abc import Mapping

from langchain_core.language_models import BaseChatModel

from memweave.agents.episode_judge import EpisodeGrader, Graded, GradeRequest
from memweave.agents.llm import DEFAULT_TIMEOUT
from memweave.graphs.agemem_episode import EpisodeOutput, EpisodeTask
from memweave.graphs.agemem_reward import PAPER, Judged, RewardSettings, added, retrieved, reward
from memweave.models import chat_model
from memweave.tracing.records import Score


class ModelJudge:
    """Judges episodes with a chat model: an `EpisodeJudge`, and an `AsyncEpisodeJudge`.

    model: a chat model, or its specification (`chat_model`).  answers: true answers by the task's id; where there is none, the answer is
    compared with what was told.  settings: of the reward.  timeout: seconds for one reply.

    An episode takes up to three replies, and up to six where they make no sense at first; what did not happen (no answer, nothing
    stored in stage 1, nothing retrieved in stage 3) is not asked about. A model that fails is an error of the infrastructure: the
    episode graph gives no reward then, and says why in `unjudged`.
    """

    def __init__(
        self,
        model: str | BaseChatModel,
        *,
        answers: Mapping[str, str] | None = None,
        settings: RewardSettings = PAPER,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.answers = dict(answers or {})
        self.settings = settings
        self._grader = EpisodeGrader(chat_model(model) if isinstance(model, str) else model, timeout=timeout)

    def judged(self, task: EpisodeTask, outcome: EpisodeOutput) -> Judged:
        """Return what the model says of an episode. Raises `UnavailableError`, `ModelReplyError`."""
        grades = {request.what: self._grader.grade(request) for request in self._requests(task, outcome)}
        return _judged(grades, outcome)

    async def ajudged(self, task: EpisodeTask, outcome: EpisodeOutput) -> Judged:
        """Return what the model says of an episode, as `judged` does."""
        grades = {request.what: await self._grader.agrade(request) for request in self._requests(task, outcome)}
        return _judged(grades, outcome)

    def __call__(self, task: EpisodeTask, outcome: EpisodeOutput) -> Score:
        """Return the reward of an episode. Raises `UnavailableError`, `ModelReplyError`."""
        return reward(outcome["log"], self.judged(task, outcome), self.settings)

    async def ajudge(self, task: EpisodeTask, outcome: EpisodeOutput) -> Score:
        """Return the reward of an episode, as a call does."""
        return reward(outcome["log"], await self.ajudged(task, outcome), self.settings)

    def _requests(self, task: EpisodeTask, outcome: EpisodeOutput) -> list[GradeRequest]:
        steps, answer = outcome["log"].steps, outcome["answer"]
        asked: dict[Graded, list[str]] = {
            "episode_answer": [] if answer is None else [answer],
            "episode_memories": added(steps),
            "episode_relevance": retrieved(steps),
        }
        return [
            GradeRequest(
                what=what,
                question=task.question,
                reference=self.answers.get(task.id),
                told=task.messages,
                graded=tuple(graded),
            )
            for what, graded in asked.items()
            if graded
        ]


def _judged(grades: Mapping[Graded, float], outcome: EpisodeOutput) -> Judged:
    return Judged(
        answer=grades.get("episode_answer"),
        good_adds=int(grades.get("episode_memories", 0)),
        relevance=grades.get("episode_relevance", 0.0),
        preserved=outcome["preserved"],
    )
