//! Lists of a thousand and of a million jobs, and as many uploads, beside each other: first, middle and last pages, on both databases.
//!
//! Postgres is the server that `SOLVERD_TEST_POSTGRES_URL` names; without it there is SQLite alone. `JOBS=N` takes another number than a
//! million.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program that a person runs")]
#![expect(clippy::disallowed_methods, reason = "what it is told is no setting of the service")]

use std::{
    env,
    str::FromStr,
    time::{Duration, Instant},
};

use solverd::{
    domain::{
        filter::JobFilter,
        id::{FileId, JobId, UserId},
        job::{Job, JobState},
        resources::{Amounts, Resources},
        solver::{Body, Container, Limits, Release, SolverKey, Version},
        time::now,
        value::Values,
    },
    store::{Db, Window},
};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection, SqliteConnection,
    postgres::PgConnectOptions,
};
use uuid::Uuid;

const KEY: &str = "simcore/services/comp/bench/solver";
const PAGE: i64 = 50;

/// How often each thing is done; the median counts.
const TIMES: usize = 30;

/// Jobs of two releases, a second between each two. One in a thousand has failed.
fn rows(id: &str, at: &str, from: &str) -> String {
    let checksum = "0".repeat(64);
    format!(
        "INSERT INTO jobs (id, owner, solver_key, solver_version, inputs, inputs_checksum, metadata, state, progress, created_at, stopped_at) \
         SELECT {id}, 1, '{KEY}', '1.0.' || (n % 2), '{{}}', '{checksum}', '{{}}', \
         CASE n % 1000 WHEN 7 THEN 'FAILED' ELSE 'SUCCESS' END, 100, {at}, {at} FROM {from}"
    )
}

/// As many jobs of steps: every tenth of those jobs has ten.
fn steps(id: &str, parent: &str, from: &str) -> String {
    format!(
        "INSERT INTO jobs (id, owner, parent_id, step, solver_key, solver_version, inputs, inputs_checksum, metadata, state, progress, created_at) \
         SELECT {id}, 1, parent.id, n, '{KEY}', '1.0.0', '{{}}', '', '{{}}', 'SUCCESS', 100, parent.created_at \
         FROM {from} JOIN jobs AS parent ON parent.id = {parent}"
    )
}

/// As many files, each with its own content: uploads, or outputs of the jobs.
fn files(id: &str, job: &str, at: &str, from: &str) -> String {
    format!(
        "INSERT INTO files (id, owner, filename, size, sha256, e_tag, job_id, created_at, completed_at) \
         SELECT {id}, 1, 'a.txt', 1, {SHA256}, '', {job}, {at}, {at} FROM {from}"
    )
}

/// The content of a file with a number.
const SHA256: &str = "SUBSTR('000000000000000000000000000000000000000000000000000000000000000' || n, LENGTH('' || n), 64)";

/// The statements of a migration that count what is there.
fn counting(migration: &str) -> impl Iterator<Item = String> {
    let statements = migration.split(';').map(str::to_owned);
    statements.filter(|statement| statement.contains("INSERT INTO job_counts"))
}

/// Fills a database, and counts as its migrations do with what is there. Steps come after that: then they were in no list yet.
async fn fill(url: &str, jobs: i64) {
    let sqlite = url.starts_with("sqlite:");
    let id = |number: &str| {
        if sqlite {
            format!("UNHEX(PRINTF('%032x', {number}))")
        } else {
            format!("LPAD(TO_HEX({number}), 32, '0')::uuid")
        }
    };
    let (at, from, migrations) = if sqlite {
        let numbers = format!(
            "(WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {jobs}) SELECT n FROM numbers) AS numbers"
        );
        let lists = include_str!("../../migrations/sqlite/0003_lists.sql");
        let files = include_str!("../../migrations/sqlite/0008_finding.sql");
        let at = "STRFTIME('%Y-%m-%dT%H:%M:%S+00:00', 1577836800 + n, 'unixepoch')";
        (at, numbers, [lists, files])
    } else {
        let numbers = format!("GENERATE_SERIES(1, {jobs}) AS numbers (n)");
        let lists = include_str!("../../migrations/postgres/0003_lists.sql");
        let files = include_str!("../../migrations/postgres/0008_finding.sql");
        ("TO_TIMESTAMP(1577836800 + n)", numbers, [lists, files])
    };
    let next = id(&format!("n + {jobs}"));
    let mut fill = vec![rows(&id("n"), at, &from)];
    fill.push(files(&id("n"), "NULL", at, &from));
    fill.push(files(&next, &id("n"), at, &from));
    fill.extend(migrations.into_iter().flat_map(counting));
    fill.push(steps(&next, &id("(n + 9) / 10 * 10"), &from));
    if sqlite {
        let mut connection = SqliteConnection::connect(url).await.unwrap();
        for statement in fill {
            connection.execute(AssertSqlSafe(statement)).await.unwrap();
        }
        connection.close().await.unwrap();
    } else {
        let mut connection = PgConnection::connect(url).await.unwrap();
        // As the server does by itself after a while.
        for statement in fill.into_iter().chain(["VACUUM ANALYZE".to_owned()]) {
            connection.execute(AssertSqlSafe(statement)).await.unwrap();
        }
        connection.close().await.unwrap();
    }
}

