//! Files' rows. A row without `completed_at` belongs to an upload under way and is seen by nobody else.

use sqlx::QueryBuilder;

use super::{Db, Doing, Result, Tx, lists::UPLOADS, not_found, on, within, writing};
use crate::domain::{
    file::File,
    id::{FileId, UserId},
    time::Timestamp,
};

/// Writes which uploads are meant. A macro, because the types of two databases' builders have little in common.
macro_rules! narrow {
    ($query:ident, $owner:expr, $sha256:expr, $id:expr) => {{
        $query.push("WHERE owner = ").push_bind($owner);
        $query.push(" AND completed_at IS NOT NULL AND job_id IS NULL");
        // Spelt out: of "is absent, or equal" no index knows anything.
        if let Some(sha256) = $sha256 {
            $query.push(" AND sha256 = ").push_bind(sha256.to_owned());
        }
        if let Some(id) = $id {
            $query.push(" AND id = ").push_bind(id);
        }
    }};
}

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
        const SQL: &str = "UPDATE files SET e_tag = $3, completed_at = $4, upload_id = NULL \
                           WHERE id = $1 AND owner = $2 AND completed_at IS NULL RETURNING *";
        let mut tx = self.begin().await?;
        let newest = tx.newest_upload(owner).await?;
        let completed: Option<File> = within!(tx, |connection| {
            let query = sqlx::query_as(SQL).bind(id).bind(owner).bind(e_tag).bind(now);
            query.fetch_optional(connection).await
        })
        .doing("completing a file")?;
        let Some(file) = completed else {
            // Else as many calls as there are connections would wait for one another.
            drop(tx);
            return self.file_get(id, owner).await;
        };
        tx.lists_add(owner, [UPLOADS; 2], file.created_at, newest).await?;
        tx.commit().await?;
        Ok(file)
    }

    /// Removes a file's row.
    pub async fn file_remove(&self, id: FileId, owner: UserId) -> Result<()> {
        const SQL: &str = "DELETE FROM files WHERE id = $1 AND owner = $2 AND completed_at IS NOT NULL RETURNING *";
        let mut tx = self.begin().await?;
        tx.owner_locked(owner).await?;
        let gone: Option<File> = within!(tx, |connection| sqlx::query_as(SQL)
            .bind(id)
            .bind(owner)
            .fetch_optional(connection)
            .await)
        .doing("removing a file")?;
        let Some(file) = gone else { return not_found("file", &id) };
        if file.job_id.is_none() {
            tx.list_remove(owner, UPLOADS, file.created_at).await?;
        }
        tx.commit().await
    }

    /// Removes the row of an upload. One that has become a file meanwhile stays; says whether it has not.
    pub async fn upload_remove(&self, id: FileId, owner: UserId) -> Result<bool> {
        const SQL: &str = "DELETE FROM files WHERE id = $1 AND owner = $2 AND completed_at IS NULL";
        writing!(self, |pool| sqlx::query(SQL)
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

    /// A page of what a user has uploaded, newest first, and the number of all that match. Filters that are absent match everything.
    pub async fn files_search(
        &self,
        owner: UserId,
        sha256: Option<&str>,
        id: Option<FileId>,
        limit: i64,
        offset: i64,
    ) -> Result<(Vec<File>, i64)> {
        let (total, before, skip) = if sha256.is_none() && id.is_none() {
            let total = self.list_total(owner, UPLOADS).await?;
            let (before, skip) = self.list_place(owner, UPLOADS, offset).await?;
            (total, Some(before), skip)
        } else {
            let total: i64 = on!(self, |pool| {
                let mut query = QueryBuilder::new("SELECT COUNT(*) FROM files ");
                narrow!(query, owner, sha256, id);
                query.build_query_scalar().fetch_one(pool).await
            })
            .doing("counting files")?;
            (total, None, offset)
        };
        if offset >= total {
            return Ok((Vec::new(), total));
        }
        let files = on!(self, |pool| {
            let mut query = QueryBuilder::new("SELECT * FROM files ");
            narrow!(query, owner, sha256, id);
            if let Some(before) = before {
                query.push(" AND created_at < ").push_bind(before);
            }
            query.push(" ORDER BY created_at DESC, id DESC LIMIT ").push_bind(limit);
            query.push(" OFFSET ").push_bind(skip);
            query.build_query_as().fetch_all(pool).await
        })
        .doing("searching files")?;
        Ok((files, total))
    }
}

impl Tx {
    /// When the newest of a user's uploads was begun; locks the user's lists.
    async fn newest_upload(&mut self, owner: UserId) -> Result<Option<Timestamp>> {
        const SQL: &str = "SELECT created_at FROM files WHERE owner = $1 AND completed_at IS NOT NULL AND job_id IS NULL \
                           ORDER BY created_at DESC, id DESC LIMIT 1";
        self.owner_locked(owner).await?;
        within!(*self, |connection| sqlx::query_scalar(SQL)
            .bind(owner)
            .fetch_optional(connection)
            .await)
        .doing("looking for newer files")
    }

    pub(super) async fn file_add(&mut self, file: &File) -> Result<()> {
        const SQL: &str = "INSERT INTO files (id, owner, filename, size, sha256, e_tag, upload_id, job_id, created_at, completed_at) \
                           VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)";
        if file.completed_at.is_some() && file.job_id.is_none() {
            let newest = self.newest_upload(file.owner).await?;
            self.lists_add(file.owner, [UPLOADS; 2], file.created_at, newest).await?;
        }
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

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::domain::time::now;

    /// With the short runs of tests: uploads that end in another order than they began, several at a moment, and some that are deleted.
    #[tokio::test]
    async fn every_page_of_uploads_is_where_plain_counting_puts_it() {
        let folder = tempfile::tempdir().unwrap();
        let place = folder.path().join("files.db");
        let db = Db::open(&format!("sqlite:{}", place.display())).await.unwrap();
        let owner = db.user_add("ada@example.org", now()).await.unwrap().id;
        let (begin, mut listed, mut open) = (now(), Vec::new(), Vec::new());
        let mut random = 1_u64;
        for number in 0..300 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let chance = usize::try_from(random >> 33).unwrap();
            let mut file = File {
                id: FileId::new(),
                owner,
                filename: "a".to_owned(),
                size: 0,
                sha256: String::new(),
                e_tag: None,
                upload_id: None,
                job_id: None,
                created_at: begin + TimeDelta::microseconds(number / 2),
                completed_at: None,
            };
            if chance % 3 == 0 {
                file.completed_at = Some(now());
                listed.push((file.created_at, file.id));
            } else {
                open.push((file.created_at, file.id));
            }
            db.file_add(&file).await.unwrap();
            if chance % 2 == 0 && !open.is_empty() {
                let ended = open.remove(chance % open.len());
                for _ in 0..2 {
                    db.file_complete(ended.1, owner, "tag", now()).await.unwrap();
                }
                listed.push(ended);
            }
            if chance % 5 == 0 && !listed.is_empty() {
                let gone = listed.remove(chance % listed.len());
                db.file_remove(gone.1, owner).await.unwrap();
            }
        }
        listed.sort_unstable();
        listed.reverse();
        assert!(listed.len() > 100, "{}", listed.len());
        let ids: Vec<_> = listed.into_iter().map(|(_, id)| id).collect();
        for offset in 0..=ids.len() {
            let from = i64::try_from(offset).unwrap();
            let (page, total) = db.files_search(owner, None, None, 3, from).await.unwrap();
            let page: Vec<_> = page.iter().map(|file| file.id).collect();
            assert_eq!(page, ids[offset..ids.len().min(offset + 3)], "{offset}");
            assert_eq!(total, i64::try_from(ids.len()).unwrap());
        }
        db.close().await;
    }
}
