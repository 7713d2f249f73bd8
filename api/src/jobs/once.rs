//! `Idempotency-Key` (draft-ietf-httpapi-idempotency-key-header): a creation that may be repeated without making a second job.

use actix_web::HttpRequest;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use utoipa::IntoParams;

use super::{JobInputs, callbacks::JobCallback};
use crate::{
    auth::Caller,
    domain::{id::StudyId, job::Job, resources::Amounts, time::now},
    error::{ApiError, ErrorCode, FieldError, Result},
    request::from_request,
    solvers::ReleasePath,
    store::{self, Db, Once},
};

const NAME: &str = "Idempotency-Key";

/// Characters of a key.
const LONGEST: usize = 255;

from_request!(IdempotencyKey);

/// What lets a request be repeated.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct IdempotencyKey {
    /// Any text of your choice, at most 255 visible ASCII characters, e.g. a UUID. A repetition with the same key and the same body is
    /// answered with the job that the first one made; with another body it is refused. Keys are remembered for 24 hours.
    #[param(rename = "Idempotency-Key", value_type = String, required = false, max_length = 255, pattern = "^[!-~]+$", example = "6f0f2a2e-3f6c-4c8b-9d57-1f7a1a1f7f35")]
    key: Option<String>,
}

impl IdempotencyKey {
    fn of(request: &HttpRequest) -> Result<Self> {
        let Some(value) = request.headers().get("idempotency-key") else {
            return Ok(Self { key: None });
        };
        let text = String::from_utf8_lossy(value.as_bytes());
        let key = text.trim();
        if key.is_empty() || key.len() > LONGEST || !key.bytes().all(|byte| byte.is_ascii_graphic())
        {
            let rule = "must be 1 to 255 visible ASCII characters without blanks";
            return Err(refuse(key, rule));
        }
        Ok(Self { key: Some(key.to_owned()) })
    }

    /// The key together with what is asked for. The order of the values is none of its business: some languages shuffle it.
    pub(super) fn of_job(
        self,
        path: &ReleasePath,
        study_id: Option<StudyId>,
        inputs: &JobInputs,
    ) -> Option<Once> {
        let (solver, version) = (path.solver_key.as_str(), path.version.to_string());
        let mut asked = vec![json!(solver), json!(version), json!(inputs.values)];
        // The job of one study is not that of another, though both run the same.
        asked.extend(study_id.map(|study| json!(study)));
        asked.extend(inputs.callback.as_ref().map(JobCallback::fingerprint));
        let resources = inputs.asked();
        if resources != Amounts::default() {
            asked.push(json!(resources));
        }
        let mut asked = Json::Array(asked);
        asked.sort_all_objects();
        let fingerprint = Sha256::digest(asked.to_string()).to_vec();
        self.key.map(|key| Once { key, fingerprint })
    }
}

/// The job that this request has made before.
pub(super) async fn made(once: &Once, caller: &Caller, db: &Db) -> Result<Option<Job>> {
    let Some((id, fingerprint)) = db.job_made(caller.id(), &once.key, now()).await? else {
        return Ok(None);
    };
    if fingerprint != once.fingerprint {
        let rule = format!("made job `{id}` from another body; take a new key for another job");
        return Err(refuse(&once.key, &rule));
    }
    match db.job_get(id, caller.id()).await {
        Ok(job) => Ok(Some(job)),
        Err(store::Error::NotFound { .. }) => {
            let message = format!("{NAME} `{}` made job `{id}`, which was deleted", once.key);
            Err(ApiError::new(ErrorCode::Conflict, message))
        }
        Err(error) => Err(error.into()),
    }
}

fn refuse(key: &str, rule: &str) -> ApiError {
    FieldError::new("value_error", &["header", NAME], key, rule).into()
}
