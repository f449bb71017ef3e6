"""A fault for every rule over tables: what a superuser with all triggers off did to the world of `verify_world`."""

SENT = "(SELECT instruction_id FROM payout_instructions i JOIN instruction_states USING (instruction_id) WHERE {})"
B_SHORT = SENT.format("party_id = 'B' AND state = 'settled'")
REF_FAILED = SENT.format("party_id = 'ref' AND state = 'failed'")
REF_APPROVED = SENT.format("party_id = 'ref' AND state = 'approved'")
FED = SENT.format("party_id = 'fed'")
#: A journal of its own, its entries (account, party, currency, debit, credit).
JOURNAL = """ALTER TABLE journals DROP CONSTRAINT IF EXISTS journals_of_match,
        DROP CONSTRAINT IF EXISTS journals_of_proposal;
    ALTER TABLE ledger_entries DROP CONSTRAINT IF EXISTS ledger_entries_account_of_kind;
    WITH j AS (INSERT INTO journals (journal_id, kind, day, run_id, code_version)
        VALUES (gen_random_uuid(), 'match', '2024-08-17', 'r', '0') RETURNING journal_id)
    INSERT INTO ledger_entries
        (entry_id, journal_id, kind, day, account, party_id, currency, debit_minor, credit_minor, is_item)
    SELECT gen_random_uuid(), journal_id, 'match', '2024-08-17', account, party_id, currency, debit, credit, false
    FROM j, (VALUES {}) v (account, party_id, currency, debit, credit);"""
OPEN_ITEM = """INSERT INTO open_items
        (item_id, next_claim_no, party_id, currency, day, kind, amount_minor, available_after)
    SELECT entry_id, 1, party_id, currency, day, kind, credit_minor - debit_minor, day FROM ledger_entries
    WHERE is_item AND kind = '{}';"""
BALANCE = "a party's balance is its open items and those under instructions not yet sent"
EXCESS = "what is paid beyond what is owed is an item"
NET = "an instruction is the net of its items"
CLAIM_IDS = "instructions have the id and digest of their claims"
CLAIM_ORDER = "claim n + 1 follows the release of n"
REPORTS = "report lines are those of the stored reports"
POSTED = "what is posted is what the shares say"
ACCRUAL_IDS = "accruals have the id of their key"
MATCHES = "what is posted of a match is what is stored of it"
INTAKES = "intakes and balances are those of the stored reports"
EVENTS = "events are of the day and run of their act"
ATTEMPTS = "first attempts are of an event and due the day after"
RUNS = "journals and instructions are of the run of their act"
SAYS = "a day's posting says what it posted"
REFUNDED = "what applies of refunds is taken from each line by what it holds"
ACCEPTED = "refunds are accepted within what their pot charged, in order"
REFUND_IDS = "refunds' journals and lines have their id and day"
CERTIFICATES = "each posting has its certificate, and it says what was posted"
AUDITED = "every row is as the audit trail recorded it, and no other is there"
#: Rules whose fault changes no row of an audited table.
OF_NO_RECORD = {
    "open items are the items without a live claim",
    "the lifecycle in Postgres is the one designed",
    "states are where the events lead",
    "nothing stays in transit unexplained",
    "reconciliation's differences are right",
    "the audit trail is one unbroken hash chain",
    "every column of what is append-only is in the audit trail",
    "append-only tables refuse change",
    "what is inserted is checked by its trigger",
    "no role or database has its triggers off",
    "every column of money is a whole number",
    "the run-time login can only insert and read",
}

