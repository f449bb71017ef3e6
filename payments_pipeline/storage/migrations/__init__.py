"""Schema of the business database: Alembic migrations, forward only, one SQL file each.

Belongs here: DDL and the call that brings a database up to date. Does not belong here: data, roles' passwords.
"""

from pathlib import Path

import psycopg
import sqlalchemy
from alembic import command, op
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from payments_pipeline.domain.errors import ConfigurationError, DatabaseUnavailableError
from payments_pipeline.storage.postgres import unavailable

_HERE = Path(__file__).parent
#: Two programs that migrate one database at once take turns under this advisory lock.
_MIGRATION_LOCK = 7_203_001


def run_sql(name: str) -> None:
    """Run one of the SQL files in `versions` on the migrating connection."""
    raw = op.get_bind().connection.driver_connection
    assert isinstance(raw, psycopg.Connection)
    raw.execute((_HERE / "versions" / name).read_bytes())


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_HERE).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def head() -> str:
    """Give the newest schema version that this program knows."""
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    assert newest is not None
    return newest


def migrate(url: str) -> str:
    """Bring the database at `url` to the newest schema; nothing happens where it is there already.

    Args:
        url: `postgresql://` address with the login that owns the schema.

    Returns:
        The schema version reached.

    Raises:
        ConfigurationError: the login may not migrate, or the database's schema is newer than this program.
        DatabaseUnavailableError: the server does not answer or refuses the login.
    """
    engine = sqlalchemy.create_engine(
        sqlalchemy.engine.make_url(url).set(drivername="postgresql+psycopg"), poolclass=sqlalchemy.pool.NullPool
    )
    config = _config()
    try:
        with engine.begin() as connection:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
    except sqlalchemy.exc.DBAPIError as error:
        if isinstance(error.orig, psycopg.OperationalError):
            raise DatabaseUnavailableError(unavailable(str(error.orig))) from error
        raise ConfigurationError(
            f"the business database could not be migrated: {str(error.orig).strip()}. Nothing was changed. "
            "Set PAYMENTS_MIGRATOR_URL to the login that owns the schema."
        ) from error
    except CommandError as error:
        raise ConfigurationError(
            f"the business database's schema is not one that this program knows ({error}); it knows up to {head()}. "
            "Nothing was changed. Run the program that is as new as the database."
        ) from error
    return head()
