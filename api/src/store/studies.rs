//! Studies' rows. Published ones have no owner and are seen by everybody.

use super::{Db, Doing, Result, Tx, not_found, on, within};
use crate::domain::{
    id::{StudyId, UserId},
    solver::Version,
    study::Study,
};

impl Db {
    /// A study that this user may see.
    pub async fn study_get(&self, id: StudyId, user: UserId) -> Result<Study> {
        const SQL: &str = "SELECT * FROM studies WHERE id = $1 AND (owner IS NULL OR owner = $2)";
        let study =
            on!(self, |pool| sqlx::query_as(SQL).bind(id).bind(user).fetch_optional(pool).await)
                .doing("reading a study")?;
        study.map_or_else(|| not_found("study", &id), Ok)
    }

    /// A page of the studies that this user may see, newest first, and the number of all. Hidden ones are left out.
    pub async fn studies_page(
        &self,
        user: UserId,
        limit: i64,
        offset: i64,
    ) -> Result<(Vec<Study>, i64)> {
        const PAGE: &str = "SELECT * FROM studies WHERE (owner IS NULL OR owner = $1) AND NOT hidden \
                            ORDER BY created_at DESC, id DESC LIMIT $2 OFFSET $3";
        const COUNT: &str =
            "SELECT count(*) FROM studies WHERE (owner IS NULL OR owner = $1) AND NOT hidden";
        on!(self, |pool| {
            match sqlx::query_scalar(COUNT).bind(user).fetch_one(pool).await {
                Ok(total) => {
                    let page = sqlx::query_as(PAGE).bind(user).bind(limit).bind(offset);
                    page.fetch_all(pool).await.map(|studies| (studies, total))
                }
                Err(error) => Err(error),
            }
        })
        .doing("listing studies")
    }

    /// Stores a clone.
    pub async fn study_add(&self, study: &Study) -> Result<()> {
        let mut tx = self.begin().await?;
        tx.study_put(study).await?;
        tx.commit().await
    }
}

impl Tx {
    /// Offers a release as a published study, unless a newer one is offered already.
    pub(super) async fn study_publish(&mut self, study: &Study) -> Result<()> {
        const SQL: &str = "SELECT solver_version FROM studies WHERE id = $1";
        let offered: Option<String> = within!(*self, |connection| sqlx::query_scalar(SQL)
            .bind(study.id)
            .fetch_optional(connection)
            .await)
        .doing("reading a study")?;
        let version = |text: &str| Version::parse(text).ok();
        match offered {
            Some(offered) if version(&offered) > version(&study.solver_version) => Ok(()),
            _ => self.study_put(study).await,
        }
    }

    async fn study_put(&mut self, study: &Study) -> Result<()> {
        const SQL: &str = "INSERT INTO studies (id, owner, title, description, solver_key, solver_version, hidden, created_at) \
                           VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
                           ON CONFLICT (id) DO UPDATE SET title = $3, description = $4, solver_version = $6";
        within!(*self, |connection| {
            let query = sqlx::query(SQL).bind(study.id).bind(study.owner).bind(&study.title);
            let query = query
                .bind(&study.description)
                .bind(&study.solver_key)
                .bind(&study.solver_version)
                .bind(study.hidden);
            query.bind(study.created_at).execute(connection).await.map(drop)
        })
        .doing("writing a study")
    }
}
