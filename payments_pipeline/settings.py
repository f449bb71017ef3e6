"""The only reader of the environment.

Belongs here: every setting with its default and meaning. Does not belong here: opening anything a setting names.
"""

from __future__ import annotations

import os
import tomllib
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Annotated
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from payments_pipeline.domain.errors import ConfigurationError
from payments_pipeline.domain.policy import Policy


def _known_zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # not found, or no name of a file
        raise ValueError(f"{name!r} is no IANA time zone; write one such as Europe/London") from None
    return name


_PREFIX = "PAYMENTS_"


class Settings(BaseSettings):
    """All settings; with none of them set everything runs embedded below `home`."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    home: Path = Field(Path(".payments"), description="Folder of the embedded servers, their data and logs.")
    landing_url: str = Field("", description="Landing zone: a folder or s3://bucket/prefix. Default: <home>/landing.")
    reference_url: str = Field("", description="Reference data: a folder or s3://…. Default: <home>/reference.")
    storage_url: str = Field("", description="Where assets are stored: a folder or s3://…. Default: <home>/storage.")
    postgres_url: SecretStr | None = Field(
        None, description="Business database, by the run-time login. Default: the embedded server."
    )
    migrator_url: SecretStr | None = Field(
        None, description="The same database by the login that migrates it. Default: PAYMENTS_POSTGRES_URL."
    )
    approver_url: SecretStr | None = Field(
        None, description="The same database by an approver's own login; only the commands that approve read it."
    )
    dagster_postgres_url: SecretStr | None = Field(
        None,
        description="Dagster's own storage. Default: beside the business database, its name with _dagster appended.",
    )
    processor: str = Field("sandbox", description="Which processor carries instructions out.")
    processor_url: str | None = Field(None, description="Its address. Default: the embedded sandbox.")
    processor_key: SecretStr | None = Field(None, description="Its API key. Default: the embedded sandbox's.")
    config: Path | None = Field(
        None, description="Policy file: limits, minimums, expiries per currency. Default: the package's payments.toml."
    )
    ui_port: int = Field(3000, ge=1, le=65535, description="Port of the Dagster UI on 127.0.0.1.")
    timezone: Annotated[str, AfterValidator(_known_zone)] = Field(
        "Europe/London", description="Zone whose calendar days are the partitions and whose 03:00 is the schedule."
    )
    start_date: date = Field(date(2018, 1, 1), description="First match day there is a partition for.")

    @property
    def zone(self) -> ZoneInfo:
        """The pipeline's time zone."""
        return ZoneInfo(self.timezone)

    @property
    def home_dir(self) -> Path:
        """`home`, absolute."""
        return self.home.expanduser().absolute()

    @property
    def landing(self) -> str:
        """Landing zone, default filled in."""
        return self.landing_url or str(self.home_dir / "landing")

    @property
    def reference(self) -> str:
        """Reference data, default filled in."""
        return self.reference_url or str(self.home_dir / "reference")

    @property
    def storage(self) -> str:
        """Asset storage, default filled in."""
        return self.storage_url or str(self.home_dir / "storage")


def load_settings() -> Settings:
    """Read the environment, as it is now.

    Raises:
        ConfigurationError: a value cannot be used; names the variable, the fault and what is expected.
    """
    return _read(tuple(sorted(each for each in os.environ.items() if each[0].upper().startswith(_PREFIX))))


@lru_cache(maxsize=4)
def _read(_variables: tuple[tuple[str, str], ...]) -> Settings:
    """Read once what did not change: every step of a run asks."""
    try:
        return Settings()
    except ValidationError as error:
        faults = "; ".join(
            f"PAYMENTS_{'_'.join(str(part) for part in fault['loc']).upper()}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False)
        )
        raise ConfigurationError(f"settings cannot be used: {faults}. Nothing ran.") from None


def load_policy(settings: Settings) -> Policy:
    """Read the policy file.

    Raises:
        ConfigurationError: it is missing, is no TOML, or states what policy does not know; names the key and the fault.
    """
    path = settings.config or Path(__file__).with_name("payments.toml")
    try:
        return Policy.model_validate(tomllib.loads(path.read_text("utf-8")))
    except OSError as error:
        raise ConfigurationError(f"PAYMENTS_CONFIG: {path} cannot be read: {error.strerror}. Nothing ran.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"PAYMENTS_CONFIG: {path} is no TOML: {error}. Nothing ran.") from None
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc']) or 'file'}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False)
        )
        raise ConfigurationError(f"PAYMENTS_CONFIG: {path}: {faults}. Nothing ran.") from None
