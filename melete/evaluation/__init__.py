"""How good a policy is: pass@k, majority votes, intervals, reflection, and the transcripts that a report shows.

metrics.py      pass@k, maj@k, bootstrap intervals
reflection.py   words of reflection per 1,000 tokens
judgement.py    one completion, judged, and the answer that it votes for
evaluate.py     many samples of each problem, and what they say
transcripts.py  the rule that chooses transcripts
"""
