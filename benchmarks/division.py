"""Division: 200,000 pots of 25 lines, beside the same rules in DuckDB's SQL and in Polars.

Two figures. The kernel alone: from claims in integer columns to the amount of each. The whole way: from the Arrow
tables of matches, participants, schedule lines and competitions to the Arrow table of `participant_shares`. The results
of all three are equal, or nothing is timed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from benchmarks.figures import note, say, seconds_of
from payments_pipeline.domain.allocation import FIXED, NO_CAP, PERCENT, REMAINDER, Claims, divide
from payments_pipeline.domain.participant_shares import compute_shares
from payments_pipeline.domain.schemas import CATEGORY, PARTICIPANT_SHARES
from payments_pipeline.storage.frames import conform, to_frame

POTS, LINES_A_POT = 200_000, 25
PLAYERS, REFEREES = 17, 3
KERNEL_TARGET, WHOLE_TARGET, LINES_A_SECOND = 20.0, 3.0, 10_000_000.0
THREADS = 2
_METHODS = {"fixed": FIXED, "percent": PERCENT, "remainder": REMAINDER}
_COMPETITIONS, _CLUBS, _PEOPLE = 20, 2_000, 300_000

#: (recipient, method, value, cap_minor): the two kinds of schedule; both come to 25 lines a pot.
_SCHEDULES = (
    (
        ("each_referee", "fixed", 2_500, None),
        ("organiser", "percent", 1_000, None),
        ("each_club", "percent", 500, 10_001),
        ("home_club", "remainder", 3, None),
        ("away_club", "remainder", 2, None),
        ("each_player", "remainder", 5, None),
    ),
    (
        ("platform", "fixed", 9_999, None),
        ("federation", "percent", 333, 20_000),
        ("organiser", "percent", 1_250, None),
        ("each_referee", "percent", 101, 7_000),
        ("winning_club", "remainder", 2, None),
        ("losing_club", "remainder", 1, None),
        ("each_player", "remainder", 4, None),
    ),
)


@dataclass(frozen=True)
class Day:
    """The input of a division, as Arrow tables; text that repeats is dictionary-encoded."""

    matches: pa.Table
    participants: pa.Table
    schedule_lines: pa.Table
    competitions: pa.Table


def made_day(pots: int, seed: int = 1) -> Day:
    """Make matches of one day whose revenue is divided between 25 lines each."""
    draw = np.random.default_rng(seed)

    def ids(prefix: str, count: int) -> pa.Array:
        return pa.array([f"{prefix}-{number:07d}" for number in range(count)])

    def picked(values: pa.Array, codes: np.ndarray) -> pa.DictionaryArray:
        return pa.DictionaryArray.from_arrays(pa.array(codes.astype(np.int32)), values)

    clubs, players, referees = ids("club", _CLUBS), ids("player", _PEOPLE), ids("referee", 6_000)
    competitions, matches = ids("league", _COMPETITIONS), ids("match", pots)
    competition = draw.integers(0, _COMPETITIONS, pots)
    home = draw.integers(0, _CLUBS // 2, pots) * 2
    scores = draw.permuted(np.tile([0, 1, 2, 3, 4], (pots, 1)), axis=1)
    none = pa.nulls(pots, pa.int64())

    def all_one(value: str) -> pa.DictionaryArray:
        return picked(pa.array([value]), np.zeros(pots))

    match_table = pa.table(
        {
            "match_id": matches,
            "competition_id": picked(competitions, competition),
            "home_club_id": picked(clubs, home),
            "away_club_id": picked(clubs, home + 1),
            "status": all_one("completed"),
            "home_score": pa.array(scores[:, 0]),
            "away_score": pa.array(scores[:, 1]),
            "winner_club_id": none.cast(pa.string()).dictionary_encode(),
            "revenue_minor": pa.array(draw.integers(100_000, 5_000_000, pots)),
            "currency": all_one("GBP"),
            "schedule_version": all_one("v1"),
        }
    )
    first = draw.integers(0, _PEOPLE - PLAYERS, pots)
    who = np.concatenate(
        [
            first[:, None] + np.arange(PLAYERS),
            _PEOPLE + (np.arange(pots)[:, None] * REFEREES + np.arange(REFEREES)) % len(referees),
        ],
        axis=1,
    )
    count = PLAYERS + REFEREES
    side = np.broadcast_to(np.array([0] * 9 + [1] * 8 + [-1] * REFEREES), (pots, count))
    club = np.where(side < 0, -1, home[:, None] + side).ravel()
    people = pa.table(
        {
            "match_id": picked(matches, np.repeat(np.arange(pots), count)),
            "party_id": picked(pa.concat_arrays([players, referees]), who.ravel()),
            "club_id": pa.DictionaryArray.from_arrays(pa.array(club.astype(np.int32), mask=club < 0), clubs),
            "role": picked(pa.array(["player", "referee"]), np.tile([0] * PLAYERS + [1] * REFEREES, pots)),
        }
    )
    rows = [
        (
            competitions[number].as_py(),
            "v1",
            "completed",
            line_no,
            "revenue",
            recipient,
            method,
            value + number % 7,
            cap,
        )
        for number in range(_COMPETITIONS)
        for line_no, (recipient, method, value, cap) in enumerate(_SCHEDULES[number % 2], 1)
    ]
    names = [
        "competition_id",
        "schedule_version",
        "status",
        "line_no",
        "pot",
        "recipient",
        "method",
        "value",
        "cap_minor",
    ]
    lines = pa.table(dict(zip(names, map(pa.array, zip(*rows, strict=True)), strict=True)))
    terms = {
        f"{of}_id": pa.array([f"{of}-{number:02d}" for number in range(_COMPETITIONS)])
        for of in ("organiser", "federation", "platform")
    }
    return Day(match_table, people, lines, pa.table({"competition_id": competitions} | terms))


# Ours ----------------------------------------------------------------------------------------------------------------


def shares_by_us(day: Day) -> pa.Table:
    """The whole way by the pipeline's own functions; on as many threads as the peers, where the asset takes one."""
    return conform(
        compute_shares(
            to_frame(day.matches),
            to_frame(day.participants),
            day.schedule_lines.to_pandas(),
            day.competitions.to_pandas(),
            threads=THREADS,
        ),
        PARTICIPANT_SHARES,
    )


