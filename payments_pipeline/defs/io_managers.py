"""IO managers: frames of a declared schema in Parquet objects, and in Postgres tables.

Belongs here: which partition of which asset a frame is, and what is shown of it. Does not belong here: encoding
(`storage.parquet`), what a write to a table does (`storage.tables`), addresses of this deployment (`defs.resources`).

Neither opens anything before it is used. docs/reference/io-managers.md describes both for use elsewhere.
"""

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any, cast, get_origin

import dagster as dg
import pandas as pd
import pyarrow as pa
from pydantic import Field, PrivateAttr

from payments_pipeline.defs.check_results import markdown_table
from payments_pipeline.domain.errors import BadFileError, ConfigurationError, InvariantError
from payments_pipeline.domain.schemas import TableSchema
from payments_pipeline.storage.frames import concat, conform, infer_schema, to_frame
from payments_pipeline.storage.objects import ObjectNotFoundError, ObjectStore, make_s3_client, open_store
from payments_pipeline.storage.parquet import decode_table, encode_conformed, partition_key, read_metadata
from payments_pipeline.storage.postgres import connect
from payments_pipeline.storage.table_declarations import Table
from payments_pipeline.storage.tables import WriteMode, Written, read_rows, write_rows

#: Asset metadata: what a write does to the rows that are there; a `WriteMode`. Without it rows are inserted once.
WRITE_MODE_KEY = "write_mode"
#: Input metadata, as Dagster's own file IO managers know it.
ALLOW_MISSING_KEY = "allow_missing_partitions"
#: Where Dagster looks for an asset's columns.
COLUMN_SCHEMA_KEY = "dagster/column_schema"
_DECLARED = "payments_pipeline.domain.schemas:ALL"
_PREVIEW_ROWS = 5
_PREVIEW_CELL = 80


