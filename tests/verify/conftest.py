"""The world is built once a session; each test gets a copy of its database and of its files."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

import pytest
from verify_world import World

from payments_pipeline.local import postgres
from payments_pipeline.settings import Settings
from payments_pipeline.storage.postgres import close_connections


class Server(Protocol):
    """What the fixture `postgres_server` gives."""

    def url(self, login: postgres.Login, database: str) -> str: ...

    def new_database(self, owner: postgres.Login, template: str) -> AbstractContextManager[str]: ...


def settings_in(folder: Path) -> Settings:
    return Settings(home=folder, reference_url=str(folder / "reference"), storage_url=str(folder / "storage"))


@pytest.fixture(scope="session")
def built_world(
    postgres_server: Server, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Path]]:
    folder = tmp_path_factory.mktemp("world")
    with postgres_server.new_database(postgres.MIGRATOR, template=migrated_template) as name:
        World(postgres_server.url(postgres.RUNTIME, name), settings_in(folder)).build()
        close_connections()  # a database that somebody is connected to is no template
        yield name, folder


@pytest.fixture
def world(postgres_server: Server, built_world: tuple[str, Path], tmp_path: Path) -> Iterator[World]:
    template, folder = built_world
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    with postgres_server.new_database(postgres.MIGRATOR, template=template) as name:
        yield World(
            postgres_server.url(postgres.RUNTIME, name),
            settings_in(tmp_path),
            superuser_url=postgres_server.url(postgres.SUPERUSER, name),
        )
