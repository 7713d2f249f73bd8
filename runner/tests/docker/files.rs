//! What is taken among outputs, archives among inputs and outputs, and solvers of integration version 0.

use std::io::Write;

use zip::{ZipWriter, write::SimpleFileOptions};

use super::*;

fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

impl Bench {
    /// A file as the input of a port; one called `x.zip` is to be unpacked.
    fn input(&mut self, port: &str, path: &str, content: Vec<u8>) -> InputFile {
        let file_id = Uuid::now_v7();
        self.memory.files.insert(file_id, content);
        let unzip = path == "x.zip";
        let (port, path) = (port.to_owned(), path.to_owned());
        InputFile { port, file_id, path, sha256: None, unzip }
    }
}

#[tokio::test]
async fn an_archive_is_unpacked_and_not_kept() {
    let mut bench = Bench::new();
    let mut task = task("cd /inputs; ls; cat a.txt deep/b.txt plain.txt; stat -c %u deep/b.txt");
    task.files = vec![
        bench.input("input_1", "x.zip", archive(&[("a.txt", "a\n"), ("deep/b.txt", "b\n")])),
        bench.input("input_2", "plain.txt", b"plain\n".to_vec()),
    ];
    let (outcome, events) = bench.run(&task, |_| ()).await;
    assert_eq!(outcome, Outcome::Succeeded(BTreeMap::new()), "{events:#?}");
    let owner = std::fs::metadata(bench.work.path()).map(|work| {
        use std::os::unix::fs::MetadataExt;
        if work.uid() == 0 { 8004 } else { work.uid() }
    });
    let owner = owner.unwrap().to_string();
    let expected = ["a.txt", "deep", "inputs.json", "plain.txt", "a", "b", "plain", owner.as_str()];
    assert_eq!(printed(&events), expected);
}

#[tokio::test]
async fn a_bad_archive_fails_the_task_and_says_why() {
    let mut bench = Bench::new();
    let evil = archive(&[("../evil", "")]);
    let mut limited = task("echo never");
    limited.limits.disk_bytes = 1 << 20;
    let zeros = "0".repeat(2 << 20);
    for (files, expected) in [
        (
            vec![("input_1", "x.zip", evil)],
            "input `input_1` (x.zip): the archive holds `../evil`, which is not a path inside the archive",
        ),
        (
            vec![("input_1", "x.zip", b"PK".to_vec())],
            "input `input_1` (x.zip): the archive is not a good archive: ",
        ),
        (
            vec![("input_1", "x.zip", archive(&[("zeros", &zeros)]))],
            "input `input_1` (x.zip): the archive holds more than 1048576 bytes, the limit of a job",
        ),
        (
            vec![("input_1", "x.zip", archive(&[("a", "")])), ("input_2", "a", Vec::new())],
            "inputs `input_2` and `input_1` would both be written to /inputs/a; ",
        ),
        (
            vec![("input_1", "x.zip", archive(&[("inputs.json", "")]))],
            "inputs `the values of the other inputs` and `input_1` would both be written to /inputs/inputs.json; ",
        ),
        (
            vec![
                ("input_1", "x.zip", archive(&[("a", "")])),
                ("input_2", "x.zip", archive(&[("a", "")])),
            ],
            "input `input_2` (x.zip): the archive holds `a`, which is there already: ",
        ),
    ] {
        limited.files = files
            .into_iter()
            .map(|(port, path, content)| bench.input(port, path, content))
            .collect();
        let (error, events) = bench.fail(&limited).await;
        assert_eq!(error.kind, FailureKind::Input, "{}", error.message);
        assert!(error.message.starts_with(expected), "{}", error.message);
        assert_eq!(printed(&events), Vec::<String>::new());
    }
}

#[tokio::test]
async fn inputs_count_as_disk() {
    let mut bench = Bench::new();
    let mut task = task("echo never");
    task.limits.disk_bytes = 1 << 20;
    task.files = vec![bench.input("input_1", "x", vec![1; 2 << 20])];
    let (error, _) = bench.fail(&task).await;
    assert_eq!(error.kind, FailureKind::Disk, "{}", error.message);
    assert!(error.message.contains(" in /inputs"), "{}", error.message);
}

