"""SECURITY.md: each promise names its tests, and what can be read off the source is read off it."""

from __future__ import annotations

import ast
import copy
import importlib.util
import re
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import pytest
from packaging.requirements import Requirement
from tiny_models import tokenizer

from melete.errors import ModelError
from melete.models.templates import choose_template
from melete.report.build import _environment
from melete.text.chat import prompt_tokens
from melete.types import Message

ROOT = Path(__file__).parents[1]
UNPICKLERS = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
RUN_TEXT = {"eval", "exec", "compile"}
# these two are the programs that run inside a sandbox
INSIDE_OF_A_SANDBOX = {"melete/sandbox/functions.py", "melete/sandbox/referee.py"}
NOT_OF_THE_TWO_COMMANDS = {"vllm", "wandb", "trackio"}  # trackio wants an older pillow than the one that is pinned
_NAMED = re.compile(r"`(tests/[\w/]+\.py)(?:::(\w+))?`")


def promises() -> list[list[str]]:
    """The cells of each row of the tables of promises."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    return [row for row in rows if row[0] not in ("promise", "") and set(row[0]) != {"-"}]


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)}


def test_each_promise_says_how_and_names_a_test() -> None:
    assert len(promises()) >= 20
    for promise in promises():
        assert len(promise) == 3 and all(promise), promise
        assert _NAMED.search(promise[2]), promise


@pytest.mark.parametrize("promise", promises(), ids=lambda promise: re.sub(r"\W+", "-", promise[0])[:48])
def test_the_tests_of_a_promise_are_there(promise: list[str]) -> None:
    for path, name in _NAMED.findall(promise[2]):
        assert name, f"{path}: name the test, not the file alone"
        assert (ROOT / path).is_file() and name in functions_of(ROOT / path), f"{path}::{name}"


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """File, dotted name and node of each call in the package."""
    for path in sorted((ROOT / "melete").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield path.relative_to(ROOT).as_posix(), ast.unparse(node.func), node


def given(call: ast.Call) -> dict[str, str]:
    return {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}


def test_nothing_is_unpickled() -> None:
    for path in sorted((ROOT / "melete").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & UNPICKLERS, path
    loads = [(path, given(call)) for path, name, call in calls() if name in ("torch.load", "np.load", "numpy.load")]
    assert loads and all(words.get("weights_only") == "True" for _, words in loads)
    assert not any("allow_pickle" in given(call) for _, _, call in calls())


def test_models_are_loaded_from_safetensors_alone_and_their_code_is_never_run() -> None:
    """There is no setting for it: no file says anything but False."""
    loaders = [
        (path, name, given(call)) for path, name, call in calls() if re.match(r"Auto\w+\.from_pretrained$", name)
    ]
    assert len(loaders) >= 5
    for path, name, words in loaders:
        assert words.get("trust_remote_code") == "False", (path, name)
        is_model = "ForCausalLM" in name or "ForSequence" in name
        # a GGUF file holds numbers alone, too
        assert not is_model or words.get("use_safetensors") == "True" or "gguf_file" in words, path
    for path in sorted((ROOT / "melete").rglob("*.py")):
        for found in re.findall(r"trust_remote_code\s*(?:=|:)\s*(\w+)", path.read_text(encoding="utf-8")):
            assert found == "False", path


def test_text_is_run_as_a_program_only_inside_of_a_sandbox() -> None:
    assert {path for path, name, _ in calls() if name in RUN_TEXT} <= INSIDE_OF_A_SANDBOX
    assert not [path for path, name, _ in calls() if name in ("os.system", "os.popen")]
    assert not [path for path, _, call in calls() if given(call).get("shell", "False") != "False"]


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{% include '/etc/passwd' %}",
    ],
)
def test_a_chat_template_cannot_leave_its_sandbox(template: str, tmp_path: Path) -> None:
    """Whether it comes with a model or out of a file."""
    words = copy.deepcopy(tokenizer())
    words.chat_template = template
    with pytest.raises(ModelError, match="chat template"):
        prompt_tokens(words, [Message("user", "hello")])
    file = tmp_path / "mine.jinja"
    file.write_text(template)
    with pytest.raises(ModelError, match="chat template"):
        choose_template(words, str(file))


def test_the_templates_of_a_report_are_rendered_in_a_sandbox_and_escape() -> None:
    page = _environment(html=True)
    assert page.from_string("{{ it }}").render(it="<script>") == "&lt;script&gt;"
    with pytest.raises(jinja2.exceptions.SecurityError):
        page.from_string("{{ ''.__class__.__mro__ }}").render()
    for template in sorted((ROOT / "melete").rglob("*.j2")):
        text = template.read_text(encoding="utf-8")
        assert template.name.endswith(".md.j2") or not re.search(r"\|\s*safe\b|autoescape", text), template


def test_the_pages_never_take_text_for_markup() -> None:
    pages = [*(ROOT / "melete").rglob("page/*.js"), *(ROOT / "melete").rglob("page/*.html")]
    assert len(pages) >= 6
    for page in pages:
        text = page.read_text(encoding="utf-8")
        markup = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\bon\w+="
        assert not re.search(markup, text), page


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines) if version}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def asked() -> list[Requirement]:
    """Every library that pyproject.toml names, but Melete itself."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    return [found for found in map(Requirement, texts) if found.name != "melete"]


