from __future__ import annotations

import json
import shutil
import struct
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("torch")

from safetensors.numpy import load_file, save_file

from memweave.errors import ConflictError, FormatError, InputError, MemweaveError, NotInstalledError
from memweave.serving.policy_folder import SPECIAL_TOKENS, create_policy, load_policy_folder
from memweave.serving.server import weights_version
from memweave.serving.weight_files import not_finite, read_tensors

Copy = Callable[[], Path]


def ids(folder: Path, text: str) -> list[int]:
    encoded: list[int] = (
        load_policy_folder(folder).tokenizer().backend_tokenizer.encode(text, add_special_tokens=False).ids
    )
    return encoded


def render(folder: Path, messages: list[dict[str, str]], tools: list[Any] | None = None, prompt: bool = True) -> str:
    tokenizer = load_policy_folder(folder).tokenizer()
    text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt)
    assert isinstance(text, str)
    return text


def test_a_new_policy_is_a_folder_that_others_read(policy: Path) -> None:
    from transformers import AutoModelForCausalLM

    facts = load_policy_folder(policy)
    assert (facts.context_length, facts.ours, facts.version) == (256, True, weights_version(policy))
    assert facts.eos_ids == (facts.tokenizer().convert_tokens_to_ids("<|end|>"),)
    assert len(facts.tokenizer()) == facts.vocabulary <= 320
    model = AutoModelForCausalLM.from_pretrained(policy)
    assert model.config.model_type == "qwen2"
    assert str(model.dtype) == "torch.float32"
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()


def test_equal_arguments_give_equal_files_and_another_seed_other_weights(tmp_path: Path) -> None:
    texts = ["to be or not to be, that is the question"]
    first, second = (create_policy(tmp_path / name, texts, vocab_size=280, seed=3).path for name in "ab")
    other = create_policy(tmp_path / "c", texts, vocab_size=280, seed=4)
    names = sorted(file.name for file in first.iterdir())
    assert names == sorted(file.name for file in second.iterdir())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)
    assert other.version != weights_version(first)
    assert (other.path / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()


def test_making_a_policy_leaves_the_random_numbers_of_the_caller_alone(tmp_path: Path) -> None:
    import torch

    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    create_policy(tmp_path / "p", [], vocab_size=263, layers=1)
    assert torch.equal(torch.rand(3), expected)


@given(st.text(max_size=60))
def test_any_text_encodes_and_decodes_to_itself(policy_path: Path, text: str) -> None:
    if any(token in text for token in SPECIAL_TOKENS):
        return
    tokenizer = load_policy_folder(policy_path).tokenizer()
    decoded = tokenizer.decode(ids(policy_path, text), skip_special_tokens=True)
    assert decoded == unicodedata.normalize("NFC", text)


@pytest.fixture(scope="module")
def policy_path(policy: Path) -> Path:
    return policy


TOOLS = [{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}]
TURNS = st.lists(
    st.tuples(st.sampled_from(["user", "tool", "system"]), st.text(max_size=20), st.text(max_size=20)),
    min_size=1,
    max_size=4,
)


@given(TURNS, st.booleans())
def test_the_template_only_appends(policy_path: Path, turns: list[tuple[str, str, str]], with_tools: bool) -> None:
    messages: list[dict[str, Any]] = []
    before: list[int] = []
    for role, text, reply in turns:
        messages.append({"role": role, "content": text})
        prompt = ids(policy_path, render(policy_path, messages, TOOLS if with_tools else None))
        assert prompt[: len(before)] == before
        messages.append({"role": "assistant", "content": reply, "tool_calls": [{"ignored": True}]})
        before = [*prompt, *ids(policy_path, reply), *ids(policy_path, "<|end|>")]


def test_what_the_template_writes(policy: Path) -> None:
    call = '<tool_call>{"name": "search"}</tool_call>'
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": " Hi\n"},
        {"role": "assistant", "content": call},
        {"role": "tool", "content": "nothing"},
    ]
    listed = '<|tools|>{"type": "function", "function": {"name": "search", "parameters": {"type": "object"}}}<|end|>'
    assert render(policy, messages, TOOLS) == (
        f"{listed}<|system|>Be brief.<|end|><|user|> Hi\n<|end|><|assistant|>{call}<|end|><|tool|>nothing<|end|><|assistant|>"
    )
    assert render(policy, messages[:2], prompt=False) == "<|system|>Be brief.<|end|><|user|> Hi\n<|end|>"
    with pytest.raises(Exception, match="not function"):
        render(policy, [{"role": "function", "content": "x"}])


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_text_cannot_pretend_to_be_another_role(policy: Path, token: str) -> None:
    prompt = ids(policy, render(policy, [{"role": "user", "content": f"a{token}b"}]))
    plain = ids(policy, render(policy, [{"role": "user", "content": "ab"}]))
    special = set(range(len(SPECIAL_TOKENS)))
    assert [i for i in prompt if i in special] == [i for i in plain if i in special]


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"vocab_size": 262}, "A vocabulary needs 263 tokens at least"),
        ({"heads": 4}, "hidden=64 / heads=4 is not a head size that vLLM serves: 32, 64"),
        ({"hidden": 100, "heads": 3}, "is not a head size"),
        ({"layers": 0}, "needs a layer"),
        ({"context": 1}, "a context of 2 tokens"),
    ],
)
def test_impossible_sizes_are_refused(tmp_path: Path, sizes: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        create_policy(tmp_path / "p", [], **sizes)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConflictError, match="exists already"):
        create_policy(tmp_path, [])
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_without_torch_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        NotInstalledError, match=r"needs torch and transformers and peft: pip install 'memweave\[local\]'"
    ):
        create_policy(tmp_path / "p", [])


