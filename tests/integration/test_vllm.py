"""What only a real vLLM can show: exact log-probabilities, and publishing that takes effect. See also test_training.py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import pytest

from memweave.errors import AdapterError, ContextLengthError, InputError, PortInUseError, ServerSetupError
from memweave.serving.vllm_process import ServeSettings, start
from memweave.serving.vllm_server import VLLMServer
from memweave.tracing.records import Sampling
from tests.integration.served import CONTEXT, KEY, Served

pytestmark = pytest.mark.integration
Make = Callable[..., Path]
TOLERANCE = 1e-3


@pytest.fixture
def server(vllm: Served, tmp_path: Path) -> Iterator[VLLMServer]:
    with VLLMServer(vllm.process.url, base=vllm.base, adapter_dir=tmp_path / "served", api_key=KEY) as opened:
        yield opened


@pytest.fixture
def make_adapter(vllm: Served, tmp_path: Path) -> Make:
    """Return a function that writes an adapter far from zero: a stale or missing one shows in every log-probability."""

    def make(name: str, *, seed: int = 0, base: Path = vllm.base, size: float = 0.5, rank: int = 8) -> Path:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        config = LoraConfig(r=rank, lora_alpha=16, target_modules=["q_proj", "v_proj", "o_proj", "down_proj"])
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
        noise = torch.Generator().manual_seed(seed)
        for key, value in model.named_parameters():
            if "lora_" in key:
                value.data = torch.randn(value.shape, generator=noise) * size
        model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return make


def trainers_logprobs(base: Path, adapter: Path | None, found: dict[str, Any], temperature: float) -> list[float]:
    """Return the log-probabilities that transformers + peft give to the sampled tokens."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    prompt, reply = found["prompt_token_ids"], found["token_ids"]
    ids = torch.tensor([prompt + reply])  # (1, T)
    with torch.no_grad():
        logits = model(ids).logits[0, len(prompt) - 1 : -1] / temperature  # (reply, vocabulary)
    picked = logits.log_softmax(-1).gather(1, torch.tensor(reply)[:, None])[:, 0]
    return [float(value) for value in picked]


def apart(a: list[float], b: list[float]) -> float:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_logprobs_are_those_of_the_trainer(
    vllm: Served, server: VLLMServer, make_adapter: Make, temperature: float
) -> None:
    adapter = make_adapter("a")
    server.publish(adapter, run=f"exact{int(temperature * 10)}")
    chat = server.chat_model(sampling=Sampling(temperature=temperature, max_tokens=40, seed=7))
    for prompt in ("Where does Alice live?", "Bob moved to Rome in 2024.", "\u00e9\u4e2d\U0001f600"):
        found = chat.invoke(prompt, ignore_eos=True).response_metadata
        assert len(found["token_ids"]) == 40
        assert apart(found["token_logprobs"], trainers_logprobs(vllm.base, adapter, found, temperature)) <= TOLERANCE
    assert apart(found["token_logprobs"], trainers_logprobs(vllm.base, None, found, temperature)) > 0.1


def test_publishing_changes_the_next_reply_and_no_cache_serves_the_old(
    vllm: Served, server: VLLMServer, make_adapter: Make
) -> None:
    chat = server.chat_model(sampling=Sampling(temperature=0.0, max_tokens=24))
    prompt = "Where does Alice live? " * 8  # long enough for blocks of the prefix cache
    replies = []
    for number, seed in enumerate((1, 2, 1), 1):
        adapter = make_adapter(f"a{number}", seed=seed)
        published = server.publish(adapter, run="cache")
        assert published.number == number
        found = chat.invoke(prompt, ignore_eos=True).response_metadata
        assert (found["policy"], found["policy_version"]) == (published.name, published.version)
        replies.append(found["token_ids"])
        sampled = server.chat_model(sampling=Sampling(max_tokens=8, seed=1)).invoke(prompt).response_metadata
        assert apart(sampled["token_logprobs"], trainers_logprobs(vllm.base, adapter, sampled, 1.0)) <= TOLERANCE
    assert replies[0] == replies[2] != replies[1]


