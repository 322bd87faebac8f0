import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fabricate import HOSTILE, write_run
from html_page import Page, outside_of_blocks

from melete.errors import RunError
from melete.report import build_report
from melete.report.reflecting import verdict
from melete.report.story import standard_errors
from melete.report.transcripts import one_group, segments


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_run(tmp_path_factory.mktemp("run"))
    build_report(path)
    return path


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page((run / "report.html").read_text())


def test_the_same_files_give_the_same_bytes_wherever_they_lie(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "moved", ignore=shutil.ignore_patterns("report.*"))
    build_report(tmp_path / "moved")
    for name in ("report.html", "report.md"):
        assert (tmp_path / "moved" / name).read_bytes() == (run / name).read_bytes()
        assert str(run) not in (run / name).read_text()


def test_the_same_files_give_the_same_bytes_in_another_process(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "r")
    code = "import sys; from melete.report import build_report as b; b(sys.argv[1]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "r")], capture_output=True, text=True, check=True)
    assert (tmp_path / "r" / "report.html").read_bytes() == (run / "report.html").read_bytes()
    assert done.stdout.strip() == "False", "a report needs no torch"


def test_the_page_is_whole_and_asks_nothing_of_the_network_or_of_scripts(page: Page) -> None:
    assert page.open == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name in {"src", "href"} for name in attributes), (tag, attributes)
    assert "url(" not in page.text and "@import" not in page.text


def test_what_a_model_wrote_stays_text(page: Page) -> None:
    assert "<script>alert('thought')</script>" in page.text
    assert "<script>alert('prompt')</script>" in page.text
    assert "8<img src=x onerror=alert(1)>" in page.text


def test_in_markdown_a_completion_cannot_leave_its_block(run: Path) -> None:
    assert not re.search(r"<(script|img)", outside_of_blocks((run / "report.md").read_text()))
    assert HOSTILE in (run / "report.md").read_text()


def test_the_story_is_told_from_base_to_final(page: Page) -> None:
    text = " ".join(page.text.split())
    for told in (
        "trained for 120 steps", "8 attempts at each of 16 problems", "What the base could do", "86 %", "The control",
        "which may be chance", "fell while accuracy rose", "Asking several times and voting",
        "melete run r1-zero-tiny --set seed=0",
        "right in 15 of 16 attempts", "2.13.0", "x86_64, 2 cores", "4.19 minutes", "How one step teaches",
    ):  # fmt: skip
        assert told in text.replace("\N{NO-BREAK SPACE}", " "), told


def test_thought_and_answer_are_set_apart_and_reflection_is_marked(page: Page) -> None:
    kinds = [attributes.get("class") for tag, attributes in page.tags if tag == "div"]
    assert "written thought" in kinds and "written answer" in kinds
    assert sum(tag == "mark" for tag, _ in page.tags) >= 3


def test_every_chart_says_in_words_what_it_shows(page: Page) -> None:
    labels = [attributes["aria-label"] for tag, attributes in page.tags if tag == "svg"]
    assert len(labels) >= 8
    assert all(label and "from" in label and "nan" not in label for label in labels)


def test_a_run_that_has_not_finished_has_a_report_too(tmp_path: Path) -> None:
    build_report(write_run(tmp_path, finished=False))
    text = (tmp_path / "report.html").read_text()
    assert "has not finished" in text and "<svg" in text


@pytest.mark.parametrize(
    "rows", ["", '{"stage": "rl", "step": 0, "reward": 0.5}\n', '{"stage": "rl", "step": 0, "reward": null}\n']
)
def test_a_run_with_hardly_a_row_has_a_report_too(tmp_path: Path, rows: str) -> None:
    (tmp_path / "recipe.json").write_text(json.dumps({"name": "bare", "stage": []}))
    (tmp_path / "metrics.jsonl").write_text(rows)
    build_report(tmp_path)
    assert "bare" in (tmp_path / "report.html").read_text()


def test_metrics_that_are_missing_leave_a_gap_not_a_failure(tmp_path: Path) -> None:
    write_run(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    for evaluation in summary["stages"][0]["evaluations"]:
        for key in (
            "pass@1",
            "maj@16",
            "pass@16",
            "majority",
            "pass",
            "share_thinking",
            "reflection_per_1k",
            "reflection_words",
        ):
            evaluation.pop(key)
    for entry in summary["transcripts"]:
        entry["before"] |= {"reward": None, "reward_parts": {"accuracy": None}}
        del entry["after"]["num_correct"], entry["after"]["num_samples"], entry["kind"]
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    build_report(tmp_path)
    assert "failed" in (tmp_path / "report.html").read_text()


def test_a_place_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"recipe\.json is missing"):
        build_report(tmp_path)


def test_a_broken_summary_is_named(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"summary\.json"):
        build_report(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>a</think><answer>8</answer>", [("thought", "a"), ("answer", "8")]),
        ("<think>never ends", [("thought", "never ends")]),
        ("8", [("text", "8")]),
        ("</answer>8<think>", [("text", "8")]),
        ("", []),
    ],
)
def test_a_completion_comes_apart_at_its_tags(text: str, expected: list[tuple[str, str]]) -> None:
    assert [(segment.kind, segment.text) for segment in segments(text)] == expected


def test_the_group_shown_is_one_that_teaches() -> None:
    def row(problem: str, reward: float | None) -> dict[str, object]:
        return {"stage": "rl", "step": 0, "problem_id": problem, "reward": reward, "text": ""}

    shown = one_group([row("a", 0.0), row("a", 1.0), row("a", None), row("b", 0.0), row("b", 0.0)])
    assert [(r["problem_id"], r["difference"]) for r in shown] == [("a", -0.5), ("a", 0.5)]
    assert one_group([row("b", 0.0), row("b", 0.0)]) == []


def test_standard_errors_come_back_from_the_intervals() -> None:
    base = {"pass@1": 0.4, "pass@1/low": 0.4 - 0.0588, "pass@1/high": 0.4 + 0.0588}
    final = {"pass@1": 0.55, "pass@1/low": 0.55 - 0.0784, "pass@1/high": 0.55 + 0.0784}
    assert standard_errors(base, final) == pytest.approx(0.15 / 0.05)


@pytest.mark.parametrize(
    ("after", "said"), [(9.0, "more frequent"), (3.0, "about the same"), (1.0, "fell while accuracy rose")]
)
def test_reflection_is_reported_as_it_came_out(after: float, said: str) -> None:
    told = verdict({"reflection_per_1k": 3.0, "pass@1": 0.4}, {"reflection_per_1k": after, "pass@1": 0.8})
    assert said in told and "3 of these words" in told
