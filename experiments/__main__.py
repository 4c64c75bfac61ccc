"""The queue of learning runs: `make experiments`, or `python experiments run|list|table [--only RECIPE]`.

One JSON file per (recipe, arm, seed, server) under `results/`; a run that has its file is done, so a queue that was cut off goes on
where it was. `table` rewrites the tables between the markers in docs/results.md from those files. The decision rules are in
`plan.py`, written before the runs.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from plan import EVALUATIONS, PLAN, POLICY, PRETRAININGS, Evaluation, Pretraining, Run

from memweave.recipes import find_recipe
from memweave.recipes.graph_memory.keeping import GRAPH, MADE, PACKED, TRAJECTORIES
from memweave.recipes.recipe import RUN_FILE, Recipe

HERE = Path(__file__).parent
RESULTS = HERE / "results"
POLICIES = HERE / "policies"
RUNS = HERE.parent / "runs" / "experiments"
PRETRAINED = HERE.parent / "runs" / "pretrained"
KEPT_ARMS = ("grpo",)
KEPT_RECIPES = ("memory-r1-manager", "memory-r1-answerer", "agemem")
"""Adapters of these arms of these recipes are kept: other runs and evaluations use them."""
KEPT_GRAPHS = "graph-memory-weights"
"""Graphs of this recipe are kept, for the same reason."""
Job = TypeVar("Job", Run, Evaluation, Pretraining)

app = typer.Typer(no_args_is_help=True, add_completion=False, rich_markup_mode=None, help=__doc__)
Only = Annotated[
    str | None,
    typer.Option(
        "--only",
        help="Only this recipe, or the evaluations (and pre-trainings) of a world: dialog-world, memhop, planworld, fsmqa.",
    ),
]
Match = Annotated[str, typer.Option("--match", help="Only what has a name that matches this regular expression.")]


def open_jobs(jobs: Sequence[Job], match: str) -> list[Job]:
    """Return the jobs that have no result yet and whose names match."""
    return [job for job in jobs if re.search(match, job.name) and not job.file(RESULTS).exists()]


def runs(only: str | None) -> list[Run]:
    """Return the runs of the plan, or those of one recipe."""
    return [run for run in PLAN if only in (None, run.recipe)]


@app.command("list")
def list_(only: Only = None) -> None:
    """Show what is done."""
    for run in runs(only):
        print(f"{'done' if run.file(RESULTS).exists() else 'open':<5} {run.name}")
    beside: list[Pretraining | Evaluation] = [*PRETRAININGS, *EVALUATIONS]
    for each in beside:
        if only in (None, each.file(RESULTS).parent.name):
            print(
                f"{'done' if each.file(RESULTS).exists() else 'open':<5} {each.file(RESULTS).parent.name} {each.name}"
            )


@app.command()
def run(
    only: Only = None,
    match: Match = "",
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="Runs at a time; those through a server are alone.")] = 1,
    device: Annotated[str, typer.Option("--device", help="Where policies are pre-trained: cpu, cuda, ...")] = "cpu",
) -> None:
    """Do what is open; a run that was cut off goes on from its last checkpoint.

    Two queues at once must have different patterns.
    """
    pretrains = only in (None, "dialog-world")
    todo = open_jobs(runs(only), match)
    here = [run for run in todo if run.server == "local"]
    several(open_jobs(PRETRAININGS, match) if pretrains else [], partial(pretrain, device=device), 1)
    first = [run for run in here if run.partner is None and run.data is None]
    several(first, do, jobs)
    several([run for run in here if run not in first], do, jobs)  # they need policies, or graphs, of the others
    several(open_jobs([each for each in EVALUATIONS if only in (None, each.world)], match), evaluate, jobs)
    with ExitStack() as servers:
        urls: dict[str, str] = {}
        for each in todo:
            if each.server == "local":
                continue
            base = find_recipe(each.recipe).base
            if base not in urls:
                servers.close()  # one at a time: they share this machine's memory
                urls = {base: serve(servers, find_recipe(each.recipe))}
            say(each.name)
            do(each, urls[base])


def several(todo: Sequence[Job], work: Callable[[Job], None], jobs: int) -> None:
    """Do `todo`, `jobs` at a time. The first failure ends the queue, after what is running then."""
    with ThreadPoolExecutor(jobs) as pool:
        waiting = [pool.submit(work, job) for job in todo]
        try:
            for number, (job, future) in enumerate(zip(todo, waiting, strict=True), 1):
                future.result()
                say(f"[{number}/{len(todo)}] {job.name}")
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def pretrain(job: Pretraining, device: str) -> None:
    """Make a base policy, unless it is there, and keep its report."""
    folder = PRETRAINED / job.name
    where = () if device == "cpu" else ("--device", device)
    command = [*job.command, *where, "--out", str(folder)]
    if folder.with_name(f"{folder.name}.part").exists():
        command.append("--resume")
    # A form that misses the gate is a result too; the command says so with 1.
    keep(job.file(RESULTS), command, {str(folder): f"runs/pretrained/{job.name}"}, accepted=(0, 1))


def evaluate(job: Evaluation) -> None:
    """Run an evaluation and keep what it found."""
    places = {}
    command = list(job.command)
    if job.policy is not None:
        kept = POLICIES / job.policy
        folder = kept if kept.is_dir() else PRETRAINED / job.policy
        if not folder.is_dir():
            raise SystemExit(f"{job.name} needs the policy {folder}. Remove {job.policy}.json to make it anew")
        command = [str(folder) if part == POLICY else part for part in command]
        places = {
            str(folder): f"experiments/policies/{job.policy}" if folder == kept else f"runs/pretrained/{job.policy}"
        }
    keep(job.file(RESULTS), command, places)


def do(run: Run, url: str | None = None) -> None:
    """Do one run through the command line that a user has, and keep its JSON; of some the policy, or the graph, too."""
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
    if run.data is not None:
        graph = POLICIES / run.data
        if not graph.exists():
            raise SystemExit(f"{run.name} needs the graph of {run.data}, which is not in {POLICIES}. Do that run first")
        command += ["--data", str(graph)]
        places[str(graph)] = f"experiments/policies/{run.data}"
    if (folder / RUN_FILE).exists():
        command.append("--resume")
    elif folder.exists():  # cut off before it had begun
        shutil.rmtree(folder)
    if run.server == "vllm":
        command += ["--policy-server", str(url)]
    keep(run.file(RESULTS), command, places)
    kept: list[Path] = []
    if run.arm in KEPT_ARMS and run.server == "local" and run.recipe in KEPT_RECIPES:
        kept = [folder / "policy" / name for name in ("adapter_config.json", "adapter_model.safetensors")]
    if run.recipe == KEPT_GRAPHS:
        kept = [folder / name for name in (TRAJECTORIES, MADE)]
    for each in kept:
        (POLICIES / run.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(each, POLICIES / run.name / each.name)
    if run.recipe == KEPT_GRAPHS:
        pack(folder / GRAPH, POLICIES / run.name / PACKED)
    shutil.rmtree(folder)


def pack(file: Path, packed: Path) -> None:
    """Write a file compressed, the same bytes every time."""
    with packed.open("wb") as out, gzip.GzipFile("", "wb", mtime=0, fileobj=out) as zipped:
        zipped.write(file.read_bytes())


def keep(file: Path, command: list[str], places: dict[str, str], accepted: Sequence[int] = (0,)) -> None:
    """Run `memweave COMMAND --json` and write what it found, how and where, to `file`.

    accepted: exit codes of a command that did its work.
    """
    load = os.getloadavg()[0]
    began = time.time()
    done = subprocess.run(
        [sys.executable, "-m", "memweave", *command, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode not in accepted or not done.stdout:
        raise SystemExit(f"memweave {' '.join(command)} failed with {done.returncode}: {done.stdout.strip()}")
    text, said = done.stdout, " ".join(["memweave", *command, "--json"])
    for place, name in places.items():  # a folder of this machine means nothing elsewhere
        text, said = text.replace(place, name), said.replace(place, name)
    found = json.loads(text)
    found["command"] = said
    found["machine"] = {
        "cores": os.cpu_count(),
        "load_at_start": round(load, 1),
        "wall_seconds": round(time.time() - began),
    }
    found.pop("policy", None)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial_file = file.with_suffix(".part")
    partial_file.write_text(json.dumps(found, indent=1) + "\n")
    os.replace(partial_file, file)


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
    print(line, file=sys.stderr, flush=True)


@app.command()
def table() -> None:
    """Rewrite the tables of docs/results.md from the results."""
    from tables import rewrite

    rewrite(HERE.parent / "docs" / "results.md", RESULTS)


if __name__ == "__main__":
    app()
