"""Recall of a retrieval: how much of the evidence for a question is among the first k memories found.

One memory per raw turn or passage, written and searched through the real `MemoryBank` with the configuration of
production, so the numbers are what users get. No manager and no model takes part. LoCoMo: evidence turns within the
question's own conversation, categories 1 to 4; HotpotQA and MuSiQue: supporting passages within the shared corpus.
Questions without evidence are left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import numpy as np
from pydantic import JsonValue

from memweave.embeddings import Embedder, Vectors, embedder, minilm_installed
from memweave.errors import InputError
from memweave.memory_stores import MemoryBank, SearchConfig, open_bank
from memweave.metrics import Interval, bootstrap, paired_bootstrap, recall_at_k
from memweave.records import OpKind, ProposedOp, Record, Scope, Trust
from memweave.worlds.locomo import LocomoConversation
from memweave.worlds.passages import PassageSet

PRODUCTION: Final = "memweave"
"""Name of the configuration that users get."""

_PLAIN: Final[dict[str, JsonValue]] = {
    "names_in_query": True,
    "speaker_boost": 1.0,
    "context_in_bm25": False,
    "date_in_bm25": False,
    "rrf_k": 60,
}
BASELINES: Final = {
    "dense": SearchConfig.model_validate({**_PLAIN, "dense_weight": 1.0, "bm25_weight": 0.0}),
    "bm25": SearchConfig.model_validate({**_PLAIN, "dense_weight": 0.0, "bm25_weight": 1.0}),
    "rrf": SearchConfig.model_validate({**_PLAIN, "dense_weight": 1.0, "bm25_weight": 1.0}),
}
"""What to compare with: each ranking alone, and plain reciprocal rank fusion (k = 60, equal weights), on the same engine."""

_BATCH: Final = 64
_SEED: Final = 0

Report = Callable[[str, int, int], None]
"""Called with a stage, how much of it is done, and how much there is."""


class Query(Record):
    """A question and the ids of what it should find."""

    text: str
    relevant: tuple[str, ...]
    category: str
    """LoCoMo category number, HotpotQA type, MuSiQue hops."""


class Collection(Record):
    """What is searched together: one conversation, or one corpus. It becomes one scope."""

    name: str
    memories: tuple[ProposedOp, ...]
    """One ADD per turn or passage; its first source id is what `Query.relevant` names."""
    queries: tuple[Query, ...]


class RetrievalTask(Record):
    """Collections and their questions."""

    dataset: str
    collections: tuple[Collection, ...]
    skipped: int
    """Questions left out because they name no evidence."""


class MethodScores(Record):
    """Recall of one configuration; keys are k."""

    recall: dict[int, float]
    interval: dict[int, tuple[float, float]]
    """95 % bootstrap interval over questions."""
    by_category: dict[str, dict[int, float]]
    by_collection: dict[str, dict[int, float]]
    by_query: dict[int, tuple[float, ...]]
    """Recall of each question, in the order of the task; left out of the payload."""
    difference: dict[int, tuple[float, float, float]] | None = None
    """Production minus this one, with its paired 95 % interval; `None` for production itself."""


class RetrievalReport(Record):
    """All numbers of one evaluation."""

    dataset: str
    n: int
    skipped: int
    n_by_category: dict[str, int]
    embedding: str
    configs: dict[str, SearchConfig]
    scores: dict[str, MethodScores]

    def payload(self) -> dict[str, JsonValue]:
        """Return the report as the JSON object of the command line: production at the top, the others under `baselines`."""
        dumped: dict[str, dict[str, JsonValue]] = {
            name: scores.model_dump(mode="json", exclude_none=True, exclude={"by_query"})
            for name, scores in self.scores.items()
        }
        configs = {name: config.model_dump(mode="json") for name, config in self.configs.items()}
        baselines: dict[str, JsonValue] = {
            name: {**scores, "config": configs[name]} for name, scores in dumped.items() if name != PRODUCTION
        }
        n_by_category: dict[str, JsonValue] = dict(self.n_by_category)
        return {
            "dataset": self.dataset,
            "n": self.n,
            "skipped": self.skipped,
            **dumped[PRODUCTION],
            "n_by_category": n_by_category,
            "config": {"embedding": self.embedding, **configs[PRODUCTION]},
            "baselines": baselines,
        }


def locomo_task(conversations: Sequence[LocomoConversation]) -> RetrievalTask:
    """Return LoCoMo's questions of categories 1 to 4; every turn is a memory of its speaker."""
    collections = []
    skipped = 0
    for conversation in conversations:
        memories = tuple(
            ProposedOp(
                kind=OpKind.ADD,
                text=turn.text,
                reason="raw turn",
                actor="evaluation",
                source_ids=(turn.source_id,),
                speaker=turn.speaker,
                dialogue=turn.dialogue,
                context=turn.previous,
                observed_at=turn.observed_at,
                observed_naive=turn.observed_naive,
            )
            for turn in conversation.turns
        )
        asked = [q for q in conversation.questions if q.category <= 4]
        queries = tuple(
            Query(text=q.question, relevant=q.evidence, category=str(q.category)) for q in asked if q.evidence
        )
        skipped += len(asked) - len(queries)
        collections.append(Collection(name=conversation.sample_id, memories=memories, queries=queries))
    return RetrievalTask(dataset="locomo", collections=tuple(collections), skipped=skipped)


