//! Who may run what and when, on the real engine: order between owners, what requests ask for, limits, and what can never run.

use std::{fmt::Write, process::Command};

use insta::assert_snapshot;
use reqwest::{Method, StatusCode};
use serde_json::{Value as Json, json};
use solverd::domain::{
    resources::{Amounts, Kind, Resources},
    solver::{Body, Container, Release},
    steps::Definition,
};
use solverd_runner::engine::Docker;

use crate::{
    http::log_in_zip,
    support::{Api, SLEEPER, TestApp, answer, containers, machine, sleeper_with, text},
};

/// Longer than any test waits.
const FOREVER: i64 = 300;

/// So little that many of them run at once.
const LITTLE: Resources = Resources { nano_cpus: 100_000_000, memory_bytes: 64 << 20, gpus: 0 };

async fn inspect(api: &Api, job: &str) -> Json {
    api.post(&format!("{job}:inspect")).await.json()
}

async fn log(api: &Api, job: &str) -> String {
    log_in_zip(api, &api.get(&format!("{job}/outputs/logfile")).await).await
}

/// The sleeper as another release, changed.
async fn changed(version: &str, change: impl FnOnce(&mut Container)) -> Release {
    let mut release = sleeper_with(version, LITTLE).await;
    let Body::Container(container) = &mut release.body else { panic!("one container") };
    change(container);
    release
}

#[tokio::test]
async fn owners_take_turns() {
    let ada = TestApp::start().await;
    let bob = ada.add_user("bob@example.org").await;
    let machine = machine().await;
    let whole = Resources { memory_bytes: 64 << 20, ..machine };
    let release = ada.publish(sleeper_with("3.0.0", whole).await).await;
    let first = ada.start_job(&release, json!({"input_2": FOREVER})).await;
    ada.wait_for(&first, &["STARTED"]).await;
    let mut adas = Vec::new();
    for _ in 0..4 {
        adas.push(ada.start_job(&release, json!({"input_2": 0})).await);
    }
    let bobs = bob.start_job(&release, json!({"input_2": 0})).await;

    // Those whose turn it is say what they wait for; the others that it is not.
    let reason = format!(
        "it asks for {0}, and of the machine's {0} the running jobs leave less",
        Kind::Cpus.amount(whole.nano_cpus)
    );
    for (api, job) in [(&*ada, &adas[0]), (&bob, &bobs)] {
        let waiting = api.wait_for(job, &["WAITING_FOR_RESOURCES"]).await;
        assert_eq!(text(&waiting, "/waiting"), reason);
        assert_eq!((&waiting["started_at"], &waiting["progress"]), (&json!(null), &json!(0)));
    }
    let behind = inspect(&ada, &adas[1]).await;
    assert_eq!(text(&behind, "/state"), "PUBLISHED");
    assert!(text(&behind, "/waiting").contains("its turn has not come"), "{behind:#}");

    ada.post(&format!("{first}:stop")).await;
    let mut begun = Vec::new();
    for (api, job) in adas.iter().map(|job| (&*ada, job)).chain([(&bob, &bobs)]) {
        let ended = api.wait_for_end(job).await;
        assert_eq!((text(&ended, "/state"), ended.get("waiting")), ("SUCCESS", None), "{ended:#}");
        begun.push((text(&ended, "/started_at").to_owned(), job));
    }
    begun.sort();
    let order: Vec<_> = begun.into_iter().map(|(_, job)| job).collect();
    // Ada had a turn, Bob had none.
    assert_eq!(order, [&bobs, &adas[0], &adas[1], &adas[2], &adas[3]]);
    let log = log(&bob, &bobs).await;
    let line = format!("[solverd] waiting: {reason} (0 CPU free, jobs that run: 1)");
    assert!(log.lines().next().unwrap().ends_with(&line), "{log}");
    assert_eq!(log.matches("waiting").count(), 1, "{log}");
    ada.stop().await;
}

