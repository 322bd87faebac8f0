"""What people need to know about each row beyond its formula, and the passages of docs/algorithms.md.

The first sentence of a note says in one line what the row is; `melete algorithms` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping

POLICY_NOTES: Mapping[str, str] = {
    "sft": (
        "Maximum likelihood of demonstrations. The divisor counts the tokens of the whole step, so a short "
        "demonstration in another micro-batch weighs what it should; only completions are learnt, never prompts. "
        "Published for DeepSeek-R1: two to three epochs of batches of 128, learning rate 5e-5 falling to 5e-6. TRL "
        "leaves prompts out when the data holds prompt and completion apart, and learns every token of plain text."
    ),
    "ppo": (
        "A critic foretells each token's return; what exceeds it is credit. The KL to the reference is taken off each "
        "token's reward, so a token also answers for what it leads to. Published: clip 0.2, `gae_lambda` 0.95 and, in "
        "InstructGPT, `kl_coef` 0.02; for long thoughts DeepSeek-R1 reports that `gae_lambda` 0.95 was much worse than "
        "GRPO and 1.0 nearly equal. verl always whitens the advantages of GAE and bounds bad tokens at ratio 3, which "
        "is `dual_clip` here and off unless set."
    ),
    "grpo": (
        "The group's own mean takes the place of a critic. Published: DeepSeekMath has groups of 64, learning rate "
        "1e-6 and `kl_coef` 0.04, DeepSeek-R1 groups of 16, 3e-6 and 0.001, which is the default here. With one update "
        "per batch the ratio is 1 and the gradient is REINFORCE's with a group baseline. TRL has no KL unless told and "
        "averages over the tokens of the step, as `dapo` does here; verl leaves a group of one its raw reward, which "
        "gets 0 here."
    ),
    "grpo_process": (
        "GRPO whose steps are rewarded, by the task or by a process reward model. All step rewards of a group are "
        "normalised together, and a token gets the sum over the steps that end at or after it. DeepSeekMath found it "
        "better than one reward per completion; DeepSeek-R1 gave it up, because steps are hard to define and a learnt "
        "judge is gamed. GRPO in TRL and verl knows one reward per completion only."
    ),
    "dr_grpo": (
        "GRPO without its two divisions, by length and by deviation. Dividing by the row's length punishes a long "
        "wrong completion less per token than a short one, so wrong completions grow; dividing by the standard "
        "deviation weighs problems that are nearly always or nearly never solved most. Published: group 8, learning "
        'rate 1e-6, no KL. TRL\'s loss_type "dr_grpo" changes the averaging alone: the deviation is still divided by '
        "unless scale_rewards is off."
    ),
    "dapo": (
        "GRPO with a higher upper clip, a mean over tokens, and no KL. `clip_high` 0.28 lets an unlikely good token "
        "rise further; groups that are all right or all wrong are replaced by groups of other problems, and "
        "completions cut at the limit leave the loss. Published: learning rate 1e-6, 512 prompts of 16, 16 updates per "
        "batch, and a penalty over the last 4,096 of 20,480 tokens, which is the reward part `overlong` here. TRL's "
        'loss_type "dapo" is the averaging alone.'
    ),
    "lite_ppo": (
        "The group's mean is taken off, and the deviation is that of the whole step. A group that is nearly all right "
        "or all wrong has a small deviation of its own, which blows up its advantages in GRPO; that of the step is "
        "steadier. Its authors report that this and the mean over tokens are enough to match DAPO without a critic. In "
        'TRL it is scale_rewards "batch".'
    ),
    "rloo": (
        "REINFORCE whose baseline is the mean of the other completions. A completion is one action, with the sum of "
        "its log-probs, and the baseline does not depend on it, so the gradient is unbiased. There is no ratio, so it "
        "is meant for one update per batch. Published: groups of 2 to 4, `kl_coef` 0.03; TRL has groups of 2 and 0.05, "
        "and clips a ratio of the whole completion as PPO does."
    ),
    "reinforce_plus_plus": (
        "No groups: every token's return, whitened over the tokens of the step. The KL is taken off each token's "
        "reward, as in PPO, and there is no critic. One completion per prompt is enough, but problems of unequal "
        "difficulty are compared with each other. The default weight 0.01 is that of OpenRLHF, the framework of its "
        "author."
    ),
    "reinforce_plus_plus_baseline": (
        "The group's mean is taken off, then the step is whitened over its tokens. Whitening replaces GRPO's deviation "
        "of a group; a longer row weighs more in it, so groups of equal rewards may be moved a little, as in the "
        "paper. The KL is k2 in the loss, whose gradient is that of the reverse KL. verl has the advantage and leaves "
        "the KL to other settings."
    ),
    "gspo": (
        "One ratio for a whole completion, the geometric mean of its tokens' ratios. The clip then keeps or stops "
        "whole rows, which spares mixtures of experts from single ratios that a changed route makes wild. The mean of "
        "many log-ratios stays near 0, hence bounds a thousandth of PPO's: 3e-4 and 4e-4, with four updates per batch "
        'and no KL. TRL\'s importance_sampling_level "sequence" keeps the clip at 0.2 unless told.'
    ),
    "cispo": (
        "The importance weight is cut instead of the gradient, so no token stops teaching. PPO's clip silences the "
        "tokens that moved most, often rare ones at which a thought turns; here they go on with a bounded weight. "
        "Published: no lower bound, and an upper one of about 5 in ScaleRL, which is `clip_high` 4. TRL's epsilon_high "
        "is the cut itself; verl takes PPO's bounds unless told."
    ),
    "gdpo": (
        "Each part of the reward is normalised in its group before the parts are added. A sum that is normalised "
        "afterwards lets the part of the largest spread drown the others, such as format beside accuracy. The sum is "
        "divided by its deviation over the step, and the parts keep the weights of the recipe. TRL has it as "
        'multi_objective_aggregation "normalize_then_sum", and adds up first by default.'
    ),
    "two_sided": (
        "A ceiling on the ratio of bad tokens as well. For a bad token PPO's clip bounds the ratio from below only, so "
        "one token that became far likelier can dominate a step. Published: a ceiling of 4 in INTELLECT-2; dual-clip "
        "PPO and verl have 3; TRL's delta is none unless set."
    ),
    "decoupled_ppo": (
        "The clip starts at the weights of this update, and a capped weight corrects for older ones. So data that are "
        "several versions old are bounded in how far they move the policy, not in how old they are; it belongs with "
        "`max_staleness` above 0. Published: AReaL caps the weight at 5. In TRL it is vllm_importance_sampling_mode "
        '"token_truncate", with a cap of 3.'
    ),
    "on_policy_distillation": (
        "The student writes, and teacher minus student is each token's advantage. There are no rewards and no groups: "
        "every token is judged, at states that the student itself visits. In expectation the gradient is that of the "
        "reverse KL to the teacher at each position. Teacher and student share a tokenizer; the method `on_policy` of "
        "a distillation stage is the exact form, over the whole vocabulary."
    ),
}

PREFERENCE_NOTES: Mapping[str, str] = {
    "dpo": (
        "A classifier of pairs whose score is the log-ratio to the reference. beta log(policy/ref) is the reward that "
        "the policy is optimal for, so no reward model is needed; a pair that is clearly the right way round hardly "
        "counts any more. Published: beta 0.1, learning rate 5e-7 to 1e-6. Both log-probs often fall while their gap "
        "grows, so they are logged apart."
    ),
    "cdpo": (
        "DPO that takes a share of the pairs to be the wrong way round. The loss then has its minimum at a finite gap, "
        "log((1 - e) / e) / beta, where DPO pushes without end. In TRL it is label_smoothing with the default loss."
    ),
    "robust_dpo": (
        "DPO made unbiased under labels that are flipped at a known rate. The mean over flips at rate e is exactly the "
        "DPO loss of the clean pair; a single pair may have a negative loss, and there is no lower bound. cDPO smooths "
        'instead, and is biased but bounded below. In TRL it is loss_type "robust".'
    ),
    "ipo": (
        "The squared distance of the gap from a fixed margin. Where every pair is labelled alike DPO drives the gap to "
        "infinity; here it stops at 1 / (2 beta), so the reference keeps its weight. Log-probs are means over tokens, "
        "as in its authors' code and in TRL; the paper has sums."
    ),
    "length_normalized_dpo": (
        "DPO of log-ratios per token. A longer completion can then not win by its length alone. Published: Tulu 3 has "
        'beta 5, because a mean is so much smaller than a sum. In TRL it is loss_type "sigmoid_norm".'
    ),
    "simpo": (
        "Mean log-probs are compared directly, without a reference, with a margin. What is optimised is what "
        "generation is ranked by, and half the memory is enough; nothing but a small learning rate holds the policy "
        "back. Published: beta 2 to 2.5 and a margin of about half of it. TRL (in CPO) has beta 0.1 and margin 0.5 "
        "unless told."
    ),
    "orpo": (
        "Imitation of the chosen completion, and odds against the rejected one. There is neither a reference nor a "
        "stage of fine-tuning before it. Odds are those of the mean log-prob, P / (1 - P). Published: weight 0.1, "
        "which TRL calls beta."
    ),
    "hinge": (
        "DPO's gap under a hinge: a pair beyond the margin teaches nothing. SLiC-HF calibrates log-probs; in this "
        'form, which is also TRL\'s loss_type "hinge", the reference is taken off, and the margin is 1 / beta in '
        "log-ratio."
    ),
    "dpo_nll": (
        "DPO with the likelihood of the chosen completion beside it. It keeps the chosen log-prob from falling, which "
        "matters for reasoning, where the two completions share most of their steps. Published: weight 1 per token of "
        'the chosen completion. In TRL it is the pair of losses "sigmoid" and "sft".'
    ),
    "kto": (
        "Single completions, liked or not, weighed against a reference point. The point z is the KL from policy to "
        "reference, estimated on completions that belong to other prompts and never differentiated; gains and losses "
        "saturate away from it. Published: beta 0.1, and weights that make up for unequal numbers of liked and "
        "disliked ones. TRL estimates z in the same way."
    ),
}

REWARD_MODEL_NOTES: Mapping[str, str] = {
    "bradley_terry": (
        "The chance that one of two is preferred is the sigmoid of the score difference. Scores are known up to a "
        "constant; a small centring term on the squared sum of a pair's scores holds them near 0. One epoch is usual, "
        "because a second one is memory. TRL's RewardTrainer is the same, with centring off unless told."
    ),
    "ranking": (
        "All pairs of a ranking of K, averaged. A completion is scored once and takes part in K - 1 pairs, so a prompt "
        "with many completions does not count more than another. With two completions it is `bradley_terry`."
    ),
    "pointwise": (
        "Binary cross-entropy of a score and a label. For judgements that stand alone: safe or not, and each step of a "
        "process right or not. DeepSeek-R1's safety model is trained so, on 106,000 labelled responses."
    ),
}

DISTILLATION_NOTES: Mapping[str, str] = {
    "sequence": (
        "The teacher's right answers are imitated token by token. Nothing but its tokens is asked of the teacher, and "
        "wrong answers are left out, so it is fine-tuning on data made on the spot. Published: DeepSeek-R1's students "
        "are fine-tuned so on 800,000 samples for two to three epochs."
    ),
    "logits": (
        "On the teacher's right answers, its whole distribution is matched. The forward KL spreads the student over "
        "all that the teacher might say. With a temperature T above 1 the loss is multiplied by T squared, as in "
        "Hinton et al."
    ),
    "gkd": (
        "A divergence between the two KLs, partly on the student's own completions. Training on the student's own "
        "states removes the difference between what it learns from and what it meets. Published and TRL's default: "
        "half of the completions are the student's, `jsd_beta` 0.5; 0 is the forward KL and 1 the reverse. TRL's GKD "
        "samples at temperature 0.9 unless told."
    ),
    "on_policy": (
        "The student writes, and the reverse KL to the teacher is minimised at each position. The exact form of the "
        "row `on_policy_distillation`: the whole vocabulary in place of the sampled token, so without its variance. "
        "The reverse KL makes the student do some of what the teacher does well rather than all of it badly."
    ),
}

KL_NOTES: Mapping[str, str] = {
    "k1": (
        "The log-ratio itself: for the reward. As a loss its gradient is 0 on average and noise besides. In the "
        "reward, where PPO, RLOO and REINFORCE++ have it, it gives the exact policy gradient of the reverse KL, and "
        "also takes part in the statistics of a group."
    ),
    "k2": (
        "Half the squared log-ratio: for the loss. Its expected gradient is exactly that of the reverse KL, although "
        "its value is biased. REINFORCE++ with baseline has it."
    ),
    "k3": (
        "GRPO's term: never negative, unbiased, of low variance. As a loss its expected gradient is that of the "
        "forward KL, which agrees with the reverse one near the reference only. It can be very large where the "
        "reference is far more likely than the policy."
    ),
    "k3_straight_through": (
        "The value of k3 with the gradient of k2. An unbiased number to look at, and the gradient of the reverse KL. "
        'verl calls it "k3+".'
    ),
    "exact": (
        "The whole vocabulary is summed over at each position. No sampling noise, at the price of the reference's "
        "logits; for small vocabularies and as a check on the others. It is no setting of a row: `kl_estimator` names "
        "the other four."
    ),
}

NOTES: Mapping[str, str] = {
    **POLICY_NOTES,
    **PREFERENCE_NOTES,
    **REWARD_MODEL_NOTES,
    **DISTILLATION_NOTES,
    **KL_NOTES,
}

# value as an estimate of KL(policy || ref); gradient as a term of the loss; gradient as a penalty in the reward
KL_GRADIENTS: Mapping[str, tuple[str, str, str]] = {
    "k1": ("unbiased, high variance, may be negative", "**zero**", "**that of KL(π ‖ ref)**"),
    "k2": (
        "biased by third-order terms, never negative",
        "**that of KL(π ‖ ref)**",
        "of no KL; vanishes to second order near u = 1",
    ),
    "k3": (
        "unbiased, low variance, never negative",
        "**that of KL(ref ‖ π)**: (1 − u) ∇ log π; agrees near u = 1",
        "that of KL(π ‖ ref) − KL(ref ‖ π); vanishes to second order near u = 1",
    ),
    "k3_straight_through": ("that of k3", "**that of KL(π ‖ ref)**", "that of k3"),
    "exact": ("exact at each position", "that of KL(π ‖ ref)", "not offered"),
}

INTRODUCTION = """\
# Algorithms

