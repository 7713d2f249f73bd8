//! Typed identifiers: a job's id cannot be taken for a file's.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use uuid::Uuid;

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type)]
        #[serde(transparent)]
        #[sqlx(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh id; later ids sort after earlier ones (UUID version 7, RFC 9562).
            #[expect(clippy::new_without_default, reason = "each call gives another value")]
            pub fn new() -> Self {
                Self(Uuid::now_v7())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = uuid::Error;
            fn from_str(text: &str) -> Result<Self, uuid::Error> {
                text.parse().map(Self)
            }
        }
    };
}

uuid_id! {
    /// Identifies a file.
    FileId
}
impl FileId {
    /// The id of an output: the same whenever that output is stored, so that storing it again after a crash leaves nothing behind
    /// (UUID version 8, RFC 9562).
    pub fn of_output(job: JobId, port: &str) -> Self {
        let hash = Sha256::new().chain_update(job.0).chain_update(port).finalize();
        let bytes = std::array::from_fn(|at| hash[at]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }
}

uuid_id! {
    /// Identifies a job.
    JobId
}
uuid_id! {
    /// Identifies a study.
    StudyId
}

/// Identifies a user. A positive integer, because oSPARC's clients demand one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(transparent)]
#[sqlx(transparent)]
pub struct UserId(pub i64);