fn release(version: &str) -> Release {
    Release {
        key: SolverKey::parse(KEY).unwrap(),
        version: Version::parse(version).unwrap(),
        title: String::new(),
        description: String::new(),
        maintainer: String::new(),
        version_display: None,
        inputs: vec![],
        outputs: vec![],
        body: Body::Container(Container {
            image: String::new(),
            image_id: "sha256:1".to_owned(),
            image_digest: None,
            command: vec![],
            env: [].into(),
            resources: Resources::default(),
            limits: Limits::default(),
            at_most: Amounts::default(),
            mpi: false,
            network: false,
            progress_regexp: None,
            integration_version: 1,
        }),
    }
}

/// The median time of a call, in milliseconds.
async fn median(mut call: impl AsyncFnMut()) -> f64 {
    let mut times = Vec::new();
    for _ in 0..TIMES {
        let began = Instant::now();
        call().await;
        times.push(began.elapsed());
    }
    times.sort_unstable();
    times[TIMES / 2].as_secs_f64() * 1000.0
}

/// What was done on a new database with so many jobs, and how many milliseconds it took.
async fn measure(url: &str, jobs: i64) -> Vec<(&'static str, f64)> {
    let db = Db::open(url).await.unwrap();
    let owner = db.user_add("bench@example.org", now()).await.unwrap().id;
    assert_eq!(owner, UserId(1));
    for version in ["1.0.0", "1.0.1"] {
        db.release_publish(&release(version), now()).await.unwrap();
    }
    let began = Instant::now();
    fill(url, jobs).await;
    println!("  {jobs} jobs and more, stored in {:.1} s", began.elapsed().as_secs_f64());

    // The jobs have numbers as ids; there are `step` from one to the next of a list.
    let page = async |filter: &JobFilter, expected: i64, offset: i64| {
        let step = if filter.releases.is_some() { 2 } else { 1 };
        let window = Window { limit: PAGE, offset, oldest_first: false };
        median(async || {
            let (found, total) = db.jobs_list(owner, filter, window).await.unwrap();
            assert_eq!(total, expected, "the total is exact");
            assert_eq!(i64::try_from(found.len()).unwrap(), PAGE.min(total - offset));
            let number = jobs + 1 - step - step * offset;
            let number = Uuid::from_u128(u128::from(number.unsigned_abs()));
            assert!(found[0].id.0 == number || !filter.states.is_empty(), "the right page");
        })
        .await
    };
    let key = SolverKey::parse(KEY).unwrap();
    let all = JobFilter::default();
    let releases = Some(vec![(key.clone(), "1.0.1".to_owned())]);
    let one = JobFilter { releases, ..JobFilter::default() };
    let failed = JobFilter { states: vec![JobState::Failed], ..JobFilter::default() };
    let apart = u128::from((jobs / 1000).unsigned_abs());
    let thousand: Vec<_> = (1..=1000).map(|n| JobId(Uuid::from_u128(n * apart))).collect();
    // Middle pages lie where most of a run has to be skipped.
    let half = jobs / 2;
    let mut times = vec![
        ("all jobs: first page", page(&all, jobs, 0).await),
        ("all jobs: middle page", page(&all, jobs, half + 400).await),
        ("all jobs: last page", page(&all, jobs, jobs - PAGE).await),
        ("a release: first page", page(&one, half, 0).await),
        ("a release: middle page", page(&one, half, half / 2 + 200).await),
        ("a release: last page", page(&one, half, half - PAGE).await),
        ("the failed, one in a thousand", page(&failed, jobs / 1000, 0).await),
    ];
    let parent = Some(JobId(Uuid::from_u128(u128::from((half / 10 * 10).unsigned_abs()))));
    let steps = JobFilter { parent, ..JobFilter::default() };
    let window = Window { limit: 5, offset: 4, oldest_first: false };
    let page = median(async || {
        let (found, total) = db.jobs_list(owner, &steps, window).await.unwrap();
        assert_eq!((found.len(), total), (5, 10));
    });
    times.push(("the steps of one job", page.await));
    for (what, offset) in [
        ("uploads: first page", 0),
        ("uploads: middle page", half + 400),
        ("uploads: last page", jobs - PAGE),
    ] {
        let page = median(async || {
            let (found, total) = db.files_search(owner, None, None, PAGE, offset).await.unwrap();
            assert_eq!(total, jobs);
            let number = Uuid::from_u128(u128::from((jobs - offset).unsigned_abs()));
            assert_eq!((found[0].id, i64::try_from(found.len()).unwrap()), (FileId(number), PAGE));
        });
        times.push((what, page.await));
    }
    let sha256 = format!("{half:064}");
    let by_content = median(async || {
        let (found, total) = db.files_search(owner, Some(&sha256), None, 20, 0).await.unwrap();
        assert_eq!((found.len(), total), (1, 1));
    });
    times.push(("uploads by content", by_content.await));
    let by_id =
        median(async || assert_eq!(db.jobs_get(&thousand, owner).await.unwrap().len(), 1000));
    times.push(("1000 jobs by id", by_id.await));
    let create = median(async || {
        let job = Job::new(owner, key.clone(), "1.0.0".to_owned(), String::new(), now());
        db.job_add(&job, &Values::default(), None).await.unwrap();
    });
    times.push(("creating a job", create.await));
    db.close().await;
    times
}

