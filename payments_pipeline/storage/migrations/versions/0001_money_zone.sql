-- The money zone: ledger, instructions, attempts, settlements. Append-only, and Postgres does the refusing.
-- Sections: roles, helpers, posting, sweeping, lifecycle, dispatch, settlement, alerts, grants.

CREATE SCHEMA payments;
COMMENT ON SCHEMA payments IS 'Ledger, instructions, attempts and settlements of payments_pipeline.';

-- Roles ---------------------------------------------------------------------------------------------------------------

DO $$
DECLARE
    role_name text;
BEGIN
    FOREACH role_name IN ARRAY ARRAY['payments_runtime', 'payments_approver'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = role_name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role_name);
            EXCEPTION
                WHEN insufficient_privilege THEN
                    RAISE EXCEPTION 'role % is missing and this login may not create it', role_name
                        USING HINT = format('As an administrator: CREATE ROLE %I NOLOGIN; then migrate again.', role_name);
                WHEN duplicate_object OR unique_violation THEN
                    NULL;  -- another database of the same server was migrated at the same moment
            END;
        END IF;
    END LOOP;
END
$$;

-- Helpers -------------------------------------------------------------------------------------------------------------

CREATE DOMAIN payments.currency AS char(3) CHECK (VALUE ~ '^[A-Z]{3}$');
CREATE DOMAIN payments.business_id AS text CHECK (VALUE ~ '^[A-Za-z0-9:._-]{1,128}$');

CREATE FUNCTION payments.refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'payments.% is append-only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation', HINT = 'Post a correction instead; nothing was changed.';
END
$$;

CREATE FUNCTION payments.make_append_only(VARIADIC table_names text[]) RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    table_name text;
BEGIN
    FOREACH table_name IN ARRAY table_names LOOP
        EXECUTE format(
            'CREATE TRIGGER %I BEFORE UPDATE OR DELETE OR TRUNCATE ON payments.%I '
            'FOR EACH STATEMENT EXECUTE FUNCTION payments.refuse_change()',
            table_name || '_append_only', table_name);
    END LOOP;
END
$$;

-- Posting -------------------------------------------------------------------------------------------------------------

CREATE TABLE payments.day_postings (
    match_day      date        NOT NULL,
    seq            integer     NOT NULL CHECK (seq >= 1),
    input_hashes   jsonb       NOT NULL,
    matches        integer     NOT NULL CHECK (matches >= 0),
    shares         integer     NOT NULL CHECK (shares >= 0),
    entries_posted integer     NOT NULL CHECK (entries_posted >= 0),
    run_id         text        NOT NULL,
    code_version   text        NOT NULL,
    posted_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (match_day, seq)
);
COMMENT ON TABLE payments.day_postings IS 'Each materialisation of ledger_entries for a match day, with the input it was computed from.';

CREATE TABLE payments.posting_breaks (
    match_day date                 NOT NULL,
    seq       integer              NOT NULL,
    match_id  payments.business_id NOT NULL,
    reason    text                 NOT NULL,
    words     text                 NOT NULL,
    PRIMARY KEY (match_day, seq, match_id),
    FOREIGN KEY (match_day, seq) REFERENCES payments.day_postings
);
CREATE INDEX posting_breaks_match ON payments.posting_breaks (match_id);
COMMENT ON TABLE payments.posting_breaks IS 'Matches that a posting left alone, and why; those of a day''s newest posting are open.';

CREATE TABLE payments.match_postings (
    match_id         payments.business_id NOT NULL,
    posting_no       integer              NOT NULL CHECK (posting_no >= 1),
    match_day        date                 NOT NULL,
    day_seq          integer              NOT NULL,
    competition_id   payments.business_id NOT NULL,
    revision         bigint               NOT NULL CHECK (revision >= 1),
    content_hash     text                 NOT NULL,
    rules_hash       text                 NOT NULL,
    schedule_version text                 NOT NULL,
    currency         payments.currency    NOT NULL,
    payout_policy    text                 NOT NULL CHECK (payout_policy IN ('immediate', 'when_collected')),
    revenue_minor    bigint               CHECK (revenue_minor >= 0),
    participants     text                 NOT NULL,  -- canonical JSON, compared as it stands
    is_open          boolean              NOT NULL,
    PRIMARY KEY (match_id, posting_no),
    FOREIGN KEY (match_day, day_seq) REFERENCES payments.day_postings
);
CREATE INDEX match_postings_day ON payments.match_postings (match_day);
COMMENT ON TABLE payments.match_postings IS 'What each match was posted as; the highest posting_no stands. is_open: its accruals do not net to zero, so its day is taken.';

