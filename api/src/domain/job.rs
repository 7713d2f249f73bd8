//! Jobs: one run of one solver release. The state machine stands here and nowhere else.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};
use utoipa::ToSchema;

use super::{
    file::File,
    id::{JobId, StudyId, UserId},
    resources::Resources,
    solver::SolverKey,
    time::Timestamp,
    value::Values,
};

/// Where a job stands. Names are oSPARC's `RunningState`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, sqlx::Type)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[sqlx(type_name = "TEXT", rename_all = "SCREAMING_SNAKE_CASE")]
pub enum JobState {
    /// Created, not started.
    NotStarted,
    /// Started by its owner, waiting for its turn.
    Published,
    /// It is its turn, but there is no room for it.
    WaitingForResources,
    /// Taken by a dispatcher: image and inputs are being prepared.
    Pending,
    /// The container runs.
    Started,
    /// Ended with all its outputs.
    Success,
    /// Ended otherwise; the error says why.
    Failed,
    /// Ended because somebody stopped it.
    Aborted,
}

impl JobState {
    /// Every state, in the order a job meets them.
    pub const ALL: [Self; 8] = [
        Self::NotStarted,
        Self::Published,
        Self::WaitingForResources,
        Self::Pending,
        Self::Started,
        Self::Success,
        Self::Failed,
        Self::Aborted,
    ];

    /// Whether it is in the queue: nobody has taken it yet.
    pub const fn is_queued(self) -> bool {
        matches!(self, Self::Published | Self::WaitingForResources)
    }

    /// Whether nothing will happen any more.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Success | Self::Failed | Self::Aborted)
    }
}

impl fmt::Display for JobState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum RunningState {
    Unknown,
    NotStarted,
    Published,
    Pending,
    WaitingForCluster,
    WaitingForResources,
    Started,
    Success,
    Failed,
    Aborted,
}

impl RunningState {
    /// The state of jobs that has this name; jobs here are never in the others.
    pub fn of_jobs(self) -> Option<JobState> {
        match self {
            Self::NotStarted => Some(JobState::NotStarted),
            Self::Published => Some(JobState::Published),
            Self::Pending => Some(JobState::Pending),
            Self::WaitingForResources => Some(JobState::WaitingForResources),
            Self::Started => Some(JobState::Started),
            Self::Success => Some(JobState::Success),
            Self::Failed => Some(JobState::Failed),
            Self::Aborted => Some(JobState::Aborted),
            Self::Unknown | Self::WaitingForCluster => None,
        }
    }
}

/// Part of a place: a name or a position.
// Only its schema is used: oSPARC's clients expect positions, too.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub enum LocInner {
    Position(i64),
    Name(String),
}

/// Why a job failed. The shape is oSPARC's `ErrorDict`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = ErrorDict)]
pub struct JobError {
    /// Where: the job, then the port if it concerns one.
    #[schema(value_type = Vec<LocInner>)]
    pub loc: Vec<String>,
    /// What happened, in a sentence.
    pub msg: String,
    /// Kind of failure, e.g. `runtime`, `runtime.oom`, `ServiceBadFormattedOutputError`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Further facts: `last_lines` holds the end of the solver's log.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    #[schema(value_type = Object)]
    pub ctx: Map<String, Json>,
}

/// Whoever runs a job says so here: nobody else may.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The instance of the service.
    pub instance: String,
}

/// A run of a solver release with input values, by one owner. Inputs, outputs and the owner's notes may be large: the store keeps them
/// beside it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct Job {
    /// Identifies the job.
    pub id: JobId,
    /// Who may see it.
    pub owner: UserId,
    /// The job of the whole that it is a step of.
    pub parent_id: Option<JobId>,
    /// The name of that step.
    pub step: Option<String>,
    /// The study that it was created under.
    pub study_id: Option<StudyId>,
    /// The solver.
    pub solver_key: SolverKey,
    /// The solver's version, as text.
    pub solver_version: String,
    /// Fingerprint of the input values.
    pub inputs_checksum: String,
    /// What its container takes; nothing if it is made of steps.
    #[sqlx(flatten)]
    pub resources: Resources,
    /// Where it stands.
    pub state: JobState,
    /// Percent, never falling; 100 in every final state.
    pub progress: i32,
    /// When it was created.
    pub created_at: Timestamp,
    /// When it was started by its owner.
    pub submitted_at: Option<Timestamp>,
    /// Why it is still in the queue, once it was its turn.
    pub waiting: Option<String>,
    /// When its container began to run.
    pub started_at: Option<Timestamp>,
    /// When it reached a final state.
    pub stopped_at: Option<Timestamp>,
    /// When somebody asked to stop it.
    pub stop_requested_at: Option<Timestamp>,
    /// When its owner deleted it: from then on it is only waiting to be cleared away.
    pub deleted_at: Option<Timestamp>,
    /// When its owner deleted its output files and log.
    pub assets_deleted_at: Option<Timestamp>,
    /// The instance of the service that runs it.
    pub lease: Option<String>,
    /// The engine's id of its container.
    pub container: Option<String>,
    /// Why it failed.
    pub error: Option<JobError>,
    /// Object key of the log zip, once it ended. Absent after the end only while the object store could not take it.
    pub log_key: Option<String>,
}

