"""Faults in how case retrieval learns: targets, credit, draws, what is served, and what moves with the cases."""

from __future__ import annotations

from fault import Fault

SOFT_Q = "tests/trainers/test_soft_q.py"
ALGORITHM_1 = "tests/trainers/test_case_soft_q.py"
MU = "tests/trainers/test_mu_grpo.py"
CASE_Q = "tests/trainers/test_case_q.py"
BANK = "tests/memory_stores/test_case_bank.py"
STREAM = "tests/recipes/test_memento_stream.py"

LEARNING = [
    Fault(
        "value-of-the-network-that-learns",
        "targets bootstrap from the weights that they train",
        "trainers/case_soft_q.py",
        "weights=self.slow.numpy())",
        "weights=self.weights.detach().numpy())",
        (f"{ALGORITHM_1}::test_the_value_of_the_next_state_is_the_target_networks",),
    ),
    Fault(
        "a-row-predicts-itself",
        "a row's own entry of the memory stays in its estimate, and is always the nearest",
        "trainers/case_soft_q.py",
        "others: Places = same[same != place]",
        "others: Places = same",
        (f"{ALGORITHM_1}::test_a_step_follows_equation_10_and_leaves_out_the_rows_own_entry",),
    ),
    Fault(
        "bank-without-the-new-case",
        "the value of the next state leaves out the case that was just written",
        "trainers/case_soft_q.py",
        "bank=np.full(shown, len(self._ids)),",
        "bank=np.full(shown, len(self._ids) - 1),",
        (f"{ALGORITHM_1}::test_in_several_steps_q_is_the_target_over_the_bank_with_the_new_case",),
    ),
    Fault(
        "moved-values-stay-in-the-trainer",
        "what is remembered moves to its new targets, and the policy does not see it",
        "trainers/case_soft_q.py",
        "        if self.settings.eta:\n            self.policy.uses",
        "        if False:\n            self.policy.uses",
        (f"{ALGORITHM_1}::test_eta_moves_what_is_remembered_and_the_policy_sees_it",),
    ),
    Fault(
        "never-the-printed-log-sum-exp",
        "the literal form of the paper's targets is the consistent one",
        "trainers/soft_q.py",
        "q if literal else q / alpha",
        "q / alpha",
        (f"{SOFT_Q}::test_the_printed_log_sum_exp_differs_unless_alpha_is_one",),
    ),
    Fault(
        "target-network-jumps",
        "the target network takes over what it should keep",
        "trainers/soft_q.py",
        "beta * slow + (1 - beta) * fast",
        "beta * fast + (1 - beta) * slow",
        (f"{SOFT_Q}::test_the_target_follows_slowly",),
    ),
    Fault(
        "drawn-with-putting-back",
        "the probability of a set counts cases that were drawn already",
        "trainers/mu_grpo.py",
        'left = left.scatter(1, place[:, None], float("-inf"))',
        "left = left.clone()",
        (f"{SOFT_Q}::test_an_ordered_draw_has_its_plackett_luce_probability",),
    ),
    Fault(
        "ratio-is-not-clipped",
        "one step may move the policy as far as it likes",
        "trainers/mu_grpo.py",
        "ratio.clamp(1 - epsilon, 1 + epsilon) * gain",
        "ratio * gain",
        (f"{SOFT_Q}::test_mu_grpo_by_hand",),
    ),
    Fault(
        "mu-begins-anywhere",
        "an untrained head moves the draws away from the cosine prior",
        "trainers/mu_grpo.py",
        "            nn.init.zeros_(parameter)",
        "            nn.init.normal_(parameter)",
        (f"{MU}::test_it_begins_at_its_prior",),
    ),
    Fault(
        "credit-is-the-reward",
        "cases that were left out get the reward of the set all the same",
        "trainers/case_q.py",
        "            return row.credit",
        "            return row.reward",
        (f"{CASE_Q}::test_in_label_mode_loo_cases_that_were_left_out_have_their_own_label_and_others_do_not_count",),
    ),
    Fault(
        "served-weights-change",
        "the head in use changes while the trainer goes on",
        "trainers/case_q.py",
        "p.detach().numpy().copy()",
        "p.detach().numpy()",
        (f"{CASE_Q}::test_what_is_served_is_what_was_trained",),
    ),
    Fault(
        "credit-upside-down",
        "a case without which the task fails counts as one that harms",
        "src/memweave/recipes/memento/stream.py",
        "(1 + rewards[i] - score(tasks[i], record.answer)) / 2",
        "(1 - rewards[i] + score(tasks[i], record.answer)) / 2",
        (f"{STREAM}::test_credit_is_what_playing_again_without_the_case_changes",),
    ),
    Fault(
        "one-set-again-and-again",
        "all sets that are tried for a task are the same draw",
        "src/memweave/recipes/memento/stream.py",
        "seed=settings.seed + _DRAWINGS * drawing,",
        "seed=settings.seed,",
        (f"{STREAM}::test_of_several_sets_the_first_counts_and_the_learner_sees_all",),
    ),
    Fault(
        "control-is-not-shuffled",
        "the control with shuffled rewards learns from the true ones",
        "src/memweave/recipes/memento/stream.py",
        "        if self.arm.shuffled:",
        "        if False:",
        (f"{STREAM}::test_the_q_function_is_learned_on_the_way_and_shuffled_rewards_are_dealt_out",),
    ),
    Fault(
        "growth-is-not-told",
        "a learner that watches the bank never hears of new cases",
        "graphs/memento_cases.py",
        "if case is not None and isinstance(learner, WatchesBank):",
        "if case is None and isinstance(learner, WatchesBank):",
        ("tests/graphs/test_memento_cases.py::test_a_learner_that_watches_the_bank_is_told_of_the_new_case_first",),
    ),
    Fault(
        "far-uses-count",
        "of a case's past uses the farthest count instead of the nearest",
        "memory_stores/case_kernel.py",
        "np.lexsort((distance, cases))",
        "np.lexsort((-distance, cases))",
        ("tests/memory_stores/test_case_retrieval.py::test_equation_9_by_hand",),
    ),
    Fault(
        "kernel-of-another-embedding",
        "a learned kernel is used on vectors of any embedding",
        "memory_stores/case_bank.py",
        "    elif isinstance(policy, ECKernelSoftmax):\n",
        "    elif False:\n",
        (f"{BANK}::test_a_kernel_of_another_embedding_is_refused",),
    ),
    Fault(
        "experience-twice",
        "an import that is repeated doubles the experience",
        "memory_stores/case_bank.py",
        "        if left[said] < 0:\n",
        "        if True:\n",
        (f"{BANK}::test_experience_goes_with_its_cases_and_comes_once",),
    ),
]
