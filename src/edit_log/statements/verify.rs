//! Feeds all rows, in the order of their entries and from one snapshot, to the [`Checker`]; then looks for rows that no
//! entry heads, and for indexes that disagree with their tables.

use super::{
    Bind, Columns, Session,
    bodies::{Bodies, reading},
    convert::{self, bound},
};
use crate::edit_log::{
    LogError,
    chain::{Entry, EntryKind},
    check::{Checker, VersionRows, contribution_fits, edit_name, entry_name, version_name},
};

/// How many entries are read at once.
const BATCH: i64 = 256;
/// Bytes of what they head that are in memory at once; or it is what a single entry heads.
const BYTES: i64 = 8 << 20;

/// Entries, each with the bytes of what it heads, as far as these can be many.
const SIZED: &str = "
    SELECT n.*, coalesce(CAST(octet_length(c.bytes) AS BIGINT), 0)
              + coalesce(CAST(octet_length(d.request) AS BIGINT), 0) + coalesce(CAST(octet_length(d.report) AS BIGINT), 0)
              + coalesce(CAST(octet_length(i.body) AS BIGINT), 0)
              + 64 * (SELECT count(*) FROM version_changes AS v WHERE v.version = n.version) AS size
    FROM entries AS n LEFT JOIN edits AS d ON d.seq = n.seq LEFT JOIN contributions AS c ON c.seq = n.seq
        LEFT JOIN idempotency AS i ON i.version = n.version
    WHERE n.seq > ? ORDER BY n.seq LIMIT ?";

/// `snapshot` is one: what it is asked twice, it answers alike.
pub async fn check_chain(snapshot: &mut impl Session) -> Result<u64, LogError> {
    let mut checker = Checker::new();
    loop {
        let rows = page(snapshot, checker.entries()).await?;
        if rows.is_empty() {
            break;
        }
        for rows in portions(&rows) {
            check_portion(snapshot, &mut checker, rows).await?;
        }
    }
    let entries = checker.finish()?;
    check_strays(snapshot).await?;
    snapshot.check_indexes().await?;
    Ok(entries)
}

/// The entries after `seq`. Where what they head has a broken page, without its size.
async fn page<S: Session>(snapshot: &mut S, seq: u64) -> Result<Vec<S::Row>, LogError> {
    let binds = [Bind::Number(bound(seq)), Bind::Number(BATCH)];
    snapshot.run(MARK, &[]).await?;
    let sized = snapshot.all(SIZED, &binds).await;
    match settled(snapshot, sized).await {
        Err(LogError::Damaged { .. }) => {
            snapshot.all("SELECT * FROM entries WHERE seq > ? ORDER BY seq LIMIT ?", &binds).await
        }
        sized => sized,
    }
}

/// Where a transaction can go on from after damage; PostgreSQL would otherwise answer nothing more in it.
const MARK: &str = "SAVEPOINT mark";

/// What was read since the mark, which goes. After damage it is as if it had not been asked for.
async fn settled<T>(snapshot: &mut impl Session, read: Result<T, LogError>) -> Result<T, LogError> {
    match &read {
        Ok(_) => {}
        Err(LogError::Damaged { .. }) => snapshot.run("ROLLBACK TO SAVEPOINT mark", &[]).await?,
        Err(_) => return read,
    }
    snapshot.run("RELEASE SAVEPOINT mark", &[]).await?;
    read
}

/// Splits entries into runs that head at most [`BYTES`], or are a single one.
fn portions<R: Columns>(rows: &[R]) -> Vec<&[R]> {
    let mut portions = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (at, row) in rows.iter().enumerate() {
        // One whose size is not known stands alone.
        let size = row.number("size").ok().flatten().unwrap_or(BYTES + 1);
        if at > start && bytes + size > BYTES {
            portions.push(&rows[start..at]);
            (start, bytes) = (at, 0);
        }
        bytes = bytes.saturating_add(size);
    }
    portions.push(&rows[start..]);
    portions
}

