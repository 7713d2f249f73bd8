//! Limits: whoever meets one is told which, and others do not notice.

use std::time::Duration;

use futures_util::stream;
use reqwest::{Method, header::RETRY_AFTER};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
};

use crate::support::{TestApp, answer, sleeper, text, wait_until};

#[tokio::test]
async fn a_caller_has_so_many_requests_in_flight() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let job = app.create(&release, json!({})).await;
    let bob = app.add_user("bob@example.org").await;
    let mut endless = JoinSet::new();
    // One more: who looks whether they are there may just have the last place.
    for _ in 0..65 {
        let body = stream::pending::<Result<bytes::Bytes, std::io::Error>>();
        let body = reqwest::Body::wrap_stream(body);
        // Only where it means something is it a wait.
        let request = app.request(Method::POST, "/v0/files/content").header("Prefer", "wait=1");
        endless.spawn(request.body(body).send());
    }
    let me = async || app.get("/v0/me").await;
    let refused = wait_until("a refusal", me, |answer| answer.status != 200).await;
    assert_eq!(refused.status, 429, "{refused}");
    assert_eq!(refused.header(&RETRY_AFTER), Some("1"));
    assert_eq!(refused.json()["code"], "too_many_requests");
    assert!(text(&refused.json(), "/errors/0").contains("64 requests in flight"), "{refused}");
    assert_eq!(bob.get("/v0/me").await.status, 200, "others do not notice");
    for (method, path) in [(Method::POST, format!("{job}:inspect")), (Method::GET, job)] {
        let waiting = app.request(method, &path).header("Prefer", "wait=0");
        assert_eq!(answer(waiting).await.status, 200, "waits count for themselves");
    }
    drop(endless);
    wait_until("room", me, |answer| answer.status == 200).await;
    app.stop().await;
}

#[tokio::test]
async fn what_is_too_large_or_too_slow_is_told_the_limit() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let job = app.create(&release, json!({})).await;

    let head = app.request(Method::GET, "/v0/me").header("X-Large", "x".repeat(16 << 10));
    let head = answer(head).await;
    assert_eq!((head.status.as_u16(), &head.json()["code"]), (431, &json!("head_too_large")));
    assert!(head.text().contains("16384 bytes"), "{head}");

    let notes = |size| {
        let notes = app.request(Method::PATCH, &format!("{job}/metadata"));
        answer(notes.json(&json!({"metadata": {"note": "x".repeat(size)}})))
    };
    assert_eq!(notes(60 << 10).await.status, 200);
    let large = notes(64 << 10).await;
    assert_eq!(large.status, 422);
    assert!(large.text().contains("65536 bytes") && large.body.len() < 1000, "{large}");

    let deep = format!(r#"{{"values": {{"input_1": {}{}}}}}"#, "[".repeat(200), "]".repeat(200));
    let jobs = job.rsplit_once('/').unwrap().0;
    let deep = answer(app.request(Method::POST, jobs).body(deep)).await;
    assert_eq!(deep.status, 422);
    assert!(deep.text().contains("deeper than 127 levels"), "{deep}");

    let mut slow = TcpStream::connect(app.url.strip_prefix("http://").unwrap()).await.unwrap();
    slow.write_all(b"GET /v0/me HTTP/1.1\r\nX-Slow:").await.unwrap();
    let mut said = String::new();
    let closed = tokio::time::timeout(Duration::from_secs(20), slow.read_to_string(&mut said));
    closed.await.expect("the service does not wait for ever").unwrap();
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    app.stop().await;
}

#[tokio::test]
async fn a_stream_that_its_reader_has_left_counts_no_more() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let job = app.create(&release, json!({})).await;
    // Nothing is ever sent here: the service must notice by itself.
    let silent = format!("{job}/logstream");
    let open = async || app.request(Method::GET, &silent).send().await.unwrap().status();
    for _ in 0..1000 {
        let status = open().await;
        assert!(status == 200 || status == 429, "{status}");
    }
    wait_until("room", open, |status| *status == 200).await;
    app.stop().await;
}
