-- The append-only log. One row of `entries` heads every edit and every version; together they are the hash chain.
-- What each hash covers is described in src/edit_log/chain.rs. Times are RFC 3339 UTC with nine fractional digits, so
-- that they sort as text; ids are the 16 bytes of a UUID; digests are 32 bytes of BLAKE3.

CREATE TABLE entries (
    seq         INTEGER PRIMARY KEY CHECK (seq >= 1),
    at          TEXT    NOT NULL,
    kind        TEXT    NOT NULL CHECK (kind IN ('identity', 'base', 'edit', 'version')),
    -- The version that the entry belongs to; none for an edit that was rejected or failed.
    version     INTEGER CHECK (version >= 0),
    actor       TEXT    NOT NULL,
    -- Hash of the row that the entry heads.
    body_digest BLOB    NOT NULL CHECK (length(body_digest) = 32),
    prev_hash   BLOB    NOT NULL CHECK (length(prev_hash) = 32),
    hash        BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;

-- What the log belongs to: one row.
CREATE TABLE identity (
    seq          INTEGER PRIMARY KEY REFERENCES entries (seq),
    base         BLOB NOT NULL CHECK (length(base) = 32),
    editor       BLOB NOT NULL CHECK (length(editor) = 32),
    composition  TEXT NOT NULL,
    base_weights BLOB NOT NULL CHECK (length(base_weights) = 32),
    empty_set    BLOB NOT NULL CHECK (length(empty_set) = 32)
) STRICT;

CREATE TABLE edits (
    seq          INTEGER PRIMARY KEY REFERENCES entries (seq),
    id           BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    received_at  TEXT NOT NULL,
    prompt       TEXT NOT NULL,
    target       TEXT NOT NULL,
    request      TEXT NOT NULL,
    report       TEXT NOT NULL,
    outcome      TEXT NOT NULL CHECK (outcome IN ('applied', 'rejected', 'failed')),
    reason       TEXT,
    -- Digest of the contribution's bytes.
    contribution BLOB CHECK (length(contribution) = 32),
    CHECK ((outcome = 'applied') = (contribution IS NOT NULL)),
    CHECK ((outcome = 'applied') = (reason IS NULL))
) STRICT;

-- Beside the edits, so that listing edits does not read past their blobs.
CREATE TABLE contributions (
    seq   INTEGER PRIMARY KEY REFERENCES edits (seq),
    bytes BLOB NOT NULL
) STRICT;

CREATE TABLE versions (
    number             INTEGER PRIMARY KEY CHECK (number >= 0),
    seq                INTEGER NOT NULL UNIQUE REFERENCES entries (seq),
    kind               TEXT    NOT NULL CHECK (kind IN ('base', 'edit', 'take_back', 'rollback')),
    digest             BLOB    NOT NULL CHECK (length(digest) = 32),
    set_digest         BLOB    NOT NULL CHECK (length(set_digest) = 32),
    -- How many edits are active in it.
    active             INTEGER NOT NULL CHECK (active >= 0),
    -- Hash over its rows of `version_changes`.
    changes_digest     BLOB    NOT NULL CHECK (length(changes_digest) = 32),
    -- Hash over its row of `idempotency`, if there is one.
    idempotency_digest BLOB CHECK (length(idempotency_digest) = 32)
) STRICT;

-- A version's set is its predecessor's with these changes.
CREATE TABLE version_changes (
    version       INTEGER NOT NULL REFERENCES versions (number),
    position      INTEGER NOT NULL CHECK (position >= 0),
    edit          BLOB    NOT NULL REFERENCES edits (id),
    kind          TEXT    NOT NULL CHECK (kind IN ('added', 'removed')),
    superseded_by BLOB REFERENCES edits (id),
    PRIMARY KEY (version, position),
    CHECK (superseded_by IS NULL OR kind = 'removed')
) STRICT, WITHOUT ROWID;

CREATE TABLE idempotency (
    key         TEXT    NOT NULL PRIMARY KEY,
    version     INTEGER NOT NULL UNIQUE REFERENCES versions (number),
    request     BLOB    NOT NULL CHECK (length(request) = 32),
    http_status INTEGER NOT NULL,
    body        TEXT    NOT NULL
) STRICT;

-- The last change of an edit (its status), and the set of a version: both are answered from this index alone.
CREATE UNIQUE INDEX version_changes_by_edit ON version_changes (edit, version, kind);
-- Another edit of the same prompt.
CREATE INDEX edits_by_prompt ON edits (prompt);
-- Rejected or failed edits, newest first.
CREATE INDEX edits_by_outcome ON edits (outcome, seq);
-- What someone did, newest first.
CREATE INDEX entries_by_actor ON entries (actor, seq);

-- Rows are only ever inserted, and only at the tail. The insert triggers also close the door of INSERT OR REPLACE, which
-- deletes rows without firing delete triggers.

CREATE TRIGGER entries_no_update BEFORE UPDATE ON entries
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER entries_no_delete BEFORE DELETE ON entries
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER entries_only_at_the_tail BEFORE INSERT ON entries
WHEN NEW.seq <> (SELECT coalesce(max(seq), 0) + 1 FROM entries)
BEGIN SELECT RAISE(ABORT, 'the log is append-only: not the next entry'); END;

CREATE TRIGGER identity_no_update BEFORE UPDATE ON identity
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER identity_no_delete BEFORE DELETE ON identity
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER identity_only_once BEFORE INSERT ON identity
WHEN EXISTS (SELECT 1 FROM identity)
BEGIN SELECT RAISE(ABORT, 'the log is append-only: it is pinned already'); END;

CREATE TRIGGER edits_no_update BEFORE UPDATE ON edits
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER edits_no_delete BEFORE DELETE ON edits
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER edits_only_at_the_tail BEFORE INSERT ON edits
WHEN NEW.seq <= (SELECT coalesce(max(seq), 0) FROM edits) OR EXISTS (SELECT 1 FROM edits WHERE id = NEW.id)
BEGIN SELECT RAISE(ABORT, 'the log is append-only: not a new edit'); END;

CREATE TRIGGER contributions_no_update BEFORE UPDATE ON contributions
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER contributions_no_delete BEFORE DELETE ON contributions
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER contributions_only_at_the_tail BEFORE INSERT ON contributions
WHEN NEW.seq <= (SELECT coalesce(max(seq), 0) FROM contributions)
BEGIN SELECT RAISE(ABORT, 'the log is append-only: not a new edit''s contribution'); END;

CREATE TRIGGER versions_no_update BEFORE UPDATE ON versions
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER versions_no_delete BEFORE DELETE ON versions
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER versions_only_at_the_tail BEFORE INSERT ON versions
WHEN NEW.number <> (SELECT coalesce(max(number), -1) + 1 FROM versions)
    OR EXISTS (SELECT 1 FROM versions WHERE seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'the log is append-only: not the next version'); END;

CREATE TRIGGER version_changes_no_update BEFORE UPDATE ON version_changes
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER version_changes_no_delete BEFORE DELETE ON version_changes
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER version_changes_only_at_the_tail BEFORE INSERT ON version_changes
WHEN NEW.version <> (SELECT coalesce(max(number), -1) FROM versions)
    OR NEW.position <> (SELECT coalesce(max(position), -1) + 1 FROM version_changes WHERE version = NEW.version)
    OR EXISTS (SELECT 1 FROM version_changes WHERE version = NEW.version AND edit = NEW.edit)
BEGIN SELECT RAISE(ABORT, 'the log is append-only: not the next change of the newest version'); END;

CREATE TRIGGER idempotency_no_update BEFORE UPDATE ON idempotency
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER idempotency_no_delete BEFORE DELETE ON idempotency
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER idempotency_only_once BEFORE INSERT ON idempotency
WHEN EXISTS (SELECT 1 FROM idempotency WHERE key = NEW.key OR version = NEW.version)
BEGIN SELECT RAISE(ABORT, 'the log is append-only: the key or the version has an answer already'); END;
