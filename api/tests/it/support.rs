//! What the tests share: the app on free ports, its clients, the sleeper, and waiting.

use std::{
    fmt::{self, Debug, Display},
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use clap::Parser;
use reqwest::{
    Method, Request, RequestBuilder, StatusCode,
    header::{ALLOW, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, LOCATION, WWW_AUTHENTICATE},
    redirect::Policy,
};
use serde_json::{Value as Json, json};
use solverd::{
    App,
    domain::{
        labels,
        resources::Resources,
        solver::{Body, Release, Version},
        time::now,
        user::{Credentials, hex},
    },
    settings::Settings,
    store::Db,
};
use solverd_runner::engine::Docker;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::validation;

/// Key of the example solver that every test runs.
pub(crate) const SLEEPER: &str = "simcore/services/comp/itis/sleeper";

/// Its image in the local engine.
const IMAGE: &str = "simcore/services/comp/itis/sleeper:2.1.6";

/// No wait in any test takes this long unless something hangs.
const DEADLINE: Duration = Duration::from_secs(30);

/// Label by which an instance's containers are found.
const INSTANCE_LABEL: &str = "solverd.instance";

/// An environment variable that tells the tests what there is.
pub(crate) fn env(name: &str) -> Option<String> {
    #[expect(clippy::disallowed_methods, reason = "these are no settings of the service")]
    std::env::var(name).ok()
}

/// Looks again and again until what is seen is as wanted; after the deadline fails with what was seen last.
pub(crate) async fn wait_until<T: Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> T,
    wanted: impl Fn(&T) -> bool,
) -> T {
    let begun = Instant::now();
    loop {
        let seen = look().await;
        if wanted(&seen) {
            return seen;
        }
        assert!(begun.elapsed() < DEADLINE, "waited for {what}; last seen: {seen:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Settings as the command line would read them, without what the environment of the tests may hold.
pub(crate) fn settings(data: &Path, flags: &[&str]) -> Settings {
    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }
    let data = data.to_str().unwrap();
    let fixed = ["it", "--listen=127.0.0.1:0", "--data-dir", data];
    let named = |name: &str| flags.iter().any(|flag| flag.starts_with(name));
    let port = Some(&"--s3-listen=127.0.0.1:0").filter(|_| !named("--s3-listen"));
    let parsed = Cli::try_parse_from(fixed.iter().chain(port).chain(flags)).unwrap().settings;
    let database_url = parsed.database_url.clone().filter(|_| named("--database-url"));
    Settings { config: None, public_url: None, database_url, ..parsed }
}

/// The flags that make [`login`]'s user.
pub(crate) const BOOTSTRAP: [&str; 3] = [
    "--bootstrap-email=ada@example.org",
    "--bootstrap-key=ada-key",
    "--bootstrap-secret=ada-secret",
];

fn login() -> Credentials {
    Credentials { key: "ada-key".to_owned(), secret: "ada-secret".to_owned() }
}

/// A running service as one user sees it.
#[derive(Clone)]
pub(crate) struct Api {
    pub(crate) url: String,
    client: reqwest::Client,
    login: Credentials,
}

impl Api {
    /// The service at `url`, seen by the user whom the settings make.
    pub(crate) fn at(url: String) -> Self {
        // Redirects are answers to look at, and an idle connection would only delay the shutdown.
        let client = reqwest::Client::builder()
            .redirect(Policy::none())
            .pool_max_idle_per_host(0)
            .timeout(DEADLINE)
            .build()
            .unwrap();
        Self { url, client, login: login() }
    }

    /// The same service, seen by somebody else.
    pub(crate) fn seen_by(&self, login: Credentials) -> Self {
        Self { login, ..self.clone() }
    }

    /// A request with the user's credentials.
    pub(crate) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.anonymous(method, path).basic_auth(&self.login.key, Some(&self.login.secret))
    }

    /// A request without any.
    pub(crate) fn anonymous(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.url))
    }

    /// A request to any address, without credentials.
    pub(crate) fn anonymous_url(&self, url: &str) -> RequestBuilder {
        self.client.get(url)
    }

    /// Sends a request that was taken apart.
    pub(crate) async fn execute(&self, request: Request) -> Answer {
        answer(RequestBuilder::from_parts(self.client.clone(), request)).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str) -> Answer {
        answer(self.request(Method::POST, path)).await
    }

    pub(crate) async fn post_json(&self, path: &str, body: &Json) -> Answer {
        answer(self.request(Method::POST, path).json(body)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        answer(self.request(Method::DELETE, path)).await
    }

    /// Follows an answer's link, which needs no credentials.
    pub(crate) async fn follow(&self, link: &Answer) -> Vec<u8> {
        assert_eq!(link.status, 307, "{link}");
        let location = link.header(&LOCATION).expect("a location");
        let content = answer(self.client.get(location)).await;
        assert_eq!(content.status, 200, "{content}");
        content.body
    }

    /// Uploads a file the way clients do; answers what the service says at the end.
    pub(crate) async fn upload(&self, filename: &str, content: &[u8]) -> Answer {
        let file = json!({"filename": filename, "filesize": content.len(), "sha256_checksum": sha256(content)});
        let plan = self.post_json("/v0/files/content", &file).await.json();
        let mut parts = Vec::new();
        for url in plan["upload_schema"]["urls"].as_array().unwrap() {
            let put = self.client.put(url.as_str().unwrap()).body(content.to_vec());
            let put = answer(put).await;
            assert_eq!(put.status, 200, "{put}");
            parts.push(json!({"number": 1, "e_tag": put.header(&ETAG).unwrap().trim_matches('"')}));
        }
        assert_eq!(parts.len(), usize::from(!content.is_empty()), "small files are one part");
        let complete = text(&plan, "/upload_schema/links/complete_upload");
        let body = json!({"client_file": file, "uploaded_parts": {"parts": parts}});
        self.post_json(complete, &body).await
    }

    /// Creates a job of a release; answers its path.
    pub(crate) async fn create(&self, release: &Release, values: Json) -> String {
        let path = format!("/v0/solvers/{}/releases/{}/jobs", release.key, release.version);
        let job = self.post_json(&path, &json!({"values": values})).await;
        assert_eq!(job.status, 201, "{job}");
        format!("{path}/{}", text(&job.json(), "/id"))
    }

    /// Creates and starts a job; answers its path.
    pub(crate) async fn start_job(&self, release: &Release, values: Json) -> String {
        let job = self.create(release, values).await;
        let started = self.post(&format!("{job}:start")).await;
        assert_eq!(started.status, 202, "{started}");
        job
    }

    /// Waits until a job is in one of these states; answers its status.
    pub(crate) async fn wait_for(&self, job: &str, states: &[&str]) -> Json {
        let inspect = async || self.post(&format!("{job}:inspect")).await.json();
        let wanted =
            |status: &Json| status["state"].as_str().is_some_and(|state| states.contains(&state));
        wait_until(&states.join(" or "), inspect, wanted).await
    }

    /// Waits until a job has ended; answers its status.
    pub(crate) async fn wait_for_end(&self, job: &str) -> Json {
        self.wait_for(job, &["SUCCESS", "FAILED", "ABORTED"]).await
    }
}

