"""JSON Lines: one object a line.

Belongs here: taking lines apart and bringing JSON values to the text that the same value has in CSV. Does not belong
here: what a value means. A value of the wrong type (true, 1.0, "2" for a number, a list) becomes text that no check
lets pass; a key given twice, which leaves open what holds, does too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

import numpy as np
import orjson
import pyarrow as pa

from payments_pipeline.domain.bad_files import unknown_names, without_bom
from payments_pipeline.domain.records import Coded, Field, Kind, Layout, Records, RowFault, coded, single_source
from payments_pipeline.domain.values import WHITE_SPACE, WRONG_TYPE

_NUMBERS = (Kind.COUNT, Kind.MINOR)
_SPACE_BEFORE_COLON = re.compile(rb'"\s+:')


def read_json_lines(source: str, content: bytes, layout: Layout) -> Records:
    """Read a JSON Lines file; a missing key is an empty value.

    Raises:
        BadFileError: not UTF-8.
    """
    lines = without_bom(source, content).split(b"\n")
    objects, numbers, broken = _parse(lines, look_closely=_SPACE_BEFORE_COLON.search(content) is not None)
    line_number = np.array(numbers, np.int64)
    fault = np.zeros(len(numbers), np.int8)
    fault[broken] = RowFault.BROKEN_JSON_LINE

    def raw(positions: np.ndarray) -> list[str]:
        return [lines[number - 1].decode().removesuffix("\r") for number in line_number[positions].tolist()]

    return single_source(
        source,
        {field.name: _column(field, objects) for field in layout.fields},
        line_number,
        raw=raw,
        fault=fault,
        unknown=unknown_names([name for shape in set(map(tuple, objects)) for name in shape], layout),
    )


def _parse(lines: list[bytes], *, look_closely: bool) -> tuple[list[dict[str, Any]], list[int], list[int]]:
    """Give the objects, their line numbers, and the positions of broken lines (which stand as empty objects)."""
    objects: list[dict[str, Any]] = []
    numbers: list[int] = []
    broken: list[int] = []
    for number, line in enumerate(lines, start=1):
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError:
            if not line.decode().strip(WHITE_SPACE):
                continue
            value = None
        if type(value) is not dict:
            broken.append(len(objects))
            value = {}
        # As many keys were written as there are `":`; a difference may be a repeated key, which parsers drop.
        elif look_closely or line.count(b'":') != len(value):
            value = _without_repeated_keys(line)
        objects.append(value)
        numbers.append(number)
    padded = {shape for shape in set(map(tuple, objects)) if any(name != name.strip(WHITE_SPACE) for name in shape)}
    if padded:
        objects = [_trimmed(value.items()) if tuple(value) in padded else value for value in objects]
    return objects, numbers, broken


def _without_repeated_keys(line: bytes) -> dict[str, Any]:
    return _trimmed(json.loads(line, object_pairs_hook=list))


def _trimmed(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """Drop white space around keys; a key that stands there twice has the list of its values."""
    found: dict[str, list[Any]] = {}
    for name, value in pairs:
        found.setdefault(name.strip(WHITE_SPACE), []).append(value)
    return {name: values[0] if len(values) == 1 else values for name, values in found.items()}


def _column(field: Field, objects: list[dict[str, Any]]) -> Coded:
    values = [value.get(field.name) for value in objects]
    types = set(map(type, values))
    is_number = field.kind in _NUMBERS
    if not is_number and types <= {str, type(None)}:
        return coded(pa.array(values, pa.string()))
    if is_number and types <= {int, type(None)}:
        try:
            return coded(pa.array(values, pa.int64()).dictionary_encode().cast(pa.dictionary(pa.int32(), pa.string())))
        except OverflowError:
            pass
    return coded(pa.array([_text(value, is_number=is_number) for value in values], pa.string()))


def _text(value: object, *, is_number: bool) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return WRONG_TYPE + value if is_number and value.strip(WHITE_SPACE) else value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return WRONG_TYPE + json.dumps(value, ensure_ascii=False)