class ParquetIOManager(dg.ConfigurableIOManager):
    """One Parquet object a partition, in a folder or a bucket; whole or not there.

    An output is a pandas frame or an Arrow table of the schema declared for its asset (any columns where none is
    declared), and of one partition. `frame.attrs` is stored with it and restored.

    An input annotated `pandas.DataFrame` gets the rows of its partitions in one frame, one annotated
    `pyarrow.Table` in one table, one annotated `dict[str, …]` each partition by its key. An input without
    annotation gets a frame for one partition and a dict for several, as with Dagster's own file IO managers.
    """

    storage_url: str = Field(description="Where objects are stored: a folder, or s3://bucket/prefix.")
    schemas: str = Field(
        default=_DECLARED,
        description="Declared schemas as `module:attribute`, an iterable of TableSchema; an asset's is the one with "
        "its name. Empty: none are declared, and each frame's own types are stored.",
    )
    preview_rows: int = Field(default=_PREVIEW_ROWS, ge=0, le=100, description="Rows shown in the output's metadata.")
    _opened: ObjectStore | None = PrivateAttr(default=None)

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Encode and put one partition.

        Raises:
            InvariantError: it is no frame, not what is declared, or of several partitions; nothing was written.
            ConfigurationError, StorageUnavailableError: as `storage.objects` says; what was there stands.
        """
        frame = _frame(context, obj)
        name = _asset_name(context)
        partition = _output_partition(context)
        schema = _declared(self.schemas, name) or infer_schema(name, frame)
        table = conform(frame, schema)
        attrs = _attrs(frame)
        data = encode_conformed(table, schema.name, attrs)
        store, key = self._store(), _object_key(context, name, partition)
        store.write(key, data)
        metadata: dict[str, Any] = {
            "dagster/uri": store.uri(key),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        context.add_output_metadata(metadata | _describe(context, table, schema, attrs, self.preview_rows))

    def load_input(self, context: dg.InputContext) -> Any:
        """Get and decode the partitions that the input is mapped to.

        Raises:
            ObjectNotFoundError: a partition was never materialised, and the input does not allow for that.
            BadFileError: what is stored is broken, or of another schema than the declared one.
            ConfigurationError, StorageUnavailableError: as `storage.objects` says.
        """
        name = _asset_name(context)
        schema = _declared(self.schemas, name)
        store = self._store()
        if not context.has_asset_key or not context.has_asset_partitions:
            return _whole(context, self._load(context, store, name, None, schema))
        tables: dict[str, pa.Table] = {}
        for partition in context.asset_partition_keys:
            try:
                tables[partition] = self._load(context, store, name, partition, schema)
            except ObjectNotFoundError:
                if not context.definition_metadata.get(ALLOW_MISSING_KEY, False):
                    raise
                context.log.warning(
                    f"{name}: partition {partition} was never materialised; left out, as the input allows."
                )
        return _given(context, tables, schema)

    def _store(self) -> ObjectStore:
        if self._opened is None:
            self._opened = open_store(self.storage_url, self._make_client)
        return self._opened

    def _make_client(self) -> Any:
        """Make the boto3 client of a bucket."""
        return make_s3_client()

    def _load(
        self,
        context: dg.InputContext,
        store: ObjectStore,
        name: str,
        partition: str | None,
        schema: TableSchema | None,
    ) -> pa.Table:
        key = _object_key(context, name, partition)
        which = f"partition {partition} of {name}" if partition is not None else name
        try:
            return decode_table(store.read(key), schema)
        except ObjectNotFoundError as error:
            raise ObjectNotFoundError(
                f"{which} was never materialised: {error} Nothing was loaded. Materialise it first."
            ) from error
        except BadFileError as error:
            raise BadFileError(f"{which}, {store.uri(key)}: {error}") from error


class PostgresIOManager(dg.ConfigurableIOManager):
    """The table of the asset's name; a partition is the rows that hold it in the declared partition column.

    What writing does is said by the asset's metadata `write_mode`: `insert_once` (the default: rows are only added, an
    equal row again is no-op, an unequal one of the same key raises `ConflictError`) or `replace_partition`.
    Each output is one transaction. Inputs are given as by `ParquetIOManager`; a partition without rows is empty.
    """

    url: str = Field(
        repr=False, description="Address of the database. Empty: the embedded server that runs in PAYMENTS_HOME."
    )
    db_schema: str = Field(default="payments", description="Postgres schema that the tables are in.")
    schemas: str = Field(
        default=_DECLARED,
        description="Declared schemas as `module:attribute`, an iterable of TableSchema; an asset's is the one with "
        "its name.",
    )
    create_tables: bool = Field(
        default=False,
        description="Make a table from its declaration where there is none; else that is an error.",
    )
    preview_rows: int = Field(default=_PREVIEW_ROWS, ge=0, le=100, description="Rows shown in the output's metadata.")
    _found: str = PrivateAttr(default="")

    def handle_output(self, context: dg.OutputContext, obj: Any) -> None:
        """Write one partition in one transaction.

        Raises:
            ConflictError: a row's key is stored with other content; names both.
            InvariantError: it is no frame, not what is declared, or of several partitions.
            ConfigurationError: the table is not what is declared, or may not be written to.
            StorageUnavailableError: the server went away; writing again is safe.
        """
        frame = _frame(context, obj)
        table = self._table(_asset_name(context))
        partition = _output_partition(context)
        mode = _write_mode(context)
        rows = conform(frame, table.schema)
        shown = _describe(context, rows, table.schema, _attrs(frame), self.preview_rows)
        with connect(self.address) as connection:
            written = write_rows(connection, table, rows, mode, partition, create=self.create_tables)
            place = connection.info
            metadata: dict[str, Any] = {
                "dagster/uri": f"postgresql://{place.host}:{place.port}/{place.dbname}",
                "dagster/table_name": f"{place.dbname}.{table.name}",
                "bytes": written.sent_bytes,
                "write_mode": mode.value,
            }
        context.add_output_metadata(metadata | _counts(written) | shown)

    def load_input(self, context: dg.InputContext) -> Any:
        """Read the partitions that the input is mapped to.

        Raises:
            ConfigurationError: the table is not what is declared, or may not be read.
            StorageUnavailableError: the server went away; may be tried again.
        """
        table = self._table(_asset_name(context))
        with connect(self.address) as connection:
            if not context.has_asset_partitions:
                return _whole(context, read_rows(connection, table))
            partitions = list(context.asset_partition_keys)
            if _wants(context) in {pd.DataFrame, pa.Table}:
                return _whole(context, read_rows(connection, table, partitions))
            rows = {partition: read_rows(connection, table, [partition]) for partition in partitions}
        return _given(context, rows, table.schema)

    @property
    def address(self) -> str:
        """The database's address, looked for once, when it is used."""
        if self.url:
            return self.url
        if not self._found:
            from payments_pipeline.local.stack import locate
            from payments_pipeline.settings import load_settings

            self._found = locate(load_settings()).postgres_url
        return self._found

    def _table(self, name: str) -> Table:
        schema = _declared(self.schemas, name)
        if schema is None:
            raise ConfigurationError(
                f"{self.schemas or 'nothing'} declares no schema of the name of asset {name}. Nothing was written. "
                "Declare it, or store the asset by another IO manager."
            )
        return Table(self.db_schema, schema)


