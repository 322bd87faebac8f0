"""The report of a whole pipeline: each section exactly when its data are there, and every number out of the files."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fabricate import write_run
from fabricate_r1 import LABELS, write_claims, write_r1
from html_page import Page, outside_of_blocks

from melete.report import build_report

ALL = [
    "path", "checkpoints", "answers", "group", "curves", "voting", "reflecting", "kept", "students", "cost", "verdicts",
    "findings", "again", "glossary",
]  # fmt: skip
Summary = dict[str, Any]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_r1(tmp_path_factory.mktemp("r1"))
    build_report(path)
    return path


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text())


def changed(run: Path, to: Path, change: Callable[[Summary], None]) -> tuple[Page, str]:
    """Page and Markdown of a copy of the run with another summary."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("report.*", "stages"))
    summary = json.loads((to / "summary.json").read_text())
    change(summary)
    (to / "summary.json").write_text(json.dumps(summary))
    build_report(to)
    return Page((to / "report.html").read_text()), (to / "report.md").read_text()


def entry(summary: Summary, name: str) -> dict[str, Any]:
    return next(stage for stage in summary["stages"] if stage["name"] == name)


def checkpoint(summary: Summary, model: str) -> dict[str, Any]:
    return next(one for one in entry(summary, "exam")["checkpoints"] if one["model"] == model)


def test_every_section_is_there_in_the_order_of_the_story(run: Path, page: Page) -> None:
    assert page.sections == ALL
    titles = re.findall(r"^## (.*)$", outside_of_blocks((run / "report.md").read_text()), re.MULTILINE)
    assert len(titles) == len(ALL)


def drop(key: str, *kinds: str) -> Callable[[Summary], None]:
    """Takes a key out of the entries of some kinds of stages."""

    def change(summary: Summary) -> None:
        for stage in summary["stages"]:
            if stage["kind"] in kinds:
                stage.pop(key, None)

    return change


def without_support(summary: Summary) -> None:
    drop("support", "rl")(summary)
    drop("health", "rl")(summary)


def without_data(summary: Summary) -> None:
    kinds = ("reject", "mix", "reward_model")
    summary["stages"] = [stage for stage in summary["stages"] if stage["kind"] not in kinds]


def without_students(summary: Summary) -> None:
    exam = entry(summary, "exam")
    exam["checkpoints"] = exam["checkpoints"][:6]


def without_votes(summary: Summary) -> None:
    for one in entry(summary, "exam")["checkpoints"]:
        one["tasks"]["arithmetic"]["majority"] = {}


def without_seconds(summary: Summary) -> None:
    for stage in summary["stages"]:
        stage["seconds"] = None
    summary["seconds"] = None


def without_reflection(summary: Summary) -> None:
    for one in entry(summary, "exam")["checkpoints"]:
        del one["tasks"]["arithmetic"]["reflection_per_1k"], one["tasks"]["arithmetic"]["repair"]


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        (drop("checkpoints", "evaluate"), {"checkpoints", "answers", "voting", "reflecting", "students", "verdicts"}),
        (drop("same_prompts", "evaluate"), {"answers"}),
        (without_support, {"findings"}),
        (without_data, {"kept"}),
        (without_students, {"students"}),
        (without_votes, {"voting"}),
        (without_seconds, {"cost"}),
        (without_reflection, {"reflecting"}),
    ],
)
def test_a_section_without_data_is_left_out(
    run: Path, tmp_path: Path, change: Callable[[Summary], None], gone: set[str]
) -> None:
    page, _ = changed(run, tmp_path / "r", change)
    assert set(ALL) - set(page.sections) == gone


def test_sections_of_logs_go_with_the_logs(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "r")
    for log in ("metrics", "rollouts"):
        (tmp_path / "r" / f"{log}.jsonl").unlink()
    build_report(tmp_path / "r")
    assert set(ALL) - set(Page((tmp_path / "r" / "report.html").read_text()).sections) == {"curves", "group"}


def set_in(model: str, task: str, **numbers: Any) -> Callable[[Summary], None]:
    return lambda summary: checkpoint(summary, model)["tasks"][task].update(numbers)


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (set_in("zero", "arithmetic", **{"pass@1": 0.6731}), "67 %"),
        (set_in("dev2", "arithmetic", **{"maj@16": 0.1234}), "12 %"),
        (set_in("r1", "general", score=0.7771), "0.777"),
        (set_in("r1", "general", refused_harmless=0.1749), "17 %"),
        (set_in("dev1", "spanish", language_share=0.8149), "81 %"),
        (set_in("rl_llama", "arithmetic", length_mean=123.4), "123"),
        (set_in("r1", "arithmetic", repair={"marked": 347, "right_before": 19}), "347 results"),
        (set_in("r1", "arithmetic", tokens_at={"1": 41.5, "16": 4321.0}), "4,321"),
        (lambda summary: entry(summary, "dev1").update(num_rows=1723), "1,723 examples"),
        (lambda summary: entry(summary, "r1").update(seconds=37 * 60), "37 min"),
        (lambda summary: entry(summary, "rl_qwen").update(num_completion_tokens=987_654), "987,654"),
        (lambda summary: entry(summary, "helpful")["held_out"].update(pair_accuracy=0.7151), "72 %"),
        (lambda summary: entry(summary, "reasoning")["dropped"].update(wrong=1234), "1,234"),
        (lambda summary: entry(summary, "judged")["judge_agreement"].update(agreement=0.6349), "63 %"),
        (lambda summary: entry(summary, "zero")["support"].update(num_problems=333), "333 problems"),
        (lambda summary: entry(summary, "zero")["health"][0].update(says="In 61.7% of them."), "In 61.7% of them."),
    ],
)
def test_a_number_in_the_report_is_one_in_the_files(
    run: Path, page: Page, tmp_path: Path, change: Callable[[Summary], None], shown: str
) -> None:
    other, markdown = changed(run, tmp_path / "r", change)
    markdown = markdown.replace("\N{NO-BREAK SPACE}", " ")
    assert other.plain.count(shown) > page.plain.count(shown)
    assert shown in markdown