/// Some entries and what they head. Where a page is broken they are read one by one, so that it is named.
async fn check_portion<S: Session>(snapshot: &mut S, checker: &mut Checker, rows: &[S::Row]) -> Result<(), LogError> {
    snapshot.run(MARK, &[]).await?;
    let bodies = read(snapshot, rows).await;
    match settled(snapshot, bodies).await {
        Err(LogError::Damaged { .. }) if rows.len() > 1 => {
            for row in rows.chunks(1) {
                let bodies = read(snapshot, row).await;
                check_rows(snapshot, checker, row, &bodies).await?;
            }
            Ok(())
        }
        bodies => check_rows(snapshot, checker, rows, &bodies).await,
    }
}

/// What entries head, up to the first that is none.
async fn read<S: Session>(snapshot: &mut S, rows: &[S::Row]) -> Result<Bodies<S::Row>, LogError> {
    let entries: Vec<Entry> = rows.iter().map_while(|row| convert::entry(row).ok()).map(|(entry, ..)| entry).collect();
    Bodies::read(snapshot, &entries.iter().collect::<Vec<_>>()).await
}

async fn check_rows<S: Session>(
    snapshot: &mut S,
    checker: &mut Checker,
    rows: &[S::Row],
    bodies: &Result<Bodies<S::Row>, LogError>,
) -> Result<(), LogError> {
    for row in rows {
        let (entry, prev, hash) = convert::entry(row)?;
        checker.entry(&entry, &prev, &hash)?;
        match bodies {
            Ok(bodies) => check_body(snapshot, checker, &entry, bodies).await?,
            Err(error) => return Err(error.clone()),
        }
    }
    Ok(())
}

async fn check_body<S: Session>(
    session: &mut S,
    checker: &mut Checker,
    entry: &Entry,
    bodies: &Bodies<S::Row>,
) -> Result<(), LogError> {
    match entry.kind {
        EntryKind::Identity => check_identity(session, checker, entry).await,
        EntryKind::Edit => check_edit(checker, entry, bodies),
        EntryKind::Compaction => check_compaction(session, checker, entry).await,
        EntryKind::Base | EntryKind::Version => checker.version(entry, &version_rows(entry, bodies)?),
    }
}

async fn check_identity(session: &mut impl Session, checker: &mut Checker, entry: &Entry) -> Result<(), LogError> {
    let row = session
        .first("SELECT * FROM identity WHERE seq = ?", &[Bind::Number(bound(entry.seq))])
        .await?
        .ok_or_else(|| missing("identity", entry_name(entry.seq)))?;
    checker.identity(entry, convert::identity(&row)?)
}

fn check_edit(checker: &mut Checker, entry: &Entry, bodies: &Bodies<impl Columns>) -> Result<(), LogError> {
    let row = bodies.edits.get(&bound(entry.seq)).ok_or_else(|| missing("edits", entry_name(entry.seq)))?;
    let edit = convert::edit_body(row)?;
    checker.edit(entry, &edit)?;
    let bytes = row.bytes("bytes").map_err(|why| LogError::damaged("contributions", edit_name(edit.id), why))?;
    if edit.contribution.is_some() && bytes.is_none() {
        checker.absent(edit.id);
        return Ok(());
    }
    contribution_fits(edit.id, edit.contribution.as_ref(), bytes)
}

async fn check_compaction(session: &mut impl Session, checker: &mut Checker, entry: &Entry) -> Result<(), LogError> {
    let binds = [Bind::Number(bound(entry.seq))];
    let row = session
        .first("SELECT * FROM compactions WHERE seq = ?", &binds)
        .await
        .map_err(|error| reading("compactions", entry_name(entry.seq), error))?
        .ok_or_else(|| missing("compactions", entry_name(entry.seq)))?;
    let body = convert::compaction(&row)?;
    let sql =
        "SELECT e.seq, e.id FROM dropped AS d JOIN edits AS e ON e.seq = d.seq WHERE d.compaction = ? ORDER BY d.seq";
    let dropped = session.all(sql, &binds).await.map_err(|error| reading("dropped", entry_name(entry.seq), error))?;
    let edits = dropped.iter().map(convert::edit_id).collect::<Result<Vec<_>, _>>()?;
    checker.compaction(entry, &body, &edits)
}

