//! Running jobs on the real engine: what a shutdown, a crash and a full machine make of them.

use std::{
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use chrono::TimeDelta;
use serde_json::json;
use solverd::{
    dispatch::{Dispatcher, Wake, Webhooks},
    domain::{
        file::File,
        id::{FileId, JobId, UserId},
        job::{Job, Lease},
        resources::{Bounds, Kind, OwnerLimits, Resources},
        time::now,
        value::Values,
    },
    objects::{
        self, Location, Objects,
        embedded::{self, Embedded},
    },
    store::Db,
};
use solverd_runner::{engine::Docker, task::Limits};
use sqlx::{Connection, Executor, SqliteConnection};
use tempfile::TempDir;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{
    http::{external_storage, log_in_zip},
    store::Fresh,
    support::{
        Api, BOOTSTRAP, TestApp, containers, folders_of_jobs, machine, settings, sha256, sleeper,
        sleeper_with, text, wait_until,
    },
};

/// Longer than any test waits: such a job is always ended by somebody.
const FOREVER: i64 = 300;

/// What the sleeper needs, on all CPUs: only one such job runs at a time.
async fn all_cpus() -> Resources {
    Resources { memory_bytes: 64 << 20, ..machine().await }
}

/// The log of a sleeper that was adopted by another life of the service.
async fn assert_slept_once(app: &TestApp, job: &str, seconds: i64) {
    let ended = app.wait_for_end(job).await;
    assert_eq!(text(&ended, "/state"), "SUCCESS", "{ended:#}");
    let log = log_in_zip(app, &app.get(&format!("{job}/outputs/logfile")).await).await;
    let mut lines = vec![
        format!("Will sleep for {seconds} seconds"),
        "[solverd] starting".to_owned(),
        "exit code 0".to_owned(),
    ];
    lines.extend((1..=seconds).map(|second| format!("[PROGRESS] {second}/{seconds}")));
    for line in lines {
        assert_eq!(log.matches(&line).count(), 1, "{line} in {log}");
    }
    assert!(log.contains("goes on with the container"), "{log}");
}

#[tokio::test]
async fn what_runs_outlives_a_shutdown() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper_with("3.0.0", all_cpus().await).await).await;
    let running = app.start_job(&release, json!({"input_2": 4})).await;
    let began = app.wait_for(&running, &["STARTED"]).await;
    let waiting = app.start_job(&release, json!({"input_2": 0})).await;
    assert_eq!(app.wait_for(&waiting, &["WAITING_FOR_RESOURCES"]).await["progress"], 0);
    let data = app.leave().await;
    assert_eq!(containers(data.path()).await.len(), 1);

    let app = TestApp::start_in(data, &[]).await;
    assert_eq!(
        app.wait_for(&waiting, &["WAITING_FOR_RESOURCES"]).await["progress"],
        0,
        "its place is taken"
    );
    assert_slept_once(&app, &running, 4).await;
    let ended = app.wait_for_end(&running).await;
    assert_eq!(ended["started_at"], began["started_at"]);
    let next = app.wait_for_end(&waiting).await;
    assert_eq!(text(&next, "/state"), "SUCCESS", "{next:#}");
    app.stop().await;
}

/// The program itself, so that it can be killed.
struct Program(Child);

impl Program {
    /// Starts it on a folder of data; gives the URL it says it is ready at.
    fn start(data: &std::path::Path) -> (Self, String) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_solverd"))
            .arg("serve")
            .args(BOOTSTRAP)
            .args(["--listen=127.0.0.1:0", "--s3-listen=127.0.0.1:0", "--log=warn", "--data-dir"])
            .arg(data)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let url = lines
            .find_map(|line| line.unwrap().strip_prefix("solverd ready at ").map(str::to_owned));
        (Self(child), url.expect("it says that it is ready"))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn what_runs_outlives_a_crash() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let data = app.stop().await;

    let (program, url) = Program::start(data.path());
    let api = Api::at(url);
    let running = api.start_job(&release, json!({"input_2": 4})).await;
    let removed = api.start_job(&release, json!({"input_2": FOREVER})).await;
    let stopped = api.start_job(&release, json!({"input_2": FOREVER})).await;
    for job in [&running, &removed, &stopped] {
        api.wait_for(job, &["STARTED"]).await;
    }
    drop(program);
    assert_eq!(containers(data.path()).await.len(), 3, "a crash leaves the containers behind");
    assert_eq!(folders_of_jobs(data.path()).len(), 3);

