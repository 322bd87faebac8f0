"""Does a run bear out what DeepSeek-R1's paper says? Ten claims, each with a criterion that is fixed beforehand.

estimates.py   numbers with standard errors, of one run and over seeds
facts.py       what is read out of a run, by the names of r1-tiny's stages and tasks
compare.py     what is held against what
verdicts.py    the tests, and what they found
table.py       the claims
judge.py       verdicts and sentences
"""

from melete.claims.facts import MAIN, RunFacts
from melete.claims.judge import claims_of_run, claims_of_runs
from melete.claims.table import CLAIMS, Claim
from melete.claims.verdicts import VERDICTS

__all__ = ["CLAIMS", "MAIN", "VERDICTS", "Claim", "RunFacts", "claims_of_run", "claims_of_runs"]
