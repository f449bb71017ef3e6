"""What assets are given: input, money zone, processor. Each opens what it names when it is used, never before.

Belongs here: addresses and how they are opened. Does not belong here: IO managers, what assets do.
"""

from collections.abc import Mapping
from datetime import date
from zoneinfo import ZoneInfo

import dagster as dg
from pydantic import Field, PrivateAttr

from payments_pipeline import code_version
from payments_pipeline.defs.io_managers import ParquetIOManager, PostgresIOManager
from payments_pipeline.domain.landing_files import LandingFile
from payments_pipeline.domain.policy import Policy
from payments_pipeline.domain.reference_data import ReferenceData, parse_reference
from payments_pipeline.local.stack import locate
from payments_pipeline.processors.base import PayoutProcessor
from payments_pipeline.processors.registry import open_processor
from payments_pipeline.settings import Settings, load_policy, load_settings
from payments_pipeline.storage.certificates import write_certificates
from payments_pipeline.storage.landing import LandingDay, hash_landing_day, read_landing_day
from payments_pipeline.storage.objects import open_store
from payments_pipeline.storage.postgres import RunInfo
from payments_pipeline.storage.reference import read_reference

LANDING_DATASETS = ("match_results", "match_participants")
#: Tag of a run that says who started it; the schedule's runs carry `scheduler`.
MAKER_TAG = "payments/maker"


#: Reference data parsed before, by the hashes of its files; the newest few.
_PARSED: dict[tuple[tuple[str, str, str], ...], ReferenceData] = {}
_KEPT = 4


def _parse_once(files: Mapping[str, LandingFile]) -> ReferenceData:
    key = tuple((table, file.source, file.sha256) for table, file in sorted(files.items()))
    if key not in _PARSED:
        while len(_PARSED) >= _KEPT:
            _PARSED.pop(next(iter(_PARSED)))
        _PARSED[key] = parse_reference(files)
    return _PARSED[key]


class Inputs(dg.ConfigurableResource):
    """The landing zone and the reference data.

    Attributes:
        landing_url: folder or s3://bucket/prefix.
        reference_url: folder or s3://bucket/prefix.
        timezone: zone whose calendar days are the partitions.
    """

    landing_url: str
    reference_url: str
    timezone: str

    @property
    def zone(self) -> ZoneInfo:
        """The pipeline's time zone."""
        return ZoneInfo(self.timezone)

    def landing_day(self, dataset: str, day: date) -> LandingDay:
        """Read one dataset's files of a day."""
        return read_landing_day(open_store(self.landing_url), dataset, day)

    def reference(self) -> ReferenceData:
        """Read the reference data as it is now; parsed once per content."""
        return _parse_once(read_reference(open_store(self.reference_url)))

    def input_hashes(self, day: date) -> dict[str, str]:
        """List and hash a day's input as it is now."""
        store = open_store(self.landing_url)
        landing = {dataset: hash_landing_day(store, dataset, day) for dataset in LANDING_DATASETS}
        return landing | dict(self.reference().input_hashes)


class MoneyZone(dg.ConfigurableResource):
    """The business database, and the policy that what is written there follows.

    Attributes:
        policy_json: the policy file's content, as JSON.
        named_url: address with the run-time login; empty for the one that settings or the stack in the home say.
    """

    policy_json: str
    named_url: str = Field(default="", repr=False)

    _found: str = PrivateAttr(default="")

    @property
    def url(self) -> str:
        """Address with the run-time login, looked for once."""
        if not self._found:
            self._found = self.named_url or locate(load_settings()).postgres_url
        return self._found

    @property
    def policy(self) -> Policy:
        """Limits, minimums and expiries."""
        return Policy.model_validate_json(self.policy_json)


class Certificates(dg.ConfigurableResource):
    """Where the certificates of postings are written.

    Attributes:
        storage_url: folder or s3://bucket/prefix; they are below `certificates/` there.
    """

    storage_url: str

    def write(self, url: str, day: date) -> list[str]:
        """Write those of a day's postings that are not there yet; gives their addresses."""
        return write_certificates(url, open_store(self.storage_url), day)


class PayoutGateway(dg.ConfigurableResource):
    """The processor that carries instructions out.

    Attributes:
        name: which adapter.
        named_url: its address; empty for the one that settings or the stack in the home say.
        named_key: its API key, with the address.
    """

    name: str
    named_url: str = ""
    named_key: str = Field(default="", repr=False)

    def processor(self) -> PayoutProcessor:
        """Give the adapter, unopened."""
        if self.named_url:
            return open_processor(self.name, self.named_url, self.named_key)
        endpoints = locate(load_settings())
        return open_processor(self.name, endpoints.processor_url or "", endpoints.processor_key or "")


def build_resources(settings: Settings) -> dict[str, object]:
    """Give every resource and IO manager by key; nothing is opened.

    Addresses with secrets are left empty, and found when they are used: what a resource is given, the UI shows.
    """
    return {
        "inputs": Inputs(landing_url=settings.landing, reference_url=settings.reference, timezone=settings.timezone),
        "money_zone": MoneyZone(policy_json=load_policy(settings).model_dump_json()),
        "certificates": Certificates(storage_url=settings.storage),
        "gateway": PayoutGateway(name=settings.processor),
        "s3_parquet": _parquet_io_manager(settings.storage),
        "postgres": PostgresIOManager(url=""),
    }


def _parquet_io_manager(storage_url: str) -> ParquetIOManager:
    if not storage_url.startswith("s3://"):
        return ParquetIOManager(storage_url=storage_url)
    from payments_pipeline.defs.s3 import PatientS3Resource, S3ParquetIOManager  # a second of imports, for S3 alone

    return S3ParquetIOManager(storage_url=storage_url, s3=PatientS3Resource())


def run_info(context: dg.AssetExecutionContext) -> RunInfo:
    """Say who writes: the run, this program's version, and who started the run."""
    run = context.run
    if "dagster/parent_run_id" in run.tags and "dagster/retry_number" not in run.tags:
        maker = "ui"  # executed again by hand: its tags say who started the run before it
    elif "dagster/schedule_name" in run.tags:
        maker = "scheduler"
    else:
        maker = run.tags.get(MAKER_TAG, "ui")
    return RunInfo(run_id=run.run_id, code_version=code_version(), maker=maker)


def partition_day(context: dg.AssetExecutionContext) -> date:
    """Give the partition of the run as a date."""
    return date.fromisoformat(context.partition_key)
