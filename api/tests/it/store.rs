//! The store, on each of the two databases. Postgres is the server that `SOLVERD_TEST_POSTGRES_URL` names (`scripts/postgres.sh` starts
//! one); every test gets a database of its own. With `REQUIRE_POSTGRES` its absence is a failure.

use std::{collections::BTreeSet, panic::AssertUnwindSafe, str::FromStr, time::Duration};

use chrono::{DateTime, TimeDelta};
use futures_util::FutureExt;
use serde_json::{Map, Value as Json, json};
use solverd::{
    domain::{
        file::File,
        filter::{Glob, JobFilter, NoteFilter},
        id::{FileId, JobId, UserId},
        job::{Job, JobError, JobState, Lease, Transition},
        resources::{Amounts, Held, OwnerLimits, Resources},
        solver::{Body, Container, Limits, Port, PortType, Release, SolverKey, Version},
        steps::Steps,
        time::{Timestamp, now},
        usage::{CpuSource, TotalUsage, Usage},
        user::{Change, Credentials, Language, Name, ProfileUpdate, User, secret_hash},
        value::Values,
        webhook::{Callback, CallbackState, CallbackStatus, Delivery},
    },
    store::{Claimed, Db, Error, LogChunk, Once, Window},
};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, SqliteConnection,
    postgres::PgConnectOptions,
};
use tempfile::TempDir;
use tokio::task::JoinSet;

use crate::support::env;

/// A database that nobody else uses.
pub(crate) struct Fresh {
    pub(crate) url: String,
    place: Place,
}

enum Place {
    Folder(TempDir),
    Server { url: String, name: String },
}

impl Fresh {
    pub(crate) fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("store.db").display());
        Self { url, place: Place::Folder(folder) }
    }

    /// `None` where there is no server and nobody insists on one.
    #[expect(clippy::print_stderr, reason = "nothing is skipped silently")]
    pub(crate) async fn postgres() -> Option<Self> {
        let Some(server) = env("SOLVERD_TEST_POSTGRES_URL") else {
            assert!(
                env("REQUIRE_POSTGRES").is_none(),
                "REQUIRE_POSTGRES is set, but SOLVERD_TEST_POSTGRES_URL is not"
            );
            eprintln!("only on SQLite: SOLVERD_TEST_POSTGRES_URL is not set");
            return None;
        };
        let name = format!("solverd_test_{}", JobId::new().0.simple());
        execute(&server, format!("CREATE DATABASE {name}")).await;
        let options = PgConnectOptions::from_str(&server).unwrap().database(&name);
        let url = options.to_url_lossy().into();
        Some(Self { url, place: Place::Server { url: server, name } })
    }

    /// Gives the opened database to a test, and removes it however the test ends.
    pub(crate) async fn run(self, test: impl AsyncFnOnce(Db)) {
        let db = Db::open(&self.url).await.unwrap();
        let result = AssertUnwindSafe(test(db.clone())).catch_unwind().await;
        db.close().await;
        self.remove().await;
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    }

    async fn remove(self) {
        match self.place {
            Place::Folder(folder) => folder.close().unwrap(),
            Place::Server { url, name } => {
                execute(&url, format!("DROP DATABASE {name} WITH (FORCE)")).await;
            }
        }
    }
}

async fn execute(server: &str, sql: String) {
    let mut connection = PgConnection::connect(server).await.expect("the Postgres server answers");
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
    connection.close().await.unwrap();
}

/// Makes two tests of each function: one on SQLite, one on Postgres.
macro_rules! on_both {
    ($($test:ident,)*) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    super::Fresh::sqlite().run(super::$test).await;
                }
            )*
        }

        mod postgres {
            $(
                #[tokio::test(flavor = "multi_thread")]
                async fn $test() {
                    if let Some(fresh) = super::Fresh::postgres().await {
                        fresh.run(super::$test).await;
                    }
                }
            )*
        }
    };
}

pub(crate) use on_both;

on_both! {
    a_user_is_added_once,
    a_user_changes_what_is_given,
    a_key_speaks_for_its_user_until_it_is_revoked,
    a_release_is_published_once,
    racing_publications_of_a_release_are_one,
    releases_are_in_the_order_of_their_versions,
    an_upload_is_no_file_until_it_is_complete,
    old_uploads_are_found_until_they_end,
    files_are_seen_by_their_owner_only,
    files_are_found_by_content_and_id,
    outputs_are_files_that_no_list_shows,
    a_job_reads_back_as_it_was_stored,
    json_survives_verbatim,
    a_job_lives_from_creation_to_success,
    every_step_out_of_order_is_refused,
    a_failed_job_says_why,
    one_of_16_publications_wins,
    one_of_16_claims_wins,
    the_queue_is_in_the_order_of_submission,
    each_owner_has_one_head_of_the_queue,
    a_waiting_job_says_why,
    what_owners_hold_is_added_up,
    racing_claims_keep_to_the_owners_limits,
    a_full_queue_takes_no_more,
    a_release_is_read_anew_from_the_same_image,
    a_stop_is_an_intent_until_somebody_acts,
    only_the_holder_of_the_lease_ends_a_job,
    a_requeued_job_runs_elsewhere,
    a_deleted_job_is_hidden_and_then_removed,
    what_jobs_used_is_summed_per_user_and_kept,
    pages_have_a_stable_order_and_a_total,
    long_lists_are_found_by_their_counts,
    lists_are_narrowed_by_every_filter,
    notes_are_found_by_pattern,
    several_jobs_are_read_at_once,
    assets_are_deleted_after_the_end,
    moments_sort_by_time_not_by_text,
    the_log_comes_in_order,
    progress_never_falls,
    a_change_wakes_who_waits_for_that_job,
    metadata_are_replaced,
    a_key_makes_one_job_however_many_race,
    a_key_is_forgotten_after_a_day,
    a_step_has_one_job,
    steps_are_removed_before_the_whole,
    one_of_16_spawns_of_a_step_wins,
    a_study_is_seen_by_those_who_may,
    a_newer_version_takes_the_studys_place,
    a_callback_is_due_when_its_job_has_ended,
    a_callback_is_retried_until_that_is_over,
    every_end_makes_its_message,
    nobody_is_told_of_a_deleted_job,
    a_callback_is_claimed_once_however_many_race,
}

const KEY: &str = "simcore/services/comp/test/solver";

fn key() -> SolverKey {
    SolverKey::parse(KEY).unwrap()
}

fn version(text: &str) -> Version {
    Version::parse(text).unwrap()
}

fn port(key: &str, kind: PortType) -> Port {
    Port {
        key: key.to_owned(),
        label: "Länge".to_owned(),
        description: "In metres.".to_owned(),
        kind,
        path: None,
        unit: Some("m".to_owned()),
        default: Some(json!(2.0)),
        required: true,
    }
}

fn release(text: &str) -> Release {
    Release {
        key: key(),
        version: version(text),
        title: "Solver".to_owned(),
        description: "Solves, naïvely.".to_owned(),
        maintainer: "ada@example.org".to_owned(),
        version_display: None,
        inputs: vec![
            port("schema", PortType::Schema(json!({"type": "number", "maximum": 1e300}))),
            port("length", PortType::Number),
            port("file", PortType::File("text/plain".to_owned())),
        ],
        outputs: vec![port("answer", PortType::Integer)],
        body: Body::Container(Container {
            image: "solver:1".to_owned(),
            image_id: "sha256:1".to_owned(),
            image_digest: None,
            command: vec!["run".to_owned(), "--fast".to_owned()],
            env: [("A".to_owned(), "1".to_owned())].into(),
            resources: Resources::default(),
            limits: Limits::default(),
            at_most: Amounts::default(),
            mpi: false,
            network: true,
            progress_regexp: Some(r"^(\d+)%$".to_owned()),
            integration_version: 1,
        }),
    }
}

pub(crate) fn values(text: &str) -> Values {
    serde_json::from_str(text).unwrap()
}

pub(crate) fn lease(instance: &str) -> Lease {
    Lease { instance: instance.to_owned() }
}

