"""What a run will take, before it begins: time, memory and disk, from a short measurement on this machine.

graph.py     which model on disk a stage goes back to, and how many rows a data set will have
work.py      what a stage samples, reads, learns from, holds and keeps
kinds.py     how much of it each kind of stage does, from its settings alone
sizes.py     the size of a model, from its files; no torch
machine.py   memory and disk that are free
measure.py   the speed of a model, and how long its completions are
kept.py      measurements kept between runs
knowledge.py what is known: kept, or measured now
replicate.py a recipe with several seeds and arms
estimate.py  work and measurement to seconds and bytes
plan.py      the plan of a recipe, and when it is refused
"""

from melete.planning.machine import Machine
from melete.planning.plan import Plan, StagePlan, load_estimates, make_plan, save_plan

__all__ = ["Machine", "Plan", "StagePlan", "load_estimates", "make_plan", "save_plan"]
