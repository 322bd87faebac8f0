"""The page says of each rule what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from melete.health.rules import RULES
from melete.schema.health import HealthSettings, SupportSettings

PAGE = (Path(__file__).parents[2] / "docs" / "health.md").read_text(encoding="utf-8")
LIMITS = {
    "truncation": "truncated_share",
    "entropy_collapse": "entropy_share",
    "format_hacking": "format_gain",
    "reward_model_hacking": "verifier_fall",
    "length_explosion": "length_growth",
    "gradient_norm": "gradient_spike",
    "flat_reward": "flat_steps",
}


def test_each_rule_stands_in_the_table_in_order_with_its_limits() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]+) \|$", PAGE, re.MULTILINE)
    table = [(name, limits) for name, limits in rows if name in RULES]
    assert [name for name, _ in table] == list(RULES)
    for name, limits in table:
        value = getattr(HealthSettings(), LIMITS.get(name, name))
        expected = value if isinstance(value, list) else [value]
        assert [float(number) for number in limits.split(" (")[0].split(", ")] == expected, name


def test_the_page_tells_the_limits_of_the_check() -> None:
    limits = SupportSettings()
    assert f"tries {limits.num_problems} of its training problems" in PAGE
    assert f"below {limits.min_pass_rate:.0%}".replace("%", " %") in PAGE
    assert f"more than {limits.max_dead_share:.0%}".replace("%", " %") in PAGE.replace("\n", " ")