CREATE FUNCTION payments.check_match_postings() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.match_id, n.posting_no, n.match_day, p.match_day AS held_day, p.posting_no AS previous_no, p.is_open
    INTO bad
    FROM new_rows n
    LEFT JOIN payments.match_postings p ON p.match_id = n.match_id AND p.posting_no = n.posting_no - 1
    WHERE (n.posting_no > 1 AND p.match_id IS NULL)
       OR (p.is_open AND p.match_day <> n.match_day)
       OR (p.match_id IS NOT NULL AND p.revision > n.revision)
       OR (p.match_id IS NOT NULL AND p.is_open AND p.currency <> n.currency)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'match %: posting % under % does not follow what is posted (day %, open %)',
            bad.match_id, bad.posting_no, bad.match_day, bad.held_day, bad.is_open
            USING ERRCODE = 'restrict_violation', HINT = 'A match is posted under one day, in revisions that never go back.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER match_postings_check AFTER INSERT ON payments.match_postings
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_match_postings();

CREATE TABLE payments.journals (
    journal_id      uuid                 PRIMARY KEY,
    kind            text                 NOT NULL CHECK (kind IN (
                        'accrual', 'refund', 'submission', 'failure', 'settlement', 'return', 'fee', 'funding',
                        'unmatched', 'match', 'write_off')),
    day             date                 NOT NULL,
    match_id        payments.business_id,
    posting_no      integer,
    instruction_id  uuid,
    processor       text,
    entry_reference text,
    run_id          text                 NOT NULL,
    code_version    text                 NOT NULL,
    posted_at       timestamptz          NOT NULL DEFAULT clock_timestamp(),
    created_xid     xid8                 NOT NULL DEFAULT pg_current_xact_id(),
    CHECK ((kind = 'accrual') = (match_id IS NOT NULL AND posting_no IS NOT NULL) OR kind IN ('refund', 'write_off')),
    CHECK (kind NOT IN ('submission', 'failure') OR instruction_id IS NOT NULL),
    CHECK (kind NOT IN ('settlement', 'return', 'fee', 'funding', 'unmatched') OR entry_reference IS NOT NULL),
    -- Without a processor one reference could be posted twice.
    CHECK (entry_reference IS NULL OR processor IS NOT NULL)
);
CREATE INDEX journals_day ON payments.journals (day);
CREATE INDEX journals_match ON payments.journals (match_id) WHERE match_id IS NOT NULL;
CREATE INDEX journals_instruction ON payments.journals (instruction_id) WHERE instruction_id IS NOT NULL;
CREATE UNIQUE INDEX journals_entry ON payments.journals (processor, entry_reference) WHERE entry_reference IS NOT NULL;
COMMENT ON TABLE payments.journals IS 'One business event each; its ledger entries balance per currency.';

CREATE TABLE payments.ledger_entries (
    entry_id         uuid              PRIMARY KEY,
    journal_id       uuid              NOT NULL REFERENCES payments.journals,
    kind             text              NOT NULL,
    day              date              NOT NULL,
    account          text              NOT NULL CHECK (
                         account ~ '^((cash|in_transit|fees|pot|party):[A-Za-z0-9:._-]{1,128}|suspense|loss)$'),
    party_id         text              CHECK ((party_id IS NOT NULL) = (account LIKE 'party:%') AND account = coalesce('party:' || party_id, account)),
    currency         payments.currency NOT NULL,
    debit_minor      bigint            NOT NULL CHECK (debit_minor >= 0),
    credit_minor     bigint            NOT NULL CHECK (credit_minor >= 0),
    is_item          boolean           NOT NULL CHECK (NOT is_item OR party_id IS NOT NULL),
    match_id         text,
    pot              text              CHECK (pot IN ('match_fee', 'revenue')),
    pot_party_id     text,
    line_no          integer           CHECK (line_no >= 0),
    recipient        text,
    schedule_version text,
    posting_no       integer           CHECK (posting_no >= 1),
    CHECK ((debit_minor = 0) <> (credit_minor = 0)),
    CHECK (kind NOT IN ('accrual', 'refund') OR (
        match_id IS NOT NULL AND pot IS NOT NULL AND pot_party_id IS NOT NULL AND line_no IS NOT NULL
        AND posting_no IS NOT NULL AND is_item = (party_id IS NOT NULL)))
);
CREATE UNIQUE INDEX ledger_entries_accrual_key
    ON payments.ledger_entries (match_id, pot, pot_party_id, line_no, account, currency, posting_no) WHERE kind = 'accrual';