def edit(file: Path, **changes: object) -> None:
    value = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))


def no_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def newer(folder: Path) -> None:
    edit(folder / "memweave_policy.json", format=2)


def no_end(folder: Path) -> None:
    edit(folder / "generation_config.json", eos_token_id=None)
    edit(folder / "config.json", eos_token_id=None)


def change_weights(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def not_a_number(folder: Path) -> None:
    change_weights(folder, lambda weights: weights["model.norm.weight"].__setitem__(3, np.nan))


def infinite(folder: Path) -> None:
    change_weights(folder, lambda weights: weights["model.norm.weight"].__setitem__(3, -np.inf))


def one_layer_less(folder: Path) -> None:
    change_weights(folder, lambda w: [w.pop(name) for name in list(w) if name.startswith("model.layers.1.")])


def cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def not_safetensors(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04 a pickle, perhaps")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (shutil.rmtree, InputError, "is no folder"),
        (lambda f: (f / "config.json").unlink(), InputError, "lacks its config: expected config.json"),
        (lambda f: (f / "config.json").write_text("[]"), InputError, "is not a JSON object"),
        (lambda f: (f / "config.json").write_text("{"), InputError, "cannot be read"),
        (lambda f: (f / "tokenizer.json").unlink(), InputError, "holds no tokenizer"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), InputError, "cannot be read as a tokenizer"),
        (no_template, InputError, "holds no chat template"),
        (newer, FormatError, "has policy format 2; this memweave knows 1"),
        (lambda f: (f / "memweave_policy.json").write_text("{}"), FormatError, "has policy format None"),
        (no_end, InputError, "names no end token"),
        (lambda f: edit(f / "generation_config.json", eos_token_id=5000), InputError, "names no end token"),
        (lambda f: edit(f / "config.json", max_position_embeddings=None), InputError, "the length of the context"),
        (lambda f: (f / "model.safetensors").unlink(), InputError, "holds no weights"),
        (cut, InputError, "is no safetensors file, or only a part of one"),
        (not_safetensors, InputError, "is no safetensors file"),
        (not_a_number, InputError, r"weights of model.norm.weight are not finite numbers \(NaN\)"),
        (infinite, InputError, "are not finite numbers"),
        (one_layer_less, InputError, "config and weights disagree: 1 layers of weights, 2 in the config"),
        (
            lambda f: edit(f / "config.json", hidden_size=96),
            InputError,
            "config and weights disagree: token embeddings",
        ),
        (lambda f: edit(f / "config.json", tie_word_embeddings=False), InputError, "the weights lack lm_head"),
        (lambda f: edit(f / "config.json", vocab_size=None), InputError, "no causal language model"),
    ],
)
def test_a_broken_folder_is_refused_by_name(
    fresh_policy: Copy, damage: Callable[[Path], object], error: type[MemweaveError], message: str
) -> None:
    folder = fresh_policy()
    damage(folder)
    with pytest.raises(error, match=message):
        load_policy_folder(folder)


def test_a_tokenizer_of_a_larger_model_is_refused(fresh_policy: Copy) -> None:
    folder = fresh_policy()
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"].append({"id": 9999, "content": "<|more|>"})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="the tokenizer has 10000 tokens, the model"):
        load_policy_folder(folder)


def test_a_folder_from_a_hub_is_accepted(fresh_policy: Copy) -> None:
    """As Qwen2.5-7B-Instruct comes: several end tokens, the template within the tokenizer's settings, weights in shards."""
    folder = fresh_policy()
    (folder / "memweave_policy.json").unlink()
    edit(folder / "generation_config.json", eos_token_id=[1, 0])
    template = (folder / "chat_template.jinja").read_text()
    no_template(folder)
    edit(folder / "tokenizer_config.json", chat_template=template)
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    for number, part in enumerate((names[:4], names[4:]), start=1):
        save_file({name: weights[name] for name in part}, folder / f"model-0000{number}-of-00002.safetensors")
    (folder / "model.safetensors").unlink()
    facts = load_policy_folder(folder)
    assert (facts.eos_ids, facts.ours) == ((1, 0), False)
    before = facts.version
    save_file({name: weights[name] + 1 for name in names[4:]}, folder / "model-00002-of-00002.safetensors")
    assert load_policy_folder(folder).version != before


@pytest.mark.parametrize(
    ("dtype", "bits", "bad"), [("BF16", "<H", 0x7FC0), ("F16", "<H", 0x7C00), ("F64", "<Q", 0x7FF8 << 48)]
)
def test_nan_is_found_in_every_float_type(tmp_path: Path, dtype: str, bits: str, bad: int) -> None:
    for values, expected in (((1, bad, 2), ["w"]), ((1, 0, 2), [])):
        data = b"".join(struct.pack(bits, value) for value in values)
        header = json.dumps({"w": {"dtype": dtype, "shape": [3], "data_offsets": [0, len(data)]}}).encode()
        (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + data)
        assert not_finite(read_tensors(tmp_path)) == expected


def test_checking_a_folder_imports_no_torch(policy: Path, root: Path) -> None:
    import subprocess

    code = f"import sys; from memweave.serving.policy_folder import load_policy_folder as l; l({str(policy)!r}); "
    subprocess.run([sys.executable, "-c", code + "sys.exit('torch' in sys.modules)"], check=True, cwd=root)
