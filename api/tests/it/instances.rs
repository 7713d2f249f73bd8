//! Several services on one database: what becomes of the jobs of one that is gone, and what one does that was only taken for gone.

use std::time::Duration;

use chrono::TimeDelta;
use serde_json::{Map, json};
use solverd::{
    domain::{
        id::{FileId, JobId},
        job::{Job, JobError, JobState, Lease, Transition},
        solver::Release,
        time::{Timestamp, now},
    },
    objects::{Location, Objects, Secret},
    store::{Db, Instance},
};
use sqlx::{Connection, Executor, SqliteConnection};

use crate::{
    dispatch::Stepper,
    http::{external_storage, log_in_zip},
    store::{Fresh, assert_illegal, claimed, lease, on_both, ready, started, steps, values},
    studies,
    support::{TestApp, containers, folders_of_jobs, sleeper, text, wait_until},
};

/// Longer than any test waits.
const FOREVER: i64 = 300;

on_both! {
    a_job_is_not_taken_from_who_is_there,
    jobs_of_a_service_that_is_gone_end,
    who_is_there_says_so_without_steps,
}

fn lost() -> Transition {
    let error = JobError {
        loc: vec![],
        msg: "gone".to_owned(),
        kind: "runtime.lost".to_owned(),
        ctx: Map::new(),
    };
    Transition::Fail { error, log: None }
}

fn instance(name: &str, seen_at: Timestamp) -> Instance {
    Instance { name: name.to_owned(), seen_at }
}

async fn log(db: &Db, id: JobId) -> String {
    db.job_log(id, 0, 99).await.unwrap().into_iter().map(|chunk| chunk.text).collect()
}

async fn a_job_is_not_taken_from_who_is_there(db: Db) {
    let owner = ready(&db).await;
    let ours = lease("ours");
    let (early, late) = (now(), now() + TimeDelta::seconds(1));
    // Of an older version, which does not say that it is there.
    let job = started(&db, owner, "one").await;
    let seen = vec![instance("one", early)];
    assert_eq!(db.instances_holding(&ours, early).await.unwrap(), seen);
    assert_eq!(db.instances_holding(&ours, late).await.unwrap(), seen);
    assert_eq!(db.instances_holding(&lease("one"), late).await.unwrap(), []);

    db.instance_seen(&lease("one"), late).await.unwrap();
    assert_eq!(db.instances_holding(&ours, early).await.unwrap(), [instance("one", late)]);
    let id = job.job.id;
    assert!(!db.job_lose(id, &seen[0], lost(), "line\n", now()).await.unwrap());
    assert!(!db.job_take_over(id, &seen[0], &ours, "line\n").await.unwrap());
    assert_eq!(db.job_get(id, owner).await.unwrap(), job.job);

    let seen = instance("one", late);
    assert!(db.job_take_over(id, &seen, &ours, "taken\n").await.unwrap());
    assert_eq!(db.job_get(id, owner).await.unwrap().lease, Some("ours".to_owned()));
    assert!(!db.job_lose(id, &seen, lost(), "line\n", now()).await.unwrap(), "another holds it");
    assert_eq!(db.instances_holding(&ours, late).await.unwrap(), []);
    assert_eq!(log(&db, id).await, "taken\n");
}

