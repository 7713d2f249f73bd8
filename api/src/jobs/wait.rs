//! Waiting for a job to change instead of asking again and again: `Prefer: wait=N` (RFC 7240).

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, http::header::HeaderName};
use serde::{
    Deserialize,
    de::value::{Error, StrDeserializer},
};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;
use utoipa::IntoParams;

use crate::{
    domain::{
        id::JobId,
        job::{Job, JobState},
    },
    error::Result,
    request::from_request,
    store::Db,
};

/// The longest wait, in seconds: proxies and clients give up on a silent connection soon after.
const LONGEST: u64 = 60;

from_request!(Prefer);

/// How long the client would wait for news.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
pub struct Prefer {
    /// `wait=N`: answer as soon as the state or the progress is another than now, or after N seconds (at most 60). To miss nothing
    /// between two calls, add what you saw last: `wait=60; state=STARTED; progress=40` answers at once if the job has moved on since.
    /// An ended job is always answered at once. Preferences that cannot be read are ignored, as RFC 7240 says.
    #[param(rename = "Prefer", value_type = String, required = false, example = "wait=30; state=STARTED; progress=40")]
    wait: Option<Wait>,
}

#[derive(Debug, PartialEq)]
struct Wait {
    seconds: u64,
    /// What the client saw last; what it does not say is what it would see now.
    state: Option<JobState>,
    progress: Option<i32>,
}

impl Prefer {
    #[expect(clippy::unnecessary_wraps, reason = "the signature is from_request's")]
    pub(crate) fn of(request: &HttpRequest) -> Result<Self> {
        let values = request.headers().get_all("prefer").filter_map(|value| value.to_str().ok());
        let wait = values
            .flat_map(|value| value.split(','))
            // Of a preference that comes twice the first counts.
            .find(|preference| name_of(preference).eq_ignore_ascii_case("wait"))
            .and_then(Wait::parse);
        Ok(Self { wait })
    }

    /// Whether the answer may take a while.
    pub(crate) const fn waits(&self) -> bool {
        self.wait.is_some()
    }

    /// Looks until the job is not what the client knows, has ended, the time is up, or the service is shutting down.
    pub(crate) async fn look(
        &self,
        db: &Db,
        id: JobId,
        closing: &CancellationToken,
        look: impl AsyncFn() -> Result<Job>,
    ) -> Result<Job> {
        let Some(wait) = &self.wait else { return look().await };
        let deadline = Instant::now() + Duration::from_secs(wait.seconds);
        let mut changed = db.job_changes(id);
        let mut job = look().await?;
        let known = (wait.state.unwrap_or(job.state), wait.progress.unwrap_or(job.progress));
        while !job.state.is_final() && (job.state, job.progress) == known {
            tokio::select! {
                told = timeout_at(deadline, changed.wait_for_more_than_lines()) => if told.is_err() { break },
                () = closing.cancelled() => break,
            }
            job = look().await?;
        }
        Ok(job)
    }

    /// Says on the answer which wait was granted.
    pub(crate) fn applied(&self, mut response: HttpResponse) -> HttpResponse {
        if let Some(Wait { seconds, .. }) = self.wait
            && let Ok(value) = format!("wait={seconds}").parse()
        {
            response.headers_mut().insert(HeaderName::from_static("preference-applied"), value);
        }
        response
    }
}

fn name_of(preference: &str) -> &str {
    preference.split([';', '=']).next().unwrap_or_default().trim()
}

impl Wait {
    /// `None` if anything about it cannot be read: it is then as if the client had not asked.
    fn parse(preference: &str) -> Option<Self> {
        let mut parts = preference.split(';').map(|part| {
            let (name, value) = part.split_once('=')?;
            Some((name.trim().to_ascii_lowercase(), value.trim().trim_matches('"')))
        });
        let digits = |text: &str| {
            text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let seconds = digits(parts.next()??.1)?.min(LONGEST);
        let mut wait = Self { seconds, state: None, progress: None };
        for part in parts {
            let (name, value) = part?;
            match name.as_str() {
                "state" => wait.state = Some(state(value)?),
                "progress" => wait.progress = Some(i32::try_from(digits(value)?).ok()?),
                _ => {}
            }
        }
        Some(wait)
    }
}

/// A state as it is written on the wire.
fn state(text: &str) -> Option<JobState> {
    JobState::deserialize(StrDeserializer::<Error>::new(text)).ok()
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    fn wait(headers: &[&str]) -> Option<Wait> {
        let request = headers
            .iter()
            .fold(TestRequest::get(), |request, value| request.append_header(("Prefer", *value)));
        Prefer::of(&request.to_http_request()).unwrap().wait
    }

    #[test]
    fn a_preference_is_read_as_rfc_7240_writes_it() {
        let plain = |seconds| Some(Wait { seconds, state: None, progress: None });
        assert_eq!(wait(&["wait=10"]), plain(10));
        assert_eq!(wait(&["respond-async, WAIT = \"7\""]), plain(7));
        assert_eq!(wait(&["handling=lenient", "wait=3;other=1"]), plain(3));
        assert_eq!(wait(&["wait=5, wait=9"]), plain(5));
        assert_eq!(wait(&["wait=100000"]), plain(60));
        let known = Wait { seconds: 30, state: Some(JobState::Started), progress: Some(40) };
        assert_eq!(wait(&["wait=30; state=STARTED; progress=40"]), Some(known));
        for bad in
            ["", "wait", "wait=", "wait=-1", "wait=+1", "wait=1.5", "wait=x", "wait=1; state=GONE"]
        {
            assert_eq!(wait(&[bad]), None, "{bad}");
        }
    }
}
