"""Ids over business content: the same work has the same id on every machine, whoever does it and when.

Belongs here: the namespace and the encoding. Does not belong here: what goes into any one id.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

#: Fixed for ever: every id ever written depends on it.
NAMESPACE = uuid.UUID("6f1d7c1e-6f5b-5c57-9d0a-5b8f2b0c8e11")
#: Between the parts of a name; no id, date, code or number holds it, and a part that does is refused.
_SEPARATOR = "\x1f"


def _name(parts: Iterable[object]) -> str:
    texts = [str(part) for part in parts]
    if any(_SEPARATOR in text for text in texts):
        raise ValueError(f"a part of an id holds the separator: {texts!r}")
    return _SEPARATOR.join(texts)


def business_id(kind: str, *parts: object) -> str:
    """Give the UUIDv5 of a kind and its parts, as text.

    Args:
        kind: what the id is of; ids of different kinds never meet.
        parts: business content alone: no run, no time, no code version.
    """
    return str(uuid.uuid5(NAMESPACE, _name([kind, *parts])))


def business_ids(kind: str, *columns: Iterable[object]) -> list[str]:
    """Give `business_id` of each row of aligned columns.

    Source: RFC 9562, version 5.
    """
    parts = [_texts(column) for column in columns]
    for part in parts:
        if pc.any(pc.match_substring(part, _SEPARATOR)).as_py():
            raise ValueError(
                f"a part of an id holds the separator: {part.filter(pc.match_substring(part, _SEPARATOR))}"
            )
    names = pc.binary_join_element_wise(_text(kind), *parts, _text(_SEPARATOR)).cast(pa.large_binary()).to_pylist()
    # One more prefix to begin with than to hash each name after it.
    seeded = hashlib.sha1(NAMESPACE.bytes, usedforsecurity=False)

    def digest(name: bytes) -> bytes:
        hashed = seeded.copy()
        hashed.update(name)
        return hashed.digest()

    digests = (
        np.frombuffer(b"".join(map(digest, names)), np.uint8).reshape(len(names), seeded.digest_size)[:, :16].copy()
    )
    digests[:, 6] = digests[:, 6] & 0x0F | 0x50
    digests[:, 8] = digests[:, 8] & 0x3F | 0x80
    text = np.full((len(names), 36), ord("-"), np.uint8)
    text[:, _DIGITS] = _HEXADECIMAL[digests].reshape(len(names), 32)
    offsets = pa.py_buffer(np.arange(len(names) + 1, dtype=np.int64) * 36)
    ids: list[str] = pa.LargeStringArray.from_buffers(len(names), offsets, pa.py_buffer(text)).to_pylist()
    return ids


#: The two digits of each byte, and where digits stand in the text of an id.
_HEXADECIMAL = np.array([list(f"{byte:02x}".encode()) for byte in range(256)], np.uint8)
_DIGITS = np.array([place for place in range(36) if place not in (8, 13, 18, 23)])


def _text(value: str) -> pa.LargeStringScalar:
    return pa.scalar(value, pa.large_string())


def _texts(column: Iterable[object]) -> pa.LargeStringArray:
    given = column if isinstance(column, np.ndarray | pd.Series) else list(column)
    values = pa.array(given)
    if pa.types.is_integer(values.type) or pa.types.is_string(values.type):
        return values.cast(pa.large_string())
    return pa.array([str(value) for value in given], pa.large_string())
