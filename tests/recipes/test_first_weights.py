"""First weights: heads that see the tokens before, and heads that find what is repeated, before any training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from memweave.errors import InputError

torch = pytest.importorskip("torch")

from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: E402 - after importorskip

from memweave.recipes.first_weights import write_first_weights  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

HALF = 40
"""Tokens that are repeated once."""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def model(seed: int = 0, *, layers: int = 4, heads: int = 4, head_size: int = 32) -> Any:
    """Return a model of the shape of the base policy (of DialogWorld, by default) with first weights."""
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=heads * head_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        intermediate_size=64,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    made: Any = Qwen2ForCausalLM(config)
    made.eval()
    made.set_attn_implementation("eager")  # the only one that shows its attention
    write_first_weights(made, seed)
    return made


@pytest.fixture(scope="module")
def repeated() -> tuple[Tensor, ...]:
    """Return the attention of each layer (sequence, head, position, seen) on random tokens that come twice."""
    torch.manual_seed(1)
    once = torch.stack([torch.randperm(300)[:HALF] for _ in range(4)])
    with torch.no_grad():
        return tuple(model()(torch.cat([once, once], dim=1), output_attentions=True).attentions)


@pytest.mark.parametrize(("head", "offset"), [(0, 1), (1, 2)])
def test_the_first_heads_see_the_tokens_before(repeated: tuple[Tensor, ...], head: int, offset: int) -> None:
    positions = torch.arange(offset, 2 * HALF)
    share = repeated[0][:, head, positions, positions - offset]
    assert share.mean() > 0.9
    assert share.min() > 0.8


@pytest.mark.parametrize(("layer", "head", "times"), [(1, 0, 8), (1, 1, 8), (2, 0, 1.5)])
def test_matching_heads_see_what_came_after_the_same_token(
    repeated: tuple[Tensor, ...], layer: int, head: int, times: float
) -> None:
    """They give it several times the share that it would have if all were seen alike; a random head does not."""
    positions = torch.arange(HALF + 2, 2 * HALF)

    def share(number: int) -> float:
        after = repeated[layer][:, number, positions, positions - HALF + 1]
        return float((after * (positions + 1)).mean())

    assert share(head) > times
    assert share(3) == pytest.approx(1, abs=0.2)


def test_what_came_after_the_same_token_becomes_likelier() -> None:
    torch.manual_seed(1)
    once = torch.stack([torch.randperm(300)[:HALF] for _ in range(4)])
    ids = torch.cat([once, once], dim=1)
    with torch.no_grad():
        logits = model()(ids).logits[:, :-1]
    right = logits.gather(2, ids[:, 1:, None])[..., 0] - logits.mean(dim=2)
    assert right[:, HALF:].mean() > right[:, : HALF - 1].mean() + 0.1


def test_random_weights_are_small_where_they_write() -> None:
    made = model()
    last = made.model.layers[3]
    for weight, deviation in (
        (made.model.embed_tokens.weight, 0.1),
        (last.mlp.down_proj.weight, 0.01),
        (last.self_attn.q_proj.weight, 0.06),
    ):
        assert float(weight.detach().std()) == pytest.approx(deviation, rel=0.05)
    with torch.no_grad():
        logits = made(torch.arange(20)[None]).logits
    assert torch.isfinite(logits).all()
    assert logits.std() < 5  # no token is certain before anything was learned


def test_equal_seeds_give_equal_weights_whatever_was_drawn_before() -> None:
    first = model(seed=3).state_dict()
    torch.manual_seed(99)
    again, other = model(seed=3).state_dict(), model(seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    differing = {name for name in first if not torch.equal(first[name], other[name])}
    assert {"model.embed_tokens.weight", "model.layers.0.self_attn.v_proj.weight"} <= differing


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ({"layers": 2}, "2 layers and 4 heads are too few for copying; take 3 and 2 at least"),
        ({"heads": 1, "head_size": 64}, "4 layers and 1 heads are too few"),
    ],
)
def test_too_small_a_model_is_refused(shape: dict[str, int], says: str) -> None:
    with pytest.raises(InputError, match=says):
        model(**shape)


def test_the_smallest_model_will_do() -> None:
    made = model(layers=3, heads=2)
    with torch.no_grad():
        attention = made(torch.arange(30)[None], output_attentions=True).attentions[0][0]
    positions = torch.arange(2, 30)
    assert attention[0, positions, positions - 1].min() > 0.8
    assert attention[1, positions, positions - 2].min() > 0.8
