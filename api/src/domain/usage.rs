//! What jobs use of the machine.

use serde::Serialize;
use utoipa::ToSchema;

/// What one job's container has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, sqlx::FromRow)]
pub struct Usage {
    /// Microseconds of CPU time.
    pub cpu_micros: i64,
    /// Where they come from.
    pub cpu_source: CpuSource,
    /// Microseconds between its start and its end.
    pub wall_micros: i64,
    /// The most memory it held at once, in bytes, files cached by the kernel included.
    pub peak_memory: Option<i64>,
}

/// Where CPU time comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, sqlx::Type, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[sqlx(type_name = "TEXT", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CpuSource {
    /// Measured by the kernel until shortly before the end; the rest, less than half, is taken to be like that.
    Measured,
    /// The job was too short to be measured: the CPUs that it reserved, for the time it ran.
    Reserved,
}

/// What the jobs of one user have used in all, deleted ones included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, sqlx::FromRow)]
pub struct TotalUsage {
    /// Jobs that ran.
    pub jobs: i64,
    /// Microseconds of CPU time.
    pub cpu_micros: i64,
    /// Those of them that are only reserved CPUs times time.
    pub reserved_micros: i64,
    /// Microseconds between their starts and their ends.
    pub wall_micros: i64,
}

impl Usage {
    /// CPU time.
    pub fn cpu_seconds(self) -> f64 {
        seconds(self.cpu_micros)
    }

    /// Time between start and end.
    pub fn wall_seconds(self) -> f64 {
        seconds(self.wall_micros)
    }
}

/// Microseconds as people read them.
#[expect(clippy::cast_precision_loss, reason = "exact for the first 285 years")]
pub fn seconds(micros: i64) -> f64 {
    micros as f64 / 1e6
}