    let id = |job: &str| job.rsplit('/').next().unwrap().to_owned();
    let name = format!("solverd-{}", id(&removed));
    let remove = Command::new("docker").args(["rm", "-f", &name]).output().unwrap();
    assert!(remove.status.success(), "{remove:?}");
    let db = Db::open(&settings(data.path(), &[]).database_url()).await.unwrap();
    let owner = db.user_by_email("ada@example.org").await.unwrap().id;
    db.job_request_stop(id(&stopped).parse().unwrap(), owner, now()).await.unwrap();
    db.close().await;
    // Of a job that ended before the crash.
    let left = data.path().join("work").join(JobId::new().to_string());
    std::fs::create_dir_all(left.join("outputs")).unwrap();

    let app = TestApp::start_in(data, &[]).await;
    assert_slept_once(&app, &running, 4).await;
    let lost = app.wait_for_end(&removed).await;
    assert_eq!((text(&lost, "/state"), text(&lost, "/errors/0/type")), ("FAILED", "runtime.lost"));
    let log = log_in_zip(&app, &app.get(&format!("{removed}/outputs/logfile")).await).await;
    assert!(log.contains("Will sleep for") && log.contains("removed by somebody else"), "{log}");
    assert_eq!(text(&app.wait_for_end(&stopped).await, "/state"), "ABORTED");
    app.stop().await;
}

#[tokio::test]
async fn what_was_only_claimed_goes_back_into_the_queue() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let mut jobs = Vec::new();
    for _ in 0..3 {
        jobs.push(app.create(&release, json!({"input_2": 0})).await);
    }
    let data = app.stop().await;
    let instance = std::fs::read_to_string(data.path().join("instance")).unwrap();

    // As a crash between the claim and the start of the container leaves them.
    let db = Db::open(&settings(data.path(), &[]).database_url()).await.unwrap();
    let owner = db.user_by_email("ada@example.org").await.unwrap().id;
    for (job, instance) in jobs.iter().zip([instance.trim(), instance.trim(), "another"]) {
        let id = job.rsplit('/').next().unwrap().parse().unwrap();
        db.job_publish(id, owner, now()).await.unwrap();
        let lease = Lease { instance: instance.to_owned() };
        assert!(db.job_claim(id, &lease, now()).await.unwrap().is_some());
        if *job == jobs[1] {
            db.job_request_stop(id, owner, now()).await.unwrap();
        }
    }
    db.close().await;

    let app = TestApp::start_in(data, &[]).await;
    assert_eq!(text(&app.wait_for_end(&jobs[0]).await, "/state"), "SUCCESS");
    assert_eq!(text(&app.wait_for_end(&jobs[1]).await, "/state"), "ABORTED");
    let others = app.post(&format!("{}:inspect", jobs[2])).await.json();
    assert_eq!(text(&others, "/state"), "PENDING", "it is not this instance's");
    app.stop().await;
}

#[tokio::test]
async fn stop_ends_queued_and_running_jobs() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper_with("3.0.0", all_cpus().await).await).await;
    let running = app.start_job(&release, json!({"input_2": FOREVER})).await;
    app.wait_for(&running, &["STARTED"]).await;
    let waiting = app.start_job(&release, json!({"input_2": FOREVER})).await;

    for (job, last_words) in [(&waiting, "stopped"), (&running, "Will sleep for")] {
        let asked = app.post(&format!("{job}:stop")).await;
        assert_eq!(asked.status, 200, "{asked}");
        let ended = app.wait_for_end(job).await;
        assert_eq!(text(&ended, "/state"), "ABORTED", "{ended:#}");
        assert_eq!((&ended["progress"], &ended["errors"]), (&json!(100), &json!(null)));
        assert_eq!(ended["started_at"].is_string(), job == &running, "{ended:#}");
        let log = log_in_zip(&app, &app.get(&format!("{job}/outputs/logfile")).await).await;
        assert!(log.contains(last_words), "{log}");
        let again = app.post(&format!("{job}:stop")).await;
        assert_eq!((again.status.as_u16(), again.json()), (200, ended));
    }
    app.stop().await;
}

