//! All SQL. One text for SQLite and Postgres, native types on each; one file per noun.
//!
//! Must not know: HTTP, S3, containers. Nothing awaits anything but the database inside a transaction.

mod changes;
mod files;
mod instances;
mod jobs;
mod json;
mod lists;
mod once;
mod queue;
mod solvers;
mod studies;
mod usage;
mod users;
mod webhooks;

use std::{str::FromStr, sync::Arc, time::Duration};

use sqlx::{
    Connection, PgConnection, PgPool, Postgres, Sqlite, SqlitePool, Transaction,
    migrate::MigrateError,
    postgres::PgPoolOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use tokio::time::{error::Elapsed, timeout};

pub use changes::Changed;
pub use instances::Instance;
pub use jobs::{Claimed, JobStep, LogChunk};
pub use lists::Window;
pub use once::Once;

use crate::domain::job::IllegalTransition;

/// How long a connection to a server is taken to be as it was.
const IDLE: Duration = Duration::from_secs(1);

/// How long an answer is waited for. sqlx has no limit, and what a server that vanished still owes never comes.
const ANSWER_WITHIN: Duration = Duration::from_mins(1);

/// How long a server may take to say goodbye.
const CLOSE_WITHIN: Duration = Duration::from_secs(5);

/// The open database. Cheap to clone.
#[derive(Clone)]
pub struct Db {
    pool: Pool,
    changes: Arc<changes::Changes>,
}

#[derive(Clone)]
enum Pool {
    /// SQLite lets one write at a time, and has the others sleep and try again: here they queue for its only connection that may write.
    Sqlite {
        readers: SqlitePool,
        writer: SqlitePool,
    },
    Postgres(PgPool),
}

/// A transaction on whichever database is open. Rolls back when dropped.
enum Tx {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// Runs one block, which only reads, on whichever database is open.
macro_rules! on {
    ($db:expr, |$c:ident| $body:expr) => {
        match &$db.pool {
            crate::store::Pool::Sqlite { readers: $c, .. } => $body,
            crate::store::Pool::Postgres($c) => $body,
        }
    };
}

/// The same for a block that writes.
macro_rules! writing {
    ($db:expr, |$c:ident| $body:expr) => {
        match &$db.pool {
            crate::store::Pool::Sqlite { writer: $c, .. } => $body,
            crate::store::Pool::Postgres($c) => $body,
        }
    };
}

/// Runs one block inside a transaction.
macro_rules! within {
    ($tx:expr, |$c:ident| $body:expr) => {
        match &mut $tx {
            crate::store::Tx::Sqlite(tx) => {
                let $c = &mut **tx;
                $body
            }
            crate::store::Tx::Postgres(tx) => {
                let $c = &mut **tx;
                $body
            }
        }
    };
}

use {on, within, writing};

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It is not there, or belongs to somebody else: callers cannot tell which.
    #[error("{what} `{id}` not found")]
    NotFound {
        /// The noun.
        what: &'static str,
        /// As it was asked for.
        id: String,
    },
    /// It is there already, and is something else.
    #[error("{0}")]
    Conflict(String),
    /// The job stands elsewhere.
    #[error(transparent)]
    Illegal(#[from] IllegalTransition),
    /// The owner has as many jobs in the queue as there may be.
    #[error(
        "you have {0} jobs in the queue, and there may be no more; wait until one of them runs, or stop one"
    )]
    QueueFull(i64),
    /// The database failed.
    #[error("database, {doing}")]
    Database {
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        source: sqlx::Error,
    },
    /// The database could not be brought to this version's schema.
    #[error("database, migrating")]
    Migration(#[source] MigrateError),
    /// The address is neither `sqlite:` nor `postgres:`.
    #[error("a database address must begin with sqlite: or postgres:, not with `{0}`")]
    Address(String),
}

impl Error {
    /// Whether the database cannot be reached or has no time: narrower than [`Self::is_transient`], which would rather try in vain than
    /// lose something. For clients that repeat by themselves, and give up on what never gets better.
    pub fn is_away(&self) -> bool {
        let Self::Database { source, .. } = self else { return false };
        match source.as_database_error().map(|error| error.code().unwrap_or_default()) {
            // SQLite's busy and locked; Postgres' classes: connection lost, deadlock or serialisation, resources, shutdown.
            Some(code) => {
                matches!(&*code, "5" | "6" | "261" | "262" | "517" | "773")
                    || code.len() == 5
                        && ["08", "40", "53", "57"].iter().any(|class| code.starts_with(class))
            }
            None => self.is_transient(),
        }
    }

    /// Whether the same call may succeed later: the database was away, busy or full. What breaks a rule never will.
    pub fn is_transient(&self) -> bool {
        let Self::Database { source, .. } = self else { return false };
        if let sqlx::Error::Database(error) = source {
            let rule = error.is_unique_violation()
                || error.is_foreign_key_violation()
                || error.is_check_violation();
            // Class 22 of SQLSTATE: the data themselves are refused.
            return !rule
                && !error.code().is_some_and(|code| code.len() == 5 && code.starts_with("22"));
        }
        matches!(
            source,
            sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::Protocol(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                // A connection that was given back in the middle of a transaction: the next one is another.
                | sqlx::Error::InvalidSavePointStatement
                | sqlx::Error::BeginFailed
        )
    }
}

/// What every function here returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Names what was being done when sqlx fails.
trait Doing<T> {
    fn doing(self, doing: &'static str) -> Result<T>;
}

impl<T> Doing<T> for std::result::Result<T, sqlx::Error> {
    fn doing(self, doing: &'static str) -> Result<T> {
        self.map_err(|source| Error::Database { doing, source })
    }
}

/// Waits for a call that may be made again; not for ever.
pub async fn in_time<T>(call: impl Future<Output = Result<T>>) -> Result<T> {
    let late = |late: Elapsed| Err(sqlx::Error::Io(late.into())).doing("waiting for its answer");
    timeout(ANSWER_WITHIN, call).await.unwrap_or_else(late)
}

fn not_found<T>(what: &'static str, id: &impl ToString) -> Result<T> {
    Err(Error::NotFound { what, id: id.to_string() })
}

/// Whether an insert met a row with the same key.
fn is_duplicate(error: &sqlx::Error) -> bool {
    error.as_database_error().is_some_and(sqlx::error::DatabaseError::is_unique_violation)
}

impl Db {
    /// Opens the database at `url` (`sqlite:PATH` or `postgres:…`) and brings its schema up to date.
    pub async fn open(url: &str) -> Result<Self> {
        let pool = if url.starts_with("sqlite:") {
            // FULL: an acknowledged job survives a power cut. The busy timeout covers the command line working beside the service.
            let options = SqliteConnectOptions::from_str(url)
                .doing("reading its address")?
                .create_if_missing(true)
                .journal_mode(SqliteJournalMode::Wal)
                .synchronous(SqliteSynchronous::Full)
                .foreign_keys(true)
                .busy_timeout(Duration::from_secs(30));
            let pool = SqlitePoolOptions::new()
                // Tested when it is given back; between that and its next use nothing happens to a file.
                .test_before_acquire(false)
                // On a full disk SQLite rolls back by itself, of which sqlx does not know: it would take the connection for one inside a
                // transaction for good. The ping waits for a rollback under way; it is worth its time only where there may be one.
                .after_release(|connection, _| {
                    Box::pin(async move {
                        if connection.is_in_transaction() {
                            connection.ping().await?;
                        }
                        Ok(!connection.is_in_transaction())
                    })
                });
            let writer = pool.clone().max_connections(1).connect_with(options.clone()).await;
            let writer = writer.doing("opening it")?;
            sqlx::migrate!("../migrations/sqlite").run(&writer).await.map_err(Error::Migration)?;
            let options = options.pragma("query_only", "ON");
            Pool::Sqlite { readers: pool.max_connections(8).connect_lazy_with(options), writer }
        } else if url.starts_with("postgres:") || url.starts_with("postgresql:") {
            // The pool would try for half a minute, and then not say why.
            PgConnection::connect(url)
                .await
                .doing("connecting")?
                .close()
                .await
                .doing("connecting")?;
            // Tested when it is given back; before its next use only if the server may have gone meanwhile.
            let pool = PgPoolOptions::new()
                .max_connections(16)
                .test_before_acquire(false)
                .before_acquire(|connection, meta| {
                    Box::pin(async move {
                        if meta.idle_for > IDLE {
                            connection.ping().await?;
                        }
                        Ok(true)
                    })
                })
                .connect_lazy(url)
                .doing("connecting")?;
            sqlx::migrate!("../migrations/postgres").run(&pool).await.map_err(Error::Migration)?;
            Pool::Postgres(pool)
        } else {
            // Only its beginning: the rest may hold a password.
            return Err(Error::Address(url.split(':').next().unwrap_or_default().to_owned()));
        };
        Ok(Self { pool, changes: Arc::default() })
    }

    /// Whether the database answers.
    pub async fn ping(&self) -> Result<()> {
        on!(self, |pool| sqlx::query("SELECT 1").execute(pool).await.map(drop))
            .doing("asking whether it is there")
    }

    /// Waits for the running statements and closes all connections.
    pub async fn close(&self) {
        match &self.pool {
            Pool::Sqlite { readers, writer } => {
                readers.close().await;
                writer.close().await;
            }
            // Nobody waits for an answer any more.
            Pool::Postgres(pool) => drop(timeout(CLOSE_WITHIN, pool.close()).await),
        }
    }

    async fn begin(&self) -> Result<Tx> {
        Ok(match &self.pool {
            // A plain BEGIN takes the write lock at the first write, and then fails instead of waiting.
            Pool::Sqlite { writer, .. } => {
                Tx::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await.doing("beginning")?)
            }
            Pool::Postgres(pool) => Tx::Postgres(pool.begin().await.doing("beginning")?),
        })
    }
}

impl Tx {
    async fn commit(self) -> Result<()> {
        match self {
            Self::Sqlite(tx) => tx.commit().await,
            Self::Postgres(tx) => tx.commit().await,
        }
        .doing("committing")
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Executor;

    use super::*;
    use crate::domain::time::now;

    /// SQLite rolls back by itself then, of which sqlx does not know.
    #[tokio::test]
    async fn a_full_disk_leaves_no_connection_in_a_transaction() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("test.db");
        let db = Db::open(&format!("sqlite:{}", file.display())).await.unwrap();
        let mut tx = db.begin().await.unwrap();
        // Not less than there are: full from now on.
        let limit = "PRAGMA max_page_count = 1";
        within!(tx, |connection| connection.execute(limit).await.map(drop)).unwrap();
        let add = "INSERT INTO users (email, created_at) VALUES (HEX(RANDOMBLOB(100000)), '')";
        let full = within!(tx, |connection| connection.execute(add).await.map(drop)).unwrap_err();
        assert!(full.to_string().contains("full"), "{full}");
        drop(tx);
        for number in 0..20 {
            let email = format!("{number}@example.org");
            db.user_add(&email, now()).await.unwrap();
            db.begin().await.unwrap().commit().await.unwrap();
        }
        db.close().await;
    }
}
