"""What a person sees of an evaluation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from memweave.cli import render

if TYPE_CHECKING:
    from rich.table import Table

    from memweave.evaluation.qa_report import QAReport, QAScores, Score
    from memweave.evaluation.retrieval import RetrievalReport


def show_retrieval(found: RetrievalReport) -> None:
    """Print recall of each configuration, and of production by category and conversation."""
    from memweave.evaluation.retrieval import PRODUCTION

    best = found.scores[PRODUCTION]
    left_out = f" ({found.skipped} without evidence left out)" if found.skipped else ""
    what = "evidence turns" if found.dataset == "locomo" else "supporting passages"
    render.out().print(
        f"Recall of {what}, %. {found.dataset}: {found.n} questions{left_out}. Embedding: {found.embedding}."
    )
    render.out().print()
    ks = list(best.recall)
    overall = render.table("method", *(f"R@{k}" for k in ks), right=[f"R@{k}" for k in ks])
    for name, scores in found.scores.items():
        style = "bold" if name == PRODUCTION else None
        render.row(overall, name, *(_percent(scores.recall[k]) for k in ks), style=style)
        ends = (f"{_percent(low)} - {_percent(high)}" for low, high in (scores.interval[k] for k in ks))
        render.row(overall, "95 % interval", *ends, style="dim")
    render.out().print(overall)
    categories = {_category(found.dataset, name): recall for name, recall in best.by_category.items()}
    counts = {_category(found.dataset, name): n for name, n in found.n_by_category.items()}
    _print_groups(f"{PRODUCTION}, by category", categories, counts, ks)
    if len(best.by_collection) > 1:
        _print_groups(f"{PRODUCTION}, by conversation", best.by_collection, None, ks)
    render.out().print("The interval is a bootstrap over questions.", style="dim")


def _print_groups(
    title: str, groups: dict[str, dict[int, float]], counts: dict[str, int] | None, ks: list[int]
) -> None:
    made: Table = render.table(
        title, *(["n"] if counts else []), *(f"R@{k}" for k in ks), right=["n", *(f"R@{k}" for k in ks)]
    )
    for group, recall in groups.items():
        render.row(made, group, *([counts[group]] if counts else []), *(_percent(recall[k]) for k in ks))
    render.out().print()
    render.out().print(made)


def _category(dataset: str, name: str) -> str:
    """Return the category as shown: LoCoMo's number with LoCoMo's own name for it."""
    from memweave.worlds.locomo import CATEGORIES

    return f"{name} {CATEGORIES[int(name)]}" if dataset == "locomo" else name


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def show_qa(found: QAReport) -> None:
    """Print scores by category and over all, then what the answers and the memory cost."""
    names = found.settings
    built = f", memory by {names.manager}" if names.manager else ""
    graded = f", judged by {names.judge}" if names.judge else ""
    n = found.overall.n
    render.out().print(f"{names.dataset}: {n} questions. {names.agent}, answers by {names.model}{built}{graded}.")
    render.out().print()
    metrics = ["EM", "F1", "BLEU-1", *(["judge"] if names.judge else []), "evidence shown"]
    made = render.table("category", "n", *metrics, "no answer", right=["n", *metrics, "no answer"])
    judged = bool(names.judge)
    for category, scores in found.by_category.items():
        render.row(made, _category(names.dataset, category), scores.n, *_means(scores, judged=judged), scores.failed)
    render.row(made, "all", n, *_means(found.overall, judged=judged), found.overall.failed, style="bold")
    render.row(made, "95 % interval", "", *_ends(found.overall, judged=judged), "", style="dim")
    render.out().print(made)
    render.out().print("In percent. The interval is a bootstrap over questions.", style="dim")
    render.out().print()
    tokens, n_memories = found.tokens, found.memories_shown
    render.out().print(
        f"Answering: {tokens.prompt_tokens / n:,.0f} + {tokens.completion_tokens / n:,.0f} tokens and "
        f"{n_memories:.1f} memories per question, {found.latency_p50:.2f} s (p50), {found.latency_p95:.2f} s (p95)."
    )
    if tokens.uncounted:
        render.out().print(f"{tokens.uncounted} of {tokens.calls} replies came without a token count.", style="yellow")
    if found.overall.judge_undecided:
        undecided = found.overall.judge_undecided
        render.out().print(
            f"The judge could not decide {undecided} answers; they are left out of its column.", style="yellow"
        )
    render.out().print(_construction_line(found))


def _construction_line(found: QAReport) -> str:
    turns = sum(c.turns for c in found.construction)
    failed = sum(c.failed_turns for c in found.construction)
    kept = sum(c.memories for c in found.construction)
    seconds = sum(c.seconds for c in found.construction)
    tokens = sum(c.usage.prompt_tokens + c.usage.completion_tokens for c in found.construction)
    lost = f", {failed} turns failed" if failed else ""
    return f"Memory: {turns:,} turns -> {kept:,} memories{lost}, {tokens:,} tokens, {seconds:.1f} s."


def _shown(scores: QAScores, *, judged: bool) -> list[Score | None]:
    return [scores.em, scores.f1, scores.bleu1, *([scores.judge] if judged else []), scores.evidence_shown]


def _means(scores: QAScores, *, judged: bool) -> list[str]:
    return [_percent(score.mean) if score else "-" for score in _shown(scores, judged=judged)]


def _ends(scores: QAScores, *, judged: bool) -> list[str]:
    return [f"{_percent(s.low)} - {_percent(s.high)}" if s else "-" for s in _shown(scores, judged=judged)]