CREATE INDEX ledger_entries_day ON payments.ledger_entries (day);
CREATE INDEX ledger_entries_journal ON payments.ledger_entries (journal_id);
CREATE INDEX ledger_entries_party ON payments.ledger_entries (party_id, currency) WHERE party_id IS NOT NULL;
CREATE INDEX ledger_entries_account ON payments.ledger_entries (account, currency, day) WHERE party_id IS NULL;
COMMENT ON TABLE payments.ledger_entries IS 'Double-entry lines in minor units; exactly one of debit_minor and credit_minor is above zero. is_item: a party''s open item.';

CREATE TABLE payments.open_items (
    item_id         uuid              PRIMARY KEY,
    next_claim_no   integer           NOT NULL,
    party_id        text              NOT NULL,
    currency        payments.currency NOT NULL,
    day             date              NOT NULL,
    kind            text              NOT NULL,
    amount_minor    bigint            NOT NULL,
    match_id        text,
    pot             text,
    pot_party_id    text,
    recipient       text,
    available_after date
);
CREATE INDEX open_items_party ON payments.open_items (party_id, currency);
COMMENT ON TABLE payments.open_items IS 'Projection, kept by triggers alone: items under no live instruction. amount_minor > 0 is owed to the party. Free to sweeps of days after available_after.';

CREATE FUNCTION payments.check_ledger_entries() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.journal_id, n.currency, sum(n.debit_minor) AS debits, sum(n.credit_minor) AS credits INTO bad
    FROM new_rows n GROUP BY n.journal_id, n.currency HAVING sum(n.debit_minor) <> sum(n.credit_minor) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'journal % does not balance in %: debits %, credits %', bad.journal_id, bad.currency, bad.debits, bad.credits
            USING ERRCODE = 'check_violation', HINT = 'All entries of a journal are inserted in one statement. Nothing was posted.';
    END IF;
    SELECT j.journal_id INTO bad
    FROM (SELECT DISTINCT journal_id, kind, day FROM new_rows) n JOIN journals j USING (journal_id)
    WHERE j.created_xid <> pg_current_xact_id() OR j.kind <> n.kind OR j.day <> n.day LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'journal % was closed when its transaction ended, or differs in kind or day from its entries', bad.journal_id
            USING ERRCODE = 'restrict_violation', HINT = 'Post a new journal. Nothing was posted.';
    END IF;
    SELECT n.entry_id, n.match_id, n.posting_no INTO bad
    FROM new_rows n
    WHERE n.kind = 'accrual' AND n.posting_no > 1 AND NOT EXISTS (
        SELECT FROM ledger_entries p
        WHERE p.kind = 'accrual' AND p.match_id = n.match_id AND p.pot = n.pot AND p.pot_party_id = n.pot_party_id
          AND p.line_no = n.line_no AND p.account = n.account AND p.currency = n.currency AND p.posting_no = n.posting_no - 1)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'entry % of match % is posting % of a key that has no posting before it', bad.entry_id, bad.match_id, bad.posting_no
            USING ERRCODE = 'restrict_violation';
    END IF;
    INSERT INTO open_items
        (item_id, next_claim_no, party_id, currency, day, kind, amount_minor, match_id, pot, pot_party_id, recipient, available_after)
    SELECT entry_id, 1, party_id, currency, day, kind, credit_minor - debit_minor, match_id, pot, pot_party_id, recipient,
           CASE WHEN kind IN ('accrual', 'refund') THEN NULL ELSE day END
    FROM new_rows WHERE is_item;
    RETURN NULL;
END
$$;
CREATE TRIGGER ledger_entries_check AFTER INSERT ON payments.ledger_entries
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_ledger_entries();

-- Sweeping ------------------------------------------------------------------------------------------------------------

CREATE TABLE payments.sweeps (
    sweep_day    date        NOT NULL,
    seq          integer     NOT NULL CHECK (seq >= 1),
    instructions integer     NOT NULL CHECK (instructions >= 0),
    run_id       text        NOT NULL,
    code_version text        NOT NULL,
    swept_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (sweep_day, seq)
);
COMMENT ON TABLE payments.sweeps IS 'Each materialisation of payout_instructions.';

CREATE TABLE payments.sweep_deferrals (
    sweep_day    date              NOT NULL,
    seq          integer           NOT NULL,
    party_id     text              NOT NULL,
    currency     payments.currency NOT NULL,
    reason       text              NOT NULL,
    items        integer           NOT NULL CHECK (items >= 1),
    amount_minor bigint            NOT NULL,
    PRIMARY KEY (sweep_day, seq, party_id, currency, reason),
    FOREIGN KEY (sweep_day, seq) REFERENCES payments.sweeps
);
COMMENT ON TABLE payments.sweep_deferrals IS 'What a sweep left open, by party, currency and reason; amount_minor > 0 is owed to the party.';

