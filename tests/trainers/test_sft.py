"""SFT learns what is marked and nothing else, goes on where it stopped, and writes a policy that can be served."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, TrainerCallback

from memweave.errors import ConflictError, ContextLengthError, InputError, OperationError, SettingsError
from memweave.serving.policy_folder import PolicyFolder, create_policy, load_policy_folder
from memweave.trainers.rows import Row, Span
from memweave.trainers.sft import Example, SFTSettings, _Collator, _item, demonstrations, train_sft

NAMES = ["anna", "bert", "cora", "dora", "emil", "fred", "gina", "hugo", "ines", "jule"]
CITIES = ["paris", "rome", "oslo", "bern", "kiel", "riga", "lima", "cork", "bonn", "graz"]


def conversations() -> list[list[dict[str, str]]]:
    """Twenty of them, with two assistant turns each; the answers cannot be guessed."""
    found = []
    for i in range(20):
        name, city, other = NAMES[i % 10], CITIES[(7 * i + i // 10) % 10], CITIES[(3 * i + 1) % 10]
        found.append(
            [
                {"role": "user", "content": f"{i} where does {name} live?"},
                {"role": "assistant", "content": f"in {city}"},
                {"role": "user", "content": "and work?"},
                {"role": "assistant", "content": f"in {other}"},
            ]
        )
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> PolicyFolder:
    texts = [message["content"] for conversation in conversations() for message in conversation]
    return create_policy(tmp_path_factory.mktemp("sft") / "base", texts, vocab_size=320, context=128)


@pytest.fixture(scope="module")
def examples(base: PolicyFolder) -> list[Example]:
    return demonstrations(conversations(), base.tokenizer())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return {name: value.detach() for name, value in model.named_parameters()}


# --- demonstrations ----------------------------------------------------------------------------------------------------


def test_only_the_assistants_tokens_are_marked(base: PolicyFolder, examples: list[Example]) -> None:
    tokenizer = base.tokenizer()
    example = examples[0]
    assert tokenizer.decode(example.ids) == (
        "<|user|>0 where does anna live?<|end|><|assistant|>in paris<|end|>"
        "<|user|>and work?<|end|><|assistant|>in rome<|end|>"
    )
    assert tokenizer.decode(example.ids[example.mask]) == "in paris<|end|>in rome<|end|>"


def test_the_marked_prefix_is_the_prompt_that_a_server_renders(base: PolicyFolder, examples: list[Example]) -> None:
    tokenizer = base.tokenizer()
    prompt = tokenizer.apply_chat_template(conversations()[0][:3], add_generation_prompt=True, return_dict=False)
    last = np.flatnonzero(np.diff(examples[0].mask.astype(int)) == 1)[-1] + 1
    assert examples[0].ids[:last].tolist() == prompt


def with_template(base: PolicyFolder, change: Callable[[str], str | None]) -> Any:
    import copy

    tokenizer = copy.deepcopy(base.tokenizer())
    tokenizer.chat_template = change(tokenizer.chat_template)
    return tokenizer


def test_what_follows_the_end_token_is_not_learned(base: PolicyFolder) -> None:
    tokenizer = with_template(base, lambda t: (t or "").replace("~ '<|end|>'", "~ '<|end|>\\n'"))
    example = demonstrations(conversations()[:1], tokenizer)[0]
    assert tokenizer.decode(example.ids).count("<|end|>\n") == 3
    assert tokenizer.decode(example.ids[example.mask]) == "in paris<|end|>in rome<|end|>"


FORGETS = """{%- for m in messages -%}{%- if m.role != 'assistant' or loop.last -%}
<|{{ m.role }}|>{{ m.content }}<|end|>{%- endif -%}{%- endfor -%}{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"""


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "the tokenizer has no chat template"),
        (FORGETS, "message 3 of demonstration 0: the chat template is not append-only"),
        (FORGETS.replace("<|end|>", ""), "writes no end token"),
    ],
)
def test_templates_that_cannot_be_used(base: PolicyFolder, template: str | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        demonstrations(conversations(), with_template(base, lambda _: template))


def test_demonstrations_that_teach_nothing(base: PolicyFolder) -> None:
    with pytest.raises(InputError, match="there are no demonstrations"):
        demonstrations([], base.tokenizer())
    with pytest.raises(InputError, match="demonstration 1 has no assistant message"):
        demonstrations([conversations()[0], conversations()[0][:1]], base.tokenizer())


# --- training ----------------------------------------------------------------------------------------------------------


def test_memorises_twenty_demonstrations(base: PolicyFolder, examples: list[Example], tmp_path: Path) -> None:
    seen: list[tuple[int, int, float | None]] = []
    result = train_sft(
        base.path,
        examples,
        tmp_path / "out",
        SFTSettings(steps=300, batch_size=20, learning_rate=4e-3),
        report=lambda *a: seen.append(a),
    )
    assert result.losses[-1] < 0.05 < 1 < result.losses[0]
    assert (seen[0][:2], seen[-1][:2]) == ((10, 300), (300, 300))
    assert result.examples == 20
    folder = load_policy_folder(result.policy)
    assert folder.version == result.version != base.version
    tokenizer, model = folder.tokenizer(), AutoModelForCausalLM.from_pretrained(folder.path)
    right = 0
    for conversation in conversations():
        for turn in (1, 3):
            prompt = tokenizer.apply_chat_template(
                conversation[:turn], add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            reply = model.generate(**prompt, do_sample=False, max_new_tokens=12)[0, prompt["input_ids"].shape[1] :]
            right += tokenizer.decode(reply) == conversation[turn]["content"] + "<|end|>"
    assert right == 40
    assert not (tmp_path / "out.part").exists()


def test_everything_but_weights_is_copied(base: PolicyFolder, examples: list[Example], tmp_path: Path) -> None:
    out = train_sft(base.path, examples, tmp_path / "out", SFTSettings(steps=1)).policy
    for file in base.path.iterdir():
        if file.suffix != ".safetensors" and file.name != "config.json":
            assert (out / file.name).read_bytes() == file.read_bytes()


def test_masked_tokens_have_no_gradient(base: PolicyFolder, examples: list[Example]) -> None:
    """Only positions that predict a marked token pull at the logits."""
    model = AutoModelForCausalLM.from_pretrained(base.path)
    batch = _Collator(0)([_item(example) for example in examples[:3]])
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    logits.retain_grad()
    model.loss_function(logits=logits, labels=batch["labels"], vocab_size=model.config.vocab_size).backward()
    pulled = logits.grad.abs().sum(-1) > 0
    for row, example in zip(pulled, examples[:3], strict=True):
        expected = np.zeros(len(row), dtype=bool)
        expected[: len(example.ids) - 1] = example.mask[1:]
        assert row.numpy().tolist() == expected.tolist()


def test_rows_of_traces_are_data_too(base: PolicyFolder, examples: list[Example], tmp_path: Path) -> None:
    rows = [
        Row(
            ids=e.ids,
            mask=e.mask,
            logprobs=np.zeros(len(e.ids), np.float32),
            advantages=np.zeros(len(e.ids), np.float32),
            spans=[Span(0, len(e.ids), 0)],
            trace=UUID(int=1),
            group="g",
            actor="policy",
            policy_version="v",
            temperature=1.0,
        )
        for e in examples
    ]
    settings = SFTSettings(steps=3)
    first = train_sft(base.path, examples, tmp_path / "a", settings)
    assert train_sft(base.path, rows, tmp_path / "b", settings).version == first.version


def test_the_seed_decides(base: PolicyFolder, examples: list[Example], tmp_path: Path) -> None:
    versions = [
        train_sft(base.path, examples, tmp_path / str(i), SFTSettings(steps=3, batch_size=4, seed=seed)).version
        for i, seed in enumerate((1, 1, 2))
    ]
    assert versions[0] == versions[1] != versions[2]


def test_micro_batches_give_the_same_weights(base: PolicyFolder, examples: list[Example], tmp_path: Path) -> None:
    """The loss is a mean over the tokens of the whole batch, however it is cut."""
    whole, cut = (
        train_sft(base.path, examples, tmp_path / str(m), SFTSettings(steps=3, batch_size=8, micro_batch_size=m)).policy
        for m in (8, 2)
    )
    other = weights(cut)
    for name, value in weights(whole).items():
        torch.testing.assert_close(other[name], value, rtol=0, atol=2e-5)


def test_lora_is_merged_into_a_policy_folder(base: PolicyFolder, examples: list[Example], tmp_path: Path) -> None:
    settings = SFTSettings(steps=30, batch_size=20, lora_rank=4, learning_rate=2e-2)
    result = train_sft(base.path, examples, tmp_path / "out", settings)
    before, after = weights(base.path), weights(result.policy)
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all("proj" in name for name in changed)  # embeddings and norms stay
    assert result.losses[-1] < result.losses[0] - 0.2


class StopAt(TrainerCallback):
    """Ends the run as a crash would, after `step`."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("rank", [None, 2])
def test_a_stopped_run_goes_on_exactly(
    base: PolicyFolder, examples: list[Example], tmp_path: Path, rank: int | None
) -> None:
    settings = SFTSettings(steps=10, batch_size=4, save_every=4, log_every=1, lora_rank=rank)
    whole = train_sft(base.path, examples, tmp_path / "whole", settings)
    with pytest.raises(KeyboardInterrupt):
        train_sft(base.path, examples, tmp_path / "cut", settings, callbacks=[StopAt(6)])
    part = tmp_path / "cut.part"
    assert not (tmp_path / "cut").exists()
    shutil.copytree(part / "checkpoint-4", part / "checkpoint-5")
    (part / "checkpoint-5/trainer_state.json").unlink()  # a checkpoint whose writing was cut short
    with pytest.raises(SettingsError, match=r"other settings \(learning_rate: 0.0015 then, 0.1 now\)"):
        train_sft(
            base.path, examples, tmp_path / "cut", SFTSettings(**{**vars(settings), "learning_rate": 0.1}), resume=True
        )
    resumed = train_sft(base.path, examples, tmp_path / "cut", settings, resume=True)
    assert resumed.version == whole.version
    assert resumed.losses == whole.losses


# --- bad input ---------------------------------------------------------------------------------------------------------


def example(ids: list[int], mask: list[bool]) -> Example:
    return Example(np.array(ids, dtype=np.int32), np.array(mask, dtype=np.bool_))


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], InputError, "nothing to train on"),
        ([example([1, 2], [False, False])], InputError, "example 0 has no token to learn"),
        ([example([1, 2], [True, False])], InputError, "example 0 has no token to learn"),
        ([example([], [])], InputError, "example 0 has no token to learn"),
        ([example([1, 999], [False, True])], InputError, "example 0 has the token 999; the policy knows"),
        (
            [example([1] * 129, [True] * 129)],
            ContextLengthError,
            "example 0 has 129 tokens and the policy's context holds 128",
        ),
    ],
)
def test_data_that_cannot_be_learned(
    base: PolicyFolder, tmp_path: Path, data: list[Example], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        train_sft(base.path, data, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_overwritten(base: PolicyFolder, examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="exists already"):
        train_sft(base.path, examples, tmp_path)


def test_a_loss_that_is_no_number_stops_the_run(base: PolicyFolder, examples: list[Example], tmp_path: Path) -> None:
    with pytest.raises(OperationError, match=r"the loss is nan at step \d+; lower learning_rate \(1e\+30\)"):
        train_sft(base.path, examples, tmp_path / "out", SFTSettings(steps=20, learning_rate=1e30))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps = 0 must be at least 1"),
        ({"learning_rate": math.nan}, "learning_rate = nan"),
        ({"batch_size": 8, "micro_batch_size": 3}, "micro_batch_size = 3 must divide batch_size = 8"),
        ({"lora_rank": 0}, "lora_rank = 0 must be at least 1"),
    ],
)
def test_settings_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        SFTSettings(**options)
