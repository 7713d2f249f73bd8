//! Callbacks as their receivers see them: signed, told once, tried again, and never sent where they must not go.

use std::{
    collections::VecDeque,
    fmt::Write,
    net::TcpListener,
    sync::{Arc, Mutex},
};

use actix_web::{
    App, HttpRequest, HttpResponse, HttpServer,
    dev::ServerHandle,
    http::StatusCode,
    web::{self, Bytes},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use clap::{CommandFactory, FromArgMatches, Parser};
use insta::assert_snapshot;
use reqwest::Method;
use serde_json::{Value as Json, json};
use sha2::{Digest, Sha256};
use solverd::{
    domain::{solver::Release, time::now},
    settings::{Settings, with_config_file},
};
use sqlx::{Connection, SqliteConnection};

use crate::{
    studies,
    support::{Api, TestApp, answer, sleeper, text, wait_until},
};

const SECRET: &str = "whsec_c2VjcmV0cyBvZiB0ZXN0cyBhcmUgbm9uZQ==";

/// Lets callbacks reach the tests.
const PRIVATE: &str = "--webhook-private-addresses";

/// A request as it came.
#[derive(Debug, Clone)]
struct Received {
    path: String,
    id: String,
    timestamp: i64,
    signature: String,
    body: String,
}

impl Received {
    fn of(request: &HttpRequest, body: &Bytes) -> Self {
        let header = |name| request.headers().get(name).unwrap().to_str().unwrap().to_owned();
        assert_eq!(
            (request.method().as_str(), header("content-type").as_str()),
            ("POST", "application/json")
        );
        Self {
            path: request.uri().to_string(),
            id: header("webhook-id"),
            timestamp: header("webhook-timestamp").parse().unwrap(),
            signature: header("webhook-signature"),
            body: String::from_utf8(body.to_vec()).unwrap(),
        }
    }

    /// The message, once its signature has been verified.
    fn message(&self) -> Json {
        let expected = signature(SECRET, &self.id, self.timestamp, &self.body);
        assert_eq!(self.signature, expected);
        assert!((now().timestamp() - self.timestamp).abs() < 60, "{self:?}");
        serde_json::from_str(&self.body).unwrap()
    }
}

/// HMAC-SHA256 by the letter of RFC 2104, for keys of at most a block.
fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let pad = |with: u8| {
        let mut block = [with; 64];
        block.iter_mut().zip(key).for_each(|(byte, key)| *byte ^= key);
        block
    };
    let inner = Sha256::new().chain_update(pad(0x36)).chain_update(message).finalize();
    Sha256::new().chain_update(pad(0x5c)).chain_update(inner).finalize().to_vec()
}

/// The signature as a receiver reckons it.
fn signature(secret: &str, id: &str, timestamp: i64, body: &str) -> String {
    let key = BASE64_STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
    let signed = hmac(&key, format!("{id}.{timestamp}.{body}").as_bytes());
    format!("v1,{}", BASE64_STANDARD.encode(signed))
}