#[tokio::test]
async fn a_deleted_job_stops_and_leaves_nothing() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper_with("3.0.0", all_cpus().await).await).await;
    let running = app.start_job(&release, json!({"input_2": FOREVER})).await;
    app.wait_for(&running, &["STARTED"]).await;
    assert_eq!(app.delete(&running).await.status, 204);
    assert_eq!(app.get(&running).await.status, 404);
    // It gives its place to the next one.
    let next = app.start_job(&release, json!({"input_2": 0})).await;
    assert_eq!(text(&app.wait_for_end(&next).await, "/state"), "SUCCESS");
    app.stop().await;
}

/// A job in the queue that asks for more than there is: it was put there by a service on another machine.
#[tokio::test]
async fn a_queued_job_that_can_never_run_fails_at_once() {
    let app = TestApp::start().await;
    let machine = machine().await;
    let resources = Resources { nano_cpus: machine.nano_cpus + 1_500_000_000, ..machine };
    let ordinary = app.publish(sleeper().await).await;
    let db = app.db().await;
    let owner = db.user_by_email("ada@example.org").await.unwrap().id;
    let (key, version) = (ordinary.key.clone(), ordinary.version.to_string());
    let job = Job { resources, ..Job::new(owner, key, version, String::new(), now()) };
    db.job_add(&job, &Values::default(), None).await.unwrap();
    db.job_publish(job.id, owner, now()).await.unwrap();
    db.close().await;

    let behind = app.start_job(&ordinary, json!({"input_2": 0})).await;
    let job = format!("/v0/solvers/{}/releases/{}/jobs/{}", ordinary.key, ordinary.version, job.id);
    let ended = app.wait_for_end(&job).await;
    assert_eq!(text(&ended, "/state"), "FAILED", "{ended:#}");
    assert_eq!(text(&ended, "/errors/0/type"), "runtime.resources");
    let message = text(&ended, "/errors/0/msg");
    let [asked, most] = [resources, machine].map(|it| Kind::Cpus.amount(it.nano_cpus));
    let expected = format!(
        "the job asks for {asked} and can never have it: this service's machine has {most}"
    );
    assert_eq!(message, expected);
    let log = log_in_zip(&app, &app.get(&format!("{job}/outputs/logfile")).await).await;
    assert!(log.contains(message), "{log}");
    let ended = app.wait_for_end(&behind).await;
    assert_eq!(text(&ended, "/state"), "SUCCESS", "{ended:#}");
    app.stop().await;
}

#[tokio::test]
async fn a_failed_job_says_why() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let job = app.start_job(&release, json!({"input_2": 0, "input_3": true})).await;
    let ended = app.wait_for_end(&job).await;
    assert_eq!(text(&ended, "/state"), "FAILED", "{ended:#}");
    assert_eq!(text(&ended, "/errors/0/type"), "runtime");
    assert!(text(&ended, "/errors/0/msg").contains("exited with code 1"), "{ended:#}");
    let last_lines = ended["errors"][0]["ctx"]["last_lines"].to_string();
    assert!(last_lines.contains("asked to fail after sleeping"), "{last_lines}");
    let outputs = app.get(&format!("{job}/outputs")).await;
    assert_eq!(outputs.status, 409);
    assert!(outputs.text().contains("exited with code 1"), "{outputs}");
    app.stop().await;
}

#[tokio::test]
async fn an_input_file_that_was_deleted_fails_the_job() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let file = app.upload("a.txt", b"0").await.json();
    let job = app.create(&release, json!({"input_1": file})).await;
    let id = text(&file, "/id");
    assert_eq!(app.delete(&format!("/v0/files/{id}")).await.status, 200);
    assert_eq!(app.post(&format!("{job}:start")).await.status, 202);
    let ended = app.wait_for_end(&job).await;
    assert_eq!(text(&ended, "/errors/0/type"), "runtime.input", "{ended:#}");
    let message = text(&ended, "/errors/0/msg");
    assert!(message.contains("input_1") && message.contains(id), "{message}");
    app.stop().await;
}

