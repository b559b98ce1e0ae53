//! The writer's place in a PostgreSQL database: an advisory lock of a session that the server ends when it is silent.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use sqlx::{
    ConnectOptions, Connection, PgConnection, Row,
    postgres::{PgListener, PgPoolOptions, PgRow},
};
use tokio::sync::Mutex;

use super::{
    CHANNEL, PostgresLog,
    open::{COMMITTING, Settings},
};
use crate::edit_log::{
    LogError,
    lock::this_process,
    seat::{LEASE, Seat, Survey},
};

/// The advisory lock: "amend" and a number in ASCII. A database holds one log, so one number is enough.
const LOCK: i64 = 0x61_6d_65_6e_64_00_00_01;
/// How long the server may take to answer the one who has the place, or wants it.
const ANSWER: Duration = Duration::from_millis(2500);
/// How long it may take to answer how the log stands, which is asked more often than that.
const SURVEY: Duration = Duration::from_secs(1);

/// The writer's place at a [`PostgresLog`].
///
/// It is a session of its own that holds an advisory lock. The server frees the lock when the session ends, and ends the
/// session when nothing was said on it for [`LEASE`]: so the place is free soon after its holder was killed, and soon after
/// it was stopped or cut off as well, and no clock but the server's is asked.
pub struct PostgresSeat {
    settings: Settings,
    address: Option<String>,
    /// The log's own, which its commits are held against.
    epoch: Arc<AtomicU64>,
    // The session that has the lock, or last tried to get it.
    holding: Mutex<Option<PgConnection>>,
    // The session that is told of commits, and asked how the log stands.
    listening: Mutex<Option<PgListener>>,
}

impl PostgresLog {
    /// The writer's place at this log, for this process, which others reach at `address`. One is enough.
    pub fn seat(&self, address: Option<String>) -> PostgresSeat {
        let (settings, epoch) = (self.settings.clone(), Arc::clone(&self.epoch));
        PostgresSeat { settings, address, epoch, holding: Mutex::default(), listening: Mutex::default() }
    }
}

#[async_trait]
impl Seat for PostgresSeat {
    async fn take(&self) -> Result<Option<u64>, LogError> {
        let mut holding = self.holding.lock().await;
        let session = holding.take();
        let tried = within(ANSWER, async {
            let mut session = match session {
                Some(session) => session,
                None => self.session().await?,
            };
            let epoch = self.try_take(&mut session).await?;
            Ok((session, epoch))
        });
        // After an error the session is gone, and with it whatever it held.
        let (session, epoch) = tried.await?;
        *holding = Some(session);
        if let Some(epoch) = epoch {
            self.epoch.store(epoch, Ordering::SeqCst);
        }
        Ok(epoch)
    }

    async fn keep(&self) -> Result<(), LogError> {
        let mut holding = self.holding.lock().await;
        let has_it = self.epoch.load(Ordering::SeqCst) > 0;
        let Some(mut session) = holding.take().filter(|_| has_it) else {
            return Err(LogError::Storage("this process does not have the writer's place".into()));
        };
        let kept = within(ANSWER, async {
            sqlx::query("SELECT 1").execute(&mut session).await?;
            Ok(session)
        });
        *holding = Some(kept.await.inspect_err(|_| self.epoch.store(0, Ordering::SeqCst))?);
        Ok(())
    }

    async fn leave(&self) {
        self.epoch.store(0, Ordering::SeqCst);
        if let Some(session) = self.holding.lock().await.take() {
            let closed = within(ANSWER, session.close()).await;
            if let Err(error) = closed {
                tracing::debug!(%error, "the session that held the writer's place did not end in order");
            }
        }
    }

    async fn survey(&self) -> Result<Survey, LogError> {
        let mut listening = self.listening.lock().await;
        let listener = listening.take();
        let asked = within(SURVEY, async {
            let mut listener = match listener {
                Some(listener) => listener,
                None => self.listener().await?,
            };
            let sql = "SELECT (SELECT max(number) FROM versions) AS newest, epoch, holder, address FROM writer";
            let row = sqlx::query(sql).fetch_one(&mut listener).await?;
            Ok((listener, survey_of(&row)?))
        });
        let (listener, survey) = Box::pin(asked).await?;
        *listening = Some(listener);
        Ok(survey)
    }

    async fn changed(&self, limit: Duration) {
        let mut listening = self.listening.lock().await;
        let told = match listening.as_mut() {
            Some(listener) => tokio::time::timeout(limit, told(listener)).await,
            None => Ok(Err(sqlx::Error::PoolClosed)),
        };
        if matches!(told, Ok(Err(_))) {
            // The next survey makes another one.
            *listening = None;
            tokio::time::sleep(limit).await;
        }
    }
}

impl PostgresSeat {
    async fn session(&self) -> sqlx::Result<PgConnection> {
        let (lease, answer) = (LEASE.as_millis().to_string(), ANSWER.as_millis().to_string());
        let limits = [("idle_session_timeout", lease), ("statement_timeout", answer)];
        self.settings.options.clone().application_name("amend-writer").options(limits).connect().await
    }

    async fn listener(&self) -> sqlx::Result<PgListener> {
        let options = self.settings.options.clone().application_name("amend-listener");
        let pool = PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.ignore_pool_close_event(true);
        listener.listen(CHANNEL).await?;
        Ok(listener)
    }

    async fn try_take(&self, session: &mut PgConnection) -> sqlx::Result<Option<u64>> {
        let free: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock($1)").bind(LOCK).fetch_one(&mut *session).await?;
        if !free {
            return Ok(None);
        }
        // A writer that was stopped in the middle of a commit holds rows that the next commit needs.
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE datname = current_database() AND usename = current_user
                     AND starts_with(application_name, $1) AND application_name <> $2";
        sqlx::query(end).bind(COMMITTING).bind(&self.settings.committing).execute(&mut *session).await?;
        let begin = "UPDATE writer SET epoch = epoch + 1, holder = $1, address = $2 RETURNING epoch";
        let begun = sqlx::query_scalar::<_, i64>(begin).bind(this_process()).bind(&self.address);
        let epoch = begun.fetch_one(&mut *session).await?;
        sqlx::query("SELECT pg_notify($1, '')").bind(CHANNEL).execute(&mut *session).await?;
        Ok(u64::try_from(epoch).ok())
    }
}

/// Waits for one notification; the error is that the session is lost.
async fn told(listener: &mut PgListener) -> sqlx::Result<()> {
    listener.try_recv().await?.map(drop).ok_or(sqlx::Error::WorkerCrashed)?;
    // Several at once are one reason to look.
    while listener.next_buffered().is_some() {}
    Ok(())
}

fn survey_of(row: &PgRow) -> sqlx::Result<Survey> {
    let number = |number: i64| u64::try_from(number).unwrap_or(0);
    Ok(Survey {
        newest: row.try_get::<Option<i64>, _>("newest")?.map(number),
        epoch: number(row.try_get("epoch")?),
        holder: row.try_get("holder")?,
        address: row.try_get("address")?,
    })
}

async fn within<T>(limit: Duration, asked: impl Future<Output = sqlx::Result<T>> + Send) -> Result<T, LogError> {
    match tokio::time::timeout(limit, asked).await {
        Ok(answer) => Ok(answer?),
        Err(_) => Err(LogError::Storage(format!("the database did not answer within {} s", limit.as_secs_f64()))),
    }
}