# DuckDB --------------------------------------------------------------------------------------------------------------

#: From `claims` (pot, amount, method 0, 1 or 2, line_no, place, value, cap, sharers; place is the order within the
#: line) to `divided` (the same with `given`) and `pots` (with `suspense`). Fractions of a pot are brought to one
#: denominator: 10,000 x weights x the product of the sharers of its lines.
_DIVIDE = """
    fixed AS (
        SELECT pot, line_no, place,
               greatest(0, least(value, amount - (sum(value) OVER (
                   PARTITION BY pot ORDER BY line_no, place ROWS UNBOUNDED PRECEDING) - value)))::BIGINT AS given
        FROM claims WHERE method = 0
    ), lines AS (
        SELECT pot, line_no, method, value, cap, sharers FROM claims WHERE method <> 0 AND place = 1
    ), lefts AS (
        SELECT pot, any_value(amount)::BIGINT AS amount FROM claims GROUP BY pot
    ), spent AS (
        SELECT pot, sum(given)::BIGINT AS given FROM fixed GROUP BY pot
    ), pots AS (
        SELECT pot, remaining, taken, weights, remaining * 10000 - taken AS rest_total,
               CASE WHEN weights > 0 THEN remaining ELSE taken // 10000 END AS entitled,
               10000 * greatest(weights, 1) * scale AS common
        FROM (
            SELECT pot, any_value(remaining) AS remaining,
                   coalesce(sum(CASE method WHEN 1 THEN least(remaining * value, cap * 10000) END), 0)::BIGINT AS taken,
                   coalesce(sum(CASE method WHEN 2 THEN value END), 0)::BIGINT AS weights,
                   coalesce(list_reduce(list(sharers), lambda a, b: a * b), 1)::BIGINT AS scale
            FROM (SELECT pot, amount - coalesce(spent.given, 0) AS remaining FROM lefts LEFT JOIN spent USING (pot))
            LEFT JOIN lines USING (pot) GROUP BY pot)
    ), parts AS (
        SELECT c.pot, c.line_no, c.place,
               CASE c.method WHEN 1 THEN least(p.remaining * c.value, c.cap * 10000)
                             ELSE p.rest_total * c.value END AS part,
               CASE c.method WHEN 1 THEN 10000 * c.sharers ELSE 10000 * p.weights * c.sharers END AS denominator,
               p.common, p.entitled
        FROM claims c JOIN pots p USING (pot) WHERE c.method <> 0
    ), ranked AS (
        SELECT pot, line_no, place, part // denominator AS floor,
               row_number() OVER (PARTITION BY pot ORDER BY (part % denominator) * (common // denominator) DESC,
                                  line_no, place) AS rank,
               entitled - sum(part // denominator) OVER (PARTITION BY pot) AS units
        FROM parts
    ), divided AS (
        SELECT pot, line_no, place, given FROM fixed
        UNION ALL
        SELECT pot, line_no, place, (floor + (rank <= units)::INT)::BIGINT FROM ranked
    )
"""
_NO_CAP = 900_000_000_000_000
_WHOLE = f"""
    WITH played AS (
        SELECT m.match_id AS pot, m.*, c.organiser_id, c.federation_id, c.platform_id,
               coalesce(m.winner_club_id, CASE WHEN m.home_score > m.away_score THEN m.home_club_id
                                               WHEN m.away_score > m.home_score THEN m.away_club_id END) AS winner
        FROM matches m JOIN competitions c USING (competition_id) WHERE m.revenue_minor > 0
    ), recipients AS (
        SELECT pot, 'organiser' AS recipient, organiser_id AS party_id FROM played
        UNION ALL SELECT pot, 'federation', federation_id FROM played
        UNION ALL SELECT pot, 'platform', platform_id FROM played
        UNION ALL SELECT pot, 'home_club', home_club_id FROM played
        UNION ALL SELECT pot, 'away_club', away_club_id FROM played
        UNION ALL SELECT pot, 'winning_club', winner FROM played
        UNION ALL SELECT pot, 'losing_club', CASE winner WHEN home_club_id THEN away_club_id
                                                         WHEN away_club_id THEN home_club_id END FROM played
        UNION ALL SELECT pot, 'each_club', home_club_id FROM played
        UNION ALL SELECT pot, 'each_club', away_club_id FROM played
        UNION ALL SELECT match_id, 'each_' || role, party_id FROM participants WHERE role IN ('player', 'referee')
    ), claims AS (
        SELECT r.pot, m.revenue_minor AS amount, l.line_no, l.recipient, r.party_id, l.value,
               CASE l.method WHEN 'fixed' THEN 0 WHEN 'percent' THEN 1 ELSE 2 END AS method,
               coalesce(l.cap_minor, {_NO_CAP}) AS cap,
               row_number() OVER (PARTITION BY r.pot, l.line_no ORDER BY r.party_id) AS place,
               count(*) OVER (PARTITION BY r.pot, l.line_no) AS sharers
        FROM recipients r JOIN played m USING (pot)
        JOIN schedule_lines l USING (competition_id, schedule_version, status, recipient)
        WHERE r.party_id IS NOT NULL
    ), {_DIVIDE}, named AS (
        SELECT pot, line_no, recipient, party_id, given AS amount_minor
        FROM divided JOIN claims USING (pot, line_no, place) WHERE given <> 0
        UNION ALL
        SELECT pot, 0, 'suspense', 'suspense', remaining - entitled FROM pots WHERE remaining <> entitled
    )
    SELECT n.pot AS match_id, m.competition_id, 'revenue' AS pot, '' AS pot_party_id, m.schedule_version,
           n.line_no::BIGINT AS line_no, n.recipient, n.party_id, n.amount_minor, m.currency
    FROM named n JOIN played m USING (pot) ORDER BY n.pot, n.line_no, n.party_id
"""


