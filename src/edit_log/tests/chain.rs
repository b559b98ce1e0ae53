//! Law 6: whatever was changed behind the log's back, the chain names the first row that does not fit.

use uuid::Uuid;

over_both_databases! {
    a_changed_column_of_any_table_names_its_row,
    a_changed_edit_or_contribution_names_the_edit,
    a_missing_row_is_named,
    a_row_that_no_entry_leads_to_is_named,
    a_damaged_contribution_is_never_handed_out,
    a_log_cut_at_its_tail_is_a_valid_shorter_log,
    what_is_read_together_is_named_alone,
}

use super::{Database, Fixture, answer, edit, over_both_databases, without_effect};
use crate::edit_log::{LogError, NewEdit, NewVersion, Outcome, VersionKind, shared_by_replicas};

/// Versions 0 to 3 over entries 1 to 8; returns the applied edits, oldest first.
///
/// 1 identity, 2 base, 3 edit, 4 version 1 (with an answer), 5 rejected, 6 edit, 7 version 2, 8 version 3 (take back).
async fn history(database: &Database) -> (Fixture, [Uuid; 2]) {
    let fixture = Fixture::new(database).await;
    let (one, two) = (edit("one"), edit("two"));
    let ids = [one.id, two.id];
    let version =
        NewVersion { edits: vec![one], idempotency: Some(answer("key")), ..fixture.next(VersionKind::Edit).await };
    fixture.log.commit(version).await.unwrap();
    fixture.log.record(vec![without_effect("three", Outcome::Rejected("no".into()))]).await.unwrap();
    fixture.apply(vec![two]).await;
    fixture.take_back(ids[0]).await;
    assert_eq!(fixture.log.check_chain().await.unwrap(), 8);
    (fixture, ids)
}

/// Carries out `sql` as someone who has taken triggers and conditions away.
async fn tamper(fixture: &Fixture, sql: &str) {
    let free = if shared_by_replicas(&fixture.url) { FREE_POSTGRES } else { FREE_SQLITE };
    let triggers = if shared_by_replicas(&fixture.url) { String::new() } else { without_triggers() };
    fixture.execute(&format!("{triggers}{free};{sql}")).await.unwrap();
}

const FREE_SQLITE: &str = "PRAGMA ignore_check_constraints = ON";

/// As a replica no trigger fires and no foreign key is looked at. `zeroblob` is SQLite's.
const FREE_POSTGRES: &str = "
    SET session_replication_role = replica;
    DO $$ DECLARE row record; BEGIN
        FOR row IN SELECT conname, conrelid::regclass AS owner FROM pg_constraint
                   WHERE contype = 'c' AND connamespace = 'public'::regnamespace LOOP
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', row.owner, row.conname);
        END LOOP;
    END $$;
    CREATE OR REPLACE FUNCTION zeroblob(n int) RETURNS bytea LANGUAGE sql AS
        'SELECT decode(repeat(''00'', n), ''hex'')'";

/// Statements that drop every trigger of the schema.
fn without_triggers() -> String {
    let schema = include_str!("../../../migrations/sqlite/0001_log.sql");
    let names = schema.lines().filter_map(|line| line.strip_prefix("CREATE TRIGGER ")?.split(' ').next());
    names.map(|name| format!("DROP TRIGGER IF EXISTS {name};")).collect()
}

async fn named(database: &Database, sql: &str) -> (&'static str, String, [Uuid; 2]) {
    let (fixture, ids) = history(database).await;
    tamper(&fixture, sql).await;
    match fixture.log.check_chain().await {
        Err(LogError::Damaged { table, row, why }) => {
            assert!(!why.is_empty());
            (table, row, ids)
        }
        other => panic!("{sql}: {other:?}"),
    }
}

