"""`make test-gpu`: the in-process server on CUDA, and one step of the trainer against it."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from langchain_core.messages import HumanMessage  # noqa: E402 - after importorskip
from langgraph.graph import END, START, MessagesState, StateGraph  # noqa: E402
from transformers import AutoModelForCausalLM  # noqa: E402

from memweave.serving import LocalServer, create_policy, weights_version  # noqa: E402
from memweave.tracing.records import Sampling  # noqa: E402
from memweave.trainers.grpo import TraceGRPOTrainer  # noqa: E402
from memweave.trainers.rollouts import Rollouts, Task  # noqa: E402
from tests.trainers.direct import WORDS, class_share, config, lora  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: torch sees none"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("policy") / "base"
    return create_policy(folder, [" ".join(WORDS)], vocab_size=300).path


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-3), ("bfloat16", 0.1)])
def test_logprobs_on_cuda_are_those_of_a_forward_pass(base: Path, dtype: str, near: float) -> None:
    prompts = [[3, *range(10, 10 + n), 1, 4] for n in (1, 40, 7, 120)]
    with LocalServer(base, device="cuda", dtype=dtype) as server:
        sampling = Sampling(temperature=0.7, max_tokens=30)
        replies = [f.result(60) for f in [server.submit(ids, sampling, seed=n) for n, ids in enumerate(prompts)]]
    model = AutoModelForCausalLM.from_pretrained(base).cuda()
    for reply in replies:
        ids = torch.tensor([reply.prompt_ids + reply.token_ids], device="cuda")
        with torch.no_grad():
            logits = model(ids).logits[0, len(reply.prompt_ids) - 1 : -1].float()
        chosen = torch.log_softmax(logits / 0.7, -1).gather(1, torch.tensor(reply.token_ids, device="cuda")[:, None])
        assert reply.logprobs == pytest.approx(chosen[:, 0].tolist(), abs=near)


@pytest.mark.parametrize("device", ["cuda"])
def test_one_training_step_publishes_what_it_trained(base: Path, tmp_path: Path, device: str) -> None:
    with LocalServer(base, device=device) as server:
        model = server.chat_model(sampling=Sampling(temperature=1.0, max_tokens=6, seed=0))
        graph = StateGraph(MessagesState)
        graph.add_node("call", lambda state: {"messages": [model.invoke(state["messages"])]})
        compiled = graph.add_edge(START, "call").add_edge("call", END).compile()
        trainer = TraceGRPOTrainer(
            AutoModelForCausalLM.from_pretrained(str(base), dtype="float32"),
            [Task(name, {"messages": [HumanMessage(name)]}) for name in "ab"],
            Rollouts(compiled, lambda task, output, trace: class_share(task.id, trace)),
            server,
            config(tmp_path / "out", max_steps=1, use_cpu=device == "cpu"),
            peft_config=lora(),
        )
        trainer.train()
        published = server.current()
        assert published is not None
        assert published.version != weights_version(base)
