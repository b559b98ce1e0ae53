//! Cursor paging: newest first, so that rows that arrive while a client pages never shift a page.

use super::error::{Code, Problem};

/// Page size when none is asked for.
pub(super) const DEFAULT_LIMIT: u32 = 50;
/// Largest page.
pub(super) const MAX_LIMIT: u32 = 200;

/// The page size, checked.
pub(super) fn limit(given: u32) -> Result<u32, Problem> {
    if (1..=MAX_LIMIT).contains(&given) {
        return Ok(given);
    }
    Err(Problem::new(Code::InvalidParameter, format!("limit must be from 1 to {MAX_LIMIT}. Given: {given}"))
        .with("field", "limit")
        .with("limit", MAX_LIMIT)
        .with("given", given))
}

/// A cursor for rows before this position.
pub(super) fn cursor(before: u64) -> String {
    before.to_string()
}

/// The position that a cursor stands for. Positions fit the log's 63 bits.
pub(super) fn before(cursor: Option<&str>) -> Result<Option<u64>, Problem> {
    let Some(cursor) = cursor else { return Ok(None) };
    match cursor.parse::<u64>() {
        Ok(position) if i64::try_from(position).is_ok() => Ok(Some(position)),
        _ => Err(Problem::new(Code::InvalidParameter, "cursor is not one that this service gave out")
            .with("field", "cursor")),
    }
}
