"""Fixtures that every test may use: a real PostgreSQL, and a fresh business database for each test that asks.

`database` gives the addresses of a new, migrated database by each login; it costs a copy of a template (some 30 ms).
`database_url` is that of the pipeline's own login, `empty_database_url` an administrator's on one without tables.
One server serves all workers of a test run: they attach to it as commands attach to a stack.
"""

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import hypothesis
import psycopg
import pytest
from psycopg import sql

from payments_pipeline.local import postgres, stack
from payments_pipeline.storage.migrations import migrate
from payments_pipeline.storage.postgres import close_connections

# How long an example takes says nothing on a machine that has other work: no test is timed.
hypothesis.settings.register_profile("untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("untimed")
_serial = itertools.count(1)


@dataclass(frozen=True)
class PostgresServer:
    """The test run's server: addresses by login, databases by the dozen."""

    home: Path
    port: int
    worker: str

    def url(self, login: postgres.Login, database: str) -> str:
        return postgres.url(self.home, login, database, self.port)

    @contextmanager
    def new_database(self, owner: postgres.Login, template: str = "template1") -> Iterator[str]:
        """Create a database, give its name, and drop it whoever is still connected."""
        name = f"test_{self.worker}_{next(_serial)}"
        with psycopg.connect(self.url(postgres.SUPERUSER, "postgres"), autocommit=True) as connection:
            create = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}")
            connection.execute(create.format(*(sql.Identifier(word) for word in (name, owner.name, template))))
            try:
                yield name
            finally:
                close_connections()  # that the code under test keeps
                connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@dataclass(frozen=True)
class Database:
    """One fresh business database, by each login that may use it."""

    url: str = field(repr=False)  # payments_runtime, as the pipeline runs
    migrator_url: str = field(repr=False)
    approver_url: str = field(repr=False)
    superuser_url: str = field(repr=False)


@pytest.fixture(scope="session")
def postgres_server(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[PostgresServer]:
    workerinput = getattr(request.config, "workerinput", None)
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if workerinput else base) / "postgres server"
    with stack.attached(home, ("postgres",)) as state:
        assert state is not None
        server = PostgresServer(home, state.postgres_port, workerinput["workerid"] if workerinput else "gw")
        with psycopg.connect(server.url(postgres.SUPERUSER, "postgres"), autocommit=True) as connection:
            for name in ("fsync", "synchronous_commit", "full_page_writes"):  # these data need not outlive the tests
                connection.execute(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(name)))
            connection.execute("SELECT pg_reload_conf()")
        yield server


@pytest.fixture(scope="session")
def migrated_template(postgres_server: PostgresServer) -> Iterator[str]:
    with postgres_server.new_database(postgres.MIGRATOR) as name:
        migrate(postgres_server.url(postgres.MIGRATOR, name))
        yield name


@pytest.fixture
def database(postgres_server: PostgresServer, migrated_template: str) -> Iterator[Database]:
    with postgres_server.new_database(postgres.MIGRATOR, template=migrated_template) as name:
        yield Database(
            url=postgres_server.url(postgres.RUNTIME, name),
            migrator_url=postgres_server.url(postgres.MIGRATOR, name),
            approver_url=postgres_server.url(postgres.APPROVER, name),
            superuser_url=postgres_server.url(postgres.SUPERUSER, name),
        )


@pytest.fixture
def database_url(database: Database) -> str:
    return database.url


@pytest.fixture
def empty_database_url(postgres_server: PostgresServer) -> Iterator[str]:
    with postgres_server.new_database(postgres.SUPERUSER) as name:
        yield postgres_server.url(postgres.SUPERUSER, name)
