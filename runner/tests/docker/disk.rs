//! Solvers that take more of the disk than they may, or leave there what is hard to remove.

use std::os::unix::{
    fs::{MetadataExt, PermissionsExt},
    process::CommandExt,
};

use super::*;

/// Writes 1 MB files into a folder for ever; on a tenth of a CPU it does not get far between two looks.
fn bomb(folder: &str) -> Task {
    let script = format!(
        "mkdir -p {folder}; i=0; while :; do head -c 1000000 /dev/zero >{folder}/$i; i=$((i+1)); done"
    );
    limited(&script)
}

/// 16 MiB of disk, a thousand files, and a tenth of a CPU.
fn limited(script: &str) -> Task {
    let mut task = task(script);
    task.resources.nano_cpus = 100_000_000;
    task.limits = Limits { disk_bytes: 16 << 20, disk_files: 1000, ..task.limits };
    task
}

#[tokio::test]
async fn a_disk_bomb_is_ended_wherever_it_writes() {
    let bench = Bench::new();
    for (folder, place) in [
        ("/outputs", "/outputs"),
        ("/logs/deep", "/logs"),
        ("/inputs", "/inputs"),
        ("/tmp", "the container's own files"),
        ("/anywhere/else", "the container's own files"),
    ] {
        let (error, events) = bench.fail(&bomb(folder)).await;
        assert_eq!(error.kind, FailureKind::Disk, "{folder}: {}", error.message);
        let message = &error.message;
        let used = message.strip_prefix("the job has ").unwrap().split_once(' ').unwrap().0;
        assert!(used.parse::<u64>().unwrap() > 16 << 20, "{folder}: {message}");
        assert!(message.contains(" bytes on disk, its limit is 16777216: "), "{message}");
        let most = message.rsplit_once(": ").unwrap().1.split(", ").next().unwrap();
        assert!(most.ends_with(&format!(" in {place}")), "{folder}: {message}");
        assert!(events.iter().any(|event| matches!(event, Event::Used(_))), "{events:#?}");
    }
}

#[tokio::test]
async fn what_an_image_calls_its_volumes_is_measured_too() {
    const VOLUMES: &str = "solverd-test/volumes:1";
    let bench = Bench::new();
    let container = command("docker", &["create", IMAGE, "/bin/true"]);
    let change = ["commit", "--change", "VOLUME [\"/data\", \"/outputs\", \"/etc\"]"];
    command("docker", &[&change[..], &[container.trim(), VOLUMES]].concat());
    command("docker", &["rm", container.trim()]);

    let volumes = || command("docker", &["volume", "ls", "--quiet"]);
    let before = volumes();
    let mut bomb = bomb("/data");
    bomb.image = VOLUMES.to_owned();
    let (error, _) = bench.fail(&bomb).await;
    assert_eq!(error.kind, FailureKind::Disk, "{}", error.message);
    assert!(error.message.contains(" in the image's volumes"), "{}", error.message);

    let mut plain = task("ls /etc/hosts; echo x >/etc/x; echo 1 >/outputs/x");
    plain.image = VOLUMES.to_owned();
    plain.outputs = vec![file_output("x")];
    let (outcome, events) = bench.run(&plain, |_| ()).await;
    assert!(matches!(outcome, Outcome::Succeeded(_)), "{outcome:?} {events:#?}");
    assert_eq!(volumes(), before);
}

#[tokio::test]
async fn a_file_that_was_deleted_but_is_open_counts() {
    let bench = Bench::new();
    let one = "exec 3>/outputs/x; rm /outputs/x; head -c 10000000 /dev/zero >&3";
    let two = "exec 4>/y; rm /y; head -c 10000000 /dev/zero >&4";
    let (outcome, events) = bench.run(&limited(&format!("{one}; {two}; sleep 60")), |_| ()).await;
    if !rustix::process::geteuid().is_root() {
        assert!(matches!(outcome, Outcome::Succeeded(_)), "only root can look: {outcome:?}");
        return;
    }
    let Outcome::Failed(error) = outcome else { panic!("{outcome:?}, {events:#?}") };
    assert_eq!(error.kind, FailureKind::Disk);
    assert!(error.message.contains(" in files deleted but still open"), "{}", error.message);
}

