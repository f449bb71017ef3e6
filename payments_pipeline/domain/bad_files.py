"""Faults of a whole file, common to all formats.

Belongs here: the error's wording, decoding of text, checking of header names. Does not belong here: faults of a row.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from payments_pipeline.domain.errors import BadFileError
from payments_pipeline.domain.records import Layout
from payments_pipeline.domain.values import WHITE_SPACE


def bad_file(source: str, fault: str, cure: str) -> BadFileError:
    """Make the error: which file, what is wrong, what to do."""
    return BadFileError(f"{source} {fault}. Nothing of this day was posted. {cure}, then run the day again.")


def without_bom(source: str, content: bytes) -> bytes:
    """Drop a byte order mark and make sure of UTF-8.

    Raises:
        BadFileError: not UTF-8 (names the line), or nothing but the mark.
    """
    content = content.removeprefix(codecs.BOM_UTF8)
    if not content:
        raise bad_file(source, "has no bytes but a byte order mark", "Deliver it again")
    try:
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise bad_file(source, f"is not UTF-8 (line {line})", "Save it as UTF-8") from None
    return content


def header_names(source: str, names: Sequence[str], layout: Layout) -> list[str]:
    """Give a header's names, white space around them dropped.

    Raises:
        BadFileError: a name is repeated, or a required column is missing.
    """
    trimmed = [name.strip(WHITE_SPACE) for name in names]
    repeated = sorted({name for name in trimmed if name and trimmed.count(name) > 1})
    if repeated:
        raise bad_file(source, f"names column {', '.join(repeated)} more than once", "Name each column once")
    missing = [field.name for field in layout.fields if field.required and field.name not in trimmed]
    if missing:
        raise bad_file(
            source,
            f"has no column {', '.join(missing)} (its header: {', '.join(trimmed)[:200]})",
            "Add it; names are case-sensitive and CSV is separated by commas",
        )
    return trimmed


def unknown_names(names: Sequence[str], layout: Layout) -> list[str]:
    """Give the names that the layout does not know, sorted."""
    return sorted(set(names) - set(layout.names))
