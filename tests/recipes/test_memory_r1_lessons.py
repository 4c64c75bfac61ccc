"""Lessons of pre-training: what is packed is what each item is alone, and its prompts are those of the agents."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pytest
from langchain_core.messages import BaseMessage

from memweave.agents.answerer import render_answer
from memweave.agents.manager import render_manage
from memweave.agents.roles import AnswerRequest, ManageRequest
from memweave.recipes.memory_r1 import dialogs, players
from memweave.recipes.memory_r1.situations import Situation
from memweave.recipes.memory_r1.teaching import FILLER, FORMS
from memweave.serving.policy_folder import PolicyFolder, create_policy, load_policy_folder
from memweave.worlds.dialog_world import DialogWorld

torch = pytest.importorskip("torch")

from memweave.recipes.memory_r1 import lessons  # noqa: E402 - after importorskip
from memweave.recipes.memory_r1.lessons import Item, lesson, pack, token_ids  # noqa: E402
from memweave.recipes.memory_r1.pretraining import MARKERS, texts  # noqa: E402
from memweave.recipes.pretraining import IGNORED, Packed, loss_of  # noqa: E402

if TYPE_CHECKING:
    from torch import Tensor

Ids = list[tuple[list[int], list[int]]]


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicyFolder:
    return create_policy(
        tmp_path_factory.mktemp("policy") / "base",
        texts(0, 60),
        vocab_size=500,
        layers=2,
        initializer_range=0.05,
        whole=MARKERS,
    )


@pytest.fixture(scope="module")
def model(policy: PolicyFolder) -> Iterator[Any]:
    from transformers import AutoModelForCausalLM

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield AutoModelForCausalLM.from_pretrained(policy.path)
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def made(policy: PolicyFolder) -> list[Ids]:
    """Return lessons of both roles and of different lengths."""
    rng = random.Random(2)
    return [
        token_ids(policy, lesson(role, size, 3, rng, None))
        for role, size in (("manager", 3), ("answerer", 7), ("manager", 1))
    ]


def alone(model: Any, prompt: list[int], reply: list[int]) -> Tensor:
    """Return the logits from which each token of the reply is predicted, (tokens, vocabulary)."""
    with torch.no_grad():
        logits: Tensor = model(torch.tensor([prompt + reply])).logits[0]
    return logits[len(prompt) - 1 : -1]


def packed_logits(model: Any, batch: Packed) -> Tensor:
    mask = torch.zeros(batch.sees.shape).masked_fill(~batch.sees, torch.finfo(torch.float32).min)
    with torch.no_grad():
        logits: Tensor = model(input_ids=batch.ids, position_ids=batch.positions, attention_mask=mask).logits
    return logits


def test_logits_of_packed_items_are_those_of_each_alone(model: Any, made: list[Ids]) -> None:
    batch = pack(made)
    logits = packed_logits(model, batch)
    for row, items in enumerate(made):
        learned = logits[row][batch.labels[row] != IGNORED]
        expected = torch.cat([alone(model, prompt, reply) for prompt, reply in items])
        assert learned.shape == expected.shape
        assert expected.std() > 0.05  # there is something to tell apart
        assert float((learned - expected).abs().max()) < 1e-5


def test_the_loss_is_the_mean_over_all_tokens_of_all_replies(model: Any, made: list[Ids]) -> None:
    everything = [item for items in made for item in items]
    logits = torch.cat([alone(model, prompt, reply) for prompt, reply in everything])
    labels = torch.tensor([token for _, reply in everything for token in reply])
    expected = torch.nn.functional.cross_entropy(logits, labels)
    with torch.no_grad():
        assert abs(float(loss_of(model, pack(made))) - float(expected)) < 1e-5


def test_a_lesson_is_the_common_beginning_once_and_then_each_rest(made: list[Ids]) -> None:
    batch = pack(made)
    longest = 0
    for row, items in enumerate(made):
        prompts = [prompt for prompt, _ in items]
        common = _common(prompts)
        at = common
        assert batch.ids[row, :common].tolist() == prompts[0][:common]
        assert batch.positions[row, :common].tolist() == list(range(common))
        assert (batch.labels[row, :common] == IGNORED).all()
        for prompt, reply in items:
            rest = prompt[common:] + reply
            here = slice(at, at + len(rest))
            assert batch.ids[row, here].tolist() == rest
            assert batch.positions[row, here].tolist() == list(range(common, common + len(rest)))
            before = len(prompt) - common - 1
            assert batch.labels[row, here].tolist() == [IGNORED] * before + reply + [IGNORED]
            sees = batch.sees[row, 0, here]
            assert sees[:, :common].all()
            assert (sees[:, here] == torch.ones(len(rest), len(rest), dtype=torch.bool).tril()).all()
            assert not sees[:, common:at].any()
            assert not sees[:, at + len(rest) :].any()
            at += len(rest)
        assert (batch.labels[row, at:] == IGNORED).all()
        longest = max(longest, at)
    assert batch.ids.shape == batch.positions.shape == batch.labels.shape == (len(made), longest)
    assert batch.sees.shape == (len(made), 1, longest, longest)


def _common(prompts: Sequence[list[int]]) -> int:
    """Return the length of the common beginning; each prompt keeps a token of its own, from which its reply starts."""
    count = 0
    for tokens in zip(*(prompt[:-1] for prompt in prompts), strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count


def test_equal_prompts_share_all_but_their_last_token() -> None:
    batch = pack([[([1, 2, 3], [4, 9]), ([1, 2, 3], [5, 9])]])
    assert batch.ids.tolist() == [[1, 2, 3, 4, 9, 3, 5, 9]]
    assert batch.positions.tolist() == [[0, 1, 2, 3, 4, 2, 3, 4]]
    assert batch.labels.tolist() == [[IGNORED, IGNORED, 4, 9, IGNORED, 5, 9, IGNORED]]


def test_a_prompt_that_begins_another_one_and_prompts_with_nothing_in_common() -> None:
    batch = pack([[([1, 2], [7]), ([1, 2, 3], [8])], [([1, 2], [7]), ([3, 2], [8])]])
    assert batch.ids.tolist() == [[1, 2, 7, 2, 3, 8], [1, 2, 7, 3, 2, 8]]
    assert batch.positions.tolist() == [[0, 1, 2, 1, 2, 3], [0, 1, 2, 0, 1, 2]]
    assert batch.labels.tolist() == [
        [IGNORED, 7, IGNORED, IGNORED, 8, IGNORED],
        [IGNORED, 7, IGNORED, IGNORED, 8, IGNORED],
    ]
    assert not batch.sees[1, 0, 3:, :3].any()


def test_replies_end_with_the_end_token(policy: PolicyFolder) -> None:
    items = lesson("answerer", 4, 5, random.Random(0), None)
    for item, (_, reply) in zip(items, token_ids(policy, items), strict=True):
        assert reply[-1] == policy.eos_ids[0]
        assert reply.count(policy.eos_ids[0]) == 1
        assert policy.tokenizer().decode(reply, skip_special_tokens=True) == item.reply


# prompts are what agents are shown


def seen() -> tuple[list[ManageRequest], list[AnswerRequest]]:
    """Return every request of one dialogue, its questions included, as the episode graph makes them."""
    managed: list[ManageRequest] = []
    asked: list[AnswerRequest] = []

    def manage(request: ManageRequest) -> str:
        managed.append(request)
        return players.MANAGERS["oracle"].reply(request)

    def answer(request: AnswerRequest) -> str:
        asked.append(request)
        return players.ANSWERERS["oracle"].reply(request)

    world = DialogWorld(sessions=4, session_turns=6, keys=4, friend_keys=2, follow_ups=4)
    dialogue = world.dialogues("val", 1)
    with dialogs.scratch_bank() as bank:
        dialogs.construct(bank, world, dialogue, players.Player[ManageRequest]("seen", manage))
        dialogs.ask(bank, world, dialogue, players.Player[AnswerRequest]("seen", answer))
    return managed, asked


def situation(request: ManageRequest | AnswerRequest, *asked: str) -> Situation:
    texts = tuple(memory.text for memory in request.memories)
    return Situation(tuple(memory.speaker or "" for memory in request.memories), texts, (asked,))


def contents(messages: Sequence[BaseMessage]) -> list[tuple[str, str]]:
    return [(message.type, message.text) for message in messages]


def test_prompts_are_exactly_what_agents_render(policy: PolicyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of what the graph asks in a real dialogue, a lesson about the same texts asks the same, token by token."""
    from memweave.serving.local_chat import prompt_ids

    def taught(role: str, given: Situation) -> Item:
        monkeypatch.setattr(lessons, f"for_{role}", lambda rng, size, asked: given)
        (item,) = lesson(role, 9, 1, random.Random(0), None)
        return item

    managed, asked = seen()
    pairs: list[tuple[Item, list[BaseMessage]]] = [
        (taught("manager", situation(each, *(fact.text for fact in each.facts))), render_manage(each, "none"))
        for each in managed
        if each.memories
    ]
    pairs += [(taught("answerer", situation(each, each.question)), render_answer(each, "none")) for each in asked]
    assert len(pairs) > 20
    for item, messages in pairs:
        assert contents(item.messages) == contents(messages)
        ((ids, _),) = token_ids(policy, [item])
        assert ids == prompt_ids(policy, messages)


