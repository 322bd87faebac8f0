"""Plain data as bytes, both ways, without a library: `None`, bool, int, float, complex, str, bytes, list, tuple, dict,
set and frozenset.

Reading can only ever build those types, so nothing that comes out of a sandbox can run code where it is read. The text
of this file is also run inside sandboxes, so it imports the standard library only, and little of it.

>>> decode(encode({"a": [1, (2.5, None)]}))
{'a': [1, (2.5, None)]}
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # importing `typing` would take a fifth of an interpreter's start
if TYPE_CHECKING:
    from typing import Any

MAX_DEPTH = 60
MAX_HEADER = 20


class NotPlain(ValueError):
    """A value that is not plain data, or bytes that are not its encoding."""


def encode(value: object) -> bytes:
    """The bytes of a plain value; a subclass counts as the plain type that it extends."""
    parts: list[bytes] = []
    _write(value, parts, 0)
    return b"".join(parts)


def _write(value: Any, parts: list[bytes], depth: int) -> None:
    if depth > MAX_DEPTH:
        raise NotPlain(f"nested more than {MAX_DEPTH} deep")
    if value is None or value is True or value is False:
        parts.append(b"N" if value is None else b"T" if value else b"F")
    elif isinstance(value, int):
        parts.append(b"i%x;" % int(value) if value >= 0 else b"i-%x;" % -int(value))
    elif isinstance(value, float):
        parts.append(b"f%s;" % float.hex(value).encode())
    elif isinstance(value, complex):
        parts.append(b"c%s,%s;" % (float.hex(value.real).encode(), float.hex(value.imag).encode()))
    elif isinstance(value, str):
        data = str.encode(value, "utf-8", "surrogatepass")
        parts.append(b"s%d;" % len(data) + data)
    elif isinstance(value, bytes):
        parts.append(b"b%d;" % len(value) + bytes(value))
    else:
        _write_container(value, parts, depth)


def _write_container(value: Any, parts: list[bytes], depth: int) -> None:
    containers = ((b"l", list), (b"t", tuple), (b"d", dict), (b"e", set), (b"z", frozenset))
    found = [(tag, kind) for tag, kind in containers if isinstance(value, kind)]
    if not found:
        raise NotPlain(f"a {type(value).__name__} is not plain data")
    tag, kind = found[0]
    plain = getattr(kind, "items" if kind is dict else "__iter__")  # not a subclass's own
    items = list(plain(value))
    parts.append(b"%s%d;" % (tag, len(items)))
    for item in items:
        for part in item if kind is dict else (item,):
            _write(part, parts, depth + 1)


def decode(data: bytes, tags: bytes = b"NTFifcsbltdez", keys: bytes = b"NTFifcsbltz") -> object:
    """The value of those bytes. Raises `NotPlain` for anything that `encode` would not have written.

    `tags` and `keys` narrow the types of values and of the keys of a dict.
    """
    try:
        value, end = _read(data, 0, 0, (tags, keys))
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        raise NotPlain(str(error)) from None
    if end != len(data):
        raise NotPlain("bytes are left over")
    return value


def _read(data: bytes, at: int, depth: int, kinds: tuple[bytes, bytes], key: bool = False) -> tuple[Any, int]:
    tag = data[at : at + 1]
    if tag not in kinds[key]:
        raise NotPlain("a type that is not allowed here")
    if tag in (b"N", b"T", b"F"):
        return {b"N": None, b"T": True, b"F": False}[tag], at + 1
    if depth > MAX_DEPTH or not tag:
        raise NotPlain("nested too deep, or cut off")
    stop = data.index(b";", at)
    text, at = data[at + 1 : stop].decode("ascii"), stop + 1
    if tag == b"i":
        return int(text, 16), at
    if tag == b"f":
        return float.fromhex(text), at
    if tag == b"c":
        real, imaginary = text.split(",")
        return complex(float.fromhex(real), float.fromhex(imaginary)), at
    size = int(text)
    if size < 0 or size > len(data) - at:
        raise NotPlain("longer than its bytes")
    if tag in (b"s", b"b"):
        raw = data[at : at + size]
        return raw.decode("utf-8", "surrogatepass") if tag == b"s" else raw, at + size
    return _read_container(tag, size, data, at, depth, kinds)


def _read_container(
    tag: bytes, size: int, data: bytes, at: int, depth: int, kinds: tuple[bytes, bytes]
) -> tuple[Any, int]:
    items: list[Any] = []
    for index in range(size * 2 if tag == b"d" else size):
        item, at = _read(data, at, depth + 1, kinds, tag == b"d" and index % 2 == 0)
        items.append(item)
    if tag == b"d":
        return dict(zip(items[::2], items[1::2], strict=True)), at
    kind = {b"l": list, b"t": tuple, b"e": set, b"z": frozenset}.get(tag)
    if kind is None:
        raise NotPlain("an unknown type")
    return kind(items), at


def read_exactly(size: int, descriptor: int = 0) -> bytes:
    """That many bytes of a stream; fewer only at its end."""
    data = b""
    while len(data) < size:
        chunk = os.read(descriptor, size - len(data))
        if not chunk:
            break
        data += chunk
    return data


def read_frame(descriptor: int = 0) -> bytes | None:
    """The next frame: its length, a line end, its bytes. `None` at the end of the stream."""
    header = b""
    while not header.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte or len(header) > MAX_HEADER:
            return None
        header += byte
    return read_exactly(int(header), descriptor)


def write_frame(body: bytes, descriptor: int = 1) -> None:
    """Writes a frame whole."""
    data = frame(body)
    while data:
        data = data[os.write(descriptor, data) :]


def frame(body: bytes) -> bytes:
    """A body with its length in front."""
    return b"%d\n" % len(body) + body
