"""The faults, and the tests that must notice each.

Each is the smallest slip that a person could make there, and one that users would suffer from without an error message.
"""

from __future__ import annotations

from agemem_faults import AGEMEM
from fault import Fault
from graph_memory_faults import GRAPH_MEMORY
from learning_faults import LEARNING
from memento_faults import MEMENTO
from memory_r1_faults import MEMORY_R1
from sandbox_faults import SANDBOX

MEMORY = [
    Fault(
        "prefetch-without-filter",
        "one of the two prefetches of a hybrid search ignores the scope",
        "memory_stores/edge.py",
        "qe.Prefetch(limit=query.prefetch, query=bm25, filter=where, params=idf)",
        "qe.Prefetch(limit=query.prefetch, query=bm25, params=idf)",
        ("tests/memory_stores/test_engines.py", "tests/memory_stores/test_search.py"),
    ),
    Fault(
        "undo-forgets-index",
        "the undo of an ADD (a DELETE) reaches the ledger and not the index",
        "memory_stores/ledger.py",
        "        return Change(seq, partition, Effect.REMOVE, memory_id, None)",
        "        return Change(seq, partition, Effect.NONE, memory_id, None)",
        ("tests/memory_stores/test_stores.py", "tests/memory_stores/test_search.py"),
    ),
    Fault(
        "update-keeps-old-version-open",
        "an UPDATE opens the new version and does not close the old one",
        "memory_stores/ledger.py",
        "if op.before is not None and changes_state:",
        "if op.before is not None and changes_state and op.after is None:",
        ("tests/memory_stores/test_stores.py",),
    ),
    Fault(
        "purge-forgets-the-owner",
        "a purge leaves the row that names tenant and user",
        "memory_stores/ledger.py",
        "(_versions, _ops, _turns, *schema.LATER, _scopes)",
        "(_versions, _ops, _turns, *schema.LATER)",
        ("tests/memory_stores/test_purge.py",),
    ),
    Fault(
        "failed-write-stays-in-branch",
        "a branch changes its state in place, so a refused batch leaves half of itself",
        "memory_stores/branch.py",
        "draft = self._state.copy()",
        "draft = self._state",
        ("tests/memory_stores/test_stores.py", "tests/memory_stores/test_branch.py"),
    ),
]

TRACING = [
    Fault(
        "reply-joined-to-another-call",
        "of several model calls at work, a reply is given to the one that began last",
        "src/memweave/tracing/tracer.py",
        "call = opened.calls.pop(run_id, None) if opened is not None else None",
        "call = opened.calls.popitem()[1] if opened is not None and opened.calls else None",
        ("tests/tracing/test_tracer.py",),
    ),
    Fault(
        "write-credited-to-a-parallel-branch",
        "a memory operation is attributed to the last reply of its graph, also that of a parallel Send",
        "src/memweave/tracing/attribution.py",
        "earlier = step is None or generation.step is None or generation.step < step",
        "earlier = step is None or generation.step is None or generation.step <= step",
        ("tests/tracing/test_memory_events.py",),
    ),
    Fault(
        "episode-stored-twice",
        "an episode that is run again after a crash is stored beside the first",
        "src/memweave/tracing/store.py",
        "trace.group, str(trace.replica)))",
        "trace.group, trace.id.hex))",
        ("tests/tracing/test_store.py::test_the_same_episode_is_stored_once_and_the_first_stays",),
    ),
    Fault(
        "acknowledged-before-written",
        "flush counts a batch as written although the disk refused it",
        "src/memweave/tracing/writer.py",
        "                if failure is None:\n                    for _ in batch:",
        "                if batch:\n                    for _ in batch:",
        (
            "tests/tracing/test_store.py::test_a_tracer_writes_in_the_background_and_flush_waits",
            "tests/tracing/test_store.py::test_a_full_queue_over_a_full_disk_fails_the_run_and_loses_nothing",
        ),
    ),
    Fault(
        "erased-trace-stays-on-disk",
        "copies of erased traces are left between the rows of the file",
        "src/memweave/tracing/store.py",
        'self._connection.execute("VACUUM").close()',
        'self._connection.execute("PRAGMA optimize").close()',
        ("tests/tracing/test_store.py::test_nothing_stays_between_the_rows_of_a_page",),
    ),
    Fault(
        "doctor-misses-length-mismatch",
        "fewer log-probabilities than sampled tokens pass as sound",
        "src/memweave/tracing/diagnosis.py",
        "and len(each.token_ids) != len(each.logprobs):",
        "and len(each.token_ids) < len(each.logprobs):",
        ("tests/tracing/test_doctor.py",),
    ),
]

