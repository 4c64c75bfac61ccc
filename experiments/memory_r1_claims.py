"""The claims of Memory-R1 and their guards, one table each, and a summary of all: specification, section 7.

Everything is computed from the JSON files of the queue. Intervals: hierarchical bootstrap over seeds, dialogues and questions (curves:
over seeds), 95 %. A claim holds when the interval of its difference lies above 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from memory_r1 import RESAMPLES, Marks, Results, against, marks_of, percent, tree

from memweave.metrics import Interval, bootstrap, hierarchical_bootstrap, paired_bootstrap

FORMS = ("select_then_answer", "direct", "direct_with_filler")
SHARPENED = ("base-t0.7", "base-t0.5", "base-t0.3", "base")
NOT_YET = "(not run yet)"


def mean_of(marks: Sequence[Marks]) -> float:
    """Return the mean score of several runs, of each dialogue first."""
    return hierarchical_bootstrap(tree(marks), resamples=1).mean


def untrained(results: Results) -> dict[str, Marks]:
    """Return the systems without a trained policy that both roles are compared with; the base answerer answers in all of them."""
    found = {name: results.evaluation(name) for name in ("always-add", "rule", "bm25-raw-turns")}
    found["full context"] = results.evaluation("full-context", 1000)
    return {name: marks for name, marks in found.items() if marks is not None}


def managers_guards(results: Results) -> dict[str, Interval]:
    """Return the trained manager, greedy, minus each thing that it must beat."""
    grpo = marks_of(results.runs("manager", "grpo"), "greedy-6")
    sharpened = {name: [marks] for name in SHARPENED if (marks := results.evaluation(name)) is not None}
    return against_controls(results, "manager", grpo, sharpened, sharpened["base"])


def answerers_guards(results: Results) -> dict[str, Interval]:
    """Return the trained answerer, greedy, minus each thing that it must beat; base policies see the same banks."""
    runs = results.runs("answerer", "grpo")
    sharpened = {name: marks_of(runs, f"partner/{name}") for name in SHARPENED}
    return against_controls(results, "answerer", marks_of(runs, "greedy-6"), sharpened, sharpened["base"])


def against_controls(
    results: Results, role: str, grpo: list[Marks], sharpened: dict[str, list[Marks]], base: list[Marks]
) -> dict[str, Interval]:
    """Return GRPO minus base, sharpened base, systems without a trained policy, and the other arms."""
    name, sharp = max(sharpened.items(), key=lambda one: mean_of(one[1]))
    found = {"base": against(grpo, base), f"sharpened base ({temperature(name)})": against(grpo, sharp)}
    found |= {name: against(grpo, [marks]) for name, marks in untrained(results).items()}
    arms = [arm for arm in ("shuffled", "sft", "ppo") if results.runs(role, arm)]
    return found | {arm: paired_by_seed(results, role, arm) for arm in arms}


def temperature(name: str) -> str:
    """Return `T = 0.7` for `base-t0.7` or `partner/base-t0.7`."""
    return f"T = {name.rpartition('-t')[2]}" if "-t" in name else "greedy"


def paired_by_seed(results: Results, role: str, arm: str, cell: str = "greedy-6") -> Interval:
    """Return GRPO minus `arm` over the seeds that both have."""
    grpo, other = results.runs(role, "grpo"), results.runs(role, arm)
    seeds = sorted(grpo.keys() & other.keys())
    return against(*(marks_of({seed: runs[seed] for seed in seeds}, cell) for runs in (grpo, other)))


def guards(folder: Path) -> str:
    """Return GRPO minus each control, for both roles."""
    results = Results(folder)
    if not results.runs("answerer", "grpo"):
        return NOT_YET
    lines = ["| GRPO, greedy, minus | manager | answerer |", "|---|---|---|"]
    manager, answerer = managers_guards(results), answerers_guards(results)
    for name in dict.fromkeys((*manager, *answerer)):
        cells = [percent(each[name], sign=True) if name in each else "" for each in (manager, answerer)]
        lines.append(f"| {name} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def distraction(results: Results, form: str) -> dict[int, list[list[list[float]]]] | None:
    """Return distractors -> seed -> [one group] -> mark of each lookup; `None` until both seeds were measured."""
    found: dict[int, list[list[list[float]]]] = {}
    for seed in (0, 1):
        one = results.file(f"distractors-{form}-s{seed}")
        if one is None:
            return None
        for count, each in one["distractors"].items():
            found.setdefault(int(count), []).append([[float(mark) for mark in each["marks"]]])
    return found


def distillation(folder: Path) -> str:
    """Return how the forms of the answerer do, by distractors and by budget, and what quoting is worth."""
    results = Results(folder)
    lines = [
        "| | select, then answer | direct | direct with filler | select minus direct | select minus filler |",
        "|---|---|---|---|---|---|",
    ]
    rows: list[tuple[str, list[list[list[list[float]]]]]] = []
    measured = [distraction(results, form) for form in FORMS]
    for count in measured[0] or {}:
        values = [each[count] for each in measured if each is not None]
        if len(values) == len(FORMS):
            rows.append((f"{count} distractors", values))
    for budget in (6, 12, 60):
        marks = [[results.evaluation(f"distill-{form}-s{seed}", budget) for seed in (0, 1)] for form in FORMS]
        complete = [[one for one in each if one is not None] for each in marks]
        if all(len(each) == 2 for each in complete):
            rows.append((f"test dialogues, B = {budget}", [tree(each) for each in complete]))
    for name, values in rows:
        scores = [percent(hierarchical_bootstrap(each, resamples=RESAMPLES)) for each in values]
        gaps = [percent(difference(values[0], other), sign=True) for other in values[1:]]
        lines.append(f"| {name} | {' | '.join((*scores, *gaps))} |")
    return "\n".join(lines) if rows else NOT_YET


def difference(a: list[list[list[float]]], b: list[list[list[float]]]) -> Interval:
    """Return a minus b, paired."""
    return paired_bootstrap(a, b, resamples=RESAMPLES)


def early_and_late(results: Results, role: str) -> tuple[dict[str, list[list[float]]], list[Interval]]:
    """Return arm -> [first 20, last 20 steps] -> mean reward by seed, and GRPO minus PPO of both parts, paired by seed."""
    runs = {arm: results.runs(role, arm) for arm in ("grpo", "ppo")}
    seeds = sorted(runs["grpo"].keys() & runs["ppo"].keys())
    means = {
        arm: [[fmean(found[seed]["rewards"][part]) for seed in seeds] for part in (slice(20), slice(-20, None))]
        for arm, found in runs.items()
    }
    gaps = [
        bootstrap([one - other for one, other in zip(*pair, strict=True)], resamples=RESAMPLES) if seeds else None
        for pair in zip(means["grpo"], means["ppo"], strict=True)
    ]
    return means, [gap for gap in gaps if gap is not None]


def curves(folder: Path) -> str:
    """Return the training reward of GRPO and PPO, early and late."""
    results = Results(folder)
    lines = ["| role | steps | GRPO | PPO | GRPO minus PPO | seeds |", "|---|---|---|---|---|---|"]
    for role in ("manager", "answerer"):
        if not results.runs(role, "ppo") or not results.runs(role, "grpo"):
            continue
        means, gaps = early_and_late(results, role)
        for part, (name, gap) in enumerate(zip(("first 20", "last 20"), gaps, strict=True)):
            grpo, ppo = (means[arm][part] for arm in ("grpo", "ppo"))
            shown = percent(gap, sign=True)
            lines.append(
                f"| {role} | {name} | {100 * fmean(grpo):.1f} | {100 * fmean(ppo):.1f} | {shown} | {len(grpo)} |"
            )
    return "\n".join(lines) if len(lines) > 2 else NOT_YET


def lenient(folder: Path) -> str:
    """Return what the answerer becomes when a lenient judge rewards it."""
    results = Results(folder)
    lines = ["| answerer | seeds | exact match | F1 | lenient | words per answer |", "|---|---|---|---|---|---|"]
    grpo = results.runs("answerer", "grpo")
    for name, runs, cell in (
        ("base", grpo, "partner/base"),
        ("rewarded for exact match", grpo, "greedy-6"),
        ("rewarded leniently", results.runs("answerer", "grpo-lenient"), "greedy-6"),
    ):
        tests = [one["test"][cell] for one in runs.values()]
        if tests:
            means = [fmean(test[key] for test in tests) for key in ("score", "f1", "lenient", "words")]
            shown = " | ".join(f"{100 * value:.1f}" for value in means[:3])
            lines.append(f"| {name} | {len(tests)} | {shown} | {means[3]:.2f} |")
    return "\n".join(lines) if len(lines) > 2 else NOT_YET


def episodes(folder: Path) -> str:
    """Return single-turn and whole-dialogue episodes of the manager side by side."""
    results = Results(folder)
    lines = [
        "| manager | seeds | steps | episodes | groups without spread | exact match, % | minus base |",
        "|---|---|---|---|---|---|---|",
    ]
    base = results.evaluation("base")
    names = (
        ("grpo", "one turn, window 50"),
        ("grpo-window24", "one turn, window 24"),
        ("grpo-rollout", "whole dialogue"),
    )
    for arm, name in names:
        runs = results.runs("manager", arm)
        if not runs or base is None:
            continue
        marks = marks_of(runs, "greedy-6")
        still = fmean(fmean(one["zero_std"]) for one in runs.values())
        steps, count = (fmean(one[key] for one in runs.values()) for key in ("steps", "episodes"))
        lines.append(
            f"| {name} | {len(runs)} | {steps:.0f} | {count:,.0f} | {100 * still:.0f} % "
            f"| {percent(hierarchical_bootstrap(tree(marks), resamples=RESAMPLES))} "
            f"| {percent(against(marks, [base]), sign=True)} |"
        )
    return "\n".join(lines) if len(lines) > 2 else NOT_YET


def data(folder: Path) -> str:
    """Return what the number of training questions is worth."""
    results = Results(folder)
    lines = ["| training dialogues | questions, about | manager | answerer |", "|---|---|---|---|"]
    for arm, dialogues, questions in (("grpo-data40", 3, 40), ("grpo", 10, 150), ("grpo-data600", 38, 600)):
        cells = []
        for role in ("manager", "answerer"):
            runs = results.runs(role, arm)
            marks = marks_of(runs, "greedy-6")
            score = percent(hierarchical_bootstrap(tree(marks), resamples=RESAMPLES)) if marks else ""
            cells.append(f"{score} ({len(runs)} {'seed' if len(runs) == 1 else 'seeds'})" if marks else "")
        lines.append(f"| {dialogues} | {questions} | {cells[0]} | {cells[1]} |")
    return "\n".join(lines)


def unseen(folder: Path) -> str:
    """Return the scores with unseen words and templates."""
    results = Results(folder)
    lines = [
        "| on 20 dialogues with unseen words and templates | seeds | exact match, % | minus base |",
        "|---|---|---|---|",
    ]
    base = results.evaluation("ood-base")
    if base is None:
        return NOT_YET
    rows: list[tuple[str, list[Marks], list[Marks] | None]] = [("base manager, base answerer", [base], None)]
    for name, file in (("perfect manager, base answerer", "ood-oracle-manager"), ("both perfect", "ood-oracle")):
        if (found := results.evaluation(file)) is not None:
            rows.append((name, [found], [base]))
    rows.append(("GRPO manager, base answerer", marks_of(results.runs("manager", "grpo"), "ood-6"), [base]))
    answerer = results.runs("answerer", "grpo")
    own = marks_of(answerer, "ood-base-6")
    rows.append(("GRPO manager, GRPO answerer (minus the base answerer)", marks_of(answerer, "ood-6"), own))
    for name, marks, other in rows:
        if marks:
            score = percent(hierarchical_bootstrap(tree(marks), resamples=RESAMPLES))
            lines.append(
                f"| {name} | {len(marks)} | {score} | {percent(against(marks, other), sign=True) if other else ''} |"
            )
    return "\n".join(lines)


def learns(results: Results, role: str) -> str:
    """Return the bars of a role: points, share of the gap, greedy and at T = 1."""
    runs = results.runs(role, "grpo")
    parts = []
    for cell, base, warm in (("greedy-6", "base", "greedy"), ("sampled-6", "base-t1", "T = 1")):
        marks = marks_of(runs, cell)
        if role == "manager":
            below, oracle = results.evaluation(base), results.evaluation("oracle-manager")
            others, tops = [below] if below else [], [oracle] if oracle else []
        else:
            others, tops = marks_of(runs, f"partner/{base}"), marks_of(runs, "partner/oracle")
        if not marks or not others or not tops:
            return NOT_YET
        gain = against(marks, others)
        share = gain.mean / against(tops, others).mean
        parts.append(f"{warm}: {percent(gain, sign=True)} points, {100 * share:.0f} % of the gap")
    return "; ".join(parts)


def claims(folder: Path) -> str:
    """Return the claims, their tests and guards, and what came out."""
    results = Results(folder)
    lines = ["| claim | found | guard |", "|---|---|---|"]
    for role in ("manager", "answerer"):
        found = learns(results, role)
        if found == NOT_YET:
            lines.append(f"| GRPO {role} > base | {NOT_YET} | |")
            continue
        against_all = managers_guards(results) if role == "manager" else answerers_guards(results)
        lost = [name for name, gap in against_all.items() if gap.high < 0]
        even = [name for name, gap in against_all.items() if gap.low <= 0 <= gap.high]
        won = [name for name in against_all if name not in (*lost, *even)]
        lines.append(
            f"| GRPO {role} > base | {found} | better than {', '.join(won)}; no difference to {', '.join(even) or 'none'}; "
            f"worse than {', '.join(lost) or 'none'} |"
        )
    found, guard = _distilled(results)
    lines.append(f"| distillation helps | {found} | {guard} |")
    lines.append(f"| both trained: more than the sum | {_interaction(folder)} | same questions, paired |")
    for role in ("manager", "answerer"):
        if results.runs(role, "ppo") and results.runs(role, "grpo"):
            early, late = early_and_late(results, role)[1]
            found = f"first 20 steps {percent(early, sign=True)}, last 20 {percent(late, sign=True)}"
        else:
            found = NOT_YET
        lines.append(f"| GRPO {role} is faster than PPO early, equal late | {found} | same episodes and steps |")
    return "\n".join(lines)


def _distilled(results: Results) -> tuple[str, str]:
    """Return what quoting is worth, and whether it is worth nothing where there is nothing to choose from."""
    measured = [distraction(results, form) for form in FORMS]
    if any(each is None for each in measured):
        return NOT_YET, ""
    select, direct, filler = (each for each in measured if each is not None)
    shown, gaps = [], []
    for count in (54, 0):
        gaps = [difference(select[count], other[count]) for other in (direct, filler)]
        over_direct, over_filler = (percent(gap, sign=True) for gap in gaps)
        shown.append(f"{count} distractors: {over_direct} over direct, {over_filler} over filler")
    kept = "and is not: a part of it is no selection" if any(gap.low > 0 for gap in gaps) else "and is"
    return "; ".join(shown), f"should be near 0 without distractors, {kept}"


def _interaction(folder: Path) -> str:
    from memory_r1 import interaction

    return interaction(folder).rpartition("Interaction: ")[2] or NOT_YET


CLAIM_TABLES = {
    "memory-r1-claims": claims,
    "memory-r1-guards": guards,
    "memory-r1-distillation": distillation,
    "memory-r1-curves": curves,
    "memory-r1-lenient": lenient,
    "memory-r1-episodes": episodes,
    "memory-r1-data": data,
    "memory-r1-unseen": unseen,
}
