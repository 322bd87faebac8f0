import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from melete.errors import RunError
from melete.runs.atomic import json_text, new_directory, remove_unfinished, write_atomically, writing

KIB = 1024


@pytest.fixture
def largest_file_64_kib() -> Iterator[None]:
    """The system refuses to let any file grow past 64 KiB: for a writer the same as a disk that fills up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * KIB, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_atomically(file, "long content")
    write_atomically(file, "short")
    assert file.read_text() == "short"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_the_old_file_and_no_trace(tmp_path: Path, largest_file_64_kib: None) -> None:
    file = tmp_path / "a.json"
    write_atomically(file, "old")
    with pytest.raises(RunError, match="full") as refusal:
        write_atomically(file, "x" * 200 * KIB)
    assert refusal.value.place == str(file) and "free some space" in refusal.value.remedy
    assert file.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_device_without_space_is_reported_as_full() -> None:
    with (
        pytest.raises(RunError, match="full"),
        writing(Path("/dev/full")),
        open("/dev/full", "wb", buffering=0) as full,
    ):
        full.write(b"x")


def test_a_directory_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_directory(tmp_path / "model") as unfinished:
            (unfinished / "weights").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []
    with new_directory(tmp_path / "model") as unfinished:
        (unfinished / "weights").write_text("all")
        assert not (tmp_path / "model").exists()
    assert (tmp_path / "model" / "weights").read_text() == "all"


def test_a_new_directory_replaces_the_old_one_without_mixing_files(tmp_path: Path) -> None:
    for name in ("first", "second"):
        with new_directory(tmp_path / "model") as unfinished:
            (unfinished / name).write_text(name)
    assert [p.name for p in (tmp_path / "model").iterdir()] == ["second"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_what_a_killed_process_left_behind_is_cleared(tmp_path: Path) -> None:
    (tmp_path / ".partial-file").write_text("half")
    (tmp_path / ".partial-dir").mkdir()
    (tmp_path / "kept").write_text("whole")
    remove_unfinished(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["kept"]


def test_json_depends_on_the_value_alone() -> None:
    assert json_text({"b": [float("inf")], "a": 0.1}) == json_text({"a": 0.1, "b": [float("-inf")]})
    assert json_text({"ñ": "<|end|>"}) == '{"ñ": "<|end|>"}'