fn succeed() -> Transition {
    Transition::Succeed {
        outputs: values(r#"{"answer": 42}"#),
        files: vec![],
        log: Some("jobs/x/log.zip".to_owned()),
    }
}

fn after(begin: Timestamp, microseconds: i64) -> Timestamp {
    begin + TimeDelta::microseconds(microseconds)
}

fn assert_not_found<T: std::fmt::Debug>(result: Result<T, Error>) {
    match result {
        Err(Error::NotFound { .. }) => {}
        other => panic!("{other:?}"),
    }
}

fn assert_conflict<T: std::fmt::Debug>(result: Result<T, Error>) {
    match result {
        Err(Error::Conflict(_)) => {}
        other => panic!("{other:?}"),
    }
}

pub(crate) fn assert_illegal<T: std::fmt::Debug>(result: Result<T, Error>) {
    match result {
        Err(Error::Illegal(_)) => {}
        other => panic!("{other:?}"),
    }
}

async fn user(db: &Db, email: &str) -> User {
    db.user_add(email, now()).await.unwrap()
}

/// A user and a release to make jobs of.
pub(crate) async fn ready(db: &Db) -> UserId {
    db.release_publish(&release("1.0.0"), now()).await.unwrap();
    user(db, "ada@example.org").await.id
}

fn new_job(owner: UserId, at: Timestamp) -> Job {
    Job::new(owner, key(), "1.0.0".to_owned(), "fingerprint".to_owned(), at)
}

async fn add(db: &Db, job: &Job) {
    db.job_add(job, &values(r#"{"length": 3}"#), None).await.unwrap();
}

async fn job(db: &Db, owner: UserId) -> JobId {
    let job = new_job(owner, now());
    add(db, &job).await;
    job.id
}

async fn queued(db: &Db, owner: UserId) -> JobId {
    let id = job(db, owner).await;
    assert!(db.job_publish(id, owner, now()).await.unwrap().1);
    id
}

pub(crate) async fn claimed(db: &Db, owner: UserId, instance: &str) -> Claimed {
    let id = queued(db, owner).await;
    db.job_claim(id, &lease(instance), now()).await.unwrap().unwrap()
}

pub(crate) async fn started(db: &Db, owner: UserId, instance: &str) -> Claimed {
    let mut claimed = claimed(db, owner, instance).await;
    claimed.job = db.job_start(&claimed, Some("container"), now()).await.unwrap();
    claimed
}

fn newest(limit: i64, offset: i64) -> Window {
    Window { limit, offset, oldest_first: false }
}

/// The jobs of one release.
fn of_release(version: &str) -> JobFilter {
    JobFilter { releases: Some(vec![(key(), version.to_owned())]), ..JobFilter::default() }
}

async fn page(db: &Db, owner: UserId, limit: i64, offset: i64) -> Result<(Vec<Job>, i64), Error> {
    db.jobs_list(owner, &of_release("1.0.0"), newest(limit, offset)).await
}

fn upload(owner: UserId, content: &str) -> File {
    File {
        id: FileId::new(),
        owner,
        filename: "ünïcode name.txt".to_owned(),
        size: 1 << 40,
        sha256: content.repeat(64),
        e_tag: None,
        upload_id: Some("upload".to_owned()),
        job_id: None,
        created_at: now(),
        completed_at: None,
    }
}

async fn file(db: &Db, owner: UserId, content: &str) -> FileId {
    let upload = upload(owner, content);
    db.file_add(&upload).await.unwrap();
    db.file_complete(upload.id, owner, "tag", now()).await.unwrap().id
}

async fn a_user_is_added_once(db: Db) {
    assert!(!db.user_any().await.unwrap());
    let at = now();
    let ada = db.user_add("ada@example.org", at).await.unwrap();
    assert!(db.user_any().await.unwrap());
    assert!(ada.id.0 > 0, "oSPARC's clients demand positive ids, got {:?}", ada.id);
    assert_eq!((ada.email.as_str(), ada.created_at), ("ada@example.org", at));
    assert_eq!(db.user_by_email("ada@example.org").await.unwrap(), ada);

    assert_conflict(db.user_add("ada@example.org", now()).await);
    assert_not_found(db.user_by_email("bob@example.org").await);
    assert_ne!(user(&db, "bob@example.org").await.id, ada.id);
}

async fn a_user_changes_what_is_given(db: Db) {
    let (ada, bob) = (user(&db, "ada@example.org").await, user(&db, "bob@example.org").await);
    let name = |text: &str| Name::try_from(text.to_owned()).unwrap();
    let all = ProfileUpdate {
        first_name: Change::To(Some(name("Ada"))),
        last_name: Change::To(Some(name("ü"))),
        language: Change::To(Some(Language::Spanish)),
    };
    let expected = User {
        first_name: Some(name("Ada")),
        last_name: Some(name("ü")),
        language: Some(Language::Spanish),
        ..ada.clone()
    };
    assert_eq!(db.user_change(ada.id, &all).await.unwrap(), expected);
    assert_eq!(db.user_change(ada.id, &ProfileUpdate::default()).await.unwrap(), expected);
    let fewer = ProfileUpdate { last_name: Change::To(None), ..ProfileUpdate::default() };
    db.user_change(ada.id, &fewer).await.unwrap();
    let expected = User { last_name: None, ..expected };
    assert_eq!(db.user_by_email("ada@example.org").await.unwrap(), expected);
    assert_eq!(db.user_by_email("bob@example.org").await.unwrap(), bob);
    assert_not_found(db.user_change(UserId(0), &all).await);
}

async fn a_key_speaks_for_its_user_until_it_is_revoked(db: Db) {
    let (ada, bob) = (user(&db, "ada@example.org").await, user(&db, "bob@example.org").await);
    let credentials = Credentials::random().unwrap();
    db.key_add(&ada, &credentials, now()).await.unwrap();
    let found = db.key_find(&credentials.key).await.unwrap();
    assert_eq!(found, Some((secret_hash(&credentials.secret), ada.clone())));
    assert_eq!(db.key_find("unknown").await.unwrap(), None);

    assert_conflict(db.key_add(&ada, &credentials, now()).await);
    let stolen = Credentials { key: credentials.key.clone(), secret: "another".to_owned() };
    assert_conflict(db.key_add(&bob, &stolen, now()).await);
    assert_eq!(db.key_find(&credentials.key).await.unwrap().unwrap().1, ada);

    let second = Credentials::random().unwrap();
    db.key_add(&ada, &second, now()).await.unwrap();
    db.key_revoke(&credentials.key).await.unwrap();
    assert_eq!(db.key_find(&credentials.key).await.unwrap(), None);
    assert_not_found(db.key_revoke(&credentials.key).await);
    assert_eq!(db.key_find(&second.key).await.unwrap().unwrap().1, ada);
}

async fn a_release_is_published_once(db: Db) {
    let first = release("1.0.0");
    assert!(db.release_publish(&first, now()).await.unwrap());
    assert!(!db.release_publish(&first, now()).await.unwrap());
    assert_eq!(db.release_get(&first.key, &first.version).await.unwrap(), first);

    let other = Release { title: "Another".to_owned(), ..first.clone() };
    assert_conflict(db.release_publish(&other, now()).await);
    assert_eq!(db.release_get(&first.key, &first.version).await.unwrap(), first);
    assert_not_found(db.release_get(&first.key, &version("1.0.1")).await);
}

async fn racing_publications_of_a_release_are_one(db: Db) {
    let mut racers = JoinSet::new();
    for _ in 0..16 {
        let db = db.clone();
        racers.spawn(async move { db.release_publish(&release("1.0.0"), now()).await.unwrap() });
    }
    let new = racers.join_all().await.into_iter().filter(|&new| new).count();
    assert_eq!(new, 1);
}

async fn releases_are_in_the_order_of_their_versions(db: Db) {
    let texts = ["2.10.0", "2.9.1", "2.9.1-rc.1", "10.0.0", "2.9.1-rc.10", "2.9.1-rc.9"];
    for text in texts {
        db.release_publish(&release(text), now()).await.unwrap();
    }
    let elsewhere = SolverKey::parse("simcore/services/comp/aa").unwrap();
    let other = Release { key: elsewhere.clone(), ..release("3.0.0") };
    db.release_publish(&other, now()).await.unwrap();

    let shown = |releases: Vec<Release>| -> Vec<String> {
        releases.iter().map(|release| release.version.to_string()).collect()
    };
    let sorted = ["2.9.1-rc.1", "2.9.1-rc.9", "2.9.1-rc.10", "2.9.1", "2.10.0", "10.0.0"];
    assert_eq!(shown(db.releases_of(&key()).await.unwrap()), sorted);
    assert_eq!(shown(db.releases_all().await.unwrap()), [&["3.0.0"], &sorted[..]].concat());
    assert_not_found(db.releases_of(&SolverKey::parse("simcore/services/comp/bb").unwrap()).await);
}

async fn an_upload_is_no_file_until_it_is_complete(db: Db) {
    let owner = user(&db, "ada@example.org").await.id;
    let upload = upload(owner, "a");
    db.file_add(&upload).await.unwrap();
    assert_eq!(db.file_or_upload(upload.id, owner).await.unwrap(), upload);
    assert_not_found(db.file_get(upload.id, owner).await);
    assert_eq!(db.files_all(owner).await.unwrap(), []);
    assert_eq!(db.files_search(owner, None, None, 50, 0).await.unwrap(), (vec![], 0));

    let at = now();
    let complete = db.file_complete(upload.id, owner, "tag", at).await.unwrap();
    let expected = File {
        e_tag: Some("tag".to_owned()),
        upload_id: None,
        completed_at: Some(at),
        ..upload.clone()
    };
    assert_eq!(complete, expected);
    assert_eq!(db.file_get(upload.id, owner).await.unwrap(), expected);
    let again = db.file_complete(upload.id, owner, "tag", after(at, 5)).await.unwrap();
    assert_eq!(again, expected);
    assert_eq!(db.files_all(owner).await.unwrap(), [expected]);

    db.file_remove(upload.id, owner).await.unwrap();
    assert_not_found(db.file_or_upload(upload.id, owner).await);
    assert_not_found(db.file_remove(upload.id, owner).await);
    assert_not_found(db.file_complete(upload.id, owner, "tag", at).await);
}

async fn old_uploads_are_found_until_they_end(db: Db) {
    let owner = user(&db, "ada@example.org").await.id;
    let begin = now();
    let mut uploads = Vec::new();
    for age in [1, 3, 2, 4] {
        let upload = File { created_at: after(begin, -age), ..upload(owner, "a") };
        db.file_add(&upload).await.unwrap();
        uploads.push(upload);
    }
    db.file_complete(uploads[3].id, owner, "tag", now()).await.unwrap();
    let old = async |limit| {
        let found = db.uploads_begun_before(after(begin, -1), limit).await.unwrap();
        found.iter().map(|file| file.id).collect::<Vec<_>>()
    };
    assert_eq!(old(9).await, [uploads[1].id, uploads[2].id], "the oldest first");
    assert_eq!(old(1).await, [uploads[1].id]);
    assert!(db.upload_remove(uploads[1].id, owner).await.unwrap());
    for gone in [&uploads[1], &uploads[3]] {
        assert!(!db.upload_remove(gone.id, owner).await.unwrap(), "gone, or a file by now");
    }
    assert_eq!(old(9).await, [uploads[2].id]);
    assert_eq!(db.files_all(owner).await.unwrap().len(), 1);
}

async fn files_are_seen_by_their_owner_only(db: Db) {
    let (ada, bob) = (user(&db, "ada@example.org").await.id, user(&db, "bob@example.org").await.id);
    let id = file(&db, ada, "a").await;
    assert_not_found(db.file_get(id, bob).await);
    assert_not_found(db.file_or_upload(id, bob).await);
    assert_not_found(db.file_complete(id, bob, "tag", now()).await);
    assert_not_found(db.file_remove(id, bob).await);
    assert_eq!(db.files_all(bob).await.unwrap(), []);
    assert_eq!(db.files_search(bob, None, Some(id), 50, 0).await.unwrap(), (vec![], 0));
    assert_eq!(db.file_get(id, ada).await.unwrap().id, id);
}

async fn files_are_found_by_content_and_id(db: Db) {
    let owner = user(&db, "ada@example.org").await.id;
    let mut ids = Vec::new();
    for content in ["a", "b", "a"] {
        ids.push(file(&db, owner, content).await);
    }
    let search = async |content: Option<&str>, id, limit, offset| {
        let sha256 = content.map(|content| content.repeat(64));
        let (files, total) =
            db.files_search(owner, sha256.as_deref(), id, limit, offset).await.unwrap();
        (files.iter().map(|file| file.id).collect::<Vec<_>>(), total)
    };
    let [first, second, third] = ids[..] else { unreachable!() };
    assert_eq!(search(None, None, 50, 0).await, (vec![third, second, first], 3));
    assert_eq!(search(None, None, 1, 1).await, (vec![second], 3));
    assert_eq!(search(None, None, 50, 3).await, (vec![], 3));
    assert_eq!(search(Some("a"), None, 50, 0).await, (vec![third, first], 2));
    assert_eq!(search(Some("a"), None, 1, 0).await, (vec![third], 2));
    assert_eq!(search(Some("c"), None, 50, 0).await, (vec![], 0));
    assert_eq!(search(None, Some(second), 50, 0).await, (vec![second], 1));
    assert_eq!(search(Some("b"), Some(second), 50, 0).await, (vec![second], 1));
    assert_eq!(search(Some("a"), Some(second), 50, 0).await, (vec![], 0));
}

async fn outputs_are_files_that_no_list_shows(db: Db) {
    let owner = ready(&db).await;
    let job = job(&db, owner).await;
    let output = File {
        job_id: Some(job),
        e_tag: Some("tag".to_owned()),
        upload_id: None,
        completed_at: Some(now()),
        ..upload(owner, "a")
    };
    db.file_add(&output).await.unwrap();
    assert_eq!(db.file_get(output.id, owner).await.unwrap(), output);
    assert_eq!(db.files_all(owner).await.unwrap(), []);
    assert_eq!(db.files_search(owner, None, None, 50, 0).await.unwrap(), (vec![], 0));
    assert_eq!(db.files_search(owner, None, Some(output.id), 50, 0).await.unwrap(), (vec![], 0));
}

async fn a_job_reads_back_as_it_was_stored(db: Db) {
    let owner = ready(&db).await;
    let bob = user(&db, "bob@example.org").await.id;
    let job = new_job(owner, now());
    add(&db, &job).await;
    assert_eq!(db.job_get(job.id, owner).await.unwrap(), job);
    assert_eq!(db.job_history(job.id).await.unwrap(), [("create".into(), JobState::NotStarted)]);

    assert_not_found(db.job_get(job.id, bob).await);
    assert_not_found(db.job_get(JobId::new(), owner).await);
    assert_not_found(db.job_publish(job.id, bob, now()).await);
    assert_not_found(db.job_request_stop(job.id, bob, now()).await);
    assert_not_found(db.job_request_delete(job.id, bob, now()).await);
    assert_not_found(db.job_set_metadata(job.id, bob, &Values::default()).await);
    assert_eq!(db.job_get(job.id, owner).await.unwrap(), job);

    let stray = Job { solver_version: "9.9.9".to_owned(), ..new_job(owner, now()) };
    let refused = db.job_add(&stray, &Values::default(), None).await;
    assert!(matches!(refused, Err(Error::Database { .. })), "{refused:?}");
    assert_not_found(db.job_get(stray.id, owner).await);
}

async fn json_survives_verbatim(db: Db) {
    let owner = ready(&db).await;
    let inputs = values(
        r#"{"z": 1e3, "a": 2.0, "b": 2, "ünï": "日本 \u0000 \ud83d\ude80 \\u0000", "big": 9007199254740993,
            "bigger": 18446744073709551615, "least": -9223372036854775808, "tiny": 5e-324, "third": 0.3333333333333333,
            "negative zero": -0.0, "text": "1e3", "": null, "list": [{"y": true, "x": [[]]}, {}]}"#,
    );
    let metadata = values(r#"{"2": "two", "1": 1.0, "nul": "\u0000"}"#);
    let job = new_job(owner, now());
    db.job_add(&job, &inputs, None).await.unwrap();
    db.job_set_metadata(job.id, owner, &metadata).await.unwrap();
    let text = |values: &Values| serde_json::to_string(values).unwrap();
    let stored = db.job_inputs(job.id).await.unwrap();
    assert_eq!(text(&stored), text(&inputs), "values, notation and order of the keys");
    assert!(text(&stored).contains(r#""a":2.0,"b":2,"#), "{}", text(&stored));
    assert_eq!(text(&db.job_metadata(job.id).await.unwrap()), text(&metadata));
    assert_eq!(db.job_get(job.id, owner).await.unwrap(), job);
    assert_eq!(db.job_outputs(job.id).await.unwrap(), None);

    let claimed = claimed_job(&db, owner, job.id).await;
    db.job_start(&claimed, Some("container"), now()).await.unwrap();
    let files = vec![File { job_id: Some(job.id), ..upload(owner, "output") }];
    let ending = Transition::Succeed { outputs: inputs.clone(), files: files.clone(), log: None };
    let ended = db.job_finish(&claimed, ending, now()).await.unwrap();
    assert_eq!(db.job_get(job.id, owner).await.unwrap(), ended);
    assert_eq!(text(&db.job_outputs(job.id).await.unwrap().unwrap()), text(&inputs));
    assert_eq!(
        db.file_or_upload(files[0].id, owner).await.unwrap(),
        files[0],
        "outputs come with the end"
    );
    db.job_set_log(job.id, "later").await.unwrap();
    assert_eq!(db.job_get(job.id, owner).await.unwrap().log_key.as_deref(), Some("later"));
}

async fn claimed_job(db: &Db, owner: UserId, id: JobId) -> Claimed {
    db.job_publish(id, owner, now()).await.unwrap();
    db.job_claim(id, &lease("one"), now()).await.unwrap().unwrap()
}

async fn a_job_lives_from_creation_to_success(db: Db) {
    let owner = ready(&db).await;
    let begin = now();
    let at: Vec<_> = (0..6).map(|step| after(begin, step)).collect();
    let mut expected = new_job(owner, at[0]);
    let id = expected.id;
    add(&db, &expected).await;

    let (job, first) = db.job_publish(id, owner, at[1]).await.unwrap();
    expected.state = JobState::Published;
    expected.submitted_at = Some(at[1]);
    assert_eq!((&job, first), (&expected, true));
    let (job, first) = db.job_publish(id, owner, at[5]).await.unwrap();
    assert_eq!((&job, first), (&expected, false), "the second start changes nothing");

    let mut claimed = db.job_claim(id, &lease("one"), at[2]).await.unwrap().unwrap();
    expected.state = JobState::Pending;
    expected.lease = Some("one".to_owned());
    assert_eq!(claimed.job, expected);
    assert!(db.job_claim(id, &lease("two"), at[5]).await.unwrap().is_none());

    claimed.job = db.job_start(&claimed, Some("container"), at[3]).await.unwrap();
    expected.state = JobState::Started;
    expected.started_at = Some(at[3]);
    expected.container = Some("container".to_owned());
    assert_eq!(claimed.job, expected);
    assert_eq!(db.job_get(id, owner).await.unwrap(), expected);

    let ended = db.job_finish(&claimed, succeed(), at[4]).await.unwrap();
    expected.state = JobState::Success;
    expected.progress = 100;
    expected.stopped_at = Some(at[4]);
    expected.lease = None;
    expected.log_key = Some("jobs/x/log.zip".to_owned());
    assert_eq!(ended, expected);
    assert_eq!(db.job_get(id, owner).await.unwrap(), expected, "every moment reads back equal");
    assert!(!db.job_publish(id, owner, at[5]).await.unwrap().1);

    let history = db.job_history(id).await.unwrap();
    let history: Vec<_> = history.iter().map(|(name, state)| (name.as_str(), *state)).collect();
    assert_eq!(
        history,
        [
            ("create", JobState::NotStarted),
            ("publish", JobState::Published),
            ("claim", JobState::Pending),
            ("start", JobState::Started),
            ("succeed", JobState::Success),
        ]
    );
}

async fn every_step_out_of_order_is_refused(db: Db) {
    let owner = ready(&db).await;
    let fresh = job(&db, owner).await;
    assert!(db.job_claim(fresh, &lease("one"), now()).await.unwrap().is_none());

    let mut early = claimed(&db, owner, "one").await;
    assert_illegal(db.job_finish(&early, succeed(), now()).await);
    early.job = db.job_start(&early, Some("container"), now()).await.unwrap();
    assert_illegal(db.job_start(&early, Some("another"), now()).await);
    assert_illegal(db.job_finish(&early, Transition::Requeue, now()).await);
    db.job_finish(&early, succeed(), now()).await.unwrap();
    assert_illegal(db.job_finish(&early, Transition::Abort { log: None }, now()).await);
    assert_illegal(db.job_finish(&early, succeed(), now()).await);

    let job = db.job_get(early.job.id, owner).await.unwrap();
    assert_eq!((job.state, job.container.as_deref()), (JobState::Success, Some("container")));
    assert_eq!(db.job_history(job.id).await.unwrap().len(), 5, "refused steps are no history");
    assert_not_found(db.job_claim(JobId::new(), &lease("one"), now()).await);
}

async fn a_failed_job_says_why(db: Db) {
    let owner = ready(&db).await;
    let running = started(&db, owner, "one").await;
    let error = JobError {
        loc: vec![running.job.id.to_string(), "answer".to_owned()],
        msg: "exit code 1: \u{0}\n\"ü\"".to_owned(),
        kind: "runtime".to_owned(),
        ctx: Map::from_iter([("last_lines".to_owned(), json!(["a", "b"]))]),
    };
    let ending = Transition::Fail { error: error.clone(), log: None };
    db.job_finish(&running, ending, now()).await.unwrap();
    let job = db.job_get(running.job.id, owner).await.unwrap();
    assert_eq!((job.state, job.progress, job.log_key), (JobState::Failed, 100, None));
    assert_eq!(job.error, Some(error));
    assert_eq!(db.job_outputs(job.id).await.unwrap(), None);
}

async fn one_of_16_publications_wins(db: Db) {
    let owner = ready(&db).await;
    let id = job(&db, owner).await;
    let mut racers = JoinSet::new();
    for _ in 0..16 {
        let db = db.clone();
        racers.spawn(async move { db.job_publish(id, owner, now()).await.unwrap() });
    }
    let outcomes = racers.join_all().await;
    assert_eq!(outcomes.iter().filter(|(_, first)| *first).count(), 1);
    let moments: BTreeSet<_> = outcomes.iter().map(|(job, _)| job.submitted_at).collect();
    assert_eq!(moments.len(), 1, "all see the same submission: {moments:?}");
    assert_eq!(db.job_history(id).await.unwrap().len(), 2);
}

async fn one_of_16_claims_wins(db: Db) {
    let owner = ready(&db).await;
    let id = queued(&db, owner).await;
    let mut racers = JoinSet::new();
    for racer in 0..16 {
        let db = db.clone();
        let lease = lease(&format!("instance {racer}"));
        racers.spawn(async move { db.job_claim(id, &lease, now()).await.unwrap() });
    }
    let winners: Vec<_> = racers.join_all().await.into_iter().flatten().collect();
    let [winner] = &winners[..] else { panic!("{} winners", winners.len()) };
    let job = db.job_get(id, owner).await.unwrap();
    assert_eq!(winner.job, job);
    assert!(job.lease.is_some_and(|lease| lease.starts_with("instance ")));
    assert_eq!(db.job_history(id).await.unwrap().len(), 3);
}

async fn the_queue_is_in_the_order_of_submission(db: Db) {
    let owner = ready(&db).await;
    let begin = now();
    let (first, second, third) =
        (job(&db, owner).await, job(&db, owner).await, job(&db, owner).await);
    db.job_publish(third, owner, begin).await.unwrap();
    db.job_publish(first, owner, after(begin, 1)).await.unwrap();
    db.job_publish(second, owner, after(begin, 2)).await.unwrap();
    for expected in [third, first, second] {
        let head = db.queue_head(owner).await.unwrap().expect("a job in the queue");
        assert_eq!(head.id, expected);
        assert_eq!(db.queue_heads().await.unwrap(), [head]);
        db.job_claim(expected, &lease("one"), now()).await.unwrap().unwrap();
    }
    assert_eq!(db.queue_head(owner).await.unwrap(), None);
    assert_eq!(db.queue_heads().await.unwrap(), []);
}

async fn each_owner_has_one_head_of_the_queue(db: Db) {
    let ada = ready(&db).await;
    let mut heads = Vec::new();
    for email in ["bob@example.org", "cyd@example.org", "dan@example.org"] {
        let owner = user(&db, email).await.id;
        heads.push((owner, queued(&db, owner).await));
        queued(&db, owner).await;
    }
    // What is to be stopped is not to be run, and what takes nothing waits for nobody.
    let stopped = queued(&db, ada).await;
    db.job_request_stop(stopped, ada, now()).await.unwrap();
    let whole = Job { resources: Resources::NOTHING, ..new_job(ada, now()) };
    add(&db, &whole).await;
    db.job_publish(whole.id, ada, now()).await.unwrap();
    let for_nothing = db.jobs_queued_for_nothing(9).await.unwrap();
    assert_eq!(ids(&for_nothing), [whole.id]);
    // One that has been told to wait is still the head.
    db.job_wait(heads[1].1, "why", Some("line\n"), now()).await.unwrap();

    let found = async || {
        let mut found: Vec<_> =
            db.queue_heads().await.unwrap().iter().map(|job| (job.owner, job.id)).collect();
        found.sort_by_key(|(owner, _)| owner.0);
        found
    };
    assert_eq!(found().await, heads);
    assert_eq!(db.queue_head(ada).await.unwrap(), None);
    heads.push((ada, queued(&db, ada).await));
    heads.sort_by_key(|(owner, _)| owner.0);
    assert_eq!(found().await, heads);
}

async fn a_waiting_job_says_why(db: Db) {
    let owner = ready(&db).await;
    let id = queued(&db, owner).await;
    let at = now();
    db.job_wait(id, "no room", Some("1 no room\n"), at).await.unwrap();
    db.job_wait(id, "still none", Some("2 still none\n"), at).await.unwrap();
    db.job_wait(id, "no room", None, at).await.unwrap();
    let job = db.job_get(id, owner).await.unwrap();
    assert_eq!(
        (job.state, job.waiting.as_deref()),
        (JobState::WaitingForResources, Some("no room"))
    );
    let claimed = db.job_claim(id, &lease("one"), now()).await.unwrap().unwrap();
    assert_eq!((claimed.job.state, claimed.job.waiting.as_deref()), (JobState::Pending, None));
    db.job_wait(id, "too late", Some("too late\n"), now()).await.unwrap();
    assert_eq!(db.job_get(id, owner).await.unwrap(), claimed.job, "it has been taken");
    db.job_log_add(&claimed, claimed.next_chunk(), "3 begun\n").await.unwrap();
    let log = db.job_log(id, 0, 9).await.unwrap();
    let log: Vec<_> = log.iter().map(|chunk| (chunk.seq, chunk.text.as_str())).collect();
    assert_eq!(log, [(1, "1 no room\n"), (2, "2 still none\n"), (3, "3 begun\n")]);
    let history = db.job_history(id).await.unwrap();
    let names: Vec<_> = history.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["create", "publish", "wait", "claim"]);

    // It goes back, waits again, and is stopped.
    db.job_finish(&claimed, Transition::Requeue, now()).await.unwrap();
    db.job_wait(id, "no room", Some("4\n"), now()).await.unwrap();
    let asked = db.job_request_stop(id, owner, now()).await.unwrap();
    assert!(asked.stop_requested_at.is_some());
    assert_eq!(ids(&db.jobs_queued_to_stop(9).await.unwrap()), [id]);
}

async fn what_owners_hold_is_added_up(db: Db) {
    let (ada, bob) = (ready(&db).await, user(&db, "bob@example.org").await.id);
    assert_eq!(db.owners_held().await.unwrap(), [].into());
    let one = Resources { nano_cpus: 1_500_000_000, memory_bytes: 1 << 40, gpus: 2 };
    for (owner, resources, lessee) in [
        (ada, one, Some("one")),
        (ada, one, Some("two")),
        (ada, Resources::NOTHING, Some("one")),
        (bob, one, None),
    ] {
        let job = Job { resources, ..new_job(owner, now()) };
        add(&db, &job).await;
        db.job_publish(job.id, owner, now()).await.unwrap();
        if let Some(lessee) = lessee {
            db.job_claim(job.id, &lease(lessee), now()).await.unwrap().unwrap();
        }
    }
    let held = Held { jobs: 2, resources: one + one };
    assert_eq!(db.owners_held().await.unwrap(), [(ada, held)].into());
}

async fn racing_claims_keep_to_the_owners_limits(db: Db) {
    let owner = ready(&db).await;
    let limits = OwnerLimits { jobs: Some(3), ..OwnerLimits::default() };
    let mut racers = JoinSet::new();
    for number in 0..12 {
        let id = queued(&db, owner).await;
        for instance in ["one", "two"] {
            let (db, lease) = (db.clone(), lease(&format!("{instance} {number}")));
            racers.spawn(
                async move { db.job_claim_within(id, &lease, &limits, now()).await.unwrap() },
            );
        }
    }
    let claimed: Vec<_> = racers.join_all().await.into_iter().flatten().collect();
    assert_eq!(claimed.len(), 3);
    let ids: BTreeSet<_> = claimed.iter().map(|claimed| claimed.job.id).collect();
    assert_eq!(ids.len(), 3, "none is taken twice");
    assert_eq!(db.owners_held().await.unwrap()[&owner].jobs, 3);

    // What ends makes room for one; another owner has room anyway; and of two CPUs one is left.
    db.job_finish(&claimed[0], Transition::Abort { log: None }, now()).await.unwrap();
    let other = user(&db, "bob@example.org").await.id;
    for (owner, expected) in [(owner, true), (owner, false), (other, true)] {
        let head = db.queue_head(owner).await.unwrap();
        let id = if let Some(job) = head { job.id } else { queued(&db, owner).await };
        let claimed = db.job_claim_within(id, &lease("one"), &limits, now()).await.unwrap();
        assert_eq!(claimed.is_some(), expected);
    }
    let cpus = Amounts { nano_cpus: Some(2_000_000_000), ..Amounts::default() };
    let limits = OwnerLimits { resources: cpus, ..OwnerLimits::default() };
    for expected in [true, false] {
        let id = queued(&db, other).await;
        let claimed = db.job_claim_within(id, &lease("one"), &limits, now()).await.unwrap();
        assert_eq!(claimed.is_some(), expected);
    }
}

async fn a_full_queue_takes_no_more(db: Db) {
    let owner = ready(&db).await;
    let mut racers = JoinSet::new();
    for _ in 0..12 {
        let (db, id) = (db.clone(), job(&db, owner).await);
        racers.spawn(async move { (id, db.job_publish_within(id, owner, 3, now()).await) });
    }
    let (mut published, mut refused) = (Vec::new(), Vec::new());
    for (id, answer) in racers.join_all().await {
        match answer {
            Ok((job, first)) => {
                assert!(first && job.state == JobState::Published);
                published.push(id);
            }
            Err(Error::QueueFull(3)) => refused.push(id),
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!((published.len(), refused.len()), (3, 9));
    let (_, first) = db.job_publish_within(published[0], owner, 3, now()).await.unwrap();
    assert!(!first, "it is there already");
    db.job_claim(published[0], &lease("one"), now()).await.unwrap().unwrap();
    assert!(db.job_publish_within(refused[0], owner, 3, now()).await.unwrap().1);
}

async fn a_release_is_read_anew_from_the_same_image(db: Db) {
    let old = release("1.0.0");
    assert!(db.release_publish(&old, now()).await.unwrap());
    let mut new = old.clone();
    let Body::Container(container) = &mut new.body else { panic!("one container") };
    container.resources.gpus = 1;
    container.at_most.nano_cpus = Some(1);
    container.mpi = true;
    assert!(!db.release_publish(&new, now()).await.unwrap());
    assert_eq!(db.release_get(&key(), &version("1.0.0")).await.unwrap(), new);
    assert_conflict(db.release_publish(&old, now()).await);
    assert!(!db.release_publish(&new, now()).await.unwrap());
}

async fn a_stop_is_an_intent_until_somebody_acts(db: Db) {
    let owner = ready(&db).await;
    let idle = job(&db, owner).await;
    let untouched = db.job_request_stop(idle, owner, now()).await.unwrap();
    assert_eq!((untouched.state, untouched.stop_requested_at), (JobState::NotStarted, None));

    let waiting = queued(&db, owner).await;
    let at = now();
    let asked = db.job_request_stop(waiting, owner, at).await.unwrap();
    assert_eq!((asked.state, asked.stop_requested_at), (JobState::Published, Some(at)));
    let again = db.job_request_stop(waiting, owner, after(at, 9)).await.unwrap();
    assert_eq!(again.stop_requested_at, Some(at), "the first wish counts");
    assert_eq!(db.queue_heads().await.unwrap(), [], "it is not to be run");
    assert_eq!(db.jobs_queued_to_stop(10).await.unwrap(), [again]);
    let claimed = db.job_claim(waiting, &lease("one"), now()).await.unwrap().unwrap();
    db.job_finish(&claimed, Transition::Abort { log: None }, now()).await.unwrap();
    assert_eq!(db.jobs_queued_to_stop(10).await.unwrap(), []);

    let running = started(&db, owner, "one").await;
    assert_eq!(db.jobs_leased_to_stop(&lease("one")).await.unwrap(), []);
    db.job_request_stop(running.job.id, owner, now()).await.unwrap();
    assert_eq!(db.jobs_leased_to_stop(&lease("one")).await.unwrap(), [running.job.id]);
    assert_eq!(db.jobs_leased_to_stop(&lease("two")).await.unwrap(), []);
    let ended = db.job_finish(&running, succeed(), now()).await.unwrap();
    assert_eq!(ended.state, JobState::Success, "it may end well before the stop arrives");
    assert_eq!(db.jobs_leased_to_stop(&lease("one")).await.unwrap(), []);
    let late = db.job_request_stop(idle, owner, now()).await.unwrap();
    assert_eq!(late.stop_requested_at, None);
}

async fn only_the_holder_of_the_lease_ends_a_job(db: Db) {
    let owner = ready(&db).await;
    let mine = started(&db, owner, "one").await;
    let mut thief = started(&db, owner, "two").await;
    // What somebody holds who has not noticed that another instance took the job over.
    thief.job = mine.job.clone();
    assert_illegal(db.job_finish(&thief, succeed(), now()).await);
    assert_illegal(db.job_finish(&thief, Transition::Abort { log: None }, now()).await);
    assert_illegal(db.job_start(&thief, Some("theirs"), now()).await);
    db.job_progress(&thief, 90).await.unwrap();
    assert_eq!(db.job_get(mine.job.id, owner).await.unwrap(), mine.job);

    let held = db.jobs_leased(&lease("one")).await.unwrap();
    assert_eq!(held, [mine.job]);
    let held = db.job_claimed(held[0].clone(), &lease("one")).await.unwrap();
    db.job_finish(&held, succeed(), now()).await.unwrap();
    assert!(db.jobs_leased(&lease("one")).await.unwrap().is_empty());
}

async fn a_requeued_job_runs_elsewhere(db: Db) {
    let owner = ready(&db).await;
    let first = claimed(&db, owner, "one").await;
    let id = first.job.id;
    let submitted = first.job.submitted_at;
    let back = db.job_finish(&first, Transition::Requeue, now()).await.unwrap();
    assert_eq!((back.state, back.lease), (JobState::Published, None));
    assert_eq!(back.submitted_at, submitted, "it keeps its place in the queue");

    let mut second = db.job_claim(id, &lease("two"), now()).await.unwrap().unwrap();
    assert_illegal(db.job_finish(&first, Transition::Abort { log: None }, now()).await);
    second.job = db.job_start(&second, Some("container"), now()).await.unwrap();
    db.job_finish(&second, succeed(), now()).await.unwrap();
    let names: Vec<_> =
        db.job_history(id).await.unwrap().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["create", "publish", "claim", "requeue", "claim", "start", "succeed"]);
}

async fn a_deleted_job_is_hidden_and_then_removed(db: Db) {
    let owner = ready(&db).await;
    let running = started(&db, owner, "one").await;
    let id = running.job.id;
    db.job_log_add(&running, running.next_chunk(), "line\n").await.unwrap();
    let output =
        File { job_id: Some(id), completed_at: Some(now()), upload_id: None, ..upload(owner, "a") };
    db.file_add(&output).await.unwrap();
    let input = file(&db, owner, "b").await;

    db.job_request_delete(id, owner, now()).await.unwrap();
    assert_not_found(db.job_get(id, owner).await);
    assert_not_found(db.file_get(output.id, owner).await);
    assert_not_found(db.job_request_delete(id, owner, now()).await);
    assert_not_found(db.job_request_stop(id, owner, now()).await);
    assert_not_found(db.job_publish(id, owner, now()).await);
    assert_not_found(db.job_set_metadata(id, owner, &Values::default()).await);
    assert_eq!(page(&db, owner, 50, 0).await.unwrap(), (vec![], 0));
    assert_eq!(db.jobs_leased_to_stop(&lease("one")).await.unwrap(), [id], "it is to be stopped");
    assert_eq!(db.jobs_to_remove(10).await.unwrap(), [], "but not before it has ended");

    db.job_finish(&running, Transition::Abort { log: None }, now()).await.unwrap();
    assert_eq!(db.jobs_to_remove(10).await.unwrap(), [id]);
    assert_eq!(db.job_remove(id).await.unwrap(), [output.id]);
    assert_eq!(db.jobs_to_remove(10).await.unwrap(), []);
    assert_eq!(db.job_history(id).await.unwrap(), []);
    assert_eq!(db.job_log(id, 0, 10).await.unwrap(), []);
    assert_not_found(db.file_get(output.id, owner).await);
    assert_eq!(db.file_get(input, owner).await.unwrap().id, input);
    assert_eq!(db.job_remove(id).await.unwrap(), [], "removing it again does no harm");

    let unstarted = job(&db, owner).await;
    db.job_request_delete(unstarted, owner, now()).await.unwrap();
    assert_eq!(db.jobs_to_remove(10).await.unwrap(), [unstarted]);
    let waiting = queued(&db, owner).await;
    db.job_request_delete(waiting, owner, now()).await.unwrap();
    let stop = db.jobs_queued_to_stop(10).await.unwrap();
    assert_eq!(stop.iter().map(|job| job.id).collect::<Vec<_>>(), [waiting]);
}

async fn what_jobs_used_is_summed_per_user_and_kept(db: Db) {
    let owner = ready(&db).await;
    let bob = user(&db, "bob@example.org").await.id;
    let hour = 3_600_000_000;
    let measured = Usage {
        cpu_micros: 1000 * hour,
        cpu_source: CpuSource::Measured,
        wall_micros: hour,
        peak_memory: Some(1 << 40),
    };
    let reserved = Usage { cpu_source: CpuSource::Reserved, peak_memory: None, ..measured };
    let mut ids = Vec::new();
    for (owner, usage, ending) in [
        (owner, Some(measured), succeed()),
        (owner, Some(reserved), Transition::Abort { log: None }),
        (owner, None, Transition::Abort { log: None }),
        (bob, Some(measured), succeed()),
    ] {
        let mut claimed = started(&db, owner, "a").await;
        claimed.usage = usage;
        db.job_finish(&claimed, ending, now()).await.unwrap();
        assert_eq!(db.job_usage(claimed.job.id).await.unwrap(), usage);
        ids.push(claimed.job.id);
    }
    let mut requeued = claimed(&db, owner, "a").await;
    requeued.usage = Some(measured);
    db.job_finish(&requeued, Transition::Requeue, now()).await.unwrap();
    assert_eq!(db.job_usage(requeued.job.id).await.unwrap(), None);

    db.job_request_delete(ids[0], owner, now()).await.unwrap();
    db.job_remove(ids[0]).await.unwrap();
    let total = TotalUsage {
        jobs: 2,
        cpu_micros: 2000 * hour,
        reserved_micros: 1000 * hour,
        wall_micros: 2 * hour,
    };
    assert_eq!(db.user_usage(owner).await.unwrap(), total);
    assert_eq!(db.user_usage(UserId(0)).await.unwrap(), TotalUsage::default());
}

async fn pages_have_a_stable_order_and_a_total(db: Db) {
    let owner = ready(&db).await;
    let bob = user(&db, "bob@example.org").await.id;
    db.release_publish(&release("1.0.1"), now()).await.unwrap();
    let begin = now();
    // Groups of five share a moment: their ids decide, not the order in which they were stored.
    let jobs: Vec<_> = (0..45).map(|number| new_job(owner, after(begin, number / 5))).collect();
    for position in 0..45 {
        add(&db, &jobs[position * 7 % 45]).await;
    }
    let newest_first: Vec<_> = jobs.iter().rev().map(|job| job.id).collect();
    add(&db, &new_job(bob, now())).await;
    let other = Job { solver_version: "1.0.1".to_owned(), ..new_job(owner, now()) };
    add(&db, &other).await;

    let ids = async |limit, offset| {
        let (jobs, total) = page(&db, owner, limit, offset).await.unwrap();
        (jobs.iter().map(|job| job.id).collect::<Vec<_>>(), total)
    };
    for _ in 0..2 {
        let mut seen = Vec::new();
        for (offset, expected) in [(0, 20), (20, 20), (40, 5), (60, 0)] {
            let (page, total) = ids(20, offset).await;
            assert_eq!((page.len(), total), (expected, 45));
            seen.extend(page);
        }
        assert_eq!(seen, newest_first);
        // Neither does running change the order.
        for id in [newest_first[44], newest_first[20]] {
            db.job_publish(id, owner, now()).await.unwrap();
        }
    }
    assert_eq!(ids(i64::MAX, 0).await, (newest_first, 45), "all at once");
}

fn ids(jobs: &[Job]) -> Vec<JobId> {
    jobs.iter().map(|job| job.id).collect()
}

/// Several runs of counts, written by many at once, in no strict order, with gaps: every page is where plain counting puts it.
async fn long_lists_are_found_by_their_counts(db: Db) {
    let owner = ready(&db).await;
    db.release_publish(&release("1.0.1"), now()).await.unwrap();
    let begin = now();
    let jobs: Vec<_> = (0..2600)
        .map(|number| {
            let version = if number % 3 == 0 { "1.0.1" } else { "1.0.0" };
            // Of eight jobs some share a moment.
            let at = after(begin, number - number % 8 / 3);
            Job { solver_version: version.to_owned(), ..new_job(owner, at) }
        })
        .collect();
    let mut adding = JoinSet::new();
    for part in 0..4 {
        let (db, jobs) = (db.clone(), jobs.clone());
        adding.spawn(async move {
            for job in jobs.iter().skip(part).step_by(4) {
                add(&db, job).await;
            }
        });
    }
    adding.join_all().await;
    let mut listed = jobs;
    listed.sort_by_key(|job| (job.created_at, job.id));
    listed.reverse();
    for job in [0, 1, 700, 1500, 1501, 1502, 2599].map(|place: usize| listed[place].clone()) {
        db.job_request_delete(job.id, owner, now()).await.unwrap();
        listed.retain(|other| other.id != job.id);
    }
    // One that comes very late, and one whose clock was far ahead.
    for at in [begin, after(begin, 1_000_000_000)] {
        let job = new_job(owner, at - TimeDelta::seconds(1));
        add(&db, &job).await;
        listed.push(job);
    }
    listed.sort_by_key(|job| (job.created_at, job.id));
    listed.reverse();
    for (filter, version) in [
        (JobFilter::default(), None),
        (of_release("1.0.0"), Some("1.0.0")),
        (of_release("1.0.1"), Some("1.0.1")),
        // This one is counted job by job.
        (
            JobFilter { created_from: Some(begin - TimeDelta::days(1)), ..JobFilter::default() },
            None,
        ),
    ] {
        let expected: Vec<_> = listed
            .iter()
            .filter(|job| version.is_none_or(|version| job.solver_version == version))
            .map(|job| job.id)
            .collect();
        let size = i64::try_from(expected.len()).unwrap();
        for offset in [0, 1, 49, 690, 840, 998, 1000, 1001, 1700, 2000, size - 3, size, size + 9] {
            let at = usize::try_from(offset).unwrap().min(expected.len());
            let end = (at + 50).min(expected.len());
            let (jobs, total) = db.jobs_list(owner, &filter, newest(50, offset)).await.unwrap();
            assert_eq!((ids(&jobs), total), (expected[at..end].to_vec(), size), "{offset}");

            let window = Window { oldest_first: true, ..newest(50, offset) };
            let (jobs, _) = db.jobs_list(owner, &filter, window).await.unwrap();
            let mut oldest_first = expected.clone();
            oldest_first.reverse();
            assert_eq!(ids(&jobs), oldest_first[at..end], "{offset}, oldest first");
        }
        let (jobs, _) = db.jobs_list(owner, &filter, newest(i64::MAX, 0)).await.unwrap();
        assert_eq!(ids(&jobs), expected);
    }
}

async fn lists_are_narrowed_by_every_filter(db: Db) {
    let owner = ready(&db).await;
    let bob = user(&db, "bob@example.org").await.id;
    db.release_publish(&release("1.0.1"), now()).await.unwrap();
    let begin = now();
    let mut jobs = Vec::new();
    for number in 0..6 {
        let version = if number % 2 == 0 { "1.0.0" } else { "1.0.1" };
        let job = new_job(owner, after(begin, number));
        let job = Job { solver_version: version.to_owned(), ..job };
        add(&db, &job).await;
        jobs.push(job.id);
    }
    add(&db, &new_job(bob, begin)).await;
    db.job_publish(jobs[1], owner, now()).await.unwrap();
    db.job_publish(jobs[4], owner, now()).await.unwrap();
    db.job_claim(jobs[4], &lease("one"), now()).await.unwrap().unwrap();

    let glob = |text| Glob::parse(text).unwrap();
    let both = db.releases_matching(Some(&glob("*/test/*")), Some(&glob("1.0.?"))).await.unwrap();
    assert_eq!(both.len(), 2);
    let one = db.releases_matching(None, Some(&glob("*.1"))).await.unwrap();
    assert_eq!(one, [(key(), "1.0.1".to_owned())]);
    let none = db.releases_matching(Some(&glob("test")), None).await.unwrap();
    let all = JobFilter::default;
    let started = vec![JobState::Published, JobState::Pending];
    for (filter, expected) in [
        (all(), &[5, 4, 3, 2, 1, 0][..]),
        (JobFilter { releases: Some(both.clone()), ..all() }, &[5, 4, 3, 2, 1, 0]),
        (JobFilter { releases: Some(one), ..all() }, &[5, 3, 1]),
        (JobFilter { releases: Some(none), ..all() }, &[]),
        (JobFilter { states: vec![JobState::NotStarted], ..all() }, &[5, 3, 2, 0]),
        (JobFilter { states: started.clone(), ..all() }, &[4, 1]),
        (JobFilter { states: started, ..of_release("1.0.1") }, &[1]),
        (JobFilter { created_from: Some(after(begin, 4)), ..all() }, &[5, 4]),
        (JobFilter { created_before: Some(after(begin, 2)), ..all() }, &[1, 0]),
        (
            JobFilter {
                releases: Some(both),
                created_from: Some(after(begin, 2)),
                created_before: Some(after(begin, 4)),
                ..all()
            },
            &[3, 2],
        ),
    ] {
        let (found, total) = db.jobs_list(owner, &filter, newest(50, 0)).await.unwrap();
        let expected: Vec<_> = expected.iter().map(|&number: &usize| jobs[number]).collect();
        assert_eq!((ids(&found), total), (expected, i64::try_from(found.len()).unwrap()));
    }
}

async fn notes_are_found_by_pattern(db: Db) {
    let owner = ready(&db).await;
    let bob = user(&db, "bob@example.org").await.id;
    let mut jobs = Vec::new();
    for notes in [
        r#"{"mesh": "Fine", "run": 7}"#,
        r#"{"mesh": "fine_2", "final": true}"#,
        r#"{"mesh": "coarse", "run": 7.5, "text": "a\u0000b"}"#,
        "{}",
    ] {
        let id = job(&db, owner).await;
        db.job_set_metadata(id, owner, &values(notes)).await.unwrap();
        assert_eq!(db.job_metadata(id).await.unwrap(), values(notes));
        jobs.push(id);
    }
    let others = job(&db, bob).await;
    db.job_set_metadata(others, bob, &values(r#"{"mesh": "fine"}"#)).await.unwrap();
    // Longer than what can be searched, and than what an index takes.
    let long = json!({"mesh": "fine", "x": "x".repeat(5000), "y".repeat(5000): 1}).to_string();
    db.job_set_metadata(jobs[3], owner, &values(&long)).await.unwrap();

    let found = async |any: &[&str], all: &[&str]| {
        let parse = |texts: &[&str]| {
            texts.iter().map(|text| NoteFilter::parse(text, ':').unwrap()).collect::<Vec<_>>()
        };
        let (any_notes, all_notes) = (parse(any), parse(all));
        let filter = JobFilter { any_notes, all_notes, ..JobFilter::default() };
        let (found, total) = db.jobs_list(owner, &filter, newest(50, 0)).await.unwrap();
        assert_eq!(total, i64::try_from(found.len()).unwrap());
        let place = |job: &Job| jobs.iter().position(|id| *id == job.id).unwrap();
        found.iter().map(place).collect::<Vec<_>>()
    };
    assert_eq!(found(&[], &["mesh:fine"]).await, [3, 0], "whatever its case");
    assert_eq!(found(&[], &["mesh:FINE*"]).await, [3, 1, 0]);
    assert_eq!(found(&[], &["mesh:fine_?"]).await, [1], "`_` is itself");
    assert_eq!(found(&[], &["mesh:*", "run:7*"]).await, [2, 0]);
    assert_eq!(found(&["final:true", "run:7.5"], &[]).await, [2, 1]);
    assert_eq!(found(&["final:yes", "Mesh:fine"], &[]).await, [] as [usize; 0]);
    db.job_set_metadata(jobs[0], owner, &Values::default()).await.unwrap();
    assert_eq!(found(&[], &["mesh:fine"]).await, [3], "notes are replaced");
    db.job_request_delete(jobs[3], owner, now()).await.unwrap();
    assert_eq!(found(&[], &["mesh:fine"]).await, [] as [usize; 0]);
    assert_eq!(db.job_remove(jobs[3]).await.unwrap(), []);
}

async fn several_jobs_are_read_at_once(db: Db) {
    let owner = ready(&db).await;
    let bob = user(&db, "bob@example.org").await.id;
    let mut jobs = Vec::new();
    for number in 0..5 {
        let id = job(&db, owner).await;
        let notes = values(&json!({"number": number}).to_string());
        db.job_set_metadata(id, owner, &notes).await.unwrap();
        jobs.push(id);
    }
    let asked = [jobs[3], jobs[0], jobs[3]];
    assert_eq!(ids(&db.jobs_get(&asked, owner).await.unwrap()), asked);
    let notes = db.jobs_metadata(&asked, owner).await.unwrap();
    let notes: Vec<_> =
        notes.iter().map(|(job, notes)| (job.id, notes["number"].clone())).collect();
    assert_eq!(notes, [(jobs[3], json!(3)), (jobs[0], json!(0)), (jobs[3], json!(3))]);

    let (others, unknown) = (job(&db, bob).await, JobId::new());
    let refused = db.jobs_get(&[jobs[0], others, unknown], owner).await.unwrap_err();
    assert_eq!(refused.to_string(), format!("job `{others}`, `{unknown}` not found"));
    db.job_request_delete(jobs[0], owner, now()).await.unwrap();
    assert_not_found(db.jobs_metadata(&asked, owner).await);
}

async fn assets_are_deleted_after_the_end(db: Db) {
    let owner = ready(&db).await;
    let running = started(&db, owner, "one").await;
    let id = running.job.id;
    db.job_log_add(&running, running.next_chunk(), "line\n").await.unwrap();
    for early in [id, job(&db, owner).await, queued(&db, owner).await] {
        assert_conflict(db.job_delete_assets(early, owner, now()).await);
    }
    let bob = user(&db, "bob@example.org").await.id;
    assert_not_found(db.job_delete_assets(id, bob, now()).await);
    let output = File { job_id: Some(id), ..upload(owner, "a") };
    let ending = Transition::Succeed {
        outputs: values(r#"{"answer": 42}"#),
        files: vec![output.clone()],
        log: Some("jobs/x/log.zip".to_owned()),
    };
    let ended = db.job_finish(&running, ending, now()).await.unwrap();

    let at = now();
    assert_eq!(db.job_delete_assets(id, owner, at).await.unwrap(), (vec![id], vec![output.id]));
    let again = db.job_delete_assets(id, owner, after(at, 9)).await.unwrap();
    assert_eq!(again, (vec![id], vec![]), "again");
    let left = Job { assets_deleted_at: Some(at), log_key: None, ..ended };
    assert_eq!(db.job_get(id, owner).await.unwrap(), left);
    assert_eq!(db.job_outputs(id).await.unwrap(), None);
    assert_eq!(db.job_log(id, 0, 10).await.unwrap(), []);
    assert_not_found(db.file_get(output.id, owner).await);
    // Somebody was making up the log at that moment.
    db.job_set_log(id, "jobs/x/log.zip").await.unwrap();
    assert_eq!(db.job_get(id, owner).await.unwrap().log_key, None);
}

async fn moments_sort_by_time_not_by_text(db: Db) {
    let owner = ready(&db).await;
    let second = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    let mut newest_first = Vec::new();
    // Written with as many digits as they need, these differ in length.
    for microseconds in [0, 1, 1_000, 1_001, 500_000, 500_001, 999_999, 1_000_000] {
        let job = new_job(owner, after(second, microseconds));
        add(&db, &job).await;
        newest_first.insert(0, job.created_at);
    }
    let (jobs, _) = page(&db, owner, 50, 0).await.unwrap();
    assert_eq!(jobs.iter().map(|job| job.created_at).collect::<Vec<_>>(), newest_first);
}

async fn the_log_comes_in_order(db: Db) {
    let owner = ready(&db).await;
    let claimed = claimed(&db, owner, "one").await;
    let (id, other) = (claimed.job.id, started(&db, owner, "one").await);
    let texts = ["a\nb\n", "ü 日本 🚀\n", "\n", "last\n"];
    for text in texts {
        db.job_log_add(&claimed, claimed.next_chunk(), text).await.unwrap();
        db.job_log_add(&other, other.next_chunk(), "of another job\n").await.unwrap();
    }
    let chunk =
        |seq: usize| LogChunk { seq: i32::try_from(seq).unwrap(), text: texts[seq - 1].to_owned() };
    let log = async |after, limit| db.job_log(id, after, limit).await.unwrap();
    assert_eq!(log(0, 10).await, [chunk(1), chunk(2), chunk(3), chunk(4)]);
    // The answer to an attempt was lost.
    db.job_log_add(&claimed, 4, texts[3]).await.unwrap();
    // After a restart.
    let again = db.job_claimed(claimed.job.clone(), &lease("one")).await.unwrap();
    assert_eq!(again.next_chunk(), 5);
    let before = async |seq, limit| db.job_log_before(id, seq, limit).await.unwrap();
    assert_eq!(before(i32::MAX, 3).await, [chunk(4), chunk(3), chunk(2)]);
    assert_eq!(before(2, 3).await, [chunk(1)]);
    assert_eq!(log(0, 2).await, [chunk(1), chunk(2)]);
    assert_eq!(log(2, 10).await, [chunk(3), chunk(4)]);
    assert_eq!(log(3, 1).await, [chunk(4)]);
    assert_eq!(log(4, 10).await, []);
    let bytes: usize = texts.iter().map(|text| text.len()).sum();
    assert_eq!(db.job_log_bytes(id).await.unwrap(), i64::try_from(bytes).unwrap());
}

async fn progress_never_falls(db: Db) {
    let owner = ready(&db).await;
    let running = started(&db, owner, "one").await;
    let progress = async || db.job_get(running.job.id, owner).await.unwrap().progress;
    for (percent, expected) in [(5, 5), (50, 50), (20, 50), (50, 50), (51, 51)] {
        db.job_progress(&running, percent).await.unwrap();
        assert_eq!(progress().await, expected, "after {percent}");
    }
    db.job_finish(&running, Transition::Abort { log: None }, now()).await.unwrap();
    db.job_progress(&running, 60).await.unwrap();
    assert_eq!(progress().await, 100, "every final state is at 100");
}

async fn a_change_wakes_who_waits_for_that_job(db: Db) {
    let owner = ready(&db).await;
    let id = job(&db, owner).await;
    let mut changed = db.job_changes(id);
    let mut unconcerned = db.job_changes(job(&db, owner).await);
    let soon = Duration::from_secs(2);
    // The change came after the subscription and before the wait: it is not missed.
    db.job_publish(id, owner, now()).await.unwrap();
    tokio::time::timeout(soon, changed.wait()).await.expect("woken by the publication");
    let claimed = db.job_claim(id, &lease("one"), now()).await.unwrap().unwrap();
    tokio::time::timeout(soon, changed.wait()).await.expect("woken by the claim");
    db.job_log_add(&claimed, claimed.next_chunk(), "line\n").await.unwrap();
    tokio::time::timeout(soon, changed.wait()).await.expect("woken by the log");
    assert!(unconcerned.wait().now_or_never().is_none(), "nothing happened to this one");
}

async fn metadata_are_replaced(db: Db) {
    let owner = ready(&db).await;
    let id = job(&db, owner).await;
    assert_eq!(db.job_metadata(id).await.unwrap(), Values::default());
    for text in [r#"{"b": true, "a": 1}"#, r#"{"c": "x"}"#, "{}", r#"{"kept": 1}"#] {
        db.job_set_metadata(id, owner, &values(text)).await.unwrap();
        assert_eq!(db.job_metadata(id).await.unwrap(), values(text));
    }
    db.job_publish(id, owner, now()).await.unwrap();
    assert_eq!(db.job_metadata(id).await.unwrap(), values(r#"{"kept": 1}"#), "starting keeps them");
}

#[tokio::test]
async fn an_address_of_another_kind_is_refused() {
    let refused = Db::open("mysql://localhost/x").await.err().unwrap();
    assert!(matches!(refused, Error::Address(_)), "{refused:?}");
}

#[tokio::test]
async fn what_is_stored_outlives_its_process() {
    let mut places = vec![Fresh::sqlite()];
    places.extend(Fresh::postgres().await);
    for fresh in places {
        let db = Db::open(&fresh.url).await.unwrap();
        let owner = ready(&db).await;
        let id = job(&db, owner).await;
        db.close().await;
        let db = Db::open(&fresh.url).await.unwrap();
        assert_eq!(db.job_get(id, owner).await.unwrap().id, id);
        db.close().await;
        fresh.remove().await;
    }
}

/// Table, column, type, whether it may be null.
type Column = (String, String, String, bool);

fn step(owner: UserId, name: &str) -> Job {
    Job { step: Some(name.to_owned()), ..new_job(owner, now()) }
}

async fn spawn(db: &Db, whole: &Claimed, name: &str) -> bool {
    let inputs = values(r#"{"length": 4}"#);
    db.job_spawn(whole, step(whole.job.owner, name), &inputs, now()).await.unwrap()
}

async fn a_step_has_one_job(db: Db) {
    let owner = ready(&db).await;
    let whole = claimed(&db, owner, "i").await;
    let mut changes = db.job_changes(whole.job.id);
    assert!(spawn(&db, &whole, "one").await);
    assert!(!spawn(&db, &whole, "one").await);
    let children = db.job_children(whole.job.id).await.unwrap();
    let [child] = &children[..] else { panic!("{children:#?}") };
    assert_eq!((child.parent_id, child.step.as_deref()), (Some(whole.job.id), Some("one")));
    assert_eq!((child.state, child.submitted_at.is_some()), (JobState::Published, true));
    assert_eq!(db.job_inputs(child.id).await.unwrap(), values(r#"{"length": 4}"#));
    let history = db.job_history(child.id).await.unwrap();
    assert_eq!(
        history.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["create", "publish"]
    );
    assert_eq!(db.queue_heads().await.unwrap(), children);

    // It is in no list, and what changes it changes the whole.
    for filter in [JobFilter::default(), of_release("1.0.0")] {
        let (page, total) = db.jobs_list(owner, &filter, newest(9, 0)).await.unwrap();
        assert_eq!((page.len(), page[0].id, total), (1, whole.job.id, 1));
    }
    // But it is listed where the steps are asked for.
    for (parent, found) in [(whole.job.id, vec![child.id]), (child.id, vec![])] {
        let filter = JobFilter { parent: Some(parent), ..of_release("1.0.0") };
        let (page, total) = db.jobs_list(owner, &filter, newest(9, 0)).await.unwrap();
        assert_eq!((ids(&page), total), (found.clone(), i64::try_from(found.len()).unwrap()));
    }
    db.job_claim(child.id, &lease("j"), now()).await.unwrap().unwrap();
    changes.wait().await;

    // Nobody starts a step of what is to be stopped, or of what he does not hold.
    let mut thief = claimed(&db, owner, "j").await;
    thief.job = whole.job.clone();
    assert_illegal(db.job_spawn(&thief, step(owner, "two"), &Values::default(), now()).await);
    db.job_request_stop(whole.job.id, owner, now()).await.unwrap();
    assert!(!spawn(&db, &whole, "two").await);
}

async fn one_of_16_spawns_of_a_step_wins(db: Db) {
    let owner = ready(&db).await;
    let whole = claimed(&db, owner, "i").await.job;
    let mut racers = JoinSet::new();
    for _ in 0..16 {
        let db = db.clone();
        racers.spawn(async move {
            let held = db.jobs_leased(&lease("i")).await.unwrap().remove(0);
            spawn(&db, &db.job_claimed(held, &lease("i")).await.unwrap(), "one").await
        });
    }
    let won = racers.join_all().await.into_iter().filter(|won| *won).count();
    assert_eq!((won, db.job_children(whole.id).await.unwrap().len()), (1, 1));
}

async fn steps_are_removed_before_the_whole(db: Db) {
    let owner = ready(&db).await;
    let whole = claimed(&db, owner, "i").await;
    assert!(spawn(&db, &whole, "one").await);
    let child = db.job_children(whole.job.id).await.unwrap().remove(0);
    assert_conflict(db.job_request_delete(child.id, owner, now()).await);
    let held = db.job_claim(child.id, &lease("i"), now()).await.unwrap().unwrap();
    assert!(spawn(&db, &held, "inner").await);
    let inner = db.job_children(child.id).await.unwrap().remove(0);
    let held_inner = db.job_claim(inner.id, &lease("i"), now()).await.unwrap().unwrap();
    db.job_request_delete(whole.job.id, owner, now()).await.unwrap();
    for held in [&held_inner, &held, &whole] {
        assert_eq!(db.jobs_to_remove(9).await.unwrap(), []);
        db.job_finish(held, Transition::Abort { log: None }, now()).await.unwrap();
    }
    for id in [inner.id, child.id, whole.job.id] {
        assert_eq!(db.jobs_to_remove(9).await.unwrap(), [id]);
        db.job_remove(id).await.unwrap();
    }
    assert_eq!(db.jobs_to_remove(9).await.unwrap(), []);
}

pub(crate) fn steps(text: &str) -> Release {
    let body = Body::Steps(Steps { steps: vec![], outputs: [].into() });
    let key = SolverKey::parse("simcore/services/comp/test/study").unwrap();
    Release { key, body, ..release(text) }
}

async fn a_study_is_seen_by_those_who_may(db: Db) {
    let (ada, bob) = (ready(&db).await, user(&db, "bob@example.org").await.id);
    assert_eq!(db.studies_page(ada, 9, 0).await.unwrap(), (vec![], 0));
    let release = steps("1.0.0");
    for new in [true, false] {
        assert_eq!(db.release_publish(&release, now()).await.unwrap(), new);
    }
    let study = db.studies_page(bob, 9, 0).await.unwrap().0.remove(0);
    assert_eq!((&study.title, &study.solver_key), (&release.title, &release.key));
    assert_eq!(db.study_get(study.id, ada).await.unwrap(), study);

    let clone = study.clone().cloned(ada, false, now());
    let hidden = study.clone().cloned(ada, true, now());
    for added in [&clone, &hidden] {
        db.study_add(added).await.unwrap();
        assert_eq!(db.study_get(added.id, ada).await.unwrap(), *added);
        assert_not_found(db.study_get(added.id, bob).await);
    }
    assert_eq!(db.studies_page(ada, 1, 0).await.unwrap(), (vec![clone.clone()], 2));
    assert_eq!(db.studies_page(ada, 1, 1).await.unwrap(), (vec![study.clone()], 2));
    assert_eq!(db.studies_page(bob, 9, 0).await.unwrap().1, 1);

    let job = Job { study_id: Some(clone.id), ..new_job(ada, now()) };
    add(&db, &job).await;
    assert_eq!(db.job_get(job.id, ada).await.unwrap(), job);
    assert_eq!(db.study_jobs_page(clone.id, ada, 9, 0).await.unwrap(), (vec![job], 1));
    assert_eq!(db.study_jobs_page(study.id, ada, 9, 0).await.unwrap(), (vec![], 0));
    assert_eq!(db.study_jobs_page(clone.id, bob, 9, 0).await.unwrap(), (vec![], 0));
}

async fn a_newer_version_takes_the_studys_place(db: Db) {
    let ada = user(&db, "ada@example.org").await.id;
    for (published, offered) in [("1.9.0", "1.9.0"), ("1.10.0", "1.10.0"), ("1.2.0", "1.10.0")] {
        let release = Release { title: published.to_owned(), ..steps(published) };
        db.release_publish(&release, now()).await.unwrap();
        let (studies, total) = db.studies_page(ada, 9, 0).await.unwrap();
        assert_eq!((studies[0].solver_version.as_str(), total), (offered, 1));
        assert_eq!(studies[0].title, offered);
    }
}

/// Both schemas have the same tables, columns, foreign keys and indexes.
#[tokio::test(flavor = "multi_thread")]
async fn jobs_of_earlier_versions_take_what_their_release_declares() {
    const BACK: &str = "DROP INDEX jobs_queued; DROP INDEX jobs_queued_for_nothing; DROP INDEX jobs_queued_to_stop; \
                        ALTER TABLE jobs DROP COLUMN nano_cpus; ALTER TABLE jobs DROP COLUMN memory_bytes; \
                        ALTER TABLE jobs DROP COLUMN gpus; ALTER TABLE jobs DROP COLUMN waiting; \
                        CREATE INDEX jobs_queued ON jobs (submitted_at, id) WHERE state = 'PUBLISHED'; \
                        DELETE FROM _sqlx_migrations WHERE version = 7";
    for fresh in [Some(Fresh::sqlite()), Fresh::postgres().await].into_iter().flatten() {
        let db = Db::open(&fresh.url).await.unwrap();
        let owner = ready(&db).await;
        let declared = Resources { nano_cpus: 250_000_000, memory_bytes: 3 << 40, gpus: 0 };
        let mut nul = release("1.0.1");
        nul.description = "in no JSON of Postgres: \0".to_owned();
        let Body::Container(container) = &mut nul.body else { panic!("one container") };
        container.resources = declared;
        let whole = Release {
            body: Body::Steps(Steps { steps: vec![], outputs: [].into() }),
            ..release("1.0.2")
        };
        let mut jobs = Vec::new();
        for release in [nul, whole] {
            db.release_publish(&release, now()).await.unwrap();
            let job = Job { solver_version: release.version.to_string(), ..new_job(owner, now()) };
            add(&db, &job).await;
            jobs.push(job.id);
        }
        db.close().await;
        if fresh.url.starts_with("sqlite:") {
            let mut connection = SqliteConnection::connect(&fresh.url).await.unwrap();
            connection.execute(BACK).await.unwrap();
            connection.close().await.unwrap();
        } else {
            execute(&fresh.url, BACK.to_owned()).await;
        }

        let db = Db::open(&fresh.url).await.unwrap();
        for (id, expected) in jobs.into_iter().zip([declared, Resources::NOTHING]) {
            assert_eq!(db.job_get(id, owner).await.unwrap().resources, expected);
        }
        db.close().await;
        fresh.remove().await;
    }
}

#[tokio::test]
async fn both_schemas_are_the_same() {
    let Some(postgres) = Fresh::postgres().await else { return };
    let sqlite = Fresh::sqlite();
    for fresh in [&postgres, &sqlite] {
        Db::open(&fresh.url).await.unwrap().close().await;
    }
    let mut lite = SqliteConnection::connect(&sqlite.url).await.unwrap();
    let mut pg = PgConnection::connect(&postgres.url).await.unwrap();

    let columns_of_lite: Vec<Column> = sqlx::query_as(
        r#"SELECT t.name, c.name, c.type, c."notnull" = 0 AND c.pk = 0 FROM sqlite_master t, pragma_table_info(t.name) c
           WHERE t.type = 'table' AND t.name NOT LIKE 'sqlite_%' AND t.name <> '_sqlx_migrations' ORDER BY t.name, c.cid"#,
    )
    .fetch_all(&mut lite)
    .await
    .unwrap();
    let columns_of_pg: Vec<Column> = sqlx::query_as(
        "SELECT table_name::text, column_name::text, data_type::text, is_nullable = 'YES' FROM information_schema.columns
         WHERE table_schema = 'public' AND table_name <> '_sqlx_migrations' ORDER BY table_name, ordinal_position",
    )
    .fetch_all(&mut pg)
    .await
    .unwrap();
    // What the one SQL text and the one set of Rust types take for the same.
    let same = |lite: &str, pg: &str| {
        matches!(
            (lite, pg),
            ("TEXT", "text" | "timestamp with time zone")
                | ("BLOB", "uuid" | "bytea")
                | ("INTEGER", "integer" | "bigint" | "boolean")
        )
    };
    assert!(columns_of_lite.len() > 40, "only {} columns", columns_of_lite.len());
    assert_eq!(columns_of_lite.len(), columns_of_pg.len());
    for (lite, pg) in columns_of_lite.iter().zip(&columns_of_pg) {
        assert_eq!((&lite.0, &lite.1, lite.3), (&pg.0, &pg.1, pg.3));
        assert!(same(&lite.2, &pg.2), "{lite:?} is {pg:?}");
    }

    let keys_of_lite: BTreeSet<[String; 5]> = sqlx::query_as(
        r#"SELECT t.name, k."from", k."table", k."to", k.on_delete FROM sqlite_master t, pragma_foreign_key_list(t.name) k
           WHERE t.type = 'table'"#,
    )
    .fetch_all(&mut lite)
    .await
    .unwrap()
    .into_iter()
    .map(<(String, String, String, String, String)>::into)
    .collect();
    let keys_of_pg: BTreeSet<[String; 5]> = sqlx::query_as(
        "SELECT k.conrelid::regclass::text, f.attname::text, k.confrelid::regclass::text, t.attname::text,
                CASE k.confdeltype WHEN 'c' THEN 'CASCADE' WHEN 'a' THEN 'NO ACTION' ELSE k.confdeltype::text END
         FROM pg_constraint k, generate_subscripts(k.conkey, 1) i, pg_attribute f, pg_attribute t
         WHERE k.contype = 'f' AND f.attrelid = k.conrelid AND f.attnum = k.conkey[i]
           AND t.attrelid = k.confrelid AND t.attnum = k.confkey[i]",
    )
    .fetch_all(&mut pg)
    .await
    .unwrap()
    .into_iter()
    .map(<(String, String, String, String, String)>::into)
    .collect();
    assert_eq!(keys_of_lite, keys_of_pg);

    let indexes_of_lite: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL ORDER BY name",
    )
    .fetch_all(&mut lite)
    .await
    .unwrap();
    let indexes_of_pg: Vec<String> = sqlx::query_scalar(
        "SELECT indexrelid::regclass::text FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
         WHERE c.relnamespace = 'public'::regnamespace AND NOT EXISTS (SELECT 1 FROM pg_constraint WHERE conindid = i.indexrelid)
         ORDER BY 1",
    )
    .fetch_all(&mut pg)
    .await
    .unwrap();
    assert_eq!(indexes_of_lite, indexes_of_pg);

    lite.close().await.unwrap();
    pg.close().await.unwrap();
    sqlite.remove().await;
    postgres.remove().await;
}

fn once(key: &str) -> Once {
    Once { key: key.to_owned(), fingerprint: vec![0, 255, 7] }
}

async fn a_key_makes_one_job_however_many_race(db: Db) {
    let owner = ready(&db).await;
    let mut racing = JoinSet::new();
    for _ in 0..16 {
        let (db, job) = (db.clone(), new_job(owner, now()));
        racing.spawn(async move {
            let added =
                db.job_add_once(&job, &Values::default(), None, &once("key")).await.unwrap();
            added.then_some(job.id)
        });
    }
    let winners: Vec<_> = racing.join_all().await.into_iter().flatten().collect();
    assert_eq!(winners.len(), 1);
    let made = db.job_made(owner, "key", now()).await.unwrap();
    assert_eq!(made, Some((winners[0], once("key").fingerprint)));
    assert_eq!(db.jobs_list(owner, &of_release("1.0.0"), newest(50, 0)).await.unwrap().1, 1);

    // Keys of different owners have nothing to do with each other.
    let bob = user(&db, "bob@example.org").await.id;
    assert_eq!(db.job_made(bob, "key", now()).await.unwrap(), None);
    assert!(
        db.job_add_once(&new_job(bob, now()), &Values::default(), None, &once("key"))
            .await
            .unwrap()
    );
    // A job that is not stored leaves no key behind.
    let nobody = new_job(UserId(1 << 40), now());
    assert!(db.job_add_once(&nobody, &Values::default(), None, &once("new")).await.is_err());
    assert_eq!(db.job_made(UserId(1 << 40), "new", now()).await.unwrap(), None);
}

async fn a_key_is_forgotten_after_a_day(db: Db) {
    let (owner, begin) = (ready(&db).await, now());
    let add = async |key, hours| {
        let job = new_job(owner, begin + TimeDelta::hours(hours));
        db.job_add_once(&job, &Values::default(), None, &once(key)).await.unwrap().then_some(job.id)
    };
    let made = async |key, hours| {
        let at = begin + TimeDelta::hours(hours);
        db.job_made(owner, key, at).await.unwrap().map(|(id, _)| id)
    };
    let (first, other) = (add("key", 0).await, add("other", 0).await);
    assert!(first.is_some() && other.is_some());
    assert_eq!(add("key", 23).await, None);
    assert_eq!((made("key", 23).await, made("key", 25).await), (first, None));
    let second = add("key", 25).await;
    assert!(second.is_some() && second != first);
    assert_eq!((made("key", 25).await, made("other", 1).await), (second, None), "cleared away");
}

/// A job that has begun, and whose end is to be told.
async fn begun_with_callback(db: &Db, owner: UserId) -> Claimed {
    let url = "https://example.org/ended".parse().unwrap();
    let (job, callback) = (new_job(owner, now()), Callback { url, secret: vec![0, 7, 255] });
    db.job_add(&job, &Values::default(), Some(&callback)).await.unwrap();
    db.job_publish(job.id, owner, now()).await.unwrap();
    let mut claimed = claimed_job(db, owner, job.id).await;
    claimed.job = db.job_start(&claimed, Some("container"), now()).await.unwrap();
    claimed
}

/// A job that has ended, and when its callback was due.
async fn ended_with_callback(db: &Db, owner: UserId) -> (JobId, Timestamp) {
    let (claimed, end) = (begun_with_callback(db, owner).await, now());
    db.job_finish(&claimed, succeed(), end).await.unwrap();
    (claimed.job.id, end)
}

/// Claims a callback for a minute.
async fn take(db: &Db, at: Timestamp) -> Option<Delivery> {
    db.callback_claim(at, at + TimeDelta::minutes(1)).await.unwrap()
}

async fn a_callback_is_due_when_its_job_has_ended(db: Db) {
    let owner = ready(&db).await;
    let claimed = begun_with_callback(&db, owner).await;
    let id = claimed.job.id;
    let waiting = CallbackStatus {
        job_id: id,
        url: "https://example.org/ended".to_owned(),
        state: CallbackState::Waiting,
        attempts: 0,
        next_attempt_at: None,
        last_result: None,
    };
    assert_eq!(db.callback_get(id, owner).await.unwrap(), waiting);
    let long_after = now() + TimeDelta::days(1);
    assert!(take(&db, long_after).await.is_none());

    // A step of it has none, nor has another job.
    assert!(spawn(&db, &claimed, "step").await);
    let step = db.job_children(id).await.unwrap().remove(0);
    let other = started(&db, owner, "i").await;
    db.job_finish(&other, succeed(), now()).await.unwrap();
    for without in [step.id, other.job.id] {
        assert_not_found(db.callback_get(without, owner).await);
    }
    assert!(take(&db, long_after).await.is_none());

    let end = now();
    db.job_finish(&claimed, succeed(), end).await.unwrap();
    let due =
        CallbackStatus { state: CallbackState::Due, next_attempt_at: Some(end), ..waiting.clone() };
    assert_eq!(db.callback_get(id, owner).await.unwrap(), due);
    let bob = user(&db, "bob@example.org").await.id;
    assert_not_found(db.callback_get(id, bob).await);
    assert!(take(&db, end - TimeDelta::microseconds(1)).await.is_none());
    let delivery = take(&db, end).await.unwrap();
    assert_eq!((delivery.job_id, delivery.url, delivery.attempts), (id, waiting.url, 1));
    assert_eq!(delivery.secret, [0, 7, 255]);
    assert!(delivery.payload.starts_with(r#"{"type":"job.succeeded","timestamp":"#));
}

async fn a_callback_is_retried_until_that_is_over(db: Db) {
    let owner = ready(&db).await;
    let (id, end) = ended_with_callback(&db, owner).await;
    let lost = take(&db, end).await.unwrap();
    assert!(take(&db, end).await.is_none(), "somebody has it");
    let later = end + TimeDelta::minutes(1);
    let first = take(&db, later).await.unwrap();
    assert_eq!((first.attempts, &first.payload), (2, &lost.payload));

    // Who was taken for dead and was only slow changes nothing any more.
    db.callback_attempted(&lost, CallbackState::Delivered, None, "status 200").await.unwrap();
    assert_eq!(db.callback_get(id, owner).await.unwrap().last_result, None);
    let next = later + TimeDelta::hours(1);
    let failed = |delivery: Delivery, next| {
        let db = &db;
        async move {
            let result = "status 500";
            let state = CallbackState::Due;
            db.callback_attempted(&delivery, state, Some(next), result).await.unwrap();
            db.callback_get(id, owner).await.unwrap()
        }
    };
    let status = failed(first, next).await;
    assert_eq!((status.attempts, status.state), (2, CallbackState::Due));
    assert_eq!(
        (status.next_attempt_at, status.last_result.as_deref()),
        (Some(next), Some("status 500"))
    );

    // Another one that is due for longer comes first.
    let (other, _) = ended_with_callback(&db, owner).await;
    assert_eq!(take(&db, next).await.unwrap().job_id, other);
    let second = take(&db, next).await.unwrap();
    assert_eq!((second.job_id, second.attempts, &second.payload), (id, 3, &lost.payload));
    assert_eq!(second.secret, lost.secret);
    db.callback_attempted(&second, CallbackState::Delivered, None, "status 204").await.unwrap();
    let told = CallbackStatus {
        job_id: id,
        url: second.url.clone(),
        state: CallbackState::Delivered,
        attempts: 3,
        next_attempt_at: None,
        last_result: Some("status 204".to_owned()),
    };
    assert_eq!(db.callback_get(id, owner).await.unwrap(), told);
    assert_eq!(failed(second, next).await, told, "what is over stays so");
    let other = take(&db, next + TimeDelta::days(9)).await.unwrap();
    assert_ne!(other.job_id, id);
}

async fn every_end_makes_its_message(db: Db) {
    let owner = ready(&db).await;
    let error = JobError {
        loc: vec!["job".to_owned()],
        msg: "a NUL \0 in its words".to_owned(),
        kind: "runtime".to_owned(),
        ctx: Map::new(),
    };
    for (ending, kind, state) in [
        (succeed(), "job.succeeded", "SUCCESS"),
        (Transition::Fail { error: error.clone(), log: None }, "job.failed", "FAILED"),
        (Transition::Abort { log: None }, "job.aborted", "ABORTED"),
    ] {
        let claimed = begun_with_callback(&db, owner).await;
        let job = db.job_finish(&claimed, ending, now()).await.unwrap();
        let message: Json = serde_json::from_str(&take(&db, now()).await.unwrap().payload).unwrap();
        let data = &message["data"];
        assert_eq!(
            (&message["type"], &message["timestamp"]),
            (&json!(kind), &json!(job.stopped_at))
        );
        assert_eq!((&data["job_id"], &data["state"]), (&json!(job.id), &json!(state)));
        assert_eq!((&data["stopped_at"], &data["progress"]), (&json!(job.stopped_at), &json!(100)));
        let errors = if state == "FAILED" { json!([error]) } else { Json::Null };
        assert_eq!(data["errors"], errors);
    }
}

async fn nobody_is_told_of_a_deleted_job(db: Db) {
    let owner = ready(&db).await;
    let (ended, _) = ended_with_callback(&db, owner).await;
    let running = begun_with_callback(&db, owner).await;
    for id in [ended, running.job.id] {
        db.job_request_delete(id, owner, now()).await.unwrap();
        assert_not_found(db.callback_get(id, owner).await);
    }
    db.job_finish(&running, Transition::Abort { log: None }, now()).await.unwrap();
    assert!(take(&db, now()).await.is_none());

    // Not even if it is being told at that moment.
    let (id, end) = ended_with_callback(&db, owner).await;
    let delivery = take(&db, end).await.unwrap();
    db.job_request_delete(id, owner, now()).await.unwrap();
    db.callback_attempted(&delivery, CallbackState::Due, Some(end), "status 500").await.unwrap();
    assert!(take(&db, now()).await.is_none());
}

async fn a_callback_is_claimed_once_however_many_race(db: Db) {
    let owner = ready(&db).await;
    let mut due = Vec::new();
    for _ in 0..40 {
        due.push(ended_with_callback(&db, owner).await.0);
    }
    let at = now();
    let mut racers = JoinSet::new();
    for _ in 0..16 {
        let db = db.clone();
        racers.spawn(async move {
            let mut claimed = Vec::new();
            while let Some(delivery) = take(&db, at).await {
                claimed.push((delivery.job_id, delivery.attempts));
            }
            claimed
        });
    }
    let mut claimed = racers.join_all().await.concat();
    claimed.sort_unstable();
    let once: Vec<_> = due.into_iter().map(|id| (id, 1)).collect();
    assert_eq!(claimed, once);
}
