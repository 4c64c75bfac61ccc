"""A case bank: what is kept, what a query is shown and never shown, and how cases move."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from memweave.errors import EmbeddingMismatchError, InputError, UnknownMemoryError, UsageError
from memweave.memory_stores import CaseBank, CaseSettings, open_bank, open_cases, retrieval_policy
from memweave.memory_stores.case_head import QHead
from memweave.memory_stores.case_kernel import Kernel
from memweave.memory_stores.case_retrieval import CosineTopK, ECKernelSoftmax, Explore, NeuralQTopK, RandomK
from memweave.records import Case, NewCase, OpStatus, ReplayRow, Scope, new_id

PLAN = '{"plan": [{"id": 1, "description": "look it up"}]}'


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cases")


@pytest.fixture(scope="module")
def bank(home: Path) -> Iterator[CaseBank]:
    with open_cases(home, embedding="hashing") as opened:
        yield opened


@pytest.fixture
def scope() -> Scope:
    return Scope(tenant=str(new_id()), user="anna")


def case(task: str = "feed the cats", reward: float | None = 1.0, plan: str = PLAN, **given: object) -> NewCase:
    return NewCase.model_validate({"task": task, "plan": plan, "reward": reward, **given})


def kept(bank: CaseBank, new: NewCase, scope: Scope) -> Case:
    written = bank.write(new, scope=scope)
    assert written is not None
    return written


def test_a_case_comes_back_as_it_was_written(bank: CaseBank, scope: Scope) -> None:
    new = case(plans=("first", PLAN), task_id="t1", family="pets", iteration=3, run_id="run", metadata={"answer": "42"})
    written = kept(bank, new, scope)
    assert NewCase.model_validate(written.model_dump(exclude={"id", "scope", "recorded_at"})) == new
    assert bank.get(written.id, scope=scope) == written
    assert bank.cases(scope=scope) == [written]
    assert bank.count(scope=scope) == 1
    assert written.positive
    assert not kept(bank, case(reward=0.5), scope).positive


def test_what_nobody_verified_is_refused_and_the_log_says_so(bank: CaseBank, scope: Scope) -> None:
    assert bank.write(case(reward=None, run_id="r7"), scope=scope) is None
    (op,) = bank.log(scope=scope)
    assert (op.status, op.error, op.run_id) == (OpStatus.FAILED, "nobody verified its answer", "r7")
    assert bank.count(scope=scope) == 0


def test_a_bank_of_solved_tasks_alone_refuses_failures_and_says_so(home: Path, scope: Scope) -> None:
    with open_cases(home, settings=CaseSettings(positive_only=True, verified_only=False)) as bank:
        assert bank.write(case(reward=1.0), scope=scope) is not None
        for reward in (0.0, 0.5, None):
            assert bank.write(case(reward=reward), scope=scope) is None
            error = bank.log(scope=scope, limit=1, newest=True)[0].error
            assert error == f"only solved tasks are kept, and its reward is {reward}"
        assert bank.count(scope=scope) == 1


def test_settings_keep_what_is_not_verified_and_leave_out_what_is_there_already(home: Path, scope: Scope) -> None:
    with open_cases(home, settings=CaseSettings(verified_only=False, dedup_threshold=0.99)) as bank:
        first = kept(bank, case(reward=None), scope)
        assert bank.write(case(reward=None), scope=scope) is None
        assert f"case {first.id} says the same" in str(bank.log(scope=scope, limit=1, newest=True)[0].error)
        assert bank.write(case(reward=0.0), scope=scope) is not None
        assert bank.write(case(reward=None, plan="another"), scope=scope) is not None
        assert bank.write(case("paint the house", None), scope=scope) is not None


def test_the_oldest_case_goes_when_the_bank_is_full_and_undo_brings_it_back(home: Path, scope: Scope) -> None:
    with open_cases(home, settings=CaseSettings(max_cases=3)) as bank:
        written = [kept(bank, case(f"task {i}"), scope) for i in range(5)]
        assert [each.id for each in bank.cases(scope=scope)] == [each.id for each in written[2:]]
        gone = bank.log(scope=scope, limit=1, newest=True)[0]
        assert gone.reason == "the oldest of more than 3 cases"
        bank.undo(gone.id, scope=scope)
        assert written[1].id in {each.id for each in bank.cases(scope=scope)}


def test_cosine_finds_the_nearest_tasks_whatever_came_of_them(bank: CaseBank, scope: Scope) -> None:
    cats = kept(bank, case("feed the cats", 0.0), scope)
    kept(bank, case("paint the old garage", 1.0), scope)
    found = bank.retrieve("feed three cats", scope=scope, k=1, policy=CosineTopK())
    assert [each.case for each in found] == [cats]
    assert found[0].score == pytest.approx(
        float(bank.vectors([cats.id], scope=scope)[0] @ bank.embed(["feed three cats"])[0]), abs=1e-3
    )


@pytest.mark.parametrize("policy", ["none", "cosine_topk", "neural_q_topk", "ec_kernel_softmax", "random_k"])
def test_an_empty_bank_and_one_smaller_than_k_are_no_problem(bank: CaseBank, scope: Scope, policy: str) -> None:
    assert bank.retrieve("anything", scope=scope, k=4, policy=retrieval_policy(policy)) == []
    ids = {kept(bank, case(f"task {i}"), scope).id for i in range(3)}
    found = [each.case.id for each in bank.retrieve("anything", scope=scope, k=9, policy=retrieval_policy(policy))]
    assert len(found) == len(set(found)) == (0 if policy == "none" else 3)
    assert set(found) <= ids
    assert bank.retrieve("anything", scope=scope, k=0, policy=retrieval_policy(policy)) == []


def test_a_q_function_of_another_embedding_is_refused(bank: CaseBank, scope: Scope) -> None:
    kept(bank, case(), scope)
    zeros = [np.zeros(shape, dtype=np.float32) for shape in ((3, 512), (3,), (2, 3), (2,))]
    with pytest.raises(EmbeddingMismatchError, match="'minilm'"):
        bank.retrieve("q", scope=scope, policy=NeuralQTopK(QHead(*zeros, encoder="minilm")))
    assert bank.retrieve("q", scope=scope, policy=NeuralQTopK(QHead(*zeros, encoder="hashing:256")))


def test_a_kernel_of_another_embedding_is_refused(bank: CaseBank, scope: Scope) -> None:
    kernel = Kernel(weights=np.eye(3, dtype=np.float32), encoder="other")
    with pytest.raises(EmbeddingMismatchError, match="other"):
        bank.retrieve("feed", scope=scope, policy=ECKernelSoftmax(kernel=kernel))


def test_experience_and_a_learned_kernel_decide_what_is_shown(bank: CaseBank, scope: Scope) -> None:
    good, bad = (kept(bank, case(task), scope) for task in ("feed the cats", "feed the dogs"))
    rows = [ReplayRow(query="feed them", case_id=each.id, reward=r) for each, r in ((good, 1.0), (bad, 0.0))]
    bank.add_replay(rows, scope=scope)
    kernel = Kernel(weights=np.eye(len(bank.embed(["x"])[0]), dtype=np.float32), encoder=bank.encoder)
    policy = ECKernelSoftmax(bank.uses(scope=scope), kernel, Explore("topk"))
    assert [found.case for found in bank.retrieve("feed them", scope=scope, k=2, policy=policy)] == [good, bad]


def test_scopes_see_nothing_of_each_other(bank: CaseBank, scope: Scope) -> None:
    other = Scope(tenant=scope.tenant, user="boris")
    written = kept(bank, case(), scope)
    bank.add_replay([ReplayRow(query="q", case_id=written.id, reward=1.0)], scope=scope)
    assert bank.cases(scope=other) == bank.replay(scope=other) == []
    assert bank.retrieve("feed the cats", scope=other, policy=CosineTopK()) == []
    with pytest.raises(UnknownMemoryError):
        bank.get(written.id, scope=other)
    with pytest.raises(UnknownMemoryError):
        bank.vectors([written.id], scope=other)


def test_cases_are_no_memories(home: Path, bank: CaseBank, scope: Scope) -> None:
    kept(bank, case(), scope)
    with open_bank(home) as memories:
        assert memories.memories(scope=scope) == []
        assert memories.search("feed the cats", scope=scope) == []


@pytest.mark.parametrize("allowed", [False, True])
@pytest.mark.parametrize("policy", [CosineTopK(), RandomK(), NeuralQTopK(prefilter=2)])
def test_a_query_is_never_shown_its_own_case_of_the_same_iteration(
    home: Path, scope: Scope, policy: CosineTopK, allowed: bool
) -> None:
    with open_cases(home, settings=CaseSettings(allow_self=allowed)) as bank:
        own = [kept(bank, case("feed the cats", task_id="t", iteration=i), scope).id for i in range(6)]
        other = kept(bank, case("feed the dogs", task_id="u", iteration=6), scope).id
        found = {
            e.case.id for e in bank.retrieve("feed the cats", scope=scope, k=9, policy=policy, task_id="t", iteration=5)
        }
        assert found == ({other, *own[:5]} if allowed else {other})


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12), st.integers(0, 2**32 - 1))
def test_read_before_write(bank: CaseBank, turns: list[tuple[int, bool]], seed: int) -> None:
    """Whatever order queries come in: what is read is what others had written before, and never one's own outcome."""
    scope, rng = Scope(tenant=str(new_id()), user="anna"), np.random.default_rng(seed)
    written: dict[str, str] = {}
    for number, (task, random) in enumerate(turns):
        policy = RandomK() if random else CosineTopK()
        found = bank.retrieve(
            f"task {task}", scope=scope, k=20, policy=policy, task_id=str(task), iteration=number, rng=rng
        )
        expected = {one for one, of in written.items() if of != str(task)}
        assert {str(each.case.id) for each in found} == expected
        new = kept(bank, case(f"task {task}", task_id=str(task), iteration=number), scope)
        written[str(new.id)] = str(task)