#[test]
fn the_tests_verify_as_standard_webhooks_do() {
    // RFC 4231, test case 2; then the example by which implementations of Standard Webhooks test themselves.
    let mac = hmac(b"Jefe", b"what do ya want for nothing?");
    assert!(mac.starts_with(&[0x5b, 0xdc, 0xc1, 0x46, 0xbf, 0x60, 0x75, 0x4e]), "{mac:x?}");
    let (secret, id) = ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek");
    assert_eq!(
        signature(secret, id, 1_614_265_330, r#"{"test": 2432232314}"#),
        "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    );
}

/// Gets callbacks, and answers them with these statuses, then with 200.
struct Receiver {
    url: String,
    received: Arc<Mutex<Vec<Received>>>,
    server: ServerHandle,
}

impl Receiver {
    fn start(answers: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let received = Arc::<Mutex<Vec<_>>>::default();
        let answers = Arc::new(Mutex::new(answers.iter().copied().collect::<VecDeque<_>>()));
        let seen = received.clone();
        let server = HttpServer::new(move || {
            let (answers, seen) = (answers.clone(), seen.clone());
            App::new().default_service(web::to(move |request: HttpRequest, body: Bytes| {
                seen.lock().unwrap().push(Received::of(&request, &body));
                let status = answers.lock().unwrap().pop_front().unwrap_or(200);
                let mut answer = HttpResponse::build(StatusCode::from_u16(status).unwrap());
                // Nobody is to go there.
                answer.insert_header(("location", "/elsewhere"));
                std::future::ready(answer.body("never read"))
            }))
        });
        let server = server.workers(1).disable_signals().listen(listener).unwrap().run();
        let handle = server.handle();
        #[expect(clippy::disallowed_methods, reason = "ended by `stop`")]
        tokio::spawn(server);
        Self { url, received, server: handle }
    }

    fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// A callback to one of its paths.
    fn callback(&self, path: &str) -> Json {
        json!({"url": format!("{}{path}", self.url), "secret": SECRET})
    }

    /// Ends it; gives what it has received.
    async fn stop(self) -> Vec<Received> {
        self.server.stop(false).await;
        self.received()
    }
}

fn jobs_of(release: &Release) -> String {
    format!("/v0/solvers/{}/releases/{}/jobs", release.key, release.version)
}

/// Creates and starts a job with a callback; answers its path.
async fn start(app: &Api, release: &Release, values: Json, callback: Json) -> String {
    let (path, body) = (jobs_of(release), json!({"values": values, "callback": callback}));
    let job = app.post_json(&path, &body).await;
    assert_eq!(job.status, 201, "{job}");
    let job = format!("{path}/{}", text(&job.json(), "/id"));
    let started = app.post(&format!("{job}:start")).await;
    assert_eq!(started.status, 202, "{started}");
    job
}

fn id(job: &str) -> &str {
    job.rsplit('/').next().unwrap()
}

/// Waits until a job's callback stands like this after so many attempts.
async fn wait_for_callback(app: &Api, job: &str, state: &str, attempts: i64) -> Json {
    let path = format!("/v0/jobs/{}/callback", id(job));
    let look = async || app.get(&path).await.json();
    let last = |status: &Json| {
        // An attempt that is being made has come to nothing yet.
        status["state"] == state
            && status["attempts"] == attempts
            && status["last_result"].is_string()
    };
    wait_until(&format!("{state} after {attempts} attempts"), look, last).await
}

#[tokio::test]
async fn every_end_is_told_once_and_signed() {
    let receiver = Receiver::start(&[]);
    let app = TestApp::start_in(tempfile::tempdir().unwrap(), &[PRIVATE]).await;
    let release = app.publish(sleeper().await).await;
    let silent = app.start_job(&release, json!({"input_2": 0})).await;
    let mut jobs = Vec::new();
    for (kind, values) in [
        ("succeeded", json!({"input_2": 0})),
        ("failed", json!({"input_2": 0, "input_3": true})),
        ("aborted", json!({"input_2": 300})),
    ] {
        let callback = receiver.callback(&format!("/{kind}?with=query"));
        jobs.push((kind, start(&app, &release, values, callback).await));
    }
    let status = app.get(&format!("/v0/jobs/{}/callback", id(&jobs[2].1))).await;
    assert_eq!(status.json()["state"], "WAITING", "{status}");
    app.post(&format!("{}:stop", jobs[2].1)).await;

    for (kind, job) in &jobs {
        let ended = app.wait_for_end(job).await;
        let status = wait_for_callback(&app, job, "DELIVERED", 1).await;
        let received = receiver.received();
        let path = format!("/{kind}?with=query");
        let told: Vec<_> = received.iter().filter(|request| request.path == path).collect();
        let [told] = &told[..] else { panic!("{kind}: {told:#?}") };
        let message = told.message();
        assert_eq!(told.id, id(job));
        assert_eq!(text(&message, "/type"), format!("job.{kind}"));
        assert_eq!(message["timestamp"], ended["stopped_at"]);
        assert_eq!(message["data"], ended, "what inspecting it shows");
        let url = format!("{}{path}", receiver.url);
        let expected = json!({
            "job_id": id(job), "url": url, "state": "DELIVERED", "attempts": 1,
            "next_attempt_at": null, "last_result": "status 200",
        });
        assert_eq!(status, expected);
    }
    app.wait_for_end(&silent).await;
    let none = app.get(&format!("/v0/jobs/{}/callback", id(&silent))).await;
    assert_eq!(none.status, 404, "{none}");
    let bob = app.add_user("bob@example.org").await;
    let stranger = bob.get(&format!("/v0/jobs/{}/callback", id(&jobs[0].1))).await;
    assert_eq!(stranger.status, 404, "{stranger}");
    app.stop().await;
    assert_eq!(receiver.stop().await.len(), 3);
}

#[tokio::test]
async fn what_fails_is_tried_again_as_the_same_message() {
    let receiver = Receiver::start(&[500, 302, 429]);
    let flags = [PRIVATE, "--webhook-pauses=0,0,0,3600"];
    let app = TestApp::start_in(tempfile::tempdir().unwrap(), &flags).await;
    let release = app.publish(sleeper().await).await;
    let job = start(&app, &release, json!({"input_2": 0}), receiver.callback("/")).await;
    let status = wait_for_callback(&app, &job, "DELIVERED", 4).await;
    assert_eq!(status["last_result"], "status 200");
    app.stop().await;

    let received = receiver.stop().await;
    assert_eq!(received.len(), 4);
    for attempt in &received {
        assert_eq!(attempt.message()["type"], "job.succeeded");
        // The redirect led nowhere.
        assert_eq!((attempt.path.as_str(), attempt.id.as_str()), ("/", id(&job)));
        assert_eq!(attempt.body, received[0].body);
    }
    assert!(received.is_sorted_by_key(|attempt| attempt.timestamp));
}

#[tokio::test]
async fn a_callback_is_given_up_when_it_is_not_wanted_or_has_failed_too_often() {
    let app =
        TestApp::start_in(tempfile::tempdir().unwrap(), &[PRIVATE, "--webhook-pauses=0"]).await;
    let release = app.publish(sleeper().await).await;
    for (answers, attempts, result) in
        [(&[410][..], 1, "status 410"), (&[404, 503, 200], 2, "status 503")]
    {
        let receiver = Receiver::start(answers);
        let job = start(&app, &release, json!({"input_2": 0}), receiver.callback("/")).await;
        let status = wait_for_callback(&app, &job, "GIVEN_UP", attempts).await;
        assert_eq!(
            (&status["last_result"], &status["next_attempt_at"]),
            (&json!(result), &Json::Null)
        );
        assert_eq!(i64::try_from(receiver.stop().await.len()).unwrap(), attempts);
    }
    // A job that was deleted tells nobody; of two that end one after the other, only the second is told of.
    let receiver = Receiver::start(&[]);
    let deleted = start(&app, &release, json!({"input_2": 300}), receiver.callback("/")).await;
    app.wait_for(&deleted, &["STARTED"]).await;
    assert_eq!(app.delete(&deleted).await.status, 204);
    let job = start(&app, &release, json!({"input_2": 0}), receiver.callback("/")).await;
    wait_for_callback(&app, &job, "DELIVERED", 1).await;
    app.stop().await;
    let told: Vec<_> = receiver.stop().await.into_iter().map(|request| request.id).collect();
    assert_eq!(told, [id(&job)]);
}

#[tokio::test]
async fn callbacks_go_on_after_a_restart() {
    let receiver = Receiver::start(&[500]);
    let flags = [PRIVATE, "--webhook-pauses=3600"];
    let app = TestApp::start_in(tempfile::tempdir().unwrap(), &flags).await;
    let release = app.publish(sleeper().await).await;
    let job = start(&app, &release, json!({"input_2": 0}), receiver.callback("/")).await;
    let before = wait_for_callback(&app, &job, "DUE", 1).await;
    let url = format!("sqlite:{}", app.data().join("solverd.db").display());
    let data = app.stop().await;

    // It is not due for an hour, also in the next life; then the hour is over.
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let app = TestApp::start_in(data, &flags).await;
    let path = format!("/v0/jobs/{}/callback", id(&job));
    assert_eq!(app.get(&path).await.json(), before);
    let data = app.stop().await;
    sqlx::query("UPDATE webhooks SET next_attempt_at = $1")
        .bind(now())
        .execute(&mut database)
        .await
        .unwrap();
    database.close().await.unwrap();
    let app = TestApp::start_in(data, &flags).await;
    wait_for_callback(&app, &job, "DELIVERED", 2).await;
    app.stop().await;
    let received = receiver.stop().await;
    assert_eq!(received.len(), 2);
    assert_eq!((&received[0].id, &received[0].body), (&received[1].id, &received[1].body));
    received[1].message();
}

#[tokio::test]
async fn what_a_shutdown_broke_off_is_told_in_the_next_life() {
    // The first attempt waits for an answer that never comes.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", silent.local_addr().unwrap());
    let app = TestApp::start_in(tempfile::tempdir().unwrap(), &[PRIVATE]).await;
    let release = app.publish(sleeper().await).await;
    let callback = json!({"url": url, "secret": SECRET});
    let job = start(&app, &release, json!({"input_2": 0}), callback).await;
    let path = format!("/v0/jobs/{}/callback", id(&job));
    let look = async || app.get(&path).await.json();
    wait_until("an attempt", look, |status| status["attempts"] == 1).await;
    let data = app.stop().await;

    // It has come to nothing, and nobody else may have it before a minute is over.
    let app = TestApp::start_in(data, &[PRIVATE]).await;
    let status = app.get(&path).await.json();
    assert_eq!((text(&status, "/state"), &status["last_result"]), ("DUE", &Json::Null));
    assert!(status["next_attempt_at"].is_string(), "{status}");
    let receiver = Receiver::start(&[]);
    let path = app.data().join("solverd.db");
    let mut database =
        SqliteConnection::connect(&format!("sqlite:{}", path.display())).await.unwrap();
    sqlx::query("UPDATE webhooks SET url = $1, next_attempt_at = $2")
        .bind(&receiver.url)
        .bind(now())
        .execute(&mut database)
        .await
        .unwrap();
    database.close().await.unwrap();
    wait_for_callback(&app, &job, "DELIVERED", 2).await;
    app.stop().await;
    let received = receiver.stop().await;
    assert_eq!(received.len(), 1);
    received[0].message();
}

#[tokio::test]
async fn only_public_hosts_are_told() {
    let receiver = Receiver::start(&[]);
    let app = TestApp::start_in(tempfile::tempdir().unwrap(), &["--webhook-pauses=3600"]).await;
    let release = app.publish(sleeper().await).await;
    let path = jobs_of(&release);
    let mut transcript = String::new();
    for callback in [
        json!({"url": "http://127.0.0.1:8000/", "secret": SECRET}),
        json!({"url": "http://[::ffff:169.254.169.254]/", "secret": SECRET}),
        json!({"url": "ftp://example.org/", "secret": SECRET}),
        json!({"url": "https://ada:pw@example.org/", "secret": SECRET}),
        json!({"url": "https://example.org/#end", "secret": SECRET}),
        json!({"url": "example.org", "secret": "whsec_c2hvcnQ="}),
        json!({"url": "https://example.org/"}),
        json!({"url": "https://example.org/", "secret": [SECRET]}),
        json!("https://example.org/"),
    ] {
        let body = json!({"values": {}, "callback": callback});
        let refused = app.post_json(&path, &body).await;
        assert!(!refused.text().contains("whsec_c"), "no secret is shown: {refused}");
        writeln!(transcript, "### {callback}\n{refused}").unwrap();
    }
    assert_snapshot!(transcript);
    let without_values = app.post_json(&path, &json!({"callback": receiver.callback("/")})).await;
    assert!(
        without_values.status == 422 && !without_values.text().contains(SECRET),
        "{without_values}"
    );
    assert_eq!(app.get(&format!("{path}/page")).await.json()["total"], 0);

    // Which addresses a name has shows when it is called.
    let port = receiver.url.rsplit(':').next().unwrap();
    let callback = json!({"url": format!("http://localhost:{port}/"), "secret": SECRET});
    let job = start(&app, &release, json!({"input_2": 0}), callback).await;
    let status = wait_for_callback(&app, &job, "DUE", 1).await;
    assert_eq!(status["last_result"], "the host has an address that is not public");
    app.stop().await;
    assert!(receiver.stop().await.is_empty());
}

#[tokio::test]
async fn a_repeated_creation_has_one_callback() {
    let receiver = Receiver::start(&[]);
    let app = TestApp::start_in(tempfile::tempdir().unwrap(), &[PRIVATE]).await;
    let release = app.publish(sleeper().await).await;
    let create = async |callback: &Json| {
        let request = app.request(Method::POST, &jobs_of(&release)).header("Idempotency-Key", "k");
        answer(request.json(&json!({"values": {"input_2": 0}, "callback": callback}))).await
    };
    let first = create(&receiver.callback("/")).await;
    assert_eq!(first.status, 201, "{first}");
    assert_eq!(create(&receiver.callback("/")).await.json(), first.json());
    let other_secret = json!({"url": format!("{}/", receiver.url), "secret": "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"});
    for other in [receiver.callback("/other"), other_secret, Json::Null] {
        let refused = create(&other).await;
        assert_eq!(refused.status, 422, "{refused}");
        assert!(refused.text().contains("Idempotency-Key"), "{refused}");
    }
    let job = format!("{}/{}", jobs_of(&release), text(&first.json(), "/id"));
    app.post(&format!("{job}:start")).await;
    wait_for_callback(&app, &job, "DELIVERED", 1).await;
    app.stop().await;
    assert_eq!(receiver.stop().await.len(), 1);
}

#[tokio::test]
async fn of_a_study_the_whole_is_told() {
    let receiver = Receiver::start(&[]);
    let app = TestApp::start_in(tempfile::tempdir().unwrap(), &[PRIVATE]).await;
    let study = studies::example("sleeper_test_study");
    let study = studies::publish(&app, sleeper().await, &study).await;
    let file = app.upload("seconds.txt", b"0").await.json();
    let body = json!({"values": {"input_file": file}, "callback": receiver.callback("/")});
    let job = app.post_json(&format!("{study}/jobs"), &body).await;
    assert_eq!(job.status, 200, "{job}");
    let job = format!("{study}/jobs/{}", text(&job.json(), "/id"));
    app.post(&format!("{job}:start")).await;
    let ended = app.wait_for_end(&job).await;
    wait_for_callback(&app, &job, "DELIVERED", 1).await;
    app.stop().await;
    let received = receiver.stop().await;
    let [told] = &received[..] else { panic!("{received:#?}") };
    assert_eq!(told.message()["data"], ended);
}

#[test]
fn the_settings_are_read_from_anywhere() {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("solverd.toml");
    std::fs::write(&path, "webhook-private-addresses = true\nwebhook-pauses = \"1,20\"\n").unwrap();
    let read = |flags: &[&str]| {
        let arguments: Vec<_> = ["it"].iter().chain(flags).map(Into::into).collect();
        let command = with_config_file(Cli::command(), &arguments).unwrap();
        let settings =
            Cli::from_arg_matches(&command.get_matches_from(arguments)).unwrap().settings;
        (settings.webhook_private_addresses, settings.webhook_pauses)
    };
    let pauses = vec![5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400];
    assert_eq!(read(&[]), (false, pauses));
    let config = format!("--config={}", path.display());
    assert_eq!(read(&[&config]), (true, vec![1, 20]));
    assert_eq!(read(&[&config, "--webhook-pauses=0"]), (true, vec![0]));
    assert!(read(&[PRIVATE]).0);
}
