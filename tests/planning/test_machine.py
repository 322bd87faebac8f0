"""Memory within the limits of containers, and the size of a model, from made-up files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from melete.planning.machine import Machine, fingerprint, free_disk, free_memory
from melete.planning.sizes import content_key, size_of

MIB = 2**20


def system(root: Path, available: int = 1000, own: int = 100, groups: str = "0::/\n") -> Path:
    """A made-up /proc."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9999999 kB\nMemAvailable: {available * 1024} kB\n")
    (root / "proc/self/status").write_text(f"Name: python\nVmRSS: {own * 1024} kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    return root


def group(path: Path, names: tuple[str, str], limit: str, used: int, cache: int = 0) -> None:
    path.mkdir(parents=True, exist_ok=True)
    (path / names[0]).write_text(f"{limit}\n")
    (path / names[1]).write_text(f"{used}\n")
    (path / "memory.stat").write_text(f"anon 5\ninactive_file {cache}\n")


def test_what_is_available_and_what_this_process_has_can_be_used(tmp_path: Path):
    assert free_memory(system(tmp_path)) == 1100 * MIB


def test_a_limit_of_the_control_group_counts_where_it_is_tighter(tmp_path: Path):
    root = system(tmp_path, groups="0::/box\n")
    names = ("memory.max", "memory.current")
    group(root / "sys/fs/cgroup/box", names, str(500 * MIB), 300 * MIB, cache=50 * MIB)
    assert free_memory(root) == (500 - 300 + 50 + 100) * MIB
    group(root / "sys/fs/cgroup/box", names, "max", 300 * MIB)
    assert free_memory(root) == 1100 * MIB


def test_a_limit_of_a_group_above_counts_too(tmp_path: Path):
    root = system(tmp_path, groups="0::/outer/inner\n")
    names = ("memory.max", "memory.current")
    group(root / "sys/fs/cgroup/outer/inner", names, "max", 0)
    group(root / "sys/fs/cgroup/outer", names, str(400 * MIB), 400 * MIB)
    assert free_memory(root) == 100 * MIB


def test_the_first_version_of_control_groups_is_read(tmp_path: Path):
    root = system(tmp_path, groups="4:memory:/box\n3:cpu:/\n")
    names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
    group(root / "sys/fs/cgroup/memory/box", names, str(300 * MIB), 200 * MIB)
    assert free_memory(root) == 200 * MIB


def test_a_system_that_does_not_tell_has_no_limit(tmp_path: Path):
    assert free_memory(tmp_path) is None


def test_disk_is_that_of_the_nearest_directory_that_exists(tmp_path: Path):
    assert free_disk(tmp_path / "not" / "yet") == pytest.approx(free_disk(tmp_path) or 0, rel=0.1)


def test_this_machine_has_memory_disk_and_cores(tmp_path: Path):
    machine = Machine.here(tmp_path)
    assert machine.free_memory and machine.free_disk and machine.num_cores >= 1
    assert fingerprint() == fingerprint()


def test_a_machine_is_busy_when_others_leave_no_core():
    assert not Machine(None, None, num_cores=4, load=2.0).is_busy
    assert Machine(None, None, num_cores=2, load=1.5).is_busy


def model(folder: Path, config: dict[str, object], tensors: dict[str, list[int]]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header = json.dumps({name: {"shape": shape} for name, shape in tensors.items()} | {"__metadata__": {}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"weights")
    return folder


DENSE = {"num_hidden_layers": 3, "hidden_size": 8, "num_attention_heads": 4, "vocab_size": 10}


def test_parameters_are_counted_in_the_headers_of_all_files(tmp_path: Path):
    folder = model(tmp_path, DENSE, {"a": [10, 8], "b": [8]})
    (folder / "more.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    assert size_of(folder).num_parameters == 2 * 88


def test_the_cache_holds_keys_and_values_of_each_layer(tmp_path: Path):
    assert size_of(model(tmp_path, DENSE, {})).cache_bytes == 4 * 3 * 2 * 8
    grouped = DENSE | {"num_key_value_heads": 2, "head_dim": 5}
    assert size_of(model(tmp_path, grouped, {})).cache_bytes == 4 * 3 * 2 * 2 * 5
    latent = DENSE | {"kv_lora_rank": 4, "qk_nope_head_dim": 3, "qk_rope_head_dim": 2, "v_head_dim": 6}
    assert size_of(model(tmp_path, latent, {})).cache_bytes == 4 * 3 * 4 * (3 + 2 + 6)
    assert size_of(model(tmp_path, {"text_config": DENSE}, {})).cache_bytes == 4 * 3 * 2 * 8


def test_a_file_without_a_header_is_refused(tmp_path: Path):
    folder = model(tmp_path, DENSE, {})
    (folder / "model.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match="no header"):
        size_of(folder)


def test_a_models_key_is_its_content_wherever_it_lies(tmp_path: Path):
    one, other = (model(tmp_path / name, DENSE, {"a": [2]}) for name in ("one", "other"))
    assert content_key(one) == content_key(other)
    (other / "config.json").write_text("{}")
    assert content_key(one) != content_key(other)
