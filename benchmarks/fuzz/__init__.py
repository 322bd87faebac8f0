"""Bad input by the hundred thousand: recipes, overrides, data files, chat templates and requests.

    python -m benchmarks.fuzz                      # all kinds, 105,000 cases
    python -m benchmarks.fuzz --kind data --seed 7 --only 1234    # one case again

__main__.py   the command
run.py        runs the cases and counts what came of them
law.py        what must hold of every case
mutate.py     what is done to a good input to make it a bad one
recipes.py, data.py, templates.py, servers.py   the kinds
"""