#[tokio::test]
async fn an_output_that_is_to_be_an_archive_becomes_one() {
    let bench = Bench::new();
    let mut task = task("cd /outputs; echo seven >result.txt; touch x; printf 'PK\\005\\006' >x");
    let port = |key: &str, path: &str| OutputPort {
        key: key.to_owned(),
        path: Some(path.to_owned()),
        default: None,
        zip: true,
    };
    task.outputs = vec![port("output_1", "result.txt"), port("output_2", "x")];
    let (outcome, _) = bench.run(&task, |_| ()).await;
    let Outcome::Succeeded(outputs) = outcome else { panic!("{outcome:?}") };
    let names: Vec<_> = outputs
        .values()
        .map(|output| match output {
            Output::File(file) => file.filename.as_str(),
            Output::Value(value) => panic!("{value}"),
        })
        .collect();
    assert_eq!(names, ["result.txt.zip", "x"]);
    let stored = bench.memory.stored.lock().unwrap();
    assert_eq!(stored["output_2"], b"PK\x05\x06");
    let mut zip = zip::ZipArchive::new(Cursor::new(&stored["output_1"])).unwrap();
    assert_eq!(std::io::read_to_string(zip.by_name("result.txt").unwrap()).unwrap(), "seven\n");
}

#[tokio::test]
async fn a_solver_of_integration_version_0_works() {
    let bench = Bench::new();
    let script = r#"
        cat $INPUT_FOLDER/input.json >>/logs/log.dat; echo >>/logs/log.dat
        echo '[PROGRESS] 1/2' >>/logs/log.dat
        until [ -e /logs/go ]; do sleep 0.05; done
        echo printed; echo wrong >&2
        mv /logs/log.dat /logs/older; echo in another file than before >/logs/log.dat
        until [ -e /logs/on ]; do sleep 0.05; done
        : >/logs/log.dat; echo short >>/logs/log.dat
        printf 'no newline' >>/logs/log.dat
        echo '{"output_1": 7}' >$OUTPUT_FOLDER/output.json
        exit $((CODE))
    "#;
    let mut task = task(script);
    task.integration_version = 0;
    task.values = json!({"input_1": 3}).as_object().unwrap().clone();
    task.outputs =
        vec![OutputPort { key: "output_1".to_owned(), path: None, default: None, zip: false }];
    for code in [0, 3] {
        task.job_id = Uuid::now_v7();
        task.env.insert("CODE".to_owned(), code.to_string());
        let logs = bench.work.path().join(task.job_id.to_string()).join("logs");
        // The solver goes on when its lines have been seen: they are not read at its end only.
        let (outcome, events) = bench
            .run(&task, |event| match event {
                Event::Progress(50) => std::fs::write(logs.join("go"), "").unwrap(),
                Event::Log(line) if line.ends_with(" in another file than before") => {
                    std::fs::write(logs.join("on"), "").unwrap();
                }
                Event::Started { .. } | Event::Log(_) | Event::Used(_) | Event::Progress(_) => {}
            })
            .await;
        let mut lines = printed(&events);
        let solver_log = lines.iter().position(|line| line == "in another file than before");
        assert!(solver_log.is_some(), "{events:#?}");
        lines.sort();
        let expected = [
            "[PROGRESS] 1/2",
            "in another file than before",
            "no newline",
            "printed",
            "short",
            "wrong",
            "{\"input_1\":3}",
        ];
        assert_eq!(lines, expected);
        match outcome {
            Outcome::Succeeded(outputs) => {
                assert_eq!((code, &outputs["output_1"]), (0, &Output::Value(json!(7))));
            }
            Outcome::Failed(error) => {
                assert_eq!((code, error.kind), (3, FailureKind::Exit));
                assert_eq!(error.last_lines.len(), 7, "{:#?}", error.last_lines);
                assert!(error.last_lines.is_sorted(), "{:#?}", error.last_lines);
            }
            Outcome::Stopped => panic!("stopped"),
        }
    }
}

#[tokio::test]
async fn whoever_adopts_a_container_goes_on_in_its_log_file() {
    let bench = Bench::new();
    let script = r"
        echo one >>/logs/log.dat; echo two >>/logs/log.dat; printf thr >>/logs/log.dat
        until [ -e /logs/go ]; do sleep 0.05; done
        echo ee >>/logs/log.dat; printf four >>/logs/log.dat
    ";
    let mut task = task(script);
    task.integration_version = 0;
    let first = bench
        .abandon(&task, |event| matches!(event, Event::Log(line) if line.ends_with(" two")))
        .await;
    assert_eq!(printed(&first), ["one", "two"]);
    let job = bench.work.path().join(task.job_id.to_string());
    std::fs::write(job.join("logs/go"), "").unwrap();
    let adopted = bench.adopted(&task, &first).await;
    let (outcome, second) = bench.go_on(&task, Some(adopted), |_| ()).await;
    assert_eq!(outcome, Outcome::Succeeded(BTreeMap::new()));
    // The last line may have been passed on without its place being kept.
    let seen = printed(&second);
    let seen: Vec<_> = seen.iter().filter(|line| *line != "two").collect();
    assert_eq!(seen, ["three", "four"]);
    clean_up(&bench.engine, bench.work.path(), task.job_id).await.unwrap();
}