/// What a client was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Vec<u8>,
}

/// Sends a request; what the API answers must be what its document says.
pub(crate) async fn answer(request: RequestBuilder) -> Answer {
    let (client, request) = request.build_split();
    let request = request.expect("a request");
    let (method, path) = (request.method().to_string(), request.url().path().to_owned());
    let response = client.execute(request).await.expect("an answer");
    let (status, headers) = (response.status(), response.headers().clone());
    let body = response.bytes().await.expect("a whole answer").into();
    let answer = Answer { status, headers, body };
    validation::check(&method, &path, &answer);
    answer
}

impl Answer {
    pub(crate) fn header(&self, name: &HeaderName) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    pub(crate) fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {self}"))
    }
}

/// As snapshots show it: status, the headers that say something, body.
impl Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.status)?;
        for name in [CONTENT_TYPE, LOCATION, ALLOW, WWW_AUTHENTICATE] {
            if let Some(value) = self.header(&name) {
                writeln!(f, "{name}: {value}")?;
            }
        }
        match serde_json::from_slice::<Json>(&self.body) {
            Ok(body) => writeln!(f, "{body:#}"),
            Err(_) if self.body.is_empty() => Ok(()),
            Err(_) => writeln!(f, "{}", String::from_utf8_lossy(&self.body)),
        }
    }
}

/// The text at a place in a JSON document.
pub(crate) fn text<'a>(document: &'a Json, pointer: &str) -> &'a str {
    let found = document.pointer(pointer).and_then(Json::as_str);
    found.unwrap_or_else(|| panic!("no text at {pointer} in {document:#}"))
}

pub(crate) fn sha256(content: &[u8]) -> String {
    use sha2::Digest;
    hex(&sha2::Sha256::digest(content))
}

/// The real app on free ports, with its data in a folder of its own.
pub(crate) struct TestApp {
    api: Api,
    settings: Settings,
    /// `None` once it has been stopped.
    alive: Option<(TempDir, JoinHandle<anyhow::Result<()>>)>,
    shutdown: CancellationToken,
}

