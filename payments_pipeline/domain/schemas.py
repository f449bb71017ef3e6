"""The one source of every frame's and table's shape: names, types, units, keys, words.

Belongs here: column lists and what derives from them (Arrow schema). Does not belong here: DDL (migrations state it
and a test compares), validation of input, anything that reads or writes.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

MINOR = "minor units of `currency`"
STRING = pa.string()
#: Strings that repeat; kept dictionary-encoded on the way to Parquet.
CATEGORY = pa.dictionary(pa.int32(), pa.string())
INT = pa.int64()
DATE = pa.date32()
INSTANT = pa.timestamp("us", tz="UTC")
BOOL = pa.bool_()


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: units come last (`amount_minor`); dates end in `_on` or `_day`, UTC instants in `_at`.
        type: Arrow type.
        description: what it means, one sentence.
        nullable: whether null is allowed; null always means "not given", never zero.
        unit: the unit of a number, where it has one.
    """

    name: str
    type: pa.DataType
    description: str
    nullable: bool = False
    unit: str | None = None


@dataclass(frozen=True)
class TableSchema:
    """The shape of one asset's partition, and of its table where it has one.

    Attributes:
        name: the asset's name, the table's name, the glossary's name.
        description: one sentence.
        columns: in order.
        key: columns that identify a row.
        sort_by: the order in which rows are stored.
        partition_column: the column that holds the partition, where rows carry it.
    """

    name: str
    description: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    sort_by: tuple[str, ...]
    partition_column: str | None = None

    @property
    def names(self) -> list[str]:
        """Column names in order."""
        return [column.name for column in self.columns]

    def arrow(self) -> pa.Schema:
        """Arrow schema; each field's metadata carries its description and unit."""
        return pa.schema(
            [
                pa.field(
                    column.name,
                    column.type,
                    nullable=column.nullable,
                    metadata={"description": column.description} | ({"unit": column.unit} if column.unit else {}),
                )
                for column in self.columns
            ]
        )


MATCH_RESULTS = TableSchema(
    name="match_results",
    description="The accepted matches of one day, one row per match, newest revision.",
    key=("match_id",),
    sort_by=("match_id",),
    columns=(
        Column("match_id", STRING, "Unique over all time."),
        Column("competition_id", CATEGORY, "Competition that the match counts for."),
        Column("match_day", DATE, "Local date of kick-off in the pipeline's time zone; the partition."),
        Column("kicked_off_at", INSTANT, "Kick-off."),
        Column("home_club_id", CATEGORY, "Home club."),
        Column("away_club_id", CATEGORY, "Away club."),
        Column("status", CATEGORY, "completed, awarded, abandoned, postponed, cancelled or void."),
        Column("home_score", INT, "Goals of the home club.", nullable=True, unit="goals"),
        Column("away_score", INT, "Goals of the away club.", nullable=True, unit="goals"),
        Column("winner_club_id", CATEGORY, "Winner as given; decides over the score.", nullable=True),
        Column("revenue_minor", INT, "Declared revenue; null is not declared, 0 is none.", nullable=True, unit=MINOR),
        Column("revision", INT, "Revision of the result; the newest decides."),
        Column("currency", CATEGORY, "The competition's ISO 4217 currency."),
        Column("schedule_version", CATEGORY, "The one fee schedule version in force on the match day."),
        Column("payout_policy", CATEGORY, "immediate or when_collected, of the competition on the match day."),
        Column("content_hash", STRING, "SHA-256 of the parsed row without its revision."),
        Column("rules_hash", CATEGORY, "SHA-256 of the competition row and schedule lines that the match falls under."),
        Column("source", CATEGORY, "Landing object the row was read from."),
        Column("line_number", INT, "First line (CSV, JSON Lines) or row (Parquet) in the source, from 1."),
    ),
)

MATCH_PARTICIPANTS = TableSchema(
    name="match_participants",
    description="Who took part: one row per accepted match and participant.",
    key=("match_id", "party_id"),
    sort_by=("match_id", "party_id"),
    columns=(
        Column("match_id", CATEGORY, "Match."),
        Column("party_id", CATEGORY, "Participant."),
        Column("club_id", CATEGORY, "A player's club in this match; null for referees.", nullable=True),
        Column("role", CATEGORY, "player and referee mean something; any other is kept."),
        Column("source", CATEGORY, "Landing object the row was read from."),
        Column("line_number", INT, "First line or row in the source, from 1."),
    ),
)

REJECTED_RECORDS = TableSchema(
    name="rejected_records",
    description="Every input row that was not accepted, with where it came from and why.",
    key=("dataset", "source", "line_number"),
    sort_by=("dataset", "source", "line_number"),
    columns=(
        Column("dataset", CATEGORY, "match_results or match_participants."),
        Column("outcome", CATEGORY, "rejected, or superseded by an equal or newer row."),
        Column("source", CATEGORY, "Landing object the row was read from."),
        Column("line_number", INT, "First line or row in the source, from 1."),
        Column("match_id", STRING, "As read, where it can be.", nullable=True),
        Column("party_id", STRING, "As read, where it can be.", nullable=True),
        Column("reason", CATEGORY, "Reason code; docs/reference lists them in the order they apply."),
        Column("words", STRING, "The reason in words, with the cure."),
        Column("raw", STRING, "The record as read."),
    ),
)

