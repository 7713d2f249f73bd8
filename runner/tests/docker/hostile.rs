//! Solvers that mean harm, or might as well: what they try stays inside their container, and their owner is told.

use super::*;

const MIB: u64 = 1 << 20;

/// Ends the task as soon as a line is seen that contains a text.
fn stop_at(bench: &Bench, text: &str) -> impl FnMut(&Event) {
    move |event| {
        if let Event::Log(line) = event
            && line.contains(text)
        {
            bench.stop.cancel();
        }
    }
}

fn limited(script: &str, limits: Limits) -> Task {
    Task { limits, ..task(script) }
}

#[tokio::test]
async fn a_fork_bomb_reaches_its_limit_and_no_further() {
    let bench = Bench::new();
    // The shell that bombs dies of it, what it has started does not.
    let limits = Limits { grace: Duration::from_secs(1), ..Limits::default() };
    let mut task = limited("sh -c 'while :; do sleep 600 & done'; exec sleep 600", limits);
    task.resources.memory_bytes = 512 << 20;
    let told = "processes and threads, its limit is 512";
    let neighbour = Bench::new();
    let ((outcome, events), (beside, _)) = tokio::join!(
        bench.run(&task, stop_at(&bench, told)),
        neighbour.run_script("for i in 1 2 3; do sh -c true; sleep 1; done")
    );
    assert_eq!((outcome, beside), (Outcome::Stopped, Outcome::Succeeded(BTreeMap::new())));
    assert!(printed(&events)[0].contains("can't fork"), "{events:#?}");
}

/// The numbers in lines `n1`, `n2` …
fn numbers(lines: &[String]) -> Vec<u64> {
    lines.iter().filter_map(|line| line.strip_prefix('n')?.parse().ok()).collect()
}

#[tokio::test]
async fn of_an_endless_log_beginning_and_end_are_kept() {
    const LINES: u64 = 2_000_000;
    let bench = Bench::new();
    let task = limited(
        &format!("seq 1 {LINES} | sed s/^/n/; echo '[PROGRESS] 1/2'"),
        Limits { log_bytes: MIB, ..Limits::default() },
    );
    let neighbour = Bench::new();
    let mut drivers = Vec::new();
    let ((outcome, events), (beside, _)) = tokio::join!(
        bench.run(&task, |event| {
            if let Event::Started { container } = event {
                let format = "--format={{json .HostConfig.LogConfig}}";
                drivers.push(command("docker", &["inspect", format, container]));
            }
        }),
        neighbour.run_script("echo fine")
    );
    let ok = Outcome::Succeeded(BTreeMap::new());
    assert_eq!((&outcome, &beside), (&ok, &ok));
    // What the engine itself keeps on disk.
    let driver: Value = serde_json::from_str(&drivers[0]).unwrap();
    let files = json!({"max-size": (3 * 8 * MIB).to_string(), "max-file": "2"});
    assert_eq!(driver, json!({"Type": "json-file", "Config": files}));

    let lines = texts(&events);
    let bytes: usize = lines.iter().map(|line| line.len() + 32).sum();
    assert!(bytes as u64 <= MIB + 2000, "{bytes}");
    let at = |begin: &str, end: &str| {
        let found = lines.iter().position(|line| line.starts_with(begin) && line.ends_with(end));
        found.unwrap_or_else(|| panic!("no {begin}…{end} in {lines:#?}"))
    };
    let full = at("[WARNING] solverd: the log reaches 1.0 MiB, its limit", "shown at the end");
    let gap = at("[WARNING] solverd: at least ", " are left out here");
    assert_eq!(full + 1, gap);
    let (begin, end) = (numbers(&lines[..full]), numbers(&lines[gap..]));
    let (begun, rest) = (begin.len() as u64, end.len() as u64);
    assert!(
        begun > 20_000 && begin == (1..=begun).collect::<Vec<_>>(),
        "{begun}: {:?}",
        begin.last()
    );
    assert!(
        rest > 1000 && end == (LINES - rest + 1..=LINES).collect::<Vec<_>>(),
        "{rest}: {:?}",
        end.first()
    );
    assert_eq!(progress(&events), [5, 50], "lines that are left out count as well");
}