#: Rule, the fault, and the rules that it cannot but break as well.
FAULTS: list[tuple[str, str, set[str]]] = [
    (
        "debits equal credits per currency",
        "DELETE FROM ledger_entries WHERE account = 'fees:sandbox'",
        {"debits equal credits per journal"},
    ),
    (
        "debits equal credits per journal",
        JOURNAL.format("('loss', NULL, 'GBP', 5, 0)") + JOURNAL.format("('loss', NULL, 'GBP', 0, 5)"),
        set(),
    ),
    (
        "entries belong to the journal they say",
        "UPDATE ledger_entries SET day = '2024-08-20' WHERE account = 'fees:sandbox'",
        set(),
    ),
    (
        "amounts are whole and above zero on one side",
        """ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_check2;
           UPDATE ledger_entries SET debit_minor = debit_minor + 7, credit_minor = credit_minor + 7
           WHERE account = 'fees:sandbox'""",
        set(),
    ),
    (
        "currencies are of ISO 4217",
        JOURNAL.format("('loss', NULL, 'ZZZ', 5, 0), ('fees:sandbox', NULL, 'ZZZ', 0, 5)"),
        set(),
    ),
    (
        "accounts are of the chart, and party accounts name their party",
        "ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_account_check;"
        + JOURNAL.format("('loss', NULL, 'GBP', 5, 0), ('petty_cash', NULL, 'GBP', 0, 5)"),
        set(),
    ),
    (
        "an item is a line that says what is owed, never one that moves money",
        f"""ALTER TABLE ledger_entries DROP CONSTRAINT IF EXISTS ledger_entries_item_of_kind;
            UPDATE ledger_entries SET is_item = true WHERE account LIKE 'party:%' AND journal_id IN (
                SELECT journal_id FROM journals WHERE kind = 'submission' AND instruction_id = {FED});"""
        + OPEN_ITEM.format("submission"),
        {EXCESS, BALANCE},
    ),
    (
        "what is posted for a pot sums to zero",
        "UPDATE ledger_entries SET pot_party_id = 'A' WHERE kind = 'accrual' AND line_no = 7",
        {ACCRUAL_IDS, POSTED, CERTIFICATES, REFUNDED, ACCEPTED},
    ),
    (
        "postings of a key are numbered without gap",
        "UPDATE ledger_entries SET posting_no = 3 WHERE kind = 'accrual' AND posting_no = 2 AND account = 'party:B'",
        {ACCRUAL_IDS, CERTIFICATES},
    ),
    (
        "accruals are posted with their match",
        "DELETE FROM match_postings WHERE match_id = 'm2'",
        {MATCHES, SAYS, CERTIFICATES},
    ),
    (
        "a match is posted under one day",
        """UPDATE journals SET day = '2024-08-18' WHERE match_id = 'm1' AND posting_no = 2;
           UPDATE match_postings SET match_day = '2024-08-18' WHERE match_id = 'm1' AND posting_no = 2;
           UPDATE ledger_entries SET day = '2024-08-18'
           WHERE journal_id IN (SELECT journal_id FROM journals WHERE match_id = 'm1' AND posting_no = 2);
           UPDATE open_items o SET day = e.day FROM ledger_entries e WHERE e.entry_id = o.item_id""",
        {POSTED, SAYS, CERTIFICATES, REFUND_IDS},
    ),
    (
        "revisions posted of a match never go back",
        "UPDATE match_postings SET revision = 3 WHERE match_id = 'm1' AND posting_no = 1",
        set(),
    ),
    (
        "no money is in suspense",
        JOURNAL.format("('loss', NULL, 'GBP', 5, 0), ('suspense', NULL, 'GBP', 0, 5)"),
        set(),
    ),
    (
        "a match is posted again only as its revision allows",
        "UPDATE match_postings SET revision = 2 WHERE match_id = 'm1' AND posting_no = 1",
        set(),
    ),
    (
        "nobody posted with a match is lost under the same revision",
        """UPDATE match_postings p SET revision = n.revision, content_hash = n.content_hash,
               participants = '[["p9","A","player"]]'
           FROM match_postings n WHERE (p.match_id, p.posting_no, n.match_id, n.posting_no) = ('m1', 1, 'm1', 2)""",
        set(),
    ),
    (
        "a match is open while its accruals do not net to zero",
        "UPDATE match_postings SET is_open = false WHERE match_id = 'm2'",
        set(),
    ),
    (
        SAYS,
        "UPDATE day_postings SET entries_posted = entries_posted + 1 WHERE match_day = '2024-08-18'",
        set(),
    ),
    (
        ACCEPTED,
        "UPDATE refunds SET pot_no = 3 WHERE refund_id = 'r2'",
        {CERTIFICATES},
    ),
    (
        REFUNDED,
        "UPDATE refunds SET amount_minor = 60, requested_minor = 60 WHERE refund_id = 'r2'",
        {CERTIFICATES},
    ),
    (
        REFUND_IDS,
        "UPDATE refunds SET accepted_day = accepted_day + 1 WHERE refund_id = 'r2'",
        {CERTIFICATES},
    ),
    (
        "nobody approves what pays a refund that they asked for",
        f"""ALTER TABLE ledger_entries DROP CONSTRAINT ledger_entries_of_refund;
            UPDATE ledger_entries SET refund_id = 'r1' WHERE entry_id IN (
                SELECT item_id FROM instruction_claims WHERE instruction_id = {REF_APPROVED});
            UPDATE instruction_events SET to_state = 'held' WHERE instruction_id = {REF_APPROVED} AND seq = 2;
            INSERT INTO instruction_events
                (instruction_id, seq, from_state, to_state, occurred_on, actor, reason, run_id, login, evidence)
            SELECT instruction_id, 3, 'held', 'approved', '2024-08-18', 'jane', 'mine', 'r', 'jane',
                   jsonb_build_object('digest', digest)
            FROM payout_instructions WHERE instruction_id = {REF_APPROVED};
            UPDATE payout_instructions SET approval_days = 1 WHERE instruction_id = {REF_APPROVED};
            UPDATE instruction_states SET seq = 3 WHERE instruction_id = {REF_APPROVED}""",
        {CERTIFICATES},
    ),
    (
        "journals have the id of their event",
        """WITH n AS (SELECT journal_id, gen_random_uuid() AS new FROM journals WHERE match_id = 'm2'),
                j AS (UPDATE journals SET journal_id = n.new FROM n WHERE journals.journal_id = n.journal_id)
           UPDATE ledger_entries e SET journal_id = n.new FROM n WHERE e.journal_id = n.journal_id""",
        {CERTIFICATES},
    ),
    (
        ACCRUAL_IDS,
        """UPDATE ledger_entries SET entry_id = gen_random_uuid()
           WHERE kind = 'accrual' AND account = 'pot:C' AND match_id = 'm2'""",
        {CERTIFICATES},
    ),
    (
        "movements have the id of their journal",
        "UPDATE ledger_entries SET entry_id = gen_random_uuid() WHERE account = 'fees:sandbox'",
        set(),
    ),
    (
        CLAIM_IDS,
        f"UPDATE payout_instructions SET token = 'tok_thief' WHERE instruction_id = {REF_APPROVED}",
        set(),
    ),
    (
        "attempts have their instruction's key",
        f"UPDATE payout_attempts SET idempotency_key = 'another' WHERE instruction_id = {REF_FAILED}",
        set(),
    ),
    (
        "open items are the items without a live claim",
        """INSERT INTO open_items (item_id, next_claim_no, party_id, currency, day, kind, amount_minor)
           VALUES (gen_random_uuid(), 1, 'A', 'GBP', '2024-08-17', 'accrual', 0)""",
        set(),
    ),
    (
        "no item is under two live instructions",
        f"""INSERT INTO instruction_claims SELECT item_id, claim_no + 1, instruction_id FROM instruction_claims
            WHERE instruction_id = {FED}""",
        {CLAIM_ORDER, NET, CLAIM_IDS},
    ),
    (
        CLAIM_ORDER,
        f"UPDATE instruction_claims SET claim_no = 2 WHERE instruction_id = {FED}",
        {CLAIM_IDS},
    ),
    (
        "only cancelled, failed and returned instructions release their items, all of them",
        f"""INSERT INTO claim_releases SELECT item_id, claim_no, '2024-08-20', false, 'r' FROM instruction_claims
            WHERE instruction_id = {FED};
            INSERT INTO open_items SELECT e.entry_id, c.claim_no + 1, e.party_id, e.currency, e.day, e.kind,
                e.credit_minor - e.debit_minor, e.match_id, e.pot, e.pot_party_id, e.recipient, '2024-08-20'
            FROM instruction_claims c JOIN ledger_entries e ON e.entry_id = c.item_id WHERE c.instruction_id = {FED}""",
        {BALANCE},
    ),
    (
        NET,
        f"UPDATE payout_instructions SET amount_minor = amount_minor + 1 WHERE instruction_id = {REF_APPROVED}",
        {CLAIM_IDS},
    ),
    (
        "a sweep makes one instruction per party and currency",
        "UPDATE sweeps SET instructions = instructions + 1 WHERE sweep_day = '2024-08-18'",
        set(),
    ),
    (
        BALANCE,
        JOURNAL.format("('loss', NULL, 'GBP', 5, 0), ('party:A', 'A', 'GBP', 0, 5)"),
        set(),
    ),
    (
        "the lifecycle in Postgres is the one designed",
        "INSERT INTO lifecycle VALUES ('unknown', 'approved')",
        set(),
    ),
    (
        "events follow the lifecycle",
        f"""INSERT INTO instruction_events
                (instruction_id, seq, from_state, to_state, occurred_on, actor, reason, run_id)
            VALUES ({REF_APPROVED}, 3, 'approved', 'held', '2024-08-19', 'x', 'x', 'r');
            UPDATE instruction_states SET (state, seq, since_on) = ('held', 3, '2024-08-19')
            WHERE instruction_id = {REF_APPROVED}""",
        set(),
    ),
    (
        "states are where the events lead",
        f"UPDATE instruction_states SET state = 'held' WHERE instruction_id = {REF_APPROVED}",
        set(),
    ),
    (
        "netted is for a sum of zero, and for that alone",
        f"""UPDATE instruction_events SET to_state = 'netted' WHERE instruction_id = {REF_APPROVED} AND seq = 2;
            UPDATE instruction_states SET state = 'netted' WHERE instruction_id = {REF_APPROVED}""",
        {BALANCE},
    ),
    (
        "over the limit the approver is not the maker",
        f"""UPDATE instruction_events SET to_state = 'held' WHERE instruction_id = {REF_APPROVED} AND seq = 2;
            INSERT INTO instruction_events
                (instruction_id, seq, from_state, to_state, occurred_on, actor, reason, run_id)
            VALUES ({REF_APPROVED}, 3, 'held', 'approved', '2024-08-18', 'scheduler', 'mine', 'r');
            UPDATE instruction_states SET seq = 3 WHERE instruction_id = {REF_APPROVED}""",
        {"what is approved is what was looked at, by its login and in time"},
    ),
    (
        "what is approved is what was looked at, by its login and in time",
        f"""UPDATE instruction_events SET to_state = 'held' WHERE instruction_id = {REF_APPROVED} AND seq = 2;
            INSERT INTO instruction_events
                (instruction_id, seq, from_state, to_state, occurred_on, actor, reason, run_id, login, evidence)
            SELECT instruction_id, 3, 'held', 'approved', '2024-08-18', 'jane', 'late', 'r', 'jane',
                   jsonb_build_object('digest', digest)
            FROM payout_instructions WHERE instruction_id = {REF_APPROVED};
            UPDATE payout_instructions SET approval_days = 1, created_at = now() - interval '1 day 1 second'
            WHERE instruction_id = {REF_APPROVED};
            UPDATE instruction_states SET seq = 3 WHERE instruction_id = {REF_APPROVED}""",
        set(),
    ),
    (
        "a proposal is decided by another than who made it",
        """INSERT INTO proposals (proposal_id, kind, content, reason, maker)
           VALUES (gen_random_uuid(), 'write_off', jsonb_build_object('party_id', 'p1', 'currency', 'GBP',
               'amount_minor', 1, 'items_sha256', repeat('0', 64)), 'x',
                   'jane');
           INSERT INTO proposal_decisions (proposal_id, decision, reason, actor, login)
           SELECT proposal_id, 'refused', 'x', 'jane', 'jane' FROM proposals""",
        set(),
    ),
    (
        "what is written off was accepted",
        """INSERT INTO proposals (proposal_id, kind, content, reason, maker)
           VALUES (gen_random_uuid(), 'write_off', jsonb_build_object('party_id', 'p1', 'currency', 'GBP',
               'amount_minor', 1, 'items_sha256', repeat('0', 64)), 'x',
                   'joe');
           INSERT INTO journals (journal_id, kind, day, proposal_id, run_id, code_version)
           SELECT gen_random_uuid(), 'write_off', '2024-08-17', proposal_id, 'r', '0' FROM proposals;
           INSERT INTO ledger_entries
               (entry_id, journal_id, kind, day, account, party_id, currency, debit_minor, credit_minor, is_item)
           SELECT gen_random_uuid(), journal_id, kind, day, account, party_id, 'GBP', debit, credit,
                  party_id IS NOT NULL
           FROM journals, (VALUES ('loss', NULL, 1, 0), ('party:p1', 'p1', 0, 1)) v (account, party_id, debit, credit)
           WHERE kind = 'write_off';"""
        + OPEN_ITEM.format("write_off"),
        set(),
    ),
    (
        "what was matched was accepted",
        """INSERT INTO proposals (proposal_id, kind, content, reason, maker)
           SELECT gen_random_uuid(), 'match', jsonb_build_object('processor', processor, 'entry_reference',
               entry_reference, 'account', 'party:p1'), 'x', 'joe' FROM report_lines WHERE kind = 'fee' LIMIT 1;
           INSERT INTO journals
               (journal_id, kind, day, proposal_id, processor, matched_reference, run_id, code_version)
           SELECT gen_random_uuid(), 'match', '2024-08-17', proposal_id, content ->> 'processor',
                  content ->> 'entry_reference', 'r', '0' FROM proposals;
           INSERT INTO ledger_entries
               (entry_id, journal_id, kind, day, account, party_id, currency, debit_minor, credit_minor, is_item)
           SELECT gen_random_uuid(), journal_id, kind, day, account, party_id, 'GBP', debit, credit,
                  party_id IS NOT NULL
           FROM journals,
                (VALUES ('suspense', NULL, 1, 0), ('party:p1', 'p1', 0, 1)) v (account, party_id, debit, credit)
           WHERE kind = 'match';"""
        + OPEN_ITEM.format("match"),
        {"no money is in suspense"},
    ),
    (
        "rules changed in the past are posted as their effect was accepted",
        "UPDATE match_postings SET rules_hash = 'others' WHERE match_id = 'm1' AND posting_no = 1",
        {CERTIFICATES},
    ),
    (
        "nothing is sent but under a committed attempt",
        f"DELETE FROM payout_attempts WHERE instruction_id = {REF_FAILED}",
        {EVENTS, ATTEMPTS},
    ),
    (
        "each attempt of an instruction has one key, the same bytes and deadline",
        f"""UPDATE payout_attempt_outcomes SET outcome = 'unknown' WHERE instruction_id = {FED};
            INSERT INTO payout_attempts SELECT instruction_id, 2, idempotency_key, 'other',
                encode(sha256('other'), 'hex'), execute_on, not_after, dispatched_on, run_id
                FROM payout_attempts WHERE instruction_id = {FED};
            INSERT INTO payout_attempt_outcomes (instruction_id, attempt_no, outcome)
            VALUES ({FED}, 2, 'acknowledged')""",
        set(),
    ),
    (
        "requests ask for what was instructed",
        f"""ALTER TABLE payout_attempts DROP CONSTRAINT payout_attempts_check;
            UPDATE payout_attempts SET request = changed.request,
                request_sha256 = encode(sha256(changed.request), 'hex')
            FROM (SELECT convert_to(replace(convert_from(request, 'UTF8'), '400', '4000'), 'UTF8') AS request
                  FROM payout_attempts WHERE instruction_id = {FED}) changed
            WHERE instruction_id = {FED}""",
        set(),
    ),
    (
        "nothing is sent after its deadline",
        f"UPDATE payout_attempts SET started_at = not_after WHERE instruction_id = {FED}",
        set(),
    ),
    (
        "an instruction has one unanswered attempt at most",
        f"""INSERT INTO payout_attempts SELECT instruction_id, 2, idempotency_key, request, request_sha256, execute_on,
                not_after, dispatched_on, run_id FROM payout_attempts WHERE instruction_id = {FED}""",
        set(),
    ),
    (
        "states of sending follow from an outcome or a look-up",
        f"DELETE FROM payout_attempt_outcomes WHERE instruction_id = {FED}",
        set(),
    ),
    (
        "what was unknown ends as a look-up or two people say",
        f"""UPDATE instruction_events SET from_state = 'unknown', actor = 'resolver'
            WHERE instruction_id = {FED} AND to_state = 'submitted'""",
        {"events follow the lifecycle"},
    ),
    (
        "sending is posted once, for the instruction's amount",
        f"""ALTER TABLE ledger_entries DROP CONSTRAINT IF EXISTS ledger_entries_account_of_kind;
            DROP INDEX IF EXISTS journals_one_submission;
            WITH j AS (INSERT INTO journals (journal_id, kind, day, instruction_id, run_id, code_version)
                VALUES (gen_random_uuid(), 'submission', '2024-08-17', {FED}, 'r', '0') RETURNING journal_id)
            INSERT INTO ledger_entries
                (entry_id, journal_id, kind, day, account, currency, debit_minor, credit_minor, is_item)
            SELECT gen_random_uuid(), journal_id, 'submission', '2024-08-17', account, 'GBP', debit, credit, false
            FROM j, (VALUES ('loss', 5, 0), ('loss', 0, 5)) v (account, debit, credit)""",
        {"journals have the id of their event", "movements have the id of their journal", RUNS},
    ),
    (
        "a failed or returned instruction is posted back once",
        f"""UPDATE ledger_entries SET is_item = true WHERE account = 'party:ref' AND journal_id IN (
                SELECT journal_id FROM journals WHERE kind = 'failure' AND instruction_id = {REF_FAILED});"""
        + OPEN_ITEM.format("failure"),
        {EXCESS, BALANCE},
    ),
    (
        "only report lines settle and return",
        f"""UPDATE report_lines SET kind = 'failed' WHERE instruction_id = {FED};
            UPDATE settlement_records SET outcome = 'failed' WHERE instruction_id = {FED}::text""",
        {REPORTS, EVENTS},
    ),
    (
        "a report line ends the sending of its instruction",
        f"""DELETE FROM instruction_events WHERE instruction_id = {FED} AND to_state = 'settled';
            UPDATE instruction_states SET (state, seq, since_on) = ('submitted', seq - 1, '2024-08-17')
            WHERE instruction_id = {FED}""",
        set(),
    ),
    (
        "a report line is about the instruction sent under its key",
        "UPDATE report_lines SET idempotency_key = 'of nobody' WHERE entry_reference = 'e-fed'",
        {REPORTS},
    ),
    (
        "each report line moves its own cash once",
        JOURNAL.format("('cash:sandbox', NULL, 'EUR', 5, 0), ('loss', NULL, 'EUR', 0, 5)"),
        {"cash equals the processor's closing balance"},
    ),
    (
        EXCESS,
        """UPDATE ledger_entries SET is_item = false WHERE is_item AND kind = 'settlement';
           DELETE FROM open_items WHERE kind = 'settlement'""",
        {BALANCE, "a failed or returned instruction is posted back once"},
    ),
    (
        "nothing stays in transit unexplained",
        f"DELETE FROM reconciliation WHERE subject_id = {B_SHORT}::text",
        set(),
    ),
    (
        "settlement records equal report lines",
        "UPDATE settlement_records SET party_id = 'B' WHERE entry_reference = 'e-A'",
        set(),
    ),
    (
        "cash equals the processor's closing balance",
        "UPDATE report_balances SET closing_minor = closing_minor + 1",
        {INTAKES},
    ),
    (
        "reconciliation's differences are right",
        "UPDATE reconciliation SET age_days = 3 WHERE status = 'break'",
        set(),
    ),
    (
        EVENTS,
        f"UPDATE instruction_events SET run_id = 'another' WHERE instruction_id = {REF_APPROVED} AND seq = 2",
        set(),
    ),
    (
        ATTEMPTS,
        f"""INSERT INTO payout_attempt_outcomes (instruction_id, attempt_no, outcome) VALUES ({FED}, 9, 'unknown')""",
        set(),
    ),
    (
        "a release is of the day and run of what ended its instruction",
        "UPDATE claim_releases SET run_id = 'another'",
        set(),
    ),
    (
        RUNS,
        "UPDATE journals SET run_id = 'another' WHERE kind = 'fee'",
        set(),
    ),
    (
        "only accruals and refunds are of a share",
        "UPDATE ledger_entries SET recipient = 'organiser' WHERE account = 'fees:sandbox'",
        set(),
    ),
    (
        "the audit trail is one unbroken hash chain",
        "UPDATE audit_entries SET login = 'somebody_else' WHERE table_name = 'payout_attempts'",
        set(),
    ),
    (
        AUDITED,
        f"UPDATE instruction_events SET reason = 'a nicer one' WHERE instruction_id = {REF_APPROVED} AND seq = 2",
        set(),
    ),
    (
        "every column of what is append-only is in the audit trail",
        "ALTER TABLE posting_breaks ADD COLUMN excuse text",
        set(),
    ),
    (
        "append-only tables refuse change",
        "ALTER TABLE report_lines DISABLE TRIGGER report_lines_append_only",
        set(),
    ),
    (
        "what is inserted is checked by its trigger",
        "DROP TRIGGER instruction_claims_check ON instruction_claims",
        set(),
    ),
    (
        "no role or database has its triggers off",
        """DO $$ BEGIN
               EXECUTE format('ALTER DATABASE %I SET session_replication_role = replica', current_database());
           END $$""",
        set(),
    ),
    (
        "every column of money is a whole number",
        "ALTER TABLE reconciliation ALTER expected_minor TYPE double precision",
        set(),
    ),
    (
        "the run-time login can only insert and read",
        "GRANT UPDATE (amount_minor) ON payout_instructions TO payments_runtime",
        set(),
    ),
]
MATCHED = "what was matched was accepted"
#: A journal of its own is a match that nobody accepted.
FAULTS = [
    (rule, fault, also | {MATCHED}) if JOURNAL.partition("WITH")[0] in fault else (rule, fault, also)
    for rule, fault, also in FAULTS
]
