"""Every number that training and evaluation log: what it is, and how it moves in a healthy run.

A name has the same meaning in the terminal, in `metrics.jsonl`, in the report and in docs/algorithms.md.
"""

from __future__ import annotations

from collections.abc import Mapping

ROLLOUTS: Mapping[str, str] = {
    "reward": "Mean reward of all completions of the step, failed graders left out. Rises, fast at first.",
    "reward/<part>": (
        "Mean of one part of the reward before it is weighed. The part that is learnt rises; look here when `reward` "
        "rises and held-out accuracy does not."
    ),
    "share_thinking": "Share of completions that hold a thought. Rises where thinking pays.",
    "length_mean": (
        "Mean length of a completion in tokens. Changes slowly in either direction; a climb towards the limit without "
        "more reward is padding."
    ),
    "length_max": "Length of the longest completion. At the limit it says that something was cut.",
    "truncated_share": "Share of completions cut at the limit. Near 0; a rise means loops or a limit that is too low.",
    "reflection_per_1k": (
        "Words of doubt and checking (wait, verify, ...) per thousand tokens. Compare it with step 0: base models "
        "write such words too."
    ),
    "grader_failures": (
        "Completions whose grader failed; they teach nothing. Stays 0, anything else is a fault to mend."
    ),
    "num_completion_tokens": "Tokens that the sampler wrote in this step. Follows `length_mean`.",
    "staleness_max": (
        "Versions that the oldest rollout lags behind the learner. 0 in synchronous training, at most `max_staleness` "
        "otherwise."
    ),
    "num_sampled_groups": (
        "Groups sampled for this step, by dynamic sampling when some had to be replaced. Rises as problems become too "
        "easy."
    ),
    "dead_groups": (
        "Share of groups whose rewards are all equal, which teach nothing. Below a half; above it the problems are too "
        "hard or too easy."
    ),
    "all_correct_groups": (
        "Share of groups in which every completion is right. Rises; near 1 it is time for harder problems."
    ),
}

OPTIMIZER: Mapping[str, str] = {
    "loss": (
        "What was minimised, averaged as the aggregation says. In reinforcement learning it stays near 0 and says "
        "little; elsewhere it falls."
    ),
    "lr": "Learning rate of the update. Follows the schedule.",
    "grad_norm": (
        "Norm of the gradient before it is cut to `max_grad_norm`. Steady; a sudden multiple of its usual value "
        "precedes a collapse."
    ),
    "expert_load_max": (
        "Tokens of the busiest expert divided by the mean over experts (mixtures of experts only). Near 1; a rise "
        "means that routing collapses."
    ),
}

UPDATES: Mapping[str, str] = {
    "num_updates": (
        "Optimizer steps made on these rollouts. Fewer than planned when `approx_kl_limit` ended them early."
    ),
    "num_dropped_rows": (
        "Completions that no gradient could come from and that were not computed. Follows `dead_groups`."
    ),
}

TOKENS: Mapping[str, str] = {
    "ratio_max": (
        "Largest probability ratio of a token to the policy at the start of the update. Exactly 1 in the first update, "
        "a small number after."
    ),
    "approx_kl": (
        "Estimate (k3) of the KL per token from the policy at the start of the update to the current one. 0 in the "
        "first update; a jump means that the step was too large."
    ),
    "clip_fraction": (
        "Share of tokens whose gradient the clip stops. 0 in the first update, a few percent later; with one ratio for "
        "the whole row (gspo) more."
    ),
    "kl": (
        "KL per token from the policy to the reference, by the estimator of the row. Grows slowly; falls to 0 when the "
        "reference is refreshed."
    ),
    "kl_coef": "Weight of the KL to the reference. Constant, or moves until `kl` is near `kl_target`.",
    "entropy": "Mean entropy of the next-token distribution in nats. Falls gently; a fall to 0 ends exploration.",
    "sampler_mismatch": (
        "Mean absolute difference between the sampler's and the learner's log-prob of a token. Constant and small in "
        "the first update; growth means that sampler and learner differ."
    ),
    "correction": (
        "Mean weight, or share of tokens kept, of the off-policy correction. Near 1; a fall means that rollouts are "
        "too old or the kernels too different."
    ),
}

CRITIC: Mapping[str, str] = {
    "critic/value_loss": (
        "Half the squared error of the foretold returns, the larger of the plain and the clipped one. Falls first, "
        "then follows the spread of the returns."
    ),
    "critic/value_clip_fraction": (
        "Share of values that have moved further than `value_clip` allows. 0 in the first update, a few percent later."
    ),
    "critic/explained_variance": (
        "Share of the variance of returns that the critic foretells. Rises from 0 towards 1; below 0 the critic is "
        "worse than a constant."
    ),
    "critic/lr": "Learning rate of the critic. Follows its schedule.",
    "critic/grad_norm": "Norm of the critic's gradient before it is cut. Steady, and large only at the start.",
}

PREFERENCES: Mapping[str, str] = {
    "chosen_logprobs": (
        "Mean log-prob of the chosen completions, summed over their tokens. Often falls a little; a steep fall means "
        "that the policy leaves what it should imitate."
    ),
    "rejected_logprobs": (
        "Mean log-prob of the rejected completions, summed over their tokens. Falls faster than `chosen_logprobs`."
    ),
    "chosen_reward": "beta log(policy / reference) of the chosen or liked completions. Stays near 0 or rises.",
    "rejected_reward": "beta log(policy / reference) of the rejected or disliked completions. Falls.",
    "margin": (
        "Mean difference between chosen and rejected: of their implied rewards, without a reference of their mean "
        "log-probs. Rises and levels off."
    ),
    "pair_accuracy": (
        "Share of pairs in which the chosen one is ahead, a tie counts half. Rises from a half; near 1 on the training "
        "pairs alone it is memory."
    ),
    "kl_baseline": (
        "KTO's reference point: estimated KL from policy to reference on mismatched completions, at least 0. Grows "
        "slowly from 0."
    ),
    "num_pairs": (
        "Pairs that an online step found; it also logs `reward` and `length_mean`. Falls as the samples of a prompt "
        "become alike."
    ),
}