async fn a_changed_column_of_any_table_names_its_row(database: &Database) {
    let cases = [
        ("UPDATE entries SET at = '2020-01-01T00:00:00.000000000Z' WHERE seq = 3", "entries", "seq 3"),
        ("UPDATE entries SET kind = 'version' WHERE seq = 5", "entries", "seq 5"),
        ("UPDATE entries SET kind = 'nonsense' WHERE seq = 5", "entries", "seq 5"),
        ("UPDATE entries SET version = 2 WHERE seq = 4", "entries", "seq 4"),
        ("UPDATE entries SET actor = 'eve' WHERE seq = 8", "entries", "seq 8"),
        ("UPDATE entries SET body_digest = zeroblob(32) WHERE seq = 6", "entries", "seq 6"),
        ("UPDATE entries SET prev_hash = zeroblob(32) WHERE seq = 6", "entries", "seq 6"),
        ("UPDATE entries SET hash = zeroblob(32) WHERE seq = 6", "entries", "seq 6"),
        ("UPDATE entries SET hash = zeroblob(31) WHERE seq = 6", "entries", "seq 6"),
        ("UPDATE identity SET composition = 'joint'", "identity", "seq 1"),
        ("UPDATE identity SET editor = zeroblob(32)", "identity", "seq 1"),
        ("UPDATE versions SET digest = zeroblob(32) WHERE number = 0", "versions", "version 0"),
        ("UPDATE versions SET kind = 'rollback' WHERE number = 3", "versions", "version 3"),
        ("UPDATE versions SET active = 9 WHERE number = 2", "versions", "version 2"),
        ("UPDATE versions SET seq = 99 WHERE number = 2", "versions", "version 2"),
        ("UPDATE versions SET idempotency_digest = NULL WHERE number = 1", "versions", "version 1"),
        ("UPDATE version_changes SET kind = 'added' WHERE version = 3", "version_changes", "version 3"),
        ("UPDATE version_changes SET superseded_by = edit WHERE version = 3", "version_changes", "version 3"),
        ("UPDATE idempotency SET body = '{}'", "idempotency", "key \"key\""),
        ("UPDATE idempotency SET key = 'other'", "idempotency", "key \"other\""),
        ("UPDATE idempotency SET http_status = 200", "idempotency", "key \"key\""),
    ];
    for (sql, table, row) in cases {
        let (found_table, found_row, _) = named(database, sql).await;
        assert_eq!((found_table, found_row.as_str()), (table, row), "{sql}");
    }
}

async fn a_changed_edit_or_contribution_names_the_edit(database: &Database) {
    let columns = ["received_at = 'x'", "prompt = 'x'", "target = 'x'", "request = '{}'", "report = '{}'"];
    for column in columns {
        let (table, row, ids) = named(database, &format!("UPDATE edits SET {column} WHERE seq = 6")).await;
        assert_eq!((table, row), ("edits", format!("edit {}", ids[1])), "{column}");
    }
    for column in ["reason = 'yes'", "outcome = 'failed'"] {
        let (table, row, _) = named(database, &format!("UPDATE edits SET {column} WHERE seq = 5")).await;
        assert!(table == "edits" && row.starts_with("edit "), "{column}: {table} {row}");
    }
    let flipped = "UPDATE contributions SET bytes = (SELECT bytes FROM contributions WHERE seq = 6) WHERE seq = 3";
    let (table, row, ids) = named(database, flipped).await;
    assert_eq!((table, row), ("contributions", format!("edit {}", ids[0])));
}

async fn a_missing_row_is_named(database: &Database) {
    let cases = [
        ("DELETE FROM entries WHERE seq = 5", "entries", "seq 5"),
        ("DELETE FROM identity", "identity", "seq 1"),
        ("DELETE FROM edits WHERE seq = 5", "edits", "seq 5"),
        ("DELETE FROM versions WHERE number = 2", "versions", "version 2"),
        ("DELETE FROM version_changes WHERE version = 2", "version_changes", "version 2"),
        ("DELETE FROM idempotency", "idempotency", "version 1"),
    ];
    for (sql, table, row) in cases {
        let (found_table, found_row, _) = named(database, sql).await;
        assert_eq!((found_table, found_row.as_str()), (table, row), "{sql}");
    }
    let (table, row, ids) = named(database, "DELETE FROM contributions WHERE seq = 6").await;
    assert_eq!((table, row), ("contributions", format!("edit {}", ids[1])));
    // The tail's version is gone, but its edit still waits for it.
    let (table, row, ids) = named(database, "DELETE FROM entries WHERE seq >= 7").await;
    assert_eq!((table, row), ("edits", format!("edit {}", ids[1])));
}

