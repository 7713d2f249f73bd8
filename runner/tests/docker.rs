//! Real containers on the real engine. The image is made here from the host's static busybox: nothing is pulled.
#![expect(clippy::unwrap_used, reason = "a test's helpers fail the test")]

#[path = "docker/disk.rs"]
mod disk;
#[path = "docker/files.rs"]
mod files;
use std::{
    collections::{BTreeMap, HashMap},
    io::Cursor,
    os::unix::fs::symlink,
    path::Path,
    process::Command,
    sync::{LazyLock, Mutex},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use solverd_runner::{
    Adopted, JOB_LABEL, Recorded, clean_up,
    engine::{ContainerSpec, Docker, EngineError},
    run,
    task::{
        ArtifactError, Artifacts, Event, FailureKind, InputFile, Limits, Outcome, Output,
        OutputPort, Resources, StoredFile, Task, TaskError, Usage,
    },
};
use tempfile::TempDir;
use tokio::{
    fs::File,
    io::{AsyncRead, AsyncReadExt},
    sync::{Notify, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

#[path = "docker/hostile.rs"]
mod hostile;

const IMAGE: &str = "solverd-test/busybox:1";

/// No test takes this long unless something hangs.
const DEADLINE: Duration = Duration::from_secs(90);

static IMPORTED: LazyLock<()> = LazyLock::new(|| {
    if Command::new("docker").args(["image", "inspect", IMAGE]).output().unwrap().status.success() {
        return;
    }
    let root = tempfile::tempdir().unwrap();
    let bin = root.path().join("bin");
    for folder in ["bin", "etc", "tmp"] {
        std::fs::create_dir(root.path().join(folder)).unwrap();
    }
    std::fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed");
    let applets = command("/bin/busybox", &["--list"]);
    for applet in applets.lines().filter(|applet| *applet != "busybox") {
        symlink("busybox", bin.join(applet)).unwrap();
    }
    let tar = root.path().join("tmp/root.tar");
    let folder = root.path().to_str().unwrap();
    command("tar", &["-cf", tar.to_str().unwrap(), "-C", folder, "bin", "etc"]);
    command(
        "docker",
        &["import", "--change", r#"LABEL solverd.test='{"a":1}'"#, tar.to_str().unwrap(), IMAGE],
    );
});

fn command(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Files in memory. Opening one of no known id never ends.
#[derive(Default)]
struct Memory {
    files: HashMap<Uuid, Vec<u8>>,
    asked: Notify,
    stored: Mutex<BTreeMap<String, Vec<u8>>>,
}

impl Artifacts for Memory {
    async fn open(&self, file: &InputFile) -> Result<impl AsyncRead + Send + Unpin, ArtifactError> {
        self.asked.notify_one();
        match self.files.get(&file.file_id) {
            Some(content) => Ok(Cursor::new(content.clone())),
            None => std::future::pending().await,
        }
    }

    async fn store(
        &self,
        port: &str,
        filename: &str,
        mut content: File,
        size: u64,
    ) -> Result<StoredFile, ArtifactError> {
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes).await.map_err(|error| ArtifactError(error.to_string()))?;
        self.stored.lock().unwrap().insert(port.to_owned(), bytes);
        let (file_id, sha256, e_tag) = (Uuid::now_v7(), String::new(), String::new());
        Ok(StoredFile { file_id, filename: filename.to_owned(), sha256, size, e_tag })
    }
}

struct Bench {
    engine: Docker,
    work: TempDir,
    memory: Memory,
    stop: CancellationToken,
}

impl Bench {
    fn new() -> Self {
        LazyLock::force(&IMPORTED);
        let work = tempfile::tempdir().unwrap();
        Self {
            engine: Docker::connect().unwrap(),
            work,
            memory: Memory::default(),
            stop: CancellationToken::new(),
        }
    }

    /// Runs a task, calling `seen` with every event as it comes, and cleans up.
    async fn run(&self, task: &Task, seen: impl FnMut(&Event)) -> (Outcome, Vec<Event>) {
        let done = self.go_on(task, None, seen).await;
        clean_up(&self.engine, self.work.path(), task.job_id).await.unwrap();
        self.assert_nothing_left(task).await;
        done
    }

    /// Runs a task, or goes on with its container.
    async fn go_on(
        &self,
        task: &Task,
        adopted: Option<Adopted>,
        mut seen: impl FnMut(&Event),
    ) -> (Outcome, Vec<Event>) {
        let (sender, mut receiver) = mpsc::channel(16);
        let mut events = Vec::new();
        let running = async {
            let work = self.work.path();
            let running = run(&self.engine, work, task, &self.memory, &sender, &self.stop, adopted);
            let outcome = is_send(running).await;
            drop(sender);
            outcome
        };
        let reading = async {
            while let Some(event) = receiver.recv().await {
                for event in singly(event) {
                    seen(&event);
                    events.push(event);
                }
            }
        };
        let both = timeout(DEADLINE, async { tokio::join!(running, reading) }).await;
        let Ok((outcome, ())) = both else { panic!("no end; seen so far: {events:#?}") };
        (outcome, events)
    }

    /// Runs a task until an event is the last that is wanted, then abandons it, as a crash does.
    async fn abandon(&self, task: &Task, mut last: impl FnMut(&Event) -> bool) -> Vec<Event> {
        let (sender, mut receiver) = mpsc::channel(1);
        let mut events = Vec::new();
        let seen = async {
            while let Some(event) = receiver.recv().await {
                for event in singly(event) {
                    let enough = last(&event);
                    events.push(event);
                    if enough {
                        return;
                    }
                }
            }
        };
        tokio::select! {
            outcome = run(&self.engine, self.work.path(), task, &self.memory, &sender, &self.stop, None) => panic!("{outcome:?}"),
            () = seen => {}
        }
        events
    }

    /// The container of an abandoned run, with what its events tell of the log.
    async fn adopted(&self, task: &Task, events: &[Event]) -> Adopted {
        let label = format!("{JOB_LABEL}={}", task.job_id);
        let found = self.engine.list(&label).await.unwrap();
        let bytes: usize = texts(events).iter().map(|text| text.len() + 32).sum();
        let mut recorded = Recorded::new(bytes as u64, task.integration_version);
        for event in events.iter().rev() {
            if let Event::Log(line) = event
                && !recorded.take(line)
            {
                break;
            }
        }
        Adopted { container: found[0].id.clone(), recorded }
    }

    async fn run_script(&self, script: &str) -> (Outcome, Vec<Event>) {
        self.run(&task(script), |_| ()).await
    }

    async fn fail(&self, task: &Task) -> (TaskError, Vec<Event>) {
        let (outcome, events) = self.run(task, |_| ()).await;
        let Outcome::Failed(error) = outcome else { panic!("{outcome:?}, {events:#?}") };
        let last = texts(&events).pop().unwrap();
        assert_eq!(last, format!("[ERROR] solverd: {}", error.message));
        (error, events)
    }

    async fn assert_nothing_left(&self, task: &Task) {
        let label = format!("{JOB_LABEL}={}", task.job_id);
        assert_eq!(self.engine.list(&label).await.unwrap(), [], "containers");
        let folders: Vec<_> =
            self.work.path().read_dir().unwrap().flatten().map(|entry| entry.path()).collect();
        assert_eq!(folders, Vec::<std::path::PathBuf>::new(), "folders");
    }
}

/// Whoever schedules jobs spawns them.
fn is_send<T: Send>(future: T) -> T {
    future
}

fn task(script: &str) -> Task {
    Task {
        job_id: Uuid::now_v7(),
        image: IMAGE.to_owned(),
        image_id: None,
        image_digest: None,
        command: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
        env: BTreeMap::new(),
        resources: Resources { nano_cpus: 1_000_000_000, memory_bytes: 64 << 20 },
        limits: Limits { disk_reserve: 0, ..Limits::default() },
        gpus: Vec::new(),
        mpi: false,
        network: false,
        labels: BTreeMap::new(),
        progress_regexp: None,
        integration_version: 1,
        values: serde_json::Map::new(),
        files: Vec::new(),
        outputs: Vec::new(),
    }
}

/// Each line by itself, of lines that came together.
fn singly(event: Event) -> Vec<Event> {
    let Event::Log(lines) = event else { return vec![event] };
    lines.split('\n').map(|line| Event::Log(line.to_owned())).collect()
}

fn file_output(path: &str) -> OutputPort {
    OutputPort {
        key: "output_1".to_owned(),
        path: Some(path.to_owned()),
        default: None,
        zip: false,
    }
}

/// Log lines without their timestamps.
fn texts(events: &[Event]) -> Vec<String> {
    let lines = events
        .iter()
        .filter_map(|event| if let Event::Log(line) = event { Some(line) } else { None });
    lines.map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

/// What the solver printed, without our own lines.
fn printed(events: &[Event]) -> Vec<String> {
    texts(events).into_iter().filter(|text| !text.contains("solverd")).collect()
}

fn progress(events: &[Event]) -> Vec<u8> {
    events
        .iter()
        .filter_map(
            |event| if let Event::Progress(percent) = event { Some(*percent) } else { None },
        )
        .collect()
}

#[tokio::test]
async fn files_and_values_go_in_and_come_out() {
    let mut bench = Bench::new();
    let file_id = Uuid::now_v7();
    bench.memory.files.insert(file_id, b"hello".to_vec());
    let mut task = task(
        r#"
        cat /inputs/deep/in.txt > /outputs/single_number.txt
        cat $INPUT_FOLDER/inputs.json; echo
        echo '{"output_2": 7, "undeclared": 1}' > $OUTPUT_FOLDER/outputs.json
        touch $LOG_FOLDER/log.dat
        echo $SC_COMP_SERVICES_SCHEDULED_AS $SIMCORE_NANO_CPUS_LIMIT $SIMCORE_MEMORY_BYTES_LIMIT $MORE
        "#,
    );
    task.env = [("MORE", "a=b"), ("INPUT_FOLDER", "/overridden")]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
    task.values = json!({"input_2": "false", "input_3": null}).as_object().unwrap().clone();
    task.files = vec![InputFile {
        port: "input_1".to_owned(),
        file_id,
        path: "deep/in.txt".to_owned(),
        sha256: Some("2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824".to_owned()),
        unzip: false,
    }];
    let value =
        |key: &str, default| OutputPort { key: key.to_owned(), path: None, default, zip: false };
    task.outputs = vec![
        file_output("single_number.txt"),
        value("output_2", None),
        value("output_3", Some(json!([1]))),
    ];

    let (outcome, events) = bench.run(&task, |_| ()).await;
    let Outcome::Succeeded(mut outputs) = outcome else { panic!("{outcome:?}, {events:#?}") };
    assert_eq!(outputs.remove("output_2"), Some(Output::Value(json!(7))));
    assert_eq!(outputs.remove("output_3"), Some(Output::Value(json!([1]))));
    let Some(Output::File(stored)) = outputs.remove("output_1") else { panic!("no file") };
    assert_eq!((stored.filename.as_str(), stored.size), ("single_number.txt", 5));
    assert_eq!(bench.memory.stored.lock().unwrap()["output_1"], b"hello");
    assert_eq!(outputs, BTreeMap::new());

    assert_eq!(
        printed(&events),
        [r#"{"input_2":"false","input_3":null}"#, "CPU 1000000000 67108864 a=b"]
    );
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Started { container } if container.len() == 64))
    );
    let ours: Vec<_> = texts(&events).into_iter().filter(|text| text.contains("solverd")).collect();
    assert!(ours.iter().all(|text| text.starts_with("[solverd] ")), "{ours:#?}");
}

#[tokio::test]
async fn a_solver_is_told_how_it_was_scheduled() {
    let bench = Bench::new();
    let told = task("echo $SC_COMP_SERVICES_SCHEDULED_AS");
    let (_, events) = bench.run(&Task { mpi: true, ..told.clone() }, |_| ()).await;
    assert_eq!(printed(&events), ["MPI"]);

    // That the engine is asked for the GPU is seen even where there is none; and it tells which they were.
    let spec = ContainerSpec {
        name: format!("solverd-{}", told.job_id),
        image: told.image.clone(),
        command: told.command.clone(),
        env: BTreeMap::new(),
        labels: BTreeMap::new(),
        mounts: Vec::new(),
        entry_point: None,
        user: None,
        volumes: Vec::new(),
        largest_file: 0,
        resources: told.resources,
        gpus: vec![2, 0],
        log_bytes: 1 << 20,
        network: false,
    };
    let container = bench.engine.create(&spec).await.unwrap();
    assert_eq!(bench.engine.standing(&container).await.unwrap().gpus, spec.gpus);
    bench.engine.remove(&container).await.unwrap();
    let (outcome, events) = bench.run(&Task { gpus: vec![0], ..told }, |_| ()).await;
    if bench.engine.machine().await.unwrap().gpus == 0 {
        let Outcome::Failed(error) = outcome else { panic!("{outcome:?}, {events:#?}") };
        assert_eq!(error.kind, FailureKind::Engine, "{error}");
        assert!(error.message.contains("could not select device driver"), "{error}");
    } else {
        assert_eq!(printed(&events), ["GPU"], "{outcome:?}");
    }
}

#[tokio::test]
async fn every_line_arrives_once_and_in_order() {
    let bench = Bench::new();
    let (outcome, events) =
        bench.run_script("seq 1 20000; echo error >&2; printf 'no newline'").await;
    assert_eq!(outcome, Outcome::Succeeded(BTreeMap::new()));
    let (numbers, mut rest): (Vec<_>, Vec<_>) =
        printed(&events).into_iter().partition(|text| text.parse::<u32>().is_ok());
    let wrong = numbers.iter().zip(1..).find(|(text, number)| **text != number.to_string());
    assert_eq!((wrong, numbers.len()), (None, 20_000));
    rest.sort();
    assert_eq!(rest, ["error", "no newline"]);

    let timestamps = events
        .iter()
        .filter_map(|event| if let Event::Log(line) = event { line.get(..30) } else { None });
    assert!(timestamps.clone().all(|at| at.ends_with('Z')), "{:?}", timestamps.collect::<Vec<_>>());
}

#[tokio::test]
async fn long_lines_are_put_together_and_cut() {
    let bench = Bench::new();
    let script = "x() { head -c $1 /dev/zero | tr '\\0' x; echo; }; x 50000; x 100000; echo next";
    let (_, events) = bench.run_script(script).await;
    let lines: Vec<_> =
        texts(&events).into_iter().filter(|text| text.starts_with('x') || text == "next").collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0] == "x".repeat(50_000), "{}", lines[0].len());
    assert!(
        lines[1].ends_with("x [solverd: line cut here, 34495 bytes more]"),
        "{}",
        &lines[1][65_000..]
    );
}

#[tokio::test]
async fn progress_is_read_from_lines_and_ends_below_100() {
    let bench = Bench::new();
    let script = "echo '[PROGRESS] 1/3'; echo '[PROGRESS] 0.2'; echo '[PROGRESS] 2/3...'; echo '[PROGRESS] 3/3'";
    let (_, events) = bench.run_script(script).await;
    assert_eq!(progress(&events), [5, 35, 65, 95]);

    let mut task = task("echo 50%; echo 'step 1/2'");
    task.progress_regexp = Some("step (?P<value>(?P<fraction>[0-9]+/[0-9]+))".to_owned());
    let (_, events) = bench.run(&task, |_| ()).await;
    assert_eq!(progress(&events), [5, 50]);

    task.progress_regexp = Some("(?=lookahead)".to_owned());
    task.job_id = Uuid::now_v7();
    let (_, events) = bench.run(&task, |_| ()).await;
    assert_eq!(progress(&events), [5, 50]);
    assert!(texts(&events).iter().any(|text| text.starts_with("[WARNING] solverd: ")));
}

#[tokio::test]
async fn an_exit_code_fails_with_the_last_lines() {
    let bench = Bench::new();
    let (error, _) = bench.fail(&task("seq 1 30; exit 3")).await;
    assert_eq!(
        (error.kind, error.message.as_str()),
        (FailureKind::Exit, "the solver exited with code 3")
    );
    let last: Vec<_> =
        error.last_lines.iter().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(last, (11..=30).map(|number| number.to_string()).collect::<Vec<_>>());

    for (signal, meaning) in [("SEGV", "139 (SIGSEGV)"), ("KILL", "137 (SIGKILL), which is also")] {
        let (error, _) = bench.fail(&task(&format!("kill -{signal} $$"))).await;
        assert_eq!(error.kind, FailureKind::Exit);
        assert!(
            error.message.starts_with(&format!("the solver exited with code {meaning}")),
            "{error}"
        );
    }
}

#[tokio::test]
async fn a_command_that_is_not_there_fails() {
    let bench = Bench::new();
    let mut task = task("");
    task.command = vec!["nosuchprogram".to_owned()];
    let (error, _) = bench.fail(&task).await;
    assert_eq!(error.message, "the solver exited with code 127 (command not found)");
}

#[tokio::test]
async fn out_of_memory_names_the_limit() {
    const BOMB: &str = "dd if=/dev/zero of=/dev/null bs=256M count=1";
    let bench = Bench::new();
    let limited = |script: &str| {
        let mut task = task(script);
        task.resources.memory_bytes = 32 << 20;
        task
    };
    // Docker begins to watch some milliseconds after the start.
    let (error, _) = bench.fail(&limited(&format!("echo big; sleep 1; {BOMB}"))).await;
    assert_eq!(error.kind, FailureKind::OutOfMemory, "{error:?}");
    assert_eq!(error.message, "the solver needed more than its 32 MiB of memory, and was killed");
    assert!(error.last_lines.iter().any(|line| line.ends_with(" big")), "{error:?}");

    // What it misses before is at least explained.
    let (error, _) = bench.fail(&limited(BOMB)).await;
    assert!(matches!(error.kind, FailureKind::OutOfMemory | FailureKind::Exit), "{error:?}");
    assert!(error.message.contains("32 MiB of memory"), "{error:?}");
}

#[tokio::test]
async fn a_missing_output_says_what_was_there() {
    let bench = Bench::new();
    let mut task = task("mkdir -m 777 /outputs/b; touch /outputs/a.txt /outputs/b/c; echo done");
    task.outputs = vec![file_output("single_number.txt")];
    let (error, _) = bench.fail(&task).await;
    assert_eq!((error.kind, error.port.as_deref()), (FailureKind::Output, Some("output_1")));
    let message =
        "output `output_1`: could not locate `single_number.txt` in /outputs; found: a.txt, b/…";
    assert_eq!(error.message, message);
    assert_eq!(error.last_lines.len(), 1);
}

#[tokio::test]
async fn an_output_that_only_its_owner_may_read_is_explained() {
    let bench = Bench::new();
    let mut task = task("umask 077; echo secret > /outputs/x");
    task.outputs = vec![file_output("x")];
    let (outcome, _) = bench.run(&task, |_| ()).await;
    match outcome {
        Outcome::Succeeded(_) => assert!(rustix::process::geteuid().is_root()),
        Outcome::Failed(error) => {
            assert_eq!(error.kind, FailureKind::Output);
            assert!(
                error.message.contains("the solver must adopt the owner of /inputs"),
                "{error}"
            );
        }
        Outcome::Stopped => panic!("stopped"),
    }
}

#[tokio::test]
async fn a_link_among_the_outputs_is_not_followed() {
    let bench = Bench::new();
    for script in [
        "ln -s /etc/shadow /outputs/x",
        "ln -s /etc/shadow /outputs/outputs.json; touch /outputs/x",
    ] {
        let mut task = task(script);
        let value =
            OutputPort { key: "output_2".to_owned(), path: None, default: None, zip: false };
        task.outputs = vec![file_output("x"), value];
        let (error, _) = bench.fail(&task).await;
        assert_eq!(error.kind, FailureKind::Output);
        assert!(error.message.contains("is a symbolic link"), "{}", error.message);
    }
    assert!(bench.memory.stored.lock().unwrap().values().all(Vec::is_empty));
}

fn used(events: &[Event]) -> Vec<Usage> {
    events
        .iter()
        .filter_map(|event| if let Event::Used(usage) = event { Some(*usage) } else { None })
        .collect()
}

#[tokio::test]
async fn what_a_solver_uses_is_measured() {
    let bench = Bench::new();
    let (outcome, events) = bench.run_script("timeout 3 sh -c 'while :; do :; done'; true").await;
    assert_eq!(outcome, Outcome::Succeeded(BTreeMap::new()));
    let [usage] = used(&events)[..] else { panic!("{events:#?}") };
    assert!(usage.measured && usage.wall > Duration::from_secs(2), "{usage:?}");
    // The tests beside it take their share of the machine.
    assert!(usage.cpu > usage.wall / 10 && usage.cpu < usage.wall * 3 / 2, "{usage:?}");
    assert!(usage.peak_memory_bytes.is_some_and(|bytes| bytes > 1 << 16), "{usage:?}");

    let (_, events) = bench.run_script("sleep 3").await;
    let [usage] = used(&events)[..] else { panic!("{events:#?}") };
    assert!(usage.measured && usage.cpu < usage.wall / 4, "sleeping takes no CPU: {usage:?}");
}

#[tokio::test]
async fn a_running_solver_is_stopped() {
    let bench = Bench::new();
    let task = task("trap 'echo bye; exit 0' TERM; echo ready; sleep 600 & wait");
    let (outcome, events) = bench
        .run(&task, |event| {
            if let Event::Log(line) = event
                && line.ends_with(" ready")
            {
                bench.stop.cancel();
            }
        })
        .await;
    assert_eq!(outcome, Outcome::Stopped);
    assert_eq!(printed(&events), ["ready", "bye"]);
    assert_eq!(used(&events).len(), 1, "{events:#?}");
    assert_eq!(texts(&events).last().unwrap(), "[solverd] stopped");
}

#[tokio::test]
async fn staging_is_stopped() {
    let bench = Bench::new();
    let mut task = task("echo never");
    task.files = vec![InputFile {
        port: "input_1".to_owned(),
        file_id: Uuid::now_v7(),
        path: "never.txt".to_owned(),
        sha256: None,
        unzip: false,
    }];
    let cancel = async {
        bench.memory.asked.notified().await;
        bench.stop.cancel();
    };
    let ((outcome, events), ()) = tokio::join!(bench.run(&task, |_| ()), cancel);
    assert_eq!(outcome, Outcome::Stopped);
    assert!(!events.iter().any(|event| matches!(event, Event::Started { .. })), "{events:#?}");
}

#[tokio::test]
async fn a_task_that_is_stopped_already_never_starts() {
    let bench = Bench::new();
    bench.stop.cancel();
    let (outcome, events) = bench.run_script("echo never").await;
    assert_eq!(outcome, Outcome::Stopped);
    assert!(!events.iter().any(|event| matches!(event, Event::Started { .. })), "{events:#?}");
}

#[tokio::test]
async fn a_failed_input_fails_the_task() {
    let mut bench = Bench::new();
    let file_id = Uuid::now_v7();
    bench.memory.files.insert(file_id, b"hello".to_vec());
    let mut task = task("echo never");
    let (port, path) = ("input_1".to_owned(), "in.txt".to_owned());
    task.files =
        vec![InputFile { port, file_id, path, sha256: Some("00".repeat(32)), unzip: false }];
    let (error, events) = bench.fail(&task).await;
    assert_eq!((error.kind, error.port.as_deref()), (FailureKind::Input, Some("input_1")));
    assert_eq!(printed(&events), Vec::<String>::new());
}

#[tokio::test]
async fn a_missing_image_is_named() {
    let bench = Bench::new();
    let mut task = task("");
    task.image = "solverd-test/nosuch:1.2.3".to_owned();
    let (error, _) = bench.fail(&task).await;
    assert_eq!(error.kind, FailureKind::Image);
    assert!(error.message.contains("solverd-test/nosuch:1.2.3"), "{}", error.message);
}

#[tokio::test]
async fn the_published_image_runs_wherever_its_name_points() {
    let bench = Bench::new();
    let mut task = task("echo ran");
    task.image_id = Some(bench.engine.image(IMAGE).await.unwrap().id);
    task.image = "solverd-test/nosuch:1.2.3".to_owned();
    let (outcome, events) = bench.run(&task, |_| ()).await;
    assert!(matches!(outcome, Outcome::Succeeded(_)), "{outcome:?} {events:?}");

    task.image_id = Some(format!("sha256:{}", "0".repeat(64)));
    let (error, _) = bench.fail(&task).await;
    assert_eq!(error.kind, FailureKind::Image);
    assert!(
        error.message.contains("nosuch:1.2.3` as it was published (sha256:000"),
        "{}",
        error.message
    );
}

#[tokio::test]
async fn a_container_is_hardened() {
    let bench = Bench::new();
    let script = "ls /sys/class/net; grep -E 'CapBnd|NoNewPrivs|Seccomp:' /proc/self/status; cat /proc/1/comm; stat -c %u:%a /inputs /outputs";
    let (_, events) = bench.run_script(script).await;
    let owner = if rustix::process::geteuid().is_root() {
        8004
    } else {
        rustix::process::geteuid().as_raw()
    };
    assert_eq!(
        printed(&events),
        [
            "lo",
            "CapBnd:\t00000000000000eb",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            "docker-init",
            &format!("{owner}:755"),
            &format!("{owner}:777"),
        ]
    );

    let mut networked = task("ls /sys/class/net");
    networked.network = true;
    let (outcome, events) = bench.run(&networked, |_| ()).await;
    assert_eq!(printed(&events), ["eth0", "lo"], "{outcome:?} {events:#?}");
}

#[tokio::test]
async fn a_second_run_of_a_job_does_not_disturb_the_first() {
    let bench = Bench::new();
    let task = task("trap 'echo first; exit 0' TERM; echo ready; sleep 600 & wait");
    let ready = Notify::new();
    let first = bench.run(&task, |event| {
        if let Event::Log(line) = event
            && line.ends_with(" ready")
        {
            ready.notify_one();
        }
    });
    let second = async {
        ready.notified().await;
        let (sender, _receiver) = mpsc::channel(64);
        let work = bench.work.path();
        let outcome =
            run(&bench.engine, work, &task, &bench.memory, &sender, &bench.stop, None).await;
        bench.stop.cancel();
        outcome
    };
    let ((outcome, events), second) = tokio::join!(first, second);
    assert_eq!(outcome, Outcome::Stopped);
    assert_eq!(printed(&events), ["ready", "first"]);
    assert!(
        matches!(second, Outcome::Failed(TaskError { kind: FailureKind::Machine, .. })),
        "{second:?}"
    );
}

#[tokio::test]
async fn what_an_abandoned_run_leaves_is_cleaned_up() {
    let bench = Bench::new();
    let task = task("sleep 600");
    bench.abandon(&task, |event| matches!(event, Event::Started { .. })).await;
    let found = bench.engine.list(&format!("{JOB_LABEL}={}", task.job_id)).await.unwrap();
    assert_eq!(found[0].labels[JOB_LABEL], task.job_id.to_string());
    for _ in 0..2 {
        clean_up(&bench.engine, bench.work.path(), task.job_id).await.unwrap();
        bench.assert_nothing_left(&task).await;
    }
}

#[tokio::test]
async fn a_task_ends_although_nobody_listens() {
    let bench = Bench::new();
    let task = task("seq 1 1000");
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let work = bench.work.path();
    let running = run(&bench.engine, work, &task, &bench.memory, &sender, &bench.stop, None);
    assert_eq!(timeout(DEADLINE, running).await.unwrap(), Outcome::Succeeded(BTreeMap::new()));
    clean_up(&bench.engine, work, task.job_id).await.unwrap();
}

/// Prints on both of its streams, now and then many lines at once, and leaves an output.
const CHATTY: &str = "i=0; while [ $i -lt 40 ]; do i=$((i+1)); echo line $i; echo other $i >&2; seq 1 50 | sed s/^/flood-$i-/; sleep 0.05; done; echo 7 > /outputs/out.txt";

#[tokio::test]
async fn a_container_that_runs_is_adopted_without_a_gap_or_a_repeated_line() {
    let bench = Bench::new();
    let mut task = task(CHATTY);
    task.outputs = vec![file_output("out.txt")];
    let mut events = bench
        .abandon(&task, |event| matches!(event, Event::Log(line) if line.ends_with(" line 7")))
        .await;
    for again in [" line 20", " other 33"] {
        let adopted = bench.adopted(&task, &events).await;
        let enough = Notify::new();
        let going_on = bench.go_on(&task, Some(adopted), |event| {
            events.push(event.clone());
            if matches!(event, Event::Log(line) if line.ends_with(again)) {
                enough.notify_one();
            }
        });
        tokio::select! {
            done = going_on => panic!("{done:?}"),
            () = enough.notified() => {}
        }
    }
    let adopted = bench.adopted(&task, &events).await;
    let (outcome, rest) = bench.go_on(&task, Some(adopted), |_| ()).await;
    assert!(matches!(outcome, Outcome::Succeeded(_)), "{outcome:?}");
    events.extend(rest);
    let mut seen = printed(&events);
    assert_eq!(seen.len(), 40 * 52, "{seen:#?}");
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 40 * 52, "a line came twice");
    let stdout: Vec<_> =
        printed(&events).into_iter().filter(|line| !line.starts_with("other")).collect();
    let expected = (1..=40).flat_map(|i| {
        std::iter::once(format!("line {i}")).chain((1..=50).map(move |n| format!("flood-{i}-{n}")))
    });
    assert_eq!(stdout, expected.collect::<Vec<_>>());
    clean_up(&bench.engine, bench.work.path(), task.job_id).await.unwrap();
    bench.assert_nothing_left(&task).await;
}

