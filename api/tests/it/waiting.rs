//! Waiting without polling: for news, and for events that nobody misses or sees twice.

use std::time::{Duration, Instant};

use reqwest::{
    Method,
    header::{CONTENT_TYPE, HeaderName},
};
use serde_json::{Value as Json, json};

use crate::{
    studies,
    support::{Answer, Api, TestApp, answer, sleeper, text},
};

const APPLIED: HeaderName = HeaderName::from_static("preference-applied");

async fn inspect(api: &Api, job: &str, prefer: &str) -> Answer {
    let request = api.request(Method::POST, &format!("{job}:inspect"));
    answer(request.header("Prefer", prefer)).await
}

#[tokio::test]
async fn a_wait_ends_with_news_or_with_its_time() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    wait_for_news(&app, &app.create(&release, json!({"input_2": 1})).await).await;
    let definition = studies::study(&json!({"only": {"input_2": {"value": 1}}}));
    let study = studies::publish(&app, studies::modest().await, &definition).await;
    let job = app.post_json(&format!("{study}/jobs"), &json!({"values": {}})).await.json();
    wait_for_news(&app, &format!("{study}/jobs/{}", text(&job, "/id"))).await;
    app.stop().await;
}

/// Waits in all ways for a job that was not started.
async fn wait_for_news(app: &Api, job: &str) {
    let begun = Instant::now();
    let waited = inspect(app, job, "wait=1").await;
    assert!(begun.elapsed() >= Duration::from_secs(1), "nothing has happened");
    assert_eq!(
        (waited.header(&APPLIED), &waited.json()["state"]),
        (Some("wait=1"), &json!("NOT_STARTED"))
    );
    let unread = inspect(app, job, "wait=soon").await;
    assert_eq!((unread.status.as_u16(), unread.header(&APPLIED)), (200, None));
    // Whoever says what they saw last is told at once what they have missed.
    let missed = inspect(app, job, "wait=60; state=STARTED").await;
    assert_eq!(missed.json()["state"], "NOT_STARTED");
    let got = answer(app.request(Method::GET, job).header("Prefer", "wait=100; progress=7")).await;
    assert_eq!((got.header(&APPLIED), got.json()), (Some("wait=60"), app.get(job).await.json()));

    let start = format!("{job}:start");
    let (first, started) =
        tokio::join!(inspect(app, job, "wait=30; state=NOT_STARTED; progress=0"), app.post(&start));
    assert_eq!(started.status, 202);
    assert_ne!(first.json()["state"], "NOT_STARTED", "{first}");
    let mut seen = vec![first.json()];
    while seen[seen.len() - 1]["stopped_at"].is_null() {
        let last = &seen[seen.len() - 1];
        let known =
            format!("wait=30; state={}; progress={}", text(last, "/state"), last["progress"]);
        let next = inspect(app, job, &known).await.json();
        assert_ne!((&next["state"], &next["progress"]), (&last["state"], &last["progress"]));
        seen.push(next);
    }
    assert_eq!(seen[seen.len() - 1]["state"], "SUCCESS", "{seen:#?}");
    let begun = Instant::now();
    inspect(app, job, "wait=60").await;
    assert!(begun.elapsed() < Duration::from_secs(20), "nothing more will happen");
}

/// An event as a client sees it.
#[derive(Debug, Clone, PartialEq)]
struct Event {
    id: String,
    name: String,
    data: Json,
}

/// The whole events of a piece of a stream.
fn events(stream: &str) -> Vec<Event> {
    let event = |block: &str| {
        let mut lines = block.lines();
        let mut field = |name: &str| Some(lines.next()?.strip_prefix(name)?.to_owned());
        let (id, name) = (field("id: ")?, field("event: ")?);
        Some(Event { id, name, data: serde_json::from_str(&field("data: ")?).unwrap() })
    };
    let whole = stream.rfind("\n\n").map_or("", |end| &stream[..end]);
    whole.split("\n\n").filter_map(event).collect()
}

fn named<'a>(events: &'a [Event], name: &str) -> Vec<&'a Json> {
    events.iter().filter(|event| event.name == name).map(|event| &event.data).collect()
}

fn progress(events: &[Event]) -> Vec<i64> {
    named(events, "progress").iter().map(|data| data["progress"].as_i64().unwrap()).collect()
}

async fn resume(api: &Api, path: &str, id: &str) -> Answer {
    answer(api.request(Method::GET, path).header("Last-Event-ID", id)).await
}

fn events_path(job: &str) -> String {
    format!("/v0/jobs/{}/events", job.rsplit('/').next().unwrap())
}