impl Deref for TestApp {
    type Target = Api;
    fn deref(&self) -> &Api {
        &self.api
    }
}

impl TestApp {
    /// A new service.
    pub(crate) async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), &[]).await
    }

    /// A service on data that may be there already.
    pub(crate) async fn start_in(data: TempDir, flags: &[&str]) -> Self {
        let settings = settings(data.path(), &[&BOOTSTRAP, flags].concat());
        let app = Box::pin(App::bind(&settings)).await.expect("the app binds");
        let api = Api::at(app.url());
        let shutdown = CancellationToken::new();
        #[expect(clippy::disallowed_methods, reason = "one task, awaited by `stop`")]
        let served = tokio::spawn(app.run(shutdown.clone()));
        Self { api, settings, alive: Some((data, served)), shutdown }
    }

    /// Its folder of data.
    pub(crate) fn data(&self) -> &Path {
        &self.settings.data_dir
    }

    /// Its database, opened a second time, as the command line does.
    pub(crate) async fn db(&self) -> Db {
        Db::open(&self.settings.database_url()).await.unwrap()
    }

    /// Publishes a release; gives it back.
    pub(crate) async fn publish(&self, release: Release) -> Release {
        let db = self.db().await;
        db.release_publish(&release, now()).await.unwrap();
        db.close().await;
        release
    }

    /// Adds a user; answers the service as they see it.
    pub(crate) async fn add_user(&self, email: &str) -> Api {
        let (db, login) = (self.db().await, Credentials::random().unwrap());
        let user = db.user_add(email, now()).await.unwrap();
        db.key_add(&user, &login, now()).await.unwrap();
        db.close().await;
        self.seen_by(login)
    }

    /// Shuts the service down; fails if it leaves anything behind. Its data stay.
    pub(crate) async fn stop(self) -> TempDir {
        let data = self.leave().await;
        assert_eq!(folders_of_jobs(data.path()), [] as [PathBuf; 0]);
        assert_eq!(containers(data.path()).await, [] as [String; 0]);
        data
    }

    /// Shuts the service down while jobs run, which run on. Its data stay.
    pub(crate) async fn leave(mut self) -> TempDir {
        let (data, served) = self.alive.take().unwrap();
        self.shutdown.cancel();
        let served = tokio::time::timeout(DEADLINE, served).await;
        served.expect("a shutdown in time").unwrap().expect("a shutdown without error");
        data
    }
}

impl Drop for TestApp {
    /// A test that failed must not leave its containers to others.
    fn drop(&mut self) {
        let Some((data, _)) = self.alive.take() else { return };
        let Ok(instance) = std::fs::read_to_string(data.path().join("instance")) else { return };
        let filter = format!("label={INSTANCE_LABEL}={}", instance.trim());
        let list = Command::new("docker").args(["ps", "-aq", "--filter", &filter]).output();
        let ids = list.map(|output| output.stdout).unwrap_or_default();
        for id in String::from_utf8_lossy(&ids).lines() {
            let _ = Command::new("docker").args(["rm", "-f", id]).output();
        }
        assert!(std::thread::panicking(), "a test ends with `stop`");
    }
}

/// The folders of jobs in a folder of data.
pub(crate) fn folders_of_jobs(data: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(data.join("work")) else { return Vec::new() };
    entries.map(|entry| entry.unwrap().path()).collect()
}

/// The containers of the service with this folder of data.
pub(crate) async fn containers(data: &Path) -> Vec<String> {
    let instance = std::fs::read_to_string(data.join("instance")).unwrap();
    let label = format!("{INSTANCE_LABEL}={}", instance.trim());
    let found = Docker::connect().unwrap().list(&label).await.unwrap();
    found.into_iter().map(|container| container.id).collect()
}

/// The sleeper as its image describes it.
pub(crate) async fn sleeper() -> Release {
    let image = Docker::connect().unwrap().image(IMAGE).await;
    let image = image.expect("`scripts/images.sh sleeper` makes it");
    labels::release(IMAGE, &image.id, &image.digests, &image.labels).unwrap()
}

/// The sleeper under another version, taking other resources.
pub(crate) async fn sleeper_with(version: &str, resources: Resources) -> Release {
    let mut release = sleeper().await;
    release.version = Version::parse(version).unwrap();
    if let Body::Container(container) = &mut release.body {
        container.resources = resources;
    }
    release
}

/// What the engine's machine has.
pub(crate) async fn machine() -> Resources {
    let machine = Docker::connect().unwrap().machine().await.unwrap().resources;
    Resources { nano_cpus: machine.nano_cpus, memory_bytes: machine.memory_bytes, gpus: 0 }
}
