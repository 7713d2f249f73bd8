//! Studies: names under which releases made of steps are offered. A published study is there for everybody; a clone is one user's own
//! name for a release, which needs no copy because releases are immutable.

use sha2::{Digest, Sha256};
use uuid::{Builder, Uuid};

use super::{
    id::{StudyId, UserId},
    solver::{Release, SolverKey},
    time::Timestamp,
};

/// A name for a release made of steps.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Study {
    /// Identifies the study.
    pub id: StudyId,
    /// Who may see it; everybody where there is none.
    pub owner: Option<UserId>,
    /// Short name for people.
    pub title: String,
    /// What it computes.
    pub description: String,
    /// The release's key.
    pub solver_key: SolverKey,
    /// The release's version, as text.
    pub solver_version: String,
    /// Whether lists leave it out.
    pub hidden: bool,
    /// When it was first published, or cloned.
    pub created_at: Timestamp,
}

impl Study {
    /// The study that everybody sees of a release. All versions of a solver are one study: its newest.
    pub fn published(release: &Release, now: Timestamp) -> Self {
        Self {
            id: StudyId(derived(&["study", release.key.as_str()])),
            owner: None,
            title: release.title.clone(),
            description: release.description.clone(),
            solver_key: release.key.clone(),
            solver_version: release.version.to_string(),
            hidden: false,
            created_at: now,
        }
    }

    /// Another name for the same release, seen by its owner only.
    #[must_use]
    pub fn cloned(self, owner: UserId, hidden: bool, now: Timestamp) -> Self {
        Self { id: StudyId::new(), owner: Some(owner), hidden, created_at: now, ..self }
    }

    /// Identifies a port, which oSPARC's clients want as a UUID.
    pub fn port_id(&self, direction: &str, key: &str) -> Uuid {
        derived(&["port", self.solver_key.as_str(), direction, key])
    }
}

/// A UUID that is always the same for the same names (version 8 of RFC 9562, from SHA-256).
fn derived(names: &[&str]) -> Uuid {
    let hash = Sha256::digest(names.join("\n"));
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hash[..16]);
    Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn derived_ids_never_change() {
        let id = derived(&["study", "simcore/services/comp/studies/sleeper_test_study"]);
        assert_eq!(id, derived(&["study", "simcore/services/comp/studies/sleeper_test_study"]));
        assert_eq!(id.get_version_num(), 8);
        assert_ne!(id, derived(&["study", "simcore/services/comp/studies/other"]));
    }
}