SERVING = [
    Fault(
        "stale-adapter-vllm",
        "a role is served with its oldest adapter that is still loaded",
        "src/memweave/serving/vllm_server.py",
        "return Served(found.current.name, found.current.version)",
        "return Served(found.served[0].name, found.served[0].version)",
        ("tests/serving/test_vllm_server.py::test_a_role_is_served_with_what_was_published_last",),
    ),
    Fault(
        "unload-before-load",
        "the old adapter leaves before the new one is there; a refused one leaves the role without any",
        "src/memweave/serving/vllm_server.py",
        "            try:\n                self._load(policy)",
        "            if role in self._roles:\n                self._retire(stem, number, self._roles[role].served)\n"
        "            try:\n                self._load(policy)",
        (
            "tests/serving/test_vllm_server.py::test_a_refused_adapter_leaves_everything_as_it_was",
            "tests/serving/test_vllm_server.py::test_the_new_adapter_is_there_before_the_old_one_leaves",
        ),
    ),
    Fault(
        "adapter-without-rename",
        "an adapter is copied under its final name, where a reader can meet half of it",
        "src/memweave/serving/adapters.py",
        'part = target.with_name(f".{target.name}.part")',
        "part = target",
        ("tests/serving/test_adapters.py",),
    ),
    Fault(
        "stale-adapter-local",
        "the in-process server stays with the first adapter of a role",
        "src/memweave/serving/local_server.py",
        "self._roles[role] = _Policy(name, version, served, published)",
        "self._roles.setdefault(role, _Policy(name, version, served, published))",
        ("tests/serving/test_local_chat.py::test_the_model_follows_what_is_published",),
    ),
    Fault(
        "merged-adapter-left-in-base",
        "weights that were exchanged once are not exchanged again: another role's adapter answers",
        "src/memweave/serving/decoding.py",
        'if getattr(self.model, "memweave_active", None) is self:',
        'if getattr(self.model, "memweave_active", None) is not None:',
        (
            "tests/serving/test_local_server.py::"
            "test_logprobs_are_those_of_a_fresh_forward_pass_before_and_after_publishing",
            "tests/serving/test_local_server.py::test_roles_are_served_with_their_own_adapters_at_once",
        ),
    ),
    Fault(
        "server-ignores-temperature-in-logprobs",
        "tokens are drawn at the temperature, their log-probabilities are those at 1",
        "src/memweave/serving/decoding.py",
        "chosen = logprobs.gather(1, tokens)",
        "chosen = torch.log_softmax(logits.float(), dim=-1).gather(1, tokens)",
        (
            "tests/serving/test_local_server.py::"
            "test_logprobs_are_those_of_a_fresh_forward_pass_before_and_after_publishing",
        ),
    ),
    Fault(
        "sampled-ids-tokenised-again",
        "an earlier reply comes back as the ids of its text, not as the ids that were sampled",
        "src/memweave/serving/local_chat.py",
        "    for mark, _, ids in sampled:\n        before, _, rest = rest.partition(mark)\n"
        "        out += _encode(folder, before) + ids",
        "    for mark, content, _ in sampled:\n        before, _, rest = rest.partition(mark)\n"
        "        out += _encode(folder, before) + _encode(folder, content)",
        ("tests/serving/test_local_chat.py::test_what_was_sampled_comes_back_as_the_very_ids",),
    ),
    Fault(
        "parser-alters-reply",
        "a reply that calls a tool loses its text, so the next prompt is no continuation",
        "src/memweave/serving/sampled_reply.py",
        "        content=text,\n",
        '        content="" if calls else text,\n',
        ("tests/serving/test_vllm_chat.py::test_tools_go_through_the_template_and_are_read_from_the_text",),
    ),
    Fault(
        "seed-ignores-episode",
        "all episodes of a group draw the same random numbers",
        "src/memweave/serving/seeding.py",
        '_WHERE: Final = ("memweave_episode", "memweave_sample",',
        '_WHERE: Final = ("memweave_sample",',
        ("tests/serving/test_seeding.py",),
    ),
    Fault(
        "lost-logprob-is-zero",
        "a log-probability that the server left out becomes 0, the one of a certain token",
        "src/memweave/serving/vllm_chat.py",
        'logprobs = [float(entry["logprob"]) for entry in content]',
        'logprobs = [float(entry.get("logprob") or 0.0) for entry in content]',
        ("tests/serving/test_vllm_chat.py::test_an_answer_that_cannot_be_trained_on",),
    ),
]

