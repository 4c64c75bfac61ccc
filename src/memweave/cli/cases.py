"""`memweave cases ...`: look at a case bank, bring released pools in, take cases out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import typer

from memweave.cli import render
from memweave.cli.common import AsJson, Embedding, Home, Tenant, User, hand_out, session

SHOWN: Final = 50
WIDE: Final = 60
"""Characters of a task or a plan that a list shows."""

cases_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Cases: finished tasks with their plans and rewards."
)


@cases_app.command("list")
def list_(
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="Most rows to show.")] = SHOWN,
    as_json: AsJson = False,
) -> None:
    """Show the cases, oldest first: task, plan, reward."""
    from memweave.memory_stores import CaseBank

    with session(user=user, tenant=tenant, home=home) as here:
        cases = CaseBank(here.bank).cases(scope=here.scope)
    shown = cases[:limit]
    if as_json:
        render.emit({"cases": [case.model_dump(mode="json") for case in shown], "total": len(cases)})
    elif not cases:
        render.note(f"There are no cases of {here.scope}.")
    else:
        table = render.table("id", "reward", "task", "plan", right=("reward",))
        for case in shown:
            worth = "-" if case.reward is None else f"{case.reward:g}"
            render.row(table, case.id.hex[-8:], worth, _head(case.task), _head(_steps(case.plan)))
        render.out().print(table)
        more = f"; --limit {len(cases)} shows all" if len(cases) > len(shown) else ""
        render.note(f"{len(shown)} of {len(cases)} cases{more}.")


@cases_app.command("import")
def import_(
    file: Annotated[
        Path,
        typer.Argument(help='JSON lines: {"question", "plan", "reward"} or {"case", "plan", "case_label"}.'),
    ],
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    embedding: Embedding = None,
    as_json: AsJson = False,
) -> None:
    """Add the cases of a released pool, or of an export with its experience; what is there already is skipped."""
    from memweave.memory_stores import CaseBank
    from memweave.worlds.files import read_text

    lines = read_text(file).split("\n")
    with session(create=True, user=user, tenant=tenant, home=home, embedding=embedding) as here:
        new = CaseBank(here.bank).import_(lines, scope=here.scope, source=f"{file} line")
    if as_json:
        render.emit({"cases": new.cases, "replay": new.replay})
    else:
        render.note(f"Imported {render.count(new.cases, 'case')}{_and_rows(new.replay)}.")


@cases_app.command()
def export(
    file: Annotated[Path | None, typer.Argument(help="File to write; standard output without one.")] = None,
    replay: Annotated[
        bool, typer.Option("--replay", help="Also write which cases were shown for what, and what came of it.")
    ] = False,
    user: User = None,
    tenant: Tenant = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Write the cases as JSON lines in the public format, with our fields beside."""
    from memweave.memory_stores import CaseBank

    with session(user=user, tenant=tenant, home=home) as here:
        lines = list(CaseBank(here.bank).export(scope=here.scope, replay=replay))
        cases = CaseBank(here.bank).count(scope=here.scope)

    def content() -> Mapping[str, object]:
        read = [json.loads(line) for line in lines]
        return {"cases": read[:cases], "replay": [line["replay"] for line in read[cases:]]}

    rows = len(lines) - cases
    told, counts = f"{render.count(cases, 'case')}{_and_rows(rows)}", {"cases": cases, "replay": rows}
    hand_out(lines, file, told=told, counts=counts, content=content, as_json=as_json)


def _and_rows(number: int) -> str:
    return f" and {render.count(number, 'row')} of experience" if number else ""


def _steps(plan: str) -> str:
    """Return the steps of a plan in one line; the plan as it is when it holds none."""
    try:
        steps = json.loads(plan)["plan"]
        return "; ".join(str(step["description"]) for step in steps)
    except (ValueError, KeyError, TypeError):
        return plan


def _head(text: str) -> str:
    line = " ".join(text.split())
    return render.safe(line if len(line) <= WIDE else f"{line[:WIDE]} ...")
