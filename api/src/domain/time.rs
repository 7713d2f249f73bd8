//! The one clock.

use chrono::{DateTime, SubsecRound, Utc};

/// A moment in UTC, precise to the microsecond.
pub type Timestamp = DateTime<Utc>;

/// The current moment, cut to microseconds: SQLite would keep nanoseconds, Postgres would not, and a time must read back equal.
#[expect(clippy::disallowed_methods, reason = "this is the replacement the ban points to")]
pub fn now() -> Timestamp {
    Utc::now().trunc_subsecs(6)
}