ROLLOUTS = [
    Fault(
        "failed-episode-scores-zero",
        "an episode that failed gets the reward 0",
        "trainers/episodes.py",
        '"error": error_line(error), "score": None}',
        '"error": error_line(error), "score": Score(value=0.0, low=0.0, high=1.0)}',
        ("tests/trainers/test_rollouts.py::test_a_failed_episode_is_a_status_without_a_score",),
    ),
    Fault(
        "no-reward-is-zero",
        "a reward of None becomes 0",
        "trainers/episodes.py",
        "    if value is None or isinstance(value, Score):\n        return value",
        "    if value is None:\n        value = 0.0\n    if isinstance(value, Score):\n        return value",
        ("tests/trainers/test_rollouts.py::test_rewards_may_be_async_scores_or_none",),
    ),
    Fault(
        "nan-reward-passes",
        "a reward that is NaN or infinite is taken",
        "trainers/episodes.py",
        "if isinstance(value, str) or not math.isfinite(number):",
        "if isinstance(value, str):",
        ("tests/trainers/test_rollouts.py::test_a_reward_that_is_no_number_is_an_error_that_names_the_task",),
    ),
    Fault(
        "nan-part-passes",
        "a part of a score may be NaN, and with it the advantages of a role",
        "src/memweave/tracing/records.py",
        "Finite = Annotated[float, Field(allow_inf_nan=False)]",
        "Finite = Annotated[float, Field()]",
        ("tests/tracing/test_records.py",),
    ),
    Fault(
        "episodes-share-a-branch",
        "episodes write to the bank itself, so each sees what the others remembered",
        "trainers/episodes.py",
        "return use_bank(await self.bank.abranch(scope=self.scope or scope_of(task)))",
        "return use_bank(self.bank)",
        ("tests/trainers/test_rollouts_bank.py",),
    ),
    Fault(
        "episodes-of-old-weights-reused",
        "a resumed call takes stored episodes that other weights sampled",
        "trainers/rollouts.py",
        "same = trace.metadata.get(POLICY_VERSION_KEY) == self.policy_version",
        "same = trace.run == self.run",
        ("tests/trainers/test_rollouts.py::test_what_the_store_holds_is_not_run_again",),
    ),
]

