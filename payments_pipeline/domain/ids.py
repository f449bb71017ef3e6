"""Ids over business content: the same work has the same id on every machine, whoever does it and when.

Belongs here: the namespace and the encoding. Does not belong here: what goes into any one id.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable

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
    seeded = hashlib.sha1(NAMESPACE.bytes, usedforsecurity=False)
    ids = []
    for parts in zip(*columns, strict=True):
        digest = seeded.copy()
        digest.update(_name((kind, *parts)).encode())
        value = bytearray(digest.digest()[:16])
        value[6] = value[6] & 0x0F | 0x50
        value[8] = value[8] & 0x3F | 0x80
        text = value.hex()
        ids.append(f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}")
    return ids
