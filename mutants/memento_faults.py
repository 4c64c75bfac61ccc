"""Faults in Memento's planner, executor, loop, approval, cases, reward and feedback."""

from __future__ import annotations

from fault import Fault

LOOP = ("tests/graphs/test_memento.py",)
FAULTS_OF_OTHERS = ("tests/graphs/test_memento_faults.py",)
APPROVAL = ("tests/graphs/test_memento_approval.py",)
CASES = ("tests/graphs/test_memento_cases.py",)
REWARD = ("tests/graphs/test_memento_evaluate.py",)
PLANNER = ("tests/agents/test_planner.py",)

MEMENTO = [
    Fault(
        "case-ends-its-block",
        "a case's text can end the block of cases and speak as the user",
        "agents/planner.py",
        '.replace("<", "&lt;")',
        "",
        PLANNER,
    ),
    Fault(
        "executor-sees-cases",
        "the block of cases reaches the executor",
        "agents/executor.py",
        'if said.kind not in ("cases", "note")',
        'if said.kind != "note"',
        CASES,
    ),
    Fault(
        "results-out-of-order",
        "results of parallel subtasks are told in another order than the plan's",
        "graphs/memento_nodes.py",
        'rows = sorted(state["finished"], key=lambda row: row.order)',
        'rows = sorted(state["finished"], key=lambda row: -row.order)',
        LOOP,
    ),
    Fault(
        "one-cycle-more",
        "a planner may plan once more than it is allowed",
        "graphs/memento_nodes.py",
        'if state["cycle"] >= self.max_cycles:',
        'if state["cycle"] > self.max_cycles:',
        LOOP,
    ),
    Fault(
        "query-can-be-lost",
        "the user's message goes first when the history is too long, as in the official code",
        "graphs/memento_nodes.py",
        'kept = {f"said-{asked}", "must-answer"}',
        'kept = {"must-answer"}',
        FAULTS_OF_OTHERS,
    ),
    Fault(
        "last-tasks-cases-stay",
        "what was shown for the task before is credited with this one's reward",
        "graphs/memento_nodes.py",
        '            "seen": [],\n',
        "",
        ("tests/graphs/test_memento_cases.py",),
    ),
    Fault(
        "tool-rounds-unbounded",
        "an executor that goes on calling tools is never stopped",
        "graphs/memento_subtask.py",
        "        if turn.calls and rounds > self.max_rounds:\n",
        "        if turn.calls and rounds > 10 * self.max_rounds:\n",
        FAULTS_OF_OTHERS,
    ),
    Fault(
        "one-decision-for-all",
        "what a person decided about one call holds for the next one too",
        "graphs/memento_subtask.py",
        '            "decision": None,\n',
        "",
        APPROVAL,
    ),
    Fault(
        "another-tool-after-an-edit",
        "the answer about one tool's call may carry out another tool",
        "graphs/memento_tools.py",
        'if isinstance(arguments, dict) and action.get("name", name) == name:',
        "if isinstance(arguments, dict):",
        APPROVAL,
    ),
    Fault(
        "own-case-is-shown",
        "a task is shown its own case of an earlier iteration",
        "graphs/memento_cases.py",
        """            task_id=state["about"].task_id,
            iteration=state["about"].iteration,
            rng=self._rng(state),
        )
        return self._shown(state, found)

    async def aread""",
        """            iteration=state["about"].iteration,
            rng=self._rng(state),
        )
        return self._shown(state, found)

    async def aread""",
        CASES,
    ),
    Fault(
        "unsure-judge-says-wrong",
        "a judge without a verdict makes a case a negative example",
        "graphs/memento_evaluate.py",
        'return Verdict(reward=None, by="judge"',
        'return Verdict(reward=0.0, by="judge"',
        REWARD,
    ),
    Fault(
        "second-thumb-counts",
        "two verdicts on one run write two cases",
        "graphs/memento_feedback.py",
        "    if there is not None:\n",
        "    if False:\n",
        CASES,
    ),
]