CREATE TABLE payments.payout_instructions (
    instruction_id uuid              PRIMARY KEY,
    sweep_day      date              NOT NULL,
    sweep_seq      integer           NOT NULL,
    party_id       text              NOT NULL,
    currency       payments.currency NOT NULL,
    direction      text              NOT NULL CHECK (direction IN ('credit', 'debit', 'none')),
    amount_minor   bigint            NOT NULL CHECK (amount_minor >= 0),
    processor      text              NOT NULL,
    token          text,
    digest         text              NOT NULL,
    policy_version text              NOT NULL,
    maker          text              NOT NULL,
    run_id         text              NOT NULL,
    code_version   text              NOT NULL,
    created_at     timestamptz       NOT NULL DEFAULT clock_timestamp(),
    created_xid    xid8              NOT NULL DEFAULT pg_current_xact_id(),
    FOREIGN KEY (sweep_day, sweep_seq) REFERENCES payments.sweeps,
    CHECK ((direction = 'none') = (amount_minor = 0)),
    CHECK (direction = 'none' OR token IS NOT NULL)
);
CREATE INDEX payout_instructions_day ON payments.payout_instructions (sweep_day);
CREATE INDEX payout_instructions_party ON payments.payout_instructions (party_id, currency);
COMMENT ON TABLE payments.payout_instructions IS 'One per party, currency and sweep: credit pays the party, debit collects from it, none is netted.';

CREATE TABLE payments.instruction_claims (
    item_id        uuid    NOT NULL REFERENCES payments.ledger_entries,
    claim_no       integer NOT NULL CHECK (claim_no >= 1),
    instruction_id uuid    NOT NULL REFERENCES payments.payout_instructions,
    PRIMARY KEY (item_id, claim_no)
);
CREATE INDEX instruction_claims_instruction ON payments.instruction_claims (instruction_id);
COMMENT ON TABLE payments.instruction_claims IS 'Which items an instruction pays; claim n + 1 of an item only after the release of n.';

CREATE TABLE payments.claim_releases (
    item_id     uuid        NOT NULL,
    claim_no    integer     NOT NULL,
    released_on date        NOT NULL,
    by_sweep    boolean     NOT NULL,
    run_id      text        NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (item_id, claim_no),
    FOREIGN KEY (item_id, claim_no) REFERENCES payments.instruction_claims
);
COMMENT ON TABLE payments.claim_releases IS 'The end of a claim whose instruction was cancelled, failed or returned. by_sweep: free again to that very sweep.';

CREATE TABLE payments.lifecycle (
    from_state text,
    to_state   text NOT NULL,
    UNIQUE NULLS NOT DISTINCT (from_state, to_state)
);
INSERT INTO payments.lifecycle (from_state, to_state) VALUES
    (NULL, 'created'),
    ('created', 'netted'), ('created', 'held'), ('created', 'approved'),
    ('held', 'approved'),
    ('created', 'cancelled'), ('held', 'cancelled'), ('approved', 'cancelled'),
    ('approved', 'submitting'),
    ('submitting', 'submitted'), ('submitting', 'failed'), ('submitting', 'unknown'),
    ('unknown', 'submitting'), ('unknown', 'submitted'), ('unknown', 'failed'),
    ('submitting', 'settled'), ('submitted', 'settled'), ('unknown', 'settled'),
    ('submitted', 'failed'),
    ('submitting', 'returned'), ('submitted', 'returned'), ('unknown', 'returned'), ('settled', 'returned');
COMMENT ON TABLE payments.lifecycle IS 'The transitions of an instruction that Postgres lets pass.';

CREATE TABLE payments.instruction_events (
    instruction_id uuid        NOT NULL REFERENCES payments.payout_instructions,
    seq            integer     NOT NULL CHECK (seq >= 1),
    from_state     text,
    to_state       text        NOT NULL,
    occurred_on    date        NOT NULL,
    actor          text        NOT NULL,
    reason         text        NOT NULL,
    evidence       jsonb,
    run_id         text        NOT NULL,
    login          text        NOT NULL DEFAULT session_user,
    recorded_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (instruction_id, seq)
);
CREATE INDEX instruction_events_day ON payments.instruction_events (occurred_on);
COMMENT ON TABLE payments.instruction_events IS 'Each transition of an instruction, in order.';

CREATE TABLE payments.instruction_states (
    instruction_id uuid    PRIMARY KEY REFERENCES payments.payout_instructions,
    state          text    NOT NULL,
    seq            integer NOT NULL,
    since_on       date    NOT NULL
);
CREATE INDEX instruction_states_live ON payments.instruction_states (state)
    WHERE state IN ('created', 'held', 'approved', 'submitting', 'submitted', 'unknown');