PARTICIPANT_SHARES = TableSchema(
    name="participant_shares",
    description="Who is owed or owes what for one match day, one row per pot line and party.",
    key=("match_id", "pot", "pot_party_id", "line_no", "party_id"),
    sort_by=("match_id", "pot", "pot_party_id", "line_no", "party_id"),
    columns=(
        Column("match_id", CATEGORY, "Match."),
        Column("competition_id", CATEGORY, "Competition."),
        Column("pot", CATEGORY, "match_fee or revenue."),
        Column("pot_party_id", CATEGORY, "The charged participant of a match fee; empty for revenue."),
        Column("schedule_version", CATEGORY, "Fee schedule version."),
        Column("line_no", INT, "Line of the schedule; 0 is what nobody is entitled to."),
        Column("recipient", CATEGORY, "Recipient as the line names it; payer for a charge; suspense for line 0."),
        Column("party_id", CATEGORY, "Who is owed or owes."),
        Column("amount_minor", INT, "> 0 owed to the party, < 0 owed by it, never 0.", unit=MINOR),
        Column("currency", CATEGORY, "ISO 4217."),
    ),
)

SETTLEMENT_REPORTS = TableSchema(
    name="settlement_reports",
    description="What the processor reported on one date, as received: one row per report line.",
    key=("processor", "entry_reference"),
    sort_by=("processor", "currency", "entry_reference"),
    columns=(
        Column("processor", CATEGORY, "Processor that reported."),
        Column("entry_reference", STRING, "The processor's own reference of the line; a line is known by it."),
        Column("report_date", DATE, "Date of the report."),
        Column("kind", CATEGORY, "settled, failed, returned, fee, funding or other."),
        Column("idempotency_key", STRING, "Key under which the instruction was sent.", nullable=True),
        Column("processor_reference", STRING, "The processor's reference of the payment.", nullable=True),
        Column("subject", STRING, "What a line without instruction is about (a competition, a remark).", nullable=True),
        Column("amount_minor", INT, "Cash effect: > 0 into our balance, < 0 out of it, 0 no cash.", unit=MINOR),
        Column("currency", CATEGORY, "ISO 4217."),
        Column("reason", STRING, "The processor's reason for a failure or return.", nullable=True),
        Column("occurred_at", INSTANT, "When the processor says it happened."),
    ),
)

SETTLEMENT_RECORDS = TableSchema(
    name="settlement_records",
    description="One row per report line: the instruction and outcome that it settles, or what else it is.",
    key=("processor", "entry_reference"),
    sort_by=("processor", "entry_reference"),
    partition_column="report_date",
    columns=(
        Column("processor", STRING, "Processor that reported."),
        Column("entry_reference", STRING, "The processor's own reference of the line."),
        Column("report_date", DATE, "Date of the report; the partition."),
        Column("outcome", STRING, "settled, failed, returned, fee, funding or unmatched."),
        Column("instruction_id", STRING, "Instruction matched; null where none is.", nullable=True),
        Column("direction", STRING, "credit or debit of the instruction.", nullable=True),
        Column("party_id", STRING, "Party of the instruction.", nullable=True),
        Column("currency", STRING, "ISO 4217."),
        Column("instructed_minor", INT, "Amount instructed.", nullable=True, unit=MINOR),
        Column("cash_minor", INT, "Cash effect of the line: > 0 in, < 0 out, 0 none.", unit=MINOR),
        Column("reason", STRING, "The processor's reason for a failure or return.", nullable=True),
        Column(
            "journal_id", STRING, "Journal that the line was posted with; null where it moved no cash.", nullable=True
        ),
    ),
)

RECONCILIATION = TableSchema(
    name="reconciliation",
    description="Ledger against instructions against settlements for one day: what matches, and each break.",
    key=("report_date", "subject_type", "subject_id", "currency"),
    sort_by=("report_date", "subject_type", "subject_id", "currency"),
    partition_column="report_date",
    columns=(
        Column("report_date", DATE, "Day reconciled; the partition."),
        Column("subject_type", STRING, "cash, in_transit, instruction, posting or unmatched."),
        Column("subject_id", STRING, "Account, instruction, match or entry reference."),
        Column("currency", STRING, "ISO 4217; empty where a break has no amount."),
        Column("expected_minor", INT, "What the ledger or the instruction says.", unit=MINOR),
        Column("actual_minor", INT, "What the processor's report says.", unit=MINOR),
        Column("difference_minor", INT, "actual less expected.", unit=MINOR),
        Column("status", STRING, "matched or break."),
        Column("since_on", DATE, "First day of the break; the report date where matched."),
        Column("age_days", INT, "Days from since_on to the report date.", unit="days"),
        Column("words", STRING, "What it is and what to do."),
    ),
)

ALL = (
    MATCH_RESULTS,
    MATCH_PARTICIPANTS,
    REJECTED_RECORDS,
    PARTICIPANT_SHARES,
    SETTLEMENT_REPORTS,
    SETTLEMENT_RECORDS,
    RECONCILIATION,
)
