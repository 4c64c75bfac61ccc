"""Policy folders: a causal language model on disk, ready to be served by `LocalServer` or vLLM and to be trained.

`create_policy` makes a small one from nothing: the Qwen2 architecture with random weights, a byte-level BPE tokenizer (any
text encodes, and decodes to itself in Unicode form NFC), and a chat template. `load_policy_folder` checks any folder, one
from a model hub too, before something slow or silent goes wrong with it.

The chat template only ever appends: the prompt of turn t, the reply, and its end token are a token prefix of the prompt of
turn t + 1. Special tokens within a system, user or tool message are written with a space (`< |end|>`), so that a stored
text cannot pretend to be another role.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from memweave.errors import ConflictError, FormatError, InputError, NotInstalledError
from memweave.serving.server import weights_version
from memweave.serving.weight_files import TensorInfo, not_finite, read_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

POLICY_FORMAT: Final = 1
"""Version of the folders that `create_policy` writes."""
FORMAT_FILE: Final = "memweave_policy.json"
TEMPLATE_FILE: Final = "chat_template.jinja"
TOKENIZER_FILE: Final = "tokenizer.json"
TOKENIZER_SETTINGS: Final = "tokenizer_config.json"

END: Final = "<|end|>"
PAD: Final = "<|pad|>"
SPECIAL_TOKENS: Final = (PAD, END, "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|tools|>")
SMALLEST_VOCABULARY: Final = 256 + len(SPECIAL_TOKENS)
HEAD_SIZES: Final = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256)
"""What `hidden / heads` may be: the head sizes that vLLM serves, on CPU too."""


@dataclass(frozen=True)
class PolicyFolder:
    """A folder that passed the checks of `load_policy_folder`."""

    path: Path
    version: str
    """Hash of the weights."""
    context_length: int
    """Most tokens of prompt and reply together."""
    eos_ids: tuple[int, ...]
    """Tokens that end a reply."""
    vocabulary: int
    """Number of logits."""
    ours: bool
    """Made by `create_policy`, not taken from elsewhere."""

    def tokenizer(self) -> PreTrainedTokenizerFast:
        """Return the tokenizer, read once per process. Raises `NotInstalledError` without transformers."""
        return load_tokenizer(self.path, self.version)


def create_policy(
    folder: Path | str,
    texts: Iterable[str],
    *,
    vocab_size: int = 512,
    hidden: int = 64,
    layers: int = 2,
    heads: int = 2,
    intermediate: int | None = None,
    context: int = 1024,
    initializer_range: float = 0.02,
    whole: Sequence[str] = (),
    seed: int = 0,
) -> PolicyFolder:
    """Write a policy with random weights (float32, tied embeddings) to a new folder and return it.

    texts: what the tokenizer is trained on; too few give a vocabulary below `vocab_size` pieces.  hidden: width; per head
    one of `HEAD_SIZES`.  intermediate: width of the feed-forward layers, 4 x hidden by default.  context: tokens of prompt
    and reply.  initializer_range: standard deviation of the random weights. An adapter on them raises a logit by at most about
    `hidden` x this: 0.02 is for pre-training, 0.2 for training an adapter right away.
    whole: texts that are one token each wherever they occur, beyond `vocab_size`.
    Equal arguments give equal files.

    Raises `InputError` for impossible sizes, `ConflictError` when the folder exists and is not empty,
    `NotInstalledError` without torch and transformers.
    """
    _check_sizes(vocab_size, hidden, layers, heads, context)
    require_torch("Creating a policy")
    path = Path(folder).absolute()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ConflictError(f"{path} exists already. Choose another folder, or remove it")
    part = path.with_name(path.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        size, eos, pad = _write_tokenizer(part, texts, vocab_size, context, whole)
        sizes = {
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
        }
        _write_model(
            part,
            {
                **sizes,
                "vocab_size": size,
                "intermediate_size": intermediate or 4 * hidden,
                "max_position_embeddings": context,
                "eos_token_id": eos,
                "pad_token_id": pad,
                "initializer_range": initializer_range,
            },
            seed,
        )
        (part / FORMAT_FILE).write_text(json.dumps({"format": POLICY_FORMAT, "seed": seed}) + "\n")
        if path.exists():
            path.rmdir()
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return load_policy_folder(path)


def load_policy_folder(folder: Path | str) -> PolicyFolder:
    """Return the checked facts about a policy folder; nothing is loaded into memory.

    A folder without `memweave_policy.json` comes from elsewhere (a model hub), which is fine; then weights of more than
    2 GB are not searched for NaN.

    Raises `FormatError` for a folder of a newer format; `InputError` when something is missing (config, tokenizer, chat
    template, end token, weights), when weights and config disagree, or when a weight is not a finite number.
    """
    path = Path(folder).absolute()
    if not path.is_dir():
        raise InputError(
            f"{path} is no folder. A policy is a folder with config.json, model.safetensors and a tokenizer"
        )
    ours = _check_format(path)
    config = _read_json(path / "config.json", "its config")
    generation = _read_json(path / "generation_config.json", "") if (path / "generation_config.json").exists() else {}
    pieces = _check_tokenizer(path)
    tensors = read_tensors(path)
    vocabulary = _check_shapes(path, config, tensors)
    if pieces > vocabulary:
        raise InputError(
            f"{path}: the tokenizer has {pieces} tokens, the model {vocabulary}. They belong to different models"
        )
    size = sum(tensor.stop - tensor.start for tensor in tensors.values())
    if (ours or size <= 2 << 30) and (bad := not_finite(tensors)):
        raise InputError(f"{path}: weights of {bad[0]} are not finite numbers (NaN). Take an earlier checkpoint")
    eos = _eos_ids(generation) or _eos_ids(config)
    if not eos or max(eos) >= vocabulary:
        raise InputError(
            f"{path} names no end token: set eos_token_id in generation_config.json to a token of the model"
        )
    context = config.get("max_position_embeddings")
    if not isinstance(context, int) or context < 2:
        raise InputError(f"{path}: config.json gives no max_position_embeddings, the length of the context")
    return PolicyFolder(path, weights_version(path), context, eos, vocabulary, ours)


def other_text(folder: Path, base: Path) -> str | None:
    """Return what of `folder` makes other tokens of a conversation than the policy in `base` does; `None` if nothing does.

    It is `tokenizer` or `chat template`. A folder need not bring them. Raises `InputError` for one that cannot be read.
    """
    if (folder / TOKENIZER_FILE).is_file() and _rules(folder) != _rules(base):
        return "tokenizer"
    template = _template(folder)
    return "chat template" if template is not None and template != _template(base) else None


def require_torch(what: str) -> None:
    """Raise `NotInstalledError` unless the packages of the in-process policy are installed. what: who needs them."""
    missing = [name for name in ("torch", "transformers", "peft") if importlib.util.find_spec(name) is None]
    if missing:
        raise NotInstalledError(f"{what} needs {' and '.join(missing)}: pip install 'memweave[local]'")


def chat_template() -> str:
    """Return the chat template of our policy folders (Jinja)."""
    return (Path(__file__).with_name(TEMPLATE_FILE)).read_text().replace("$SPECIAL_TOKENS", repr(list(SPECIAL_TOKENS)))


def _check_sizes(vocab_size: int, hidden: int, layers: int, heads: int, context: int) -> None:
    if vocab_size < SMALLEST_VOCABULARY:
        raise InputError(
            f"A vocabulary needs {SMALLEST_VOCABULARY} tokens at least (all bytes, and roles), not {vocab_size}"
        )
    if heads < 1 or hidden % heads or hidden // heads not in HEAD_SIZES:
        sizes = ", ".join(map(str, HEAD_SIZES))
        raise InputError(f"hidden={hidden} / heads={heads} is not a head size that vLLM serves: {sizes}")
    if layers < 1 or context < 2:
        raise InputError(f"A policy needs a layer and a context of 2 tokens at least, not {layers} and {context}")


def _write_tokenizer(
    folder: Path, texts: Iterable[str], vocab_size: int, context: int, whole: Sequence[str]
) -> tuple[int, int, int]:
    """Train and write the tokenizer; return its size and the ids of the end and the padding token."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer

    # Whoever loads a Qwen2 model (transformers, TRL, vLLM) gets a Qwen2Tokenizer, with its own normaliser and
    # pre-tokeniser whatever the folder says: so train with these.
    shape = Qwen2Tokenizer(unk_token=PAD, eos_token=END, pad_token=PAD).backend_tokenizer
    bpe = Tokenizer(models.BPE())
    bpe.normalizer, bpe.pre_tokenizer = shape.normalizer, shape.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    learned = json.loads(bpe.to_str())["model"]
    merges: Any = [tuple(pair) for pair in learned["merges"]]  # what it takes; its annotation says otherwise
    tokenizer = Qwen2Tokenizer(
        vocab=learned["vocab"],
        merges=merges,
        unk_token=PAD,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[token for token in SPECIAL_TOKENS if token not in (END, PAD)],
        clean_up_tokenization_spaces=False,
        model_max_length=context,
        padding_side="left",
    )
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in whole])
    tokenizer.chat_template = chat_template()
    tokenizer.save_pretrained(folder)
    return len(tokenizer), learned["vocab"][END], learned["vocab"][PAD]