An algorithm is a row in a table: how credit is given, what a token then costs, how tokens become one number, and where
the KL to the reference goes. `melete algorithms` lists them, `melete explain grpo` shows one. Rows of policy gradients
are in `melete/algorithms/table.py`, those of preferences in `melete/algorithms/preference.py`; the functions that they
name are in `melete/functional/` and can be called as they are. This page is made from those tables by
`python tests/test_algorithms_page.py`.
"""

HOW_TO_READ = """\
*old* are the learner's log-probs at the start of the update. With a single update per batch they equal the current
ones, so they may be left out: the ratio is then exactly 1. *ref* are those of the reference model; an algorithm with
`kl_coef = 0` does not need them. *teacher* are those of a teacher, *values* those of a critic, *step rewards* and *step
ends* come from the task or a process reward model.

```python
import torch
from melete.algorithms import resolve, token_losses
from melete.functional.aggregate import aggregate, denominators

dapo = resolve("dapo", clip_high=0.3)
rewards, group_ids = torch.tensor([1.0, 0.0, 0.0]), torch.tensor([0, 0, 0])
advantages = dapo.advantages(rewards, group_ids, valid=torch.ones(3, dtype=torch.bool))

logprobs = torch.tensor([[-1.0, -2.0], [-0.5, 0.0], [-1.0, -1.0]], requires_grad=True)  # [B, T]
mask = torch.tensor([[True, True], [True, False], [True, True]])  # what the policy wrote
losses, metrics = token_losses(dapo, logprobs=logprobs, advantages=advantages[:, None].expand(3, 2), mask=mask)
aggregate(losses, mask, dapo.aggregation, denominators(mask, dapo.aggregation)).backward()
```
"""

SETTINGS = """\
A row declares the settings that change what it does; any other is refused, so no setting is ever silently ignored.
*Rows* are those whose default is another one.
"""

NOTATION = """\
Notation: r reward of a completion, A advantage, ratio = exp(logprobs − old_logprobs), sg stops the gradient, rows =
completions, mean and std of the group. Losses are minimised. Prompts and padding are masked; the end-of-turn token is a
token like any other and is learnt.
"""

CREDIT = """\
Groups are keyed by id, so rows may come in any order and a group may be partial. A group of one row, and a group whose
rewards are all equal, get exactly 0, unless the whole step is whitened. A row whose grader failed leaves the group's
mean and deviation, the denominators and the batch, as if it had not been sampled; it is counted. A row of advantage 0
is not computed when nothing else (a KL in the loss, entropy, a critic) could move it, and stays in the denominators.
"""

AGGREGATION = """\
| mode | formula | weight of one token |
|---|---|---|
| `sequence_mean_token_mean` | mean over rows of the mean over tokens | 1 / (rows × length of its row) |
| `token_mean` | sum / tokens of the step | the same for all |
| `sequence_mean_token_sum` | mean over rows of the sum over tokens | the same for all, 1 / rows |
| `constant` | sum / (rows × `aggregation_constant`) | the same for all, whatever the lengths |

