//! Requests per second, for inspecting a job and for creating one, beside others measured in the same run: answers of the same size that
//! take no work, the same work done by `FastAPI` (`twin/`), and what the disk lets through. Rounds of all take turns, so that a busy moment
//! of the machine meets all.
//!
//! Postgres is the server that `SOLVERD_TEST_POSTGRES_URL` names, `TWIN_PYTHON` an interpreter with what the twin needs; what is not named
//! is left out. Needs Docker, as the service does.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program that a person runs")]
#![expect(clippy::disallowed_methods, reason = "what it is told is no setting of the service")]

use std::{
    env,
    io::{BufRead, BufReader, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    str::FromStr,
    thread,
    time::{Duration, Instant},
};

use actix_web::{
    HttpResponse, HttpServer,
    web::{self, Bytes, Data},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use solverd::{
    domain::{
        resources::{Amounts, Resources},
        solver::{Body, Container, Limits, Port, PortType, Release, SolverKey, Version},
        time::now,
    },
    store::Db,
};
use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, PgConnection, SqliteConnection,
    postgres::PgConnectOptions,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

const KEY: &str = "simcore/services/comp/bench/solver";
const JOBS: &str = "/v0/solvers/simcore/services/comp/bench/solver/releases/1.0.0/jobs";
const VALUES: &str = r#"{"values": {"input_2": 3, "input_3": false, "input_4": 2}}"#;
const CREDENTIALS: (&str, &str) =
    ("bench", "5f2b6c1d9e8a47303c1f0e9d8b7a6655443322110ffeeddccbbaa99887766554");

/// Requests under way at a time, each on a connection of its own that is kept.
const CONNECTIONS: [usize; 2] = [1, 16];

/// A server in a process of its own, and what it is asked.
struct Server {
    name: &'static str,
    process: Child,
    address: String,
    /// To inspect a job, and to create one.
    requests: [Vec<u8>; 2],
    /// Requests per second: by request, by number of connections, of each round.
    rates: [[Vec<f64>; 2]; 2],
}

impl Drop for Server {
    fn drop(&mut self) {
        // SIGTERM: a killed uvicorn would leave its workers behind.
        Command::new("kill").arg(self.process.id().to_string()).status().unwrap();
        self.process.wait().unwrap();
    }
}

fn request(path: &str, body: &str) -> Vec<u8> {
    let credentials = BASE64_STANDARD.encode(format!("{}:{}", CREDENTIALS.0, CREDENTIALS.1));
    format!(
        "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Basic {credentials}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Sends a request and reads the answer into `buffer`; gives where its body begins and ends.
fn ask(connection: &mut TcpStream, request: &[u8], buffer: &mut [u8]) -> (usize, usize) {
    connection.write_all(request).unwrap();
    let (mut read, mut found) = (0, None);
    loop {
        let count = connection.read(&mut buffer[read..]).unwrap();
        assert!(count > 0, "the connection was closed");
        read += count;
        if found.is_none()
            && let Some(head) = buffer[..read].windows(4).position(|end| end == b"\r\n\r\n")
        {
            let text = str::from_utf8(&buffer[..head]).unwrap();
            assert!(text.starts_with("HTTP/1.1 20"), "{text}");
            let length = text.lines().find_map(|line| {
                let (name, value) = line.split_once(':')?;
                name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().unwrap())
            });
            found = Some((head + 4, head + 4 + length.unwrap_or(0)));
        }
        if let Some((begin, end)) = found.filter(|(_, end)| read >= *end) {
            return (begin, end);
        }
    }
}

fn connect(address: &str) -> TcpStream {
    let connection = TcpStream::connect(address).unwrap();
    connection.set_nodelay(true).unwrap();
    connection.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    connection
}

/// One answer's body.
fn answer(address: &str, request: &[u8]) -> String {
    let mut buffer = vec![0; 16 << 10];
    let (begin, end) = ask(&mut connect(address), request, &mut buffer);
    String::from_utf8(buffer[begin..end].to_vec()).unwrap()
}

/// Asks the same again and again, on so many connections, for so long. Gives answers per second.
fn rate(address: &str, request: &[u8], connections: usize, time: Duration) -> f64 {
    let began = Instant::now();
    let count = || {
        let (mut connection, mut buffer, mut count) = (connect(address), vec![0; 16 << 10], 0_u32);
        while began.elapsed() < time {
            ask(&mut connection, request, &mut buffer);
            count += 1;
        }
        count
    };
    let total: u32 = thread::scope(|scope| {
        let threads: Vec<_> = (0..connections).map(|_| scope.spawn(count)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    f64::from(total) / began.elapsed().as_secs_f64()
}

/// Starts a server that says where it listens, in a line that begins like this.
fn start(command: &mut Command, line: &str) -> (Child, String) {
    let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let said = BufReader::new(process.stdout.take().unwrap()).lines();
    let address =
        said.map(Result::unwrap).find_map(|said| Some(said.strip_prefix(line)?.to_owned()));
    (process, address.expect("it says where it listens"))
}

fn release() -> Release {
    let port = |key: &str, kind| Port {
        key: key.to_owned(),
        label: key.to_owned(),
        description: key.to_owned(),
        kind,
        path: None,
        unit: None,
        default: None,
        required: false,
    };
    Release {
        key: SolverKey::parse(KEY).unwrap(),
        version: Version::parse("1.0.0").unwrap(),
        title: String::new(),
        description: String::new(),
        maintainer: String::new(),
        version_display: None,
        inputs: vec![
            port("input_1", PortType::File("text/plain".to_owned())),
            port("input_2", PortType::Integer),
            port("input_3", PortType::Boolean),
            port("input_4", PortType::Integer),
        ],
        outputs: vec![],
        body: Body::Container(Container {
            image: String::new(),
            image_id: "sha256:1".to_owned(),
            image_digest: None,
            integration_version: 1,
            command: vec![],
            env: [].into(),
            resources: Resources::default(),
            limits: Limits::default(),
            at_most: Amounts::default(),
            mpi: false,
            network: false,
            progress_regexp: None,
        }),
    }
}

impl Server {
    /// Creates the job that is inspected.
    fn new(name: &'static str, process: Child, address: String) -> Self {
        let create = request(JOBS, VALUES);
        let job: serde_json::Value = serde_json::from_str(&answer(&address, &create)).unwrap();
        let inspect = request(&format!("{JOBS}/{}:inspect", job["id"].as_str().unwrap()), "");
        Self { name, process, address, requests: [inspect, create], rates: Default::default() }
    }

    async fn solverd(name: &'static str, folder: &Path, database: &str) -> Self {
        let db = Db::open(database).await.unwrap();
        db.release_publish(&release(), now()).await.unwrap();
        db.close().await;
        let mut command = Command::new(env!("CARGO_BIN_EXE_solverd"));
        for (name, _) in env::vars().filter(|(name, _)| name.starts_with("SOLVERD_")) {
            command.env_remove(name);
        }
        command.arg("serve").env("SOLVERD_DATA_DIR", folder).env("SOLVERD_DATABASE_URL", database);
        command.env("SOLVERD_LISTEN", "127.0.0.1:0").env("SOLVERD_S3_LISTEN", "127.0.0.1:0");
        command.env("SOLVERD_BOOTSTRAP_EMAIL", "bench@example.org");
        command.env("SOLVERD_BOOTSTRAP_KEY", CREDENTIALS.0);
        command.env("SOLVERD_BOOTSTRAP_SECRET", CREDENTIALS.1);
        let (process, address) = start(&mut command, "solverd ready at http://");
        Self::new(name, process, address)
    }

    fn twin(name: &'static str, python: &str, folder: &Path, workers: u8) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("127.0.0.1:{port}");
        let twin = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/twin");
        let mut command = Command::new(python);
        command.args(["-m", "uvicorn", "twin:app", "--no-access-log", "--log-level", "warning"]);
        command.args(["--port", &port.to_string(), "--workers", &workers.to_string()]);
        command.current_dir(twin).env("PYTHONDONTWRITEBYTECODE", "1");
        command.env("TWIN_KEY", CREDENTIALS.0).env("TWIN_SECRET", CREDENTIALS.1);
        command.env("TWIN_DATABASE", folder.join(format!("twin{workers}.db")));
        let process = command.stdin(Stdio::null()).spawn().unwrap();
        let deadline = Instant::now() + Duration::from_mins(1);
        while let Err(error) = TcpStream::connect(&address) {
            assert!(Instant::now() < deadline, "the twin does not listen: {error}");
            thread::sleep(Duration::from_millis(50));
        }
        Self::new(name, process, address)
    }

    /// A server whose answers are as long as this one's.
    fn still(&self) -> Self {
        let sizes =
            self.requests.each_ref().map(|each| answer(&self.address, each).len().to_string());
        let mut command = Command::new(env::current_exe().unwrap());
        let (process, address) = start(command.arg("still").args(sizes), "still ready at ");
        let requests = self.requests.clone();
        Self { name: "no work (actix)", process, address, requests, rates: Default::default() }
    }

    fn median(&self, what: usize, connections: usize) -> f64 {
        median(&self.rates[what][connections])
    }
}

fn median(rates: &[f64]) -> f64 {
    let mut rates = rates.to_vec();
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// SQLite alone, as the service has it.
async fn disk(folder: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new()
        .filename(folder.join("disk.db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let mut connection = options.connect().await.unwrap();
    sqlx::query("CREATE TABLE rows (number INTEGER)").execute(&mut connection).await.unwrap();
    connection
}

/// Stores rows, each in a transaction of its own. Gives rows per second.
async fn store(disk: &mut SqliteConnection, time: Duration) -> f64 {
    let (began, mut count) = (Instant::now(), 0_u32);
    while began.elapsed() < time {
        sqlx::query("INSERT INTO rows VALUES (1)").execute(&mut *disk).await.unwrap();
        count += 1;
    }
    f64::from(count) / began.elapsed().as_secs_f64()
}

/// Answers, with the bodies' lengths given, whatever is asked.
async fn be_still(sizes: &[String]) {
    let bodies = Data::new([&sizes[0], &sizes[1]].map(|size| " ".repeat(size.parse().unwrap())));
    let server = HttpServer::new(move || {
        let inspect = async |bodies: Data<[String; 2]>, _: Bytes| {
            HttpResponse::Ok().content_type("application/json").body(bodies[0].clone())
        };
        let create = async |bodies: Data<[String; 2]>, _: Bytes| {
            HttpResponse::Created().content_type("application/json").body(bodies[1].clone())
        };
        let app = actix_web::App::new().app_data(bodies.clone());
        app.route(JOBS, web::post().to(create)).default_service(web::to(inspect))
    });
    let server = server.bind("127.0.0.1:0").unwrap();
    println!("still ready at {}", server.addrs()[0]);
    server.run().await.unwrap();
}

async fn execute(server: &str, sql: String) {
    let mut connection = PgConnection::connect(server).await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
    connection.close().await.unwrap();
}

async fn compare(rounds: u32, time: Duration) {
    // Not where temporary files are: that may be memory, and what is asked for here is to be durable.
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let folder = folder.path();
    let sqlite = format!("sqlite:{}", folder.join("sqlite.db").display());
    let mut servers = vec![Server::solverd("solverd, SQLite", &folder.join("1"), &sqlite).await];
    servers.insert(0, servers[0].still());
    let database = format!("solverd_bench_requests_{}", std::process::id());
    let postgres = env::var("SOLVERD_TEST_POSTGRES_URL").ok();
    if let Some(server) = &postgres {
        execute(server, format!("CREATE DATABASE {database}")).await;
        let url = PgConnectOptions::from_str(server).unwrap().database(&database).to_url_lossy();
        let name = "solverd, Postgres";
        servers.push(Server::solverd(name, &folder.join("2"), url.as_str()).await);
    }
    if let Ok(python) = env::var("TWIN_PYTHON") {
        servers.push(Server::twin("FastAPI, SQLite, 1 worker", &python, folder, 1));
        servers.push(Server::twin("FastAPI, SQLite, 2 workers", &python, folder, 2));
    }

    let (mut disk, mut stored) = (disk(folder).await, Vec::new());
    for round in 0..=rounds {
        stored.push(store(&mut disk, time).await);
        for server in &mut servers {
            for (what, request) in server.requests.iter().enumerate() {
                for (column, connections) in CONNECTIONS.into_iter().enumerate() {
                    let rate = rate(&server.address, request, connections, time);
                    // The first round warms up.
                    if round > 0 {
                        server.rates[what][column].push(rate);
                    }
                }
            }
        }
    }

    println!("requests per second, medians of {rounds} rounds, and their ratio to no work");
    print!("{:<26}", "at a time");
    for what in ["inspect", "create"] {
        for connections in CONNECTIONS {
            print!("{:>18}", format!("{what}, {connections}"));
        }
    }
    println!();
    for server in &servers {
        print!("{:<26}", server.name);
        for what in 0..2 {
            for column in 0..2 {
                let (rate, most) = (server.median(what, column), servers[0].median(what, column));
                print!("{rate:>11.0} {:>6.3}", rate / most);
            }
        }
        println!();
    }
    println!("rows per second into SQLite alone, one at a time: {:.0}", median(&stored));
    drop(servers);
    if let Some(server) = &postgres {
        execute(server, format!("DROP DATABASE {database} WITH (FORCE)")).await;
    }
}

fn main() {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let system = actix_web::rt::System::new();
    if arguments.first().is_some_and(|first| first == "still") {
        return system.block_on(be_still(&arguments[1..]));
    }
    // `cargo test --benches` runs this as well, without the flag: then a glance does.
    let long = arguments.iter().any(|argument| argument == "--bench");
    let (rounds, time) = if long { (9, 500) } else { (1, 50) };
    system.block_on(compare(rounds, Duration::from_millis(time)));
}