#[tokio::test]
async fn a_log_file_that_leads_elsewhere_is_not_read() {
    let bench = Bench::new();
    for (script, reason) in [
        ("ln -sf /etc/passwd /logs/log.dat", "`log.dat` is a symbolic link"),
        ("rm /logs/log.dat; mkfifo /logs/log.dat", "`log.dat` in /logs is not a regular file"),
        ("rm -r /logs/log.dat; mkdir /logs/log.dat", "`log.dat` in /logs is not a regular file"),
    ] {
        let mut task = task(script);
        task.integration_version = 0;
        let (outcome, events) = bench.run(&task, |_| ()).await;
        assert_eq!(outcome, Outcome::Succeeded(BTreeMap::new()));
        assert_eq!(printed(&events), Vec::<String>::new());
        let warnings: Vec<_> =
            texts(&events).into_iter().filter(|text| text.starts_with("[WARNING]")).collect();
        assert!(warnings.len() == 1 && warnings[0].contains(reason), "{warnings:#?}");
    }
    let mut task = task("rm /logs/log.dat");
    task.integration_version = 0;
    let (outcome, _) = bench.run(&task, |_| ()).await;
    assert_eq!(outcome, Outcome::Succeeded(BTreeMap::new()));
}

#[tokio::test]
async fn only_a_regular_file_is_an_output() {
    let bench = Bench::new();
    for (script, reason) in [
        ("ln -s /etc/shadow x", "`x` is a symbolic link or lies behind one"),
        ("ln -s / d; mkdir y", "`d/etc/hostname` is a symbolic link or lies behind one"),
        ("echo 1 >y; ln y x", "`x` in /outputs has 2 hard links"),
        ("mkfifo x", "`x` in /outputs is not a regular file"),
        ("mkdir x", "`x` in /outputs is not a regular file"),
        ("mknod x c 1 5; echo $?", "could not locate `x` in /outputs; found: nothing"),
        ("mknod x b 254 0; echo $?", "could not locate `x` in /outputs; found: nothing"),
        ("touch '..x' '...'", "could not locate `x` in /outputs; found: ..., ..x"),
        ("touch ../x", "`../x` is not a path inside /outputs"),
    ] {
        let mut task = task(&format!("cd /outputs; {script}"));
        let path = if reason.contains("d/etc") {
            "d/etc/hostname"
        } else if script.contains("../x") {
            "../x"
        } else {
            "x"
        };
        task.outputs = vec![file_output(path)];
        let (error, _) = bench.fail(&task).await;
        assert_eq!((error.kind, error.port.as_deref()), (FailureKind::Output, Some("output_1")));
        assert!(error.message.contains(reason), "{script}: {}", error.message);
    }
    assert!(bench.memory.stored.lock().unwrap().is_empty());
}

#[tokio::test]
async fn values_are_read_with_care() {
    let bench = Bench::new();
    for (script, reason) in [
        ("truncate -s 1G outputs.json", "has 1073741824 bytes, more than 16777216"),
        ("head -c 100000 /dev/zero | tr '\\0' '[' >outputs.json", "is not a JSON object: "),
        (
            "{ printf '{\"output_1\": '; yes '{\"a\":' | head -n 100000; } >outputs.json",
            "is not a JSON object: recursion limit exceeded",
        ),
        (
            "{ printf '{\"output_1\": ['; yes '{},' | head -n 2000000; echo '0]}'; } >outputs.json",
            "holds 18000009 values, each object counted as 8; at most 1000000 are read",
        ),
        ("mkdir outputs.json", "is not a regular file"),
        ("mkfifo outputs.json", "is not a regular file"),
    ] {
        let mut task = task(&format!("cd /outputs; {script}"));
        task.outputs =
            vec![OutputPort { key: "output_1".to_owned(), path: None, default: None, zip: false }];
        let (error, _) = bench.fail(&task).await;
        assert_eq!(error.kind, FailureKind::Output, "{script}: {}", error.message);
        assert!(error.message.contains(reason), "{script}: {}", error.message);
        assert!(error.message.len() < 1000, "{}", error.message.len());
    }
}

#[tokio::test]
async fn many_files_are_listed_in_a_few_words() {
    let bench = Bench::new();
    let script =
        "mkdir /outputs/more; i=0; while [ $i -lt 20000 ]; do : >/outputs/$i; i=$((i+1)); done";
    let mut task = task(script);
    task.outputs = vec![file_output("result.txt")];
    let (error, _) = bench.fail(&task).await;
    assert_eq!(error.kind, FailureKind::Output);
    assert!(
        error.message.contains("could not locate `result.txt` in /outputs; found: ")
            && error.message.ends_with(" and more")
            && error.message.len() < 400,
        "{}",
        error.message
    );
}
