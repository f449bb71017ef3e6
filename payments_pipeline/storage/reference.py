"""The reference data's files: found, fetched and hashed.

Belongs here: which object is which table. Does not belong here: what is in them (domain/reference_data).
"""

from __future__ import annotations

from payments_pipeline.domain.errors import InputError
from payments_pipeline.domain.landing_files import EXTENSIONS, LandingFile
from payments_pipeline.domain.reference_data import TABLES
from payments_pipeline.storage.objects import ObjectStore


def read_reference(store: ObjectStore) -> dict[str, LandingFile]:
    """Fetch the reference tables, each from its one file.

    Returns:
        competitions, parties and fee_schedules, to be given to `parse_reference`.

    Raises:
        InputError: a table has no file or several; names the table and the cure.
    """
    files = {}
    for table in TABLES:
        keys = {found.key for found in store.list(f"{table}.")}
        names = [f"{table}.{format_}" for format_ in EXTENSIONS]
        found = [name for name in names if name in keys]
        if len(found) != 1:
            what = f"is there {len(found)} times ({', '.join(found)})" if found else "is missing"
            raise InputError(
                f"reference data: the table {table} {what}. Nothing was posted. Give exactly one of "
                f"{', '.join(names)}, then run again."
            )
        files[table] = LandingFile.of(found[0], store.read(found[0]))
    return files
