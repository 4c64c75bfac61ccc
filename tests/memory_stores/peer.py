"""A second process on a data folder, driven line by line; `test_processes.py` and the PostgreSQL tests start this file.

python peer.py HOME [LEDGER_URL]         requests and replies are JSON lines on standard input and output

{"do": "add", "text": T}                 -> {"id": HEX, "op": HEX}
{"do": "update", "id": HEX, "text": T}   -> {"id": HEX, "op": HEX}
{"do": "delete", "id": HEX}              -> {"op": HEX}
{"do": "undo", "op": HEX}                -> {"op": HEX}
{"do": "read", "id": HEX, "text": Q}     -> {"get": TEXT or null, "found": TEXT or null, "listed": TEXT or null}
{"do": "burst", "count": N, "name": S}   -> {"ids": [HEX]}       N writes and searches in a row
{"do": "facts"}                          -> {"owner": bool, "index": PATH, "count": N}
{"do": "purge"}, {"do": "close"}         -> {}
"""

from __future__ import annotations

import json
import sys
from typing import Any
from uuid import UUID

from memweave.errors import MemweaveError, UnknownMemoryError
from memweave.memory_stores import MemoryBank, open_bank
from memweave.records import OpKind, ProposedOp, Scope

ANNA = Scope(user="anna")


def op(kind: OpKind, **fields: Any) -> ProposedOp:
    """Return an operation of this process."""
    return ProposedOp(kind=kind, reason="asked to", actor="peer", **fields)


class Peer:
    """Answers one request at a time."""

    def __init__(self, bank: MemoryBank) -> None:
        self.bank = bank

    def _apply(self, kind: OpKind, **fields: Any) -> dict[str, Any]:
        (done,) = self.bank.apply([op(kind, **fields)], scope=ANNA)
        assert done.memory_id is not None
        return {"op": done.id.hex, "id": done.memory_id.hex}

    def add(self, text: str) -> dict[str, Any]:
        return self._apply(OpKind.ADD, text=text)

    def update(self, id: str, text: str) -> dict[str, Any]:
        return self._apply(OpKind.UPDATE, memory_id=UUID(hex=id), text=text)

    def delete(self, id: str) -> dict[str, Any]:
        return self._apply(OpKind.DELETE, memory_id=UUID(hex=id))

    def undo(self, op: str) -> dict[str, Any]:
        return {"op": self.bank.undo(UUID(hex=op), scope=ANNA, actor="peer").id.hex}

    def read(self, id: str, text: str) -> dict[str, Any]:
        """Read a memory in the three ways there are."""
        wanted = UUID(hex=id)
        hits = self.bank.search(text, scope=ANNA, limit=100)
        found = [hit.memory.text for hit in hits if hit.memory.id == wanted]
        listed = [memory.text for memory in self.bank.memories(scope=ANNA) if memory.id == wanted]
        try:
            got = self.bank.get(wanted, scope=ANNA).text
        except UnknownMemoryError:
            got = None
        return {"get": got, "found": found[0] if found else None, "listed": listed[0] if listed else None}

    def burst(self, count: int, name: str) -> dict[str, Any]:
        ids = []
        for number in range(count):
            ids.append(self.add(f"{name} {number}")["id"])
            self.bank.search(f"{name} {number}", scope=ANNA)
        return {"ids": ids}

    def facts(self) -> dict[str, Any]:
        count = self.bank.count(scope=ANNA)
        engine = self.bank._core.projector.engine
        return {
            "owner": getattr(engine, "owns_folder", None),
            "index": str(getattr(engine, "_path", "")),
            "count": count,
        }

    def purge(self) -> dict[str, Any]:
        self.bank.purge(scope=ANNA)
        return {}


def main() -> None:
    """Serve requests until told to close, or until standard input ends."""
    home, *url = sys.argv[1:]
    with open_bank(home, embedding="hashing:64", ledger_url=url[0] if url else None) as bank:
        peer = Peer(bank)
        print(json.dumps({"ready": True}), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            verb = request.pop("do")
            if verb == "close":
                break
            try:
                reply = getattr(peer, verb)(**request)
            except MemweaveError as error:
                reply = {"error": type(error).__name__, "message": str(error)}
            print(json.dumps(reply), flush=True)
    print("{}", flush=True)


if __name__ == "__main__":
    main()