def _write_model(folder: Path, sizes: dict[str, Any], seed: int) -> None:
    import torch
    from safetensors.torch import save_file
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(**sizes, bos_token_id=None, tie_word_embeddings=True, dtype="float32")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    generation = {"eos_token_id": sizes["eos_token_id"], "pad_token_id": sizes["pad_token_id"]}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
    config.architectures = ["Qwen2ForCausalLM"]
    config.save_pretrained(folder)
    weights = {name: weight for name, weight in model.state_dict().items() if name != "lm_head.weight"}  # tied
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def _check_format(path: Path) -> bool:
    """Return whether the folder is one of ours. Raises `FormatError` for one of another format."""
    if not (path / FORMAT_FILE).exists():
        return False
    found = _read_json(path / FORMAT_FILE, "its format").get("format")
    if found != POLICY_FORMAT:
        raise FormatError(f"{path} has policy format {found!r}; this memweave knows {POLICY_FORMAT}. Update memweave")
    return True


def _check_tokenizer(path: Path) -> int:
    """Return one more than the highest token id."""
    if not (path / TOKENIZER_FILE).exists():
        raise InputError(f"{path} holds no tokenizer: expected {TOKENIZER_FILE}")
    settings = _read_json(path / TOKENIZER_SETTINGS, "its tokenizer")
    if not (path / TEMPLATE_FILE).exists() and not settings.get("chat_template"):
        raise InputError(
            f"{path} holds no chat template: expected {TEMPLATE_FILE}. A base model without one cannot chat"
        )
    tokenizer = _read_json(path / TOKENIZER_FILE, "its tokenizer")
    try:
        # Most kinds keep a map from piece to id, Unigram a list.
        vocabulary = tokenizer["model"]["vocab"]
        ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
        return 1 + int(max([*ids, *(token["id"] for token in tokenizer.get("added_tokens") or [])]))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path / TOKENIZER_FILE} cannot be read as a tokenizer. Copy it again") from error