def test_the_page_is_whole_and_asks_nothing_of_the_network_or_of_scripts(page: Page) -> None:
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert "src" not in attributes and not any(name.startswith("on") for name in attributes), (tag, attributes)
    links = [str(attributes["href"]) for _, attributes in page.tags if "href" in attributes]
    assert links and all(link.startswith("#") and link[1:] in page.sections for link in links)
    assert "url(" not in page.text and "http" not in page.text


def test_headings_go_down_one_level_at_a_time(page: Page) -> None:
    levels = page.headings
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def test_every_drawing_is_told_in_words_or_beside_words(page: Page) -> None:
    drawings = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert all(one.get("aria-label") or one.get("aria-hidden") == "true" for one in drawings)
    labels = [str(one["aria-label"]) for one in drawings if one.get("aria-label")]
    assert any("R1-Zero: 91" in label for label in labels) and not any("nan" in label for label in labels)


def test_what_a_model_wrote_stays_text(run: Path, page: Page) -> None:
    assert page.text.count("<script>alert('thought')</script>") > 3
    assert not re.search(r"<(script|img|b)\b", outside_of_blocks((run / "report.md").read_text()))


def test_the_same_files_give_the_same_bytes_without_torch(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "moved", ignore=shutil.ignore_patterns("report.*"))
    code = "import sys; from melete.report import build_report as b; b(sys.argv[1]); print('torch' in sys.modules)"
    asked = [sys.executable, "-c", code, str(tmp_path / "moved")]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == "False"
    for name in ("report.html", "report.md"):
        assert (tmp_path / "moved" / name).read_bytes() == (run / name).read_bytes()


@pytest.mark.parametrize("num_done", [0, 1, 5, 12, 23])
def test_a_run_that_has_not_finished_tells_what_is_known(tmp_path: Path, num_done: int) -> None:
    build_report(write_r1(tmp_path, finished=False, num_done=num_done))
    page = Page((tmp_path / "report.html").read_text())
    assert "has not finished" in page.plain and page.plain.count("not done yet") == 24 - num_done
    assert page.plain.count("right, readable and not yet there") == sum(n in (1, 6, 9, 18) for n in range(num_done))
    assert page.sections[0] == "path" and ("cost" in page.sections) == (num_done > 0)


def test_a_stage_under_way_says_how_far_it_has_come(tmp_path: Path) -> None:
    write_r1(tmp_path, finished=False, num_done=1)
    (tmp_path / "stages" / "zero.json").unlink()
    build_report(tmp_path)
    assert "under way: 32 of 32 steps" in Page((tmp_path / "report.html").read_text()).plain


def test_a_summary_of_some_of_the_stages_is_not_the_end(run: Path, tmp_path: Path) -> None:
    page, _ = changed(run, tmp_path / "r", lambda summary: summary.update(unfinished=["exam"]))
    assert "has not finished" in page.plain


def test_the_path_names_every_stage_and_what_it_came_from(run: Path, page: Page) -> None:
    for told in (
        "R1-Dev3 dev3 imitation (SFT)", "from base and curated", "from R1-Dev3, harmless and helpful",
        "In each of 32 steps, the base wrote 8 attempts at each of 16 problems", "216 were kept",
        "a right answer and tags in order (× 0.1)", "648 from reasoning, 72 from judged and 240 from general",
        "A model of 1.03 million parameters",
        "After 50 % of the steps, 50 % of the problems were others (general)",
    ):  # fmt: skip
        assert told in page.plain, told
    source = (run / "report.html").read_text()
    rails = re.findall(r'<svg class="rails".*?</svg>', source)
    assert len(rails) == 24 + 3 and all(ET.fromstring(one) is not None for one in rails)  # three models were given


def test_a_kind_of_stage_that_the_report_does_not_know_has_a_row_all_the_same(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "r")
    recipe = json.loads((tmp_path / "r" / "recipe.json").read_text())
    recipe["stage"].append({"name": "novelty", "kind": "telepathy", "model": "r1"})
    (tmp_path / "r" / "recipe.json").write_text(json.dumps(recipe))
    build_report(tmp_path / "r")
    assert "novelty telepathy" in Page((tmp_path / "r" / "report.html").read_text()).plain