def test_every_library_that_is_named_is_pinned_to_a_version_that_fits() -> None:
    for one in asked():
        if one.name not in NOT_OF_THE_TWO_COMMANDS:
            assert canonical(one.name) in pins(), one.name
            assert one.specifier.contains(pins()[canonical(one.name)], prereleases=True), one


def test_what_the_libraries_need_themselves_is_pinned_too() -> None:
    """As far as it is installed here: `make run` and `make test` install nothing that is not in constraints.txt."""
    waiting, seen = asked(), set[tuple[str, tuple[str, ...]]]()
    while waiting:
        one = waiting.pop()
        key = canonical(one.name), tuple(sorted(one.extras))
        # torch itself names the exact versions of what is made for it
        if key in seen or key[0] in NOT_OF_THE_TWO_COMMANDS or key[0].startswith(("nvidia-", "cuda-", "triton")):
            continue
        seen.add(key)
        try:
            needed = [Requirement(text) for text in metadata.requires(one.name) or ()]
        except metadata.PackageNotFoundError:
            continue
        assert key[0] in pins(), one.name
        extras = ("", *one.extras)
        waiting += [two for two in needed if not two.marker or any(two.marker.evaluate({"extra": e}) for e in extras)]
    assert len(seen) > 20


def test_every_install_of_the_makefile_is_pinned() -> None:
    lines = [line for line in (ROOT / "Makefile").read_text(encoding="utf-8").splitlines() if "pip install" in line]
    assert lines
    for line in lines:
        exact = re.findall(r"[\w-]+==[\d.]+", line)
        assert "-c constraints.txt" in line or exact, line


def audit() -> Any:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WEAK = {"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["2"]}]}
WELL = {"name": "b", "version": "1", "vulns": []}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("found", "control", "status", "says"),
    [
        ([WELL], [WEAK], 0, "no weakness is known of 1 libraries"),
        ([WELL, WEAK], [WEAK], 1, "a 1: PYSEC-1 CVE-1, mended in 2"),
        ([WELL, UNKNOWN], [WEAK], 2, "1 of 2 libraries could not be looked up: c"),
        ([WELL], [WELL], 2, "NOTHING CAN BE SAID"),
        ([UNKNOWN], [UNKNOWN], 2, "NOTHING CAN BE SAID"),
        ([], [], 2, "NOTHING CAN BE SAID"),
    ],
)
def test_an_audit_that_learnt_nothing_says_so(
    found: list[dict[str, Any]], control: list[dict[str, Any]], status: int, says: str
) -> None:
    """pip-audit itself says that nothing is known when it could look nothing up."""
    code, message = audit().verdict(found, control)
    assert code == status and says in message
