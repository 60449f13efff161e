"""Ways in which a file goes wrong: bytes flipped, cut, doubled, overwritten; JSON with other values in other places."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable, Sequence
from copy import deepcopy
from random import Random
from typing import Any

NUMBERS = (0, 1, -1, 127, 255, 1000, 32767, -32768, 65535, 10**6, 2**31 - 1, -(2**31), 2**63 - 1)
FLOATS = (0.0, -0.0, 1e-45, 1e38, float("inf"), float("-inf"), float("nan"), -1.5)
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 10**30, 0.5, 1e308, "", "0", "../../etc/passwd", "/", "\x00", "<script>alert(1)</script>",
    "ß" * 300, [], {}, [[]], [None], {"": {}}, {"0": 1}, ["a", 1, None],
)  # fmt: skip


def bytes_changed(content: bytes, draw: Random) -> bytes:
    """One to four accidents, one after another."""
    for _ in range(draw.randint(1, 4)):
        content = draw.choice(ACCIDENTS)(content, draw)
    return content


def _flip(content: bytes, draw: Random) -> bytes:
    if not content:
        return content
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :]


def _number(content: bytes, draw: Random) -> bytes:
    """A number that programmers did not think of, at a place where headers keep theirs."""
    kind = draw.choice("bhiqfd")
    value = draw.choice(FLOATS) if kind in "fd" else draw.choice(NUMBERS)
    size = struct.calcsize(kind)
    packed = struct.pack("<" + kind, value) if kind in "fd" else (value % 2 ** (8 * size)).to_bytes(size, "little")
    at = draw.randrange(0, max(1, min(len(content), 400)), 2)
    return content[:at] + packed + content[at + size :]


def _cut(content: bytes, draw: Random) -> bytes:
    return content[: draw.randint(0, len(content))]


def _remove(content: bytes, draw: Random) -> bytes:
    at = draw.randint(0, len(content))
    return content[:at] + content[at + draw.randint(1, 64) :]


def _double(content: bytes, draw: Random) -> bytes:
    at = draw.randint(0, len(content))
    return content[:at] + content[max(0, at - draw.randint(1, 256)) : at] + content[at:]


def _insert(content: bytes, draw: Random) -> bytes:
    at = draw.randint(0, len(content))
    return content[:at] + draw.randbytes(draw.randint(1, 32)) + content[at:]


ACCIDENTS: Sequence[Callable[[bytes, Random], bytes]] = (
    _flip,
    _flip,
    _number,
    _number,
    _cut,
    _remove,
    _double,
    _insert,
)


def gzip_changed(content: bytes, draw: Random) -> bytes:
    """A gzip file: its stream changed, or what it holds changed and packed again."""
    if draw.random() < 0.4:
        return bytes_changed(content, draw)
    return gzip.compress(bytes_changed(gzip.decompress(content), draw), 1, mtime=0)


def json_changed(content: bytes, draw: Random) -> bytes:
    """JSON (or YAML that is JSON): values replaced, keys lost, renamed or doubled in depth; or its bytes changed."""
    if draw.random() < 0.25:
        return bytes_changed(content, draw)
    value = json.loads(content)
    for _ in range(draw.randint(1, 3)):
        value = _changed_somewhere(value, draw)
    return json.dumps(value).encode("utf-8", "surrogatepass")


def _changed_somewhere(value: Any, draw: Random) -> Any:
    places = list(_places(value))
    if not places:
        return deepcopy(draw.choice(VALUES))
    *outer, key = draw.choice(places)
    inside = value
    for part in outer:
        inside = inside[part]
    action = draw.random()
    if action < 0.6:
        inside[key] = deepcopy(draw.choice(VALUES))
    elif action < 0.8:
        del inside[key]
    elif isinstance(inside, dict):
        inside[str(key) + draw.choice(("", "s", "_", " "))] = inside.pop(key)
    else:
        inside.append(deepcopy(inside[key]))
    return value


def _places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inside in parts:
        yield (*path, key)
        yield from _places(inside, (*path, key))