async fn jobs_of_a_service_that_is_gone_end(db: Db) {
    let owner = ready(&db).await;
    let runs = started(&db, owner, "gone").await;
    db.job_log_add(&runs, runs.next_chunk(), "it works\n").await.unwrap();
    let waits = claimed(&db, owner, "gone").await;
    let stops = started(&db, owner, "gone").await;
    db.job_request_stop(stops.job.id, owner, now()).await.unwrap();
    let others = started(&db, owner, "alive").await;
    let study = Release { outputs: vec![], ..steps("1.0.0") };
    db.release_publish(&study, now()).await.unwrap();
    let whole = Job::new(owner, study.key, "1.0.0".to_owned(), String::new(), now());
    db.job_add(&whole, &values("{}"), None).await.unwrap();
    db.job_publish(whole.id, owner, now()).await.unwrap();
    let whole = db.job_claim(whole.id, &lease("gone"), now()).await.unwrap().unwrap();
    db.job_start(&whole, None, now()).await.unwrap();
    // By a clock that is wrong by a day.
    let seen_at = now() + TimeDelta::days(1);
    db.instance_seen(&lease("gone"), seen_at).await.unwrap();

    let stepper = Stepper::start(&db, Duration::ZERO).await;
    let states = async || {
        db.instance_seen(&lease("alive"), now()).await.unwrap();
        stepper.dispatcher.step().await.unwrap();
        let mut states = Vec::new();
        for job in [&runs, &waits, &stops, &whole, &others] {
            states.push(db.job_get(job.job.id, owner).await.unwrap().state);
        }
        states
    };
    let ended = [
        JobState::Failed,
        JobState::Failed,
        JobState::Aborted,
        JobState::Success,
        JobState::Started,
    ];
    wait_until("the jobs to end", states, |seen| *seen == ended).await;
    stepper.settle().await;

    let message = format!(
        "instance gone of solverd, which ran the job, was not seen since {}; start a new job",
        seen_at.format("%FT%TZ")
    );
    for job in [&runs, &waits] {
        let job = db.job_get(job.job.id, owner).await.unwrap();
        assert_eq!(job.lease, None);
        let error = job.error.unwrap();
        assert_eq!((error.kind.as_str(), error.msg), ("runtime.lost", message.clone()));
    }
    for (job, line) in [(&runs, "[ERROR] solverd: "), (&stops, "[ERROR] solverd: ")] {
        let log = log(&db, job.job.id).await;
        assert!(log.contains(&format!("{line}{message}")), "{log}");
    }
    let log_of_whole = log(&db, whole.job.id).await;
    let taken = format!("instance {} goes on", stepper.lease.instance);
    assert!(log_of_whole.contains(&taken), "{log_of_whole}");

    // It comes back.
    let before = log(&db, runs.job.id).await;
    db.job_log_add(&runs, runs.next_chunk(), "still at work\n").await.unwrap();
    assert_illegal(db.job_finish(&runs, Transition::Abort { log: None }, now()).await);
    assert_illegal(db.job_start(&waits, Some("container"), now()).await);
    assert_eq!(log(&db, runs.job.id).await, before);
    stepper.stop().await;
}

