//! Which database a URL names.

use std::sync::Arc;

use super::{EditLog, LogError, postgres::PostgresLog, sqlite::SqliteLog};

/// Whether the log at `url` is one that several processes may share: PostgreSQL's.
pub fn shared_by_replicas(url: &str) -> bool {
    url.starts_with("postgres:") || url.starts_with("postgresql:")
}

/// Opens the log at `url` for reading alone, beside a writer or without one.
pub async fn open_read_only(url: &str) -> Result<Arc<dyn EditLog>, LogError> {
    if shared_by_replicas(url) {
        Ok(Arc::new(PostgresLog::open_read_only(url).await?))
    } else {
        Ok(Arc::new(SqliteLog::open_read_only(url).await?))
    }
}

/// A database's URL as it may be shown: what stands before the host, and every parameter, is left out.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://").filter(|_| shared_by_replicas(url)) else { return url.to_owned() };
    let rest = rest.split_once('?').map_or(rest, |(place, _)| place);
    format!("{scheme}://{}", rest.rsplit_once('@').map_or(rest, |(_, place)| place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shown_url_has_no_password() {
        let shown = without_password("postgres://amend:p@ss@db.example:5432/amend?password=x");
        assert_eq!(shown, "postgres://db.example:5432/amend");
        assert_eq!(without_password("sqlite:///var/lib/a@b.db"), "sqlite:///var/lib/a@b.db");
    }
}