def test_every_checkpoint_has_a_row_and_an_answer(page: Page) -> None:
    rows = [attributes for tag, attributes in page.tags if tag == "th" and attributes.get("scope") == "row"]
    assert len(rows) >= len(LABELS)
    for label in LABELS.values():
        assert page.plain.count(label) > 4
    assert "✓ right" in page.plain and "✗ wrong" in page.plain


def test_students_are_compared_with_their_tokens(run: Path, page: Page, tmp_path: Path) -> None:
    assert "Qwen student, distilled: 78 % [75, 81] right; Qwen student, RL only: 52 % [49, 55]." in page.plain
    assert "imitating the teacher taught more, by 12.0 standard errors" in page.plain
    assert "learned from 132,400 tokens of its teacher, the other from 130,000 of its own attempts" in page.plain
    better = {"pass@1": 0.9, "pass@1/low": 0.88, "pass@1/high": 0.92}
    other, _ = changed(run, tmp_path / "r", set_in("rl_qwen", "arithmetic", **better))
    assert "rewards alone taught more" in other.plain


def test_reflection_is_told_with_its_base_rate(page: Page) -> None:
    assert "The base already wrote 7.4 of these words per 1,000 tokens" in page.plain
    assert "They fell while accuracy rose: R1 got better without more reflection" in page.plain
    assert "R1 took 95 results back on arithmetic. 72 of them had been wrong, and 47 of these became right (65 %)." in (
        page.plain
    )


def test_a_vote_that_does_not_help_is_said_not_to(run: Path, tmp_path: Path) -> None:
    flat = {str(k): [0.9, 0.88, 0.92] for k in (1, 4, 16)}
    page, _ = changed(run, tmp_path / "r", set_in("r1", "arithmetic", majority=flat))
    assert "For R1 a vote of 16 hardly helps: 90 % to 90 %" in page.plain


def test_reasons_come_in_the_order_of_the_filters(page: Page) -> None:
    places = [page.plain.index(told) for told in ("216 answers of 512", "length limit 5", "in order 10", "wrong 72")]
    assert places == sorted(places)


def test_claims_that_were_not_measured_come_last(run: Path) -> None:
    source = (run / "report.html").read_text()
    styles = re.findall(r'<article class="claim (\w+)">', source)
    assert len(styles) == 10 and "none" not in styles[: styles.index("none")]
    assert set(styles[styles.index("none") :]) == {"none"}


def test_an_exam_of_one_model_that_measured_little_has_a_report(run: Path, tmp_path: Path) -> None:
    def change(summary: Summary) -> None:
        one = {"model": "zero", "label": "R1-Zero", "num_parameters": None, "tasks": {"arithmetic": {"pass@1": 0.5}}}
        exam = {"name": "exam", "kind": "evaluate", "seconds": 1.0, "evaluations": [], "checkpoints": [one]}
        summary["stages"] = [exam]

    # claims read whole evaluations, as an exam leaves them
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("melete.claims.claims_of_run", lambda summary: [])
        page, _ = changed(run, tmp_path / "r", change)
    assert "checkpoints" in page.sections and "50 %" in page.plain


def test_a_run_of_one_stage_has_neither_path_nor_contents(tmp_path: Path) -> None:
    build_report(write_run(tmp_path))
    page = Page((tmp_path / "report.html").read_text())
    assert page.sections[0] == "story" and not {"path", "cost", "verdicts", "checkpoints"} & set(page.sections)
    assert "nav" not in {tag for tag, _ in page.tags}


def test_a_repetition_begins_with_the_claims_and_leads_to_the_other_reports(tmp_path: Path) -> None:
    build_report(write_claims(tmp_path))
    page, markdown = Page((tmp_path / "report.html").read_text()), (tmp_path / "report.md").read_text()
    assert page.sections[0] == "replication"
    assert "1 holds 1 not measured" in page.plain and "Seeds: 0, 1." in page.plain
    assert "Random reward <b>teaches</b> nothing" in page.text and "<b>" not in outside_of_blocks(markdown)
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"seeds/{seed}/{arm}/report.html" for seed in (0, 1) for arm in ("main", "control")]
    assert "91 % [88, 94]" in page.plain and "82 % [79, 85]" in page.plain  # R1-Zero with seeds 0 and 1
    assert "(seeds/1/main/report.html)" in markdown


@pytest.mark.parametrize("place", ["../else", "/etc", "", None, "seeds/../.."])
def test_a_link_never_leaves_the_run(tmp_path: Path, place: str | None) -> None:
    write_claims(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    summary["stages"][0]["runs"][0]["dir"] = place
    summary["stages"][0]["runs"][1]["dir"] = "javascript:alert(1)"
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    build_report(tmp_path)
    page = Page((tmp_path / "report.html").read_text())
    links = [str(attributes["href"]) for tag, attributes in page.tags if tag == "a"]
    assert len(links) == 3 and not any(link.startswith(("/", "..", "javascript:")) for link in links)