#[tokio::test]
async fn jobs_outlast_an_object_store_that_is_away() {
    let store = TestApp::start().await;
    let flags = external_storage(&store).await;
    let endpoint = flags[0].strip_prefix("--s3-endpoint=http://").unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let app = TestApp::start_in(folder, &flags.each_ref().map(String::as_str)).await;
    let release = app.publish(sleeper().await).await;
    let job = app.start_job(&release, json!({"input_2": 1})).await;
    let fails = app.start_job(&release, json!({"input_2": 1, "input_3": true})).await;
    for job in [&job, &fails] {
        app.wait_for(job, &["STARTED"]).await;
    }
    let folder = store.stop().await;

    // Without outputs there is nothing to wait for: the log comes later.
    let failed = app.wait_for_end(&fails).await;
    assert_eq!((text(&failed, "/state"), text(&failed, "/errors/0/type")), ("FAILED", "runtime"));
    assert_eq!(app.get(&format!("{fails}/outputs/logfile")).await.status, 502);
    let left = async || folders_of_jobs(app.data());
    wait_until("only the outputs that wait are left", left, |left| left.len() == 1).await;

    let store = TestApp::start_in(folder, &[&format!("--s3-listen={endpoint}")]).await;
    let ended = app.wait_for_end(&job).await;
    assert_eq!(text(&ended, "/state"), "SUCCESS", "{ended:#}");
    for (job, line) in [(&job, "storing output `output_1`"), (&fails, "exit code 1")] {
        let log = log_in_zip(&app, &app.get(&format!("{job}/outputs/logfile")).await).await;
        assert!(log.contains("Will sleep for 1 seconds") && log.contains(line), "{log}");
    }
    app.stop().await;
    store.stop().await;
}