#[tokio::test]
async fn of_a_log_that_nobody_can_follow_only_the_end_is_read_after_a_stop() {
    const AHEAD: u64 = 3_000_000;
    let bench = Bench::new();
    let limits = Limits { log_bytes: 256 * MIB, grace: Duration::ZERO, ..Limits::default() };
    let mut container = None;
    let (outcome, events) = bench
        .run(&limited("seq 1 1000000000 | sed s/^/n/", limits), |event| match event {
            Event::Started { container: started } => container = Some(started.clone()),
            Event::Log(line) if line.ends_with(" n1") => {
                // Nobody reads while this looks.
                let last =
                    || command("docker", &["logs", "--tail", "1", container.as_ref().unwrap()]);
                let deadline = Instant::now() + DEADLINE;
                while !numbers(&[last().trim().to_owned()]).iter().any(|number| *number > AHEAD) {
                    assert!(Instant::now() < deadline, "last seen: {}", last());
                }
                bench.stop.cancel();
            }
            Event::Log(_) | Event::Used(_) | Event::Progress(_) => {}
        })
        .await;
    assert_eq!(outcome, Outcome::Stopped);
    let lines = texts(&events);
    let notice = "[WARNING] solverd: the solver was stopped: of what it had printed";
    let gap = lines.iter().position(|line| line.starts_with(notice));
    let gap = gap.unwrap_or_else(|| panic!("{:?}", lines.last()));
    let (begin, end) = (numbers(&lines[..gap]), numbers(&lines[gap..]));
    assert_eq!(begin, (1..=begin.len() as u64).collect::<Vec<_>>());
    // The very last line may have been cut.
    let end = &end[..end.len() - 1];
    let (first, last) = (end[0], end[end.len() - 1]);
    assert!(
        first > begin.len() as u64 && last > AHEAD,
        "{}, {first} to {last}: {:?}",
        begin.len(),
        &lines[lines.len() - 3..]
    );
    assert_eq!(end, (first..first + end.len() as u64).collect::<Vec<_>>());
}

#[tokio::test]
async fn the_beginning_of_a_log_does_not_grow_when_its_container_is_adopted() {
    const LINES: u64 = 1_000_000;
    let bench = Bench::new();
    let limits = Limits { log_bytes: MIB, ..Limits::default() };
    let task = limited(&format!("seq 1 {LINES} | sed s/^/n/"), limits);
    let full = |event: &Event| matches!(event, Event::Log(line) if line.contains(", its limit"));
    let before = bench.abandon(&task, full).await;
    let adopted = bench.adopted(&task, &before).await;
    let (outcome, events) = bench.go_on(&task, Some(adopted), |_| ()).await;
    assert_eq!(outcome, Outcome::Succeeded(BTreeMap::new()));
    let lines = texts(&events);
    let gap = lines.iter().position(|line| line.ends_with("are left out here")).unwrap();
    assert_eq!(numbers(&lines[..gap]), Vec::<u64>::new());
    let end = numbers(&lines[gap..]);
    let rest = end.len() as u64;
    let jumps: Vec<_> = end.windows(2).filter(|pair| pair[0] + 1 != pair[1]).collect();
    assert!(
        rest > 1000 && end == (LINES - rest + 1..=LINES).collect::<Vec<_>>(),
        "{rest}: {:?} to {:?}, {jumps:?}",
        end.first(),
        end.last()
    );
    assert!(!events.iter().any(full));
    clean_up(&bench.engine, bench.work.path(), task.job_id).await.unwrap();
    bench.assert_nothing_left(&task).await;
}

#[tokio::test]
async fn whoever_prints_without_pause_is_stopped() {
    let bench = Bench::new();
    let task = limited("yes", Limits { log_bytes: MIB, ..Limits::default() });
    let (outcome, events) = bench.run(&task, stop_at(&bench, ", its limit")).await;
    assert_eq!(outcome, Outcome::Stopped);
    assert!(texts(&events).iter().any(|text| text.ends_with("are left out here")));
}

#[tokio::test]
async fn a_line_of_100_mb_is_cut() {
    let bench = Bench::new();
    let (outcome, events) =
        bench.run_script("head -c 100000000 /dev/zero | tr '\\0' x; echo; echo next").await;
    assert_eq!(outcome, Outcome::Succeeded(BTreeMap::new()));
    let lines = texts(&events);
    let cut = lines.iter().position(|line| line.starts_with("xxx")).unwrap();
    let (line, bytes) = (&lines[cut], 30 + 1 + 100_000_000 - 65_536);
    assert!(line.len() < 66_000, "{}", line.len());
    assert!(
        line.ends_with(&format!("x [solverd: line cut here, {bytes} bytes more]")),
        "{}",
        &line[65_000..]
    );
    assert_eq!(lines[cut + 1], "next");
}

