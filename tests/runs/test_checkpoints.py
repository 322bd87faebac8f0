import json
import resource
from pathlib import Path

import pytest
import torch

from melete.errors import RunError
from melete.runs.checkpoints import latest_checkpoint, save_checkpoint

TENSORS = {"weights": {"a": torch.arange(4.0)}, "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "lr": [0.1]}}


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    """I37: what resumes is what was saved."""
    save_checkpoint(tmp_path, 3, TENSORS, {"marks": {"metrics.jsonl": 7}})
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 3 and found.state == {"marks": {"metrics.jsonl": 7}}
    assert torch.equal(found.tensors["weights"]["a"], TENSORS["weights"]["a"])
    assert found.tensors["optimizer"]["state"][0]["step"] == 3.0


def test_nowhere_saved_is_none(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / "missing") is None


def test_the_last_two_are_kept_and_steps_sort_as_numbers(tmp_path: Path) -> None:
    for step in (9, 10, 999_999, 1_000_000):
        save_checkpoint(tmp_path, step, TENSORS, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-1000000", "step-999999"]
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 1_000_000


@pytest.mark.parametrize("name", ["tensors.pt", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "missing"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before_and_says_so(tmp_path: Path, name: str, damage: str) -> None:
    save_checkpoint(tmp_path, 1, TENSORS, {"step": 1})
    file = save_checkpoint(tmp_path, 2, TENSORS, {"step": 2}) / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "flip":
        content[len(content) // 2] ^= 0xFF
        file.write_bytes(content)
    else:
        file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    warnings: list[str] = []
    found = latest_checkpoint(tmp_path, warnings.append)
    assert found is not None and found.step == 1
    assert len(warnings) == 1 and "step-000002" in warnings[0] and "damaged" in warnings[0]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, TENSORS, {"try": 1})
    save_checkpoint(tmp_path, 1, TENSORS, {"try": 2})
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.state == {"try": 2}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, TENSORS, {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        with pytest.raises(RunError, match="full"):
            save_checkpoint(tmp_path, 2, {"weights": torch.zeros(100_000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]
    found = latest_checkpoint(tmp_path)
    assert found is not None and found.step == 1


def test_another_version_is_refused_not_passed_over(tmp_path: Path) -> None:
    manifest = save_checkpoint(tmp_path, 1, TENSORS, {}) / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 0}))
    with pytest.raises(RunError, match="format 0"):
        latest_checkpoint(tmp_path)


def test_code_hidden_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path(str(tmp_path / "owned")).write_text, ("x",))

    save_checkpoint(tmp_path / "c", 1, {"weights": Hostile()}, {})
    assert latest_checkpoint(tmp_path / "c", lambda text: None) is None
    assert not (tmp_path / "owned").exists()