#[tokio::test]
async fn a_request_says_what_its_job_takes() {
    let app = TestApp::start().await;
    let limits = Amounts { nano_cpus: Some(500_000_000), ..Amounts::default() };
    let release = app.publish(changed("3.0.0", |it| it.at_most = limits).await).await;
    let path = format!("/v0/solvers/{}/releases/{}/jobs", release.key, release.version);
    let values = json!({"input_2": FOREVER});
    let body = json!({"values": values, "resources": {"cpus": 0.25, "memory_bytes": 32 << 20}});
    let job = app.post_json(&path, &body).await;
    assert_eq!(job.status, 201, "{job}");
    let job = format!("{path}/{}", text(&job.json(), "/id"));
    let unit = app.get(&format!("{job}/pricing_unit")).await.json();
    assert_eq!(unit["unitExtraInfo"], json!({"CPU": 1, "RAM": 32 << 20, "VRAM": 0}));
    assert_eq!(app.post(&format!("{job}:start")).await.status, 202);
    app.wait_for(&job, &["STARTED"]).await;
    let [container] = &containers(app.data()).await[..] else { panic!("one container") };
    let format = "{{.HostConfig.NanoCpus}} {{.HostConfig.Memory}} {{json .Config.Env}}";
    let seen = Command::new("docker").args(["inspect", "-f", format, container]).output().unwrap();
    let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
    assert!(seen.starts_with("250000000 33554432 "), "{seen}");
    for variable in ["NANO_CPUS_LIMIT=250000000", "MEMORY_BYTES_LIMIT=33554432"] {
        assert!(seen.contains(variable), "{seen}");
    }
    app.post(&format!("{job}:stop")).await;
    assert_eq!(text(&app.wait_for_end(&job).await, "/state"), "ABORTED");

    // What is left out is as the solver declares it; nothing is asked for by an empty request, either.
    for resources in [json!(null), json!({}), json!({"cpus": 0.5}), json!({"gpus": 0})] {
        let body = json!({"values": {}, "resources": resources});
        let job = app.post_json(&path, &body).await;
        assert_eq!(job.status, 201, "{job}");
        let job = format!("{path}/{}", text(&job.json(), "/id"));
        let unit = app.get(&format!("{job}/pricing_unit")).await.json();
        assert_eq!(unit["unitExtraInfo"]["RAM"], LITTLE.memory_bytes);
    }

    // Other resources are another request.
    let create = async |resources: Json| {
        let request = app.request(Method::POST, &path).header("Idempotency-Key", "k");
        let body = json!({"values": {}, "resources": resources});
        answer(request.json(&body)).await.status
    };
    assert_eq!(create(json!({"cpus": 0.5})).await, 201);
    assert_eq!(create(json!({"cpus": 0.5})).await, 201);
    assert_eq!(create(json!({"cpus": 0.25})).await, 422);
    assert_eq!(create(json!(null)).await, 422);
    app.stop().await;
}

#[tokio::test]
async fn what_can_never_run_is_refused() {
    let bounds = ["--gpus=1", "--owner-cpus=0.75", "--owner-memory=128"];
    let app = TestApp::start_in(tempfile::tempdir().unwrap(), &bounds).await;
    let limits = Amounts { nano_cpus: Some(500_000_000), ..Amounts::default() };
    let limited = app.publish(changed("3.0.0", |it| it.at_most = limits).await).await;
    let free = app.publish(changed("3.1.0", |it| it.at_most = Amounts::default()).await).await;
    let gpus = app.publish(changed("3.2.0", |it| it.resources.gpus = 2).await).await;
    let study = json!({
        "key": "simcore/services/comp/studies/large", "version": "1.0.0", "name": "Large",
        "steps": [
            {"name": "small", "solver": SLEEPER, "version": "3.1.0"},
            {"name": "large", "solver": SLEEPER, "version": "3.2.0"},
        ],
    });
    let study =
        Definition::parse(&study.to_string()).unwrap().resolve(&[free.clone(), gpus.clone()]);
    let study = app.publish(study.unwrap()).await;

    let mut transcript = String::new();
    let mut refused = async |what: &str, release: &Release, resources: Json| {
        let path = format!("/v0/solvers/{}/releases/{}/jobs", release.key, release.version);
        let answer = app.post_json(&path, &json!({"values": {}, "resources": resources})).await;
        assert_eq!(answer.status, 422, "{what}: {answer}");
        write!(transcript, "# {what}\n{answer}\n").unwrap();
    };
    refused("more than the solver takes", &limited, json!({"cpus": 0.6})).await;
    refused("more than an owner may have", &free, json!({"cpus": 1, "memory_bytes": 1 << 28}))
        .await;
    refused("more GPUs than the machine has", &free, json!({"gpus": 2})).await;
    refused("more GPUs than the machine has, declared by the solver", &gpus, json!(null)).await;
    refused("too little", &free, json!({"cpus": 0, "memory_bytes": 1, "gpus": -1})).await;
    refused("a field that does not exist", &free, json!({"memory": 1})).await;
    refused("no number", &free, json!({"cpus": "2"})).await;
    refused("a step that can never run", &study, json!(null)).await;
    refused("for a study", &study, json!({"cpus": 0.5})).await;
    assert_snapshot!(transcript);

    // One GPU is within the bounds, as far as the service knows.
    let path = format!("/v0/solvers/{}/releases/{}/jobs", gpus.key, gpus.version);
    let body = json!({"values": {"input_2": 0}, "resources": {"gpus": 1}});
    let job = app.post_json(&path, &body).await;
    assert_eq!(job.status, 201, "{job}");
    let job = format!("{path}/{}", text(&job.json(), "/id"));
    assert_eq!(app.post(&format!("{job}:start")).await.status, 202);
    let ended = app.wait_for_end(&job).await;
    if Docker::connect().unwrap().machine().await.unwrap().gpus == 0 {
        let message = text(&ended, "/errors/0/msg");
        assert!(message.contains("could not select device driver"), "the engine knows: {message}");
    } else {
        assert_eq!(text(&ended, "/state"), "SUCCESS", "{ended:#}");
    }

    // All that is wrong is told at once, with what is wrong with the values.
    let machine = machine().await;
    let more = machine.nano_cpus / 1_000_000_000 + 1;
    let body = json!({"values": {"input_2": "many"}, "resources": {"cpus": more}});
    let answer = app.post_json(&path, &body).await;
    assert_eq!(answer.status, StatusCode::UNPROCESSABLE_ENTITY);
    for part in [
        format!("asks for {more} CPU and can never have it: this service's machine has"),
        "one owner may have at most 0.75 CPU".to_owned(),
        "2 GPU".to_owned(),
        "input_2".to_owned(),
    ] {
        assert!(answer.text().contains(&part), "{part} in {answer}");
    }
    app.stop().await;
}

