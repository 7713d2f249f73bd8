//! Callbacks: where the end of a job is to be told, and what became of that.

use serde::Deserialize;
use serde_json::{Value as Json, json};
use utoipa::{IntoParams, ToSchema};

use crate::{
    domain::webhook::{Callback, JobMessage},
    error::FieldError,
    request::CONCEALED,
};

/// Where the end of a job is to be told, as a message of Standard Webhooks.
#[derive(Deserialize, ToSchema)]
pub struct JobCallback {
    /// Gets a POST: `http` or `https`, without user name, password and fragment. Its host must be public, unless the service allows
    /// others. Redirects are not followed.
    #[schema(
        format = "uri",
        min_length = 1,
        max_length = 2083,
        example = "https://receiver.example/job-ended"
    )]
    url: String,
    /// Signs the message: `whsec_` and 24 to 64 random bytes in base64. No answer shows it.
    #[schema(
        format = "password",
        pattern = "^whsec_[A-Za-z0-9+/]{32,86}={0,2}$",
        example = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    )]
    secret: String,
}

impl JobCallback {
    /// What tells it from another one.
    pub(super) fn fingerprint(&self) -> Json {
        json!({"callback": [self.url, self.secret]})
    }

    /// The callback, if both parts are what they may be.
    pub(super) fn checked(&self, private: bool) -> Result<Callback, Vec<FieldError>> {
        let url = Callback::parse_url(&self.url, private).map_err(|rule| {
            FieldError::new("value_error", &["body", "callback", "url"], &self.url, &rule)
        });
        let secret = Callback::parse_secret(&self.secret).ok_or_else(|| {
            let rule = "must be `whsec_` and 24 to 64 bytes in base64";
            FieldError::new("value_error", &["body", "callback", "secret"], CONCEALED, rule)
        });
        match (url, secret) {
            (Ok(url), Ok(secret)) => Ok(Callback { url, secret }),
            (url, secret) => Err([url.err(), secret.err()].into_iter().flatten().collect()),
        }
    }
}

/// What comes with a message.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "only for the document")]
struct MessageHeaders {
    /// Identifies the message; the same at every attempt. It is the job's id.
    #[param(rename = "webhook-id", value_type = uuid::Uuid)]
    id: (),
    /// When the attempt was made, in seconds since 1970. Refuse what is minutes old: it may be a replay.
    #[param(rename = "webhook-timestamp", value_type = i64)]
    timestamp: (),
    /// `v1,` and, in base64, the HMAC-SHA256 of `ID.TIMESTAMP.BODY`, whose key is what the secret's base64 stands for.
    #[param(rename = "webhook-signature", value_type = String, example = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")]
    signature: (),
}

/// Hear of the end of a job.
///
/// Sent to the URL of the job's `callback`, and again until it is taken: it may come more than once.
#[utoipa::path(post, path = "{$request.body#/callback/url}", tag = "jobs", params(MessageHeaders), request_body = JobMessage, security(()), responses(
    (status = "2XX", description = "Taken."),
    (status = 410, description = "Not wanted: it is given up."),
    (status = "default", description = "Not taken: it comes again, after 5 seconds, 5 and 30 minutes, 2, 5, 10, 14, 20 and 24 hours, unless the service is set up otherwise.")
))]
pub fn job_ended() {}