async fn who_is_there_says_so_without_steps(db: Db) {
    let owner = ready(&db).await;
    let stepper = Stepper::start(&db, Duration::MAX).await;
    claimed(&db, owner, &stepper.lease.instance).await;
    let seen = async || db.instances_holding(&lease("other"), now()).await.unwrap();
    let first = seen().await;
    wait_until("another sign", seen, |seen| *seen != first).await;
    stepper.settle().await;
    stepper.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_cannot_be_ended_keeps_neither_others_nor_the_step() {
    let fresh = Fresh::sqlite();
    let url = fresh.url.clone();
    Box::pin(fresh.run(async |db| {
        let owner = ready(&db).await;
        let stuck = started(&db, owner, "gone").await;
        let other = started(&db, owner, "gone").await;
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        let refuse = "CREATE TRIGGER refuse BEFORE INSERT ON job_logs \
                      WHEN NEW.job_id = (SELECT min(id) FROM jobs) BEGIN SELECT RAISE(ABORT, 'stuck'); END";
        connection.execute(refuse).await.unwrap();
        connection.close().await.unwrap();
        let stepper = Stepper::start(&db, Duration::ZERO).await;
        let states = async || {
            stepper.dispatcher.step().await.unwrap();
            let state = async |id| db.job_get(id, owner).await.unwrap().state;
            (state(stuck.job.id).await, state(other.job.id).await)
        };
        let wanted = (JobState::Started, JobState::Failed);
        wait_until("the other to end", states, |seen| *seen == wanted).await;
        stepper.settle().await;
        stepper.stop().await;
    }))
    .await;
}

/// Takes a job from the service that is at work for it, as another one would that takes it for gone.
async fn take(db: &Db, app: &TestApp, id: JobId, other: Option<&Lease>) {
    let name = std::fs::read_to_string(app.data().join("instance")).unwrap();
    let took = async || {
        // It is alive, and may say so in between.
        let seen = db.instances_holding(&lease("other"), now()).await.unwrap();
        let seen = seen.into_iter().find(|it| it.name == name.trim()).unwrap();
        match other {
            Some(other) => db.job_take_over(id, &seen, other, "").await.unwrap(),
            None => db.job_lose(id, &seen, lost(), "", now()).await.unwrap(),
        }
    };
    wait_until("the lease", took, |took| *took).await;
}

fn id_of(job: &str) -> JobId {
    job.rsplit('/').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn who_was_only_cut_off_lets_go_of_its_jobs() {
    let app = TestApp::start().await;
    let study = studies::study(&json!({"only": {"input_2": {"input": "seconds"}}}));
    let study = studies::publish(&app, studies::modest().await, &study).await;
    let whole = studies::start(&app, &study, json!({"seconds": FOREVER})).await;
    studies::wait_for_step(&app, &whole, "only", "STARTED").await;
    let release = app.publish(sleeper().await).await;
    let long = app.start_job(&release, json!({"input_2": FOREVER})).await;
    let short = app.start_job(&release, json!({"input_2": 1})).await;
    let deleted = app.start_job(&release, json!({"input_2": FOREVER})).await;
    for job in [&long, &short, &deleted] {
        app.wait_for(job, &["STARTED"]).await;
    }

    let db = app.db().await;
    take(&db, &app, id_of(&whole), Some(&lease("other"))).await;
    take(&db, &app, id_of(&short), None).await;
    take(&db, &app, id_of(&long), None).await;
    take(&db, &app, id_of(&deleted), None).await;
    assert_eq!(app.delete(&deleted).await.status, 204);
    let at_work = async || (containers(app.data()).await.len(), folders_of_jobs(app.data()).len());
    wait_until("all but the step to be cleared away", at_work, |seen| *seen == (1, 1)).await;
    for job in [&long, &short] {
        let ended = app.wait_for_end(job).await;
        assert_eq!(text(&ended, "/errors/0/type"), "runtime.lost", "{ended:#}");
        // The log is fetched as of any job that has ended.
        let log = log_in_zip(&app, &app.get(&format!("{job}/outputs/logfile")).await).await;
        assert!(log.contains("Will sleep for"), "{log}");
    }
    let owner = db.user_by_email("ada@example.org").await.unwrap().id;
    let [step] = db.job_children(id_of(&whole)).await.unwrap().try_into().unwrap();
    assert_eq!((step.state, step.stop_requested_at), (JobState::Started, None));
    let whole = db.job_get(id_of(&whole), owner).await.unwrap();
    assert_eq!((whole.state, whole.lease), (JobState::Started, Some("other".to_owned())));

    // What the short one may have stored is not left behind.
    let [endpoint, id, secret] = external_storage(&app)
        .await
        .map(|flag| flag.split_once('=').map(|(_, value)| value.to_owned()).unwrap());
    let objects = Objects::connect(&Location {
        endpoint: endpoint.clone(),
        public_endpoint: endpoint,
        bucket: "solverd".to_owned(),
        region: "us-east-1".to_owned(),
        access_key_id: id,
        secret_access_key: Secret::from(secret),
    })
    .await
    .unwrap();
    let output = FileId::of_output(id_of(&short), "output_1");
    let key = solverd::domain::file::File::object_key(output);
    let log = Job::log_object_key(id_of(&deleted));
    for key in [key, log] {
        let stored = async || objects.stat(&key).await.unwrap().is_some();
        wait_until("what was stored to go", stored, |stored| !stored).await;
    }

    db.job_request_stop(step.id, owner, now()).await.unwrap();
    wait_until("the step to stop", at_work, |seen| *seen == (0, 0)).await;
    db.close().await;
    app.stop().await;
}