For two rows of lengths 1 and 9 with losses 10 and 1 per token: 5.5, 1.9, 9.5, and 0.95 with constant 10. Rows without
any unmasked token do not count as rows. The denominators are counted once per optimizer step (`denominators`), before
rows are dropped or split into micro-batches, so micro-batches add up to the whole step exactly.
"""

KL = """\
For tokens sampled from the policy π, with u = π_ref / π. *In the loss* is the gradient that the estimator gives in
expectation when it is differentiated as a term of the loss; *in the reward* is the one that it gives when its value,
held constant, is taken off the reward of the token.
"""

KL_REMARKS = """\
- Source: Schulman 2020, [Approximating KL divergence](http://joschu.net/blog/kl-approx.html). Tests enumerate a
  vocabulary of five and check each gradient of this table.
- `k1` in the loss pushes nowhere on average, yet adds noise. `k2` and `k3` in the reward hardly hold a policy that is
  near the reference.
- In the loss, a token's KL does not see what the token leads to; in the reward, the sum over the row does. In the
  reward, it also takes part in the group's mean and deviation.
- In `k3` and in the ratio, the log-ratio is held within ±20 in value so that exp() stays finite; its gradient is not
  cut, so a token that drifted too far is still pulled back.
- With several updates per batch the tokens are no longer the policy's own, and all of this holds approximately.
"""

PREFERENCES = """\
A row of preferences is a loss of pairs, or of single completions (`kto`). It is handed sums of log-probs over the
completion, lengths in tokens, and its settings; `h` is the gap between the log-ratios of chosen and rejected. *ref*
means that the reference's log-probs are needed. The loss of a step is the mean over its pairs.
"""

REWARD_MODELS = """\
A reward model is the language model with a scalar head on its last token. Report accuracy on held-out pairs together
with calibration and the correlation of score and length (`melete/functional/reward_model.py`): a policy finds what the
score pays for.
"""

DISTILLATION = """\
The methods differ in who writes and in what is matched. Divergences are means over completion tokens, on logits of
student and teacher (`melete/functional/distill.py`).
"""

METRICS_INTRODUCTION = """\
Means over what was sampled or trained in a step, unless the name says otherwise. Token metrics are means over trained
tokens, and the mean over the updates of a step.
"""

OWN_LOSS = """\
`resolve("package.module:function")` takes your own loss by import path. Its parameters are any of `logprobs`,
`old_logprobs`, `ref_logprobs`, `rollout_logprobs`, `advantages`, `mask` and the settings above; it returns one loss per
token, and what it needs is read from its signature. Credit is GRPO's, aggregation `token_mean`, no KL, until you set
otherwise. The path may also name a whole row, an `Algorithm`. `resolve_preference` takes a loss of pairs in the same
way.
"""