COMMENT ON TABLE payments.instruction_states IS 'Projection, kept by a trigger alone: the state that the events lead to.';

CREATE FUNCTION payments.check_instruction_claims() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
    claimed bigint;
    expected bigint;
BEGIN
    SELECT i.instruction_id INTO bad
    FROM (SELECT DISTINCT instruction_id FROM new_rows) n JOIN payout_instructions i USING (instruction_id)
    WHERE i.created_xid <> pg_current_xact_id() LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction % was made in an earlier transaction: no item can be added to it', bad.instruction_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT n.item_id, n.claim_no, n.instruction_id INTO bad
    FROM new_rows n JOIN payout_instructions i USING (instruction_id)
    LEFT JOIN open_items o ON o.item_id = n.item_id AND o.next_claim_no = n.claim_no
                          AND o.party_id = i.party_id AND o.currency = i.currency
    WHERE o.item_id IS NULL LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'item % (claim %) is not an open item of the party and currency of instruction %',
            bad.item_id, bad.claim_no, bad.instruction_id
            USING ERRCODE = 'restrict_violation', HINT = 'It is under a live instruction already. Nothing was claimed.';
    END IF;
    SELECT i.instruction_id, i.direction, i.amount_minor, sum(o.amount_minor) AS net INTO bad
    FROM new_rows n JOIN payout_instructions i USING (instruction_id) JOIN open_items o USING (item_id)
    GROUP BY i.instruction_id
    HAVING sum(o.amount_minor) <> CASE i.direction WHEN 'debit' THEN -i.amount_minor ELSE i.amount_minor END
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction % is for % % and its items net to %', bad.instruction_id, bad.direction, bad.amount_minor, bad.net
            USING ERRCODE = 'check_violation';
    END IF;
    SELECT n.instruction_id INTO bad
    FROM (SELECT instruction_id, count(*) AS claims FROM new_rows GROUP BY instruction_id) n
    JOIN LATERAL (SELECT count(*) AS claims FROM instruction_claims c WHERE c.instruction_id = n.instruction_id) c ON true
    WHERE c.claims <> n.claims LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction % is given its items in more than one statement', bad.instruction_id
            USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT count(*) INTO expected FROM new_rows;
    DELETE FROM open_items o USING new_rows n WHERE o.item_id = n.item_id AND o.next_claim_no = n.claim_no;
    GET DIAGNOSTICS claimed = ROW_COUNT;
    IF claimed <> expected THEN
        RAISE EXCEPTION 'of % items only % were open: another sweep claimed the rest', expected, claimed
            USING ERRCODE = 'serialization_failure', HINT = 'Run the day again. Nothing was claimed.';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER instruction_claims_check AFTER INSERT ON payments.instruction_claims
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_instruction_claims();

CREATE FUNCTION payments.check_claim_releases() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.item_id, n.claim_no, c.instruction_id, s.state INTO bad
    FROM new_rows n
    JOIN instruction_claims c ON c.item_id = n.item_id AND c.claim_no = n.claim_no
    LEFT JOIN instruction_states s USING (instruction_id)
    JOIN payout_instructions i USING (instruction_id)
    WHERE s.state IS NULL OR s.state NOT IN ('cancelled', 'failed', 'returned') OR i.direction = 'none' AND s.state <> 'cancelled'
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'item % (claim %) cannot be released: instruction % is %', bad.item_id, bad.claim_no, bad.instruction_id, bad.state
            USING ERRCODE = 'restrict_violation', HINT = 'Only a cancelled, failed or returned instruction gives its items back.';
    END IF;
    INSERT INTO open_items
        (item_id, next_claim_no, party_id, currency, day, kind, amount_minor, match_id, pot, pot_party_id, recipient, available_after)
    SELECT e.entry_id, n.claim_no + 1, e.party_id, e.currency, e.day, e.kind, e.credit_minor - e.debit_minor,
           e.match_id, e.pot, e.pot_party_id, e.recipient,
           -- What a sweep gives back is as free as it was before: an earlier failure still keeps it for later days.
           greatest(CASE WHEN e.kind IN ('accrual', 'refund') THEN NULL ELSE e.day END,
                    (SELECT max(r.released_on) FROM claim_releases r WHERE r.item_id = n.item_id AND NOT r.by_sweep))
    FROM new_rows n JOIN ledger_entries e ON e.entry_id = n.item_id;
    RETURN NULL;
