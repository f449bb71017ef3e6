"""A crash between commit and write: the next run of the day writes what is missing, whatever the run died at."""

import pytest

from payments_pipeline.storage.postgres import RunInfo, connect
from payments_pipeline.verify.rules_certificates import certificate_keys, certificates_say_what_was_posted
from simulation import runner
from simulation.acts import post, refund
from simulation.certificates import breaches_of_certificates
from simulation.database import server
from simulation.effects import Fate, Status
from simulation.history import Deliver, History
from simulation.inputs import day_of
from simulation.world import World

MATCH = Deliver("match-1", "cup", 0, 1, "completed", 10_000, ("player:1",))


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    with (
        server(tmp_path_factory.mktemp("certificates")) as running,
        runner.database_of(running, "certificates") as opened,
    ):
        yield opened


def test_a_posting_that_died_anywhere_has_its_certificate_after_the_next_run_of_its_day(database):
    died, committed_without = 0, 0
    while True:
        world = World(database, History(1), runner.shipped_policy())
        try:
            world.do(MATCH)
            first = world.effects.start(
                "post", lambda w=world: post(w, RunInfo("first", "1", "m"), 0), Fate(crash_at=died + 1)
            )
            world.effects.run(first)
            if first.status is not Status.CRASHED:
                break
            died += 1
            postings = len(database.snapshot()["day_postings"])
            committed_without += postings > len(certificate_keys(world.storage))
            again = world.effects.start("post", lambda w=world: post(w, RunInfo("again", "1", "m"), 0), Fate())
            world.effects.run(again)
            assert len(certificate_keys(world.storage)) == 1, "one posting changed something, whichever it was"
            assert breaches_of_certificates(database.url, world.storage, [day_of(0)]) == []
        finally:
            world.close()
    assert died > 20
    assert committed_without > 3


def test_refunds_accepted_by_a_command_that_died_anywhere_have_their_certificate_when_it_is_given_again(database):
    died, committed_without = 0, 0
    while True:
        world = World(database, History(1), runner.shipped_policy())
        try:
            world.do(MATCH)
            world.effects.run(world.effects.start("post", lambda w=world: post(w, RunInfo("run", "1", "m"), 0), Fate()))
            first = world.effects.start(
                "refund", lambda w=world: refund(w, RunInfo("first", "1", "m"), 1), Fate(crash_at=died + 1)
            )
            world.effects.run(first)
            if first.status is not Status.CRASHED:
                break
            died += 1
            committed_without += len(database.snapshot()["refunds"]) > len(certificate_keys(world.storage)) - 1
            again = world.effects.start("refund", lambda w=world: refund(w, RunInfo("again", "1", "m"), 1), Fate())
            world.effects.run(again)
            assert again.error is None
            names = [key.rpartition("/")[2].rpartition("-")[0] for key in certificate_keys(world.storage)]
            assert sorted(name.rpartition("-")[0] for name in names) == ["", "refunds"], names
            with connect(database.url) as connection:
                found = certificates_say_what_was_posted(connection, world.storage, certificate_keys(world.storage))
            assert found.breaches == []
        finally:
            world.close()
    assert died > 15
    assert committed_without > 3


def test_a_certificate_left_out_for_good_is_found(database):
    world = World(database, History(1), runner.shipped_policy())
    try:
        world.do(MATCH)
        world.effects.run(world.effects.start("post", lambda: post(world, RunInfo("run", "1", "m"), 0), Fate()))
        world.storage._objects.clear()
        with connect(database.url) as connection:
            found = certificates_say_what_was_posted(connection, world.storage, [])
    finally:
        world.close()
    assert [words.partition(" has ")[0] for words in found.breaches] == [f"posting 1 of {day_of(0)}"]