def test_threads_may_read_and_write_at_once(bank: CaseBank, scope: Scope) -> None:
    def work(number: int) -> bool:
        found = bank.retrieve("feed the cats", scope=scope, policy=RandomK(), k=50, task_id=str(number))
        kept(bank, case(task_id=str(number)), scope)
        return all(each.case.task_id != str(number) for each in found)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(40)))
    assert bank.count(scope=scope) == 40


def test_a_full_bank_stays_full_under_concurrent_writes(home: Path, scope: Scope) -> None:
    with open_cases(home, settings=CaseSettings(max_cases=5)) as bank, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: bank.write(case(f"task {i}"), scope=scope), range(20)))
        assert bank.count(scope=scope) == 5


def test_experience_is_kept_in_order_and_erased_with_its_user(home: Path, bank: CaseBank, scope: Scope) -> None:
    written = kept(bank, case(), scope)
    rows = [ReplayRow(query=f"q{i}", case_id=written.id, reward=i / 10, probability=0.5, iteration=i) for i in range(5)]
    bank.add_replay(rows[:2], scope=scope)
    bank.add_replay(rows[2:], scope=scope)
    bank.add_replay([], scope=scope)
    assert bank.replay(scope=scope) == rows
    assert bank.replay(scope=scope, limit=2) == rows[3:]
    with open_bank(home) as memories:
        memories.purge(scope=scope)
    assert bank.replay(scope=scope) == bank.cases(scope=scope) == []