async fn compare(name: &str, few: &str, many: &str, jobs: i64) {
    println!("{name}");
    let few = measure(few, 1000).await;
    let many = measure(many, jobs).await;
    println!("  {:<32}{:>8}{jobs:>10}{:>8}", "milliseconds, medians, of jobs", 1000, "ratio");
    for ((what, few), (_, many)) in few.iter().zip(many) {
        println!("  {what:<32}{few:>8.2}{many:>10.2}{:>8.1}", many / few);
    }
}

async fn execute(server: &str, sql: String) {
    let mut connection = PgConnection::connect(server).await.unwrap();
    connection.execute(AssertSqlSafe(sql)).await.unwrap();
    connection.close().await.unwrap();
}

async fn both(jobs: i64) {
    let folder = tempfile::tempdir().unwrap();
    let place = |name| format!("sqlite:{}", folder.path().join(name).display());
    compare("SQLite", &place("few"), &place("many"), jobs).await;

    let Ok(server) = env::var("SOLVERD_TEST_POSTGRES_URL") else { return };
    let names = ["few", "many"].map(|size| format!("solverd_bench_{size}_{}", std::process::id()));
    for name in &names {
        execute(&server, format!("CREATE DATABASE {name}")).await;
    }
    let [few, many] = names.each_ref().map(|name| {
        PgConnectOptions::from_str(&server).unwrap().database(name).to_url_lossy().to_string()
    });
    compare("Postgres", &few, &many, jobs).await;
    for name in &names {
        execute(&server, format!("DROP DATABASE {name} WITH (FORCE)")).await;
    }
}

#[tokio::main]
async fn main() {
    // `cargo test --benches` runs this as well, without the flag: then few jobs do.
    let many = if env::args().any(|argument| argument == "--bench") { 1_000_000 } else { 2000 };
    let jobs = env::var("JOBS").map_or(many, |number| number.parse().expect("JOBS is a number"));
    let limit = Duration::from_mins(20);
    tokio::time::timeout(limit, both(jobs)).await.expect("it takes less than twenty minutes");
}