#[tokio::test]
async fn garbage_becomes_text() {
    let bench = Bench::new();
    let script =
        "head -c 1000000 /dev/urandom; echo; printf '\\377\\0\\033[2J\\033]0;x\\007ok\\r\\n'";
    let (outcome, events) = bench.run_script(script).await;
    assert_eq!(outcome, Outcome::Succeeded(BTreeMap::new()));
    let lines = texts(&events);
    assert!(lines.len() > 1000);
    let bad = lines.iter().find(|line| line.chars().any(|c| c != '\t' && c.is_control()));
    assert_eq!(bad, None);
    assert_eq!(printed(&events).last().unwrap(), "\u{fffd}[2J]0;xok");
}

#[tokio::test]
async fn whoever_ignores_sigterm_is_killed_after_the_grace() {
    let bench = Bench::new();
    let task = limited(
        "trap '' TERM; echo ready; while :; do sleep 1; done",
        Limits { grace: Duration::from_secs(1), ..Limits::default() },
    );
    let (outcome, events) = bench.run(&task, stop_at(&bench, " ready")).await;
    assert_eq!(outcome, Outcome::Stopped);
    assert_eq!(printed(&events), ["ready"]);
}

#[tokio::test]
async fn whoever_stepped_down_to_another_user_gets_sigterm() {
    let bench = Bench::new();
    let script = "
        echo 'u:x:8004:8004::/:/bin/sh' >/etc/passwd
        exec su u -c 'trap \"echo bye; exit 0\" TERM; id -u; sleep 600 & wait'
    ";
    let (outcome, events) = bench.run(&task(script), stop_at(&bench, " 8004")).await;
    assert_eq!(outcome, Outcome::Stopped);
    assert_eq!(printed(&events), ["8004", "bye"]);
}

#[tokio::test]
async fn whoever_runs_too_long_is_ended() {
    let bench = Bench::new();
    let limits = Limits { wall: Some(Duration::from_secs(2)), ..Limits::default() };
    let task =
        limited("trap 'echo bye; exit 0' TERM; while :; do echo tick; sleep 0.2; done", limits);
    let (error, events) = bench.fail(&task).await;
    assert_eq!(error.kind, FailureKind::WallTime);
    assert_eq!(error.message, "the solver ran for 2 s, its limit of time, and was stopped");
    assert!(error.last_lines.last().unwrap().ends_with(" bye"), "{error:?}");
    assert_eq!(used(&events).len(), 1);
}

#[tokio::test]
async fn whoever_closes_its_output_and_lives_on_is_silent() {
    let bench = Bench::new();
    let limits = Limits { silence: Duration::from_secs(2), ..Limits::default() };
    let task = limited("echo bye; exec >&- 2>&-; exec sleep 600", limits);
    let (error, _) = bench.fail(&task).await;
    assert_eq!(error.kind, FailureKind::Silence);
    assert_eq!(
        error.message,
        "the solver printed nothing for 2 s, its limit of silence, and was stopped"
    );
    assert_eq!(error.last_lines.len(), 1);
}

#[tokio::test]
async fn whoever_prints_without_end_of_line_is_not_silent() {
    let bench = Bench::new();
    let script = "for i in 1 2 3 4 5 6; do head -c 20000 /dev/zero | tr '\\0' x; sleep 0.7; done";
    let limits = Limits { silence: Duration::from_secs(3), ..Limits::default() };
    let (outcome, _) = bench.run(&limited(script, limits), |_| ()).await;
    assert_eq!(outcome, Outcome::Succeeded(BTreeMap::new()));
}

#[tokio::test]
async fn a_registry_that_never_answers_is_not_waited_for() {
    let bench = Bench::new();
    let registry = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = registry.local_addr().unwrap();
    let limits = Limits { pull: Duration::from_secs(2), ..Limits::default() };
    let digest = format!("sha256:{}", "0".repeat(64));
    let task = Task {
        image: "solverd-test/nosuch:1.2.3".to_owned(),
        image_id: Some(digest.clone()),
        image_digest: Some(format!("{address}/solverd-test/nosuch@{digest}")),
        ..limited("", limits)
    };
    let (error, _) = bench.fail(&task).await;
    assert_eq!(error.kind, FailureKind::PullTime, "{error}");
    assert_eq!(error.message, "pulling the image took 2 s, its limit of time");
}

