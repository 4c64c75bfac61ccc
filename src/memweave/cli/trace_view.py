"""One recorded run on the screen, call by call. Text of models and users is data: nothing in it can steer the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from rich.text import Text

from memweave.cli import render
from memweave.records import OpKind

if TYPE_CHECKING:
    from memweave.tracing import Generation, MemoryEvent, Trace

TAIL: Final = 320
"""Characters of a prompt or reply that are shown, from its end (a prompt) or its beginning (a reply)."""
_INDENT: Final = "    "


def show_trace(trace: Trace, *, full: bool) -> None:
    """Print a run. full: whole prompts and replies."""
    for line in trace_lines(trace, tail=None if full else TAIL):
        render.out().print(line, soft_wrap=True)


def trace_lines(trace: Trace, *, tail: int | None) -> Iterator[Text]:
    """Yield the lines that show a run. tail: characters of a prompt's last message and of a reply; `None`: all of both."""
    yield from _head(trace)
    for generation in trace.generations:
        yield Text()
        yield from _call(generation, tail)
        for event in trace.memory_events:
            if event.generation == generation.index:
                yield _operation(event)
    loose = [event for event in trace.memory_events if event.generation is None]
    if loose:
        yield Text()
        yield Text("memory operations that no reply asked for (rules, or a person)", style="dim")
        yield from (_operation(event) for event in loose)


def _head(trace: Trace) -> list[Text]:
    style = "bold green" if trace.status.value == "ok" else "bold red"
    seconds = (trace.ended_at - trace.started_at).total_seconds()
    lines = [
        Text.assemble(
            (f"{render.safe(trace.graph or 'run')}  ", "bold"),
            (trace.status.value, style),
            f"  {render.minute(trace.started_at)} UTC, {seconds:.2f} s",
            (f"  {trace.id}", "dim"),
        )
    ]
    about = {
        "run": trace.run, "iteration": trace.iteration, "task": trace.group, "replica": trace.replica, "thread": trace.thread,
    }  # fmt: skip
    known = [f"{name} {render.safe(str(value))}" for name, value in about.items() if value is not None]
    if known:
        lines.append(Text(", ".join(known)))
    if trace.score is not None:
        parts = ", ".join(f"{render.safe(name)} {value:g}" for name, value in trace.score.parts.items())
        span = f" of {trace.score.low:g} to {trace.score.high:g}"
        lines.append(
            Text.assemble("score ", (f"{trace.score.value:g}", "bold"), f"{span}{f'  ({parts})' if parts else ''}")
        )
    else:
        lines.append(Text("not scored", style="dim"))
    if trace.error:
        lines.append(Text(render.safe(trace.error), style="red"))
    return lines


def _call(generation: Generation, tail: int | None) -> list[Text]:
    read, written = (None if ids is None else len(ids) for ids in (generation.prompt_token_ids, generation.token_ids))
    counts = "no token ids" if written is None else f"{'?' if read is None else read} + {written} tokens"
    facts = [counts, generation.finish_reason, None if generation.seconds is None else f"{generation.seconds:.2f} s"]
    where = generation.node or "outside a graph"
    role = f" as {generation.role}" if generation.role and generation.role != generation.node else ""
    depth = "" if "|" not in generation.namespace else f"  in {_path(generation.namespace)}"
    version = f" {generation.policy_version}" if generation.policy_version else ""
    lines = [
        Text.assemble(
            (f"{generation.index}  {render.safe(where + role)}", "bold cyan"),
            f"{render.safe(depth)}  {render.safe((generation.policy or 'a model') + version)}",
            (f"  {render.safe(', '.join(fact for fact in facts if fact))}", "dim"),
        )
    ]
    for message in generation.messages if tail is None else generation.messages[-1:]:
        lines += _quoted(f"{message.role}: ", message.text, "dim", tail=tail, end=True)
    if generation.memories_read:
        ids = ", ".join(f"{render.short(ref.id)} v{ref.version}" for ref in generation.memories_read)
        lines.append(
            Text(f"{_INDENT}shown: {render.count(len(generation.memories_read), 'memory')} ({ids})", style="dim")
        )
    if generation.error:
        lines.append(Text(f"{_INDENT}failed: {render.safe(generation.error)}", style="red"))
        return lines
    lines += _quoted("-> ", generation.reply, "", tail=tail, end=False)
    lines += [Text(f"{_INDENT}calls {render.safe(str(call))}", style="magenta") for call in generation.tool_calls]
    return lines


def _path(namespace: str) -> str:
    """Return the nodes around a call: `sub:1|leaf:2` is `sub`."""
    return " > ".join(part.partition(":")[0] for part in namespace.split("|")[:-1])


def _quoted(mark: str, text: str, style: str, *, tail: int | None, end: bool) -> list[Text]:
    if tail is not None and len(text) > tail:
        text = f"... {text[-tail:]}" if end else f"{text[:tail]} ..."
    lines = [render.safe(line) for line in text.splitlines() if line.strip()] or ["(empty)"]
    first = Text(f"{_INDENT}{mark}{lines[0]}", style=style)
    return [first, *(Text(f"{_INDENT}{' ' * len(mark)}{line}", style=style) for line in lines[1:])]


def _operation(event: MemoryEvent) -> Text:
    failed = event.status == "failed"
    sign, style = ("!", "bold red") if failed or event.kind not in set(OpKind) else render.SIGNS[OpKind(event.kind)]
    what = event.error if failed else event.text
    memory = f" ({render.short(event.memory.id)} v{event.memory.version})" if event.memory else ""
    return Text.assemble(
        _INDENT,
        (f"{sign} {'FAILED' if failed else render.safe(event.kind)}", style),
        f"  {render.safe(what or '-')}{memory}",
        (f"  ({render.safe(event.reason)})" if event.reason else "", "dim"),
    )
