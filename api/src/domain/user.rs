//! Users and the API keys that speak for them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use sha2::{Digest, Sha256};
use utoipa::ToSchema;

use super::{id::UserId, time::Timestamp};

/// Somebody who owns files and jobs.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct User {
    /// Identifies the user.
    pub id: UserId,
    /// Lower-case e-mail address; the login.
    pub email: String,
    /// First name.
    pub first_name: Option<Name>,
    /// Last name.
    pub last_name: Option<Name>,
    /// What a front end should speak with them.
    pub language: Option<Language>,
    /// When the user was added.
    pub created_at: Timestamp,
}

impl User {
    /// Number of the group that is this user alone. Group 1 is everybody; each user's own group follows from their id.
    pub const fn group(&self) -> i64 {
        self.id.0 + 1
    }
}

/// What you change about yourself. What is left out stays as it is; null takes it away.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[schema(example = json!({"first_name": "Ada", "last_name": "Lovelace", "language": "en"}))]
pub struct ProfileUpdate {
    /// First name.
    #[schema(value_type = Option<String>, max_length = 255, pattern = r"^[^\x00]*$")]
    #[serde(default)]
    pub first_name: Change<Name>,
    /// Last name.
    #[schema(value_type = Option<String>, max_length = 255, pattern = r"^[^\x00]*$")]
    #[serde(default)]
    pub last_name: Change<Name>,
    /// What a front end should speak with you.
    #[schema(value_type = Option<Language>)]
    #[serde(default)]
    pub language: Change<Language>,
}

/// A new value for what may be absent, or none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// It stays as it is.
    #[default]
    Keep,
    /// From now on.
    To(Option<T>),
}

impl<T> Change<T> {
    /// Whether it changes, and to what.
    pub const fn parts(&self) -> (bool, Option<&T>) {
        match self {
            Self::Keep => (false, None),
            Self::To(value) => (true, value.as_ref()),
        }
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Change<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Option::deserialize(deserializer).map(Self::To)
    }
}

/// A first or a last name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, sqlx::Type)]
#[serde(try_from = "String")]
#[sqlx(transparent)]
pub struct Name(String);

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        // Postgres refuses NUL in text.
        if text.chars().count() <= 255 && !text.contains('\0') {
            return Ok(Self(text));
        }
        Err(format!("must be at most 255 characters without NUL, got {text:?}"))
    }
}

/// A language of oSPARC's front end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, sqlx::Type, ToSchema)]
#[sqlx(type_name = "TEXT")]
#[schema(as = SupportedLocale)]
pub enum Language {
    /// English.
    #[serde(rename = "en")]
    #[sqlx(rename = "en")]
    English,
    /// Spanish.
    #[serde(rename = "es_ES")]
    #[sqlx(rename = "es_ES")]
    Spanish,
    /// Chinese.
    #[serde(rename = "zh_CN")]
    #[sqlx(rename = "zh_CN")]
    Chinese,
}

/// Checks and normalises an e-mail address. Only what a login needs: one `@` with something on both sides, no spaces.
pub fn parse_email(text: &str) -> Result<String, String> {
    let email = text.trim().to_lowercase();
    match email.split_once('@') {
        Some((local, domain))
            if !local.is_empty()
                && !domain.is_empty()
                && !domain.contains('@')
                && !email.contains(char::is_whitespace) =>
        {
            Ok(email)
        }
        _ => Err(format!("`{text}` is not an e-mail address")),
    }
}

/// A new API key with its secret. The only moment the secret exists in the clear.
#[derive(Clone, Serialize)]
pub struct Credentials {
    /// User name of HTTP Basic authentication.
    pub key: String,
    /// Password of HTTP Basic authentication.
    pub secret: String,
}

impl Credentials {
    /// Draws a 128-bit key and a 256-bit secret, both hexadecimal: ASCII, because oSPARC's client encodes them in two different ways.
    pub fn random() -> Result<Self, getrandom::Error> {
        let (mut key, mut secret) = ([0; 16], [0; 32]);
        getrandom::fill(&mut key)?;
        getrandom::fill(&mut secret)?;
        Ok(Self { key: hex(&key), secret: hex(&secret) })
    }
}

/// Checks a key that somebody has chosen: HTTP Basic ends it at the first colon, and oSPARC's client encodes anything but ASCII in two
/// different ways.
pub fn check_key(key: &str) -> Result<(), &'static str> {
    if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic() && byte != b':') {
        return Ok(());
    }
    Err("must be of visible ASCII characters other than `:`")
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("key", &self.key).finish_non_exhaustive()
    }
}

/// What is stored of a secret: its SHA-256. A slow password hash would add nothing to 256 random bits.
pub fn secret_hash(secret: &str) -> Vec<u8> {
    Sha256::digest(secret.as_bytes()).to_vec()
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn email_is_normalised_or_refused() {
        assert_eq!(parse_email(" Ada@Example.org "), Ok("ada@example.org".to_owned()));
        for bad in ["", "ada", "@b", "a@", "a@b@c", "a b@c"] {
            assert!(parse_email(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_long_and_do_not_show_in_debug() {
        let credentials = Credentials::random().unwrap();
        assert_eq!(credentials.secret.len(), 64);
        assert!(!format!("{credentials:?}").contains(&credentials.secret));
    }
}
