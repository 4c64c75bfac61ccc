"""The queue of learning runs: `make experiments`, or `python experiments run|list|table [--only RECIPE]`.

One JSON file per (recipe, arm, seed, server) under `results/`; a run that has its file is done, so a queue that was cut off goes on
where it was. `table` rewrites the tables between the markers in docs/results.md from those files. The decision rules are in
`plan.py`, written before the runs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from plan import EVALUATIONS, PLAN, Evaluation, Run

from memweave.recipes import find_recipe
from memweave.recipes.recipe import RUN_FILE, Recipe

HERE = Path(__file__).parent
RESULTS = HERE / "results"
POLICIES = HERE / "policies"
RUNS = HERE.parent / "runs" / "experiments"
KEPT_ARMS = ("grpo",)
"""Adapters of these arms are kept: other runs and evaluations use them."""

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help=__doc__)
Only = Annotated[str | None, typer.Option("--only", help="Only this recipe, or dialog-world: its evaluations.")]
Match = Annotated[str, typer.Option("--match", help="Only runs whose name matches this pattern (regular expression).")]


def wanted(only: str | None, match: str = "") -> list[Run]:
    """Return the runs of the plan, or those of one recipe whose names match."""
    return [run for run in PLAN if only in (None, run.recipe) and re.search(match, run.name)]


def evaluations(only: str | None, match: str = "") -> list[Evaluation]:
    """Return the evaluations of the plan, which go by the name of their world."""
    return [each for each in EVALUATIONS if only in (None, "dialog-world") and re.search(match, each.name)]


@app.command("list")
def list_(only: Only = None) -> None:
    """Show which runs are done."""
    for run in wanted(only):
        print(f"{'done' if run.file(RESULTS).exists() else 'open':<5} {run.name}")
    for each in evaluations(only):
        print(f"{'done' if each.file(RESULTS).exists() else 'open':<5} dialog-world {each.name}")


@app.command()
def run(only: Only = None, match: Match = "") -> None:
    """Do what is open, one run after the other; a run that was cut off goes on from its last checkpoint.

    Two queues at once must have different patterns.
    """
    todo = [run for run in wanted(only, match) if not run.file(RESULTS).exists()]
    asked = [each for each in evaluations(only, match) if not each.file(RESULTS).exists()]
    print(f"{len(todo)} runs and {len(asked)} evaluations to do", file=sys.stderr)
    for number, one in enumerate(asked, 1):
        print(f"[{number}/{len(asked)}] {one.name}", file=sys.stderr)
        keep(one.file(RESULTS), ["eval", "world", "dialog", *one.options], {})
    with ExitStack() as servers:
        urls: dict[str, str] = {}
        for number, each in enumerate(todo, 1):
            base = find_recipe(each.recipe).base
            if each.server == "vllm" and base not in urls:
                servers.close()  # one at a time: they share this machine's memory
                urls = {base: serve(servers, find_recipe(each.recipe))}
            print(f"[{number}/{len(todo)}] {each.name}", file=sys.stderr)
            do(each, urls.get(base))


def do(run: Run, url: str | None) -> None:
    """Do one run through the command line that a user has, and keep its JSON; of Memory-R1 the policy too."""
    folder = RUNS / run.name
    command = ["train", run.recipe, "--arm", run.arm, "--seed", str(run.seed), "--out", str(folder), *run.options]
    places = {str(folder): f"runs/{run.name}"}
    if run.partner is not None:
        partner = POLICIES / run.partner
        if not partner.exists():
            raise SystemExit(
                f"{run.name} needs the policy of {run.partner}, which is not in {POLICIES}. Do that run first"
            )
        command += ["--partner", str(partner)]
        places[str(partner)] = f"experiments/policies/{run.partner}"
    if (folder / RUN_FILE).exists():
        command.append("--resume")
    elif folder.exists():  # cut off before it had begun
        shutil.rmtree(folder)
    if run.server == "vllm":
        command += ["--policy-server", str(url)]
    keep(run.file(RESULTS), command, places)
    if run.arm in KEPT_ARMS and run.server == "local":
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            (POLICIES / run.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / "policy" / name, POLICIES / run.name / name)
    shutil.rmtree(folder)


def keep(file: Path, command: list[str], places: dict[str, str]) -> None:
    """Run `memweave COMMAND --json` and write what it found, how and where, to `file`."""
    load = os.getloadavg()[0]
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "memweave", *command, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"memweave {' '.join(command)} failed with {done.returncode}: {done.stdout.strip()}")
    found = json.loads(done.stdout)
    said = " ".join(["memweave", *command, "--json"])
    for place, name in places.items():
        said = said.replace(place, name)
    found["command"] = said
    found["machine"] = {
        "cores": os.cpu_count(),
        "load_at_start": round(load, 1),
        "wall_seconds": round(time.time() - began),
    }
    found.pop("policy", None)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(found, indent=1) + "\n")


def serve(stack: ExitStack, recipe: Recipe) -> str:
    """Start the CPU vLLM with the base policy of `recipe`, for as long as `stack` lives, and return its URL."""
    from memweave.config import Settings
    from memweave.recipes.running import default_base, ensure_base
    from memweave.serving.vllm_env import default_env, ensure_env
    from memweave.serving.vllm_process import start

    settings = Settings.load()
    base, env = default_base(settings.home, recipe), settings.vllm_env or default_env()
    ensure_base(base)
    ensure_env(env, say)
    return stack.enter_context(start(base, env=env, say=say)).url


def say(line: str) -> None:
    """Show progress."""
    print(line, file=sys.stderr)


@app.command()
def table() -> None:
    """Rewrite the tables of docs/results.md from the results."""
    from tables import rewrite

    rewrite(HERE.parent / "docs" / "results.md", RESULTS)


if __name__ == "__main__":
    app()