#[tokio::test]
async fn one_file_cannot_pass_the_limit() {
    let bench = Bench::new();
    for (script, expected) in [
        ("exec head -c 20000000 /dev/zero >/outputs/x", " bytes on disk, its limit is 16777216: "),
        // That it was there is seen from the signal only.
        (
            "head -c 20000000 /dev/zero >/x; rm /x; exit 153",
            "(SIGXFSZ), which is also what happens when a file reaches 16777216 bytes",
        ),
    ] {
        let mut task = limited(script);
        task.resources.nano_cpus = 1_000_000_000;
        let (error, _) = bench.fail(&task).await;
        assert!(error.message.contains(expected), "{}", error.message);
    }
}

#[tokio::test]
async fn too_many_files_are_too_many() {
    let bench = Bench::new();
    for folder in ["/outputs", "/anywhere"] {
        let script =
            format!("mkdir -p {folder}/x; i=0; while :; do : >{folder}/x/$i; i=$((i+1)); done");
        let (error, _) = bench.fail(&limited(&script)).await;
        assert_eq!(error.kind, FailureKind::Disk);
        assert!(
            error.message.starts_with("the job has more than 1000 files and folders on disk, "),
            "{}",
            error.message
        );
    }
}

#[tokio::test]
async fn what_was_written_last_counts_at_the_end() {
    let bench = Bench::new();
    let mut task = limited("head -c 9000000 /dev/zero >/outputs/a; cp /outputs/a /outputs/b");
    task.resources.nano_cpus = 1_000_000_000;
    let (error, _) = bench.fail(&task).await;
    assert_eq!(error.kind, FailureKind::Disk, "{}", error.message);
}

#[tokio::test]
async fn a_full_disk_ends_only_who_holds_most() {
    let bench = Bench::new();
    let large = "head -c 200000000 /dev/zero >/outputs/x; echo written; sleep 600";
    let small = "until [ -e /outputs/go ]; do sleep 0.1; done; echo 1 >/outputs/x";
    let [mut large, mut small] = [large, small].map(task);
    for task in [&mut large, &mut small] {
        // There is never as much.
        task.limits.disk_reserve = u64::MAX;
    }
    small.outputs = vec![file_output("x")];
    let go = bench.work.path().join(small.job_id.to_string()).join("outputs/go");
    let other = Bench::new();
    let ((error, _), (outcome, _)) = tokio::join!(
        async {
            let failed = other.fail(&large).await;
            std::fs::write(go, "").unwrap();
            failed
        },
        bench.run(&small, |_| ()),
    );
    assert_eq!(error.kind, FailureKind::Disk);
    assert!(
        error.message.starts_with("the machine's disk has ")
            && error.message.contains("; of all jobs this one held most, "),
        "{}",
        error.message
    );
    assert!(matches!(outcome, Outcome::Succeeded(_)), "{outcome:?}");
}

/// Folders within each other: each round puts what there is below a path of 15 long names.
fn deep(folder: &str, rounds: u32) -> String {
    format!(
        r"
        cd {folder}; mkdir deep; i=0
        name=$(head -c 250 /dev/zero | tr '\0' d); path=$name
        while [ $i -lt 14 ]; do path=$path/$name; i=$((i+1)); done
        i=0; while [ $i -lt {rounds} ]; do mkdir -p next/$path; mv deep next/$path/deep; mv next deep; i=$((i+1)); done
        "
    )
}

#[tokio::test]
async fn folders_deeper_than_a_path_are_refused_and_removed() {
    let bench = Bench::new();
    for folder in ["/outputs", "/"] {
        let (error, _) = bench.fail(&task(&format!("set -e; {}", deep(folder, 100)))).await;
        assert_eq!(error.kind, FailureKind::Disk, "{}", error.message);
        let place = if folder == "/" { "the container's own files" } else { folder };
        let expected = format!("folders lie within each other more than 128 deep in {place}");
        assert_eq!(error.message, expected);
    }
}