async fn a_row_that_no_entry_leads_to_is_named(database: &Database) {
    let cases = [
        ("INSERT INTO contributions VALUES (99, zeroblob(1))", "contributions", "seq 99"),
        (
            "INSERT INTO edits SELECT 99, zeroblob(16), received_at, prompt, target, request, report, outcome, reason,
             contribution FROM edits WHERE seq = 3",
            "edits",
            "seq 99",
        ),
        (
            "INSERT INTO versions SELECT 4, 99, kind, digest, set_digest, active, changes_digest, NULL FROM versions
             WHERE number = 3",
            "versions",
            "version 4",
        ),
        (
            "INSERT INTO version_changes SELECT 9, 0, edit, kind, NULL FROM version_changes LIMIT 1",
            "version_changes",
            "version 9",
        ),
        (
            "INSERT INTO version_changes SELECT 1, 7, edit, kind, NULL FROM version_changes WHERE version = 2",
            "version_changes",
            "version 1",
        ),
        ("INSERT INTO idempotency VALUES ('k', 9, zeroblob(32), 201, '{}')", "idempotency", "version 9"),
        ("INSERT INTO idempotency VALUES ('k', 2, zeroblob(32), 201, '{}')", "idempotency", "key \"k\""),
        (
            "INSERT INTO identity SELECT 9, base, editor, composition, base_weights, empty_set FROM identity",
            "identity",
            "seq 9",
        ),
    ];
    for (sql, table, row) in cases {
        let (found_table, found_row, _) = named(database, sql).await;
        assert_eq!((found_table, found_row.as_str()), (table, row), "{sql}");
    }
}

async fn a_damaged_contribution_is_never_handed_out(database: &Database) {
    let (fixture, ids) = history(database).await;
    tamper(&fixture, "UPDATE contributions SET bytes = zeroblob(1) WHERE seq = 3").await;
    let error = fixture.log.contribution(ids[0]).await.unwrap_err();
    assert!(matches!(error, LogError::Damaged { table: "contributions", .. }), "{error}");
    fixture.log.contribution(ids[1]).await.unwrap();
}

/// Entries are read by the hundred, and what they head by so many bytes: more of both than at once.
async fn what_is_read_together_is_named_alone(database: &Database) {
    let fixture = Fixture::new(database).await;
    let rejected = |i: usize| without_effect(&format!("prompt {i}"), Outcome::Rejected("no".into()));
    fixture.log.record((0..300).map(rejected).collect()).await.unwrap();
    let large = |i: u8| NewEdit { contribution: Some(vec![i; 3 << 20]), ..edit(&format!("large {i}")) };
    let edits: Vec<NewEdit> = (0..5).map(large).collect();
    let ids: Vec<Uuid> = edits.iter().map(|edit| edit.id).collect();
    fixture.apply(edits).await;
    fixture.log.record((300..600).map(rejected).collect()).await.unwrap();
    assert_eq!(fixture.log.check_chain().await.unwrap(), 2 + 300 + 6 + 300);
    // The last first: of several the first is named.
    for (seq, table) in [(607, "edits"), (305, "contributions"), (303, "contributions"), (290, "edits")] {
        match table {
            "edits" => tamper(&fixture, &format!("UPDATE edits SET target = 'x' WHERE seq = {seq}")).await,
            _ => tamper(&fixture, &format!("UPDATE contributions SET bytes = zeroblob(7) WHERE seq = {seq}")).await,
        }
        match fixture.log.check_chain().await {
            Err(LogError::Damaged { table: found, row, .. }) => {
                assert_eq!(found, table, "{row}");
                if table == "contributions" {
                    assert_eq!(row, format!("edit {}", ids[seq - 303]));
                }
            }
            other => panic!("{seq}: {other:?}"),
        }
    }
    tamper(&fixture, "DELETE FROM entries WHERE seq = 258").await;
    let error = fixture.log.check_chain().await.unwrap_err();
    assert!(matches!(&error, LogError::Damaged { table: "entries", row, .. } if row == "seq 258"), "{error}");
}

/// What the chain can not see, as its description says.
async fn a_log_cut_at_its_tail_is_a_valid_shorter_log(database: &Database) {
    let (fixture, _) = history(database).await;
    let hash = fixture.log.head().await.unwrap().entry_hash;
    tamper(&fixture, "DELETE FROM version_changes WHERE version = 3").await;
    tamper(&fixture, "DELETE FROM versions WHERE number = 3").await;
    tamper(&fixture, "DELETE FROM entries WHERE seq = 8").await;
    assert_eq!(fixture.log.check_chain().await.unwrap(), 7);
    assert_ne!(fixture.log.head().await.unwrap().entry_hash, hash, "but a kept hash of the head shows it");
}