def test_a_closed_bank_says_so(tmp_path: Path, scope: Scope) -> None:
    bank = open_cases(tmp_path, embedding="hashing")
    bank.close()
    for call in (lambda: bank.cases(scope=scope), lambda: bank.write(case(), scope=scope)):
        with pytest.raises(UsageError, match="is closed"):
            call()


def test_cases_survive_closing(tmp_path: Path, scope: Scope) -> None:
    with open_cases(tmp_path, embedding="hashing") as bank:
        written = kept(bank, case(), scope)
        vector = bank.vectors([written.id], scope=scope)
    with open_cases(tmp_path) as bank:
        assert bank.cases(scope=scope) == [written]
        assert np.array_equal(bank.vectors([written.id], scope=scope), vector)


def test_search_graphs_find_what_comparing_with_all_found(tmp_path: Path, scope: Scope) -> None:
    lines = [json.dumps({"question": f"errand {n} for {n % 97}", "plan": PLAN, "reward": 1}) for n in range(2_600)]
    asked = [f"errand {n} for {n % 97}" for n in range(0, 2_600, 100)]

    def found(bank: CaseBank) -> float:
        """Return the share of tasks that find themselves. A search graph is built by several threads and may miss one."""
        near = [bank.retrieve(t, scope=scope, k=1, policy=CosineTopK())[0].case.task for t in asked]
        return sum(a == b for a, b in zip(near, asked, strict=True)) / len(asked)

    with open_cases(tmp_path, embedding="hashing:1024") as bank:
        bank.import_(lines, scope=scope)
        assert found(bank) == 1.0
        assert bank.optimize()
        assert found(bank) >= 0.9
        late = kept(bank, case("walk the llama"), scope)
    with open_cases(tmp_path) as bank:
        assert found(bank) >= 0.9
        assert bank.retrieve("walk the llama", scope=scope, k=1, policy=CosineTopK())[0].case.id == late.id
        gone = bank.retrieve(asked[3], scope=scope, k=1, policy=CosineTopK())[0].case.id
        bank.remove(gone, scope=scope, reason="a mistake")
        assert bank.retrieve(asked[3], scope=scope, k=1, policy=CosineTopK())[0].case.id != gone


