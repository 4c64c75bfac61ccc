"""A process that runs 4 x 6 episodes into a trace store: `python rollouts_child.py STORE LOG LINES`.

Every call of the graph is a line in LOG. At line LINES the process kills itself with SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path

from langchain_core.runnables import RunnableConfig, RunnableLambda

from memweave.tracing import Trace
from memweave.tracing.store import TraceStore
from memweave.trainers.rollouts import Rollouts, Task
from tests.trainers.made_up import policy

TASKS = [Task(f"task {number}", {"question": str(number)}) for number in range(4)]
GROUP_SIZE = 6


def main(store: Path, log: Path, deadly: int) -> None:
    """Run the episodes, and print how many there were."""
    lock = threading.Lock()
    model = policy(lambda messages: "yes")

    def work(given: dict[str, str], config: RunnableConfig) -> str:
        with lock:
            with log.open("a") as lines:
                lines.write(f"{config['metadata']['memweave_episode']}\n")
            if len(log.read_text().splitlines()) == deadly:
                os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.005)  # so that some are at work when it happens
        return model.invoke(given["question"], config).text

    def reward(task: Task, output: object, trace: Trace) -> float:
        return float(task.input["question"])

    with TraceStore(store) as traces, Rollouts(RunnableLambda(work), reward, concurrency=3, store=traces) as rollouts:
        groups = rollouts.run(TASKS, group_size=GROUP_SIZE, run="r", iteration=2, policy_version="v1")
    print(sum(len(group.traces) for group in groups), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
