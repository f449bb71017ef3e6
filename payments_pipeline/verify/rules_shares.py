"""Rules over a stored match day: pots, the division itself, and what was posted for it.

Belongs here: one day at a time. Does not belong here: reading it (`stored_days`), dividing (`division`).
"""

from __future__ import annotations

from collections import Counter, defaultdict

from payments_pipeline.verify.division import divide_day
from payments_pipeline.verify.found import Found
from payments_pipeline.verify.stored_days import Key, StoredDay


def pots_are_conserved(stored: StoredDay) -> Found:
    """Shares of a pot sum to it, to the minor unit: a match fee's to 0, revenue's to `revenue_minor`."""
    matches = {row["match_id"]: row for row in stored.matches} if stored.shares else {}
    sums: dict[tuple[str, str, str], int] = defaultdict(int)
    breaches = []
    for row in stored.shares or ():
        sums[row["match_id"], row["pot"], row["pot_party_id"]] += row["amount_minor"]
        match = matches.get(row["match_id"])
        if match is None or match["currency"] != row["currency"]:
            breaches.append(
                f"{stored.day}, match {row['match_id']}: {row['amount_minor']} {row['currency']} for {row['party_id']}, "
                "and no accepted match of that id and currency is stored; run the day again"
            )
    for (match_id, pot, pot_party), amount in sums.items():
        expected = (matches.get(match_id, {}).get("revenue_minor") or 0) if pot == "revenue" else 0
        if amount != expected:
            breaches.append(
                f"{stored.day}, match {match_id}, {pot} {pot_party}: shares sum to {amount}, the pot is {expected}; "
                "run the day again"
            )
    return Found(len(sums), breaches)


def shares_are_well_formed(stored: StoredDay) -> Found:
    """Sorted by match, pot, pot party, line and party, which name a share; an amount is never 0."""
    shares = stored.shares or []
    keys = [(row["match_id"], row["pot"], row["pot_party_id"], row["line_no"], row["party_id"]) for row in shares]
    breaches = [f"{stored.day}: {number} shares are {key}" for key, number in Counter(keys).items() if number > 1]
    breaches += [
        f"{stored.day}: the share {key} is 0" for key, row in zip(keys, shares, strict=True) if not row["amount_minor"]
    ]
    if keys != sorted(keys):
        breaches.append(f"{stored.day}: the shares are not in the declared order; run the day again")
    return Found(len(keys), breaches)


def shares_are_divided_as_the_schedule_says(stored: StoredDay) -> Found:
    """Shares follow from pots and schedule, exactly; recomputed for each match whose rules are now what they were."""
    if not stored.shares and (stored.shares is None or not stored.matches):
        return Found()
    rules: dict[tuple[str, str], str | None] = {}
    changed: set[str] = set()
    for match in stored.matches:
        of = match["competition_id"], match["schedule_version"]
        if of not in rules:
            rules[of] = stored.reference_now.data.rules_hash(*of, stored.day)
        if match["rules_hash"] != rules[of]:
            changed.add(match["match_id"])
    matches = [match for match in stored.matches if match["match_id"] not in changed]
    expected = divide_day(matches, stored.participants, stored.reference_now.data, stored.day)
    found = {
        (row["match_id"], row["pot"], row["pot_party_id"], row["line_no"], row["party_id"], row["currency"]): (
            row["amount_minor"],
            row["recipient"],
        )
        for row in stored.shares
        if row["match_id"] not in changed
    }
    return Found(
        len(found.keys() | expected.keys()),
        [
            f"{stored.day}, match {share[0]}, {share[1]} {share[2]} line {share[3]}, {share[4]}: stored "
            f"{_said(found.get(share))}, the schedule says {_said(expected.get(share))} {share[5]}"
            for share in sorted(expected.keys() | found.keys())
            if expected.get(share) != found.get(share)
        ],
        [
            f"{stored.day}: {len(changed)} of {len(stored.matches)} matches, whose competition or fee schedule changed since"
        ]
        if changed
        else [],
    )


def _said(share: tuple[int, str] | None) -> str:
    return "nothing" if share is None else f"{share[0]} as {share[1]}"


def postings_equal_shares(stored: StoredDay) -> Found:
    """What is posted for a day is what its shares say, but for matches that a break leaves alone.

    Shares that were written again, of input that is not posted yet, are left out: the next posting is of them.
    """
    posted = stored.posted
    if stored.posting is None:
        words = "holds accruals and has no posting in day_postings; restore it before anything is sent"
        return Found(len(posted), [f"{stored.day} {words}"] if posted else [])
    if stored.shares is None:
        words = "is posted and its participant_shares are not stored; see PAYMENTS_STORAGE_URL, or run the day again"
        return Found(0, [f"{stored.day} {words}"])
    if not stored.is_posted("participant_shares"):
        words = "shares, of input that is not what was posted; run the day to post them"
        return Found(0, [], [f"{stored.day}: {len(stored.shares)} {words}"])
    said: dict[Key, int] = defaultdict(int)
    for row in stored.shares:
        account = "suspense" if row["line_no"] == 0 else f"party:{row['party_id']}"
        key = (row["match_id"], row["pot"], row["pot_party_id"], row["line_no"], account, row["currency"])
        said[key] += row["amount_minor"]
        if row["pot"] == "revenue":
            said[row["match_id"], "revenue", "", 0, f"pot:{row['competition_id']}", row["currency"]] -= row[
                "amount_minor"
            ]
    return Found(
        len(said),
        [
            f"{stored.day}, match {key[0]}, {key[1]} {key[2]} line {key[3]}, {key[4]}: posted {posted.get(key, 0)}, the "
            f"stored shares say {said.get(key, 0)} {key[5]}; run the day again"
            for key in sorted(said.keys() | posted.keys())
            if said.get(key, 0) != posted.get(key, 0) and key[0] not in stored.broken
        ],
    )


RULES = {
    "the shares of each pot sum to it": pots_are_conserved,
    "shares are sorted, each once, none of zero": shares_are_well_formed,
    "shares are divided as the schedule says, in exact fractions": shares_are_divided_as_the_schedule_says,
    "what is posted is what the shares say": postings_equal_shares,
}
