"""Sensor `changed_input`: a day that ran is run again when its landing files have come, gone or changed since.

Each tick lists the landing zone. Days that are listed otherwise than before are read and hashed; those whose content
differs from what they last ran on are asked for. A day that never ran is the schedule's.
"""

import json
from collections.abc import Mapping
from datetime import date

import dagster as dg

from payments_pipeline.defs.automation import history
from payments_pipeline.defs.automation.sensing import day_request, said_if_failed
from payments_pipeline.defs.jobs import DAILY
from payments_pipeline.defs.resources import LANDING_DATASETS, Inputs, MoneyZone
from payments_pipeline.domain.alerts import input_gone
from payments_pipeline.domain.automation import days_to_compare, digest, landing_fingerprints
from payments_pipeline.domain.landing_files import input_hash
from payments_pipeline.domain.refund_requests import DATASET as REFUND_REQUESTS
from payments_pipeline.storage.alerts import raise_alert
from payments_pipeline.storage.landing import hash_landing_day
from payments_pipeline.storage.objects import ObjectStore, open_store

NAME = "changed_input"
#: Days read and hashed in one tick; the next tick goes on.
COMPARED_AT_ONCE = 30
#: Runs asked for in one tick.
REQUESTED_AT_ONCE = 10


def changed_input() -> dg.SensorDefinition:
    """Build the sensor."""

    @dg.sensor(
        name=NAME,
        job_name=DAILY,
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Runs a day again when its input is new or corrected since it last ran.",
    )
    def run(context: dg.SensorEvaluationContext, inputs: Inputs, money_zone: MoneyZone) -> dg.SensorResult:
        with said_if_failed(context, NAME):
            compared = _parse(context.cursor)
            store = open_store(inputs.landing_url)
            listed = landing_fingerprints(
                (found.key, found.size, found.etag or "")
                for dataset in (*LANDING_DATASETS, REFUND_REQUESTS)
                for found in store.list(f"{dataset}/")
            )
            ran = history.days_run(context.instance)
            under_way = {run.day for run in history.unfinished_runs(context.instance) if run.day}
            days = days_to_compare(listed, compared, ran, under_way)
            if days.everything_gone:
                affected = sorted(days.gone or ran)
                raise_alert(money_zone.url, input_gone(inputs.landing_url, affected, everything=True))
                words = (
                    f"{inputs.landing_url} lists no day at all though {len(ran)} days have run: nothing is asked for"
                )
                context.log.warning(words)
                return dg.SensorResult(skip_reason=words, cursor=context.cursor)
            if days.gone:
                raise_alert(money_zone.url, input_gone(inputs.landing_url, days.gone, everything=False))
            requests: list[dg.RunRequest] = []
            for day in days.compare[:COMPARED_AT_ONCE]:
                if len(requests) == REQUESTED_AT_ONCE:
                    break
                request = _request_if_changed(context.instance, store, day)
                requests += [request] if request is not None else []
                compared[day] = listed[day]
        kept = {day.isoformat(): seen for day, seen in sorted(compared.items()) if day in listed}
        return dg.SensorResult(
            run_requests=requests,
            skip_reason=None if requests else f"{len(listed)} days listed, none changed since it ran",
            cursor=json.dumps(kept, separators=(",", ":")),
        )

    return run


def _parse(cursor: str | None) -> dict[date, str]:
    stored: Mapping[str, str] = json.loads(cursor) if cursor else {}
    return {date.fromisoformat(day): fingerprint for day, fingerprint in stored.items()}


def _request_if_changed(instance: dg.DagsterInstance, store: ObjectStore, day: date) -> dg.RunRequest | None:
    """Ask for a day whose content differs from what it last ran on.

    The run key names both: input that is corrected, taken back and corrected again must run each time, and Dagster
    never forgets a key.
    """
    last = history.last_input(instance, day)
    hashes = {REFUND_REQUESTS: input_hash(())} | dict(last.hashes) | dict(history.last_refund_input(instance, day))
    now = {dataset: hash_landing_day(store, dataset, day) for dataset in (*LANDING_DATASETS, REFUND_REQUESTS)}
    if all(hashes.get(dataset) == content for dataset, content in now.items()):
        return None
    return day_request(NAME, f"changed:{day}:{digest(f'{sorted(now.items())} {last.run_id}')}", day, DAILY)