END
$$;
CREATE TRIGGER claim_releases_check AFTER INSERT ON payments.claim_releases
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_claim_releases();

-- Lifecycle -----------------------------------------------------------------------------------------------------------

CREATE FUNCTION payments.check_instruction_events() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.instruction_id, n.seq, n.from_state, n.to_state INTO bad
    FROM new_rows n
    LEFT JOIN instruction_events p ON p.instruction_id = n.instruction_id AND p.seq = n.seq - 1
    WHERE p.to_state IS DISTINCT FROM n.from_state
       OR (n.seq > 1) <> (p.instruction_id IS NOT NULL)
       OR NOT EXISTS (SELECT FROM lifecycle l WHERE l.from_state IS NOT DISTINCT FROM n.from_state AND l.to_state = n.to_state)
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction %: event % from % to % is not a transition that can follow', bad.instruction_id, bad.seq, bad.from_state, bad.to_state
            USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT n.instruction_id INTO bad FROM new_rows n
    WHERE n.from_state = 'held' AND n.to_state = 'approved' AND NOT pg_has_role(session_user, 'payments_approver', 'MEMBER') LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction % is over its limit: only a login of payments_approver can approve it', bad.instruction_id
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    SELECT n.instruction_id INTO bad FROM new_rows n
    WHERE n.to_state = 'created' AND NOT EXISTS (SELECT FROM instruction_claims c WHERE c.instruction_id = n.instruction_id) LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction % claims no item', bad.instruction_id USING ERRCODE = 'restrict_violation';
    END IF;
    SELECT n.instruction_id INTO bad FROM new_rows n JOIN payout_instructions i USING (instruction_id)
    WHERE (n.to_state = 'netted') <> (i.direction = 'none') AND n.to_state NOT IN ('created', 'cancelled') LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction %: netted is for a sum of zero, and for that alone', bad.instruction_id USING ERRCODE = 'restrict_violation';
    END IF;
    INSERT INTO instruction_states AS s (instruction_id, state, seq, since_on)
    SELECT DISTINCT ON (instruction_id) instruction_id, to_state, seq, occurred_on
    FROM new_rows ORDER BY instruction_id, seq DESC
    ON CONFLICT (instruction_id) DO UPDATE SET state = excluded.state, seq = excluded.seq, since_on = excluded.since_on
        WHERE s.seq < excluded.seq;
    RETURN NULL;
END
$$;
CREATE TRIGGER instruction_events_check AFTER INSERT ON payments.instruction_events
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_instruction_events();

-- Dispatch ------------------------------------------------------------------------------------------------------------

CREATE TABLE payments.payout_attempts (
    instruction_id  uuid        NOT NULL REFERENCES payments.payout_instructions,
    attempt_no      integer     NOT NULL CHECK (attempt_no >= 1),
    idempotency_key text        NOT NULL,
    request         bytea       NOT NULL,
    request_sha256  text        NOT NULL CHECK (request_sha256 = encode(sha256(request), 'hex')),
    execute_on      date        NOT NULL,
    not_after       timestamptz NOT NULL,
    dispatched_on   date        NOT NULL,
    run_id          text        NOT NULL,
    started_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (instruction_id, attempt_no)
);
CREATE UNIQUE INDEX payout_attempts_key ON payments.payout_attempts (idempotency_key) WHERE attempt_no = 1;
CREATE INDEX payout_attempts_day ON payments.payout_attempts (dispatched_on);
COMMENT ON TABLE payments.payout_attempts IS 'Committed before a request leaves: its key, its bytes, and the instant after which it is never sent.';

CREATE TABLE payments.payout_attempt_outcomes (
    instruction_id      uuid        NOT NULL,
    attempt_no          integer     NOT NULL,
    outcome             text        NOT NULL CHECK (outcome IN ('acknowledged', 'rejected', 'unavailable', 'unknown', 'not_sent')),
    processor_reference text,
    code                text,
    message             text,
    recorded_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (instruction_id, attempt_no),
    FOREIGN KEY (instruction_id, attempt_no) REFERENCES payments.payout_attempts
);
COMMENT ON TABLE payments.payout_attempt_outcomes IS 'What came of an attempt; none yet means it is under way or its sender died.';

CREATE FUNCTION payments.check_payout_attempts() RETURNS trigger LANGUAGE plpgsql SET search_path = payments, pg_temp AS $$
DECLARE
    bad record;