def test_a_ledger_of_before_there_were_cases_gets_their_table(tmp_path: Path, scope: Scope) -> None:
    import sqlite3

    with open_bank(tmp_path, embedding="hashing"):
        pass
    with sqlite3.connect(tmp_path / "ledger.sqlite") as raw:
        raw.execute("DROP TABLE memweave_replay")
    with open_cases(tmp_path) as bank:
        bank.add_replay([ReplayRow(query="q", case_id=new_id(), reward=1.0)], scope=scope)
        assert len(bank.replay(scope=scope)) == 1


def test_an_export_comes_back_as_the_same_cases(bank: CaseBank, scope: Scope) -> None:
    first = kept(bank, case(task_id="t", family="pets", metadata={"a": 1}), scope)
    second = kept(bank, case("paint", 0.0, plans=("x", "y")), scope)
    lines = list(bank.export(scope=scope))
    assert json.loads(lines[0]) | {"question": "feed the cats", "plan": PLAN, "reward": 1.0} == json.loads(lines[0])
    other = Scope(tenant=scope.tenant, user="boris")
    assert bank.import_(lines, scope=other) == (2, 0)
    assert bank.import_(lines, scope=other) == bank.import_(lines, scope=scope) == (0, 0)
    back = bank.cases(scope=other)
    unowned = {"scope", "recorded_at"}
    assert {c.id: c.model_dump(exclude=unowned) for c in back} == {
        c.id: c.model_dump(exclude=unowned) for c in (first, second)
    }


def test_both_public_formats_can_be_read_and_twice_is_once(bank: CaseBank, scope: Scope) -> None:
    lines = [
        '{"question": "Who?", "plan": "{\\"plan\\": []}", "reward": 1}',
        '{"question": "Who?", "plan": {"plan": [{"id": 1}]}, "reward": 0, "extra": true}',
        "",
        '{"case": "Where?", "plan": "look", "case_label": "positive"}',
        '{"case": "Where?", "plan": "look", "case_label": "negative"}',
    ]
    assert bank.import_([*lines, lines[0]], scope=scope).cases == 4
    assert bank.import_(lines, scope=scope).cases == 0
    found = {(c.task, c.plan, c.reward) for c in bank.cases(scope=scope)}
    assert found == {
        ("Who?", '{"plan": []}', 1.0),
        ("Who?", '{"plan": [{"id": 1}]}', 0.0),
        ("Where?", "look", 1.0),
        ("Where?", "look", 0.0),
    }


def test_experience_goes_with_its_cases_and_comes_once(bank: CaseBank, scope: Scope) -> None:
    written = kept(bank, case(), scope)
    rows = [
        ReplayRow(query="q", task_id="t", case_id=written.id, reward=1.0, iteration=2, run_id="r", probability=0.5),
        ReplayRow(query="q", case_id=written.id, reward=0.0, credit=0.5),
        ReplayRow(query="q", case_id=written.id, reward=0.0, credit=0.5),  # the same again is another time
    ]
    bank.add_replay(rows, scope=scope)
    assert len(list(bank.export(scope=scope))) == 1
    lines = list(bank.export(scope=scope, replay=True))
    other = Scope(tenant=scope.tenant, user="boris")
    assert bank.import_(lines, scope=other) == (1, 3)
    assert bank.replay(scope=other) == rows
    assert bank.import_(lines, scope=other) == bank.import_(lines, scope=scope) == (0, 0)
    assert list(bank.export(scope=other, replay=True)) == lines
    assert bank.import_([*lines, lines[1]], scope=scope) == (0, 1)
    shown = bank.uses(scope=other)
    assert {c: (uses.queries.shape[0], uses.q.tolist()) for c, uses in shown.items()} == {written.id: (3, [1, 0, 0])}
    assert np.allclose(shown[written.id].queries, bank.embed(["q"]))


