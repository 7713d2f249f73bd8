//! The API as clients see it: one whole conversation, every error, and who may do what.

use std::{collections::BTreeSet, fmt::Write, io::Read, net::TcpListener};

use insta::{assert_snapshot, with_settings};
use regex::Regex;
use reqwest::{
    Method, StatusCode,
    header::{ALLOW, AUTHORIZATION, CONTENT_DISPOSITION, CONTENT_TYPE, LOCATION, WWW_AUTHENTICATE},
};
use serde_json::{Value as Json, json};
use solverd::domain::{
    id::{FileId, JobId},
    resources::Resources,
    solver::{Port, Release, SolverKey, Version},
    usage::seconds,
    user::Credentials,
};

use crate::{
    forms::{file_form, put},
    openapi::{document, operations},
    studies,
    support::{
        Answer, Api, SLEEPER, TestApp, answer, sha256, sleeper, sleeper_with, text, wait_until,
    },
};

/// What differs from run to run.
pub(crate) const FILTERS: [(&str, &str); 10] = [
    ("OEC:[0-9a-f]{12}-[0-9]{13}", "[support id]"),
    ("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "[uuid]"),
    (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "[time]"),
    (r"127\.0\.0\.1:\d+", "127.0.0.1:[port]"),
    (r#"\?[^"\s]*X-Amz[^"\s]*"#, "?[signature]"),
    // One of the inputs is a file with its id.
    (r#""inputs_checksum": "[0-9a-f]{64}""#, r#""inputs_checksum": "[sha256]""#),
    // The sleeper answers a random number.
    (r#""output_2": [1-9]"#, r#""output_2": [1-9]"#),
    (r#"("output_1": \{[^}]*"checksum": )"[0-9a-f]{64}""#, r#"$1"[sha256]""#),
    (r#"("output_1": \{[^}]*"e_tag": )"[0-9a-f]{32}""#, r#"$1"[md5]""#),
    (r#""id": [1-9]\d*,"#, r#""id": [number],"#),
];

pub(crate) const RELEASE: &str = "/v0/solvers/simcore/services/comp/itis/sleeper/releases/2.1.6";

/// Requests and answers, to be looked at as a whole.
#[derive(Default)]
struct Transcript(String);

impl Transcript {
    fn add(&mut self, request: &str, answer: &Answer) {
        writeln!(self.0, "### {request}\n{answer}").unwrap();
    }
}

#[tokio::test]
async fn a_job_from_upload_to_log() {
    let app = TestApp::start().await;
    app.publish(sleeper().await).await;
    let mut transcript = Transcript::default();

    transcript.add("GET /v0/meta", &answer(app.anonymous(Method::GET, "/v0/meta")).await);
    transcript.add("GET /v0/me", &app.get("/v0/me").await);
    let announced = json!({"filename": "a.txt", "filesize": 1, "sha256_checksum": sha256(b"1")});
    let plan = app.post_json("/v0/files/content", &announced).await;
    transcript.add("POST /v0/files/content", &plan);
    let abort = plan.json()["upload_schema"]["links"]["abort_upload"].as_str().unwrap().to_owned();
    let aborted = app.post_json(&abort, &json!({"client_file": announced})).await;
    transcript.add("POST /v0/files/{file_id}:abort", &aborted);
    let input = app.upload("number.txt", b"1").await;
    transcript.add("POST /v0/files/{file_id}:complete", &input);
    let file = format!("/v0/files/{}", text(&input.json(), "/id"));
    let link = app.get(&format!("{file}/content")).await;
    transcript.add("GET /v0/files/{file_id}/content", &link);
    assert_eq!(app.follow(&link).await, b"1");
    let search = format!("/v0/files:search?sha256_checksum={}", sha256(b"1"));
    transcript.add("GET /v0/files:search", &app.get(&search).await);

    transcript.add("GET /v0/solvers", &app.get("/v0/solvers").await);
    transcript.add("GET …/ports", &app.get(&format!("{RELEASE}/ports")).await);
    let inputs = json!({"input_1": input.json(), "input_2": 0, "input_3": "false", "stray": 1});
    let created =
        app.post_json(&format!("{RELEASE}/jobs?hidden=false"), &json!({"values": inputs})).await;
    transcript.add("POST …/jobs", &created);
    let job = format!("{RELEASE}/jobs/{}", text(&created.json(), "/id"));
    assert_eq!(app.get(&job).await.json(), created.json());
    let notes = app.request(Method::PATCH, &format!("{job}/metadata"));
    let notes = answer(notes.json(&json!({"metadata": {"mesh": 3, "name": "ü"}}))).await;
    transcript.add("PATCH …/metadata", &notes);
    assert_eq!(app.get(&format!("{job}/metadata")).await.json(), notes.json());

    transcript.add("POST …:inspect", &app.post(&format!("{job}:inspect")).await);
    transcript.add("POST …:start", &app.post(&format!("{job}:start")).await);
    assert_eq!(app.post(&format!("{job}:start")).await.status, 200);
    let logstream = format!("{job}/logstream");
    let (one, two, ()) =
        tokio::join!(app.get(&logstream), app.get(&logstream), follow_states(&app, &job));
    assert_eq!(one.text(), two.text(), "both readers see the same");
    let logged = check_stream(&one, text(&created.json(), "/id"));
    assert!(logged.iter().any(|line| line.contains("stray")), "{logged:#?}");
    let ended = app.post(&format!("{job}:inspect")).await;
    transcript.add("POST …:inspect", &ended);
    assert_eq!(ended.json()["state"], "SUCCESS", "{ended}\n{logged:#?}");
    transcript.add("POST …:start", &app.post(&format!("{job}:start")).await);

    let outputs = app.get(&format!("{job}/outputs")).await;
    transcript.add("GET …/outputs", &outputs);
    let results = &outputs.json()["results"];
    let output = format!("/v0/files/{}", text(results, "/output_1/id"));
    let content = app.follow(&app.get(&format!("{output}/content")).await).await;
    assert_eq!(text(results, "/output_1/checksum"), sha256(&content));
    assert_eq!(String::from_utf8(content).unwrap(), results["output_2"].to_string());
    let link = app.get(&format!("{job}/outputs/logfile")).await;
    transcript.add("GET …/outputs/logfile", &link);
    let log = log_in_zip(&app, &link).await;
    let lines: Vec<_> = log.lines().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(lines, logged, "the log file holds what was streamed");

    transcript.add("DELETE …/{job_id}", &app.delete(&job).await);
    assert_eq!(app.delete(&job).await.status, 404);
    let gone = async || app.get(&output).await.status;
    wait_until("the output to go with its job", gone, |status| *status == 404).await;
    transcript.add("DELETE /v0/files/{file_id}", &app.delete(&file).await);
    assert_eq!(app.get(&file).await.status, 404);

    with_settings!({ filters => FILTERS }, { assert_snapshot!(transcript.0) });
    app.stop().await;
}

/// Watches a job until it has ended: its states come in order, its progress never falls.
async fn follow_states(app: &Api, job: &str) {
    const ORDER: [&str; 4] = ["PUBLISHED", "PENDING", "STARTED", "SUCCESS"];
    let mut seen = Vec::new();
    let inspect = async || {
        let status = app.post(&format!("{job}:inspect")).await.json();
        let state = ORDER.iter().position(|state| status["state"] == **state);
        seen.push((state.expect("a state on the way to success"), status["progress"].as_i64()));
        status
    };
    wait_until("SUCCESS", inspect, |status| status["state"] == "SUCCESS").await;
    assert!(seen.is_sorted_by(|one, next| one.0 <= next.0 && one.1 <= next.1), "{seen:?}");
    assert_eq!(seen.last(), Some(&(3, Some(100))));
}

/// The messages of a log stream, each of which has the shape that clients rely on.
fn check_stream(stream: &Answer, id: &str) -> Vec<String> {
    assert_eq!(stream.status, 200);
    assert_eq!(stream.header(&CONTENT_TYPE), Some("application/x-ndjson"));
    let message = |line: &str| {
        let line: Json = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line:?}"));
        assert_eq!(text(&line, "/job_id"), id);
        assert!(matches!(line["log_level"].as_i64(), Some(20 | 30 | 40)), "{line}");
        assert_eq!(line["messages"].as_array().unwrap().len(), 1);
        text(&line, "/messages/0").to_owned()
    };
    stream.text().lines().map(message).collect()
}

/// The text of the one file in a job's log zip.
pub(crate) async fn log_in_zip(app: &Api, link: &Answer) -> String {
    unzipped(app.follow(link).await)
}

/// The one file of a log zip.
pub(crate) fn unzipped(content: Vec<u8>) -> String {
    let mut zip = zip::ZipArchive::new(std::io::Cursor::new(content)).unwrap();
    assert_eq!(zip.len(), 1);
    let mut file = zip.by_index(0).unwrap();
    let name = file.name().unwrap().into_owned();
    let (stem, extension) = name.rsplit_once('.').unwrap();
    assert!(extension == "logs" && !stem.contains('/'), "{name}");
    let mut log = String::new();
    file.read_to_string(&mut log).unwrap();
    log
}

/// The flags that make another service use this one's object store.
pub(crate) async fn external_storage(store: &TestApp) -> [String; 3] {
    let announced = json!({"filename": "a", "filesize": 1, "sha256_checksum": sha256(b"1")});
    let plan = store.post_json("/v0/files/content", &announced).await.json();
    let (endpoint, _) = text(&plan, "/upload_schema/urls/0").split_once("/solverd/").unwrap();
    let keys = std::fs::read_to_string(store.data().join("s3-credentials")).unwrap();
    let (id, secret) = keys.trim().split_once(':').unwrap();
    [
        format!("--s3-endpoint={endpoint}"),
        format!("--s3-access-key-id={id}"),
        format!("--s3-secret-access-key={secret}"),
    ]
}

/// What the service needs, and whether it works.
async fn state(app: &Api) -> Vec<(String, bool)> {
    let [here, there] = ["/v0/state", "/state"].map(|path| app.anonymous(Method::GET, path));
    let (here, there) = (answer(here).await, answer(there).await);
    assert_eq!((here.status, here.json()), (StatusCode::OK, there.json()));
    let services = here.json()["services"].clone();
    let services = services.as_object().unwrap().iter();
    services.map(|(name, state)| (name.clone(), state["healthy"].as_bool().unwrap())).collect()
}

fn owned((name, healthy): (&str, bool)) -> (String, bool) {
    (name.to_owned(), healthy)
}

#[tokio::test]
async fn a_lost_object_store_is_told_from_a_fault() {
    let store = TestApp::start().await;
    let announced = json!({"filename": "a", "filesize": 1, "sha256_checksum": sha256(b"1")});
    let flags = external_storage(&store).await;
    let folder = tempfile::tempdir().unwrap();
    let app = TestApp::start_in(folder, &flags.each_ref().map(String::as_str)).await;
    let file = app.upload("a.txt", b"1").await;
    assert_eq!(file.status, 200, "{file}");

    let well = state(&app).await;
    store.stop().await;
    assert_eq!(well, [("database", true), ("engine", true), ("object_store", true)].map(owned));
    let ill = state(&app).await;
    assert_eq!(ill, [("database", true), ("engine", true), ("object_store", false)].map(owned));
    let deleted = app.delete(&format!("/v0/files/{}", text(&file.json(), "/id"))).await;
    assert_eq!(
        deleted.status, 200,
        "its row is gone, and with it the way to its content: {deleted}"
    );
    let lost = app.post_json("/v0/files/content", &announced).await;
    with_settings!({ filters => FILTERS }, { assert_snapshot!(lost) });
    app.stop().await;
}

/// Every operation with its parameters filled in, and a body where it takes one.
pub(crate) fn requests(
    api: &Api,
    values: &[(&str, &str)],
) -> Vec<(String, reqwest::RequestBuilder)> {
    let file = json!({"filename": "a.txt", "filesize": 1, "sha256_checksum": sha256(b"1")});
    let job_id = values.iter().find(|(name, _)| *name == "job_id").expect("a job").1;
    let request = |operation: &crate::openapi::Operation| {
        let mut path = operation.path.clone();
        for (name, value) in values {
            path = path.replace(&format!("{{{name}}}"), value);
        }
        assert!(!path.contains('{'), "{path} has a parameter that the test does not know");
        if operation.id() == "batch_get_jobs_custom_metadata" {
            path = format!("{path}?job_ids={job_id}");
        }
        let method = Method::from_bytes(operation.method.as_bytes()).unwrap();
        let request = api.request(method, &path);
        let request = match operation.id() {
            "upload_file" => put(api, file_form("a.txt", b"1")),
            "get_upload_links" => request.json(&file),
            "complete_multipart_upload" => {
                request.json(&json!({"client_file": file, "uploaded_parts": {"parts": []}}))
            }
            "abort_multipart_upload" => request.json(&json!({"client_file": file})),
            "create_solver_job" | "create_study_job" => request.json(&json!({"values": {}})),
            "replace_job_custom_metadata" | "replace_study_job_custom_metadata" => {
                request.json(&json!({"metadata": {}}))
            }
            "clone_study" | "update_my_profile" => request.json(&json!({})),
            "checkout_licensed_item" => {
                request.json(&json!({"number_of_seats": 1, "service_run_id": "run"}))
            }
            "inspect_jobs" => request.json(&json!({"job_ids": [job_id]})),
            id => {
                let required = &operation.definition["requestBody"]["required"];
                assert!(required != true, "{id} takes a body");
                request
            }
        };
        (operation.id().to_owned(), request)
    };
    operations().iter().map(request).collect()
}

#[tokio::test]
async fn nothing_is_open_to_strangers() {
    let app = TestApp::start().await;
    let id = JobId::new().to_string();
    let names =
        ["job_id", "file_id", "wallet_id", "licensed_item_id", "study_id"].map(|name| (name, &*id));
    let good = [&[("solver_key", SLEEPER), ("version", "2.1.6")], &names[..]].concat();
    let bad: Vec<_> = good.iter().map(|(name, _)| (*name, "nonsense")).collect();
    let wrong = Credentials { key: "ada-key".to_owned(), secret: "guessed".to_owned() };
    let guessing = app.seen_by(wrong);
    let mut requests_of_strangers = Vec::new();
    // Nor are they told what is wrong with their parameters or their body.
    for values in [&good, &bad] {
        for (operation, request) in requests(&guessing, values) {
            let request = request.build().unwrap();
            let mut anonymous = request.try_clone().unwrap();
            anonymous.headers_mut().remove(AUTHORIZATION);
            let mut bare = anonymous.try_clone().unwrap();
            *bare.body_mut() = None;
            bare.headers_mut().clear();
            for (request, code) in [
                (request, "invalid_credentials"),
                (anonymous, "not_authenticated"),
                (bare, "not_authenticated"),
            ] {
                requests_of_strangers.push((operation.clone(), request, code));
            }
        }
    }
    let (mut open, mut wrong) = (BTreeSet::new(), Vec::new());
    for (operation, request, code) in requests_of_strangers {
        let answer = app.execute(request).await;
        let challenge = answer.header(&WWW_AUTHENTICATE).unwrap_or_default();
        if answer.status == 200 {
            open.insert(operation);
        } else if answer.status != 401
            || answer.json()["code"] != code
            || !challenge.starts_with("Basic ")
        {
            wrong.push(format!("{operation}: {answer}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert_eq!(open.iter().collect::<Vec<_>>(), ["get_service_metadata", "get_service_state"]);
    app.stop().await;
}

#[tokio::test]
async fn what_belongs_to_others_is_not_there() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let job = app.create(&release, json!({})).await;
    let job_id = job.rsplit('/').next().unwrap();
    let file = app.upload("a.txt", b"1").await.json();
    let file_id = text(&file, "/id");
    let study =
        studies::publish(&app, sleeper().await, &studies::example("sleeper_test_study")).await;
    let clone = app.post(&format!("{study}:clone")).await.json();
    let bob = app.add_user("bob@example.org").await;
    let wallet_id = app.get("/v0/wallets/default").await.json()["walletId"].to_string();
    let values = [
        ("solver_key", SLEEPER),
        ("version", "2.1.6"),
        ("job_id", job_id),
        ("file_id", file_id),
        ("study_id", text(&clone, "/uid")),
        ("wallet_id", &wallet_id),
        ("licensed_item_id", job_id),
    ];
    let mut refused = 0;
    for (operation, request) in requests(&bob, &values) {
        let answer = answer(request).await;
        let owned = operations().iter().any(|known| {
            known.id() == operation
                && (["{job_id}", "{file_id}", "{wallet_id}", "{study_id}"]
                    .iter()
                    .any(|id| known.path.contains(id))
                    || ["inspect_jobs", "batch_get_jobs_custom_metadata"].contains(&known.id()))
        });
        if owned {
            assert_eq!(answer.status, 404, "{operation}: {answer}");
            refused += 1;
        } else {
            assert!(answer.status.is_success(), "{operation}: {answer}");
        }
    }
    assert_eq!(refused, 39, "operations on what is owned");
    for list in ["/v0/jobs", "/v0/solvers/-/releases/-/jobs"] {
        let listed = bob.get(list).await;
        assert!(listed.status == 200 && !listed.text().contains(job_id), "{listed}");
    }
    let stolen = json!({"values": {"input_1": file}});
    assert_eq!(bob.post_json(&format!("{RELEASE}/jobs"), &stolen).await.status, 422);
    let found = bob.get(&format!("/v0/files:search?file_id={file_id}")).await.json();
    assert_eq!(found["total"], 0);
    assert_eq!(app.get(&job).await.status, 200, "it is still there");
    assert_eq!(app.get(&format!("/v0/files/{file_id}")).await.json(), file);
    app.stop().await;
}

#[tokio::test]
async fn a_profile_changes_where_it_is_told_to() {
    let app = TestApp::start().await;
    let before = app.get("/v0/me").await.json();
    let put = async |body: Json| answer(app.request(Method::PUT, "/v0/me").json(&body)).await;
    let longest = "ü".repeat(255);
    let changed =
        put(json!({"first_name": "Ada", "last_name": longest, "language": "zh_CN"})).await;
    assert_eq!(changed.status, 200, "{changed}");
    let mut expected = before.clone();
    expected["first_name"] = json!("Ada");
    expected["last_name"] = json!(longest);
    expected["language"] = json!("zh_CN");
    assert_eq!(changed.json(), expected);
    assert_eq!(put(json!({"first_name": null})).await.json()["last_name"], longest);
    assert_eq!(put(json!({"last_name": "ü".repeat(256)})).await.status, 422);
    assert_eq!(put(json!({"language": null, "last_name": null})).await.status, 200);
    assert_eq!(app.get("/v0/me").await.json(), before);
    app.stop().await;
}

#[tokio::test]
async fn nothing_has_a_price() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let mut transcript = Transcript::default();
    let wallet = app.get("/v0/wallets/default").await;
    transcript.add("GET /v0/wallets/default", &wallet);
    let path = format!("/v0/wallets/{}", wallet.json()["walletId"]);
    assert_eq!(app.get(&path).await.json(), wallet.json());
    let gid = text(&app.get("/v0/me").await.json(), "/groups/me/gid").to_owned();
    assert_eq!(wallet.json()["owner"].to_string(), gid);
    let items = format!("{path}/licensed-items");
    transcript.add("GET …/licensed-items", &app.get(&items).await);
    for path in ["/v0/credits/price", &format!("{RELEASE}/pricing_plan")] {
        transcript.add(&format!("GET {path}"), &app.get(path).await);
    }
    let job = app.create(&release, json!({"input_2": 0})).await;
    assert_eq!(app.get(&format!("{job}/wallet")).await.json(), wallet.json());
    transcript.add("GET …/pricing_unit", &app.get(&format!("{job}/pricing_unit")).await);
    with_settings!({ filters => FILTERS }, { assert_snapshot!(transcript.0) });
    app.stop().await;
}

#[tokio::test]
async fn what_a_job_used_stays_in_the_books() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let job = app.start_job(&release, json!({"input_2": 0})).await;
    assert_eq!(app.wait_for_end(&job).await["state"], "SUCCESS");
    let used = app.get(&format!("{job}/pricing_unit")).await.json()["usage"].clone();
    let (cpu, wall) = (&used["cpuSeconds"], &used["wallSeconds"]);
    let between = |value: &Json, from: f64, to: f64| {
        value.as_f64().is_some_and(|seconds| from <= seconds && seconds <= to)
    };
    assert!(between(cpu, 0.0, 60.0) && between(wall, 0.001, 60.0), "{used}");
    assert!(matches!(text(&used, "/cpuSource"), "MEASURED" | "RESERVED"), "{used}");
    let idle = app.create(&release, json!({})).await;
    app.post(&format!("{idle}:stop")).await;
    assert_eq!(app.delete(&job).await.status, 204);
    let gone = async || app.get(&job).await.status;
    wait_until("the job to go", gone, |status| *status == 404).await;

    let db = app.db().await;
    let ada = db.user_by_email("ada@example.org").await.unwrap();
    let total = db.user_usage(ada.id).await.unwrap();
    db.close().await;
    assert_eq!(total.jobs, 1);
    assert_eq!(Json::from(seconds(total.cpu_micros)), *cpu);
    assert_eq!(Json::from(seconds(total.wall_micros)), *wall);
    app.stop().await;
}

#[tokio::test]
async fn a_slash_too_many_leads_back() {
    let app = TestApp::start().await;
    let id = JobId::new().to_string();
    let ids =
        ["job_id", "file_id", "wallet_id", "licensed_item_id", "study_id"].map(|name| (name, &*id));
    for key in [SLEEPER.to_owned(), SLEEPER.replace('/', "%2F")] {
        let values = [&[("solver_key", &*key), ("version", "2.1.6")], &ids[..]].concat();
        for (operation, request) in requests(&app, &values) {
            let request = request.build().unwrap();
            let path = request.url().path();
            for query in ["", "?limit=3&a=b%2Fc"] {
                let with_slash = app.request(request.method().clone(), &format!("{path}/{query}"));
                let answer = answer(with_slash).await;
                assert_eq!(answer.status, 307, "{operation}: {answer}");
                assert_eq!(answer.header(&LOCATION), Some(&*format!("{path}{query}")));
            }
        }
    }
    app.stop().await;
}

#[tokio::test]
async fn solver_keys_may_be_written_in_two_ways() {
    let app = TestApp::start().await;
    app.publish(sleeper().await).await;
    let encoded = SLEEPER.replace('/', "%2F");
    let jobs = format!("/v0/solvers/{encoded}/releases/2.1.6/jobs");
    let job = app.post_json(&jobs, &json!({"values": {"input_2": 1}})).await;
    assert_eq!(job.status, 201, "{job}");
    let job = format!("releases/2.1.6/jobs/{}", text(&job.json(), "/id"));
    for rest in [
        "latest",
        "releases",
        "releases/2.1.6",
        "releases/2.1.6/ports",
        "releases/2.1.6/jobs",
        "releases/2.1.6/jobs/page?limit=1",
        &job,
        &format!("{job}/metadata"),
        &format!("{job}/outputs"),
    ] {
        let raw = app.get(&format!("/v0/solvers/{SLEEPER}/{rest}")).await;
        for key in [&encoded, &encoded.to_lowercase()] {
            let other = app.get(&format!("/v0/solvers/{key}/{rest}")).await;
            assert_eq!(raw.to_string(), other.to_string());
        }
        let status = if rest.ends_with("outputs") { 409 } else { 200 };
        assert_eq!(raw.status, status, "{rest}: {raw}");
    }
    let inspected = app.post(&format!("/v0/solvers/{encoded}/{job}:inspect")).await;
    assert_eq!(inspected.json()["state"], "NOT_STARTED", "{inspected}");
    app.stop().await;
}

#[tokio::test]
async fn the_catalogue_comes_in_pages() {
    let app = TestApp::start().await;
    for (key, version, display) in [
        ("simcore/services/comp/aa", "1.9.0", Some("Nine")),
        ("simcore/services/comp/aa", "1.10.0", Some("Ten")),
        ("simcore/services/comp/bb", "0.1.0", None),
        ("simcore/services/comp/bb/cc", "2.0.0-rc.1", Some("Ten (rc)")),
    ] {
        let mut release = sleeper().await;
        release.key = SolverKey::parse(key).unwrap();
        release.version = Version::parse(version).unwrap();
        release.version_display = display.map(str::to_owned);
        app.publish(release).await;
    }
    let all = ["aa 1.10.0", "aa 1.9.0", "bb 0.1.0", "bb/cc 2.0.0-rc.1"];
    for (query, expected) in [
        ("solvers/page", &all[..]),
        ("solvers/page?limit=2&offset=1", &all[1..3]),
        ("solvers/page?offset=9", &[]),
        ("solvers/page?solver_id=simcore/services/comp/aa", &all[..2]),
        ("solvers/page?solver_id=*%2Fb*&limit=1", &all[2..3]),
        ("solvers/page?solver_id=b", &[]),
        ("solvers/page?version_display=ten*", &[all[0], all[3]]),
        ("solvers/page?version_display=ten*&solver_id=*%2Faa", &all[..1]),
        ("solvers/simcore/services/comp/aa/releases/page", &all[..2]),
        ("solvers/simcore%2Fservices%2Fcomp%2Faa/releases/page?limit=1&offset=1", &all[1..2]),
    ] {
        let page = app.get(&format!("/v0/{query}")).await;
        assert_eq!(page.status, 200, "{query}: {page}");
        let page = page.json();
        let name = |solver: &Json| {
            let key = text(solver, "/id").strip_prefix("simcore/services/comp/").unwrap();
            format!("{key} {}", text(solver, "/version"))
        };
        let names: Vec<_> = page["items"].as_array().unwrap().iter().map(name).collect();
        assert_eq!(names, expected, "{query}");
        let newest = app.get("/v0/solvers/simcore/services/comp/aa/latest").await.json();
        if names.first().is_some_and(|name| name == all[0]) {
            assert_eq!(page["items"][0], newest, "{query}");
        }
    }
    let page = app.get("/v0/solvers/page?limit=2&solver_id=*").await.json();
    assert_eq!(
        (&page["total"], &page["limit"], &page["offset"]),
        (&json!(4), &json!(2), &json!(0))
    );
    let links = json!({
        "first": "/v0/solvers/page?solver_id=*&limit=2&offset=0",
        "last": "/v0/solvers/page?solver_id=*&limit=2&offset=2",
        "self": "/v0/solvers/page?solver_id=*&limit=2&offset=0",
        "next": "/v0/solvers/page?solver_id=*&limit=2&offset=2",
        "prev": null,
    });
    assert_eq!(page["links"], links);
    let unknown = app.get("/v0/solvers/simcore/services/comp/zz/releases/page").await;
    assert_eq!(unknown.status, 404, "{unknown}");
    app.stop().await;
}

#[tokio::test]
async fn jobs_are_found_across_solvers() {
    let app = TestApp::start().await;
    let old = app.publish(sleeper_with("2.1.1", Resources::default()).await).await;
    let new = app.publish(sleeper().await).await;
    let mut jobs = Vec::new();
    for (number, release) in [&old, &new, &old, &new].into_iter().enumerate() {
        let job = app.create(release, json!({"input_2": 0})).await;
        let notes = json!({"metadata": {"number": number, "mesh": "Fine"}});
        let request = app.request(Method::PATCH, &format!("{job}/metadata")).json(&notes);
        assert_eq!(answer(request).await.status, 200);
        jobs.push(job);
    }
    app.post(&format!("{}:start", jobs[1])).await;
    app.wait_for_end(&jobs[1]).await;
    let middle = text(&app.get(&jobs[2]).await.json(), "/created_at").to_owned();

    let all = "/v0/solvers/-/releases/-/jobs";
    for (query, expected) in [
        (all.to_owned(), &[3, 2, 1, 0][..]),
        (format!("{all}?limit=2&offset=1"), &[2, 1]),
        (format!("{all}?metadata.any=number:0&metadata.any=number:3"), &[3, 0]),
        (format!("{all}?metadata.all=number:2&metadata.all=mesh:f*"), &[2]),
        (format!("{all}?metadata.all=number:2&metadata.all=mesh:g*"), &[]),
        ("/v0/jobs".to_owned(), &[3, 2, 1, 0]),
        ("/v0/jobs?sort=-created_at&limit=1".to_owned(), &[3]),
        ("/v0/jobs?sort=created_at&limit=3".to_owned(), &[0, 1, 2]),
        ("/v0/jobs?solver=*/sleeper&version=2.1.1".to_owned(), &[2, 0]),
        ("/v0/jobs?solver=*/nothing".to_owned(), &[]),
        ("/v0/jobs?version=2.1.?".to_owned(), &[3, 2, 1, 0]),
        ("/v0/jobs?state=SUCCESS&state=FAILED".to_owned(), &[1]),
        ("/v0/jobs?metadata=number=3&metadata=mesh=fine".to_owned(), &[3]),
        (format!("/v0/jobs?created_from={middle}"), &[3, 2]),
        (format!("/v0/jobs?created_before={middle}&sort=created_at"), &[0, 1]),
    ] {
        let page = app.get(&query).await;
        assert_eq!(page.status, 200, "{query}: {page}");
        let page = page.json();
        let items = page["items"].as_array().unwrap();
        let place =
            |job: &Json| jobs.iter().position(|path| path.ends_with(text(job, "/id"))).unwrap();
        assert_eq!(items.iter().map(place).collect::<Vec<_>>(), expected, "{query}");
        if !query.contains("limit") {
            assert_eq!(page["total"], expected.len(), "{query}");
        }
        for item in items {
            let path = &jobs[place(item)];
            let mut job = app.get(path).await.json();
            if query.starts_with("/v0/jobs") {
                job["status"] = app.post(&format!("{path}:inspect")).await.json();
            }
            assert_eq!(*item, job, "{query}");
        }
    }

    let ids: Vec<_> =
        [3, 1].iter().map(|&at: &usize| jobs[at].rsplit('/').next().unwrap()).collect();
    let statuses = app.post_json("/v0/jobs:inspect", &json!({"job_ids": ids})).await.json();
    let mut expected = Vec::new();
    for at in [3, 1] {
        expected.push(app.post(&format!("{}:inspect", jobs[at])).await.json());
    }
    assert_eq!(statuses, json!({"items": expected}));
    let many = json!({"job_ids": vec![ids[0]; 1000]});
    let statuses = app.post_json("/v0/jobs:inspect", &many).await.json();
    assert_eq!(statuses["items"].as_array().unwrap().len(), 1000);
    let too_many = json!({"job_ids": vec![ids[0]; 1001]});
    assert_eq!(app.post_json("/v0/jobs:inspect", &too_many).await.status, 422);

    let query = format!("?job_ids={}&job_ids={}", ids[0], ids[1]);
    let notes = app.get(&format!("{all}/metadata:batchGet{query}")).await.json();
    let mut expected = Vec::new();
    for at in [3, 1] {
        expected.push(app.get(&format!("{}/metadata", jobs[at])).await.json());
    }
    assert_eq!(notes, json!({"items": expected}));
    let query = format!("?{}", format!("job_ids={}&", ids[0]).repeat(51));
    assert_eq!(app.get(&format!("{all}/metadata:batchGet{query}")).await.status, 422);
    app.stop().await;
}

#[tokio::test]
async fn a_job_without_its_assets_keeps_status_and_notes() {
    let app = TestApp::start().await;
    let release = app.publish(sleeper().await).await;
    let job = app.create(&release, json!({"input_2": 0})).await;
    let assets = format!("{job}/assets");
    assert_eq!(app.delete(&assets).await.status, 409, "it has not even begun");
    app.post(&format!("{job}:start")).await;
    let status = app.wait_for_end(&job).await;
    let results = app.get(&format!("{job}/outputs")).await.json();
    let file = format!("/v0/files/{}", text(&results, "/results/output_1/id"));
    let links = [
        app.get(&format!("{job}/outputs/logfile")).await,
        app.get(&format!("{file}/content")).await,
    ];
    let notes = app.get(&format!("{job}/metadata")).await.json();

    for _ in 0..2 {
        assert_eq!(app.delete(&assets).await.to_string().trim(), "204 No Content");
    }
    assert_eq!(app.post(&format!("{job}:inspect")).await.json(), status);
    assert_eq!(app.get(&format!("{job}/metadata")).await.json(), notes);
    assert_eq!(app.get(&job).await.status, 200);
    for refused in
        [app.post(&format!("{job}:start")).await, app.get(&format!("{job}/outputs")).await]
    {
        assert_eq!(refused.status, 409, "{refused}");
        assert_eq!(refused.json()["code"], "assets_deleted");
    }
    let log = app.get(&format!("{job}/outputs/logfile")).await;
    assert_eq!((log.status.as_u16(), log.json()["code"].as_str()), (404, Some("not_found")));
    assert_eq!(app.get(&format!("{job}/logstream")).await.text(), "");
    assert_eq!(app.get(&file).await.status, 404);
    for link in links {
        let content = answer(app.anonymous_url(link.header(&LOCATION).unwrap())).await;
        assert_eq!(content.status, 404, "the object is gone as well: {content}");
    }
    assert_eq!(app.delete(&job).await.status, 204);
    assert_eq!(app.delete(&assets).await.status, 404);
    app.stop().await;
}

#[tokio::test]
async fn a_file_keeps_its_name_and_every_byte() {
    let app = TestApp::start().await;
    let bytes: Vec<u8> = (0..=255).cycle().take(100_000).collect();
    for (name, content) in [("ünïcode \"name\".dat", &bytes[..]), ("empty", b"")] {
        let file = app.upload(name, content).await.json();
        assert_eq!(text(&file, "/filename"), name);
        let link = app.get(&format!("/v0/files/{}/content", text(&file, "/id"))).await;
        assert_eq!(app.follow(&link).await, content);
        let download = answer(app.anonymous_url(link.header(&LOCATION).unwrap())).await;
        let disposition = download.header(&CONTENT_DISPOSITION).unwrap();
        assert!(disposition.starts_with("attachment"), "{disposition}");
    }
    app.stop().await;
}

#[tokio::test]
async fn the_service_tells_about_itself() {
    let app = TestApp::start().await;
    let health = answer(app.anonymous(Method::GET, "/health")).await;
    assert_eq!(health.status, 200);
    assert!(health.text().contains("is healthy"), "{health}");
    let alive = answer(app.anonymous(Method::GET, "/v0/")).await;
    assert!(alive.status == 200 && alive.text().starts_with("solverd@20"), "{alive}");
    let served = answer(app.anonymous(Method::GET, "/openapi.json")).await;
    assert_eq!(served.json(), document());

    for path in ["/", "/docs"] {
        let answer = answer(app.anonymous(Method::GET, path)).await;
        assert_eq!((answer.status.as_u16(), answer.header(&LOCATION)), (302, Some("/docs/")));
    }
    // Whatever the page needs comes from the service itself.
    let page = answer(app.anonymous(Method::GET, "/docs/")).await;
    assert!(page.header(&CONTENT_TYPE).unwrap().starts_with("text/html"), "{page}");
    assert!(!page.text().contains("://"), "{page}");
    let link = Regex::new(r#"(?:src|href)="([^"]+)""#).unwrap();
    let mut parts = 0;
    for link in link.captures_iter(page.text()) {
        let part = answer(app.anonymous(Method::GET, &format!("/docs/{}", &link[1]))).await;
        assert_eq!(part.status, 200, "{}", &link[1]);
        parts += 1;
    }
    assert!(parts > 3, "{page}");
    let start = answer(app.anonymous(Method::GET, "/docs/swagger-initializer.js")).await;
    assert!(start.text().contains("/openapi.json") && !start.text().contains("://"), "{start}");
    app.stop().await;
}

#[tokio::test]
async fn a_wrong_method_is_told_the_right_ones() {
    let app = TestApp::start().await;
    let id = JobId::new();
    for (method, path, allow) in [
        (Method::POST, "/v0/me".to_owned(), "GET, PUT"),
        (Method::PATCH, format!("/v0/files/{id}"), "DELETE, GET"),
        (Method::GET, format!("{RELEASE}/jobs/{id}:start"), "POST"),
        (Method::DELETE, format!("/v0/files/{id}:abort"), "POST"),
        (Method::PUT, format!("{RELEASE}/jobs"), "GET, POST"),
        (Method::DELETE, format!("{RELEASE}/jobs/{id}/metadata"), "GET, PATCH"),
    ] {
        let answer = answer(app.request(method.clone(), &path)).await;
        assert_eq!(answer.status, 405, "{method} {path}: {answer}");
        assert_eq!(answer.header(&ALLOW), Some(allow), "{method} {path}");
        assert_eq!(answer.json()["code"], "method_not_allowed");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_refused_with_the_settings_name() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let settings = crate::support::settings(folder.path(), &[]);
    let settings = solverd::settings::Settings { listen: taken.local_addr().unwrap(), ..settings };
    let error = Box::pin(solverd::App::bind(&settings)).await.err().unwrap();
    assert!(format!("{error:#}").contains("setting `listen`"), "{error:#}");
}

#[tokio::test]
async fn what_is_wrong_with_a_new_job_is_told_at_once() {
    let app = TestApp::start().await;
    let mut release = Release { version: Version::parse("3.0.0").unwrap(), ..sleeper().await };
    let another = Port { key: "another".to_owned(), ..release.inputs[0].clone() };
    release.inputs.push(another);
    let release = app.publish(release).await;
    let path = format!("/v0/solvers/{}/releases/{}/jobs", release.key, release.version);
    let nobodys = json!({"id": FileId::new(), "filename": "a.txt"});
    let body = json!({
        "values": {"input_1": nobodys, "another": nobodys},
        "resources": {"cpus": 0},
        "callback": {"url": "ftp://example.org", "secret": "short"},
    });
    let refused = app.post_json(&path, &body).await;
    assert_eq!(refused.status, 422, "{refused}");
    let errors = refused.json()["errors"].as_array().unwrap().clone();
    let mut places: Vec<_> = errors.iter().map(|error| error["loc"][2].clone()).collect();
    places.sort_by_key(Json::to_string);
    assert_eq!(places, ["another", "cpus", "input_1", "secret", "url"], "{refused}");
    app.stop().await;
}
