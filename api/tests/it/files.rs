//! Files in, files out and files in between, through the API: solvers are images of nothing but busybox, made and published here.

use std::{
    io::{Cursor, Write},
    process::Command,
};

use serde_json::{Value as Json, json};
use solverd::domain::{labels, solver::Release};
use solverd_runner::engine::Docker;
use zip::{ZipWriter, write::SimpleFileOptions};

use crate::{
    http::log_in_zip,
    support::{TestApp, text},
};

/// Makes a solver that is a shell script, and publishes it as users do.
async fn publish(app: &TestApp, name: &str, script: &str, about: Json) -> Release {
    let image = format!("solverd-test/{name}:1.0.0");
    let mut fields = json!({
        "key": format!("simcore/services/comp/test/{name}"),
        "version": "1.0.0",
        "type": "computational",
        "name": name,
        "contact": "ada@example.org",
    });
    fields.as_object_mut().unwrap().extend(about.as_object().unwrap().clone());
    let share = json!({"NanoCPUs": 100_000_000, "MemoryBytes": 64 << 20});
    let settings = json!([{"name": "Resources", "type": "Resources", "value": {"Limits": share, "Reservations": share}}]);
    let mut label = vec![format!("LABEL simcore.service.settings='{settings}'")];
    for (field, value) in fields.as_object().unwrap() {
        label.push(format!("LABEL io.simcore.{field}='{}'", json!({ field: value })));
    }
    label.push(format!("ENTRYPOINT {}", json!(["/bin/busybox", "sh", "-c", script])));
    let folder = tempfile::tempdir().unwrap();
    let tar = folder.path().join("root.tar").display().to_string();
    run("tar", &["-cf", &tar, "-C", "/", "bin/busybox"]);
    let changes: Vec<_> = label.iter().flat_map(|label| ["--change", label]).collect();
    run("docker", &[&["import"], &changes[..], &[&tar, &image]].concat());
    let data = app.data().display().to_string();
    run(env!("CARGO_BIN_EXE_solverd"), &["solvers", "publish", &image, "--data-dir", &data]);
    let found = Docker::connect().unwrap().image(&image).await.unwrap();
    labels::release(&image, &found.id, &found.digests, &found.labels).unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

fn port(kind: &str) -> Json {
    json!({"label": "", "description": "", "type": kind})
}

fn file_port(kind: &str, path: &str) -> Json {
    json!({"label": "", "description": "", "type": kind, "fileToKeyMap": {path: "p"}})
}

fn archive(entries: &[(&str, &str)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in entries {
        zip.start_file(*name, SimpleFileOptions::default()).unwrap();
        zip.write_all(content.as_bytes()).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[tokio::test]
async fn a_solver_of_integration_version_0_runs_like_any_other() {
    let app = TestApp::start().await;
    let script = r#"
        busybox() { /bin/busybox "$@"; }
        log=/logs/log.dat
        busybox cat /inputs/input.json >>$log; echo >>$log
        echo "[PROGRESS] 1/2" >>$log
        echo on standard output
        busybox cp /inputs/text.txt /outputs/copy.txt
        echo "{\"n\": \"7\"}" >/outputs/output.json
    "#;
    let release = publish(
        &app,
        "version-0",
        script,
        json!({
            "inputs": {"n": port("integer"), "text": file_port("data:text/plain", "text.txt")},
            "outputs": {"n": port("integer"), "text": file_port("data:text/plain", "copy.txt")},
        }),
    )
    .await;
    let file = app.upload("mine.txt", b"a text").await.json();
    let job = app.start_job(&release, json!({"n": 3, "text": file})).await;
    let ended = app.wait_for_end(&job).await;
    assert_eq!(text(&ended, "/state"), "SUCCESS", "{ended:#}");
    let outputs = app.get(&format!("{job}/outputs")).await.json();
    assert_eq!(outputs["results"]["n"], 7, "{outputs:#}");
    let id = text(&outputs, "/results/text/id");
    let content = app.follow(&app.get(&format!("/v0/files/{id}/content")).await).await;
    assert_eq!(content, b"a text");
    let log = log_in_zip(&app, &app.get(&format!("{job}/outputs/logfile")).await).await;
    for line in [r#" {"n":3}"#, " [PROGRESS] 1/2", " on standard output"] {
        let found = log.lines().find(|found| found.ends_with(line));
        let time = found.unwrap_or_else(|| panic!("{line} in {log}")).split(' ').next().unwrap();
        assert!(time.len() == 30 && time.ends_with('Z'), "{time}");
    }
    app.stop().await;
}

#[tokio::test]
async fn archives_are_unpacked_unless_the_port_wants_them_whole() {
    let app = TestApp::start().await;
    let script = "cd /inputs; for f in *; do echo saw $f; done; /bin/busybox cat a.txt >/outputs/any; echo data >/outputs/packed";
    let release = publish(
        &app,
        "archives",
        script,
        json!({
            "integration-version": "1.0.0",
            "inputs": {
                "any": port("data:*/*"),
                "whole": port("data:application/zip"),
                "named": file_port("data:text/plain", "named.txt"),
            },
            "outputs": {"any": port("data:*/*"), "packed": port("data:application/zip")},
        }),
    )
    .await;
    let archive = archive(&[("a.txt", "content"), ("deep/b.txt", "")]);
    let any = app.upload("any.ZIP", &archive).await.json();
    let whole = app.upload("whole.zip", &archive).await.json();
    let job = app.start_job(&release, json!({"any": any, "whole": whole})).await;
    let ended = app.wait_for_end(&job).await;
    assert_eq!(text(&ended, "/state"), "SUCCESS", "{ended:#}");
    let log = log_in_zip(&app, &app.get(&format!("{job}/outputs/logfile")).await).await;
    let saw: Vec<_> = log.lines().filter_map(|line| Some(line.split_once(" saw ")?.1)).collect();
    assert_eq!(saw, ["a.txt", "deep", "inputs.json", "whole.zip"]);

    let results = app.get(&format!("{job}/outputs")).await.json();
    let content = async |output: &str| {
        let id = text(&results, &format!("/results/{output}/id")).to_owned();
        app.follow(&app.get(&format!("/v0/files/{id}/content")).await).await
    };
    assert_eq!(content("any").await, b"content");
    assert_eq!(text(&results, "/results/packed/filename"), "packed.zip");
    let mut packed = zip::ZipArchive::new(Cursor::new(content("packed").await)).unwrap();
    assert_eq!(std::io::read_to_string(packed.by_name("packed").unwrap()).unwrap(), "data\n");

    for (values, expected) in [
        (
            json!({"named": whole}),
            "input `named`: `whole.zip` is a zip archive, which is unpacked for this port, but the solver expects the one file `named.txt`",
        ),
        (
            json!({"any": app.upload("bad.zip", b"no archive").await.json()}),
            "input `any` (bad.zip): the archive is not a good archive: ",
        ),
    ] {
        let job = app.start_job(&release, values).await;
        let ended = app.wait_for_end(&job).await;
        assert_eq!(text(&ended, "/errors/0/type"), "runtime.input", "{ended:#}");
        assert!(text(&ended, "/errors/0/msg").starts_with(expected), "{ended:#}");
    }
    app.stop().await;
}

#[tokio::test]
async fn a_disk_bomb_ends_and_nobody_else_notices() {
    let flags = ["--disk-limit=16", "--files-limit=500", "--disk-reserve=0"];
    let app = TestApp::start_in(tempfile::tempdir().unwrap(), &flags).await;
    let about =
        json!({"integration-version": "1.0.0", "inputs": {"size": port("integer")}, "outputs": {}});
    let script = "n=$(/bin/busybox tr -dc 0-9 </inputs/inputs.json); i=0; while [ $i -lt 1000000 ]; do /bin/busybox head -c $n /dev/zero >/outputs/$i; i=$((i+1)); done";
    let bomb = publish(&app, "bomb", script, about.clone()).await;
    let quiet = publish(&app, "quiet", "/bin/busybox sleep 5", about).await;
    let quiet = app.start_job(&quiet, json!({"size": 0})).await;
    for (size, expected) in [
        (1_000_000, " bytes on disk, its limit is 16777216: "),
        (0, "the job has more than 500 files and folders on disk, which is its limit: "),
    ] {
        let job = app.start_job(&bomb, json!({"size": size})).await;
        let ended = app.wait_for_end(&job).await;
        assert_eq!(text(&ended, "/errors/0/type"), "runtime.disk", "{ended:#}");
        assert!(text(&ended, "/errors/0/msg").contains(expected), "{ended:#}");
        let log = log_in_zip(&app, &app.get(&format!("{job}/outputs/logfile")).await).await;
        assert!(log.contains(text(&ended, "/errors/0/msg")), "{log}");
    }
    let ended = app.wait_for_end(&quiet).await;
    assert_eq!(text(&ended, "/state"), "SUCCESS", "{ended:#}");
    app.stop().await;
}
