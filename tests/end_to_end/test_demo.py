"""The demo, twice: everything of a season happens, every rule holds, and nothing is paid twice."""

from home import Home


def test_the_demo_runs_to_reconciliation_and_again_without_paying_anything_twice(home: Home) -> None:
    first = home.run("demo")
    assert "rules hold" in first.stdout
    assert "BROKEN" not in first.stdout
    assert "player-services:1" in first.stdout
    assert "asks for 8000 of the fee of player:sakura-2025:" in first.stdout
    assert "of which 800 is left to refund" in first.stdout
    paid = home.rows("status")
    states = {row["state"] for row in paid if row["part"] == "instructions"}
    assert {"settled", "failed", "returned"} <= states
    waits = {row["reason"] for row in paid if row["part"] == "open_items"}
    assert {"party_on_hold", "no_payout_token", "party_closed"} <= waits

    second = home.rows("demo")
    assert [row["entries_posted"] for row in second] == [0] * len(second)
    settled = [row for row in paid if row["part"] == "instructions" and row["state"] == "settled"]
    again = [row for row in home.rows("status") if row["part"] == "instructions" and row["state"] == "settled"]
    # What was returned late may be paid by the second run's sweeps; what had settled stays settled, once.
    for row, later in zip(settled, again, strict=True):
        assert later["instructions"] >= row["instructions"]
    assert all(row["ok"] for row in home.rows("verify"))
