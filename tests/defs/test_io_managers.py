"""Both IO managers in real runs of Dagster, on folders, S3 and Postgres."""

import datetime as dt
import hashlib
import socket
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import dagster as dg
import duckdb
import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from dagster_aws.s3 import S3Resource
from moto.server import ThreadedMotoServer

from payments_pipeline.defs.io_managers import WRITE_MODE_KEY, ParquetIOManager, PostgresIOManager
from payments_pipeline.defs.s3 import PatientS3Resource, S3ParquetIOManager
from payments_pipeline.domain.errors import BadFileError, ConfigurationError, ConflictError, InvariantError
from payments_pipeline.domain.schemas import CATEGORY, DATE, INT, PARTICIPANT_SHARES, STRING, Column, TableSchema
from payments_pipeline.storage.objects import ObjectNotFoundError, open_store
from payments_pipeline.storage.parquet import decode, partition_key
from payments_pipeline.storage.postgres import connect
from payments_pipeline.storage.tables import WriteMode

GOALS = TableSchema(
    name="goals",
    description="Goals of a day.",
    key=("player",),
    sort_by=("player",),
    partition_column="day",
    columns=(
        Column("player", CATEGORY, "Who scored."),
        Column("day", DATE, "Match day."),
        Column("bonus_minor", INT, "What they earn by it.", unit="minor units"),
        Column("note", STRING, "Words.", nullable=True),
    ),
)
CARDS = replace(GOALS, name="cards")
#: What `schemas="module:attribute"` names in these tests.
DECLARED = (GOALS, CARDS)
SCHEMAS = f"{__name__}:DECLARED"
DAYS = dg.DailyPartitionsDefinition("2024-01-01", end_date="2024-02-01")
DAY, NEXT_DAY = "2024-01-01", "2024-01-02"


def goals_of(day: str, bonus_minor: int = 100, players: tuple[str, ...] = ("b", "a")) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "player": [f"{player}-{day}" for player in players],
            "day": [dt.date.fromisoformat(day)] * len(players),
            "bonus_minor": [bonus_minor] * len(players),
            "note": [None] * len(players),
        }
    )
    frame.attrs = {"input_hashes": {"goals.csv": day}, "counts": {"read": len(players)}}
    return frame


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    with dg.DagsterInstance.ephemeral() as ephemeral:
        yield ephemeral


