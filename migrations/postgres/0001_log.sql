-- The append-only log, with the tables, columns and rules of migrations/sqlite. One row of `entries` heads every edit and
-- every version; together they are the hash chain. What each hash covers is described in src/edit_log/chain.rs. Times are
-- RFC 3339 UTC with nine fractional digits, so that they sort as text; ids are the 16 bytes of a UUID; digests are 32 bytes
-- of BLAKE3. Words of others are kept as their bytes in UTF-8, because text has no NUL here: convert_from(prompt, 'UTF8')
-- shows them.

CREATE TABLE entries (
    seq         BIGINT PRIMARY KEY CHECK (seq >= 1),
    at          TEXT COLLATE "C" NOT NULL,
    kind        TEXT   NOT NULL CHECK (kind IN ('identity', 'base', 'edit', 'version')),
    -- The version that the entry belongs to; none for an edit that was rejected or failed.
    version     BIGINT CHECK (version >= 0),
    actor       TEXT COLLATE "C" NOT NULL,
    -- Hash of the row that the entry heads.
    body_digest BYTEA  NOT NULL CHECK (length(body_digest) = 32),
    prev_hash   BYTEA  NOT NULL CHECK (length(prev_hash) = 32),
    hash        BYTEA  NOT NULL CHECK (length(hash) = 32)
);

-- What the log belongs to: one row.
CREATE TABLE identity (
    seq          BIGINT PRIMARY KEY REFERENCES entries (seq),
    base         BYTEA NOT NULL CHECK (length(base) = 32),
    editor       BYTEA NOT NULL CHECK (length(editor) = 32),
    composition  TEXT  NOT NULL,
    base_weights BYTEA NOT NULL CHECK (length(base_weights) = 32),
    empty_set    BYTEA NOT NULL CHECK (length(empty_set) = 32)
);

CREATE TABLE edits (
    seq          BIGINT PRIMARY KEY REFERENCES entries (seq),
    id           BYTEA NOT NULL UNIQUE CHECK (length(id) = 16),
    received_at  TEXT COLLATE "C" NOT NULL,
    prompt       BYTEA NOT NULL,
    target       BYTEA NOT NULL,
    request      TEXT  NOT NULL,
    report       TEXT  NOT NULL,
    outcome      TEXT  NOT NULL CHECK (outcome IN ('applied', 'rejected', 'failed')),
    reason       BYTEA,
    -- Digest of the contribution's bytes.
    contribution BYTEA CHECK (length(contribution) = 32),
    CHECK ((outcome = 'applied') = (contribution IS NOT NULL)),
    CHECK ((outcome = 'applied') = (reason IS NULL))
);

-- Beside the edits, as in SQLite. Contributions are random bits that no compression shortens.
CREATE TABLE contributions (
    seq   BIGINT PRIMARY KEY REFERENCES edits (seq),
    bytes BYTEA NOT NULL
);
ALTER TABLE contributions ALTER COLUMN bytes SET STORAGE EXTERNAL;

CREATE TABLE versions (
    number             BIGINT PRIMARY KEY CHECK (number >= 0),
    seq                BIGINT NOT NULL UNIQUE REFERENCES entries (seq),
    kind               TEXT   NOT NULL CHECK (kind IN ('base', 'edit', 'take_back', 'rollback')),
    digest             BYTEA  NOT NULL CHECK (length(digest) = 32),
    set_digest         BYTEA  NOT NULL CHECK (length(set_digest) = 32),
    -- How many edits are active in it.
    active             BIGINT NOT NULL CHECK (active >= 0),
    -- Hash over its rows of `version_changes`.
    changes_digest     BYTEA  NOT NULL CHECK (length(changes_digest) = 32),
    -- Hash over its row of `idempotency`, if there is one.
    idempotency_digest BYTEA CHECK (length(idempotency_digest) = 32)
);

-- A version's set is its predecessor's with these changes.
CREATE TABLE version_changes (
    version       BIGINT NOT NULL REFERENCES versions (number),
    position      BIGINT NOT NULL CHECK (position >= 0),
    edit          BYTEA  NOT NULL REFERENCES edits (id),
    kind          TEXT   NOT NULL CHECK (kind IN ('added', 'removed')),
    superseded_by BYTEA  REFERENCES edits (id),
    PRIMARY KEY (version, position),
    CHECK (superseded_by IS NULL OR kind = 'removed')
);

CREATE TABLE idempotency (
    key         TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    version     BIGINT NOT NULL UNIQUE REFERENCES versions (number),
    request     BYTEA  NOT NULL CHECK (length(request) = 32),
    http_status BIGINT NOT NULL,
    body        TEXT   NOT NULL
);

-- Who writes: one row, and no part of the log. Each writer that comes raises the epoch, and each commit of a writer finds its
-- own epoch here or is refused, so that one that has been followed can not commit any more.
CREATE TABLE writer (
    one     BOOLEAN PRIMARY KEY DEFAULT true CHECK (one),
    epoch   BIGINT NOT NULL CHECK (epoch >= 0),
    -- For people: which process, on which host, since when.
    holder  TEXT   NOT NULL,
    -- Where other replicas reach it; none for a command that writes and ends.
    address TEXT
);
INSERT INTO writer (epoch, holder) VALUES (0, 'nobody');