# Which partition of which asset ------------------------------------------------------------------------------------


def _asset_name(context: dg.OutputContext | dg.InputContext) -> str:
    """Name the asset; of an op's output, its run, step and output."""
    return "/".join(context.asset_key.path if context.has_asset_key else context.get_identifier())


def _output_partition(context: dg.OutputContext) -> str | None:
    if not context.has_asset_key or not context.has_asset_partitions:
        return None
    keys = list(context.asset_partition_keys)
    if len(keys) != 1:
        raise InvariantError(
            f"{_asset_name(context)}: one output is for {len(keys)} partitions ({', '.join(keys[:5])}"
            f"{', …' if len(keys) > 5 else ''}) and would have to be torn apart. Nothing was written. Run one "
            "partition at a time: backfill_policy=BackfillPolicy.multi_run(1)."
        )
    return keys[0]


def _object_key(context: dg.OutputContext | dg.InputContext, name: str, partition: str | None) -> str:
    if partition is None:
        return partition_key(name)
    if isinstance(partition, dg.MultiPartitionKey):
        return partition_key(name, partition.keys_by_dimension)
    if isinstance(context.asset_partitions_def, dg.TimeWindowPartitionsDefinition):
        return partition_key(name, partition)
    return partition_key(name, {"partition": partition})


@cache
def _registry(path: str) -> Mapping[str, TableSchema]:
    module, _, attribute = path.partition(":")
    try:
        schemas = getattr(import_module(module), attribute)
        return {schema.name: schema for schema in schemas}
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigurationError(
            f"schemas: {path!r} is no iterable of TableSchema: {error}. Nothing was read or written. Write "
            "module:attribute."
        ) from error


def _declared(path: str, name: str) -> TableSchema | None:
    return _registry(path).get(name.rpartition("/")[2]) if path else None


def _write_mode(context: dg.OutputContext) -> WriteMode:
    stated = context.definition_metadata.get(WRITE_MODE_KEY, WriteMode.INSERT_ONCE)
    mode = stated.value if isinstance(stated, dg.MetadataValue) else stated
    try:
        return WriteMode(str(mode))
    except ValueError as error:
        raise ConfigurationError(
            f"{_asset_name(context)}: {WRITE_MODE_KEY} {mode!r} is none of {', '.join(WriteMode)}. Nothing was written."
        ) from error


# What goes in and comes out ----------------------------------------------------------------------------------------


def _frame(context: dg.OutputContext, obj: Any) -> pd.DataFrame | pa.Table:
    if isinstance(obj, pd.DataFrame | pa.Table):
        return obj
    raise InvariantError(
        f"{_asset_name(context)} gave {type(obj).__name__}, and a pandas.DataFrame or pyarrow.Table is stored. Nothing "
        "was written. Return a frame, or no value at all."
    )


def _attrs(frame: pd.DataFrame | pa.Table) -> dict[str, Any]:
    if isinstance(frame, pa.Table):
        return read_metadata(frame.schema)
    return cast("dict[str, Any]", dict(frame.attrs))


def _wants(context: dg.InputContext) -> Any:
    """Give what the input is annotated with: pandas.DataFrame, pyarrow.Table, dict, or something else."""
    kind = context.dagster_type.typing_type
    return dict if get_origin(kind) in {dict, Mapping} or kind in {dict, Mapping} else kind


