-- Compaction, with the tables and rules of migrations/sqlite: contributions of edits that were taken back long ago may go, when an
-- entry of the chain names them. Nothing else ever does.

ALTER TABLE entries DROP CONSTRAINT entries_kind_check;
ALTER TABLE entries ADD CONSTRAINT entries_kind_check
    CHECK (kind IN ('identity', 'base', 'edit', 'version', 'compaction'));

CREATE TABLE compactions (
    seq            BIGINT PRIMARY KEY REFERENCES entries (seq),
    -- Edits that left the set before this time were dropped.
    until          TEXT COLLATE "C" NOT NULL,
    dropped        BIGINT NOT NULL CHECK (dropped >= 1),
    -- Hash over its rows of `dropped`.
    dropped_digest BYTEA  NOT NULL CHECK (length(dropped_digest) = 32)
);

-- Edits whose contribution is gone, each with the compaction that dropped it.
CREATE TABLE dropped (
    seq        BIGINT PRIMARY KEY REFERENCES edits (seq),
    compaction BIGINT NOT NULL REFERENCES compactions (seq)
);

CREATE INDEX dropped_by_compaction ON dropped (compaction, seq);

CREATE TRIGGER compactions_no_change BEFORE UPDATE OR DELETE ON compactions
FOR EACH ROW EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER compactions_no_truncate BEFORE TRUNCATE ON compactions EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER dropped_no_change BEFORE UPDATE OR DELETE ON dropped
FOR EACH ROW EXECUTE FUNCTION amend_append_only();
CREATE TRIGGER dropped_no_truncate BEFORE TRUNCATE ON dropped EXECUTE FUNCTION amend_append_only();

CREATE FUNCTION amend_new_compaction() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.seq <> (SELECT max(seq) FROM entries) THEN
        RAISE EXCEPTION 'the log is append-only: not the newest entry''s compaction';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER compactions_only_at_the_tail BEFORE INSERT ON compactions
FOR EACH ROW EXECUTE FUNCTION amend_new_compaction();

-- Only by the compaction that is being written, only what has a contribution, and only what is not active.
CREATE FUNCTION amend_new_dropped() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.compaction <> (SELECT max(seq) FROM entries)
        OR NOT EXISTS (SELECT 1 FROM contributions WHERE seq = NEW.seq)
        OR 'removed' <> coalesce((SELECT c.kind FROM version_changes AS c JOIN edits AS e ON e.id = c.edit
                                  WHERE e.seq = NEW.seq ORDER BY c.version DESC, c.position DESC LIMIT 1), 'never applied') THEN
        RAISE EXCEPTION 'the log is append-only: not an edit that a compaction may drop';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER dropped_only_at_the_tail BEFORE INSERT ON dropped
FOR EACH ROW EXECUTE FUNCTION amend_new_dropped();

DROP TRIGGER contributions_no_change ON contributions;
CREATE TRIGGER contributions_no_update BEFORE UPDATE ON contributions
FOR EACH ROW EXECUTE FUNCTION amend_append_only();
CREATE FUNCTION amend_only_dropped() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM dropped WHERE seq = OLD.seq) THEN
        RAISE EXCEPTION 'the log is append-only';
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER contributions_only_dropped BEFORE DELETE ON contributions
FOR EACH ROW EXECUTE FUNCTION amend_only_dropped();

-- What was dropped does not come back, and a contribution comes with its edit or never.
CREATE OR REPLACE FUNCTION amend_new_contribution() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.seq <> (SELECT coalesce(max(seq), 0) FROM edits)
        OR EXISTS (SELECT 1 FROM contributions WHERE seq = NEW.seq)
        OR EXISTS (SELECT 1 FROM dropped WHERE seq = NEW.seq) THEN
        RAISE EXCEPTION 'the log is append-only: not a new edit''s contribution';
    END IF;
    RETURN NEW;
END $$;