-- The last change of an edit (its status), and the set of a version: both are answered from this index.
CREATE UNIQUE INDEX version_changes_by_edit ON version_changes (edit, version, kind);
-- Another edit of the same prompt. Of its hash, because an index takes no long values.
CREATE INDEX edits_by_prompt ON edits (sha256(prompt));
-- Rejected or failed edits, newest first.
CREATE INDEX edits_by_outcome ON edits (outcome, seq);
-- What someone did, newest first.
CREATE INDEX entries_by_actor ON entries (actor, seq);

-- Rows are only ever inserted, and only at the tail.

CREATE FUNCTION amend_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the log is append-only';
END $$;

CREATE TRIGGER entries_no_change BEFORE UPDATE OR DELETE ON entries
FOR EACH ROW EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER entries_no_truncate BEFORE TRUNCATE ON entries EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER identity_no_change BEFORE UPDATE OR DELETE ON identity
FOR EACH ROW EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER identity_no_truncate BEFORE TRUNCATE ON identity EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER edits_no_change BEFORE UPDATE OR DELETE ON edits
FOR EACH ROW EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER edits_no_truncate BEFORE TRUNCATE ON edits EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER contributions_no_change BEFORE UPDATE OR DELETE ON contributions
FOR EACH ROW EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER contributions_no_truncate BEFORE TRUNCATE ON contributions EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER versions_no_change BEFORE UPDATE OR DELETE ON versions
FOR EACH ROW EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER versions_no_truncate BEFORE TRUNCATE ON versions EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER version_changes_no_change BEFORE UPDATE OR DELETE ON version_changes
FOR EACH ROW EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER version_changes_no_truncate BEFORE TRUNCATE ON version_changes EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER idempotency_no_change BEFORE UPDATE OR DELETE ON idempotency
FOR EACH ROW EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER idempotency_no_truncate BEFORE TRUNCATE ON idempotency EXECUTE FUNCTION amend_append_only();

CREATE FUNCTION amend_next_entry() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM entries) THEN
        RAISE EXCEPTION 'the log is append-only: not the next entry';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER entries_only_at_the_tail BEFORE INSERT ON entries
FOR EACH ROW EXECUTE FUNCTION amend_next_entry();

CREATE FUNCTION amend_only_identity() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM identity) THEN
        RAISE EXCEPTION 'the log is append-only: it is pinned already';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER identity_only_once BEFORE INSERT ON identity
FOR EACH ROW EXECUTE FUNCTION amend_only_identity();

CREATE FUNCTION amend_new_edit() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.seq <= (SELECT coalesce(max(seq), 0) FROM edits) OR EXISTS (SELECT 1 FROM edits WHERE id = NEW.id) THEN
        RAISE EXCEPTION 'the log is append-only: not a new edit';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER edits_only_at_the_tail BEFORE INSERT ON edits
FOR EACH ROW EXECUTE FUNCTION amend_new_edit();

CREATE FUNCTION amend_new_contribution() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.seq <= (SELECT coalesce(max(seq), 0) FROM contributions) THEN
        RAISE EXCEPTION 'the log is append-only: not a new edit''s contribution';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER contributions_only_at_the_tail BEFORE INSERT ON contributions
FOR EACH ROW EXECUTE FUNCTION amend_new_contribution();

CREATE FUNCTION amend_next_version() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.number <> (SELECT coalesce(max(number), -1) + 1 FROM versions)
        OR EXISTS (SELECT 1 FROM versions WHERE seq = NEW.seq) THEN
        RAISE EXCEPTION 'the log is append-only: not the next version';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER versions_only_at_the_tail BEFORE INSERT ON versions
FOR EACH ROW EXECUTE FUNCTION amend_next_version();

CREATE FUNCTION amend_next_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.version <> (SELECT coalesce(max(number), -1) FROM versions)
        OR NEW.position <> (SELECT coalesce(max(position), -1) + 1 FROM version_changes WHERE version = NEW.version)
        OR EXISTS (SELECT 1 FROM version_changes WHERE version = NEW.version AND edit = NEW.edit) THEN
        RAISE EXCEPTION 'the log is append-only: not the next change of the newest version';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER version_changes_only_at_the_tail BEFORE INSERT ON version_changes
FOR EACH ROW EXECUTE FUNCTION amend_next_change();

CREATE FUNCTION amend_only_answer() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM idempotency WHERE key = NEW.key OR version = NEW.version) THEN
        RAISE EXCEPTION 'the log is append-only: the key or the version has an answer already';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER idempotency_only_once BEFORE INSERT ON idempotency
FOR EACH ROW EXECUTE FUNCTION amend_only_answer();
