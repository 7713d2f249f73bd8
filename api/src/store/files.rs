//! Files' rows. A row without `completed_at` belongs to an upload under way and is seen by nobody else.

use super::{Db, Doing, Result, Tx, not_found, on, within};
use crate::domain::{
    file::File,
    id::{FileId, UserId},
    time::Timestamp,
};

impl Db {
    /// Stores a file's row.
    pub async fn file_add(&self, file: &File) -> Result<()> {
        let mut tx = self.begin().await?;
        tx.file_add(file).await?;
        tx.commit().await
    }

    /// A file with its content.
    pub async fn file_get(&self, id: FileId, owner: UserId) -> Result<File> {
        let file = self.file_or_upload(id, owner).await?;
        if file.completed_at.is_some() { Ok(file) } else { not_found("file", &id) }
    }

    /// A file, or the upload that is to become one.
    pub async fn file_or_upload(&self, id: FileId, owner: UserId) -> Result<File> {
        // A deleted job's files go with it, although they are cleared away later.
        const SQL: &str = "SELECT * FROM files WHERE id = $1 AND owner = $2 AND NOT EXISTS ( \
                             SELECT 1 FROM jobs AS maker LEFT JOIN jobs AS whole ON whole.id = maker.parent_id \
                             WHERE maker.id = files.job_id AND (maker.deleted_at IS NOT NULL OR whole.deleted_at IS NOT NULL))";
        let file =
            on!(self, |pool| sqlx::query_as(SQL).bind(id).bind(owner).fetch_optional(pool).await)
                .doing("reading a file")?;
        file.map_or_else(|| not_found("file", &id), Ok)
    }

    /// Marks an upload as a complete file. Doing it again gives the same file.
    pub async fn file_complete(
        &self,
        id: FileId,
        owner: UserId,
        e_tag: &str,
        now: Timestamp,
    ) -> Result<File> {
        const SQL: &str = "UPDATE files SET e_tag = $3, completed_at = COALESCE(completed_at, $4), upload_id = NULL \
                           WHERE id = $1 AND owner = $2 RETURNING *";
        let file = on!(self, |pool| {
            sqlx::query_as(SQL)
                .bind(id)
                .bind(owner)
                .bind(e_tag)
                .bind(now)
                .fetch_optional(pool)
                .await
        })
        .doing("completing a file")?;
        file.map_or_else(|| not_found("file", &id), Ok)
    }

    /// Removes a file's row.
    pub async fn file_remove(&self, id: FileId, owner: UserId) -> Result<()> {
        const SQL: &str = "DELETE FROM files WHERE id = $1 AND owner = $2 AND completed_at IS NOT NULL RETURNING id";
        let gone: Option<FileId> = on!(self, |pool| sqlx::query_scalar(SQL)
            .bind(id)
            .bind(owner)
            .fetch_optional(pool)
            .await)
        .doing("removing a file")?;
        gone.map_or_else(|| not_found("file", &id), |_| Ok(()))
    }

    /// Removes the row of an upload. One that has become a file meanwhile stays; says whether it has not.
    pub async fn upload_remove(&self, id: FileId, owner: UserId) -> Result<bool> {
        const SQL: &str = "DELETE FROM files WHERE id = $1 AND owner = $2 AND completed_at IS NULL";
        on!(self, |pool| sqlx::query(SQL)
            .bind(id)
            .bind(owner)
            .execute(pool)
            .await
            .map(|done| done.rows_affected() > 0))
        .doing("removing an upload")
    }

    /// Uploads that were begun before a moment and have not been completed, oldest first.
    pub async fn uploads_begun_before(&self, moment: Timestamp, limit: i64) -> Result<Vec<File>> {
        const SQL: &str = "SELECT * FROM files WHERE completed_at IS NULL AND created_at < $1 ORDER BY created_at LIMIT $2";
        on!(self, |pool| sqlx::query_as(SQL).bind(moment).bind(limit).fetch_all(pool).await)
            .doing("looking for abandoned uploads")
    }

    /// Every file that a user has uploaded, newest first.
    pub async fn files_all(&self, owner: UserId) -> Result<Vec<File>> {
        const SQL: &str = "SELECT * FROM files WHERE owner = $1 AND completed_at IS NOT NULL AND job_id IS NULL ORDER BY created_at DESC, id DESC";
        on!(self, |pool| sqlx::query_as(SQL).bind(owner).fetch_all(pool).await)
            .doing("listing files")
    }

    /// A page of a user's files, newest first, and the number of all that match. Filters that are absent match everything.
    pub async fn files_search(
        &self,
        owner: UserId,
        sha256: Option<&str>,
        id: Option<FileId>,
        limit: i64,
        offset: i64,
    ) -> Result<(Vec<File>, i64)> {
        const PAGE: &str = "SELECT * FROM files WHERE owner = $1 AND completed_at IS NOT NULL AND job_id IS NULL \
                            AND ($2 IS NULL OR sha256 = $2) AND ($3 IS NULL OR id = $3) \
                            ORDER BY created_at DESC, id DESC LIMIT $4 OFFSET $5";
        const COUNT: &str = "SELECT count(*) FROM files WHERE owner = $1 AND completed_at IS NOT NULL AND job_id IS NULL \
                             AND ($2 IS NULL OR sha256 = $2) AND ($3 IS NULL OR id = $3)";
        on!(self, |pool| {
            let total =
                sqlx::query_scalar(COUNT).bind(owner).bind(sha256).bind(id).fetch_one(pool).await;
            let page =
                sqlx::query_as(PAGE).bind(owner).bind(sha256).bind(id).bind(limit).bind(offset);
            match total {
                Ok(total) => page.fetch_all(pool).await.map(|files| (files, total)),
                Err(error) => Err(error),
            }
        })
        .doing("searching files")
    }
}

impl Tx {
    pub(super) async fn file_add(&mut self, file: &File) -> Result<()> {
        const SQL: &str = "INSERT INTO files (id, owner, filename, size, sha256, e_tag, upload_id, job_id, created_at, completed_at) \
                           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        within!(*self, |connection| {
            let query = sqlx::query(SQL)
                .bind(file.id)
                .bind(file.owner)
                .bind(&file.filename)
                .bind(file.size);
            let query =
                query.bind(&file.sha256).bind(&file.e_tag).bind(&file.upload_id).bind(file.job_id);
            query.bind(file.created_at).bind(file.completed_at).execute(connection).await.map(drop)
        })
        .doing("adding a file")
    }
}