#[tokio::test]
async fn whoever_loses_an_outcome_gets_the_same_again() {
    let bench = Bench::new();
    for (script, code) in [("echo 7 > /outputs/out.txt; echo done", 0), ("echo done; exit 3", 3)] {
        let mut task = task(script);
        task.outputs = vec![file_output("out.txt")];
        let events = bench.abandon(&task, |event| matches!(event, Event::Started { .. })).await;
        let container = bench.adopted(&task, &events).await.container;
        assert_eq!(bench.engine.wait(&container).await.unwrap().code, code);
        for _ in 0..2 {
            let adopted = bench.adopted(&task, &events).await;
            let (outcome, events) = bench.go_on(&task, Some(adopted), |_| ()).await;
            assert_eq!(printed(&events), ["done"]);
            match outcome {
                Outcome::Succeeded(outputs) => assert_eq!((code, outputs.len()), (0, 1)),
                Outcome::Failed(error) => {
                    assert_eq!((code, error.kind), (3, FailureKind::Exit));
                    assert!(error.last_lines[0].ends_with(" done"), "{error:?}");
                }
                Outcome::Stopped => panic!("nobody stopped it"),
            }
        }
        clean_up(&bench.engine, bench.work.path(), task.job_id).await.unwrap();
    }
}

#[tokio::test]
async fn a_container_that_somebody_removes_fails_the_task() {
    let bench = Bench::new();
    let task = task("echo ready; sleep 600");
    let removed = Notify::new();
    let remove = async {
        removed.notified().await;
        let label = format!("{JOB_LABEL}={}", task.job_id);
        let found = bench.engine.list(&label).await.unwrap();
        bench.engine.remove(&found[0].id).await.unwrap();
    };
    let running = bench.run(&task, |event| {
        if matches!(event, Event::Log(line) if line.ends_with(" ready")) {
            removed.notify_one();
        }
    });
    let ((outcome, events), ()) = tokio::join!(running, remove);
    let Outcome::Failed(error) = outcome else { panic!("{outcome:?} {events:#?}") };
    assert_eq!(error.kind, FailureKind::Lost);
    assert!(error.message.contains("removed by somebody else"), "{}", error.message);
    assert!(error.last_lines[0].ends_with(" ready"), "{error:?}");
}