REWARD_MODELS: Mapping[str, str] = {
    "chosen_score": "Mean score of the better completions. Moves away from `rejected_score`.",
    "rejected_score": "Mean score of the worse completions. Falls below `chosen_score`.",
    "mean_margin": (
        "Mean score difference between better and worse. Rises and levels off; on held-out data a rise without "
        "accuracy is overconfidence."
    ),
    "accuracy": "Share of labels, of completions or of steps, on whose side of 0 the score lies. Rises from a half.",
    "label_accuracy": "Share of held-out labels on whose side of 0 the score lies. Stays near `accuracy`.",
    "score_mean": "Mean score on held-out data. Stays near 0 with `center_coef`, drifts without.",
    "calibration_error": (
        "Mean distance between the probability that a score claims and how often it is right. Near 0; a rise while "
        "accuracy stands still is overfitting."
    ),
    "length_correlation": "Correlation of score and length on held-out data. Near 0; near 1 the model pays for length.",
}

IMITATION: Mapping[str, str] = {
    "num_tokens": "Tokens that count: trained ones of a step, or those written in an evaluation. Follows the lengths.",
    "num_rows": "Completions learnt from in this step. Below the number of prompts where wrong answers were left out.",
    "progress": "Share of the pre-training corpus that has been read. Rises from 0 to 1.",
    "tokens_per_second": "Tokens trained per second of wall-clock time. Steady.",
}

EVALUATIONS: Mapping[str, str] = {
    "score": (
        "Mean grade of the samples on held-out problems (pass@1 where grades are 0 or 1), with a 95 % interval in "
        "`score/low` and `score/high`. Rises as `reward` does; where it stays behind, the training problems are learnt "
        "by heart."
    ),
    "pass@k": (
        "Chance that at least one of k samples is right, without bias, with a 95 % interval in `/low` and `/high`. "
        "pass@1 rises; pass@k of large k rises little, and a fall is lost variety."
    ),
    "maj@k": (
        "Chance that the most frequent answer of k samples is right, with its interval. Rises with k where right "
        "answers agree and wrong ones do not."
    ),
    "num_problems": "Held-out problems of the evaluation. Constant.",
    "num_samples": "Samples per held-out problem. Constant.",
    "format_share": "Share of samples in the format that was asked for. Rises early, often before accuracy does.",
    "length_p95": "Length that 95 % of the samples stay below. Well under the limit.",
    "accuracy_with_thought": (
        "Accuracy of the samples that hold a thought. Above `accuracy_without_thought` where thinking pays."
    ),
    "accuracy_without_thought": "Accuracy of the samples without a thought. Tells what is gained by thinking.",
    "reflection_share": "Share of samples with at least one word of doubt or checking. Compare it with step 0.",
    "reflection_long_per_1k": "Longer phrases of reflection per thousand tokens. Compare it with step 0.",
    "tokens@k": "Tokens that k samples of a problem cost. Read maj@k and pass@k against it.",
    "language_share": (
        "Share of words in the language that was asked for, over completions with a word that tells. Near 1; below it "
        "languages are mixed."
    ),
    "language_told": (
        "Share of completions with a word that tells its language. Says how much `language_share` rests on."
    ),
    "verifications": "Results compared with what they should be, per completion. Compare it with step 0.",
    "backtracks": "Results taken back and paths given up, per completion. Compare it with step 0.",
    "reflect_gain": (
        "Accuracy of completions that check or turn back less that of the others, within the problems that have both. "
        "Above 0 where reflecting pays; below it, it is done where things have gone wrong."
    ),
    "repair/<rate>": (
        "What became of results that were replaced: counts, wrong ones put right (`repair_rate`), right ones spoilt "
        "(`break_rate`). The first is high and the second low where correcting helps."
    ),
    "by_kind/<kind>": "Mean grade of one kind of problem, where the task has kinds. Rises as `score` does.",
    "refused_harmful": "Share of answers to harmful requests that decline. Rises to 1.",
    "refused_harmless": "Share of answers to harmless requests that decline. Stays 0; a rise is too much caution.",
}

METRICS: Mapping[str, str] = {
    **ROLLOUTS,
    **OPTIMIZER,
    **UPDATES,
    **TOKENS,
    **CRITIC,
    **PREFERENCES,
    **REWARD_MODELS,
    **IMITATION,
    **EVALUATIONS,
}
_FAMILIES: Mapping[str, str] = {
    "reward/": "reward/<part>",
    "pass@": "pass@k",
    "maj@": "maj@k",
    "tokens@": "tokens@k",
    "score/": "score",
    "repair/": "repair/<rate>",
    "by_kind/": "by_kind/<kind>",
}


def metric_entry(name: str) -> str | None:
    """The entry of `METRICS` that a logged name belongs to, or None.

    >>> metric_entry("reward/accuracy"), metric_entry("pass@8/low"), metric_entry("loss"), metric_entry("los")
    ('reward/<part>', 'pass@k', 'loss', None)
    """
    if name in METRICS:
        return name
    return next((entry for prefix, entry in _FAMILIES.items() if name.startswith(prefix)), None)


def halves(text: str) -> tuple[str, str]:
    """What a metric is, and how it moves.

    >>> halves(METRICS["lr"])
    ('Learning rate of the update', 'Follows the schedule')
    """
    what, _, moves = text.partition(". ")
    return what, moves.rstrip(".")