#[tokio::test]
async fn closed_folders_are_removed() {
    let bench = Bench::new();
    let script = "mkdir -p /outputs/a/b/c; touch /outputs/a/b/c/d; chmod 000 /outputs/a/b/c /outputs/a/b /outputs/a /outputs /logs /inputs";
    let (outcome, _) = bench.run_script(script).await;
    assert_eq!(outcome, Outcome::Succeeded(BTreeMap::new()));
}

#[tokio::test]
async fn nothing_is_written_where_nobody_measures() {
    let bench = Bench::new();
    let script = "for f in /etc/hosts /etc/hostname /etc/resolv.conf /proc/sys/kernel/hostname; do [ -e $f ] && ! echo x >>$f && echo no; done";
    let task = task(&format!("({script}) 2>/dev/null"));
    let (outcome, events) = bench.run(&task, |_| ()).await;
    assert_eq!(outcome, Outcome::Succeeded(BTreeMap::new()), "{events:#?}");
    assert_eq!(printed(&events), ["no"; 4]);
}

/// Runs a task by the runner's program as somebody who may use Docker, and nothing else; answers with what it prints.
fn as_nobody(task: &Task, folder: &Path) -> String {
    LazyLock::force(&IMPORTED);
    let at = |name: &str| folder.join(name);
    std::fs::write(at("task.json"), serde_json::to_vec(task).unwrap()).unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_solverd-runner"), at("runner")).unwrap();
    for name in ["", "runner"] {
        std::fs::set_permissions(at(name), PermissionsExt::from_mode(0o777)).unwrap();
    }
    let mut runner = Command::new(at("runner"));
    runner.arg(at("task.json")).arg("--files").arg(folder).arg("--out").arg(at("out"));
    if rustix::process::geteuid().is_root() {
        let socket = std::fs::metadata("/var/run/docker.sock").unwrap();
        runner.uid(65534).gid(socket.gid());
    }
    let output = runner.output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.stderr.is_empty(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(at("out/work").read_dir().unwrap().count(), 0, "{printed}");
    let name = format!("name={}", task.job_id);
    assert_eq!(command("docker", &["ps", "-aq", "--filter", &name]), "");
    printed
}

#[test]
fn a_service_that_is_not_root_removes_what_root_made() {
    let folder = tempfile::tempdir().unwrap();
    // It may look into none of them.
    let script = "umask 077; mkdir -p /outputs/a/b /logs/c; echo 1 >/outputs/a/b/x; chmod 000 /outputs/a/b; echo 1 >/outputs/out.txt; chmod 644 /outputs/out.txt";
    let mut task = task(&format!("{script}; {}", deep("/outputs/a", 3)));
    task.outputs = vec![file_output("out.txt")];
    let printed = as_nobody(&task, folder.path());
    assert!(printed.lines().last().unwrap().starts_with(r#"{"Succeeded""#), "{printed}");
    let out = folder.path().join("out/output_1/out.txt");
    assert_eq!(std::fs::read_to_string(out).unwrap(), "1\n");
}

#[test]
fn a_service_that_is_not_root_measures_what_it_may_not_see() {
    let (folder, task) = (tempfile::tempdir().unwrap(), bomb("/anywhere"));
    LazyLock::force(&IMPORTED);
    // Of a life that was cut short while it removed the job: it must go as well.
    let helper = format!("solverd-chown-{}", task.job_id);
    command("docker", &["create", "--name", &helper, IMAGE, "/bin/true"]);
    let printed = as_nobody(&task, folder.path());
    let outcome: Outcome = serde_json::from_str(printed.lines().last().unwrap()).unwrap();
    let Outcome::Failed(error) = outcome else { panic!("{printed}") };
    assert_eq!(error.kind, FailureKind::Disk, "{printed}");
    assert!(error.message.contains(" in the container's own files"), "{}", error.message);
}
