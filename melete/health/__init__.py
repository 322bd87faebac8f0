"""Whether a run of reinforcement learning is well, in plain words. Pure functions of metrics rows; nothing loads torch.

rules.py     the rules: what each looks at, its number, the likely cause and the setting to try
hacking.py   the two rules on rewards that rise for the wrong reason
signs.py     what a rule says at one step
history.py   what a rule may look at: the rows so far, averaged
findings.py  from rows to findings, for a whole stage and for a running one
support.py   what a check before the first step has measured, and whether training can work
"""

from melete.health.findings import Finding, Watch, findings, health_of_run
from melete.health.support import Support, dead_chance

__all__ = ["Finding", "Support", "Watch", "dead_chance", "findings", "health_of_run"]
