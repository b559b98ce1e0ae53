-- Compaction: contributions of edits that were taken back long ago may go, when an entry of the chain names them. Nothing
-- else ever does: the triggers below refuse to delete a contribution that no compaction names.

-- SQLite has no other way to let a CHECK take one more value (https://www.sqlite.org/lang_altertable.html#otheralter);
-- no stored byte changes.
PRAGMA writable_schema = ON;
UPDATE sqlite_schema
SET sql = replace(sql, 'CHECK (kind IN (''identity'', ''base'', ''edit'', ''version''))',
                       'CHECK (kind IN (''identity'', ''base'', ''edit'', ''version'', ''compaction''))')
WHERE type = 'table' AND name = 'entries';
PRAGMA writable_schema = RESET;

CREATE TABLE compactions (
    seq            INTEGER PRIMARY KEY REFERENCES entries (seq),
    -- Edits that left the set before this time were dropped.
    until          TEXT    NOT NULL,
    dropped        INTEGER NOT NULL CHECK (dropped >= 1),
    -- Hash over its rows of `dropped`.
    dropped_digest BLOB    NOT NULL CHECK (length(dropped_digest) = 32)
) STRICT;

-- Edits whose contribution is gone, each with the compaction that dropped it.
CREATE TABLE dropped (
    seq        INTEGER PRIMARY KEY REFERENCES edits (seq),
    compaction INTEGER NOT NULL REFERENCES compactions (seq)
) STRICT;

CREATE INDEX dropped_by_compaction ON dropped (compaction, seq);

CREATE TRIGGER compactions_no_update BEFORE UPDATE ON compactions
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER compactions_no_delete BEFORE DELETE ON compactions
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER compactions_only_at_the_tail BEFORE INSERT ON compactions
WHEN NEW.seq <> (SELECT max(seq) FROM entries) OR EXISTS (SELECT 1 FROM compactions WHERE seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'the log is append-only: not the newest entry''s compaction'); END;

CREATE TRIGGER dropped_no_update BEFORE UPDATE ON dropped
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
CREATE TRIGGER dropped_no_delete BEFORE DELETE ON dropped
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;
-- Only by the compaction that is being written, only what has a contribution, and only what is not active.
CREATE TRIGGER dropped_only_at_the_tail BEFORE INSERT ON dropped
WHEN NEW.compaction <> (SELECT max(seq) FROM entries)
    OR EXISTS (SELECT 1 FROM dropped WHERE seq = NEW.seq)
    OR NOT EXISTS (SELECT 1 FROM contributions WHERE seq = NEW.seq)
    OR 'removed' <> coalesce((SELECT c.kind FROM version_changes AS c JOIN edits AS e ON e.id = c.edit
                              WHERE e.seq = NEW.seq ORDER BY c.version DESC LIMIT 1), 'never applied')
BEGIN SELECT RAISE(ABORT, 'the log is append-only: not an edit that a compaction may drop'); END;

DROP TRIGGER contributions_no_delete;
CREATE TRIGGER contributions_no_delete BEFORE DELETE ON contributions
WHEN NOT EXISTS (SELECT 1 FROM dropped WHERE seq = OLD.seq)
BEGIN SELECT RAISE(ABORT, 'the log is append-only'); END;

-- What was dropped does not come back, and a contribution comes with its edit or never.
DROP TRIGGER contributions_only_at_the_tail;
CREATE TRIGGER contributions_only_at_the_tail BEFORE INSERT ON contributions
WHEN NEW.seq <> (SELECT max(seq) FROM edits)
    OR EXISTS (SELECT 1 FROM contributions WHERE seq = NEW.seq)
    OR EXISTS (SELECT 1 FROM dropped WHERE seq = NEW.seq)
BEGIN SELECT RAISE(ABORT, 'the log is append-only: not a new edit''s contribution'); END;
