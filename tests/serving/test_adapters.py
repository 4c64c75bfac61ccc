from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("peft")

from safetensors.numpy import load_file, save_file

from memweave.errors import AdapterError
from memweave.serving import adapters
from memweave.serving.adapters import check_adapter, check_weights, copy_whole
from memweave.serving.policy_folder import create_policy, other_text
from memweave.serving.server import weights_version

Make = Callable[..., Path]
# Two tests ask for that.
pytestmark = pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")


def test_an_adapter_of_the_base_passes_with_its_facts(make_adapter: Make, policy: Path) -> None:
    folder = make_adapter("a")
    adapter = check_adapter(folder, policy, max_rank=4)
    assert (adapter.folder, adapter.rank, adapter.version) == (folder, 4, weights_version(folder))


def test_too_high_a_rank(make_adapter: Make, policy: Path) -> None:
    with pytest.raises(AdapterError, match="has rank 4, the server takes at most 2: start vLLM with --max-lora-rank 4"):
        check_adapter(make_adapter("a"), policy, max_rank=2)


def test_an_adapter_of_another_base(make_adapter: Make, policy: Path, tmp_path: Path) -> None:
    texts = ["some text"]
    deeper = create_policy(tmp_path / "deeper", texts, vocab_size=280, layers=3).path
    wider = create_policy(tmp_path / "wider", texts, vocab_size=280, hidden=128).path
    twin = create_policy(tmp_path / "twin", texts, vocab_size=280, seed=9).path
    for other in (deeper, wider, twin):
        folder = make_adapter(f"of-{other.name}", base=other)
        with pytest.raises(AdapterError, match="was trained on .*: their weights differ"):
            check_adapter(folder, policy)
        shutil.rmtree(other)  # then only its shapes can tell
    with pytest.raises(AdapterError, match=r"changes model.layers.2.* it is of another base"):
        check_adapter(tmp_path / "of-deeper", policy)
    with pytest.raises(AdapterError, match="is of another base: .* has shape"):
        check_adapter(tmp_path / "of-wider", policy)
    check_adapter(tmp_path / "of-twin", policy)


def test_a_base_that_moved_is_still_the_base(make_adapter: Make, policy: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(policy, tmp_path / "elsewhere")
    assert check_adapter(make_adapter("a"), moved).rank == 4


def new_word(folder: Path) -> None:
    """Let the tokenizer read `Alice` as one token."""
    file = folder / "tokenizer.json"
    rules = json.loads(file.read_text())
    word = {**rules["added_tokens"][-1], "id": len(rules["model"]["vocab"]), "content": "Alice", "special": False}
    file.write_text(json.dumps({**rules, "added_tokens": [*rules["added_tokens"], word]}))


def new_template(folder: Path) -> None:
    file = folder / "chat_template.jinja"
    file.write_text("Be brief. " + file.read_text())


@pytest.mark.parametrize(("edit", "what"), [(new_word, "tokenizer"), (new_template, "chat template")])
def test_weights_that_bring_another_tokenizer_or_chat_template(
    make_adapter: Make, policy: Path, tmp_path: Path, edit: Callable[[Path], None], what: str
) -> None:
    """A run saves them beside its adapter; so one of an older base is known by them even where all shapes are the same."""
    adapter, whole = make_adapter("a"), Path(shutil.copytree(policy, tmp_path / "whole"))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(policy / name, adapter)
    used = json.loads((adapter / "tokenizer.json").read_text()) | {"padding": {"strategy": "BatchLongest"}}
    (adapter / "tokenizer.json").write_text(json.dumps(used))  # its last user padded; the tokens are the same
    assert check_adapter(adapter, policy).version == weights_version(adapter)
    assert check_weights(whole, policy) == weights_version(policy)
    for folder, check in ((adapter, check_adapter), (whole, check_weights)):
        edit(folder)
        with pytest.raises(AdapterError, match=f"{folder} has another {what} than {policy}, .* of another base policy"):
            check(folder, policy)


def test_a_chat_template_may_stand_among_the_settings(policy: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(policy, tmp_path / "whole"))
    settings = json.loads((whole / "tokenizer_config.json").read_text())
    template = (whole / "chat_template.jinja").read_text()
    (whole / "chat_template.jinja").unlink()
    for given, other in ((template, None), (template + " ", "chat template"), ([{"name": "tools"}], None)):
        (whole / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": given}))
        assert other_text(whole, policy) == other


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "uses use_dora"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "uses rank_pattern"),
        ({"bias": "all"}, "uses bias"),
        ({"target_modules": ["embed_tokens"]}, "serves no adapter on embeddings|is not part of a LoRA"),
    ],
)
def test_what_servers_cannot_apply(make_adapter: Make, policy: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        check_adapter(make_adapter("a", **settings), policy)


def change(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    edit(weights)
    save_file(weights, folder / "adapter_model.safetensors")


def first(weights: dict[str, Any]) -> str:
    return sorted(weights)[0]


def cut(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])


def other_kind(folder: Path) -> None:
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"peft_type": "IA3"}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), "holds no adapter: expected adapter_config.json"),
        (lambda f: (f / "adapter_config.json").write_text("{"), "cannot be read"),
        (
            lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
            "say r=None, its weights have rank 4",
        ),
        (other_kind, "uses peft_type IA3, which the server cannot serve"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "expected adapter_model.safetensors"),
        (cut, "or only a part of one"),
        (lambda f: change(f, lambda w: w[first(w)].__setitem__((0, 0), np.nan)), "holds NaN or infinity"),
        (lambda f: change(f, lambda w: w.pop(first(w))), "holds only half of the pair"),
        (lambda f: change(f, lambda w: [w.pop(k) for k in list(w)]), "holds no weights"),
    ],
)
def test_a_broken_adapter_is_refused_by_name(
    make_adapter: Make, policy: Path, damage: Callable[[Path], object], message: str
) -> None:
    folder = make_adapter("a")
    damage(folder)
    with pytest.raises(AdapterError, match=message):
        check_adapter(folder, policy)


def test_full_weights_are_no_adapter(policy: Path) -> None:
    with pytest.raises(AdapterError, match="holds full weights. vLLM serves LoRA adapters here"):
        check_adapter(policy, policy)


def test_a_copy_appears_whole_or_not_at_all(make_adapter: Make, policy: Path, tmp_path: Path) -> None:
    source = make_adapter("a")
    copy_whole(source, tmp_path / "served" / "a-v1")
    assert weights_version(tmp_path / "served" / "a-v1") == weights_version(source)
    (source / "adapter_model.safetensors").unlink()
    with pytest.raises(AdapterError, match="holds no adapter"):
        copy_whole(source, tmp_path / "served" / "a-v2")
    assert [path.name for path in (tmp_path / "served").iterdir()] == ["a-v1"]


def test_a_copy_that_ends_with_its_process_leaves_no_adapter(
    make_adapter: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def end(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(adapters, "_sync", end)  # called when the first file is copied
    with pytest.raises(KeyboardInterrupt):
        copy_whole(make_adapter("a"), tmp_path / "served" / "a-v1")
    assert not (tmp_path / "served" / "a-v1").exists()