BEGIN
    SELECT n.instruction_id, n.attempt_no INTO bad
    FROM new_rows n
    LEFT JOIN instruction_states s USING (instruction_id)
    LEFT JOIN payout_attempts p ON p.instruction_id = n.instruction_id AND p.attempt_no = n.attempt_no - 1
    LEFT JOIN payout_attempt_outcomes o ON o.instruction_id = p.instruction_id AND o.attempt_no = p.attempt_no
    WHERE s.state IS DISTINCT FROM 'submitting'
       OR (n.attempt_no > 1 AND (
              p.instruction_id IS NULL OR o.outcome IS NULL OR o.outcome NOT IN ('unavailable', 'unknown', 'not_sent')
              OR p.request <> n.request OR p.idempotency_key <> n.idempotency_key OR p.not_after <> n.not_after))
    LIMIT 1;
    IF FOUND THEN
        RAISE EXCEPTION 'instruction %: attempt % refused: the one before it is live or was answered, or its bytes, key or deadline differ',
            bad.instruction_id, bad.attempt_no USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER payout_attempts_check AFTER INSERT ON payments.payout_attempts
    REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION payments.check_payout_attempts();

-- Settlement ----------------------------------------------------------------------------------------------------------

CREATE TABLE payments.report_intakes (
    processor   text        NOT NULL,
    report_date date        NOT NULL,
    seq         integer     NOT NULL CHECK (seq >= 1),
    digest      text        NOT NULL,
    entry_count integer     NOT NULL CHECK (entry_count >= 0),
    run_id      text        NOT NULL,
    taken_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (processor, report_date, seq)
);
COMMENT ON TABLE payments.report_intakes IS 'Each taking-in of a processor''s report of one date; a report may grow and be taken in again.';

CREATE TABLE payments.report_balances (
    processor     text              NOT NULL,
    report_date   date              NOT NULL,
    seq           integer           NOT NULL,
    currency      payments.currency NOT NULL,
    opening_minor bigint            NOT NULL,
    closing_minor bigint            NOT NULL,
    PRIMARY KEY (processor, report_date, seq, currency),
    FOREIGN KEY (processor, report_date, seq) REFERENCES payments.report_intakes
);
COMMENT ON TABLE payments.report_balances IS 'The processor''s own view of our balance as its report gave it.';

CREATE TABLE payments.report_lines (
    processor           text              NOT NULL,
    entry_reference     text              NOT NULL,
    report_date         date              NOT NULL,
    kind                text              NOT NULL CHECK (kind IN ('settled', 'failed', 'returned', 'fee', 'funding', 'other')),
    idempotency_key     text,
    processor_reference text,
    subject             text,
    amount_minor        bigint            NOT NULL,
    currency            payments.currency NOT NULL,
    reason              text,
    occurred_at         timestamptz       NOT NULL,
    instruction_id      uuid              REFERENCES payments.payout_instructions,
    journal_id          uuid              REFERENCES payments.journals,
    note                text,
    run_id              text              NOT NULL,
    taken_at            timestamptz       NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (processor, entry_reference),
    CHECK ((amount_minor <> 0) <= (journal_id IS NOT NULL))
);
CREATE UNIQUE INDEX report_lines_journal ON payments.report_lines (journal_id) WHERE journal_id IS NOT NULL;
CREATE INDEX report_lines_date ON payments.report_lines (report_date);
CREATE INDEX report_lines_instruction ON payments.report_lines (instruction_id) WHERE instruction_id IS NOT NULL;
COMMENT ON TABLE payments.report_lines IS 'Every line of every report, once, by the processor''s own entry reference, with the journal it was posted with.';

CREATE TABLE payments.settlement_records (
    processor        text   NOT NULL,
    entry_reference  text   NOT NULL,
    report_date      date   NOT NULL,
    outcome          text   NOT NULL,
    instruction_id   text,
    direction        text,
    party_id         text,
    currency         text   NOT NULL,
    instructed_minor bigint,
    cash_minor       bigint NOT NULL,
    reason           text,
    journal_id       text,
    PRIMARY KEY (processor, entry_reference)
);
CREATE INDEX settlement_records_date ON payments.settlement_records (report_date);
COMMENT ON TABLE payments.settlement_records IS 'One row per report line: the instruction and outcome that it settles, or what else it is. Inserted once.';

CREATE TABLE payments.reconciliation (
    report_date      date    NOT NULL,
    subject_type     text    NOT NULL,
    subject_id       text    NOT NULL,
    currency         text    NOT NULL,
    expected_minor   bigint  NOT NULL,
    actual_minor     bigint  NOT NULL,
    difference_minor bigint  NOT NULL CHECK (difference_minor = actual_minor - expected_minor),
    status           text    NOT NULL CHECK (status IN ('matched', 'break')),
    since_on         date    NOT NULL,
    age_days         bigint  NOT NULL CHECK (age_days >= 0),
    words            text    NOT NULL,
    PRIMARY KEY (report_date, subject_type, subject_id, currency)
);
COMMENT ON TABLE payments.reconciliation IS 'Ledger against instructions against settlements, one day a partition, replaced when the day is reconciled again.';