#[tokio::test]
async fn an_owner_has_as_many_jobs_as_may_be() {
    let bounds = ["--owner-jobs=1", "--owner-queued=2"];
    let app = TestApp::start_in(tempfile::tempdir().unwrap(), &bounds).await;
    let bob = app.add_user("bob@example.org").await;
    let release = app.publish(sleeper_with("3.0.0", LITTLE).await).await;
    let first = app.start_job(&release, json!({"input_2": FOREVER})).await;
    app.wait_for(&first, &["STARTED"]).await;
    let second = app.start_job(&release, json!({"input_2": 0})).await;
    let waiting = app.wait_for(&second, &["WAITING_FOR_RESOURCES"]).await;
    assert_eq!(text(&waiting, "/waiting"), "as many of its owner's jobs run as may at once: 1");
    let third = app.start_job(&release, json!({"input_2": 0})).await;
    let fourth = app.create(&release, json!({"input_2": 0})).await;
    let full = app.post(&format!("{fourth}:start")).await;
    assert_eq!((full.status.as_u16(), text(&full.json(), "/code")), (409, "queue_full"));
    assert!(full.text().contains("you have 2 jobs in the queue"), "{full}");
    assert_eq!(text(&inspect(&app, &fourth).await, "/state"), "NOT_STARTED");
    let again = app.post(&format!("{third}:start")).await;
    assert_eq!(again.status, 200, "it is in the queue already: {again}");

    // Limits are each owner's own, and what ends makes room.
    let bobs = bob.start_job(&release, json!({"input_2": 0})).await;
    assert_eq!(text(&bob.wait_for_end(&bobs).await, "/state"), "SUCCESS");
    assert_eq!(text(&inspect(&app, &first).await, "/state"), "STARTED");
    app.post(&format!("{first}:stop")).await;
    for job in [&second, &third] {
        assert_eq!(text(&app.wait_for_end(job).await, "/state"), "SUCCESS");
    }
    assert!(log(&app, &second).await.contains("[solverd] waiting: as many of its owner's jobs"));
    assert_eq!(app.post(&format!("{fourth}:start")).await.status, 202);
    assert_eq!(text(&app.wait_for_end(&fourth).await, "/state"), "SUCCESS");
    app.stop().await;
}

#[tokio::test]
async fn what_a_release_is_published_again_with_counts_at_once() {
    let app = TestApp::start().await;
    let release = app.publish(changed("3.0.0", |it| it.at_most = Amounts::default()).await).await;
    let path = format!("/v0/solvers/{}/releases/{}/jobs", release.key, release.version);
    let body = json!({"values": {}, "resources": {"cpus": 0.5}});
    assert_eq!(app.post_json(&path, &body).await.status, 201);
    let limits = Amounts { nano_cpus: Some(250_000_000), ..Amounts::default() };
    app.publish(changed("3.0.0", |it| it.at_most = limits).await).await;
    let refused = app.post_json(&path, &body).await;
    assert_eq!(refused.status, 422, "{refused}");
    assert!(refused.text().contains("0.25 CPU"), "{refused}");
    app.stop().await;
}