def _whole(context: dg.InputContext, table: pa.Table) -> pd.DataFrame | pa.Table:
    return table if _wants(context) is pa.Table else _with_attrs(table)


def _given(context: dg.InputContext, tables: Mapping[str, pa.Table], schema: TableSchema | None) -> Any:
    """Give tables by partition as the input's annotation asks for them."""
    kind = _wants(context)
    if kind in {pd.DataFrame, pa.Table}:
        if len(tables) == 1:
            return _whole(context, next(iter(tables.values())))
        table = _one_after_the_other(context, tables, schema)
        if kind is pa.Table:
            return table
        frame = to_frame(table)
        frame.attrs["partitions"] = {partition: read_metadata(each.schema) for partition, each in tables.items()}
        return frame
    frames = {partition: _with_attrs(table) for partition, table in tables.items()}
    if kind is dict or len(frames) > 1:
        return frames
    return next(iter(frames.values()), None)


def _one_after_the_other(
    context: dg.InputContext, tables: Mapping[str, pa.Table], schema: TableSchema | None
) -> pa.Table:
    if tables:
        try:
            return concat(list(tables.values()))
        except pa.ArrowInvalid as error:
            raise BadFileError(
                f"{_asset_name(context)}: the partitions {', '.join(tables)} are of different schemas: {error}. "
                "Nothing was loaded. Declare one and materialise them again, or annotate the "
                "input dict[str, pandas.DataFrame]."
            ) from error
    if schema is None:
        raise ObjectNotFoundError(
            f"{_asset_name(context)}: no partition that the input asks for was ever materialised, and no schema is "
            "declared that an empty frame could have. Nothing was loaded. Declare one, or leave the input unannotated."
        )
    return schema.arrow().empty_table()


def _with_attrs(table: pa.Table) -> pd.DataFrame:
    frame = to_frame(table)
    frame.attrs.update(read_metadata(table.schema))
    return frame


# What is shown -----------------------------------------------------------------------------------------------------


def _counts(written: Written) -> dict[str, Any]:
    return {
        "rows_inserted": written.inserted,
        "rows_unchanged": written.unchanged,
        "rows_deleted": written.deleted,
    }


def _describe(
    context: dg.OutputContext, table: pa.Table, schema: TableSchema, attrs: Mapping[str, Any], preview_rows: int
) -> dict[str, Any]:
    partitioned = context.has_asset_key and context.has_asset_partitions
    shown: dict[str, Any] = {"dagster/partition_row_count" if partitioned else "dagster/row_count": table.num_rows}
    if COLUMN_SCHEMA_KEY not in context.definition_metadata:
        # An asset that states its columns itself need not have them stored with each partition.
        shown[COLUMN_SCHEMA_KEY] = column_schema(schema)
    if attrs:
        shown["lineage"] = dg.MetadataValue.json(dict(attrs))
    if preview_rows:
        cells = {
            name: [_cell(value) for value in column]
            for name, column in table.slice(0, preview_rows).to_pydict().items()
        }
        shown["preview"] = dg.MetadataValue.md(
            markdown_table(pd.DataFrame(cells, columns=table.column_names, dtype=object))
        )
    return shown


def _cell(value: object) -> object:
    text = str(value)
    return value if value is None or len(text) <= _PREVIEW_CELL else text[: _PREVIEW_CELL - 1] + "…"


def column_schema(schema: TableSchema) -> dg.TableSchema:
    """Give a declared schema as Dagster shows it; units stand in the descriptions."""
    return dg.TableSchema(
        columns=[
            dg.TableColumn(
                column.name,
                str(column.type.value_type if pa.types.is_dictionary(column.type) else column.type),
                description=_description(column.description, column.unit),
                constraints=dg.TableColumnConstraints(
                    nullable=column.nullable, unique=tuple(schema.key) == (column.name,)
                ),
            )
            for column in schema.columns
        ],
        constraints=dg.TableConstraints(other=[f"key: {', '.join(schema.key)}"]) if schema.key else None,
    )


def _description(words: str, unit: str | None) -> str | None:
    return (f"{words} Unit: {unit}." if unit else words) or None
