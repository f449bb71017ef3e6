"""Defects that the simulator found, each by the smallest history that shows it; more stand in test_sweeping."""

import datetime as dt

import pandas as pd
from money_zone import POLICY, FakeProcessor, MoneyZone, parties_frame

from payments_pipeline.domain.errors import ProcessorUnavailableError
from payments_pipeline.domain.payout_instructions import instruction_digest, plan_sweep
from payments_pipeline.processors.dispatch import utc_now
from payments_pipeline.storage.postgres import connect
from payments_pipeline.verify.tables import TABLE_RULES

NOBODY = pd.DataFrame({"party_id": [], "currency": [], "token": []}, dtype=object)


def test_the_digest_of_what_nets_to_zero_covers_no_token():
    items = pd.DataFrame(
        {
            "item_id": ["i1", "i2"],
            "claim_no": [1, 1],
            "party_id": ["a", "a"],
            "currency": ["GBP", "GBP"],
            "amount_minor": [500, -500],
            "wait": [None, None],
            "later_minor": pd.array([None, None], dtype="Int64"),
        }
    )
    [made] = plan_sweep(dt.date(2024, 8, 17), items, parties_frame(a="active"), NOBODY, POLICY).instructions.to_dict(
        "records"
    )
    assert made["token"] is None
    assert made["digest"] == instruction_digest(
        party_id="a", token=None, currency="GBP", direction="none", amount_minor=0, claims="i1:1\ni2:1"
    )


def test_verify_takes_what_was_never_accepted_until_its_deadline_for_no_breach(database_url):
    zone = MoneyZone(database_url)
    zone.owe(a=600)
    parties = parties_frame(a="active")
    zone.sweep(parties)

    def unavailable(_key: str) -> None:
        raise ProcessorUnavailableError("503")

    # Begun by a clock that is so slow that the deadline of its attempt is two seconds off.
    def slow() -> dt.datetime:
        return utc_now() - dt.timedelta(hours=22, minutes=59, seconds=58)

    zone.dispatch(parties, FakeProcessor(answer=unavailable), clock=slow)
    zone.value("SELECT 1 FROM pg_sleep(2.5)")
    zone.dispatch(parties, FakeProcessor(answer=unavailable))
    assert list(zone.states().values()) == ["unknown"]
    with connect(database_url) as connection:
        assert TABLE_RULES["states of sending follow from an outcome or a look-up"](connection).breaches == []
