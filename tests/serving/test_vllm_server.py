"""Publishing: names, folders, what a role is served with, and whom the server would let down."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memweave.errors import AdapterError, ConflictError, InputError, ServerSetupError, UnavailableError
from memweave.serving.server import PolicyServer, weights_version
from memweave.serving.vllm_server import VLLMServer
from tests.serving.stub_vllm import StubVLLM, error

Make = Callable[..., Path]


@pytest.fixture
def stub() -> Iterator[StubVLLM]:
    server = StubVLLM()
    yield server
    server.stop()


@pytest.fixture
def connect(stub: StubVLLM, policy: Path, tmp_path: Path) -> Iterator[Callable[..., VLLMServer]]:
    servers: list[VLLMServer] = []

    def make(**options: Any) -> VLLMServer:
        options = {"reconnect_timeout": 10, "on_wait": lambda line: None} | options
        servers.append(VLLMServer(stub.url, base=policy, adapter_dir=tmp_path / "served", **options))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


Connect = Callable[..., VLLMServer]


def folders(path: Path) -> list[str]:
    return sorted(entry.name for entry in path.iterdir() if not entry.name.startswith("."))


def test_a_role_is_served_with_what_was_published_last(
    connect: Connect, stub: StubVLLM, policy: Path, make_adapter: Make, tmp_path: Path
) -> None:
    server = connect()
    assert isinstance(server, PolicyServer)
    chat = server.chat_model("answerer")
    reply = chat.invoke("x").response_metadata
    assert (reply["policy"], reply["policy_version"]) == ("base", weights_version(policy))
    assert reply["sampling"] == {"temperature": 1.0, "logprobs": "processed"}
    first, second = make_adapter("a", seed=1), make_adapter("b", seed=2)
    one = server.publish(first, run="r", role="answerer")
    assert (one.name, one.number, one.version) == ("r-answerer-v1", 1, weights_version(first))
    assert chat.invoke("x").response_metadata["policy"] == "r-answerer-v1"
    two = server.publish(second, run="r", role="answerer")
    reply = chat.invoke("x").response_metadata
    assert (reply["policy"], reply["policy_version"]) == ("r-answerer-v2", two.version)
    assert server.current("answerer") == two
    assert server.current("manager") is None
    assert server.chat_model("manager").invoke("x").response_metadata["policy"] == "base"
    # The one before stays for requests under way, what is older leaves server and disk.
    assert (stub.adapters, folders(tmp_path / "served")) == (["r-answerer-v1", "r-answerer-v2"],) * 2
    server.publish(first, run="r", role="answerer")
    assert (stub.adapters, folders(tmp_path / "served")) == (["r-answerer-v2", "r-answerer-v3"],) * 2


def test_the_new_adapter_is_there_before_the_old_one_leaves(
    connect: Connect, stub: StubVLLM, make_adapter: Make
) -> None:
    server = connect(keep=0)
    for _ in range(2):
        server.publish(make_adapter("a"), run="r")
    asked = [(path.rpartition("/")[2], body.get("lora_name", "")) for path, body in stub.requests]
    assert [(what, name) for what, name in asked if name.startswith("r-")] == [
        ("load_lora_adapter", "r-policy-v1"),
        ("load_lora_adapter", "r-policy-v2"),
        ("unload_lora_adapter", "r-policy-v1"),
    ]


def test_the_source_may_change_after_publishing(connect: Connect, make_adapter: Make, tmp_path: Path) -> None:
    source = make_adapter("a")
    published = connect().publish(source, run="r")
    (source / "adapter_model.safetensors").write_bytes(b"")
    assert weights_version(tmp_path / "served" / published.name) == published.version


def test_numbers_go_on_after_a_restart_and_old_adapters_leave(
    connect: Connect, stub: StubVLLM, make_adapter: Make, tmp_path: Path
) -> None:
    adapter = make_adapter("a")
    with connect() as server:
        for _ in range(2):
            server.publish(adapter, run="r")
    again = connect(keep=0)
    assert again.publish(adapter, run="r").number == 3
    assert (stub.adapters, folders(tmp_path / "served")) == (["r-policy-v3"],) * 2
    again.close()
    for path in (tmp_path / "served").glob("r-*"):
        path.joinpath("adapter_config.json").unlink()
    stub.adapters.clear()
    assert connect().publish(adapter, run="r").number == 4


def test_roles_are_adapters_side_by_side(connect: Connect, stub: StubVLLM, make_adapter: Make) -> None:
    server = connect(keep=0)
    for role in ("manager", "answerer", "manager"):
        server.publish(make_adapter("a"), run="r", role=role)
    assert sorted(stub.adapters) == ["r-answerer-v1", "r-manager-v2"]


def test_another_run_of_a_role_replaces_the_first(
    connect: Connect, stub: StubVLLM, make_adapter: Make, tmp_path: Path
) -> None:
    server, adapter = connect(keep=0), make_adapter("a")
    server.publish(adapter, run="one")
    assert server.publish(adapter, run="two").name == "two-policy-v1"
    assert (stub.adapters, folders(tmp_path / "served")) == (["two-policy-v1"],) * 2


def test_two_trainers_under_one_name(connect: Connect, make_adapter: Make) -> None:
    adapter = make_adapter("a")
    first, second = connect(), connect()
    first.publish(adapter, run="r")
    with pytest.raises(ConflictError, match="Another trainer publishes r-policy in .*give this run another name"):
        second.publish(adapter, run="r")
    assert second.publish(adapter, run="r", role="other").number == 1
    first.close()
    assert second.publish(adapter, run="r").number == 2


HOLDER = """
import sys
from memweave.serving.vllm_server import VLLMServer
server = VLLMServer(sys.argv[1], base=sys.argv[2], adapter_dir=sys.argv[3])
server.publish(__import__("pathlib").Path(sys.argv[4]), run="r")
print("published", flush=True)
sys.stdin.read()
"""


def test_a_killed_trainer_frees_its_name(
    connect: Connect, stub: StubVLLM, policy: Path, make_adapter: Make, tmp_path: Path
) -> None:
    adapter = make_adapter("a")
    arguments = [stub.url, str(policy), str(tmp_path / "served"), str(adapter)]
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"published\n"
        with pytest.raises(ConflictError):
            connect().publish(adapter, run="r")
        other.kill()
    assert connect().publish(adapter, run="r").number == 2


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "x" * 200])
def test_a_name_that_is_no_file_name(connect: Connect, make_adapter: Make, name: str) -> None:
    with pytest.raises(InputError, match="cannot be part of a file name"):
        connect().publish(make_adapter("a"), run=name)


def test_a_refused_adapter_leaves_everything_as_it_was(
    connect: Connect, stub: StubVLLM, make_adapter: Make, policy: Path, tmp_path: Path
) -> None:
    server = connect(max_lora_rank=4)
    served = server.publish(make_adapter("good"), run="r")
    with pytest.raises(AdapterError, match="has rank 8, the server takes at most 4: start vLLM with --max-lora-rank 8"):
        server.publish(make_adapter("wide", r=8), run="r")
    with pytest.raises(AdapterError, match="full weights. vLLM serves LoRA adapters here"):
        server.publish(policy, run="r")
    said = "LoRA rank 4 is greater than max_lora_rank 2."
    stub.fault = lambda path, body: (500, error(500, said)) if path == "/v1/load_lora_adapter" else None
    with pytest.raises(AdapterError, match="r-policy-v2 has rank 4, the server takes at most 2"):
        server.publish(make_adapter("good"), run="r")
    stub.fault = lambda path, body: (404, error(404, "No adapter found")) if path == "/v1/load_lora_adapter" else None
    with pytest.raises(ServerSetupError, match="cannot read the adapter's folder .*give server_dir"):
        server.publish(make_adapter("good"), run="r")
    assert server.current() == served
    assert folders(tmp_path / "served") == [served.name]


def test_the_server_may_see_the_folder_elsewhere(connect: Connect, stub: StubVLLM, make_adapter: Make) -> None:
    connect(server_dir="/adapters").publish(make_adapter("a"), run="r")
    assert stub.requests[-1][1] == {"lora_name": "r-policy-v1", "lora_path": "/adapters/r-policy-v1"}


def test_after_a_restart_the_adapters_are_loaded_again(connect: Connect, stub: StubVLLM, make_adapter: Make) -> None:
    lines: list[str] = []

    def heard(line: str) -> None:
        lines.append(line)
        if "waiting" in line:
            stub.adapters.clear()
            stub.start()

    server = connect(on_wait=heard, keep=0)
    server.publish(make_adapter("a"), run="r", role="manager")
    server.publish(make_adapter("b", seed=3), run="r", role="answerer")
    chat = server.chat_model("answerer")
    before = chat.invoke("x").response_metadata
    stub.stop()
    assert chat.invoke("x").response_metadata == before
    assert sorted(stub.adapters) == ["r-answerer-v1", "r-manager-v1"]
    assert len(lines) == 2
    stub.adapters.clear()  # restarted between two calls: nobody saw it go
    assert chat.invoke("x").response_metadata == before


def test_publishing_waits_for_a_server_that_was_killed(connect: Connect, stub: StubVLLM, make_adapter: Make) -> None:
    server = connect(on_wait=lambda line: stub.start() if "waiting" in line else None)
    server.publish(make_adapter("a"), run="r")
    stub.stop()
    assert server.publish(make_adapter("b", seed=3), run="r").number == 2
    assert stub.adapters[-1] == "r-policy-v2"


def test_a_server_that_stays_away(connect: Connect, stub: StubVLLM, make_adapter: Make) -> None:
    server = connect(reconnect_timeout=0.2)
    stub.stop()
    with pytest.raises(UnavailableError, match="did not come back within 0.2 s"):
        server.publish(make_adapter("a"), run="r")
    with pytest.raises(UnavailableError, match="does not answer"):
        server.check()


def not_found(path: str, body: dict[str, Any]) -> tuple[int, str] | None:
    return (404, json.dumps({"detail": "Not Found"})) if path == "/v1/load_lora_adapter" else None


def no_lora(path: str, body: dict[str, Any]) -> tuple[int, str] | None:
    return (500, error(500, "LoRA is not enabled")) if path == "/v1/load_lora_adapter" else None


def without_ids(answer: dict[str, Any]) -> None:
    answer["choices"][0]["token_ids"] = None


def without_logprobs(answer: dict[str, Any]) -> None:
    answer["choices"][0]["logprobs"] = None


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda stub: setattr(stub, "fault", not_found), "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"),
        (lambda stub: setattr(stub, "fault", no_lora), "start it with --enable-lora"),
        (lambda stub: setattr(stub, "change", without_ids), "returns no token ids"),
        (lambda stub: setattr(stub, "change", without_logprobs), "returns no log-probabilities"),
        (lambda stub: setattr(stub, "raw", True), "Start vLLM with --logprobs-mode processed_logprobs"),
        (lambda stub: setattr(stub, "top_p_default", True), "Start vLLM with --generation-config vllm"),
    ],
)
def test_a_server_that_cannot_be_trained_against(
    connect: Connect, stub: StubVLLM, break_it: Callable[[StubVLLM], None], message: str
) -> None:
    break_it(stub)
    with pytest.raises(ServerSetupError, match=message):
        connect().check()
    with pytest.raises(ServerSetupError, match=message):
        connect().chat_model().invoke("x")


def test_a_server_that_can_be_trained_against(connect: Connect) -> None:
    connect().check()


def test_something_that_is_no_vllm(connect: Connect, stub: StubVLLM) -> None:
    stub.fault = lambda path, body: (200, "[]") if path == "/v1/models" else None
    with pytest.raises(ServerSetupError, match="does not list models. Is it vLLM"):
        connect().check()
