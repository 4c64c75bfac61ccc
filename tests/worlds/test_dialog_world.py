"""DialogWorld: reproducible dialogues that say what is meant, and what is extracted from them."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from typing import Any, cast

import pytest

from memweave.errors import InputError
from memweave.records import Turn
from memweave.worlds.dialog_language import (
    NEW_NAMES,
    NEW_VALUES,
    OPENERS,
    RELATIONS,
    Act,
    Statement,
    in_third_person,
    read,
    relation_of,
    say,
)
from memweave.worlds.dialog_world import SIZES, SPLITS, DialogWorld, EventKind, Split
from tests.worlds.dialogs import TRAINED, dialogues, state

NEW_WORDS = {*NEW_NAMES, *(word for words in NEW_VALUES.values() for word in words)}


def fingerprint(world: DialogWorld, split: Split, number: int) -> str:
    """Everything that the first dialogues of a split say, mean and ask."""
    told = [
        [
            [(turn.source_id, turn.dialogue, turn.speaker, turn.text) for turn in dialogue.turns],
            [(s.subject, s.relation, s.act, s.values, s.month) for s in dialogue.meant],
            dialogue.kinds,
            [(q.id, q.text, q.gold, q.kind, q.keys, q.evidence) for q in dialogue.questions],
            [world.extract(turn) for turn in dialogue.turns],
        ]
        for dialogue in world.dialogues(split, number)
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    ("split", "expected"),
    [
        ("train", "47acfe35050ac332"),
        ("val", "a0171b2ae77d0aab"),
        ("test", "bac60e37285387cc"),
        ("ood", "a97fad3a91d10f78"),
    ],
)
def test_the_dialogues_of_a_seed_are_fixed(split: Split, expected: str) -> None:
    """Results are compared across commits: a change here makes every published number of this world stale."""
    assert fingerprint(DialogWorld(), split, 10) == expected


def test_equal_settings_give_equal_dialogues_and_another_seed_others() -> None:
    assert DialogWorld(seed=3).dialogues("val", 5) == DialogWorld(seed=3).dialogues("val", 5)
    assert DialogWorld(seed=3).dialogues("val", 7)[:5] == DialogWorld(seed=3).dialogues("val", 5)
    for one, other in zip(dialogues("val", 5), dialogues("val", 5, seed=1), strict=True):
        assert [turn.text for turn in one.turns] != [turn.text for turn in other.turns]


def test_sizes() -> None:
    world = DialogWorld()
    assert SIZES["train"] * 8 == SIZES["val"] * 8 == SIZES["test"]  # 1:1:8
    for split in SPLITS:
        found = world.dialogues(split)
        assert len(found) == SIZES[split] == len({dialogue.id for dialogue in found})
        assert {len(dialogue.turns) for dialogue in found} == {60}
    for seed in range(5):
        assert 120 <= sum(len(dialogue.questions) for dialogue in dialogues("train", 10, seed)) <= 200


def test_splits_share_neither_dialogues_nor_bindings() -> None:
    found = {split: dialogues(split, 80) for split in TRAINED}
    texts = {split: {tuple(turn.text for turn in d.turns) for d in ds} for split, ds in found.items()}
    bindings = {
        split: {(s.subject, s.relation, v) for d in ds for s in d.meant if s.relation != "chatter" for v in s.values}
        for split, ds in found.items()
    }
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        assert not texts[cast(Split, one)] & texts[cast(Split, other)]
        assert not bindings[cast(Split, one)] & bindings[cast(Split, other)]
    assert all(len(bound) > 500 for bound in bindings.values())


def last_template(sentence: str) -> bool:
    """Whether a sentence is said in the way that is kept for `ood`."""
    statement = read(sentence)
    assert statement is not None
    if statement.relation == "chatter" or statement.act is not Act.SET or len(statement.values) == 2:
        return False
    return say(statement, 2) == sentence


def test_new_words_and_the_last_template_are_heard_out_of_distribution_only() -> None:
    for split in SPLITS:
        words: set[str] = set()
        templates = 0
        for dialogue in dialogues(split, 20):
            for turn in dialogue.turns:
                words |= {*re.findall(r"\w+", turn.text), turn.speaker}
                templates += last_template(in_third_person(turn.text, turn.speaker))
        assert words & NEW_WORDS == (NEW_WORDS if split == "ood" else set())
        assert templates > 50 if split == "ood" else templates == 0


def test_speakers_out_of_distribution_have_new_names() -> None:
    assert all(turn.speaker in NEW_NAMES for d in dialogues("ood", 20) for turn in d.turns)


@pytest.mark.parametrize("split", SPLITS)
def test_the_people_of_a_dialogue_have_different_names(split: Split) -> None:
    for dialogue in dialogues(split, 50):
        assert len({statement.subject for statement in dialogue.meant}) == 4
        assert len({question.text for question in dialogue.questions}) == len(dialogue.questions)


@pytest.mark.parametrize("split", SPLITS)
def test_turns_say_what_is_meant(split: Split) -> None:
    for dialogue in dialogues(split, 20):
        assert len(dialogue.turns) == len(dialogue.meant) == len(dialogue.kinds)
        for turn, meant in zip(dialogue.turns, dialogue.meant, strict=True):
            assert read(in_third_person(turn.text, turn.speaker)) == meant
            assert turn.text.endswith(".")
            assert turn.text.count(".") == 1
            spoken = turn.text.removeprefix(next(o for o in sorted(OPENERS, key=len)[::-1] if turn.text.startswith(o)))
            assert spoken.startswith("I ") == (meant.subject == turn.speaker)


@pytest.mark.parametrize("split", SPLITS)
def test_turns_are_valid_and_have_ids_of_their_own(split: Split) -> None:
    for dialogue in dialogues(split, 20):
        assert len({turn.source_id for turn in dialogue.turns}) == len(dialogue.turns)
        assert len({turn.speaker for turn in dialogue.turns}) == 2
        for turn in dialogue.turns:
            assert Turn.model_validate_json(turn.model_dump_json()) == turn
            assert turn.dialogue == dialogue.id
    assert len({turn.source_id for d in dialogues(split, 20) for turn in d.turns}) == 20 * 60


@pytest.mark.parametrize("split", SPLITS)
def test_nothing_hidden_is_in_a_turn(split: Split) -> None:
    """A turn is its words, its speaker and its number in the dialogue; no field tells what kind of event it is."""
    hidden = {kind.value for kind in EventKind}
    for dialogue in dialogues(split, 20):
        for position, turn in enumerate(dialogue.turns):
            assert not set(re.findall(r"\w+", turn.text.lower())) & hidden
            assert turn == Turn(
                source_id=f"{dialogue.id}-{position}", dialogue=dialogue.id, speaker=turn.speaker, text=turn.text
            )


@pytest.mark.parametrize("split", SPLITS)
def test_all_kinds_of_events_occur(split: Split) -> None:
    kinds = Counter(kind for dialogue in dialogues(split, 10) for kind in dialogue.kinds)
    assert set(kinds) == set(EventKind)
    assert min(kinds.values()) >= 10


def test_events_are_what_they_are_called() -> None:
    for dialogue in dialogues("test", 40):
        before: dict[tuple[str, str, str], list[Statement]] = {}
        speakers = {turn.speaker for turn in dialogue.turns}
        for meant, kind in zip(dialogue.meant, dialogue.kinds, strict=True):
            story = before.setdefault(meant.key, [])
            old, new = state(story), state([*story, meant]) if kind is not EventKind.CHATTER else []
            story.append(meant)
            match kind:
                case EventKind.CHATTER:
                    assert meant.relation == "chatter"
                case EventKind.NEW | EventKind.NEAR_MISS:
                    assert len(story) == 1
                    assert (meant.subject in speakers) == (kind is EventKind.NEW)
                case EventKind.ACCUMULATED:
                    assert (len(old), len(new)) == (1, 2)
                case EventKind.REPLACED:
                    assert (len(old), len(new)) == (1, 1)
                    assert old != new
                case EventKind.RETRACTED:
                    assert old == list(meant.values)
                    assert new == []
                case EventKind.RESTATED:
                    assert old == new != []


def test_a_near_miss_shares_its_relation_with_the_speaker() -> None:
    for dialogue in dialogues("test", 40):
        told = {(statement.subject, statement.relation) for statement in dialogue.meant}
        for turn, meant, kind in zip(dialogue.turns, dialogue.meant, dialogue.kinds, strict=True):
            if kind is EventKind.NEAR_MISS:
                assert meant.subject != turn.speaker
                assert (turn.speaker, meant.relation) in told


def test_extract_is_the_same_on_every_call_and_for_every_seed_its_own() -> None:
    world, other = DialogWorld(seed=0), DialogWorld(seed=1)
    turns = [turn for dialogue in dialogues("test", 20) for turn in dialogue.turns]
    found = [world.extract(turn) for turn in turns]
    assert [world.extract(turn) for turn in reversed(turns)] == found[::-1]
    assert [other.extract(turn) for turn in turns] != found


def test_the_extractor_errs_as_often_as_set() -> None:
    world = DialogWorld(miss=0.1, leak=0.25, repeat=0.05)
    facts: Counter[int] = Counter()
    chatter: Counter[int] = Counter()
    for dialogue in dialogues("test", 300):
        for turn, meant in zip(dialogue.turns, dialogue.meant, strict=True):
            (chatter if meant.relation == "chatter" else facts)[len(world.extract(turn))] += 1
    assert set(chatter) == {0, 1}
    assert set(facts) == {0, 1, 2}
    # Four standard errors of a proportion of 0.25 among 9,600 are 0.018.
    assert chatter[1] / chatter.total() == pytest.approx(0.25, abs=0.018)
    assert facts[0] / facts.total() == pytest.approx(0.1, abs=0.014)
    assert facts[2] / (facts[1] + facts[2]) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("split", SPLITS)
def test_without_noise_the_extractor_finds_exactly_what_was_meant(split: Split) -> None:
    world = DialogWorld(miss=0, leak=0, repeat=0)
    for dialogue in dialogues(split, 20):
        for turn, meant in zip(dialogue.turns, dialogue.meant, strict=True):
            facts = world.extract(turn)
            assert not any("." in fact for fact in facts)  # a fact ends with its value, unlike the turn
            found = [read(fact) for fact in facts]
            assert found == ([] if meant.relation == "chatter" else [meant])


def test_with_all_noise_facts_are_missed_and_small_talk_is_kept() -> None:
    deaf, double = DialogWorld(miss=1, leak=1, repeat=1), DialogWorld(miss=0, leak=0, repeat=1)
    for dialogue in dialogues("val", 5):
        for turn, meant in zip(dialogue.turns, dialogue.meant, strict=True):
            chatter = meant.relation == "chatter"
            assert [read(fact) for fact in deaf.extract(turn)] == ([meant] if chatter else [])
            assert [read(fact) for fact in double.extract(turn)] == ([] if chatter else [meant, meant])


def test_other_text_has_no_facts() -> None:
    turn = Turn(source_id="1", dialogue="d", speaker="Anna", text="What a lovely day, is it not?")
    assert DialogWorld(miss=0, leak=1, repeat=1).extract(turn) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"keys": 10}, "keys = 10: give 1 to 9"),
        ({"keys": 0}, "keys = 0: give 1 to 9"),
        ({"friend_keys": 6}, r"friend_keys = 6: give 0 to 5 \(keys\)"),
        ({"friend_keys": -1}, "friend_keys = -1: give 0 to 5"),
        ({"follow_ups": -1}, "follow_ups = -1: about these keys there are 0 to 21"),
        ({"follow_ups": 22, "sessions": 10}, "follow_ups = 22: about these keys there are 0 to 21"),
        ({"sessions": 2}, "2 sessions of 10 turns are too short for 28 facts; lengthen them"),
        ({"session_turns": 4}, "6 sessions of 4 turns are too short for 28 facts"),
        ({"sessions": 0}, "0 sessions of 10 turns are too short"),
        ({"sessions": -6, "session_turns": -10}, "-6 sessions of -10 turns are too short"),
        *(
            ({name: rate}, f"{name} = {rate} must lie in 0..1")
            for name in ("miss", "leak", "repeat")
            for rate in (-0.1, 1.1, float("nan"))
        ),
    ],
)
def test_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DialogWorld(**settings)


def test_the_shortest_dialogue_has_no_small_talk() -> None:
    (dialogue,) = DialogWorld(sessions=1, session_turns=28).dialogues("train", 1)
    assert len(dialogue.turns) == 28
    assert EventKind.CHATTER not in dialogue.kinds


def test_unknown_splits_and_numbers_are_refused() -> None:
    world = DialogWorld()
    with pytest.raises(InputError, match="no split 'dev'. There are: train, val, test, ood"):
        world.dialogues(cast(Split, "dev"))
    for number in (0, -1, 10_001):
        with pytest.raises(InputError, match=f"{number} dialogues: ask for 1 to 10,000"):
            world.dialogues("train", number)
    tiny = DialogWorld(sessions=1, session_turns=2, keys=1, friend_keys=0, follow_ups=0)
    assert len(tiny.dialogues("train", 10_000)) == 10_000


def test_more_shared_relations_than_a_split_has_are_refused() -> None:
    """A split holds a third of the values, so that two people may share fewer than all relations in it."""
    world = DialogWorld(keys=9, friend_keys=9, sessions=8)
    with pytest.raises(
        InputError, match=r"train-\d{4}: \w+ and \w+ can share [5-8] relations, friend_keys = 9 asks for"
    ):
        world.dialogues("train", 200)
    DialogWorld(keys=9, friend_keys=5, sessions=8).dialogues("train", 200)


def test_relations_are_known_by_name() -> None:
    assert [relation_of(relation.name) for relation in RELATIONS] == list(RELATIONS)


def test_a_question_is_linked_to_the_turn_after_which_all_its_evidence_is_said() -> None:
    several = 0
    for dialogue in DialogWorld().dialogues("val", 3):
        places = {turn.source_id: place for place, turn in enumerate(dialogue.turns)}
        linked = [(place, question) for place in range(len(dialogue.turns)) for question in dialogue.linked(place)]
        assert sorted(question.id for _, question in linked) == sorted(question.id for question in dialogue.questions)
        for place, question in linked:
            assert place == max(places[source] for source in question.evidence)
            several += len(question.evidence) > 1
    assert several > 10