def passage_task(passages: PassageSet) -> RetrievalTask:
    """Return a passage set's questions; every passage is a memory of nobody, `title: text`."""
    memories = tuple(
        ProposedOp(
            kind=OpKind.ADD,
            text=passage.memory_text,
            reason="passage",
            actor="evaluation",
            source_ids=(passage.id,),
            trust=Trust.IMPORT,
        )
        for passage in passages.passages
    )
    queries = tuple(Query(text=q.question, relevant=q.gold, category=q.kind) for q in passages.questions)
    return RetrievalTask(
        dataset=passages.name,
        collections=(Collection(name=passages.name, memories=memories, queries=queries),),
        skipped=0,
    )


def evaluate_retrieval(
    task: RetrievalTask,
    *,
    ks: Sequence[int] = (5, 10, 30, 60),
    embedding: str | Embedder | None = None,
    methods: Mapping[str, SearchConfig] | None = None,
    report: Report | None = None,
) -> RetrievalReport:
    """Write the memories of `task` into a bank in a temporary folder and measure recall at each k.

    methods: configurations to measure, by name; production (`SearchConfig()`) is always among them.
    A search is made for each k with `limit=k`, as a user would.  Raises: InputError without questions or for a k
    outside 1..1000.
    """
    queries = [(c, q) for c in task.collections for q in c.queries]
    if not queries:
        raise InputError(f"{task.dataset}: there is no question with evidence to evaluate.")
    if not ks or not all(1 <= k <= 1000 for k in ks):
        raise InputError(f"k must be whole numbers from 1 to 1000, not {list(ks)}.")
    configs = {PRODUCTION: SearchConfig(), **(methods or {})}
    model = _Memo(embedder(embedding or default_embedding()) if isinstance(embedding, str | None) else embedding)
    tell = report or _silent
    recalls: dict[str, dict[int, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="memweave-eval-") as folder:
        for number, (name, config) in enumerate(configs.items()):
            # The vectors are in the ledger: another configuration at most rewrites the index.
            with open_bank(folder, embedding=model, search=config) as bank:
                if number == 0:
                    _write(bank, task, tell)
                    model.embed([q.text for _, q in queries])
                recalls[name] = _recalls(bank, queries, sorted(set(ks)), name, tell)
    return _summary(task, queries, configs, recalls, model.model_id)


def default_embedding() -> str:
    """Return the model that a new data folder gets: MiniLM if it is installed, otherwise hashing."""
    return "minilm" if minilm_installed() else "hashing"


def _write(bank: MemoryBank, task: RetrievalTask, tell: Report) -> None:
    total = sum(len(c.memories) for c in task.collections)
    done = 0
    for collection in task.collections:
        for start in range(0, len(collection.memories), _BATCH):
            batch = collection.memories[start : start + _BATCH]
            tell("writing memories", done, total)
            bank.apply(batch, scope=Scope(user=collection.name))
            done += len(batch)
    tell("writing memories", done, total)


def _recalls(
    bank: MemoryBank, queries: Sequence[tuple[Collection, Query]], ks: Sequence[int], name: str, tell: Report
) -> dict[int, list[float]]:
    """Return the recall of each query, in order, by k."""
    out: dict[int, list[float]] = {k: [] for k in ks}
    for done, (collection, query) in enumerate(queries):
        tell(f"searching: {name}", done, len(queries))
        for k in ks:
            hits = bank.search(query.text, scope=Scope(user=collection.name), limit=k)
            found = [hit.memory.source_ids[0] for hit in hits]
            out[k].append(recall_at_k(found, query.relevant, k))
    tell(f"searching: {name}", len(queries), len(queries))
    return out


def _summary(
    task: RetrievalTask,
    queries: Sequence[tuple[Collection, Query]],
    configs: dict[str, SearchConfig],
    recalls: dict[str, dict[int, list[float]]],
    embedding: str,
) -> RetrievalReport:
    categories = [q.category for _, q in queries]
    names = [c.name for c, _ in queries]
    scores: dict[str, MethodScores] = {}
    for method, by_k in recalls.items():
        overall = {k: bootstrap(values, seed=_SEED) for k, values in by_k.items()}
        difference: dict[int, tuple[float, float, float]] | None = None
        if method != PRODUCTION:
            paired = {k: paired_bootstrap(recalls[PRODUCTION][k], values, seed=_SEED) for k, values in by_k.items()}
            difference = {k: (d.mean, d.low, d.high) for k, d in paired.items()}
        scores[method] = MethodScores(
            recall={k: found.mean for k, found in overall.items()},
            interval={k: _ends(found) for k, found in overall.items()},
            by_category=_means(by_k, categories),
            by_collection=_means(by_k, names),
            by_query={k: tuple(values) for k, values in by_k.items()},
            difference=difference,
        )
    return RetrievalReport(
        dataset=task.dataset,
        n=len(queries),
        skipped=task.skipped,
        n_by_category={name: categories.count(name) for name in sorted(set(categories))},
        embedding=embedding,
        configs=configs,
        scores=scores,
    )


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def _means(by_k: Mapping[int, Sequence[float]], groups: Sequence[str]) -> dict[str, dict[int, float]]:
    """Return the mean by group and k."""
    out: dict[str, dict[int, float]] = {}
    for group in sorted(set(groups)):
        picked = [i for i, g in enumerate(groups) if g == group]
        out[group] = {k: float(np.mean([values[i] for i in picked])) for k, values in by_k.items()}
    return out


class _Memo:
    """An embedder that remembers every text: configurations share vectors, and embedding stays out of the search loop."""

    def __init__(self, inner: Embedder) -> None:
        self._inner = inner
        self._known: dict[str, Vectors] = {}
        self.model_id = inner.model_id
        self.dimension = inner.dimension

    def embed(self, texts: Sequence[str]) -> Vectors:
        """Return (n, dimension) float32; each distinct text is embedded once."""
        for batch in _batches([text for text in dict.fromkeys(texts) if text not in self._known]):
            self._known.update(zip(batch, self._inner.embed(batch), strict=True))
        return np.stack([self._known[text] for text in texts]) if texts else np.empty((0, self.dimension), np.float32)


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), _BATCH):
        yield texts[start : start + _BATCH]


def _silent(stage: str, done: int, total: int) -> None:
    """Report nothing."""
