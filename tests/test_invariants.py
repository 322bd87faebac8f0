"""docs/invariants.md: laws that the code obeys and the tests that hold it to them; `python tests/test_invariants.py`.

A test that holds a law names its number in the docstring; that is all the table is made from.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "invariants.md"
NO_TEST_YET: dict[int, str] = {}
LAWS: dict[str, dict[int, str]] = {
    "Loss and gradient": {
        1: "Loss and gradient are the same however a batch is split into micro-batches, in every aggregation mode.",
        2: "Two data-parallel workers make the update that one makes of the same rows.",
        3: "Packed rows give what padded rows give, and neighbours in a pack never attend to each other.",
        4: "Neither the order of rows nor the amount and side of padding changes a result.",
        5: "A step without learnt tokens has loss 0 and finite gradients of 0; such a row leaves the denominators.",
        6: "What stands at a masked position, NaN and infinity included, reaches neither loss nor gradient.",
        7: "Denominators are those of the whole step, and the loss that is logged is the loss that is optimised.",
        8: "How the weight of a token depends on the length of its row is what the aggregation mode says.",
        9: "The gradients of all micro-batches count, and the norm is clipped of their sum.",
    },
    "Ratio and clip": {
        10: "In the first update on fresh rollouts the ratio is 1, nothing is clipped and the approximate KL is 0.",
        11: "The gradient is that of the clipped objective; it is 0 outside the clip on the harmful side only.",
        12: "The dual clip acts on negative advantages only, and its setting arrives.",
        13: "CISPO's gradient flows through the log-prob alone; its weight is a clipped constant.",
        14: "GSPO has one ratio per row, the exponential of the mean log-ratio, with the gradient of the direct form.",
        15: "Log-probs from before the update are those of the weights that they name, and are never changed in place.",
        16: "Changing any setting that a row declares changes its loss or its gradient.",
        17: "Correction weights are capped exactly, constant, and 1 where policies agree; masks mask what they say.",
    },
    "KL": {
        18: "k1 and k3 have the exact KL as their mean, k2 a small bias, and k3 is never negative.",
        19: "As a loss each estimator has the expected gradient that is written of it, with and without a score term.",
        20: "The KL in the reward is a constant, the KL in the loss is not, and no bound cuts a gradient silently.",
        21: "The KL counts tokens of the policy only, in loss and in returns; its controller moves the right way.",
    },
    "Advantages and returns": {
        22: "GAE equals a calculation by hand, is Monte Carlo at 1 and TD at 0, and padding never bootstraps.",
        23: "Tokens that the policy did not write are transparent: inserting them changes no advantage.",
        24: "Whitening uses the tokens of the mask only, and all of the step.",
        25: "A group has mean 0; equal rewards, and a group of one, get exactly 0; a shift of rewards changes nothing.",
        26: "Leave-one-out equals the direct sum, and n / (n - 1) times the deviation from the mean.",
        27: "The vectorised form equals a plain loop, also for a tiny spread on a large offset.",
        28: "Groups are keyed by id, in any order and however partial; whether they teach is told by rewards.",
        29: "A row cut off at its limit is treated as configured, and bootstraps where a finished one does not.",
        30: "The value clip is around the old values, the factor 0.5 is stated, and splits change no loss.",
    },
    "Tokens and log-probs": {
        31: "There is exactly one beginning, and the end of a turn is learnt even where it is the padding token.",
        32: "The loss mask is exactly what the policy wrote.",
        33: "The learner's log-probs are the sampler's, and do not depend on the size of the batch.",
        34: "The temperature is applied once, to the policy's logits, and not to the critic or teacher.",
        35: "The tokens of one turn begin those of the next.",
        36: "The score of a reward model does not depend on the batch, and 0 is a score and not a missing one.",
    },
    "Runs": {
        37: "A run that is killed and resumed ends bit for bit as one that was not; a checkpoint is whole or absent.",
        38: "After new weights arrive the sampler's log-probs are the trainer's and the version has grown.",
        39: "With a learning rate of 0 no parameter changes.",
        40: "Staleness and token budget keep their bounds, and no sample is lost, doubled, or put in another's group.",
        41: "A grader that fails gives no reward rather than 0; hostile text neither runs, nor hangs, nor scores.",
        42: "Rewards and log-probs are checked for number and finiteness where they enter.",
    },
}
_NUMBER = re.compile(r"\bI(\d{1,2})\b")


def numbered_tests() -> Iterator[tuple[int, str]]:
    """Number of a law and `file::name` of a test, in the order of the files."""
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                numbers = {int(number) for number in _NUMBER.findall(ast.get_docstring(node) or "")}
                yield from ((number, f"{path.relative_to(ROOT).as_posix()}::{node.name}") for number in numbers)


def page() -> str:
    lines = [
        "# Invariants",
        "",
        "Laws that this code obeys, and the tests that hold it to them. Most come from mistakes that are easy to make",
        "and hard to see, because a model still learns something. A test names the number of its law in its",
        "docstring, and `python tests/test_invariants.py` makes this page from those.",
    ]
    found: dict[int, list[str]] = {}
    for number, test in numbered_tests():
        found.setdefault(number, []).append(test)
    for family, laws in LAWS.items():
        lines += ["", f"## {family}", "", "| law | statement | tests |", "|---|---|---|"]
        for number, statement in laws.items():
            tests = "<br>".join(f"`{test}`" for test in found.get(number, ())) or NO_TEST_YET.get(number, "none")
            lines.append(f"| I{number} | {statement} | {tests} |")
    return "\n".join(lines) + "\n"


def test_the_page_is_up_to_date():
    assert page() == PAGE.read_text(encoding="utf-8"), "run: python tests/test_invariants.py"


def test_every_law_has_a_test_that_names_it():
    named = {number for number, _ in numbered_tests()}
    stated = {number for laws in LAWS.values() for number in laws}
    assert sorted(stated - named) == sorted(NO_TEST_YET)
    assert sorted(named - stated) == []


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
