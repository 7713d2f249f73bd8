//! Trivial jobs through the API beside the engine's own create, start, wait and remove, with the same options and as `--network none` has
//! it: wall time of one, and jobs per second of several at a time. All take turns, so that a busy machine slows all; the ratios are what
//! counts.
//!
//! Needs the sleeper's image and the engine's local socket. `JOBS=N` takes another number of jobs per turn than 24.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program that a person runs")]
#![expect(clippy::disallowed_methods, reason = "what it is told is no setting of the service")]

use std::{
    collections::BTreeMap,
    env,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use clap::Parser;
use futures_util::future::join_all;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value as Json, json};
use solverd::{
    App,
    domain::{
        labels,
        resources::Resources,
        solver::{Body, Release},
        time::now,
    },
    settings::Settings,
    store::Db,
};
use solverd_runner::{
    engine::{ContainerSpec, Docker},
    task,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const IMAGE: &str = "simcore/services/comp/itis/sleeper:2.1.6";
const KEY: &str = "bench-key";
const SECRET: &str = "bench-secret";
const AT_A_TIME: [usize; 4] = [1, 2, 4, 8];

/// Turns that each of the two takes; the median counts.
const TURNS: usize = 5;

/// What one job may use: eight fit at once.
async fn share(engine: &Docker) -> Resources {
    let machine = engine.machine().await.unwrap().resources;
    Resources { nano_cpus: machine.nano_cpus / 8, memory_bytes: 64 << 20, gpus: 0 }
}

#[derive(Parser)]
struct Cli {
    #[command(flatten)]
    settings: Settings,
}

struct Service {
    http: Client,
    jobs: String,
}

impl Service {
    async fn ask(&self, request: RequestBuilder) -> Json {
        let answer = request.basic_auth(KEY, Some(SECRET)).send().await.unwrap();
        answer.error_for_status().unwrap().json().await.unwrap()
    }

    /// From the request that creates the job to the answer with its outputs.
    async fn job(&self) {
        let values = json!({"values": {"input_2": 0, "input_4": 0}});
        let job = self.ask(self.http.post(&self.jobs).json(&values)).await;
        let job = format!("{}/{}", self.jobs, job["id"].as_str().unwrap());
        let mut status = self.ask(self.http.post(format!("{job}:start"))).await;
        while status["stopped_at"].is_null() {
            let news = self.http.post(format!("{job}:inspect")).header("Prefer", "wait=30");
            status = self.ask(news).await;
        }
        assert_eq!(status["state"], "SUCCESS", "{status:#}");
        self.ask(self.http.get(format!("{job}/outputs"))).await;
    }
}

/// The same container, with folders like a job's.
fn spec(folder: &Path, release: &Release) -> ContainerSpec {
    let name = format!("solverd-bench-{}", Uuid::now_v7());
    let folder = folder.join(&name);
    let mut mounts = Vec::from(["inputs", "outputs", "logs"].map(|name| {
        let path = folder.join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        (path, format!("/{name}"))
    }));
    let hosts = folder.join("hosts");
    std::fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    mounts.push((hosts, "/etc/hosts".to_owned()));
    std::fs::write(
        folder.join("inputs/inputs.json"),
        r#"{"input_2":0,"input_3":false,"input_4":0}"#,
    )
    .unwrap();
    let Body::Container(container) = &release.body else { panic!("the sleeper is a container") };
    let environment =
        [("INPUT_FOLDER", "/inputs"), ("OUTPUT_FOLDER", "/outputs"), ("LOG_FOLDER", "/logs")];
    ContainerSpec {
        name,
        image: container.image_id.clone(),
        entry_point: None,
        command: container.command.clone(),
        user: None,
        env: environment.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        labels: BTreeMap::new(),
        mounts,
        volumes: Vec::new(),
        largest_file: 1 << 30,
        resources: task::Resources {
            nano_cpus: container.resources.nano_cpus,
            memory_bytes: container.resources.memory_bytes,
        },
        gpus: Vec::new(),
        network: container.network,
        log_bytes: 64 << 20,
    }
}

/// The same container, and nothing around it.
async fn bare(engine: &Docker, folder: &Path, release: &Release) {
    let id = engine.create(&spec(folder, release)).await.unwrap();
    engine.start(&id).await.unwrap();
    assert_eq!(engine.wait(&id).await.unwrap().code, 0);
    engine.remove(&id).await.unwrap();
}

/// The engine itself, for what the runner would not ask of it.
struct Engine(Client);

impl Engine {
    const AT: &str = "http://engine";

    fn connect() -> Self {
        let socket = env::var("DOCKER_HOST").unwrap_or_default();
        let socket = socket.strip_prefix("unix://").unwrap_or("/var/run/docker.sock");
        Self(Client::builder().unix_socket(socket).build().unwrap())
    }

    async fn ask(&self, request: RequestBuilder) -> Json {
        let answer = request.send().await.unwrap().error_for_status().unwrap().bytes().await;
        serde_json::from_slice(&answer.unwrap()).unwrap_or_default()
    }

    /// The same container, but for its network namespace: that comes from the engine's network mode `none`.
    async fn plain(&self, engine: &Docker, spec: &ContainerSpec) -> Json {
        let id = engine.create(spec).await.unwrap();
        let found = self.ask(self.0.get(format!("{}/containers/{id}/json", Self::AT))).await;
        engine.remove(&id).await.unwrap();
        let mut plain = found["Config"].clone();
        plain["HostConfig"] = found["HostConfig"].clone();
        plain["NetworkDisabled"] = false.into();
        plain
    }

    /// Runs it in folders of another one.
    async fn run(&self, plain: &Json, of: &ContainerSpec, folders: &ContainerSpec) {
        let mut body = plain.to_string();
        for ((from, _), (to, _)) in of.mounts.iter().zip(&folders.mounts) {
            body = body.replace(from.to_str().unwrap(), to.to_str().unwrap());
        }
        let request = self.0.post(format!("{}/containers/create", Self::AT)).body(body);
        let created = self.ask(request.header("Content-Type", "application/json")).await;
        let container = format!("{}/containers/{}", Self::AT, created["Id"].as_str().unwrap());
        self.ask(self.0.post(format!("{container}/start"))).await;
        let end = self.ask(self.0.post(format!("{container}/wait"))).await;
        assert_eq!(end["StatusCode"], 0);
        self.ask(self.0.delete(format!("{container}?v=true&force=true"))).await;
    }
}

/// Does something `times` times, some at a time; answers with the time that all took and that of each.
async fn turn(times: usize, at_a_time: usize, once: impl AsyncFn()) -> (Duration, Vec<Duration>) {
    let left = AtomicUsize::new(times);
    let worker = async || {
        let mut each = Vec::new();
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok()
        {
            let began = Instant::now();
            once().await;
            each.push(began.elapsed());
        }
        each
    };
    let began = Instant::now();
    let each = join_all((0..at_a_time).map(|_| worker())).await.concat();
    (began.elapsed(), each)
}

fn median<T: Copy + PartialOrd>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values[values.len() / 2]
}