fn version_rows(entry: &Entry, bodies: &Bodies<impl Columns>) -> Result<VersionRows, LogError> {
    let Some(number) = entry.version else {
        return Err(LogError::damaged("entries", entry_name(entry.seq), "it names no version"));
    };
    let key = bound(number);
    let row = bodies.versions.get(&key).ok_or_else(|| missing("versions", version_name(number)))?;
    let mut version = convert::version_rows(row)?;
    let changes = bodies.changes.get(&key).map_or(&[][..], Vec::as_slice);
    version.changes = changes.iter().map(convert::change_body).collect::<Result<_, _>>()?;
    version.idempotency = bodies.answers.get(&key).map(convert::idempotency_body).transpose()?;
    Ok(version)
}

/// Rows that no entry leads to: each query gives the number of the first one in its table.
const STRAYS: [(&str, &str, &str); 8] = [
    (
        "identity",
        "seq",
        "SELECT min(seq) AS stray FROM identity AS i
         WHERE NOT EXISTS (SELECT 1 FROM entries AS e WHERE e.seq = i.seq AND e.kind = 'identity')",
    ),
    (
        "edits",
        "seq",
        "SELECT min(seq) AS stray FROM edits AS d
         WHERE NOT EXISTS (SELECT 1 FROM entries AS e WHERE e.seq = d.seq AND e.kind = 'edit')",
    ),
    (
        "contributions",
        "seq",
        "SELECT min(seq) AS stray FROM contributions AS c WHERE NOT EXISTS (SELECT 1 FROM edits AS d WHERE d.seq = c.seq)",
    ),
    (
        "versions",
        "version",
        "SELECT min(number) AS stray FROM versions AS v
         WHERE NOT EXISTS (SELECT 1 FROM entries AS e WHERE e.seq = v.seq AND e.version = v.number)",
    ),
    (
        "version_changes",
        "version",
        "SELECT min(version) AS stray FROM version_changes AS c
         WHERE NOT EXISTS (SELECT 1 FROM versions AS v WHERE v.number = c.version)",
    ),
    (
        "idempotency",
        "version",
        "SELECT min(version) AS stray FROM idempotency AS i
         WHERE NOT EXISTS (SELECT 1 FROM versions AS v WHERE v.number = i.version)",
    ),
    (
        "compactions",
        "seq",
        "SELECT min(seq) AS stray FROM compactions AS c
         WHERE NOT EXISTS (SELECT 1 FROM entries AS e WHERE e.seq = c.seq AND e.kind = 'compaction')",
    ),
    (
        "dropped",
        "seq",
        "SELECT min(seq) AS stray FROM dropped AS d
         WHERE NOT EXISTS (SELECT 1 FROM compactions AS c WHERE c.seq = d.compaction)
            OR NOT EXISTS (SELECT 1 FROM edits AS e WHERE e.seq = d.seq)",
    ),
];

async fn check_strays(session: &mut impl Session) -> Result<(), LogError> {
    for (table, key, first) in STRAYS {
        let row = session.first(first, &[]).await?;
        let stray = row.as_ref().map(|row| row.number("stray")).transpose();
        if let Some(number) = stray.map_err(|why| LogError::damaged(table, key, why))?.flatten() {
            return Err(LogError::damaged(table, format!("{key} {number}"), "no entry leads to it"));
        }
    }
    Ok(())
}

fn missing(table: &'static str, row: String) -> LogError {
    LogError::damaged(table, row, "is missing")
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sized(Option<i64>);

    impl Columns for Sized {
        fn number(&self, name: &str) -> Result<Option<i64>, String> {
            assert_eq!(name, "size");
            Ok(self.0)
        }

        fn text(&self, name: &str) -> Result<Option<String>, String> {
            Err(name.to_owned())
        }

        fn bytes(&self, name: &str) -> Result<Option<&[u8]>, String> {
            Err(name.to_owned())
        }
    }

    #[test]
    fn a_portion_is_within_its_bytes_or_a_single_entry() {
        let sizes = [Some(1), Some(BYTES - 1), Some(1), Some(3 * BYTES), Some(5), Some(6), None, Some(7)];
        let rows = sizes.map(Sized);
        let found: Vec<usize> = portions(&rows).iter().map(|portion| portion.len()).collect();
        assert_eq!(found, [2, 1, 1, 2, 1, 1]);
        assert_eq!(portions(&rows[..1]).len(), 1);
    }
}