/// A step of a job's life. A variant carries what its target state needs.
#[derive(Debug, Clone, PartialEq)]
pub enum Transition {
    /// Its owner starts it.
    Publish,
    /// It is its turn, but there is no room for it.
    Wait {
        /// Why.
        reason: String,
    },
    /// A dispatcher takes it.
    Claim(Lease),
    /// A dispatcher went away before the container ran: back into the queue.
    Requeue,
    /// The container runs, or the first step of several.
    Start {
        /// The engine's id; none for steps.
        container: Option<String>,
    },
    /// It ended well.
    Succeed {
        /// Value of every declared output.
        outputs: Values,
        /// The files among them.
        files: Vec<File>,
        /// Object key of the log zip; absent if it could not be stored.
        log: Option<String>,
    },
    /// It ended otherwise.
    Fail {
        /// Why.
        error: JobError,
        /// Object key of the log zip; absent if it could not be stored.
        log: Option<String>,
    },
    /// It was stopped.
    Abort {
        /// Object key of the log zip; absent if it could not be stored.
        log: Option<String>,
    },
}

impl Transition {
    /// Name of the event row.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Publish => "publish",
            Self::Wait { .. } => "wait",
            Self::Claim(_) => "claim",
            Self::Requeue => "requeue",
            Self::Start { .. } => "start",
            Self::Succeed { .. } => "succeed",
            Self::Fail { .. } => "fail",
            Self::Abort { .. } => "abort",
        }
    }

    const fn target(&self) -> JobState {
        match self {
            Self::Publish | Self::Requeue => JobState::Published,
            Self::Wait { .. } => JobState::WaitingForResources,
            Self::Claim(_) => JobState::Pending,
            Self::Start { .. } => JobState::Started,
            Self::Succeed { .. } => JobState::Success,
            Self::Fail { .. } => JobState::Failed,
            Self::Abort { .. } => JobState::Aborted,
        }
    }

    /// The legal order.
    const fn sources(&self) -> &'static [JobState] {
        match self {
            Self::Publish => &[JobState::NotStarted],
            Self::Wait { .. } => &[JobState::Published],
            Self::Claim(_) => &[JobState::Published, JobState::WaitingForResources],
            Self::Requeue | Self::Start { .. } => &[JobState::Pending],
            Self::Succeed { .. } => &[JobState::Started],
            Self::Fail { .. } | Self::Abort { .. } => &[
                JobState::Published,
                JobState::WaitingForResources,
                JobState::Pending,
                JobState::Started,
            ],
        }
    }
}

/// A step that does not lead on from where the job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a job that is {from} cannot {step}")]
pub struct IllegalTransition {
    /// Where the job stands.
    pub from: JobState,
    /// The step.
    pub step: &'static str,
}

impl Job {
    /// A new job, not started.
    pub fn new(
        owner: UserId,
        solver_key: SolverKey,
        solver_version: String,
        inputs_checksum: String,
        now: Timestamp,
    ) -> Self {
        Self {
            id: JobId::new(),
            owner,
            parent_id: None,
            step: None,
            study_id: None,
            solver_key,
            solver_version,
            inputs_checksum,
            resources: Resources::default(),
            state: JobState::NotStarted,
            progress: 0,
            created_at: now,
            submitted_at: None,
            waiting: None,
            started_at: None,
            stopped_at: None,
            stop_requested_at: None,
            deleted_at: None,
            assets_deleted_at: None,
            lease: None,
            container: None,
            error: None,
            log_key: None,
        }
    }

    /// Makes the step, or says why not and changes nothing. Timestamps are written once.
    pub fn apply(
        &mut self,
        transition: Transition,
        now: Timestamp,
    ) -> Result<(), IllegalTransition> {
        if !transition.sources().contains(&self.state) {
            return Err(IllegalTransition { from: self.state, step: transition.name() });
        }
        self.state = transition.target();
        match transition {
            Transition::Publish => self.submitted_at = self.submitted_at.or(Some(now)),
            Transition::Wait { reason } => self.waiting = Some(reason),
            Transition::Claim(lease) => (self.lease, self.waiting) = (Some(lease.instance), None),
            Transition::Requeue => self.lease = None,
            Transition::Start { container } => {
                self.started_at = self.started_at.or(Some(now));
                self.container = container;
            }
            Transition::Fail { error, log } => {
                self.error = Some(error);
                self.log_key = log;
            }
            Transition::Succeed { log, .. } | Transition::Abort { log } => self.log_key = log,
        }
        if self.state.is_final() {
            self.stopped_at = Some(now);
            self.progress = 100;
            (self.lease, self.waiting) = (None, None);
        }
        Ok(())
    }