def test_two_roles_are_served_side_by_side(vllm: Served, server: VLLMServer, make_adapter: Make) -> None:
    adapters = {role: make_adapter(role, seed=seed) for seed, role in enumerate(("manager", "answerer"), 5)}
    for role, adapter in adapters.items():
        server.publish(adapter, run="roles", role=role)

    async def both() -> list[dict[str, Any]]:
        chats = [server.chat_model(role, sampling=Sampling(max_tokens=16, seed=2)) for role in (*adapters, *adapters)]
        return [reply.response_metadata for reply in await asyncio.gather(*(chat.ainvoke("hello") for chat in chats))]

    for found, role in zip(asyncio.run(both()), (*adapters, *adapters), strict=True):
        assert found["policy"] == f"roles-{role}-v1"
        assert apart(found["token_logprobs"], trainers_logprobs(vllm.base, adapters[role], found, 1.0)) <= TOLERANCE


def test_many_prompts_with_seeds_at_once(vllm: Served, server: VLLMServer) -> None:
    """They are more than one step of the server reads. Half a prompt with a seed would end its engine."""
    chat = server.chat_model(sampling=Sampling(max_tokens=4, seed=1))

    async def everyone() -> list[dict[str, Any]]:
        prompts = [f"{number} " + "Where does Alice live? " * 20 for number in range(64)]
        return [reply.response_metadata for reply in await asyncio.gather(*(chat.ainvoke(each) for each in prompts))]

    replies = asyncio.run(everyone())
    assert sum(len(found["prompt_token_ids"]) for found in replies) > 3 * 2_048
    assert [len(found["token_ids"]) for found in replies] == [4] * 64
    assert server.chat_model().invoke("hello").response_metadata["token_ids"]
    assert vllm.process.running


class State(TypedDict, total=False):
    text: str


def one_node(server: VLLMServer, *, is_async: bool) -> Any:
    from langgraph.graph import StateGraph

    chat = server.chat_model(sampling=Sampling(max_tokens=6, seed=3))

    def answer(state: State) -> State:
        return {"text": str(chat.invoke(state["text"]).response_metadata)}

    async def answer_async(state: State) -> State:
        return {"text": str((await chat.ainvoke(state["text"])).response_metadata)}

    graph = StateGraph(State)
    graph.add_node("answer", answer_async if is_async else answer)
    graph.set_entry_point("answer")
    return graph.compile()


def test_ids_are_there_in_every_way_to_run_a_graph(server: VLLMServer) -> None:
    """Under stream_mode="messages" LangChain streams every model that can, and streams have no ids."""
    graph, graph_async = one_node(server, is_async=False), one_node(server, is_async=True)
    given: State = {"text": "hello"}

    async def asynchronous() -> tuple[list[Any], str]:
        messages = [message async for message, _ in graph_async.astream(given, stream_mode="messages")]
        return messages, (await graph_async.ainvoke(given))["text"]

    messages = [message for message, _ in graph.stream(given, stream_mode="messages")]
    more, text = asyncio.run(asynchronous())
    assert len(messages) == len(more) == 1
    metadata = messages[0].response_metadata
    assert metadata["token_ids"]
    assert len(metadata["token_ids"]) == len(metadata["token_logprobs"])
    assert metadata == more[0].response_metadata
    assert graph.invoke(given)["text"] == text == str(metadata)


def test_bad_input(vllm: Served, server: VLLMServer, make_adapter: Make, tmp_path: Path) -> None:
    from memweave.serving.policy_folder import create_policy

    with pytest.raises(AdapterError, match="rank 16, the server takes at most 8: start vLLM with --max-lora-rank 16"):
        server.publish(make_adapter("wide", rank=16), run="bad")
    other = create_policy(tmp_path / "other", ["some text"], vocab_size=280, hidden=128).path
    with pytest.raises(AdapterError, match="was trained on .*other, the server's base is .*: their weights differ"):
        server.publish(make_adapter("other-base", base=other), run="bad")
    with pytest.raises(ContextLengthError, match="does not fit the model's context"):
        server.chat_model().invoke("long " * CONTEXT)
    with pytest.raises(InputError, match="max_tokens must be at least 1"):
        server.chat_model(sampling=Sampling(max_tokens=0)).invoke("hello")
    assert len(server.chat_model(sampling=Sampling(max_tokens=1)).invoke("hello").response_metadata["token_ids"]) == 1
    with pytest.raises(PortInUseError, match=f"Port {vllm.process.port} of 127.0.0.1 cannot be used"):
        start(vllm.base, settings=ServeSettings(port=vllm.process.port), env=vllm.env).__enter__()
    wrong = VLLMServer(vllm.process.url, base=vllm.base, adapter_dir=tmp_path / "served", api_key="wrong")
    with pytest.raises(ServerSetupError, match="refuses the API key"):
        wrong.check()
