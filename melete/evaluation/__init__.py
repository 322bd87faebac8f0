"""How good a policy is, and how it behaves: what many samples of held-out problems say.

metrics.py       pass@k, maj@k, bootstrap intervals
reflection.py    words of reflection per 1,000 tokens
conduct.py       language, checks and corrections, refusals
judgement.py     one completion, judged, and the answer that it votes for
evaluate.py      many samples of each problem, and what they say
held_out.py      evaluations that are kept, so that a run can be continued
again.py         what was kept, problem by problem, to compare two models
transcripts.py   the rule that chooses transcripts
same_prompts.py  the rule that chooses problems answered by several models
"""
