//! Pure types and rules: what a job, a solver, a file and a user are, and what may happen to them.
//!
//! Must not: do I/O, speak HTTP or SQL, import any other module of this crate.

pub mod file;
pub mod filter;
pub mod id;
pub mod job;
pub mod labels;
pub mod resources;
pub mod solver;
pub mod steps;
pub mod study;
pub mod time;
pub mod usage;
pub mod user;
pub mod value;
pub mod webhook;