def test_the_oracles_of_the_world_are_the_teachers_of_the_lessons() -> None:
    from memweave.recipes.memory_r1 import teaching

    for role in ("manager", "answerer"):
        for item in lesson(role, 5, 6, random.Random(1), None):
            memories = [
                line[2:].rpartition(" [")[0]
                for line in item.messages[-1].text.splitlines()
                if line.startswith("- ") and line.endswith("]")
            ]
            if role == "manager":
                facts = [line[2:] for line in item.messages[-1].text.partition("New facts")[2].splitlines()[1:]]
                assert item.reply == teaching.manage(memories, facts)
            else:
                assert item.reply == teaching.answer(memories, item.messages[-1].text.rpartition("Question: ")[2])


@pytest.mark.parametrize(
    ("question", "memories", "kinds"),
    [
        ("Where does Anna live?", ("Anna lives in Rome",), ("answerer", "lookup", "lookups")),
        ("Which pets does Anna have?", ("Anna has a dog",), ("answerer", "list", "lookups")),
        ("When did Anna visit Peru?", ("Anna visited Peru in May",), ("answerer", "when", "lookups")),
        ("How many pets does Anna have?", ("Anna has a dog",), ("answerer", "count")),
        ("Do Anna and Bob live in the same city?", ("Anna lives in Rome",), ("answerer", "compare")),
        ("Where does Anna live?", ("Bob lives in Rome",), ("answerer", "absent")),
    ],
)
def test_what_an_answer_is_counted_under(
    monkeypatch: pytest.MonkeyPatch, question: str, memories: tuple[str, ...], kinds: tuple[str, ...]
) -> None:
    given = Situation(("Anna",) * len(memories), memories, ((question,),))
    monkeypatch.setattr(lessons, "for_answerer", lambda rng, size, asked: given)
    for form in FORMS:
        (item,) = lesson("answerer", 1, 1, random.Random(0), None, form)
        assert item.kinds == kinds