#[tokio::test]
async fn the_engine_tells_about_itself_and_its_images() {
    let bench = Bench::new();
    bench.engine.ping().await.unwrap();
    let machine = bench.engine.machine().await.unwrap();
    assert!(
        machine.resources.nano_cpus >= 1_000_000_000 && machine.resources.memory_bytes > 64 << 20
    );
    assert!(!machine.version.is_empty());
    let image = bench.engine.image(IMAGE).await.unwrap();
    assert!(image.id.starts_with("sha256:"));
    assert_eq!(
        serde_json::from_str::<Value>(&image.labels["solverd.test"]).unwrap(),
        json!({"a": 1})
    );
    let missing = bench.engine.image("solverd-test/nosuch:1").await;
    assert!(matches!(missing, Err(EngineError::NoImage(name)) if name == "solverd-test/nosuch:1"));
    for gone in
        [bench.engine.remove("nosuch").await, bench.engine.stop("nosuch", Duration::ZERO).await]
    {
        gone.unwrap();
    }
    assert!(bench.engine.wait("nosuch").await.is_err());
}

#[test]
fn the_binary_runs_one_task() {
    LazyLock::force(&IMPORTED);
    let folder = tempfile::tempdir().unwrap();
    let binary = |task: &Task| {
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("task.json"), serde_json::to_vec(task).unwrap()).unwrap();
        std::fs::write(at("in.txt"), "hello").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_solverd-runner"))
            .arg(at("task.json"))
            .arg("--files")
            .arg(folder.path())
            .arg("--out")
            .arg(at("out"))
            .output()
            .unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        let last = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        (output.status.code(), last)
    };
    let mut task = task("cp /inputs/in.txt /outputs/out.txt");
    let (port, file_id, path) = ("input_1".to_owned(), Uuid::nil(), "in.txt".to_owned());
    task.files = vec![InputFile { port, file_id, path, sha256: None, unzip: false }];
    task.outputs = vec![file_output("out.txt")];
    let (code, outcome) = binary(&task);
    assert!(code == Some(0) && matches!(outcome, Outcome::Succeeded(_)), "{outcome:?}");
    assert_eq!(
        std::fs::read_to_string(folder.path().join("out/output_1/out.txt")).unwrap(),
        "hello"
    );

    task.outputs = vec![file_output("nosuch.txt")];
    let (code, outcome) = binary(&task);
    assert!(code == Some(1) && matches!(outcome, Outcome::Failed(_)), "{outcome:?}");
    assert!(Path::new(&folder.path().join("out/work")).read_dir().unwrap().next().is_none());
}