#[tokio::test]
async fn without_a_network_there_is_a_loopback_of_ones_own() {
    let (one, two, there) = (Bench::new(), Bench::new(), Notify::new());
    let limits = Limits { grace: Duration::ZERO, ..Limits::default() };
    let first = limited("readlink /proc/self/ns/net; exec sleep 600", limits);
    let second = "readlink /proc/self/ns/net; hostname
        echo heard >/outputs/said; httpd -p 4000 -h /outputs; wget -q -O - http://localhost:4000/said
        wget -O - http://solver:4001/ 2>&1 | tail -n 1";
    let beside = async {
        there.notified().await;
        let done = two.run_script(second).await;
        one.stop.cancel();
        done
    };
    let seen = |event: &Event| {
        if matches!(event, Event::Log(line) if line.contains(" net:[")) {
            there.notify_one();
        }
    };
    let ((outcome, first), (other, second)) = tokio::join!(one.run(&first, seen), beside);
    assert_eq!((outcome, other), (Outcome::Stopped, Outcome::Succeeded(BTreeMap::new())));
    let (first, second) = (printed(&first), printed(&second));
    assert_ne!(first[0], second[0], "the namespace");
    let refused = "wget: can't connect to remote host (127.0.0.1): Connection refused";
    assert_eq!(second[1..], ["solver", "heard", refused]);
}

#[tokio::test]
async fn nothing_outside_is_within_reach() {
    const ATTEMPTS: &[&str] = &[
        "ls /inputs; true # the only one that works: the others are seen to be tried",
        "ping -c 1 -W 1 127.0.0.1",
        "wget -T 2 -O - http://172.17.0.1:2375/version",
        "wget -T 2 -O - http://169.254.169.254/",
        "nc -w 1 172.17.0.1 22",
        "arping -c 1 -I lo 127.0.0.1",
        "ip link add more type dummy",
        "ls /var/run/docker.sock || ls /run/docker.sock",
        "ls /inputs/../var/lib || ls /outputs/../root || ls /proc/1/root/var/lib",
        "mount -t tmpfs none /tmp",
        "mount -o remount,rw /sys",
        "mknod /tmp/disk b 8 0",
        "chroot / /bin/true",
        "unshare -m /bin/true || unshare -U /bin/true",
        "nsenter -t 1 -n /bin/true",
        "dmesg",
        "hostname more",
        "sysctl -w kernel.core_pattern=/outputs/core",
        "echo h >/proc/sysrq-trigger",
        "mkdir /sys/fs/cgroup/memory/more",
        "echo max >/sys/fs/cgroup/pids/pids.max",
        "[ -e /sys/fs/cgroup/pids.max ] && echo max >/sys/fs/cgroup/pids.max",
        "chattr +i /tmp",
        "renice -n -5 1",
        "insmod /tmp/disk",
        "reboot -f",
    ];
    let bench = Bench::new();
    let attempt = |(number, what)| {
        format!("sh -c '{what}' >/dev/null 2>&1 </dev/null && echo could {number}\n")
    };
    let script: String = ATTEMPTS.iter().enumerate().map(attempt).collect();
    let (outcome, events) = bench.run_script(&(script + "true")).await;
    assert_eq!(outcome, Outcome::Succeeded(BTreeMap::new()));
    assert_eq!(printed(&events), ["could 0"]);

    let mounts =
        "cut -d ' ' -f 4,5 /proc/self/mountinfo | grep -v -e ' /proc' -e ' /sys' -e ' /dev'";
    let (_, events) = bench.run_script(mounts).await;
    let mut seen: Vec<_> =
        printed(&events).iter().map(|mount| mount.rsplit(' ').next().unwrap().to_owned()).collect();
    seen.sort();
    // The files in /etc are mounted twice, to be read only.
    seen.dedup();
    let expected = [
        "/",
        "/etc/hostname",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/inputs",
        "/logs",
        "/outputs",
        "/sbin/docker-init",
    ];
    assert_eq!(seen, expected);
}
