//! What ends a job before it is done: its owner, in every state, and its limits. And what it can do to others.

use std::{collections::BTreeMap, num::NonZeroU32};

use serde_json::{Value as Json, json};
use solverd::domain::{
    resources::{Amounts, Resources},
    solver::{Body, Container, Limits, Port, PortType, Release, Version},
};
use solverd_runner::engine::Docker;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
};

use crate::{
    http::{external_storage, log_in_zip},
    support::{Api, TestApp, containers, folders_of_jobs, sleeper, text, wait_until},
};

/// The example solvers are made from it.
const IMAGE: &str = "debian:bookworm-slim";

/// A solver that runs a script, with limits of its own.
async fn shell(script: &str, limits: Limits) -> Release {
    let image = Docker::connect().unwrap().image(IMAGE).await;
    let image_id = image.expect("`scripts/images.sh calculix` makes it").id;
    Release {
        version: Version::parse("9.0.0").unwrap(),
        inputs: Vec::new(),
        outputs: Vec::new(),
        body: Body::Container(Container {
            image: IMAGE.to_owned(),
            image_id,
            image_digest: None,
            command: ["sh", "-c", script].map(str::to_owned).to_vec(),
            env: BTreeMap::new(),
            resources: Resources { nano_cpus: 500_000_000, memory_bytes: 64 << 20, gpus: 0 },
            limits,
            at_most: Amounts::default(),
            mpi: false,
            network: false,
            progress_regexp: None,
            integration_version: 1,
        }),
        ..sleeper().await
    }
}

fn file(key: &str) -> Vec<Port> {
    vec![Port {
        key: key.to_owned(),
        label: key.to_owned(),
        description: key.to_owned(),
        kind: PortType::File("*/*".to_owned()),
        path: Some(key.to_owned()),
        unit: None,
        default: None,
        required: false,
    }]
}

/// How its owner ends a job.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Stop,
    Delete,
}

impl End {
    async fn ask(self, app: &Api, job: &str) {
        let answer = match self {
            Self::Stop => app.post(&format!("{job}:stop")).await,
            Self::Delete => app.delete(job).await,
        };
        assert_eq!(answer.status, if self == Self::Stop { 200 } else { 204 }, "{answer}");
    }

    /// Waits until it has ended the job.
    async fn happens(self, app: &TestApp, job: &str) {
        if self == Self::Stop {
            let ended = app.wait_for_end(job).await;
            assert_eq!(text(&ended, "/state"), "ABORTED", "{ended:#}");
            assert_eq!((&ended["progress"], &ended["errors"]), (&json!(100), &json!(null)));
            assert_eq!(app.get(&format!("{job}/outputs")).await.status, 409);
        } else {
            assert_eq!(app.get(job).await.status, 404);
        }
        nothing_is_left(app).await;
    }
}

async fn nothing_is_left(app: &TestApp) {
    let left = async || (containers(app.data()).await, folders_of_jobs(app.data()));
    wait_until("containers and folders to go", left, |left| left.0.is_empty() && left.1.is_empty())
        .await;
}

/// A way to an object store that lets nothing through while it is shut.
struct Gate {
    address: String,
    open: watch::Sender<bool>,
}

impl Gate {
    async fn before(endpoint: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (open, shut) = watch::channel(true);
        #[expect(clippy::disallowed_methods, reason = "they end with the test's runtime")]
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&endpoint).await.unwrap();
                let ((from, back), (answer, to)) = (client.into_split(), server.into_split());
                tokio::spawn(forward(from, to, shut.clone()));
                tokio::spawn(forward(answer, back, shut.clone()));
            }
        });
        Self { address, open }
    }
}

async fn forward(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut shut: watch::Receiver<bool>) {
    let mut bytes = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from.read(&mut bytes).await {
        let open = shut.wait_for(|open| *open).await.is_ok();
        if !open || to.write_all(&bytes[..length]).await.is_err() {
            break;
        }
    }
}

/// Waits until the last chunks of a job's log hold a text.
async fn logged(app: &TestApp, job: &str, text: &str) {
    let (db, id) = (app.db().await, job.rsplit('/').next().unwrap().parse().unwrap());
    let log = async || db.job_log_before(id, i32::MAX, 100).await.unwrap();
    wait_until(text, log, |log| log.iter().any(|chunk| chunk.text.contains(text))).await;
    db.close().await;
}

#[tokio::test]
async fn what_waits_for_the_object_store_is_stopped_and_deleted() {
    let store = TestApp::start().await;
    let [endpoint, id, secret] = external_storage(&store).await;
    let gate = Gate::before(endpoint.rsplit('/').next().unwrap().to_owned()).await;
    let endpoint = format!("--s3-endpoint=http://{}", gate.address);
    let app = TestApp::start_in(tempfile::tempdir().unwrap(), &[&endpoint, &id, &secret]).await;

    let stages = Release { inputs: file("x"), ..shell("echo never", Limits::default()).await };
    let stores = Release {
        version: Version::parse("9.0.1").unwrap(),
        outputs: file("x"),
        ..shell("echo 1 >/outputs/x", Limits::default()).await
    };
    let (stages, stores) = (app.publish(stages).await, app.publish(stores).await);
    let input = app.upload("x", b"1").await.json();
    for (release, values, phase) in
        [(&stages, json!({"x": input}), "staging 1 files"), (&stores, json!({}), "exit code 0")]
    {
        for end in [End::Stop, End::Delete] {
            gate.open.send_replace(false);
            let job = app.start_job(release, values.clone()).await;
            logged(&app, &job, phase).await;
            let there = async || containers(app.data()).await;
            wait_until("the container", there, |there| there.len() == 1).await;

            end.ask(&app, &job).await;
            logged(&app, &job, "[solverd] stopped").await;
            gate.open.send_replace(true);
            end.happens(&app, &job).await;
        }
    }
    app.stop().await;
    store.stop().await;
}

