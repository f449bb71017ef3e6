"""Rules over a match and its postings: what is posted of it is what is stored of it, or a break says why not.

Belongs here: one stored day's matches beside `match_postings`. Does not belong here: amounts (`rules_shares`), postings
beside each other (`rules_postings`).
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from typing import Any

from payments_pipeline.verify.found import Found
from payments_pipeline.verify.rules_postings import people
from payments_pipeline.verify.stored_days import StoredDay

Row = dict[str, Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
#: What `match_postings` keeps of a row of match_results.
_KEPT = (
    "competition_id",
    "revision",
    "content_hash",
    "rules_hash",
    "schedule_version",
    "currency",
    "payout_policy",
    "revenue_minor",
)
_NOT_STORED = ("absent", "rejected")


def content_hash(match: Row) -> str:
    """Hash a match without its revision: SHA-256 of a JSON array of its values, kick-off in microseconds since 1970."""
    values = [
        *(match["match_id"], match["competition_id"], (match["kicked_off_at"] - _EPOCH) // timedelta(microseconds=1)),
        *(match["home_club_id"], match["away_club_id"], match["status"], match["home_score"], match["away_score"]),
        *(match["winner_club_id"], match["revenue_minor"]),
    ]
    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()


def _participants(stored: StoredDay) -> dict[str, list[list[str]]]:
    """Give party, club and role of each match's participants, by party, as `match_postings` keeps them."""
    found: dict[str, list[list[str]]] = defaultdict(list)
    for row in sorted(stored.participants, key=lambda row: str(row["party_id"])):
        found[row["match_id"]].append([row["party_id"], row["club_id"] or "", row["role"]])
    return found


def _left_out(stored: StoredDay) -> list[str]:
    """Say why the stored matches cannot be held against what is posted."""
    if stored.is_posted("match_results") and stored.is_posted("match_participants"):
        return []
    return [
        f"{stored.day}: {len(stored.matches)} matches, of input that is not what was posted; run the day to post them"
    ]


def posted_matches_are_the_stored_ones(stored: StoredDay) -> Found:
    """The newest posting of a match has its stored content, rules and participants, unless a break says why not."""
    found = Found(
        len(stored.matches),
        [
            f"{stored.day}, match {match['match_id']}: content_hash {match['content_hash']} is not that of its values; "
            "run the day again"
            for match in stored.matches
            if content_hash(match) != match["content_hash"]
        ],
    )
    if stored.posting is None:
        return found
    if gone := [asset for asset in ("match_results", "match_participants") if stored.file(asset) is None]:
        words = "see PAYMENTS_STORAGE_URL, or run the day again"
        found.breaches.append(f"{stored.day} is posted and its {' and '.join(gone)} are not stored; {words}")
        return found
    if left_out := _left_out(stored):
        return Found(0, found.breaches, left_out)
    for name, stated, number in (
        ("matches", stored.posting.matches, len(stored.matches)),
        ("shares", stored.posting.shares, len(stored.shares or ())),
    ):
        if stated != number:
            found.breaches.append(f"{stored.day}: posted of {stated} {name}, {number} are stored; run the day again")
    participants = _participants(stored)
    for match in stored.matches:
        match_id = match["match_id"]
        posted = stored.match_postings.get(match_id)
        if match_id in stored.broken or (posted is not None and posted["match_day"] != stored.day):
            continue
        if posted is None:
            found.breaches.append(
                f"{stored.day}, match {match_id} is accepted and not in match_postings; run the day again"
            )
            continue
        differs = [name for name in _KEPT if posted[name] != match[name]]
        squad = json.dumps(participants.get(match_id, []), separators=(",", ":"), ensure_ascii=False)
        if posted["participants"] != squad:
            differs.append("participants")
        found.breaches += [
            f"{stored.day}, match {match_id}: posted with {name} {posted[name]}, stored is "
            f"{squad if name == 'participants' else match[name]}; run the day again"
            for name in differs
        ]
    return found


def breaks_have_their_reason(stored: StoredDay) -> Found:
    """A match that the newest posting left alone is as the break says: nothing is left alone that could be posted."""
    if not stored.broken:
        return Found()
    if left_out := _left_out(stored):
        return Found(0, [], left_out)
    matches = {match["match_id"]: match for match in stored.matches}
    participants = _participants(stored)
    return Found(
        len(stored.broken),
        [
            f"{stored.day}, match {match_id} was left alone as {reason}, and it is not so; run the day again"
            for match_id, reason in sorted(stored.broken.items())
            if not _is_so(
                reason,
                matches.get(match_id),
                stored.match_postings.get(match_id),
                participants.get(match_id, []),
                stored,
            )
        ],
    )


def _is_so(reason: str, match: Row | None, posted: Row | None, squad: list[list[str]], stored: StoredDay) -> bool:
    if posted is None or (match is None) != (reason in _NOT_STORED):
        return False
    if posted["match_day"] != stored.day:
        return True  # another day posted it since, or holds it
    if match is None:
        return bool(posted["is_open"])
    same_revision = match["revision"] == posted["revision"]
    is_so: dict[str, bool] = {
        "posted_under_another_day": False,
        "older_revision": match["revision"] < posted["revision"],
        "same_revision_other_content": same_revision and match["content_hash"] != posted["content_hash"],
        "revenue_missing": match["revenue_minor"] is None and posted["revenue_minor"] is not None,
        "participant_missing": same_revision and any(person not in squad for person in people(posted["participants"])),
        "currency_changed": match["currency"] != posted["currency"],
        "rules_changed": match["rules_hash"] != posted["rules_hash"],
    }
    return is_so.get(reason, False)


RULES = {
    "what is posted of a match is what is stored of it": posted_matches_are_the_stored_ones,
    "a match that was left alone is as its break says": breaks_have_their_reason,
}
