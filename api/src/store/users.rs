//! Users and API keys.

use super::{Db, Doing, Error, Result, is_duplicate, not_found, on, writing};
use crate::domain::{
    id::UserId,
    time::Timestamp,
    user::{Credentials, ProfileUpdate, User, secret_hash},
};

impl Db {
    /// Adds a user. The address must be normalised ([`crate::domain::user::parse_email`]) and new.
    pub async fn user_add(&self, email: &str, now: Timestamp) -> Result<User> {
        const SQL: &str = "INSERT INTO users (email, created_at) VALUES ($1, $2) RETURNING *";
        writing!(self, |pool| sqlx::query_as(SQL).bind(email).bind(now).fetch_one(pool).await)
            .map_err(|source| {
                if is_duplicate(&source) {
                    Error::Conflict(format!("a user `{email}` exists already"))
                } else {
                    Error::Database { doing: "adding a user", source }
                }
            })
    }

    /// The user with this address.
    pub async fn user_by_email(&self, email: &str) -> Result<User> {
        const SQL: &str = "SELECT * FROM users WHERE email = $1";
        let user = on!(self, |pool| sqlx::query_as(SQL).bind(email).fetch_optional(pool).await)
            .doing("reading a user")?;
        user.map_or_else(|| not_found("user", &email), Ok)
    }

    /// Changes what a user says about themself, and nothing else: two changes at once do not undo each other.
    pub async fn user_change(&self, id: UserId, change: &ProfileUpdate) -> Result<User> {
        const SQL: &str = "UPDATE users SET first_name = CASE WHEN $2 THEN $3 ELSE first_name END, \
                           last_name = CASE WHEN $4 THEN $5 ELSE last_name END, \
                           language = CASE WHEN $6 THEN $7 ELSE language END WHERE id = $1 RETURNING *";
        let (first, first_name) = change.first_name.parts();
        let (last, last_name) = change.last_name.parts();
        let (spoken, language) = change.language.parts();
        let user = writing!(self, |pool| {
            let query = sqlx::query_as(SQL).bind(id).bind(first).bind(first_name);
            let query = query.bind(last).bind(last_name).bind(spoken).bind(language);
            query.fetch_optional(pool).await
        })
        .doing("changing a user")?;
        user.map_or_else(|| not_found("user", &id.0), Ok)
    }

    /// Whether there is any user.
    pub async fn user_any(&self) -> Result<bool> {
        const SQL: &str = "SELECT EXISTS (SELECT 1 FROM users)";
        on!(self, |pool| sqlx::query_scalar(SQL).fetch_one(pool).await).doing("looking for users")
    }

    /// Stores a key and the hash of its secret.
    pub async fn key_add(
        &self,
        user: &User,
        credentials: &Credentials,
        now: Timestamp,
    ) -> Result<()> {
        const SQL: &str =
            "INSERT INTO api_keys (key, secret_hash, user_id, created_at) VALUES ($1, $2, $3, $4)";
        let hash = secret_hash(&credentials.secret);
        writing!(self, |pool| {
            let query = sqlx::query(SQL).bind(&credentials.key).bind(hash).bind(user.id).bind(now);
            query.execute(pool).await.map(drop)
        })
        .map_err(|source| {
            if is_duplicate(&source) {
                Error::Conflict(format!("a key `{}` exists already", credentials.key))
            } else {
                Error::Database { doing: "adding a key", source }
            }
        })
    }

    /// Removes a key: from now on it is unknown.
    pub async fn key_revoke(&self, key: &str) -> Result<()> {
        const SQL: &str = "DELETE FROM api_keys WHERE key = $1 RETURNING key";
        let gone: Option<String> =
            writing!(self, |pool| sqlx::query_scalar(SQL).bind(key).fetch_optional(pool).await)
                .doing("revoking a key")?;
        gone.map_or_else(|| not_found("key", &key), |_| Ok(()))
    }

    /// The hash of a key's secret and the user it speaks for. Not cached: a revoked key is dead at once.
    pub async fn key_find(&self, key: &str) -> Result<Option<(Vec<u8>, User)>> {
        #[derive(sqlx::FromRow)]
        struct Row {
            secret_hash: Vec<u8>,
            #[sqlx(flatten)]
            user: User,
        }
        const SQL: &str = "SELECT k.secret_hash, u.* FROM api_keys k JOIN users u ON u.id = k.user_id WHERE k.key = $1";
        let row: Option<Row> =
            on!(self, |pool| sqlx::query_as(SQL).bind(key).fetch_optional(pool).await)
                .doing("reading a key")?;
        Ok(row.map(|row| (row.secret_hash, row.user)))
    }
}