#[tokio::test]
async fn what_runs_is_stopped_and_deleted_with_its_consent_or_without() {
    let app = TestApp::start().await;
    let mut obeys =
        shell("trap 'echo bye; exit 0' TERM; echo ready; sleep 600 & wait", Limits::default())
            .await;
    obeys.version = Version::parse("9.0.1").unwrap();
    let limits = Limits { grace: Some(1), ..Limits::default() };
    let ignores = shell("trap '' TERM; echo ready; while :; do sleep 1; done", limits).await;
    let releases = [(app.publish(obeys).await, true), (app.publish(ignores).await, false)];
    for (release, obeys) in releases {
        for end in [End::Stop, End::Delete] {
            let job = app.start_job(&release, json!({})).await;
            app.wait_for(&job, &["STARTED"]).await;
            let stream = async { app.get(&format!("{job}/logstream")).await };
            let ready = async {
                logged(&app, &job, "ready").await;
                end.ask(&app, &job).await;
                end.happens(&app, &job).await;
            };
            let (stream, ()) = tokio::join!(stream, ready);
            if end == End::Stop {
                assert_eq!(stream.text().contains(r#""bye""#), obeys, "{stream}");
                assert!(stream.text().contains("[solverd] stopped"), "{stream}");
            }
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn a_queued_job_is_deleted() {
    let app = TestApp::start_in(tempfile::tempdir().unwrap(), &["--grace=1"]).await;
    let mut release = shell("exec sleep 600", Limits::default()).await;
    if let Body::Container(container) = &mut release.body {
        container.resources.nano_cpus = crate::support::machine().await.nano_cpus;
    }
    let release = app.publish(release).await;
    let running = app.start_job(&release, json!({})).await;
    app.wait_for(&running, &["STARTED"]).await;
    let waiting = app.start_job(&release, json!({})).await;
    End::Delete.ask(&app, &waiting).await;
    let id = waiting.rsplit('/').next().unwrap().parse().unwrap();
    let db = app.db().await;
    let history = async || db.job_history(id).await.unwrap();
    wait_until("it to be cleared away", history, Vec::is_empty).await;
    db.close().await;
    End::Stop.ask(&app, &running).await;
    End::Stop.happens(&app, &running).await;
    app.stop().await;
}

fn error(status: &Json) -> (&str, &str, &str) {
    (text(status, "/state"), text(status, "/errors/0/type"), text(status, "/errors/0/msg"))
}

#[tokio::test]
async fn jobs_end_at_the_services_limits_and_at_their_own() {
    let flags = ["--wall-limit=3", "--silence-limit=2", "--grace=1"];
    let app = TestApp::start_in(tempfile::tempdir().unwrap(), &flags).await;
    let ticks =
        app.publish(shell("while :; do echo tick; sleep 0.2; done", Limits::default()).await).await;
    let own =
        Limits { silence: NonZeroU32::new(1), wall: NonZeroU32::new(60), ..Limits::default() };
    let sleeps =
        Release { version: Version::parse("9.0.1").unwrap(), ..shell("exec sleep 600", own).await };
    let sleeps = app.publish(sleeps).await;
    let (ticking, sleeping) =
        (app.start_job(&ticks, json!({})).await, app.start_job(&sleeps, json!({})).await);
    let (ticked, slept) = (app.wait_for_end(&ticking).await, app.wait_for_end(&sleeping).await);
    assert_eq!(
        error(&ticked),
        ("FAILED", "runtime.wall", "the solver ran for 3 s, its limit of time, and was stopped")
    );
    assert!(text(&ticked, "/errors/0/ctx/last_lines/0").ends_with("tick"), "{ticked:#}");
    assert_eq!(
        error(&slept),
        (
            "FAILED",
            "runtime.timeout",
            "the solver printed nothing for 1 s, its limit of silence, and was stopped"
        )
    );
    app.stop().await;
}

#[tokio::test]
async fn a_flood_of_lines_is_kept_within_its_limit_and_others_run_on() {
    let app =
        TestApp::start_in(tempfile::tempdir().unwrap(), &["--log-limit=1", "--grace=1"]).await;
    let endless = app.publish(shell("echo first; yes", Limits::default()).await).await;
    let other = app.publish(sleeper().await).await;
    let flood = app.start_job(&endless, json!({})).await;
    let path = format!("{flood}/logstream");
    let beside = async {
        app.wait_for(&flood, &["STARTED"]).await;
        let job = app.start_job(&other, json!({"input_2": 2})).await;
        assert_eq!(text(&app.wait_for_end(&job).await, "/state"), "SUCCESS");
        logged(&app, &flood, ", its limit").await;
        End::Stop.ask(&app, &flood).await;
        End::Stop.happens(&app, &flood).await;
    };
    let (streamed, ()) = tokio::join!(app.get(&path), beside);
    let log = log_in_zip(&app, &app.get(&format!("{flood}/outputs/logfile")).await).await;
    assert!(log.len() > 900_000 && log.len() <= (1 << 20) + 1000, "{}", log.len());
    assert_eq!(streamed.text().lines().count(), log.lines().count());
    for text in
        ["first", "the log reaches 1.0 MiB, its limit", "are left out here", "[solverd] stopped"]
    {
        assert_eq!(
            (log.matches(text).count(), streamed.text().matches(text).count()),
            (1, 1),
            "{text}"
        );
    }
    app.stop().await;
}
