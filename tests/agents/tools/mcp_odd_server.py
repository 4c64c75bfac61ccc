"""An MCP server that misbehaves as it is told: `python mcp_odd_server.py HABIT`. It needs no package."""

import json
import os
import signal
import sys
import threading

HABIT = sys.argv[1]


def say(message: dict) -> None:
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def forever() -> None:
    threading.Event().wait(60)


def act(how: str) -> dict:
    if how == "die":
        os._exit(3)
    if how == "hang":
        forever()
    if how == "stubborn":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        forever()
    if how == "endless":
        while True:
            sys.stdout.write("x" * 1_000_000)
    if how == "raise":
        return {"content": [{"type": "text", "text": "no such file"}], "isError": True}
    if how == "sound":
        return {"content": [{"type": "audio", "data": "AAAA", "mimeType": "audio/wav"}]}
    if how == "flood":
        return {"content": [{"type": "text", "text": "x" * 50_000_000}]}
    if how == "long":
        text = "x" * 5_000
        return {"content": [{"type": "text", "text": text}], "structuredContent": {"result": text}}
    if how == "chatter":
        print("starting up ...\n{ not JSON\n", flush=True)
    if how == "environment":
        return {"content": [{"type": "text", "text": os.environ.get("TOKEN", "none")}]}
    return {"content": [{"type": "text", "text": f"done by {os.getpid()}"}]}


def answer(method: str, params: dict) -> dict:
    if method == "initialize":
        about = {"name": "odd", "version": "1"}
        return {"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": about}
    if method == "tools/list":
        schema = {"type": "object", "properties": {"how": {"type": "string"}}, "required": ["how"]}
        many = range(600) if HABIT == "many" else range(1)
        text = "Act. " * (10_000 if HABIT == "wordy" else 1)
        return {
            "tools": [{"name": f"act{n or ''}", "description": text, "inputSchema": schema} for n in many],
            **({"nextCursor": "again"} if HABIT == "endless-list" else {}),
        }
    return act(params["arguments"]["how"])


if HABIT == "no-start":
    sys.exit("no key was given")
if HABIT == "mute":
    forever()
for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        say({"id": asked["id"], "result": answer(asked["method"], asked.get("params", {}))})
