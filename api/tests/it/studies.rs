//! Studies on the real engine: steps in the order of their data, side by side where it allows, and what stops, failures and restarts
//! make of them.

use reqwest::{Method, header::LOCATION};
use serde_json::{Value as Json, json};
use solverd::domain::{resources::Resources, solver::Release, steps::Definition};

use crate::{
    http::unzipped,
    support::{Api, TestApp, answer, containers, machine, sleeper, sleeper_with, text, wait_until},
};

const FOREVER: i64 = 300;

/// One of the example studies.
pub(crate) fn example(name: &str) -> Json {
    let path = format!("{}/../solvers/studies/{name}.json", env!("CARGO_MANIFEST_DIR"));
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A study of sleepers whose steps are named with what feeds `input_2` to `input_4`.
pub(crate) fn study(steps: &Json) -> Json {
    let step = |(name, inputs): (&String, &Json)| json!({"name": name, "solver": "simcore/services/comp/itis/sleeper", "version": "3.0.0", "inputs": inputs});
    let steps: Vec<_> = steps.as_object().unwrap().iter().map(step).collect();
    let seconds =
        json!({"label": "seconds", "description": "", "type": "integer", "defaultValue": FOREVER});
    json!({"key": "simcore/services/comp/studies/test", "version": "1.0.0", "name": "test", "inputs": {"seconds": seconds}, "steps": steps})
}

/// Publishes a study and the sleeper that it is made of; answers its path.
pub(crate) async fn publish(app: &TestApp, sleeper: Release, definition: &Json) -> String {
    let sleeper = app.publish(sleeper).await;
    let definition = Definition::parse(&definition.to_string()).unwrap();
    let release = app.publish(definition.resolve(&[sleeper]).unwrap()).await;
    let studies = app.get("/v0/studies").await.json();
    let items = studies["items"].as_array().unwrap();
    let found = items.iter().find(|study| text(study, "/title") == release.title).unwrap();
    format!("/v0/studies/{}", text(found, "/uid"))
}

/// Creates and starts a job of a study; answers its path.
pub(crate) async fn start(app: &Api, study: &str, values: Json) -> String {
    let job = app.post_json(&format!("{study}/jobs"), &json!({"values": values})).await;
    assert_eq!(job.status, 200, "{job}");
    let job = format!("{study}/jobs/{}", text(&job.json(), "/id"));
    let started = app.post(&format!("{job}:start")).await;
    assert_eq!(started.status, 202, "{started}");
    assert_eq!(app.post(&format!("{job}:start")).await.status, 200);
    job
}

/// What the jobs of a study's steps are doing, by step.
async fn steps(app: &TestApp, job: &str) -> Vec<(String, String)> {
    let db = app.db().await;
    let jobs = db.job_children(job.rsplit('/').next().unwrap().parse().unwrap()).await.unwrap();
    db.close().await;
    jobs.into_iter().map(|job| (job.step.unwrap(), job.state.to_string())).collect()
}

pub(crate) async fn wait_for_step(app: &TestApp, job: &str, step: &str, state: &str) {
    let wanted = (step.to_owned(), state.to_owned());
    let look = async || steps(app, job).await;
    wait_until(&format!("{step} {state}"), look, |seen| seen.contains(&wanted)).await;
}

/// The sleeper as version 3.0.0, taking all CPUs: only one step runs at a time.
async fn greedy() -> Release {
    sleeper_with("3.0.0", Resources { memory_bytes: 64 << 20, ..machine().await }).await
}

/// The sleeper as version 3.0.0, taking little.
pub(crate) async fn modest() -> Release {
    sleeper_with("3.0.0", Resources { nano_cpus: 100_000_000, memory_bytes: 64 << 20, gpus: 0 })
        .await
}

#[tokio::test]
async fn a_chain_runs_from_file_to_file() {
    let app = TestApp::start().await;
    let study = publish(&app, sleeper().await, &example("sleeper_test_study")).await;
    let ports = app.get(&format!("{study}/ports")).await.json();
    assert_eq!((&ports["total"], text(&ports, "/items/0/kind")), (&json!(3), "input"));
    assert_eq!(text(&ports, "/items/0/content_schema/title"), "input_file");

    let file = app.upload("seconds.txt", b"1").await.json();
    let job = start(&app, &study, json!({"input_file": file})).await;
    let ended = app.wait_for_end(&job).await;
    assert_eq!(text(&ended, "/state"), "SUCCESS", "{ended:#}");
    assert!(ended["started_at"].is_string() && ended["errors"].is_null(), "{ended:#}");

    let outputs = app.post(&format!("{job}/outputs")).await;
    assert_eq!(outputs.status, 200, "{outputs}");
    let results = &outputs.json()["results"];
    let content = app.get(&format!("/v0/files/{}/content", text(results, "/output_file/id"))).await;
    assert_eq!(app.follow(&content).await, results["output_number"].to_string().into_bytes());

    let links = app.get(&format!("{job}/outputs/log-links")).await.json();
    let links = links["log_links"].as_array().unwrap();
    let names: Vec<_> = links.iter().map(|link| text(link, "/node_name")).collect();
    assert_eq!(names, ["first.zip", "second.zip", "sleeper_test_study.zip"]);
    for link in links {
        // No credentials, no redirection.
        let log = answer(app.anonymous_url(text(link, "/download_link"))).await;
        assert!(log.status == 200 && log.body.starts_with(b"PK"), "{log}");
        assert_eq!(log.header(&LOCATION), None);
    }

    // The steps are in no list, but can be looked at; one alone cannot be deleted.
    let jobs = "/v0/solvers/simcore/services/comp/itis/sleeper/releases/2.1.6/jobs";
    assert_eq!(app.get(&format!("{jobs}/page")).await.json()["total"], 0);
    assert_eq!(app.get(jobs).await.json(), json!([]));
    let db = app.db().await;
    let children = db.job_children(job.rsplit('/').next().unwrap().parse().unwrap()).await.unwrap();
    db.close().await;
    let step = format!("{jobs}/{}", children[0].id);
    assert_eq!(app.get(&step).await.status, 200);
    let refused = app.delete(&step).await;
    assert!(refused.status == 409 && refused.text().contains("is a step of job"), "{refused}");

    // In the list of all jobs is the whole alone; it reserves nothing of the machine, as its steps do that.
    let listed = app.get("/v0/jobs").await.json();
    let id = job.rsplit('/').next().unwrap();
    assert_eq!((&listed["total"], text(&listed, "/items/0/id")), (&json!(1), id), "{listed:#}");
    // The steps are listed where they are asked for: newest first, as all lists are, and with all other filters.
    for (query, expected) in [
        ("", &["second", "first"][..]),
        ("&sort=created_at&limit=1", &["first"]),
        ("&offset=1", &["first"]),
        ("&state=SUCCESS&solver=*/sleeper", &["second", "first"]),
        ("&state=FAILED", &[]),
    ] {
        let listed = app.get(&format!("/v0/jobs?parent={id}{query}")).await.json();
        let step = |job: &Json| {
            let step = children.iter().find(|step| step.id.to_string() == text(job, "/id"));
            step.and_then(|step| step.step.clone()).unwrap()
        };
        let steps: Vec<_> = listed["items"].as_array().unwrap().iter().map(step).collect();
        assert_eq!(steps, expected, "{query}: {listed:#}");
    }
    let of_step = app.get(&format!("/v0/jobs?parent={}", children[0].id)).await.json();
    assert_eq!(of_step["total"], 0, "it has no steps itself");
    let bob = app.add_user("bob@example.org").await;
    assert_eq!(bob.get(&format!("/v0/jobs?parent={id}")).await.status, 404);
    let definition = example("sleeper_test_study");
    let (key, version) = (text(&definition, "/key"), text(&definition, "/version"));
    let release = format!("/v0/solvers/{key}/releases/{version}");
    let whole = format!("{release}/jobs/{id}");
    let plan = app.get(&format!("{release}/pricing_plan")).await.json();
    let unit = app.get(&format!("{whole}/pricing_unit")).await.json();
    for unit in [&plan["pricingUnits"][0], &unit] {
        assert_eq!(unit["unitExtraInfo"], json!({"CPU": 0, "RAM": 0, "VRAM": 0}));
        assert_eq!(unit.get("usage"), None);
    }
    let unit = app.get(&format!("{step}/pricing_unit")).await.json();
    assert!(unit["usage"].is_object(), "{unit:#}");

    assert_eq!(app.delete(&job).await.status, 204);
    assert_eq!(app.delete(&job).await.status, 404);
    let gone = async || app.get(&step).await.status.as_u16();
    wait_until("the end of the steps", gone, |status| *status == 404).await;
    let file = async || {
        app.get(&format!("/v0/files/{}", text(results, "/output_file/id"))).await.status.as_u16()
    };
    wait_until("the end of the files", file, |status| *status == 404).await;
    app.stop().await;
}

#[tokio::test]
async fn independent_steps_run_side_by_side() {
    let app = TestApp::start().await;
    let definition = study(&json!({
        "left": {"input_2": {"input": "seconds"}},
        "right": {"input_2": {"input": "seconds"}},
        "join": {"input_1": {"step": "left", "output": "output_1"}, "input_2": {"value": 0}, "input_4": {"step": "right", "output": "output_2"}},
    }));
    let study = publish(&app, modest().await, &definition).await;
    let job = start(&app, &study, json!({"seconds": 3})).await;
    let both = |seen: &Vec<(String, String)>| {
        seen.len() == 2 && seen.iter().all(|(_, state)| state == "STARTED")
    };
    wait_until("both to run", async || steps(&app, &job).await, both).await;
    let status = app.wait_for(&job, &["STARTED"]).await;
    assert!(status["progress"].as_i64().unwrap() < 67, "{status:#}");
    let ended = app.wait_for_end(&job).await;
    assert_eq!(text(&ended, "/state"), "SUCCESS", "{ended:#}");
    assert_eq!(steps(&app, &job).await.len(), 3);

    // The assets of the whole are those of its steps, which have none to be deleted alone.
    let db = app.db().await;
    let id = job.rsplit('/').next().unwrap();
    let children = db.job_children(id.parse().unwrap()).await.unwrap();
    db.close().await;
    let step = format!(
        "/v0/solvers/simcore/services/comp/itis/sleeper/releases/3.0.0/jobs/{}",
        children[0].id
    );
    let outputs = app.get(&format!("{step}/outputs")).await.json();
    let file = format!("/v0/files/{}", text(&outputs, "/results/output_1/id"));
    assert_eq!(app.get(&file).await.status, 200);
    let refused = app.delete(&format!("{step}/assets")).await;
    assert!(refused.status == 409 && refused.text().contains("is a step of job"), "{refused}");
    let whole = format!("/v0/solvers/simcore/services/comp/studies/test/releases/1.0.0/jobs/{id}");
    assert_eq!(app.delete(&format!("{whole}/assets")).await.status, 204);
    for gone in
        [app.post(&format!("{job}/outputs")).await, app.get(&format!("{step}/outputs")).await]
    {
        assert!(gone.status == 409 && gone.text().contains("were deleted"), "{gone}");
    }
    assert_eq!(app.get(&file).await.status, 404);
    app.stop().await;
}

#[tokio::test]
async fn a_failed_step_stops_the_others_and_says_why() {
    let app = TestApp::start().await;
    let definition = study(&json!({
        "long": {"input_2": {"input": "seconds"}},
        "bad": {"input_2": {"value": 1}, "input_3": {"value": true}},
        "never": {"input_1": {"step": "bad", "output": "output_1"}},
    }));
    let study = publish(&app, modest().await, &definition).await;
    let job = start(&app, &study, json!({})).await;
    let ended = app.wait_for_end(&job).await;
    assert_eq!(text(&ended, "/state"), "FAILED", "{ended:#}");
    let message = text(&ended, "/errors/0/msg");
    assert!(message.starts_with("step `bad`: ") && message.contains("code 1"), "{message}");
    assert_eq!(text(&ended, "/errors/0/loc/1"), "bad");
    let seen = steps(&app, &job).await;
    let state = |name: &str| seen.iter().find(|(step, _)| step == name).map(|(_, state)| &**state);
    assert_eq!(
        (state("long"), state("bad"), state("never")),
        (Some("ABORTED"), Some("FAILED"), None)
    );
    let outputs = app.post(&format!("{job}/outputs")).await;
    assert!(outputs.status == 409 && outputs.text().contains("step `bad`"), "{outputs}");
    app.stop().await;
}

#[tokio::test]
async fn a_stop_ends_all_steps() {
    let app = TestApp::start().await;
    let definition = study(&json!({
        "one": {"input_2": {"input": "seconds"}},
        "two": {"input_2": {"input": "seconds"}},
        "after": {"input_1": {"step": "one", "output": "output_1"}},
    }));
    let study = publish(&app, greedy().await, &definition).await;
    let job = start(&app, &study, json!({})).await;
    app.wait_for(&job, &["STARTED"]).await;
    // One runs, one waits for the machine.
    assert_eq!(containers(app.data()).await.len(), 1);
    assert_eq!(app.post(&format!("{job}:stop")).await.status, 200);
    let ended = app.wait_for_end(&job).await;
    assert_eq!((text(&ended, "/state"), &ended["errors"]), ("ABORTED", &json!(null)));
    assert!(steps(&app, &job).await.iter().all(|(_, state)| state == "ABORTED"));
    assert_eq!(steps(&app, &job).await.len(), 2);

    // Deleting a running one leaves nothing: `stop` looks.
    let job = start(&app, &study, json!({})).await;
    app.wait_for(&job, &["STARTED"]).await;
    assert_eq!(app.delete(&job).await.status, 204);
    let left = async || steps(&app, &job).await;
    wait_until("the end of the steps", left, Vec::is_empty).await;
    app.stop().await;
}

#[tokio::test]
async fn a_restart_goes_on_where_the_steps_stand() {
    let app = TestApp::start().await;
    let definition = study(&json!({
        "first": {"input_2": {"input": "seconds"}},
        "second": {"input_1": {"step": "first", "output": "output_1"}, "input_2": {"value": 0}},
    }));
    let release = greedy().await;
    let study = publish(&app, release.clone(), &definition).await;
    // What comes between the two steps keeps the machine busy when the service goes down.
    let job = start(&app, &study, json!({"seconds": 1})).await;
    wait_for_step(&app, &job, "first", "STARTED").await;
    let between = app.start_job(&release, json!({"input_2": FOREVER})).await;
    app.wait_for(&between, &["STARTED"]).await;
    wait_for_step(&app, &job, "second", "WAITING_FOR_RESOURCES").await;
    let before = steps(&app, &job).await;

    let app = TestApp::start_in(app.leave().await, &[]).await;
    app.post(&format!("{between}:stop")).await;
    let ended = app.wait_for_end(&job).await;
    assert_eq!(text(&ended, "/state"), "SUCCESS", "{ended:#}");
    let after = steps(&app, &job).await;
    assert_eq!(before.len(), 2, "{before:?}");
    assert_eq!(after, ["first", "second"].map(|step| (step.to_owned(), "SUCCESS".to_owned())));
    assert_eq!(text(&app.wait_for_end(&between).await, "/state"), "ABORTED");
    let links = app.get(&format!("{job}/outputs/log-links")).await.json();
    let link = &links["log_links"].as_array().unwrap()[2];
    let zip = answer(app.anonymous_url(text(link, "/download_link"))).await;
    let log = unzipped(zip.body);
    assert!(log.contains("[solverd] step `second` waits: it asks for"), "{log}");

    // A step that runs when the service goes down runs on.
    let job = start(&app, &study, json!({"seconds": 3})).await;
    app.wait_for(&job, &["STARTED"]).await;
    let app = TestApp::start_in(app.leave().await, &[]).await;
    assert_eq!(text(&app.wait_for_end(&job).await, "/state"), "SUCCESS");
    let again = steps(&app, &job).await;
    assert_eq!(again, ["first", "second"].map(|step| (step.to_owned(), "SUCCESS".to_owned())));
    app.stop().await;
}

#[tokio::test]
async fn a_clone_is_its_owners_alone() {
    let app = TestApp::start().await;
    let study = publish(&app, sleeper().await, &example("sleeper_test_study")).await;
    let bob = app.add_user("bob@example.org").await;
    let body = json!({"title": "mine"});
    let clone = app.post_json(&format!("{study}:clone"), &body).await;
    assert_eq!((clone.status.as_u16(), text(&clone.json(), "/title")), (201, "mine"));
    let path = format!("/v0/studies/{}", text(&clone.json(), "/uid"));
    assert_eq!(app.get(&path).await.json(), clone.json());
    assert_eq!(bob.get(&path).await.status, 404);
    assert_eq!(bob.get(&study).await.status, 200);
    let hidden = app.post(&format!("{study}:clone?hidden=true")).await;
    assert_eq!(
        (hidden.status.as_u16(), text(&hidden.json(), "/title")),
        (201, "sleeper_test_study (Copy)")
    );
    assert_eq!(app.get("/v0/studies").await.json()["total"], 2);
    assert_eq!(bob.get("/v0/studies").await.json()["total"], 1);

    let job = app.post_json(&format!("{path}/jobs"), &json!({"values": {}})).await.json();
    let name = format!("studies/{}/jobs/{}", text(&clone.json(), "/uid"), text(&job, "/id"));
    assert_eq!(text(&job, "/name"), name);
    assert_eq!(text(&job, "/url"), format!("{}/v0/{name}", app.url));
    assert_eq!(app.get(&format!("{path}/jobs")).await.json()["items"], json!([job]));
    assert_eq!(app.get(&format!("{study}/jobs")).await.json()["total"], 0);
    assert_eq!(app.get(&format!("/v0/{name}")).await.json(), job);
    assert_eq!(app.get(&format!("{study}/jobs/{}", text(&job, "/id"))).await.status, 404);
    assert_eq!(bob.get(&format!("/v0/{name}")).await.status, 404);

    let notes = json!({"metadata": {"a": 1}});
    let put = app.request(Method::PUT, &format!("/v0/{name}/metadata")).json(&notes);
    assert_eq!(answer(put).await.json()["metadata"], notes["metadata"]);
    assert_eq!(
        app.get(&format!("/v0/{name}/metadata")).await.json()["metadata"],
        notes["metadata"]
    );

    for (path, body) in [
        (format!("{study}:clone"), json!({"title": "a\0b"})),
        (format!("{study}:clone"), json!({"title": 1})),
        (format!("{study}:clone?hidden=maybe"), json!({})),
        (format!("{study}/jobs"), json!({"values": {"input_file": 1}})),
        ("/v0/studies/1:clone".to_owned(), json!({})),
    ] {
        let refused = app.post_json(&path, &body).await;
        assert_eq!(refused.status, 422, "{path} {refused}");
    }
    app.stop().await;
}

#[tokio::test]
async fn the_newest_version_takes_the_studys_place() {
    let app = TestApp::start().await;
    let mut definition = example("sleeper_test_study");
    let study = publish(&app, sleeper().await, &definition).await;
    for (version, title) in [("1.10.0", "new"), ("1.9.0", "old")] {
        (definition["version"], definition["name"]) = (json!(version), json!(title));
        let definition = Definition::parse(&definition.to_string()).unwrap();
        app.publish(definition.resolve(&[sleeper().await]).unwrap()).await;
    }
    assert_eq!(text(&app.get(&study).await.json(), "/title"), "new");
    assert_eq!(app.get("/v0/studies").await.json()["total"], 1);
    app.stop().await;
}

#[tokio::test]
async fn a_study_may_be_a_step_of_another() {
    let app = TestApp::start().await;
    let sleeper = modest().await;
    let mut inner = study(&json!({"sleep": {"input_2": {"input": "seconds"}}}));
    inner["outputs"] = json!({"number": {"label": "", "description": "", "type": "integer", "source": {"step": "sleep", "output": "output_2"}}});
    publish(&app, sleeper.clone(), &inner).await;
    let inner = Definition::parse(&inner.to_string()).unwrap().resolve(&[sleeper]).unwrap();
    let mut outer = study(&json!({"inner": {"seconds": {"input": "seconds"}}}));
    (outer["key"], outer["name"]) = (json!("simcore/services/comp/studies/outer"), json!("outer"));
    (outer["steps"][0]["solver"], outer["steps"][0]["version"]) =
        (json!(inner.key), json!("1.0.0"));
    outer["outputs"] = json!({"number": {"label": "", "description": "", "type": "integer", "source": {"step": "inner", "output": "number"}}});
    let study = publish(&app, inner, &outer).await;

    let job = start(&app, &study, json!({"seconds": 0})).await;
    let ended = app.wait_for_end(&job).await;
    assert_eq!(text(&ended, "/state"), "SUCCESS", "{ended:#}");
    let outputs = app.post(&format!("{job}/outputs")).await.json();
    assert!(outputs["results"]["number"].is_i64(), "{outputs:#}");

    let job = start(&app, &study, json!({})).await;
    app.wait_for(&job, &["STARTED"]).await;
    assert_eq!(app.post(&format!("{job}:stop")).await.status, 200);
    assert_eq!(text(&app.wait_for_end(&job).await, "/state"), "ABORTED");
    // What ended is cleaned up beside everything else.
    let left = async || containers(app.data()).await;
    wait_until("the end of the containers", left, Vec::is_empty).await;
    assert_eq!(app.delete(&job).await.status, 204);
    wait_until("the end of the steps", async || steps(&app, &job).await, Vec::is_empty).await;
    app.stop().await;
}
