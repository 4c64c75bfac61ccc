"""A LangGraph agent that plays a text environment with one tool, `act`.

Any graph over `messages` that runs its own tools will do: `AgentPlayer(lambda tools: create_agent(model, tools))`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import HumanMessage
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.tools import BaseTool, StructuredTool

from memweave.agents.llm import DEFAULT_TIMEOUT, translated
from memweave.errors import UnavailableError
from memweave.recipes.game import STOPS, EpisodeStatus, Game
from memweave.records import new_id
from memweave.tracing import Score, Tracer, TraceStatus
from memweave.tracing.reading import error_line
from memweave.trainers.episodes import causes

if TYPE_CHECKING:
    from memweave.tracing import TraceStore

AgentFactory = Callable[[Sequence[BaseTool]], Runnable[Any, Any]]
"""Makes the agent of one episode from the tools that it is to use."""
GRAPH_STEPS: Final = 2_000
"""LangGraph steps of one episode, in case that an agent's loop has no cap of its own: it fails then."""


class AgentPlayer:
    """An agent that reads the task, and acts through a tool until it stops calling tools.

    factory: called once per episode.  model: the chat model behind it, so that errors of its client are told from the
    agent's own.  store, run: record every episode as a trace of this run, scored by its reward; it is on disk when the
    episode has ended.
    """

    def __init__(
        self,
        factory: AgentFactory,
        *,
        model: BaseChatModel | None = None,
        store: TraceStore | None = None,
        run: str = "playing",
    ) -> None:
        self._factory = factory
        self._model = model
        self._store = store
        self._run = run

    def play(self, game: Game) -> None:
        """Let the agent act. Raises `UnavailableError` when its model does not answer, else what the agent fails with."""
        tracer = Tracer(run=self._run, group=f"{game.name}@{game.seed}", replica=0, iteration=0, keep=1)
        config = RunnableConfig(
            callbacks=[tracer],
            recursion_limit=GRAPH_STEPS,
            max_concurrency=1,  # calls that stand in one reply are done in their order
            configurable={"thread_id": str(new_id())},
        )
        asked = (
            f"{game.first}\n\nAct with the tool `act`, one action at a time, until the episode is over. "
            f"The actions are: {', '.join(game.actions)}."
        )
        try:
            self._factory([act_tool(game)]).invoke({"messages": [HumanMessage(asked)]}, config)
        except Exception as error:
            if game.fault is None and (stop := self._stop(error)) is not None:
                raise stop from error
            raise
        finally:
            self._keep(tracer, game)

    def _keep(self, tracer: Tracer, game: Game) -> None:
        """Store the trace; one that did not run to its end gets no score, as everywhere."""
        trace, reward = tracer.last, game.reward
        if self._store is None or trace is None:
            return
        if trace.status is TraceStatus.OK:
            parts = {"won": float(game.status is EpisodeStatus.WON)}
            score = Score(value=reward, low=min(0.0, reward), high=max(1.0, reward), parts=parts)
            trace = trace.model_copy(update={"score": score})
        self._store.add(trace)

    def _stop(self, error: Exception) -> Exception | None:
        """Return the error that says what is wrong outside the agent, if anything is."""
        for cause in causes(error):
            if isinstance(cause, STOPS):
                return cause
            if self._model is not None and isinstance(cause, Exception):
                meant = translated(cause, self._model, DEFAULT_TIMEOUT)
                if isinstance(meant, UnavailableError):
                    return meant
            elif isinstance(cause, ConnectionError):
                return UnavailableError(f"the agent's model cannot be reached: {error_line(cause)}. Check that it runs")
        return None


def act_tool(game: Game) -> BaseTool:
    """Return the tool with which an agent acts in `game`."""

    def act(action: str) -> str:
        return game.act(action)

    return StructuredTool.from_function(
        act, name="act", description=f"Do one action and see what it leads to. action: {', '.join(game.actions)}."
    )
