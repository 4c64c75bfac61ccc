"""Faults in Memory-R1's world, teachers, tasks and results."""

from __future__ import annotations

from fault import Fault

MEMORY_R1 = [
    Fault(
        "gold-from-the-last-value",
        "the gold answer of a list forgets the first of two values",
        "src/memweave/worlds/dialog_language.py",
        "            held += [value for value in statement.values if value not in held]",
        "            held = list(statement.values)",
        ("tests/worlds/test_dialog_language.py",),
    ),
    Fault(
        "question-linked-to-its-first-evidence",
        "a turn is asked about before all that the question needs was said",
        "src/memweave/worlds/dialog_world.py",
        "if question.evidence[-1] == source]",
        "if question.evidence[0] == source]",
        ("tests/worlds/test_dialog_world.py",),
    ),
    Fault(
        "window-sees-the-present-turn",
        "the bank of a task holds what its own turn is about to say",
        "src/memweave/recipes/memory_r1/dialogs.py",
        "dialogue.turns[max(0, position - window) : position])",
        "dialogue.turns[max(0, position - window) : position + 1])",
        ("tests/recipes/test_memory_r1_dialogs.py",),
    ),
    Fault(
        "lenient-turned-round",
        "an answer that says half of what is true passes for one that says more",
        "src/memweave/recipes/memory_r1/dialogs.py",
        'set(normalise(gold).split()) <= set(normalise(answer or "").split())',
        'set(normalise(gold).split()) >= set(normalise(answer or "").split())',
        ("tests/recipes/test_memory_r1_recipes.py::test_the_lenient_reward_counts_answers_that_say_more",),
    ),
    Fault(
        "habit-that-never-applies",
        "the base policy is taught nothing to unlearn about colors and courses",
        "src/memweave/recipes/memory_r1/teaching.py",
        "    if relation in WITHHOLDS:\n        return ()",
        "    if relation in WITHHOLDS:\n        return held",
        ("tests/recipes/test_memory_r1_teaching.py",),
    ),
    Fault(
        "filler-quotes",
        "the control of distillation quotes memories after all",
        "src/memweave/recipes/memory_r1/teaching.py",
        '"direct_with_filler": [FILLER]}',
        '"direct_with_filler": quoted or [FILLER]}',
        ("tests/recipes/test_memory_r1_teaching.py",),
    ),
    Fault(
        "distractors-about-the-question",
        "memories about what is asked are dealt out as distractors too",
        "src/memweave/recipes/memory_r1/measuring.py",
        "others = [i for i in range(len(statements)) if i not in about]",
        "others = [i for i in range(len(statements)) if i not in about[:1]]",
        ("tests/recipes/test_memory_r1_pretraining.py::test_distractors_are_memories_of_other_things",),
    ),
    Fault(
        "lesson-sees-other-questions",
        "a reply of a packed lesson sees the other questions about the same bank",
        "src/memweave/recipes/memory_r1/lessons.py",
        "sees = causal & ((part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None]))",
        "sees = causal & (part[:, None, :] >= 0) & (part[:, :, None] >= 0)",
        ("tests/recipes/test_memory_r1_lessons.py",),
    ),
    Fault(
        "group-without-spread",
        "groups in which two episodes differ pass for groups that teach nothing",
        "src/memweave/recipes/run_scores.py",
        "return fmean(len(scores) < 2 for scores in groups.values())",
        "return fmean(len(scores) < 3 for scores in groups.values())",
        ("tests/recipes/test_recipes.py::test_groups_without_spread_are_counted",),
    ),
    Fault(
        "interaction-without-one-cell",
        "the interaction forgets what the base already does",
        "experiments/memory_r1.py",
        "[both - alone - other + neither for",
        "[both - alone - other for",
        ("tests/experiments/test_memory_r1_tables.py",),
    ),
]