ROWS = [
    Fault(
        "mask-shifted-by-one",
        "a row trains the token before each reply and not its last one",
        "trainers/rows.py",
        "            mask[span.start : span.stop] = True",
        "            mask[span.start - 1 : span.stop - 1] = True",
        ("tests/trainers/test_rows.py", "tests/trainers/test_rows_properties.py"),
    ),
    Fault(
        "prefix-checked-at-its-end-only",
        "a prompt that dropped earlier turns is merged because the latest tokens agree",
        "trainers/rows.py",
        "        return self.ids == list(prompt[:length])",
        "        return self.ids[-2:] == list(prompt[length - 2 : length])",
        ("tests/trainers/test_rows.py",),
    ),
    Fault(
        "merged-generation-trained-twice",
        "a generation that was merged into a row gets a row of its own besides",
        "trainers/rows.py",
        "            max(same, key=lambda draft: len(draft.ids)).append(generation)\n            continue",
        "            max(same, key=lambda draft: len(draft.ids)).append(generation)",
        ("tests/trainers/test_rows.py", "tests/trainers/test_rows_properties.py"),
    ),
    Fault(
        "old-policy-admitted",
        "replies of any known weights are trained on, not those of the published ones only",
        "trainers/refusals.py",
        "if self.policy_version is not None and generation.policy_version != self.policy_version:",
        "if self.policy_version is not None and generation.policy_version is None:",
        ("tests/trainers/test_rows.py",),
    ),
    Fault(
        "failed-run-trained",
        "a run that failed trains if it has a score",
        "trainers/refusals.py",
        "        if trace.status is not TraceStatus.OK:",
        "        if trace.status is not TraceStatus.OK and trace.score is None:",
        ("tests/trainers/test_rows.py",),
    ),
    Fault(
        "batch-mask-off-by-one",
        "in the tensors, the mask stands where the token is, not where it is predicted",
        "trainers/batches.py",
        "mask[i, : end - 1] = row.mask[1:]",
        "mask[i, : end - 1] = row.mask[:-1]",
        ("tests/trainers/test_grpo.py::test_every_value_stands_where_its_token_is_predicted",),
    ),
    Fault(
        "logprobs-shifted-by-one",
        "in the tensors, each token has the log-probability of the one before it",
        "trainers/batches.py",
        "np.where(row.mask, row.logprobs, 0)[1:]",
        "np.where(row.mask, row.logprobs, 0)[:-1]",
        ("tests/trainers/test_grpo.py::test_every_value_stands_where_its_token_is_predicted",),
    ),
    Fault(
        "remainder-dropped",
        "rows that do not fill all steps evenly are left out",
        "trainers/batches.py",
        "for part in np.array_split(order, steps):",
        "for part in np.split(order[: len(order) // steps * steps], steps):",
        ("tests/trainers/test_grpo.py::test_no_row_is_dropped_and_processes_get_equal_counts",),
    ),
]

CREDIT = [
    Fault(
        "advantage-sign",
        "what was better than its group becomes less likely",
        "trainers/credit.py",
        "(one.reward - mean) / divisor",
        "(mean - one.reward) / divisor",
        ("tests/trainers/test_credit.py",),
    ),
    Fault(
        "population-deviation",
        "advantages are divided by the deviation over n, not n - 1",
        "trainers/credit.py",
        "np.std(values, ddof=1)",
        "np.std(values)",
        ("tests/trainers/test_credit.py",),
    ),
    Fault(
        "unscored-unsaid",
        "episodes without a score are left out without a word",
        "trainers/credit.py",
        '            self.counts["unscored"] += len(trace.generations)\n',
        "",
        ("tests/trainers/test_credit.py",),
    ),
    Fault(
        "group-of-one-trains",
        "a group with one scored episode is compared with itself",
        "trainers/credit.py",
        "if len({one.episode for one in rewarded if one.weight}) < 2:",
        "if not rewarded:",
        ("tests/trainers/test_credit.py",),
    ),
    Fault(
        "credit-to-another-role",
        "a role's reward goes to the generations of the node of that name",
        "trainers/credit.py",
        "        role = generation.actor\n",
        "        role = generation.node or generation.actor\n",
        ("tests/trainers/test_credit.py",),
    ),
    Fault(
        "hop-ignores-the-version",
        "a write is paid by readers of versions that came before it",
        "trainers/hops.py",
        "if reader != writer and seen >= version:",
        "if reader != writer:",
        ("tests/trainers/test_credit.py",),
    ),
    Fault(
        "gae-in-the-wrong-direction",
        "advantages are accumulated from the first token to the last",
        "trainers/gae.py",
        "for t in reversed(range(values.shape[1])):",
        "for t in range(values.shape[1]):",
        ("tests/trainers/test_gae.py",),
    ),
    Fault(
        "gae-in-the-order-of-rows",
        "the tokens of an episode stand in the order of rows, not of time",
        "trainers/gae.py",
        "pieces.sort(key=lambda piece: piece.generation)",
        "pieces.sort(key=lambda piece: piece.row)",
        ("tests/trainers/test_gae.py",),
    ),
]