#[tokio::test]
async fn a_job_outlasts_a_database_that_is_away() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let job = app.start_job(&release, json!({"input_2": 1})).await;
    app.wait_for(&job, &["STARTED"]).await;
    let url = format!("sqlite:{}", app.data().join("solverd.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    database
        .execute("ALTER TABLE job_events RENAME TO away; ALTER TABLE job_logs RENAME TO lost")
        .await
        .unwrap();
    let engine = Docker::connect().unwrap();
    let container = containers(app.data()).await.remove(0);
    assert_eq!(engine.wait(&container).await.unwrap().code, 0);
    assert_eq!(
        app.wait_for(&job, &["STARTED"]).await["progress"].as_i64().map(|percent| percent < 100),
        Some(true)
    );

    database
        .execute("ALTER TABLE away RENAME TO job_events; ALTER TABLE lost RENAME TO job_logs")
        .await
        .unwrap();
    database.close().await.unwrap();
    assert_eq!(text(&app.wait_for_end(&job).await, "/state"), "SUCCESS");
    let log = log_in_zip(&app, &app.get(&format!("{job}/outputs/logfile")).await).await;
    for line in ["Will sleep for 1 seconds", "[PROGRESS] 1/1", "exit code 0", "2 outputs stored"] {
        assert_eq!(log.matches(line).count(), 1, "{line} in {log}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_job_whose_start_is_known_already_goes_on() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let url = format!("sqlite:{}", app.data().join("solverd.db").display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    // As if the answer to a first attempt to write it down had been lost.
    let start = "CREATE TRIGGER start AFTER UPDATE ON jobs WHEN NEW.state = 'PENDING' \
                 BEGIN UPDATE jobs SET state = 'STARTED', started_at = submitted_at WHERE id = NEW.id; END";
    database.execute(start).await.unwrap();
    database.close().await.unwrap();
    let job = app.start_job(&release, json!({"input_2": FOREVER})).await;
    let inspect = async || app.post(&format!("{job}:inspect")).await.json();
    wait_until("progress", inspect, |status| status["progress"].as_i64() > Some(0)).await;
    app.post(&format!("{job}:stop")).await;
    assert_eq!(text(&app.wait_for_end(&job).await, "/state"), "ABORTED");
    app.stop().await;
}

/// An upload of one part that was begun so many hours ago; the part has been sent.
async fn begin_upload(db: &Db, objects: &Objects, owner: UserId, hours: i64) -> File {
    let id = FileId::new();
    let plan = objects.upload_plan(&File::object_key(id), 3).await.unwrap();
    let put = reqwest::Client::new().put(&plan.urls[0]).body("abc").send().await.unwrap();
    assert_eq!(put.status(), 200);
    let upload = File {
        id,
        owner,
        filename: "a.txt".to_owned(),
        size: 3,
        sha256: sha256(b"abc"),
        e_tag: put.headers()["etag"].to_str().ok().map(str::to_owned),
        upload_id: plan.upload_id,
        job_id: None,
        created_at: now() - TimeDelta::hours(hours),
        completed_at: None,
    };
    db.file_add(&upload).await.unwrap();
    upload
}

async fn complete(objects: &Objects, upload: &File) -> Result<(), objects::Error> {
    let parts = vec![(1, upload.e_tag.clone().unwrap())];
    let key = File::object_key(upload.id);
    objects.complete_upload(&key, 3, upload.upload_id.as_deref(), parts).await.map(drop)
}

/// A dispatcher that is not part of a service, with an object store of its own: for tests that make the steps themselves.
pub(crate) struct Stepper {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) lease: Lease,
    objects: Objects,
    served: JoinSet<()>,
    stop: CancellationToken,
    _folder: TempDir,
}

impl Stepper {
    pub(crate) async fn start(db: &Db, instance_timeout: Duration) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let credentials = embedded::credentials(folder.path()).unwrap();
        let store = Embedded::open(&folder.path().join("objects"), &credentials).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (stop, mut served) = (CancellationToken::new(), JoinSet::new());
        served.spawn(store.run(listener, stop.clone()));
        let objects = Objects::connect(&Location {
            endpoint: endpoint.clone(),
            public_endpoint: endpoint,
            bucket: "solverd".to_owned(),
            region: "us-east-1".to_owned(),
            access_key_id: credentials.access_key_id,
            secret_access_key: credentials.secret_access_key,
        })
        .await
        .unwrap();
        let lease = Lease { instance: FileId::new().to_string() };
        let dispatcher = Dispatcher::start(
            db.clone(),
            objects.clone(),
            Docker::connect().unwrap(),
            folder.path().join("work"),
            lease.instance.clone(),
            instance_timeout,
            Limits::default(),
            Bounds { machine: machine().await, owner: OwnerLimits::default() },
            Wake::default(),
            Webhooks::new(false, Vec::new()).unwrap(),
        )
        .await
        .unwrap();
        Self { dispatcher, lease, objects, served, stop, _folder: folder }
    }

    /// Waits for all that was begun.
    pub(crate) async fn settle(&self) {
        let over = CancellationToken::new();
        over.cancel();
        self.dispatcher.run(over).await;
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.served.join_all().await;
    }
}

async fn abandoned(db: Db) {
    let stepper = Stepper::start(&db, Duration::MAX).await;
    let objects = &stepper.objects;
    let owner = db.user_add("ada@example.org", now()).await.unwrap().id;
    let [old, young, whole] = [25, 23, 26].map(|hours| begin_upload(&db, objects, owner, hours));
    let (old, young, whole) = (old.await, young.await, whole.await);
    // Its object is there, and the service ended before it could say so in the database.
    complete(objects, &whole).await.unwrap();
    stepper.dispatcher.step().await.unwrap();
    let left = async || {
        let left = db.uploads_begun_before(now(), 9).await.unwrap();
        left.into_iter().map(|upload| upload.id).collect::<Vec<_>>()
    };
    wait_until("the old uploads to end", left, |left| *left == [young.id]).await;

    // Not at every step: this one has to wait.
    let older = begin_upload(&db, objects, owner, 30).await;
    stepper.dispatcher.step().await.unwrap();
    stepper.settle().await;
    assert_eq!(left().await, [older.id, young.id]);
    assert_eq!(objects.stat(&File::object_key(whole.id)).await.unwrap(), None);
    let too_late = complete(objects, &old).await.unwrap_err();
    assert_eq!(too_late.to_string(), "nothing has been uploaded");
    complete(objects, &young).await.unwrap();
    stepper.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn uploads_that_nobody_completes_are_ended() {
    for fresh in [Some(Fresh::sqlite()), Fresh::postgres().await].into_iter().flatten() {
        Box::pin(fresh.run(abandoned)).await;
    }
}
