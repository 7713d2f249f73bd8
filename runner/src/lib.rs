//! Runs ONE task in a container and reports what happens as events. Knows no HTTP API, no SQL, no users.
//!
//! - [`task`]: the contract, serialisable
//! - [`run()`]: stage in, container, stage out
//! - [`engine`]: the container engine; `engine/docker.rs` is the only place that names bollard
//! - `folders`, `inputs`, `outputs`, `archive`: what the container sees of the host, files and values
//! - `disk`, `remove`: how much it may take of the host, and that nothing stays
//! - `logs`, `logfile`, `kept`, `progress`: what the solver prints, as lines, within its limit, and as percent
//! - `limits`: how long it may run and be silent
//! - `report`: what we say ourselves

mod archive;
mod disk;
pub mod engine;
mod folders;
mod inputs;
mod kept;
mod limits;
mod logfile;
mod logs;
mod outputs;
mod progress;
mod remove;
mod report;
mod run;
pub mod task;
mod usage;

pub use logs::Recorded;
pub use run::{Adopted, CleanUpError, JOB_LABEL, clean_up, find_begun, run};