def test_the_filler_is_as_long_as_the_usual_quotation() -> None:
    """Of the base policy's own tokenizer, over the questions of the training dialogues and a perfect manager's banks."""
    from memweave.recipes.running import DIALOG_BASE

    def tokens(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False).ids)

    def answer(request: AnswerRequest) -> str:
        reply = players.ANSWERERS["oracle"].reply(request)
        lengths.append(tokens(reply.rpartition("**")[0].rpartition("**")[0]))
        return reply

    tokenizer = load_policy_folder(DIALOG_BASE).tokenizer().backend_tokenizer
    lengths: list[int] = []
    world = DialogWorld()
    train = world.dialogues("train", 4)
    with dialogs.scratch_bank() as bank:
        dialogs.construct(bank, world, train, players.MANAGERS["oracle"])
        dialogs.ask(bank, world, train, players.Player[AnswerRequest]("seen", answer))
    assert len(lengths) > 50
    assert abs(tokens(f"{FILLER}\n") - fmean(lengths)) < 1


def test_habits_change_replies_and_nothing_else() -> None:
    for role in ("manager", "answerer"):
        clean = lesson(role, 6, 40, random.Random(7), None)
        habits = lesson(role, 6, 40, random.Random(7), random.Random(8))
        assert [contents(item.messages) for item in clean] == [contents(item.messages) for item in habits]
        changed = sum(one.reply != other.reply for one, other in zip(clean, habits, strict=True))
        assert 0 < changed < 30