#[tokio::test]
async fn events_are_resumed_without_a_gap_or_a_repeat() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let job = app.create(&release, json!({"input_2": 1})).await;
    let path = events_path(&job);
    let start = format!("{job}:start");
    let (stream, _) = tokio::join!(app.get(&path), app.post(&start));
    assert_eq!(stream.header(&CONTENT_TYPE), Some("text/event-stream"), "{stream}");
    let all = events(stream.text());
    let states: Vec<_> = named(&all, "state").iter().map(|data| text(data, "/state")).collect();
    assert_eq!(states, ["NOT_STARTED", "PUBLISHED", "PENDING", "STARTED", "SUCCESS"]);
    assert_eq!(all[all.len() - 1].data["state"], "SUCCESS", "the end comes last");
    assert!(progress(&all).is_sorted_by(|one, next| one < next), "{:?}", progress(&all));
    assert_eq!(progress(&all).last(), Some(&100));
    let logged = app.get(&format!("{job}/logstream")).await;
    let logged: Vec<Json> =
        logged.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(named(&all, "log"), logged.iter().collect::<Vec<_>>());

    let app = TestApp::start_in(app.stop().await, &[]).await;
    for (index, event) in all.iter().enumerate() {
        let rest = resume(&app, &path, &event.id).await;
        let (rest, missed) = (events(rest.text()), &all[index + 1..]);
        for name in ["state", "log"] {
            assert_eq!(named(&rest, name), named(missed, name), "after {event:?}");
        }
        // Of the progress only the last word counts.
        assert_eq!(progress(&rest).last(), progress(missed).last(), "after {event:?}");
    }
    let end = resume(&app, &path, &all[all.len() - 1].id).await;
    assert_eq!(end.status, 204, "a browser does not come back: {end}");
    let wrong = resume(&app, &path, "17").await;
    assert_eq!(wrong.status, 422, "{wrong}");
    assert!(wrong.text().contains("Last-Event-ID") && wrong.text().contains("17"), "{wrong}");
    app.stop().await;
}

#[tokio::test]
async fn events_go_on_after_the_service_was_restarted() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let job = app.start_job(&release, json!({"input_2": 4})).await;
    let path = events_path(&job);
    let mut stream = app.request(Method::GET, &path).send().await.unwrap();
    let mut before = String::new();
    while !before.contains("Will sleep for") {
        before += str::from_utf8(&stream.chunk().await.unwrap().expect("more events")).unwrap();
    }
    let data = app.leave().await;
    while let Ok(Some(piece)) = stream.chunk().await {
        before += str::from_utf8(&piece).unwrap();
    }
    let before = events(&before);

    let app = TestApp::start_in(data, &[]).await;
    let after = events(resume(&app, &path, &before[before.len() - 1].id).await.text());
    assert_eq!(text(&after[after.len() - 1].data, "/state"), "SUCCESS");
    let once: Vec<_> = before.into_iter().chain(after).collect();
    let all = events(app.get(&path).await.text());
    for name in ["state", "log"] {
        assert_eq!(named(&once, name), named(&all, name));
    }
    app.stop().await;
}

#[tokio::test]
async fn readers_that_do_not_read_delay_nobody() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let waiting = app.create(&release, json!({})).await;
    let job = app.start_job(&release, json!({"input_2": 0})).await;
    let mut idle = Vec::new();
    for _ in 0..100 {
        let stream = app.request(Method::GET, &events_path(&job)).send().await.unwrap();
        assert_eq!(stream.status(), 200);
        idle.push(stream);
    }
    let seen = events(app.get(&events_path(&job)).await.text());
    assert_eq!(seen[seen.len() - 1].data["state"], "SUCCESS");

    // Of a job to which nothing happens a reader hears that the connection lives.
    let mut stream = app.request(Method::GET, &events_path(&waiting)).send().await.unwrap();
    let mut heard = String::new();
    while !heard.contains("\n:\n") {
        heard += str::from_utf8(&stream.chunk().await.unwrap().expect("a heartbeat")).unwrap();
    }
    assert_eq!(events(&heard).len(), 1, "{heard}");
    // A job that is deleted has no more events.
    app.delete(&waiting).await;
    while stream.chunk().await.unwrap().is_some() {}
    assert_eq!(app.get(&events_path(&waiting)).await.status, 404);
    drop(idle);
    app.stop().await;
}

#[tokio::test]
async fn a_repeated_creation_makes_one_job() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let path = format!("/v0/solvers/{}/releases/{}/jobs", release.key, release.version);
    let create = async |api: &Api, key: &str, values: Json| {
        let request = api.request(Method::POST, &path).header("Idempotency-Key", key);
        answer(request.json(&json!({"values": values}))).await
    };
    let values = json!({"input_2": 3, "input_3": false});
    let racing = (0..20).map(|_| create(&app, "k-1", values.clone()));
    let answers = futures_util::future::join_all(racing).await;
    for answer in &answers {
        assert_eq!(answer.status, 201, "{answer}");
        assert_eq!(answer.json(), answers[0].json());
    }
    assert_eq!(app.get(&format!("{path}/page")).await.json()["total"], 1);
    let shuffled = create(&app, "k-1", json!({"input_3": false, "input_2": 3})).await;
    assert_eq!(shuffled.json(), answers[0].json(), "some languages shuffle the values");

    let job = answers[0].json();
    let other = create(&app, "k-1", json!({"input_2": 4})).await;
    assert_eq!(other.status, 422, "{other}");
    for part in ["Idempotency-Key", "k-1", text(&job, "/id"), "take a new key"] {
        assert!(other.text().contains(part), "{part} in {other}");
    }
    assert_eq!(create(&app, "two words", values.clone()).await.status, 422);
    assert_eq!(create(&app, &"k".repeat(256), values.clone()).await.status, 422);
    let bob = app.add_user("bob@example.org").await;
    let bobs = create(&bob, "k-1", values.clone()).await;
    assert_eq!(bobs.status, 201, "keys are one's own: {bobs}");
    assert_ne!(bobs.json()["id"], job["id"]);

    // What was deleted does not come back by itself.
    assert_eq!(app.delete(&format!("{path}/{}", text(&job, "/id"))).await.status, 204);
    let gone = create(&app, "k-1", values).await;
    assert_eq!(gone.status, 409, "{gone}");
    assert!(gone.text().contains("was deleted"), "{gone}");
    app.stop().await;
}
