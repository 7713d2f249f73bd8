//! The registry of published releases.

use super::{Db, Doing, Error, Result, is_duplicate, not_found, on, within, writing};
use crate::domain::{
    solver::{Body, Release, SolverKey, Version},
    study::Study,
    time::Timestamp,
};

impl Db {
    /// Publishes a release. Doing it again with the same definition changes nothing, or adds what an earlier version of this program
    /// did not read; another definition is refused, because releases are immutable. Says whether it is new.
    pub async fn release_publish(&self, release: &Release, now: Timestamp) -> Result<bool> {
        const SQL: &str = "INSERT INTO releases (solver_key, solver_version, definition, published_at) VALUES ($1, $2, $3, $4)";
        const ADD: &str =
            "UPDATE releases SET definition = $3 WHERE solver_key = $1 AND solver_version = $2";
        let mut tx = self.begin().await?;
        let inserted = within!(tx, |connection| {
            let query =
                sqlx::query(SQL).bind(&release.key).bind(release.version.to_string()).bind(release);
            query.bind(now).execute(connection).await.map(drop)
        });
        match inserted {
            Ok(()) => {
                if matches!(release.body, Body::Steps(_)) {
                    tx.study_publish(&Study::published(release, now)).await?;
                }
                tx.commit().await?;
                Ok(true)
            }
            Err(error) if is_duplicate(&error) => {
                // SQLite would keep others waiting for it.
                drop(tx);
                let known = self.release_get(&release.key, &release.version).await?;
                if known.is_same(release) {
                    return Ok(false);
                }
                if known.is_same(&release.clone().as_read_before()) {
                    let (key, version) = (&release.key, release.version.to_string());
                    writing!(self, |pool| {
                        let query = sqlx::query(ADD).bind(key).bind(version).bind(release);
                        query.execute(pool).await.map(drop)
                    })
                    .doing("adding to a release")?;
                    return Ok(false);
                }
                Err(Error::Conflict(format!(
                    "{} {} is published already, with other ports or another image; releases are immutable, so give it a new version",
                    release.key, release.version
                )))
            }
            Err(source) => Err(Error::Database { doing: "publishing a release", source }),
        }
    }

    /// One release.
    pub async fn release_get(&self, key: &SolverKey, version: &Version) -> Result<Release> {
        const SQL: &str =
            "SELECT definition FROM releases WHERE solver_key = $1 AND solver_version = $2";
        let version = version.to_string();
        let release = on!(self, |pool| sqlx::query_scalar(SQL)
            .bind(key)
            .bind(&version)
            .fetch_optional(pool)
            .await)
        .doing("reading a release")?;
        release.map_or_else(|| not_found("solver", &format!("{key}/releases/{version}")), Ok)
    }

    /// When a release was published.
    pub async fn release_published_at(
        &self,
        key: &SolverKey,
        version: &Version,
    ) -> Result<Timestamp> {
        const SQL: &str =
            "SELECT published_at FROM releases WHERE solver_key = $1 AND solver_version = $2";
        let at = on!(self, |pool| sqlx::query_scalar(SQL)
            .bind(key)
            .bind(version.to_string())
            .fetch_optional(pool)
            .await)
        .doing("reading a release")?;
        at.map_or_else(|| not_found("solver", &format!("{key}/releases/{version}")), Ok)
    }

    /// Every release of one solver, oldest version first; an unknown solver is an error.
    pub async fn releases_of(&self, key: &SolverKey) -> Result<Vec<Release>> {
        const SQL: &str = "SELECT definition FROM releases WHERE solver_key = $1";
        let mut releases: Vec<Release> =
            on!(self, |pool| sqlx::query_scalar(SQL).bind(key).fetch_all(pool).await)
                .doing("reading releases")?;
        if releases.is_empty() {
            return not_found("solver", key);
        }
        // SQL would sort 2.10.0 before 2.9.1.
        releases.sort_by(|a, b| a.version.cmp(&b.version));
        Ok(releases)
    }

    /// Every release of every solver, by key, then version.
    pub async fn releases_all(&self) -> Result<Vec<Release>> {
        const SQL: &str = "SELECT definition FROM releases";
        let mut releases: Vec<Release> =
            on!(self, |pool| sqlx::query_scalar(SQL).fetch_all(pool).await)
                .doing("reading releases")?;
        releases.sort_by(|a, b| (&a.key, &a.version).cmp(&(&b.key, &b.version)));
        Ok(releases)
    }
}