def _rules(path: Path) -> dict[str, Any]:
    """Return the tokenizer of a folder, without the settings that its last user may have left in the file."""
    found = _read_json(path / TOKENIZER_FILE, "its tokenizer")
    return {key: value for key, value in found.items() if key not in ("version", "truncation", "padding")}


def _template(path: Path) -> str | None:
    """Return the chat template of a folder, if it has exactly one."""
    if (path / TEMPLATE_FILE).exists():
        return (path / TEMPLATE_FILE).read_text()
    if not (path / TOKENIZER_SETTINGS).exists():
        return None
    found = _read_json(path / TOKENIZER_SETTINGS, "its tokenizer").get("chat_template")
    return found if isinstance(found, str) else None


def _check_shapes(path: Path, config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> int:
    """Return the size of the vocabulary; raise unless the weights are those of a model with this config."""
    vocabulary, hidden, layers = (config.get(key) for key in ("vocab_size", "hidden_size", "num_hidden_layers"))
    if not (isinstance(vocabulary, int) and isinstance(hidden, int) and isinstance(layers, int)):
        raise InputError(
            f"{path}: config.json lacks vocab_size, hidden_size or num_hidden_layers: no causal language model"
        )
    embedding = tensors.get("model.embed_tokens.weight")
    if embedding is None or embedding.shape != (vocabulary, hidden):
        found = embedding.shape if embedding else "none"
        raise InputError(
            f"{path}: config and weights disagree: token embeddings {found}, config {(vocabulary, hidden)}"
        )
    found_layers = {int(name.split(".")[2]) for name in tensors if name.startswith("model.layers.")}
    if found_layers != set(range(layers)):
        raise InputError(
            f"{path}: config and weights disagree: {len(found_layers)} layers of weights, {layers} in the config"
        )
    if not config.get("tie_word_embeddings") and "lm_head.weight" not in tensors:
        raise InputError(f"{path}: config and weights disagree: the weights lack lm_head.weight")
    return vocabulary


def _eos_ids(config: Mapping[str, Any]) -> tuple[int, ...]:
    value = config.get("eos_token_id")
    values = value if isinstance(value, list) else [value]
    return tuple(item for item in values if isinstance(item, int))


def _read_json(file: Path, what: str) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text())
    except FileNotFoundError:
        raise InputError(f"{file.parent} lacks {what}: expected {file.name}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{file} is not a JSON object")
    return value


@lru_cache(maxsize=8)
def load_tokenizer(path: Path, version: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a policy folder, read once per process. version: of its weights."""
    require_torch("A local policy")
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"{path}: the tokenizer is not a fast one; only those can be used from several threads")
    return cast("PreTrainedTokenizerFast", tokenizer)