@pytest.fixture(params=["folder", "s3"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "storage")
    return str(request.getfixturevalue("bucket_url"))


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def bucket_url(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", s3_endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    bucket = f"bucket-{uuid.uuid4().hex}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/storage"


def goals_asset(
    make: Callable[[str], object] = goals_of, metadata: Mapping[str, object] | None = None, **kwargs: Any
) -> dg.AssetsDefinition:
    @dg.asset(name="goals", partitions_def=DAYS, dagster_type=dg.Any, metadata=metadata, **kwargs)
    def goals(context: dg.AssetExecutionContext) -> object:
        return make(context.partition_key)

    return goals


def run(
    assets: list[dg.AssetsDefinition],
    instance: dg.DagsterInstance,
    manager: dg.ConfigurableIOManager,
    partition: str | None = None,
    **kwargs: Any,
) -> dg.ExecuteInProcessResult:
    return dg.materialize(
        assets, partition_key=partition, instance=instance, resources={"io_manager": manager}, **kwargs
    )


def metadata_of(result: dg.ExecuteInProcessResult, asset: str = "goals") -> dict[str, Any]:
    (event,) = result.asset_materializations_for_node(asset)
    return {name: value.value for name, value in event.metadata.items()}


def test_a_bucket_may_be_opened_by_the_resource_of_dagster_aws(
    instance: dg.DagsterInstance, bucket_url: str, s3_endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    given = {"region_name": "us-east-1", "aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
    for resource in (S3Resource, PatientS3Resource):
        s3 = resource(endpoint_url=s3_endpoint, **given)
        manager = S3ParquetIOManager(storage_url=bucket_url, schemas=SCHEMAS, s3=s3)
        assert run([goals_asset()], instance, manager, DAY).success
        key = partition_key("goals", DAY)
        body = s3.get_client().get_object(Bucket=bucket_url.split("/")[2], Key=f"storage/{key}")["Body"].read()
        assert decode(body, GOALS)["bonus_minor"].tolist() == [100, 100]
    assert PatientS3Resource(endpoint_url=s3_endpoint, **given).get_client().meta.config.read_timeout == 60


def reader(annotation: Any, seen: list[Any], back: int = 0, **asset_in: Any) -> dg.AssetsDefinition:
    """Build an asset whose partition reads `goals` of its own day and of `back` days before."""

    def compute(goals: Any) -> None:
        seen.append(goals)

    compute.__annotations__["goals"] = annotation
    mapping = dg.TimeWindowPartitionMapping(start_offset=-back, end_offset=0)
    return dg.asset(
        name="reader", partitions_def=DAYS, ins={"goals": dg.AssetIn(partition_mapping=mapping, **asset_in)}
    )(compute)


# Parquet


def test_a_partition_is_one_object_in_hives_layout_with_rows_order_and_attrs(
    storage_url: str, instance: dg.DagsterInstance
) -> None:
    manager = ParquetIOManager(storage_url=storage_url, schemas=SCHEMAS)
    run([goals_asset()], instance, manager, DAY)
    store = open_store(storage_url)
    assert [found.key for found in store.list()] == [f"goals/date={DAY}/part-0.parquet"]
    assert partition_key("goals", DAY) == f"goals/date={DAY}/part-0.parquet"
    frame = decode(store.read(partition_key("goals", DAY)), GOALS)
    assert frame["player"].tolist() == [f"a-{DAY}", f"b-{DAY}"]
    assert frame.attrs == {"input_hashes": {"goals.csv": DAY}, "counts": {"read": 2}}


def test_the_output_shows_rows_place_digest_schema_lineage_and_a_bounded_preview(
    storage_url: str, instance: dg.DagsterInstance
) -> None:
    manager = ParquetIOManager(storage_url=storage_url, schemas=SCHEMAS)
    many = goals_asset(lambda day: goals_of(day, players=tuple(f"{number:02d}" for number in range(9))))
    shown = metadata_of(run([many], instance, manager, DAY))
    store = open_store(storage_url)
    data = store.read(partition_key("goals", DAY))
    assert shown["dagster/partition_row_count"] == 9
    assert shown["dagster/uri"] == store.uri(partition_key("goals", DAY))
    assert shown["bytes"] == len(data)
    assert shown["sha256"] == hashlib.sha256(data).hexdigest()
    assert shown["lineage"] == {"input_hashes": {"goals.csv": DAY}, "counts": {"read": 9}}
    assert len(shown["preview"].splitlines()) == 2 + 5
    columns = {column.name: column for column in shown["dagster/column_schema"].columns}
    assert columns["bonus_minor"].type == "int64"
    assert columns["bonus_minor"].description == "What they earn by it. Unit: minor units."
    assert not columns["bonus_minor"].constraints.nullable
    assert columns["note"].constraints.nullable
    assert columns["player"].constraints.unique


def test_materialising_again_replaces_the_partition_with_the_same_bytes_for_the_same_rows(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    manager = ParquetIOManager(storage_url=str(tmp_path), schemas=SCHEMAS)
    digests = [
        metadata_of(run([goals_asset(make)], instance, manager, DAY))["sha256"]
        for make in (goals_of, lambda day: goals_of(day, 7), goals_of)
    ]
    assert digests[0] == digests[2] != digests[1]


def test_one_partition_is_given_as_a_frame_with_its_attrs(storage_url: str, instance: dg.DagsterInstance) -> None:
    seen: list[Any] = []
    manager = ParquetIOManager(storage_url=storage_url, schemas=SCHEMAS)
    run([goals_asset(), reader(pd.DataFrame, seen)], instance, manager, DAY)
    (frame,) = seen
    assert frame["bonus_minor"].dtype == "int64"
    assert frame["player"].dtype == "category"
    assert frame.attrs["input_hashes"] == {"goals.csv": DAY}


def materialise_days(instance: dg.DagsterInstance, manager: dg.ConfigurableIOManager, *days: str) -> None:
    for day in days:
        run([goals_asset()], instance, manager, day)


def read(
    instance: dg.DagsterInstance,
    manager: dg.ConfigurableIOManager,
    annotation: Any,
    day: str = "2024-01-03",
    **kwargs: Any,
) -> Any:
    seen: list[Any] = []
    upstream = goals_asset().to_source_assets()[0]
    dg.materialize(
        [reader(annotation, seen, back=2, **kwargs), upstream],
        selection=["reader"],
        partition_key=day,
        instance=instance,
        resources={"io_manager": manager},
    )
    return seen[0]


@pytest.fixture(params=["parquet", "postgres"])
def any_manager(request: pytest.FixtureRequest, tmp_path: Path) -> dg.ConfigurableIOManager:
    if request.param == "parquet":
        return ParquetIOManager(storage_url=str(tmp_path), schemas=SCHEMAS)
    url = request.getfixturevalue("empty_database_url")
    return PostgresIOManager(url=url, schemas=SCHEMAS, create_tables=True)


def test_several_partitions_are_one_frame_one_table_or_a_dict_as_the_input_is_annotated(
    any_manager: dg.ConfigurableIOManager, instance: dg.DagsterInstance
) -> None:
    days = (DAY, NEXT_DAY, "2024-01-03")
    materialise_days(instance, any_manager, *days)
    frame = read(instance, any_manager, pd.DataFrame)
    assert sorted(frame["player"]) == sorted(f"{player}-{day}" for day in days for player in "ab")
    assert frame["player"].dtype == "category"
    table = read(instance, any_manager, pa.Table)
    assert table.num_rows == 6
    assert not table.schema.field("bonus_minor").nullable
    for annotation in (dict[str, pd.DataFrame], Any):
        by_day = read(instance, any_manager, annotation)
        assert list(by_day) == list(days)
        assert by_day[NEXT_DAY]["player"].tolist() == [f"a-{NEXT_DAY}", f"b-{NEXT_DAY}"]


def test_a_dict_input_of_one_partition_is_still_a_dict(
    any_manager: dg.ConfigurableIOManager, instance: dg.DagsterInstance
) -> None:
    seen: list[Any] = []
    run([goals_asset(), reader(dict[str, pd.DataFrame], seen)], instance, any_manager, DAY)
    assert list(seen[0]) == [DAY]


def test_the_attrs_of_several_partitions_are_kept_by_partition(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    manager = ParquetIOManager(storage_url=str(tmp_path), schemas=SCHEMAS)
    materialise_days(instance, manager, DAY, NEXT_DAY, "2024-01-03")
    attrs = read(instance, manager, pd.DataFrame).attrs
    assert attrs["partitions"][NEXT_DAY]["input_hashes"] == {"goals.csv": NEXT_DAY}
    assert len(attrs["partitions"]) == 3


def raised(call: Callable[[], object], kind: type[Exception]) -> str:
    """Give the words of the error of a kind that a run failed with, however Dagster wrapped it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - narrowed below
        call()
    error: BaseException | None = caught.value
    while error is not None and not isinstance(error, kind):
        error = error.__cause__
    assert error is not None, f"no {kind.__name__} behind {caught.value!r}"
    return str(error)


def test_a_missing_partition_is_named_with_its_asset(storage_url: str, instance: dg.DagsterInstance) -> None:
    manager = ParquetIOManager(storage_url=storage_url, schemas=SCHEMAS)
    materialise_days(instance, manager, DAY, "2024-01-03")
    words = raised(lambda: read(instance, manager, pd.DataFrame), ObjectNotFoundError)
    assert f"partition {NEXT_DAY} of goals was never materialised" in words


def test_missing_partitions_are_left_out_where_the_input_allows_it(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    manager = ParquetIOManager(storage_url=str(tmp_path), schemas=SCHEMAS)
    allowed = {"metadata": {"allow_missing_partitions": True}}
    empty = read(instance, manager, pd.DataFrame, **allowed)
    assert empty.empty
    assert empty["bonus_minor"].dtype == "int64"
    assert read(instance, manager, Any, **allowed) is None
    materialise_days(instance, manager, DAY, "2024-01-03")
    assert len(read(instance, manager, pd.DataFrame, **allowed)) == 4
    assert list(read(instance, manager, dict[str, pd.DataFrame], **allowed)) == [DAY, "2024-01-03"]


def test_several_partitions_in_one_output_are_refused_by_name(
    any_manager: dg.ConfigurableIOManager, instance: dg.DagsterInstance
) -> None:
    @dg.asset(partitions_def=DAYS)
    def goals() -> pd.DataFrame:
        return goals_of(DAY)

    tags = {"dagster/asset_partition_range_start": DAY, "dagster/asset_partition_range_end": "2024-01-03"}
    words = raised(lambda: run([goals], instance, any_manager, tags=tags), InvariantError)
    assert "goals: one output is for 3 partitions (2024-01-01, 2024-01-02, 2024-01-03)" in words
    assert "multi_run(1)" in words


@pytest.mark.parametrize("obj", [None, {"a": 1}, [1]], ids=repr)
def test_what_is_no_frame_is_refused(
    any_manager: dg.ConfigurableIOManager, instance: dg.DagsterInstance, obj: object
) -> None:
    words = raised(lambda: run([goals_asset(lambda _: obj)], instance, any_manager, DAY), InvariantError)
    assert f"goals gave {type(obj).__name__}" in words


def test_a_frame_that_is_not_what_is_declared_leaves_the_old_partition(
    any_manager: dg.ConfigurableIOManager, instance: dg.DagsterInstance
) -> None:
    materialise_days(instance, any_manager, DAY)
    wrong = goals_asset(lambda day: goals_of(day).assign(bonus_minor=1.0))
    assert "goals.bonus_minor" in raised(lambda: run([wrong], instance, any_manager, DAY), InvariantError)
    seen: list[Any] = []
    run([goals_asset(), reader(pd.DataFrame, seen)], instance, any_manager, DAY, selection=["reader"])
    assert seen[0]["bonus_minor"].tolist() == [100, 100]


def test_an_unpartitioned_asset_has_one_object(storage_url: str, instance: dg.DagsterInstance) -> None:
    seen: list[pd.DataFrame] = []

    @dg.asset(key_prefix="reference", name="goals")
    def goals() -> pd.DataFrame:
        return goals_of(DAY)

    @dg.asset(ins={"goals": dg.AssetIn(key=["reference", "goals"])})
    def reader(goals: pd.DataFrame) -> None:
        seen.append(goals)

    manager = ParquetIOManager(storage_url=storage_url, schemas=SCHEMAS)
    result = run([goals, reader], instance, manager)
    assert [found.key for found in open_store(storage_url).list()] == ["reference/goals/part-0.parquet"]
    assert seen[0].attrs["counts"] == {"read": 2}
    assert metadata_of(result, "reference__goals")["dagster/row_count"] == 2


def test_each_output_of_a_multi_asset_is_stored_under_its_own_name_and_schema(
    any_manager: dg.ConfigurableIOManager, instance: dg.DagsterInstance
) -> None:
    seen: list[int] = []

    @dg.multi_asset(outs={name: dg.AssetOut(dagster_type=dg.Any) for name in ("goals", "cards")}, partitions_def=DAYS)
    def both(context: dg.AssetExecutionContext) -> Iterator[dg.MaterializeResult]:
        yield dg.MaterializeResult(asset_key="goals", value=goals_of(context.partition_key, 1))
        yield dg.MaterializeResult(asset_key="cards", value=goals_of(context.partition_key, 2))

    @dg.asset(partitions_def=DAYS)
    def reads_both(goals: pd.DataFrame, cards: pd.DataFrame) -> None:
        seen.extend([*goals["bonus_minor"], *cards["bonus_minor"]])

    result = run([both, reads_both], instance, any_manager, DAY)
    assert seen == [1, 1, 2, 2]
    shown = [
        event.metadata["dagster/partition_row_count"].value for event in result.asset_materializations_for_node("both")
    ]
    assert shown == [2, 2]


def test_partitions_of_several_dimensions_and_of_names_have_keys_of_their_own(
    tmp_path: Path, instance: dg.DagsterInstance
) -> None:
    names = dg.StaticPartitionsDefinition(["home/away", ".."])
    grid = dg.MultiPartitionsDefinition({"side": names, "day": DAYS})
    seen: list[pd.DataFrame] = []

    @dg.asset(partitions_def=names)
    def by_name(context: dg.AssetExecutionContext) -> pd.DataFrame:
        return pd.DataFrame({"name": [context.partition_key]})

    @dg.asset(partitions_def=grid)
    def by_both() -> pd.DataFrame:
        return pd.DataFrame({"a": [1]})

    @dg.asset(partitions_def=grid)
    def reads_both(by_both: pd.DataFrame) -> None:
        seen.append(by_both)

    manager = ParquetIOManager(storage_url=str(tmp_path), schemas="")
    for name in ("home/away", ".."):
        run([by_name], instance, manager, name)
    both = dg.MultiPartitionKey({"side": "home/away", "day": DAY})
    run([by_both, reads_both], instance, manager, both)
    assert [found.key for found in open_store(str(tmp_path)).list()] == [
        f"by_both/day={DAY}/side=home%2Faway/part-0.parquet",
        "by_name/partition=../part-0.parquet",
        "by_name/partition=home%2Faway/part-0.parquet",
    ]
    assert seen[0]["a"].tolist() == [1]


def test_an_asset_without_declared_schema_keeps_its_own_types(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    seen: list[pd.DataFrame] = []

    @dg.asset
    def ratings() -> pd.DataFrame:
        return pd.DataFrame({"rating": [2.5, 1.0], "name": ["b", "a"]})

    @dg.asset
    def reads(ratings: pd.DataFrame) -> None:
        seen.append(ratings)

    run([ratings, reads], instance, ParquetIOManager(storage_url=str(tmp_path)))
    assert seen[0].to_dict("list") == {"rating": [2.5, 1.0], "name": ["b", "a"]}


def test_an_arrow_table_is_stored_as_a_frame_is(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    manager = ParquetIOManager(storage_url=str(tmp_path), schemas=SCHEMAS)
    table = pa.Table.from_pandas(goals_of(DAY), preserve_index=False)
    shown = metadata_of(run([goals_asset(lambda _: table)], instance, manager, DAY))
    plain = goals_of(DAY)
    plain.attrs = {}
    assert shown["sha256"] == metadata_of(run([goals_asset(lambda _: plain)], instance, manager, DAY))["sha256"]


def test_a_broken_object_is_named_with_partition_and_address(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    manager = ParquetIOManager(storage_url=str(tmp_path), schemas=SCHEMAS)
    materialise_days(instance, manager, DAY, NEXT_DAY, "2024-01-03")
    path = tmp_path / partition_key("goals", NEXT_DAY)
    path.write_bytes(path.read_bytes()[:-10])
    words = raised(lambda: read(instance, manager, pd.DataFrame), BadFileError)
    assert f"partition {NEXT_DAY} of goals, {path}" in words


def test_an_op_output_outside_assets_is_stored_and_loaded_too(tmp_path: Path) -> None:
    seen: list[pd.DataFrame] = []

    @dg.op
    def make() -> pd.DataFrame:
        return goals_of(DAY)

    @dg.op
    def take(frame: pd.DataFrame) -> None:
        seen.append(frame)

    @dg.job(resource_defs={"io_manager": ParquetIOManager(storage_url=str(tmp_path), schemas="")})
    def job() -> None:
        take(make())

    assert job.execute_in_process().success
    assert len(seen[0]) == 2


def test_other_programs_read_the_partitions_as_one_dataset(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    manager = ParquetIOManager(storage_url=str(tmp_path), schemas=SCHEMAS)
    materialise_days(instance, manager, DAY, NEXT_DAY)
    query = (
        "SELECT date::text, sum(bonus_minor)::int FROM read_parquet(?, hive_partitioning=true) GROUP BY 1 ORDER BY 1"
    )
    with duckdb.connect() as database:
        found = database.execute(query, [f"{tmp_path}/goals/*/*.parquet"]).fetchall()
    assert found == [(DAY, 200), (NEXT_DAY, 200)]


@pytest.mark.parametrize("schemas", ["no_such_module:ALL", "payments_pipeline.domain.schemas:NONE", "json"])
def test_schemas_that_name_nothing_are_a_setting_to_mend(
    tmp_path: Path, instance: dg.DagsterInstance, schemas: str
) -> None:
    manager = ParquetIOManager(storage_url=str(tmp_path), schemas=schemas)
    assert schemas in raised(lambda: run([goals_asset()], instance, manager, DAY), ConfigurationError)


def test_the_projects_own_schemas_are_declared_by_default(tmp_path: Path, instance: dg.DagsterInstance) -> None:
    @dg.asset(partitions_def=DAYS, dagster_type=dg.Any)
    def participant_shares() -> object:
        return pd.DataFrame(columns=PARTICIPANT_SHARES.names)

    result = run([participant_shares], instance, ParquetIOManager(storage_url=str(tmp_path)), DAY)
    schema = metadata_of(result, "participant_shares")["dagster/column_schema"]
    assert [column.name for column in schema.columns] == PARTICIPANT_SHARES.names


def test_a_password_is_not_in_the_words_of_the_manager() -> None:
    assert "secret" not in repr(PostgresIOManager(url="postgresql://me:secret@host/name"))


def test_constructing_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    monkeypatch.setattr(socket.socket, "connect", lambda _socket, address: opened.append(address))
    monkeypatch.setattr(psycopg.Connection, "connect", lambda *given, **_more: opened.append(given))
    ParquetIOManager(storage_url="s3://no-such-bucket/prefix")
    PostgresIOManager(url="postgresql://nobody@127.0.0.1:1/nothing")
    assert opened == []


# Postgres


@pytest.fixture
def postgres(empty_database_url: str) -> PostgresIOManager:
    return PostgresIOManager(url=empty_database_url, schemas=SCHEMAS, create_tables=True)


def test_rows_are_inserted_once_unless_the_asset_says_otherwise(
    postgres: PostgresIOManager, instance: dg.DagsterInstance
) -> None:
    first = metadata_of(run([goals_asset()], instance, postgres, DAY))
    assert (first["rows_inserted"], first["rows_unchanged"], first["rows_deleted"]) == (2, 0, 0)
    again = metadata_of(run([goals_asset()], instance, postgres, DAY))
    assert (again["rows_inserted"], again["rows_unchanged"], again["rows_deleted"]) == (0, 2, 0)
    changed = goals_asset(lambda day: goals_of(day, 7))
    words = raised(lambda: run([changed], instance, postgres, DAY), ConflictError)
    assert "player a-2024-01-01 is stored with other content: bonus_minor is 100, and now 7" in words


@pytest.mark.parametrize(
    "mode", [WriteMode.REPLACE_PARTITION, "replace_partition", dg.MetadataValue.text("replace_partition")]
)
def test_an_asset_that_says_so_has_its_partition_replaced(
    postgres: PostgresIOManager, instance: dg.DagsterInstance, mode: object
) -> None:
    metadata = {WRITE_MODE_KEY: mode}
    run([goals_asset(metadata=metadata)], instance, postgres, DAY)
    run([goals_asset(metadata=metadata)], instance, postgres, NEXT_DAY)
    changed = goals_asset(lambda day: goals_of(day, 7, ("c",)), metadata=metadata)
    shown = metadata_of(run([changed], instance, postgres, DAY))
    assert (shown["rows_inserted"], shown["rows_deleted"], shown["write_mode"]) == (1, 2, "replace_partition")
    with connect(postgres.url) as connection:
        assert connection.execute("SELECT player FROM goals ORDER BY 1").fetchall() == [
            ("a-2024-01-02",),
            ("b-2024-01-02",),
            ("c-2024-01-01",),
        ]


def test_a_mode_that_there_is_not_is_refused(postgres: PostgresIOManager, instance: dg.DagsterInstance) -> None:
    asset = goals_asset(metadata={WRITE_MODE_KEY: "append"})
    words = raised(lambda: run([asset], instance, postgres, DAY), ConfigurationError)
    assert "replace_partition, insert_once" in words


def test_the_output_to_a_table_shows_what_was_done_and_no_password(
    postgres: PostgresIOManager, instance: dg.DagsterInstance
) -> None:
    shown = metadata_of(run([goals_asset()], instance, postgres, DAY))
    assert shown["dagster/partition_row_count"] == 2
    assert shown["dagster/table_name"].endswith(".payments.goals")
    assert shown["dagster/uri"].startswith("postgresql://127.0.0.1:")
    assert "@" not in shown["dagster/uri"]
    assert shown["bytes"] > 0
    assert shown["lineage"]["input_hashes"] == {"goals.csv": DAY}
    assert len(shown["dagster/column_schema"].columns) == 4
    assert "a-2024-01-01" in shown["preview"]


def test_a_partition_without_rows_is_an_empty_frame_of_the_declared_dtypes(
    postgres: PostgresIOManager, instance: dg.DagsterInstance
) -> None:
    materialise_days(instance, postgres, DAY)
    frame = read(instance, postgres, pd.DataFrame, day="2024-01-30")
    assert frame.empty
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == {
        "player": "category",
        "day": "object",
        "bonus_minor": "int64",
        "note": "object",
    }


def test_no_table_is_made_unless_asked_for(empty_database_url: str, instance: dg.DagsterInstance) -> None:
    manager = PostgresIOManager(url=empty_database_url, schemas=SCHEMAS)
    words = raised(lambda: run([goals_asset()], instance, manager, DAY), ConfigurationError)
    assert "there is no table payments.goals" in words


def test_an_asset_that_nobody_declared_has_no_table(postgres: PostgresIOManager, instance: dg.DagsterInstance) -> None:
    @dg.asset
    def ratings() -> pd.DataFrame:
        return pd.DataFrame({"rating": [2.5]})

    words = raised(lambda: run([ratings], instance, postgres), ConfigurationError)
    assert "declares no schema of the name of asset ratings" in words


def test_the_address_may_come_from_the_environment(
    empty_database_url: str, instance: dg.DagsterInstance, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOALS_DATABASE", empty_database_url)
    manager = PostgresIOManager(url=dg.EnvVar("GOALS_DATABASE"), schemas=SCHEMAS, create_tables=True, db_schema="sport")
    shown = metadata_of(run([goals_asset()], instance, manager, DAY))
    assert shown["dagster/table_name"].endswith(".sport.goals")