def test_a_wrong_row_of_experience_keeps_the_cases_out_too(bank: CaseBank, scope: Scope) -> None:
    good = '{"question": "q", "plan": "p", "reward": 1}'
    for wrong in (
        '{"replay": 3}',
        '{"replay": {"query": "q", "reward": 1}}',
        '{"replay": {"query": "q", "case_id": "7", "reward": 1}}',
    ):
        with pytest.raises(InputError, match=r"line 2 is no case: .*Nothing was imported"):
            bank.import_([good, wrong], scope=scope)
    assert bank.cases(scope=scope) == bank.replay(scope=scope) == []


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("{", "Expecting property name"),
        ("[1]", "valid dictionary"),
        ('{"plan": "p", "reward": 1}', "no text in question or case"),
        ('{"question": " ", "plan": "p", "reward": 1}', "no text in question or case"),
        ('{"question": "q", "reward": 1}', "no plan"),
        ('{"question": "q", "plan": 3, "reward": 1}', "no plan"),
        ('{"question": "q", "plan": "p"}', "neither reward nor case_label"),
        ('{"question": "q", "plan": "p", "reward": "yes"}', "not a number"),
        ('{"question": "q", "plan": "p", "reward": 2}', "reward: Input should be less than or equal to 1"),
        ('{"question": "q", "plan": "p", "reward": NaN}', "NaN is no JSON"),
        ('{"case": "q", "plan": "p", "case_label": "good"}', "not positive or negative"),
        ('{"question": "q", "plan": "p", "reward": 1, "case_id": "7"}', "badly formed"),
        ("[" * 100_000, "no case"),
    ],
)  # fmt: skip
def test_a_wrong_line_is_named_and_nothing_is_imported(bank: CaseBank, scope: Scope, line: str, why: str) -> None:
    good = '{"question": "q", "plan": "p", "reward": 1}'
    with pytest.raises(InputError, match=r"pool\.jsonl line 3 is no case: .*Nothing was imported") as error:
        bank.import_([good, "", line], scope=scope, source="pool.jsonl line")
    assert why in str(error.value)
    assert bank.count(scope=scope) == 0


@pytest.mark.data
def test_the_released_pool_comes_in_whole(bank: CaseBank, scope: Scope, data: Path) -> None:
    lines = (data / "memento/memory.jsonl").read_text().splitlines()
    assert bank.import_(lines, scope=scope).cases == 1_278
    assert sum(case.positive for case in bank.cases(scope=scope)) == 897


@pytest.mark.parametrize(("task", "k"), [(" ", 4), ("", 4), ("q", -1)])
def test_what_cannot_be_asked_is_refused(bank: CaseBank, scope: Scope, task: str, k: int) -> None:
    with pytest.raises(InputError, match="give a task in words, and 0 or more"):
        bank.retrieve(task, scope=scope, k=k, policy=CosineTopK())


def test_async_twins_do_the_same(bank: CaseBank, scope: Scope) -> None:
    async def story() -> None:
        written = await bank.awrite(case(), scope=scope)
        assert written is not None
        assert await bank.aget(written.id, scope=scope) == written
        assert await bank.acases(scope=scope) == [written]
        assert await bank.acount(scope=scope) == 1
        (found,) = await bank.aretrieve("feed the cats", scope=scope, policy=CosineTopK())
        assert found.case == written
        row = ReplayRow(query="q", case_id=written.id, reward=1.0)
        await bank.aadd_replay([row], scope=scope)
        assert await bank.areplay(scope=scope) == [row]
        assert (await bank.avectors([written.id], scope=scope)).shape == (await bank.aembed(["x"])).shape
        assert set(await bank.auses(scope=scope)) == {written.id}
        lines = await bank.aexport(scope=scope, replay=True)
        assert await bank.aimport(lines, scope=scope) == (0, 0)
        gone = await bank.aremove(written.id, scope=scope, reason="wrong")
        assert await bank.acount(scope=scope) == 0
        await bank.aundo(gone.id, scope=scope)
        assert [op.kind for op in await bank.alog(scope=scope)] == ["ADD", "DELETE", "ADD"]

    asyncio.run(story())
