//! Every error that the document promises, of every operation, as clients see it: each body once, under the requests that it answers.

use std::{
    collections::BTreeSet,
    fmt::{self, Display},
    net::SocketAddr,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use futures_util::stream;
use insta::assert_snapshot;
use regex::Regex;
use reqwest::{
    Method, RequestBuilder,
    header::{CONTENT_LENGTH, CONTENT_TYPE, RETRY_AFTER},
};
use serde_json::{Value as Json, json};
use solverd::domain::{id::JobId, resources::Resources, solver::SolverKey, user::Credentials};
use sqlx::{ConnectOptions, Connection, Executor, SqliteConnection, postgres::PgConnectOptions};
use tokio::{
    io::{AsyncReadExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use crate::{
    forms::{form, put},
    http::{FILTERS, RELEASE, requests},
    openapi::{Operation, operations},
    store::Fresh,
    studies,
    support::{Answer, SLEEPER, TestApp, answer, sha256, sleeper, sleeper_with, text, wait_until},
    validation,
};

/// What the document promises and no request here brings about: the operation, or `*` for all, the status, and why.
const ELSEWHERE: [(&str, &str, &str); 3] = [
    ("*", "408", "a minute has to pass: `request.rs` tests it"),
    ("get_log_stream", "429", "a thousand streams have to be open: `limits.rs` tests it"),
    ("get_job_events", "429", "a thousand streams have to be open: `limits.rs` tests it"),
];

/// Which requests were answered with which errors.
#[derive(Default)]
struct Table {
    /// Answers, with the requests that they answer, in words.
    rows: Vec<(String, Vec<String>)>,
    /// Operations, with statuses.
    seen: BTreeSet<(String, String)>,
}

impl Table {
    fn add(&mut self, request: &str, operation: &str, answer: &Answer) {
        self.seen.insert((operation.to_owned(), answer.status.as_u16().to_string()));
        let (request, answer) = (filtered(request), filtered(&answer.to_string()));
        let known = self.rows.iter().position(|row| row.0 == answer);
        let place = known.unwrap_or_else(|| {
            self.rows.push((answer, Vec::new()));
            self.rows.len() - 1
        });
        let requests = &mut self.rows[place].1;
        if !requests.contains(&request) {
            requests.push(request);
        }
    }

    /// Sends one request.
    async fn send(&mut self, request: RequestBuilder) -> Answer {
        let (client, request) = request.build_split();
        let request = request.unwrap();
        let (method, url) = (request.method().to_string(), request.url().clone());
        let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
        let body = request.body().and_then(reqwest::Body::as_bytes).unwrap_or_default();
        let body = String::from_utf8_lossy(body).replace("\r\n", "\\r\\n");
        let answer = answer(RequestBuilder::from_parts(client, request)).await;
        let operation = validation::operation(&method, url.path());
        let shown = format!("{method} {}{query}\n{body}", url.path());
        self.add(shown.trim(), operation.unwrap_or_default(), &answer);
        answer
    }

    /// Sends a request to each of many operations; of the answers those with this status are kept.
    async fn each(
        &mut self,
        what: &str,
        status: u16,
        requests: impl IntoIterator<Item = (String, RequestBuilder)>,
    ) {
        for (operation, request) in requests {
            let answer = answer(request).await;
            if answer.status == status {
                self.add(what, &operation, &answer);
            }
        }
    }

    /// Fails if the document promises an error that is not here, or if one is excused in vain.
    fn check(&self) {
        let (mut missing, mut excused) = (Vec::new(), BTreeSet::new());
        for operation in operations() {
            for status in operation.definition["responses"].as_object().unwrap().keys() {
                let id = operation.id();
                if !status.starts_with('4')
                    || self.seen.contains(&(id.to_owned(), status.to_owned()))
                {
                    continue;
                }
                let excuse = ELSEWHERE.iter().position(|(operation, other, _)| {
                    (*operation == "*" || *operation == id) && other == status
                });
                match excuse {
                    Some(excuse) => drop(excused.insert(excuse)),
                    None => missing.push(format!("{id}: {status}")),
                }
            }
        }
        assert!(missing.is_empty(), "no request shows these errors:\n{}", missing.join("\n"));
        assert_eq!(excused.len(), ELSEWHERE.len(), "of the excuses only {excused:?} are needed");
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (answer, requests) in &self.rows {
            for request in requests {
                writeln!(f, "### {request}")?;
            }
            writeln!(f, "{answer}")?;
        }
        Ok(())
    }
}

fn filtered(text: &str) -> String {
    let sizes = ("bytes, are [0-9]+", "bytes, are [number]");
    FILTERS.iter().chain([&sizes]).fold(text.to_owned(), |text, (pattern, with)| {
        Regex::new(pattern).unwrap().replace_all(&text, *with).into_owned()
    })
}

/// The names of the parameters in paths.
fn holes(path: &str) -> impl Iterator<Item = &str> {
    path.split('{').skip(1).filter_map(|part| Some(part.split_once('}')?.0))
}

/// A value for every parameter of a path.
fn path<'a>(key: &'a str, version: &'a str, id: &'a str) -> Vec<(&'static str, &'a str)> {
    let names: BTreeSet<_> = operations().iter().flat_map(|known| holes(&known.path)).collect();
    let value = |name| match name {
        "solver_key" => key,
        "version" => version,
        "wallet_id" => "77",
        _ => id,
    };
    names.into_iter().map(|name| (name, value(name))).collect()
}

/// Of requests those to operations of one kind.
fn only(
    requests: Vec<(String, RequestBuilder)>,
    kind: impl Fn(&Operation) -> bool,
) -> Vec<(String, RequestBuilder)> {
    let known = |id: &str| operations().iter().find(|known| known.id() == id).unwrap();
    let only: Vec<_> = requests.into_iter().filter(|(id, _)| kind(known(id))).collect();
    assert!(!only.is_empty(), "there are operations of that kind");
    only
}

/// The same request, changed.
fn changed(request: RequestBuilder, change: impl FnOnce(&mut reqwest::Request)) -> RequestBuilder {
    let (client, request) = request.build_split();
    let mut request = request.unwrap();
    change(&mut request);
    RequestBuilder::from_parts(client, request)
}

#[tokio::test]
async fn every_error_has_one_shape() {
    let app = TestApp::start().await;
    let old = app.publish(sleeper_with("2.1.1", Resources::default()).await).await;
    let study =
        studies::publish(&app, sleeper().await, &studies::example("sleeper_test_study")).await;
    let release = sleeper().await;
    let mut table = Table::default();
    let nowhere = JobId::new().to_string();
    let good = path(SLEEPER, "2.1.6", &nowhere);

    strangers(&app, &mut table, &good).await;
    nobody_and_nothing(&app, &mut table, &nowhere).await;
    bad_parameters(&app, &mut table, &good).await;
    bad_bodies(&app, &mut table, &nowhere).await;
    too_much(&app, &mut table, &good).await;
    conflicts(&app, &mut table, &study).await;

    // What is there, but not like this.
    let job = app.create(&release, json!({})).await;
    let of_old = format!("{}{}", RELEASE.replace("2.1.6", "2.1.1"), &job[RELEASE.len()..]);
    let of_study = format!("{study}/jobs/{}", job.rsplit('/').next().unwrap());
    assert_eq!(old.version.to_string(), "2.1.1");
    for path in [&of_old, &of_study, &format!("{job}/outputs/logfile"), "/v0/nothing"] {
        assert_eq!(table.send(app.request(Method::GET, path)).await.status, 404);
    }
    for (method, path) in [(Method::PATCH, "/v0/me"), (Method::DELETE, "/v0/jobs:inspect")] {
        assert_eq!(table.send(app.request(method, path)).await.status, 405);
    }
    break_database(&app).await;
    assert_eq!(table.send(app.request(Method::GET, "/v0/files")).await.status, 500);

    assert_snapshot!(table);
    table.check();
    app.stop().await;
}

/// 401
async fn strangers(app: &TestApp, table: &mut Table, good: &[(&'static str, &str)]) {
    let wrong = Credentials { key: "ada-key".to_owned(), secret: "guessed".to_owned() };
    let nobody = Credentials { key: "nobody".to_owned(), secret: "guessed".to_owned() };
    for (what, login) in [("a wrong secret", &wrong), ("an unknown key", &nobody)] {
        table.each(what, 401, requests(&app.seen_by(login.clone()), good)).await;
    }
    let anonymous = requests(app, good).into_iter().map(|(operation, request)| {
        let bare = changed(request, |request| drop(request.headers_mut().remove("authorization")));
        (operation, bare)
    });
    table.each("no credentials", 401, anonymous).await;
}

/// 404
async fn nobody_and_nothing(app: &TestApp, table: &mut Table, nowhere: &str) {
    table
        .each("an id that nothing has", 404, requests(app, &path(SLEEPER, "2.1.6", nowhere)))
        .await;
    for (what, key, version) in [
        ("a version that there is not", SLEEPER, "9.9.9"),
        ("a solver that there is not", "simcore/services/comp/nowhere", "2.1.6"),
    ] {
        let of_solvers = only(requests(app, &path(key, version, nowhere)), |operation| {
            operation.path.contains("{solver_key}") && !operation.path.contains("{job_id}")
        });
        table.each(what, 404, of_solvers).await;
    }
    let parent = format!("/v0/jobs?parent={nowhere}");
    assert_eq!(table.send(app.request(Method::GET, &parent)).await.status, 404);
    let mine = app.get("/v0/wallets/default").await.json()["walletId"].to_string();
    let checkout = format!("/v0/wallets/{mine}/licensed-items/{nowhere}/checkout");
    let seats = json!({"number_of_seats": 1, "service_run_id": "run"});
    let checkout = app.request(Method::POST, &checkout).json(&seats);
    assert_eq!(table.send(checkout).await.status, 404);
}

/// 422, in path, query and headers
async fn bad_parameters(app: &TestApp, table: &mut Table, good: &[(&'static str, &str)]) {
    for (name, _) in good {
        let bad = |(other, value): &(&'static str, _)| {
            (*other, if other == name { "nonsense" } else { *value })
        };
        let values: Vec<_> = good.iter().map(bad).collect();
        let requests =
            only(requests(app, &values), |each| holes(&each.path).any(|hole| hole == *name));
        table.each(&format!("{name} = nonsense"), 422, requests).await;
    }
    for (name, bad) in [("limit", "51"), ("offset", "-1"), ("hidden", "maybe"), ("cluster_id", "x")]
    {
        let requests = only(requests(app, good), |operation| {
            let parameters = operation.definition["parameters"].as_array();
            parameters.into_iter().flatten().any(|each| each["name"] == name)
        });
        let with_bad = requests.into_iter().map(|(operation, request)| {
            let bad = changed(request, |request| {
                request.url_mut().query_pairs_mut().append_pair(name, bad);
            });
            (operation, bad)
        });
        table.each(&format!("{name} = {bad}"), 422, with_bad).await;
    }
    let all = "/v0/solvers/-/releases/-/jobs";
    for path in [
        "/v0/files/%FF",
        "/v0/files:search?sha256_checksum=abc",
        "/v0/files:search?file_id=42",
        "/v0/jobs?parent=42",
        "/v0/jobs?state=STARTED&state=DONE",
        "/v0/jobs?metadata=mesh:fine",
        "/v0/jobs?created_from=yesterday",
        "/v0/jobs?sort=name",
        &format!("{all}?metadata.any=a:b&metadata.all=c:d"),
        &format!("{all}/metadata:batchGet"),
        &format!("{all}/metadata:batchGet?job_ids=42"),
    ] {
        assert_eq!(table.send(app.request(Method::GET, path)).await.status, 422, "{path}");
    }
    for (name, path) in [
        ("solver_id", "/v0/solvers/page"),
        ("version_display", "/v0/solvers/page"),
        ("solver", "/v0/jobs"),
        ("version", "/v0/jobs"),
    ] {
        let long = app.get(&format!("{path}?{name}={}", "a".repeat(513))).await;
        assert_eq!(long.status, 422, "{long}");
        assert!(text(&long.json(), "/errors/0/msg").contains("at most 512"), "{long}");
    }
    let often = app.get(&format!("/v0/jobs?{}", "metadata=a=b&".repeat(51))).await;
    table.add("GET /v0/jobs?metadata=…, 51 times", "find_jobs", &often);
    for (name, value) in [
        ("Idempotency-Key", "two words"),
        ("X-Simcore-Parent-Project-Uuid", "42"),
        ("X-Simcore-Parent-Node-Id", "42"),
    ] {
        let request = app.request(Method::POST, &format!("{RELEASE}/jobs")).header(name, value);
        let refused = answer(request.json(&json!({"values": {}}))).await;
        assert_eq!(refused.status, 422, "{refused}");
        table.add(&format!("{name}: {value}"), "create_solver_job", &refused);
    }
    let job = app.create(&sleeper().await, json!({})).await;
    let events = format!("/v0/jobs/{}/events", job.rsplit('/').next().unwrap());
    let events = answer(app.request(Method::GET, &events).header("Last-Event-ID", "17")).await;
    table.add("Last-Event-ID: 17", "get_job_events", &events);
}

/// 422, in bodies
async fn bad_bodies(app: &TestApp, table: &mut Table, nowhere: &str) {
    let job = app.create(&sleeper().await, json!({})).await;
    let jobs = format!("{RELEASE}/jobs");
    let file = json!({"filename": "a.txt", "filesize": 3, "sha256_checksum": sha256(b"abc")});
    let upload = app.post_json("/v0/files/content", &file).await.json();
    let complete = text(&upload, "/upload_schema/links/complete_upload").to_owned();
    let parts = |parts: Json| json!({"client_file": file, "uploaded_parts": {"parts": parts}});
    let (no_file, no_text) = (json!({"id": nowhere, "filename": "a.txt"}), json!({"id": 1}));
    let checkout = format!("/v0/wallets/77/licensed-items/{nowhere}/checkout");
    for (method, path, body) in [
        ("POST", "/v0/files/content", String::new()),
        ("POST", "/v0/files/content", "{".to_owned()),
        ("POST", "/v0/files/content", "[]".to_owned()),
        (
            "POST",
            "/v0/files/content",
            r#"{"filename": "a.txt", "filesize": 1.5, "sha256_checksum": ""}"#.to_owned(),
        ),
        (
            "POST",
            "/v0/files/content",
            r#"{"filename": "../a", "filesize": 1, "sha256_checksum": ""}"#.to_owned(),
        ),
        (
            "POST",
            "/v0/files/content",
            r#"{"filename": "a.txt", "filesize": 1, "sha256_checksum": "abc"}"#.to_owned(),
        ),
        ("POST", &complete, r#"{"client_file": null}"#.to_owned()),
        ("POST", &complete, parts(json!([])).to_string()),
        ("POST", &complete, parts(json!([{"number": 0, "e_tag": "x"}])).to_string()),
        ("POST", &complete, parts(json!([{"number": 1, "e_tag": "x"}])).to_string()),
        ("POST", "/v0/jobs:inspect", r#"{"job_ids": []}"#.to_owned()),
        ("POST", "/v0/jobs:inspect", r#"{"job_ids": ["42"]}"#.to_owned()),
        ("POST", &jobs, r#"{"values": []}"#.to_owned()),
        (
            "POST",
            &jobs,
            r#"{"values": {"input_1": 3, "input_2": "two", "input_3": [true], "input_4": 1.5}}"#
                .to_owned(),
        ),
        ("POST", &jobs, json!({"values": {"input_1": no_file}}).to_string()),
        ("POST", &jobs, json!({"values": {"input_1": no_text, "stray": no_text}}).to_string()),
        ("POST", &format!("{job}:start"), r#"{"root_key": 7}"#.to_owned()),
        (
            "PATCH",
            &format!("{job}/metadata"),
            r#"{"metadata": {"good": 1, "list": [], "none": null}}"#.to_owned(),
        ),
        ("PUT", "/v0/me", r#"{"language": "fr"}"#.to_owned()),
        ("PUT", "/v0/me", r#"{"first_name": "\u0000", "last_name": null}"#.to_owned()),
        ("POST", &checkout, r#"{"number_of_seats": 0, "service_run_id": "run"}"#.to_owned()),
    ] {
        let request = app.request(Method::from_str(method).unwrap(), path).body(body);
        let answer = table.send(request).await;
        assert_eq!(answer.status, 422, "{method} {path}: {answer}");
    }
    for parts in [
        &[][..],
        &[("name=\"nothing\"", &b"x"[..])],
        &[("name=\"file\"", b"x")],
        &[("name=\"file\"; filename=\"../a\"", b"x")],
        &[("name=\"file\"; filename=\"a\"", b"x"), ("name=\"file\"; filename=\"b\"", b"x")],
    ] {
        assert_eq!(table.send(put(app, form(parts))).await.status, 422);
    }
    for (kind, body) in [("text/plain", "x"), ("multipart/form-data; boundary=x", "--x")] {
        let request = app.request(Method::PUT, "/v0/files/content");
        let wrong = table.send(request.header(CONTENT_TYPE, kind).body(body)).await;
        assert_eq!(wrong.status, 422, "{wrong}");
    }
}

/// 413, 429 and 431
async fn too_much(app: &TestApp, table: &mut Table, good: &[(&'static str, &str)]) {
    const LIMIT: usize = 8 << 20;
    let large = requests(app, good)
        .into_iter()
        .map(|(operation, request)| (operation, request.header("X-Large", "x".repeat(16 << 10))));
    table.each("a header of 16 KiB", 431, large).await;

    let with_json = only(requests(app, good), |operation| {
        operation.definition["requestBody"]["content"]["application/json"].is_object()
    });
    for (operation, request) in with_json {
        let request = changed(request, |request| {
            *request.body_mut() = Some(vec![b' '; LIMIT + 1].into());
        });
        let refused = answer(request).await;
        assert_eq!(refused.status, 413, "{operation}: {refused}");
        table.add("a body of 8 MiB and a byte", &operation, &refused);
    }
    let chunk = Bytes::from(vec![b' '; 1 << 16]);
    let chunks = std::iter::repeat_n(chunk, LIMIT >> 16).chain([Bytes::from_static(b" ")]);
    let chunks = stream::iter(chunks.map(Ok::<_, std::io::Error>));
    let request = app.request(Method::POST, "/v0/files/content");
    let refused = answer(request.body(reqwest::Body::wrap_stream(chunks))).await;
    table.add("the same, undeclared", "get_upload_links", &refused);
    let endless = || reqwest::Body::wrap_stream(stream::pending::<Result<Bytes, std::io::Error>>());
    let refused = answer(put(app, endless()).header(CONTENT_LENGTH, "9999999999999")).await;
    table.add("a form of 10 TB", "upload_file", &refused);

    let mut in_flight = JoinSet::new();
    // One more: who looks whether they are there may just have the last place.
    for _ in 0..65 {
        let request = app.request(Method::POST, "/v0/files/content").body(endless());
        in_flight.spawn(request.send());
    }
    let me = async || app.get("/v0/me").await.status;
    wait_until("a refusal", me, |status| *status == 429).await;
    table.each("64 requests in flight", 429, requests(app, good)).await;
    drop(in_flight);
    wait_until("room", me, |status| *status == 200).await;
}

/// 409
async fn conflicts(app: &TestApp, table: &mut Table, study: &str) {
    let release = sleeper().await;
    let job = app.create(&release, json!({"input_2": 0})).await;
    let number = json!({"values": {"input_file": 3}});
    let of_study = app.request(Method::POST, &format!("{study}/jobs")).json(&number);
    assert_eq!(table.send(of_study).await.status, 422);
    let file = app.upload("seconds.txt", b"0").await.json();
    let values = json!({"values": {"input_file": file}});
    let whole = app.post_json(&format!("{study}/jobs"), &values).await.json();
    let (whole, id) =
        (format!("{study}/jobs/{}", text(&whole, "/id")), text(&whole, "/id").to_owned());

    // Nothing has happened to them yet.
    for (method, path) in [
        (Method::GET, format!("{job}/outputs")),
        (Method::POST, format!("{whole}/outputs")),
        (Method::DELETE, format!("{job}/assets")),
    ] {
        assert_eq!(table.send(app.request(method, &path)).await.status, 409);
    }
    let key = json!({"root_key": "secret"});
    let encrypted = app.request(Method::POST, &format!("{job}:start")).json(&key);
    assert_eq!(table.send(encrypted).await.status, 409);

    for job in [&job, &whole] {
        assert_eq!(app.post(&format!("{job}:start")).await.status, 202);
        let ended = app.wait_for_end(job).await;
        assert_eq!(text(&ended, "/state"), "SUCCESS", "{ended:#}");
    }
    let steps = app.get(&format!("/v0/jobs?parent={id}")).await.json();
    let step = format!("{RELEASE}/jobs/{}", text(&steps, "/items/0/id"));
    for path in [&step, &format!("{step}/assets")] {
        assert_eq!(table.send(app.request(Method::DELETE, path)).await.status, 409);
    }
    let definition = studies::example("sleeper_test_study");
    let key = SolverKey::parse(text(&definition, "/key")).unwrap();
    let assets =
        format!("/v0/solvers/{key}/releases/{}/jobs/{id}/assets", text(&definition, "/version"));
    for assets in [&format!("{job}/assets"), &assets] {
        assert_eq!(app.delete(assets).await.status, 204);
    }
    for (method, path) in [
        (Method::POST, format!("{job}:start")),
        (Method::POST, format!("{whole}:start")),
        (Method::GET, format!("{job}/outputs")),
    ] {
        assert_eq!(table.send(app.request(method, &path)).await.status, 409);
    }
    for (number, (operation, path, values)) in [
        ("create_solver_job", format!("{RELEASE}/jobs"), json!({"values": {}})),
        ("create_study_job", format!("{study}/jobs"), values),
    ]
    .into_iter()
    .enumerate()
    {
        let create = async || {
            let request = app.request(Method::POST, &path).json(&values);
            answer(request.header("Idempotency-Key", format!("k-{number}"))).await
        };
        let made = create().await.json();
        let made = format!("{path}/{}", text(&made, "/id"));
        assert_eq!(app.delete(&made).await.status, 204);
        let refused = create().await;
        assert_eq!(refused.status, 409, "{refused}");
        table.add("the key of a job that was deleted", operation, &refused);
    }
}

async fn break_database(app: &TestApp) {
    let url = format!("sqlite:{}", app.data().join("solverd.db").display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    connection.execute("ALTER TABLE files RENAME TO gone").await.unwrap();
    connection.close().await.unwrap();
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// Connections are ended.
    Cut,
    /// As if the server's host had vanished: what is sent is taken, and nothing comes back.
    Silent,
}

/// Passes connections on to a server.
struct Gate {
    address: SocketAddr,
    way: watch::Sender<Way>,
    /// How many connections wait for an answer that does not come.
    silent: Arc<AtomicUsize>,
    _passing: JoinSet<()>,
}

impl Gate {
    async fn before(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (way, ways) = watch::channel(Way::Open);
        let silent = Arc::<AtomicUsize>::default();
        let silenced = silent.clone();
        let mut passing = JoinSet::new();
        passing.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                let (mut ways, server, silenced) = (ways.clone(), server.clone(), silenced.clone());
                connections.spawn(async move {
                    let mut server = TcpStream::connect(server).await.unwrap();
                    tokio::select! {
                        // However it ends, both sides notice.
                        _ = copy_bidirectional(&mut client, &mut server) => return,
                        _ = ways.wait_for(|way| *way != Way::Open) => {}
                    }
                    if *ways.borrow() == Way::Silent && client.read_u8().await.is_ok() {
                        silenced.fetch_add(1, Ordering::Relaxed);
                        let _ = tokio::io::copy(&mut client, &mut tokio::io::sink()).await;
                    }
                });
            }
        });
        Self { address, way, silent, _passing: passing }
    }

    /// An app on a database behind a new gate.
    async fn of_app(database_url: &str) -> (Self, TestApp) {
        let options = PgConnectOptions::from_str(database_url).unwrap();
        let gate = Self::before(format!("{}:{}", options.get_host(), options.get_port())).await;
        let url = options.host("127.0.0.1").port(gate.address.port()).to_url_lossy();
        let flag = format!("--database-url={url}");
        (gate, TestApp::start_in(tempfile::tempdir().unwrap(), &[&flag]).await)
    }
}

#[tokio::test]
async fn a_database_that_vanishes_holds_up_no_shutdown() {
    let Some(fresh) = Fresh::postgres().await else { return };
    let url = fresh.url.clone();
    Box::pin(fresh.run(async |_| {
        let (gate, app) = Gate::of_app(&url).await;
        gate.way.send_replace(Way::Silent);
        let silent = async || gate.silent.load(Ordering::Relaxed);
        wait_until("the dispatcher to wait for an answer", silent, |silent| *silent > 1).await;
        app.leave().await;
    }))
    .await;
}

#[tokio::test]
async fn a_database_that_is_away_is_told_from_a_fault() {
    let Some(fresh) = Fresh::postgres().await else { return };
    let url = fresh.url.clone();
    Box::pin(fresh.run(async |_| {
        let (gate, app) = Gate::of_app(&url).await;
        let me = async || app.get("/v0/me").await;
        assert_eq!(me().await.status, 200);

        gate.way.send_replace(Way::Cut);
        let away = wait_until("a refusal", me, |answer| answer.status != 200).await;
        assert_eq!((away.status.as_u16(), away.header(&RETRY_AFTER)), (503, Some("1")), "{away}");
        let expected = json!(["the database does not answer; try again"]);
        assert_eq!(
            (&away.json()["errors"], &away.json()["code"]),
            (&expected, &json!("unavailable"))
        );
        let state = answer(app.anonymous(Method::GET, "/v0/state")).await.json();
        let healthy = |name: &str| state["services"][name]["healthy"].as_bool().unwrap();
        assert_eq!(["database", "engine", "object_store"].map(healthy), [false, true, true]);
        assert_eq!(answer(app.anonymous(Method::GET, "/health")).await.status, 503);

        gate.way.send_replace(Way::Open);
        wait_until("the database", me, |answer| answer.status == 200).await;
        app.stop().await;
    }))
    .await;
}
