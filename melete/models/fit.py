"""Whether a model fits this machine and its tokenizer, told from the headers of its files before anything is loaded."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path

from melete.errors import ModelError

GIB = 2**30
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
MAX_HEADER = 100 * 2**20
DAMAGED = "copy or save the model again; its files are incomplete or damaged"


def num_weights(directory: Path) -> int:
    """Numbers in all safetensors files of a directory, by their headers.

    Raises `ModelError` for a file whose header cannot be read, or that is shorter or longer than the header says.
    """
    return sum(math.prod(shape) for file in sorted(directory.glob("*.safetensors")) for shape in _shapes(file))


def _shapes(file: Path) -> Iterator[list[int]]:
    def refused(what: str) -> ModelError:
        return ModelError(f"this is not a whole safetensors file: {what}", place=str(file), remedy=DAMAGED)

    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = opened.read(8)
            num_bytes = struct.unpack("<Q", length)[0] if len(length) == 8 else size
            if num_bytes > min(size, MAX_HEADER):
                raise refused("its header is longer than the file")
            header = json.loads(opened.read(num_bytes))
        tensors = {name: found for name, found in header.items() if name != "__metadata__"}
        end = max((found["data_offsets"][1] for found in tensors.values()), default=0)
        shapes = [[int(length) for length in found["shape"]] for found in tensors.values()]
    except ModelError:
        raise
    except OSError as error:
        raise refused(f"it cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError) as error:
        raise refused("its header is no table of tensors") from error
    if 8 + num_bytes + end != size:
        raise refused(f"it has {size:,} bytes, and its header tells of {8 + num_bytes + end:,}")
    yield from shapes


def bytes_to_train(bytes_each: int, *, with_adapter: bool) -> int:
    """Bytes that each weight takes in training, activations apart: itself, its gradient and Adam's two averages.

    A weight of fewer than 32 bits has a full one beside it; beside an adapter, which is small, weights take no more.

    >>> [bytes_to_train(4, with_adapter=False), bytes_to_train(2, with_adapter=False)]
    [16, 18]
    >>> bytes_to_train(2, with_adapter=True)
    2
    """
    if with_adapter:
        return bytes_each
    return (bytes_each if bytes_each < 4 else 0) + 4 * 4


def refuse_if_too_large(directory: Path, *, bytes_each: int, available: int | None, to: str = "load") -> None:
    """Raises `ModelError` with the numbers when the weights, of so many bytes each, exceed what is available."""
    if available is None:
        return
    count = num_weights(directory)
    if count * bytes_each > available:
        what = (
            f"the model does not fit: {count:,} weights of {bytes_each} bytes to {to} are "
            f"{count * bytes_each / GIB:.1f} GiB, and {available / GIB:.1f} GiB of memory can be used"
        )
        less = "an adapter" if to == "train" else "dtype = bfloat16"
        raise ModelError(what, place=str(directory), remedy=f"a smaller model, {less}, or more memory")


def available_memory(device: str) -> int | None:
    """Bytes that may be used on a device now; None where the system does not tell."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info()[0]
    try:
        with Path("/proc/meminfo").open(encoding="ascii") as lines:
            found = next((line for line in lines if line.startswith("MemAvailable:")), "")
        return int(found.split()[1]) * 1024 if found else None
    except OSError:
        if "SC_AVPHYS_PAGES" in getattr(os, "sysconf_names", {}):
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        return None