def shares_by_duckdb(day: Day) -> pa.Table:
    """The whole way in one statement."""
    with duckdb.connect(config={"threads": THREADS}) as connection:
        for name in ("matches", "participants", "schedule_lines", "competitions"):
            connection.register(name, getattr(day, name))
        return connection.sql(_WHOLE).to_arrow_table()


# Polars --------------------------------------------------------------------------------------------------------------


def divided_by_polars(claims: pl.LazyFrame) -> tuple[pl.LazyFrame, pl.LazyFrame]:
    """Divide claims, as `_DIVIDE` takes them and in its order: with `given`; and pots with `suspense`."""
    is_fixed = pl.col("method") == 0
    before = pl.when(is_fixed).then("value").otherwise(0).cum_sum().over("pot") - pl.when(is_fixed).then(
        "value"
    ).otherwise(0)
    claims = claims.with_columns(
        fixed=pl.when(is_fixed)
        .then(pl.min_horizontal("value", pl.col("amount") - before).clip(lower_bound=0))
        .otherwise(0)
    )
    is_first = pl.col("place") == 1
    percents, weights = is_first & (pl.col("method") == 1), is_first & (pl.col("method") == 2)
    pots = claims.group_by("pot", maintain_order=True).agg(
        remaining=pl.col("amount").first() - pl.col("fixed").sum(),
        # Of each percent line what it asks for, capped, which needs what is left: worked out below from lists.
        percent_values=pl.col("value").filter(percents),
        percent_caps=pl.col("cap").filter(percents),
        weights=pl.col("value").filter(weights).sum(),
        scale=pl.col("sharers").filter(is_first & ~is_fixed).product(),
    )
    taken = (
        pots.select("pot", "remaining", "percent_values", "percent_caps")
        .explode("percent_values", "percent_caps")
        .group_by("pot")
        .agg(
            taken=pl.min_horizontal(
                pl.col("remaining") * pl.col("percent_values"), pl.col("percent_caps") * 10_000
            ).sum()
        )
    )
    pots = (
        pots.drop("percent_values", "percent_caps")
        .join(taken, on="pot", maintain_order="left")
        .with_columns(
            rest_total=pl.col("remaining") * 10_000 - pl.col("taken"),
            entitled=pl.when(pl.col("weights") > 0).then("remaining").otherwise(pl.col("taken") // 10_000),
            common=10_000 * pl.col("weights").clip(lower_bound=1) * pl.col("scale"),
        )
    )
    part = (
        pl.when(pl.col("method") == 1)
        .then(pl.min_horizontal(pl.col("remaining") * pl.col("value"), pl.col("cap") * 10_000))
        .otherwise(pl.col("rest_total") * pl.col("value"))
    )
    denominator = 10_000 * pl.col("sharers") * pl.when(pl.col("method") == 1).then(1).otherwise("weights")
    divided = (
        claims.join(pots, on="pot", maintain_order="left")
        .with_columns(part=part, denominator=pl.when(is_fixed).then(1).otherwise(denominator))
        .with_columns(
            floor=pl.when(is_fixed).then(0).otherwise(pl.col("part") // pl.col("denominator")),
            key=pl.when(is_fixed)
            .then(-1)
            .otherwise((pl.col("part") % pl.col("denominator")) * (pl.col("common") // pl.col("denominator"))),
        )
        .with_columns(
            units=pl.col("entitled") - pl.col("floor").sum().over("pot"),
            rank=pl.col("key").rank("ordinal", descending=True).over("pot"),
        )
        .with_columns(given=pl.col("fixed") + pl.col("floor") + (~is_fixed & (pl.col("rank") <= pl.col("units"))))
    )
    return divided, pots.with_columns(suspense=pl.col("remaining") - pl.col("entitled"))


def shares_by_polars(day: Day) -> pa.Table:
    """The whole way; parties and matches are numbers in the order of their ids until the end."""

    def numbered(column: pl.Expr, ids: pl.Series) -> pl.Expr:
        return column.cast(pl.Enum(ids)).to_physical().cast(pl.Int64)

    matches, participants = pl.DataFrame(day.matches), pl.DataFrame(day.participants)
    lines, competitions = pl.DataFrame(day.schedule_lines), pl.DataFrame(day.competitions)
    everybody = [participants["party_id"], matches["home_club_id"], matches["away_club_id"]]
    everybody += [competitions[f"{of}_id"] for of in ("organiser", "federation", "platform")]
    parties = pl.concat([column.unique().cast(pl.String) for column in everybody]).unique().drop_nulls().sort()
    match_ids = matches["match_id"].sort()
    clubs = ("home_club_id", "away_club_id", "winner_club_id")
    terms = ("organiser_id", "federation_id", "platform_id")
    text = ("competition_id", "schedule_version", "status", "currency")
    played = (
        matches.lazy()
        .filter(pl.col("revenue_minor") > 0)
        .with_columns(
            *(numbered(pl.col(name).cast(pl.String), parties) for name in clubs),
            *(pl.col(name).cast(pl.String) for name in text),
            pot=numbered(pl.col("match_id"), match_ids),
        )
        .join(competitions.lazy().with_columns(numbered(pl.col(name), parties) for name in terms), on="competition_id")
        .with_columns(
            winner=pl.coalesce(
                "winner_club_id",
                pl.when(pl.col("home_score") > pl.col("away_score"))
                .then("home_club_id")
                .when(pl.col("away_score") > pl.col("home_score"))
                .then("away_club_id"),
            )
        )
        .with_columns(
            loser=pl.when(pl.col("winner") == pl.col("home_club_id"))
            .then("away_club_id")
            .when(pl.col("winner") == pl.col("away_club_id"))
            .then("home_club_id")
        )
    )
    named = {
        "organiser": "organiser_id",
        "federation": "federation_id",
        "platform": "platform_id",
        "home_club": "home_club_id",
        "away_club": "away_club_id",
        "winning_club": "winner",
        "losing_club": "loser",
    }
    recipients = pl.concat(
        [
            *(played.select("pot", recipient=pl.lit(name), party=column) for name, column in named.items()),
            *(played.select("pot", recipient=pl.lit("each_club"), party=name) for name in clubs[:2]),
            participants.lazy()
            .filter(pl.col("role").is_in(["player", "referee"]))
            .select(
                pot=numbered(pl.col("match_id"), match_ids),
                recipient="each_" + pl.col("role").cast(pl.String),
                party=numbered(pl.col("party_id"), parties),
            ),
        ]
    ).filter(pl.col("party").is_not_null())
    on = ["competition_id", "schedule_version", "status", "recipient"]
    claims = (
        recipients.join(
            played.select("pot", "competition_id", "schedule_version", "status", amount="revenue_minor"), on="pot"
        )
        .join(lines.lazy().filter(pl.col("pot") == "revenue").drop("pot"), on=on)
        .select(
            "pot",
            "amount",
            "line_no",
            "recipient",
            "party",
            "value",
            method=pl.col("method").replace_strict(_METHODS, return_dtype=pl.Int64),
            cap=pl.col("cap_minor").fill_null(_NO_CAP),
        )
        .sort("pot", "line_no", "party")
        .with_columns(
            place=pl.int_range(1, pl.len() + 1).over("pot", "line_no"),
            sharers=pl.len().cast(pl.Int64).over("pot", "line_no"),
        )
    )
    divided, pots = divided_by_polars(claims)
    rows, kept = pl.collect_all(
        [
            divided.filter(pl.col("given") != 0).select("pot", "line_no", "recipient", "party", amount_minor="given"),
            pots.filter(pl.col("suspense") != 0).select("pot", amount_minor="suspense"),
        ]
    )
    names = pl.concat([parties, pl.Series(["suspense"])])
    if len(kept):
        rows = pl.concat(
            [
                rows,
                kept.select(
                    "pot",
                    line_no=pl.lit(0, pl.Int64),
                    recipient=pl.lit("suspense"),
                    party=pl.lit(len(parties), pl.Int64),
                    amount_minor="amount_minor",
                ),
            ]
        ).sort("pot", "line_no", "party")
    of_match = played.select("pot", "match_id", "competition_id", "schedule_version", "currency").collect()
    return (
        rows.join(of_match, on="pot", maintain_order="left")
        .select(
            "match_id",
            "competition_id",
            pl.lit("revenue").alias("pot"),
            pl.lit("").alias("pot_party_id"),
            "schedule_version",
            "line_no",
            "recipient",
            names.gather(rows["party"]).alias("party_id"),
            "amount_minor",
            "currency",
        )
        .to_arrow()
    )


# Measured ------------------------------------------------------------------------------------------------------------


def _claims(day: Day) -> tuple[np.ndarray, Claims]:
    """Give the claims of a day as the kernel takes them: its shares say who has one."""
    pots = day.matches.num_rows
    schedule = day.matches["competition_id"].combine_chunks().indices.to_numpy() % 2
    spread = {"each_club": 2, "each_player": PLAYERS, "each_referee": REFEREES}
    columns: dict[str, list[np.ndarray]] = {
        name: [] for name in ("pot", "method", "line_no", "value", "cap", "sharers")
    }
    number = day.matches["competition_id"].combine_chunks().indices.to_numpy()
    for kind, lines in enumerate(_SCHEDULES):
        of_kind = np.flatnonzero(schedule == kind)
        for line_no, (recipient, method, value, cap) in enumerate(lines, 1):
            count = spread.get(recipient, 1)
            pot = np.repeat(of_kind, count)
            columns["pot"].append(pot)
            columns["method"].append(np.full(len(pot), _METHODS[method]))
            columns["line_no"].append(np.full(len(pot), line_no))
            columns["value"].append(value + number[pot] % 7)
            columns["cap"].append(np.full(len(pot), NO_CAP if cap is None else cap))
            columns["sharers"].append(np.full(len(pot), count))
    arrays = {name: np.concatenate(values).astype(np.int64) for name, values in columns.items()}
    order = np.lexsort((arrays["line_no"], arrays["method"] != FIXED, arrays["pot"]))
    arrays = {name: values[order] for name, values in arrays.items()}
    assert len(order) == pots * LINES_A_POT
    return day.matches["revenue_minor"].to_numpy(), Claims(
        arrays["pot"], arrays["method"], arrays["line_no"], arrays["value"], arrays["cap"], arrays["sharers"]
    )


def _claims_table(amounts: np.ndarray, claims: Claims) -> pa.Table:
    changes = np.flatnonzero(np.diff(claims.pot) | np.diff(claims.line_no)) + 1
    starts = np.zeros(len(claims.pot), np.int64)
    starts[changes] = changes
    return pa.table(
        {
            "pot": claims.pot,
            "amount": amounts[claims.pot],
            "method": claims.method,
            "line_no": claims.line_no,
            "place": np.arange(len(claims.pot)) - np.maximum.accumulate(starts) + 1,
            "value": claims.value,
            "cap": np.where(claims.cap_minor == NO_CAP, _NO_CAP, claims.cap_minor),
            "sharers": claims.sharers,
        }
    )


def measure_kernel(day: Day) -> bool:
    """The kernel alone: claims to amounts."""
    amounts, claims = _claims(day)
    table = _claims_table(amounts, claims)
    frame = pl.DataFrame(table)
    with duckdb.connect(config={"threads": THREADS}) as connection:
        connection.register("given", table)
        connection.sql("CREATE TABLE claims AS SELECT * FROM given")

        def by_duckdb() -> None:
            connection.sql(f"CREATE OR REPLACE TABLE result AS WITH {_DIVIDE} SELECT * FROM divided")

        def by_polars() -> pl.DataFrame:
            return divided_by_polars(frame.lazy())[0].select("pot", "line_no", "place", "given").collect()

        ours, left = divide(amounts, claims)
        by_duckdb()
        theirs = connection.sql("SELECT given FROM result ORDER BY pot, line_no, place").to_arrow_table()["given"]
        assert pc.all(pc.equal(theirs, pa.array(ours))).as_py(), "DuckDB divides otherwise"
        assert (by_polars()["given"].to_numpy() == ours).all(), "Polars divides otherwise"
        assert not left.any()
        seconds = seconds_of(
            {"us": partial(divide, amounts, claims, THREADS), "duckdb": by_duckdb, "polars": by_polars}
        )
    return _say_times("division_kernel", seconds, len(claims.pot), KERNEL_TARGET)


def agreed(day: Day) -> int:
    """Hold the three against each other, row by row and to the last unit; gives how many lines there are."""
    ours = shares_by_us(day)
    for name, theirs in (("DuckDB", shares_by_duckdb(day)), ("Polars", shares_by_polars(day))):
        assert theirs.num_rows == ours.num_rows, f"{name} gives {theirs.num_rows} lines and not {ours.num_rows}"
        for column in PARTICIPANT_SHARES.columns:
            left, right = ours[column.name], theirs[column.name]
            if column.type == CATEGORY:
                left, right = left.cast(pa.large_string()), right.cast(pa.large_string())
            assert pc.all(pc.equal(left, right)).as_py(), f"{name} gives another {column.name}"
    return int(ours.num_rows)


def measure_whole(day: Day) -> bool:
    """The whole way: Arrow to Arrow."""
    lines = agreed(day)
    seconds = seconds_of(
        {
            "us": partial(shares_by_us, day),
            "duckdb": partial(shares_by_duckdb, day),
            "polars": partial(shares_by_polars, day),
        }
    )
    is_ahead = _say_times("division_whole", seconds, lines, WHOLE_TARGET)
    return (
        say(
            "division_whole_lines",
            lines / seconds["us"],
            "lines/s",
            target=LINES_A_SECOND,
            against=f"{lines} lines",
            at_least=True,
        )
        and is_ahead
    )


def _say_times(bench: str, seconds: dict[str, float], lines: int, target: float) -> bool:
    peers = {"duckdb": f"DuckDB {duckdb.__version__}", "polars": f"Polars {pl.__version__}"}
    faster = min(peers, key=lambda name: seconds[name])
    words = ", ".join(f"{words} {lines / seconds[name]:,.0f} lines/s" for name, words in peers.items())
    return say(
        bench,
        lines / seconds["us"],
        "lines/s",
        target=target,
        against=words,
        ratio=seconds[faster] / seconds["us"],
        at_least=True,
    )


def run(pots: int = POTS) -> bool:
    """Measure both; say whether both meet their targets."""
    note(f"division: {pots * LINES_A_POT:,} lines")
    day = made_day(pots)
    kernel = measure_kernel(day)
    return measure_whole(day) and kernel