    /// Object key of a job's log zip.
    pub fn log_object_key(id: JobId) -> String {
        format!("jobs/{id}/log.zip")
    }
}

/// How a job is getting on.
#[derive(Serialize, ToSchema)]
pub struct JobStatus {
    #[schema(value_type = uuid::Uuid)]
    job_id: JobId,
    #[schema(value_type = RunningState)]
    state: JobState,
    /// Percent; never falls, and is 100 in every final state.
    #[schema(minimum = 0, maximum = 100)]
    progress: i32,
    /// When it was started by its owner; until then, when it was created.
    submitted_at: DateTime<Utc>,
    /// When the solver began to run.
    started_at: Option<DateTime<Utc>>,
    /// When it reached a final state.
    stopped_at: Option<DateTime<Utc>>,
    /// Why it failed.
    errors: Option<Vec<JobError>>,
    /// Why it is still in the queue.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
    waiting: Option<String>,
}

impl From<Job> for JobStatus {
    fn from(job: Job) -> Self {
        let its_turn = || "its turn has not come: the oldest of your jobs goes first".to_owned();
        Self {
            waiting: job.waiting.or_else(|| (job.state == JobState::Published).then(its_turn)),
            job_id: job.id,
            state: job.state,
            progress: job.progress,
            submitted_at: job.submitted_at.unwrap_or(job.created_at),
            started_at: job.started_at,
            stopped_at: job.stopped_at,
            errors: job.error.map(|error| vec![error]),
        }
    }
}

/// The level of a log line as the log stream reports it, guessed from its first word like oSPARC does: 40 error, 30 warning, 20 information.
pub fn log_level(line: &str) -> i32 {
    let line = line.trim_start().to_ascii_lowercase();
    let starts = |words: &[&str]| words.iter().any(|word| line.starts_with(word));
    if starts(&[
        "error",
        "[error]",
        "err",
        "[err]",
        "exception",
        "[exception]",
        "exc:",
        "exc ",
        "[exc]",
    ]) {
        40
    } else if starts(&["warning", "[warning]", "warn", "[warn]"]) {
        30
    } else {
        20
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::time::now;

    fn job() -> Job {
        Job::new(
            UserId(1),
            SolverKey::parse("simcore/services/comp/aa").unwrap(),
            "1.0.0".into(),
            String::new(),
            now(),
        )
    }

    fn transitions() -> Vec<Transition> {
        let error =
            JobError { loc: vec![], msg: "broken".into(), kind: "runtime".into(), ctx: Map::new() };
        vec![
            Transition::Publish,
            Transition::Wait { reason: "r".into() },
            Transition::Claim(Lease { instance: "i".into() }),
            Transition::Requeue,
            Transition::Start { container: Some("c".into()) },
            Transition::Succeed { outputs: Values::default(), files: vec![], log: None },
            Transition::Fail { error, log: None },
            Transition::Abort { log: None },
        ]
    }

    #[test]
    fn state_by_transition_matrix() {
        let mut matrix = String::new();
        for state in JobState::ALL {
            for transition in transitions() {
                let mut job = Job { state, ..job() };
                let before = job.clone();
                let name = transition.name();
                let after = if job.apply(transition, now()).is_ok() {
                    job.state.to_string()
                } else {
                    assert_eq!(job, before, "a refused step changes nothing");
                    "-".to_owned()
                };
                matrix += format!("{state:<23}{name:<9}{after}").trim_end();
                matrix += "\n";
            }
        }
        insta::assert_snapshot!(matrix);
    }

    #[test]
    fn a_final_state_is_complete() {
        let mut job =
            Job { state: JobState::Started, progress: 35, lease: Some("i".into()), ..job() };
        let end = now();
        job.apply(Transition::Abort { log: Some("l".into()) }, end).unwrap();
        assert_eq!(
            (job.progress, job.stopped_at, job.lease, job.log_key),
            (100, Some(end), None, Some("l".into()))
        );
    }

    #[test]
    fn levels_are_guessed_from_the_first_word() {
        for (line, level) in [
            ("Error: x", 40),
            ("[ERR] x", 40),
            ("exc: x", 40),
            ("WARN x", 30),
            ("[warning] x", 30),
            ("fine", 20),
            ("no error", 20),
        ] {
            assert_eq!(log_level(line), level, "{line}");
        }
    }
}