#[tokio::main]
async fn main() {
    let jobs: u16 = env::var("JOBS").map_or(24, |jobs| jobs.parse().unwrap());
    let engine = Docker::connect().unwrap();
    let image = engine.image(IMAGE).await.expect("`scripts/images.sh sleeper` makes the image");
    let mut release = labels::release(IMAGE, &image.id, &image.digests, &image.labels).unwrap();
    if let Body::Container(container) = &mut release.body {
        container.resources = share(&engine).await;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let settings = Cli::parse_from([
        "bench",
        "--listen=127.0.0.1:0",
        "--s3-listen=127.0.0.1:0",
        "--bootstrap-email=ada@example.org",
        &format!("--bootstrap-key={KEY}"),
        &format!("--bootstrap-secret={SECRET}"),
        &format!("--data-dir={}", data.display()),
    ])
    .settings;
    let app = Box::pin(App::bind(&settings)).await.unwrap();
    let db = Db::open(&settings.database_url()).await.unwrap();
    db.release_publish(&release, now()).await.unwrap();
    db.close().await;
    let path = release.key.to_string().replace('/', "%2F");
    let jobs_url = format!("{}/v0/solvers/{path}/releases/{}/jobs", app.url(), release.version);
    let service = Service { http: Client::new(), jobs: jobs_url };
    let shutdown = CancellationToken::new();
    let served = tokio::spawn(app.run(shutdown.clone()));

    let (own, first) = (Engine::connect(), spec(folder.path(), &release));
    let template = own.plain(&engine, &first).await;
    let (ours, bare, plain) = (
        async || service.job().await,
        async || bare(&engine, folder.path(), &release).await,
        async || own.run(&template, &first, &spec(folder.path(), &release)).await,
    );
    turn(2, 1, ours).await;
    turn(2, 1, bare).await;
    turn(2, 1, plain).await;
    println!("trivial jobs, medians of {TURNS} turns of {jobs} each:");
    println!(
        "  at a time   API   engine, same options    engine, --network none   jobs per second: API   engine, same   engine, none"
    );
    for at_a_time in AT_A_TIME {
        let mut turns = Vec::new();
        for _ in 0..TURNS {
            turns.push((
                turn(jobs.into(), at_a_time, ours).await,
                turn(jobs.into(), at_a_time, bare).await,
                turn(jobs.into(), at_a_time, plain).await,
            ));
        }
        let one = |each: Vec<Duration>| median(each).as_secs_f64() * 1e3;
        let rate = |all: Vec<Duration>| f64::from(jobs) / median(all).as_secs_f64();
        let (mut ones, mut rates) = ([const { Vec::new() }; 3], [const { Vec::new() }; 3]);
        for (ours, bare, plain) in turns {
            for (place, (all, each)) in [ours, bare, plain].into_iter().enumerate() {
                ones[place].extend(each);
                rates[place].push(all);
            }
        }
        let ([our_one, bare_one, plain_one], [our_rate, bare_rate, plain_rate]) =
            (ones.map(one), rates.map(rate));
        println!(
            "  {at_a_time:9} {our_one:5.0} ms   {bare_one:5.0} ms, ratio {:.2}     {plain_one:5.0} ms, ratio {:.2}   {our_rate:20.2}   {bare_rate:5.2}, {:.2}    {plain_rate:5.2}, {:.2}",
            our_one / bare_one,
            our_one / plain_one,
            our_rate / bare_rate,
            our_rate / plain_rate
        );
    }
    shutdown.cancel();
    served.await.unwrap().unwrap();
}