-- Alerts --------------------------------------------------------------------------------------------------------------

CREATE TABLE payments.alerts (
    alert_id    uuid        PRIMARY KEY,
    kind        text        NOT NULL,
    day         date,
    title       text        NOT NULL,
    body        text        NOT NULL,
    run_id      text,
    raised_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE payments.alert_deliveries (
    alert_id     uuid        NOT NULL REFERENCES payments.alerts,
    channel      text        NOT NULL,
    delivered_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (alert_id, channel)
);
COMMENT ON TABLE payments.alerts IS 'Outbox of alerts, one row per incident.';
COMMENT ON TABLE payments.alert_deliveries IS 'Channels an alert has reached.';

-- What is kept by triggers alone, or never ---------------------------------------------------------------------------

CREATE TRIGGER lifecycle_closed BEFORE INSERT ON payments.lifecycle
    FOR EACH STATEMENT EXECUTE FUNCTION payments.refuse_change();

CREATE FUNCTION payments.refuse_hands() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() < 2 THEN
        RAISE EXCEPTION 'payments.% is kept by triggers alone: % refused', TG_TABLE_NAME, TG_OP USING ERRCODE = 'restrict_violation';
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER open_items_kept BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON payments.open_items
    FOR EACH STATEMENT EXECUTE FUNCTION payments.refuse_hands();
CREATE TRIGGER instruction_states_kept BEFORE INSERT OR UPDATE OR DELETE OR TRUNCATE ON payments.instruction_states
    FOR EACH STATEMENT EXECUTE FUNCTION payments.refuse_hands();

-- Append-only, and grants ---------------------------------------------------------------------------------------------

SELECT payments.make_append_only(
    'day_postings', 'posting_breaks', 'match_postings', 'journals', 'ledger_entries', 'sweeps', 'sweep_deferrals',
    'payout_instructions', 'instruction_claims', 'claim_releases', 'lifecycle', 'instruction_events', 'payout_attempts',
    'payout_attempt_outcomes', 'report_intakes', 'report_balances', 'report_lines', 'settlement_records', 'alerts',
    'alert_deliveries');
DROP FUNCTION payments.make_append_only(text[]);

REVOKE ALL ON ALL FUNCTIONS IN SCHEMA payments FROM PUBLIC;
GRANT USAGE ON SCHEMA payments TO payments_runtime, payments_approver;
GRANT SELECT ON ALL TABLES IN SCHEMA payments TO payments_runtime, payments_approver;
GRANT INSERT ON
    payments.day_postings, payments.posting_breaks, payments.match_postings, payments.sweeps, payments.sweep_deferrals,
    payments.ledger_entries, payments.instruction_claims, payments.report_balances, payments.settlement_records, payments.alerts, payments.alert_deliveries
    TO payments_runtime;
-- created_xid, login and instants are Postgres's own word: no login may state them.
GRANT INSERT (processor, report_date, seq, digest, entry_count, run_id) ON payments.report_intakes TO payments_runtime;
GRANT INSERT (processor, entry_reference, report_date, kind, idempotency_key, processor_reference, subject, amount_minor,
              currency, reason, occurred_at, instruction_id, journal_id, note, run_id)
    ON payments.report_lines TO payments_runtime;
GRANT INSERT (instruction_id, attempt_no, idempotency_key, request, request_sha256, execute_on, not_after, dispatched_on,
              run_id) ON payments.payout_attempts TO payments_runtime;
GRANT INSERT (instruction_id, attempt_no, outcome, processor_reference, code, message)
    ON payments.payout_attempt_outcomes TO payments_runtime;
GRANT INSERT (item_id, claim_no, released_on, by_sweep, run_id)
    ON payments.claim_releases TO payments_runtime, payments_approver;
GRANT INSERT (journal_id, kind, day, match_id, posting_no, instruction_id, processor, entry_reference, run_id, code_version)
    ON payments.journals TO payments_runtime;
GRANT INSERT (instruction_id, sweep_day, sweep_seq, party_id, currency, direction, amount_minor, processor, token, digest,
              policy_version, maker, run_id, code_version) ON payments.payout_instructions TO payments_runtime;
GRANT INSERT (instruction_id, seq, from_state, to_state, occurred_on, actor, reason, evidence, run_id)
    ON payments.instruction_events TO payments_runtime, payments_approver;
GRANT INSERT, DELETE ON payments.reconciliation TO payments_runtime;