TRAINING = [
    Fault(
        "surrogate-takes-the-better",
        "clipping keeps the larger of two objectives, so nothing bounds an update",
        "trainers/losses.py",
        "return -torch.min(ratio * advantages, clipped * advantages), metrics",
        "return -torch.max(ratio * advantages, clipped * advantages), metrics",
        ("tests/trainers/test_losses.py",),
    ),
    Fault(
        "kl-sign",
        "the KL term rewards leaving the reference policy",
        "trainers/losses.py",
        "per_token = per_token + settings.beta * kl",
        "per_token = per_token - settings.beta * kl",
        ("tests/trainers/test_losses.py",),
    ),
    Fault(
        "prompts-in-the-normaliser",
        "tokens that train nothing are counted in what losses are divided by",
        "trainers/grpo.py",
        '"tokens": sum(int(row.mask[1:].sum()) for row in rows),',
        '"tokens": sum(len(row.ids) - 1 for row in rows),',
        ("tests/trainers/test_grpo.py::test_losses_are_divided_by_what_trains_and_nothing_else",),
    ),
    Fault(
        "processes-add-up",
        "with two processes, whose gradients are averaged, each divides by the counts of both",
        "trainers/grpo.py",
        "share = self.args.gradient_accumulation_steps / self.args.steps_per_generation / self.accelerator.num_processes",
        "share = self.args.gradient_accumulation_steps / self.args.steps_per_generation",
        ("tests/trainers/test_multiprocess.py::test_two_processes_make_the_policy_of_one",),
    ),
    Fault(
        "trainer-ignores-temperature",
        "the trainer's log-probabilities are those at temperature 1",
        "trainers/grpo.py",
        "return out.log_probs, entropy",
        "plain = torch.log_softmax(model(input_ids=ids).logits[:, :-1].float(), -1)\n"
        "        return plain.gather(-1, ids[:, 1:, None])[..., 0], entropy",
        ("tests/trainers/test_grpo.py::test_log_probabilities_are_those_of_a_plain_forward_at_the_temperature",),
    ),
    Fault(
        "never-published-again",
        "the weights of the first step stay served for the whole run",
        "trainers/publishing.py",
        "if self._at == step and self.published is not None and current == self.published:",
        "if self.published is not None and current == self.published:",
        ("tests/trainers/test_grpo.py::test_the_first_ratio_of_a_batch_is_one",),
    ),
    Fault(
        "stale-server-unnoticed",
        "the difference to the sampled log-probabilities is noted at its smallest",
        "trainers/grpo.py",
        "torch.maximum(self._difference[0], here[0].cpu())",
        "torch.minimum(self._difference[0], here[0].cpu())",
        ("tests/trainers/test_grpo.py::test_a_server_that_serves_older_weights_is_found",),
    ),
    Fault(
        "value-clip-takes-the-better",
        "the clipped value loss is the smaller of two errors",
        "trainers/ppo.py",
        "error = torch.max(error, bounded)",
        "error = torch.min(error, bounded)",
        ("tests/trainers/test_ppo.py::test_value_loss_by_hand",),
    ),
    Fault(
        "sft-learns-the-users-words",
        "all tokens of a demonstration are learned",
        "trainers/sft.py",
        '"labels": torch.where(torch.from_numpy(example.mask), ids, IGNORED)}',
        '"labels": ids.clone()}',
        ("tests/trainers/test_sft.py::test_masked_tokens_have_no_gradient",),
    ),
    Fault(
        "resume-forgets-the-micro-step",
        "a resumed run counts generation batches from 0 again",
        "trainers/checkpointing.py",
        "self._step = saved.micro_step",
        "self._step = saved.micro_step % self._generate_every",
        ("tests/trainers/test_resume.py::test_a_killed_run_goes_on_with_equal_bits",),
    ),
    Fault(
        "half-a-checkpoint-counts",
        "a run resumes from a checkpoint that was not written to its end",
        "trainers/resume.py",
        "return (checkpoint / MARKER).is_file()",
        "return checkpoint.is_dir()",
        ("tests/trainers/test_resume.py::test_half_a_checkpoint_is_ignored_with_a_message",),
    ),
]

FAULTS = [
    *MEMORY,
    *TRACING,
    *SERVING,
    *ROLLOUTS,
    *ROWS,
    *CREDIT,
    *TRAINING,
    *MEMORY_R1,
    *AGEMEM,
    *MEMENTO,
    *GRAPH_MEMORY,
    *LEARNING,
    *SANDBOX,
]
