"""The queue of learning runs: `make experiments`, or `python experiments run|list|table [--only RECIPE]`.

One JSON file per (recipe, arm, seed, server) under `results/`; a run that has its file is done, so a queue that was cut off goes on
where it was. `table` rewrites the tables between the markers in docs/results.md from those files. The decision rules are in
`plan.py`, written before the runs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer
from plan import PLAN, Run

from memweave.recipes.recipe import RUN_FILE

HERE = Path(__file__).parent
RESULTS = HERE / "results"
RUNS = HERE.parent / "runs" / "experiments"

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help=__doc__)
Only = Annotated[str | None, typer.Option("--only", help="Only this recipe.")]


def wanted(only: str | None) -> list[Run]:
    """Return the runs of the plan, or those of one recipe."""
    return [run for run in PLAN if only in (None, run.recipe)]


@app.command("list")
def list_(only: Only = None) -> None:
    """Show which runs are done."""
    for run in wanted(only):
        print(f"{'done' if run.file(RESULTS).exists() else 'open':<5} {run.name}")


@app.command()
def run(only: Only = None) -> None:
    """Do what is open, one run after the other; a run that was cut off goes on from its last checkpoint."""
    todo = [run for run in wanted(only) if not run.file(RESULTS).exists()]
    print(f"{len(todo)} runs to do", file=sys.stderr)
    with ExitStack() as servers:
        url: str | None = None
        for number, each in enumerate(todo, 1):
            if each.server == "vllm" and url is None:
                url = serve(servers)
            print(f"[{number}/{len(todo)}] {each.name}", file=sys.stderr)
            do(each, url)


def do(run: Run, url: str | None) -> None:
    """Do one run through the command line that a user has, and keep its JSON."""
    folder = RUNS / run.name
    command = [sys.executable, "-m", "memweave", "train", run.recipe, "--arm", run.arm, "--seed", str(run.seed)]
    command += ["--out", str(folder), "--json", *run.options]
    if (folder / RUN_FILE).exists():
        command.append("--resume")
    elif folder.exists():  # cut off before it had begun
        shutil.rmtree(folder)
    if run.server == "vllm":
        command += ["--policy-server", str(url)]
    load = os.getloadavg()[0]
    began = time.time()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{run.name} failed with {done.returncode}: {done.stdout.strip()}")
    found = json.loads(done.stdout)
    found["command"] = " ".join(["memweave", *command[3:]]).replace(str(folder), f"runs/{run.name}")
    found["machine"] = {
        "cores": os.cpu_count(),
        "load_at_start": round(load, 1),
        "wall_seconds": round(time.time() - began),
    }
    found.pop("policy", None)
    run.file(RESULTS).parent.mkdir(parents=True, exist_ok=True)
    run.file(RESULTS).write_text(json.dumps(found, indent=1) + "\n")
    shutil.rmtree(folder)


def serve(stack: ExitStack) -> str:
    """Start the CPU vLLM with the tiny base policy, for as long as `stack` lives, and return its URL."""
    from memweave.config import Settings
    from memweave.recipes.running import default_base, ensure_base
    from memweave.serving.vllm_env import default_env, ensure_env
    from memweave.serving.vllm_process import start

    settings = Settings.load()
    base, env = default_base(settings.home), settings.vllm_env or default_env()
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
