"""Train an agent that knows nothing of memweave: LangChain's `create_agent`, one tool, its usual loop.

The agent opens valves and should read the gauge first. A tiny policy is made and warm-started on demonstrations, two of
three of which skip the gauge. Ten steps of GRPO on the agent's own traces teach it to look first. Everything runs on the
CPU, in less than a minute, without a network.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import fmean

from langchain.agents import create_agent
from langchain.agents.middleware import ModelCallLimitMiddleware
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.tools import tool
from langgraph.graph.state import CompiledStateGraph

from memweave.serving import LocalServer, create_policy, load_policy_folder
from memweave.serving.tool_text import tool_specs
from memweave.tracing import Sampling, Trace, TraceStore
from memweave.trainers import (
    Group,
    Rollouts,
    SFTSettings,
    Task,
    TraceGRPOConfig,
    TraceGRPOTrainer,
    demonstrations,
    train_sft,
)

VALVES = ["north", "south", "east", "west", "inlet", "drain"]


# The agent: plain LangChain and LangGraph.


@tool
def read_gauge() -> str:
    """Read the pressure gauge."""
    return "4 bar"


def build(model: BaseChatModel) -> CompiledStateGraph:
    """Return the agent: model, tool, model, ... and at most three model calls."""
    return create_agent(model, [read_gauge], middleware=[ModelCallLimitMiddleware(run_limit=3, exit_behavior="end")])


# What is needed to train it: tasks, a reward, a base policy.


def reward(task: Task, output: dict[str, list[BaseMessage]], trace: Trace) -> float:
    """Return 1 when the gauge was read and the valve then opened."""
    said = [message for message in output["messages"] if isinstance(message, AIMessage)]
    return float(said[-1].text == "open" and any(message.tool_calls for message in said[:-1]))


def make_base(folder: Path) -> Path:
    """Make a policy of 0.2 M parameters that reads the gauge one time in three."""
    call = '<tool_call>\n{"name": "read_gauge", "arguments": {}}\n</tool_call>'
    careful, hasty = [], []
    for valve in VALVES:
        ask = {"role": "user", "content": f"open the {valve} valve"}
        answer = {"role": "assistant", "content": "open"}
        careful.append([ask, {"role": "assistant", "content": call}, {"role": "tool", "content": "4 bar"}, answer])
        hasty.append([ask, answer])
    texts = [message["content"] for conversation in careful for message in conversation]
    create_policy(folder / "blank", [*texts, *map(str, tool_specs([read_gauge]))], seed=0)
    tokenizer = load_policy_folder(folder / "blank").tokenizer()
    shown = demonstrations([*careful, *hasty, *hasty], tokenizer, tools=tool_specs([read_gauge]))
    train_sft(folder / "blank", shown, folder / "base", SFTSettings(steps=250, learning_rate=3e-3))
    return folder / "base"


def main() -> None:
    """Make a base policy, train it for ten steps, and say what changed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = make_base(folder)
        tasks = [Task(id=valve, input={"messages": f"open the {valve} valve"}) for valve in VALVES]
        with LocalServer(base) as server, TraceStore(folder / "traces.db") as store:
            agent = build(server.chat_model(sampling=Sampling(temperature=1.0, max_tokens=40, seed=0)))
            with Rollouts(agent, reward, store=store) as rollouts:
                before = rollouts.run(tasks, group_size=8, run="before")
                trainer = TraceGRPOTrainer(
                    str(base),
                    tasks,
                    rollouts,
                    server,
                    TraceGRPOConfig(
                        output_dir=str(folder / "run"),
                        max_steps=10,
                        learning_rate=1e-3,
                        lr_scheduler_type="constant",
                        num_generations=8,
                        per_device_train_batch_size=48,
                        max_completion_length=128,
                    ),  # fmt: skip
                )
                trainer.train()
                trainer.publish()
                after = rollouts.run(tasks, group_size=8, run="after")
        print(f"read the gauge, then opened: {share(before):.0%} of episodes before, {share(after):.0%} after 10 steps")


def share(groups: list[Group]) -> float:
    """Return the mean reward."""
    return fmean(trace.score.value for group in groups for trace in group.traces if trace.score)


if __name__ == "__main__":
    main()
