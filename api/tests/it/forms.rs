//! Uploading through the service: forms as clients write them, of any size, whole or broken off.

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use reqwest::{Method, RequestBuilder, header::CONTENT_TYPE};
use sha2::{Digest, Sha256};
use solverd::domain::user::hex;
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{Api, TestApp, answer, sha256, text, wait_until};

const BOUNDARY: &str = "----of-a-form";

/// A form whose parts have these dispositions and contents.
pub(crate) fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (disposition, content) in parts {
        let head = format!("--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n");
        body.extend_from_slice(head.as_bytes());
        body.extend_from_slice(content);
        body.extend_from_slice(b"\r\n");
    }
    body.extend_from_slice(format!("--{BOUNDARY}--\r\n").as_bytes());
    body
}

/// A form with one file.
pub(crate) fn file_form(filename: &str, content: &[u8]) -> Vec<u8> {
    form(&[(&format!("name=\"file\"; filename=\"{filename}\""), content)])
}

/// A request that sends a form.
pub(crate) fn put(api: &Api, body: impl Into<reqwest::Body>) -> RequestBuilder {
    let request = api.request(Method::PUT, "/v0/files/content");
    request.header(CONTENT_TYPE, content_type()).body(body)
}

fn content_type() -> String {
    format!("multipart/form-data; boundary=\"{BOUNDARY}\"")
}

/// What is in a folder of the object store.
fn stored(app: &TestApp, folder: &str) -> Vec<String> {
    let path = app.data().join("objects").join(folder);
    let entries = std::fs::read_dir(path).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_form_becomes_a_file() {
    let app = TestApp::start().await;
    let deceptive = [b"\r\n--".repeat(3000), format!("\r\n--{}\r\n-", &BOUNDARY[1..]).into()];
    for (disposition, name, content) in [
        (r#"name="file"; filename="a.txt""#, "a.txt", &b"hello"[..]),
        ("name=file; filename=empty", "empty", b""),
        (r#"name="file"; filename="\u{fc} \"b\".bin""#, "u{fc} \"b\".bin", &deceptive.concat()),
        (r#"name="file"; filename="ünï.txt""#, "ünï.txt", b"\r\n"),
        ("name=file; filename=\"_.txt\"; filename*=utf-8''%C3%BC.txt", "ü.txt", b"--\r"),
    ] {
        let file = answer(put(&app, form(&[(disposition, content)]))).await;
        assert_eq!(file.status, 200, "{file}");
        let file = file.json();
        assert_eq!((text(&file, "/filename"), text(&file, "/checksum")), (name, &*sha256(content)));
        let path = format!("/v0/files/{}", text(&file, "/id"));
        assert_eq!(app.get(&path).await.json(), file);
        assert_eq!(app.follow(&app.get(&format!("{path}/content")).await).await, content);
        let found = app.get(&format!("/v0/files:search?sha256_checksum={}", sha256(content))).await;
        assert_eq!(found.json()["items"][0], file);
    }
    app.stop().await;
}

#[tokio::test]
async fn a_long_form_is_passed_on_piece_by_piece() {
    const PIECES: usize = 700;
    let app = TestApp::start().await;
    let piece = |number: usize| Bytes::from(number.to_be_bytes().repeat(8192));
    let whole = file_form("long.bin", b"");
    let end = whole.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap() + 4;
    let (head, tail) =
        (Bytes::copy_from_slice(&whole[..end]), Bytes::copy_from_slice(&whole[end..]));
    let mut digest = Sha256::new();
    (0..PIECES).for_each(|number| digest.update(piece(number)));
    // More than 40 MiB: several parts for the object store, of a length that nobody has declared.
    let pieces = stream::iter([head])
        .chain(stream::iter((0..PIECES).map(piece)))
        .chain(stream::iter([tail]))
        .map(Ok::<_, std::io::Error>);
    let file = answer(put(&app, reqwest::Body::wrap_stream(pieces))).await;
    assert_eq!(file.status, 200, "{file}");
    assert_eq!(text(&file.json(), "/checksum"), hex(&digest.finalize()));
    let objects = stored(&app, "solverd/files");
    let object = app.data().join("objects/solverd/files").join(&objects[0]);
    assert_eq!(std::fs::metadata(object).unwrap().len(), 65536 * PIECES as u64);
    assert_eq!(stored(&app, ".uploads"), [""; 0]);
    app.stop().await;
}

/// Begins to send a form that would be longer than it ever gets.
async fn begin(app: &TestApp, content: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(app.url.strip_prefix("http://").unwrap()).await.unwrap();
    let request = put(app, file_form("a.bin", content)).build().unwrap();
    let credentials = request.headers()["authorization"].to_str().unwrap();
    let head = format!(
        "PUT /v0/files/content HTTP/1.1\r\nHost: test\r\nAuthorization: {credentials}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
        content_type(),
        1 << 30
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let body = request.body().unwrap().as_bytes().unwrap();
    stream.write_all(&body[..body.len() - BOUNDARY.len() - 8]).await.unwrap();
    stream
}

/// Neither file nor object nor upload.
async fn nothing_is_left(app: &TestApp) {
    let left = async || stored(app, ".uploads");
    wait_until("the end of the upload", left, Vec::is_empty).await;
    assert_eq!(stored(app, "solverd/files"), [""; 0]);
}

#[tokio::test]
async fn a_form_that_breaks_off_leaves_nothing() {
    let app = TestApp::start().await;
    // The first is so short that the object store has not heard of it.
    for size in [1000, 40 << 20] {
        let client = begin(&app, &vec![7; size]).await;
        if size > 1000 {
            let begun = async || stored(&app, ".uploads");
            wait_until("an upload", begun, |uploads| uploads.len() == 1).await;
        }
        drop(client);
        nothing_is_left(&app).await;
    }
    // Nor does one that turns out to be wrong after its content.
    let large = vec![7; 20 << 20];
    let part = ("name=\"file\"; filename=\"a\"", &large[..]);
    for parts in [[part, ("name=\"other\"", b"x")], [part, part]] {
        let refused = answer(put(&app, form(&parts))).await;
        assert_eq!(refused.status, 422, "{refused}");
        nothing_is_left(&app).await;
    }
    assert_eq!(app.get("/v0/files").await.text(), "[]");
    // Nor one that the service leaves by itself.
    let _client = begin(&app, &large).await;
    let begun = async || stored(&app, ".uploads");
    wait_until("an upload", begun, |uploads| uploads.len() == 1).await;
    let data = app.stop().await;
    let left = std::fs::read_dir(data.path().join("objects/.uploads")).unwrap().count();
    assert_eq!(left, 0);
}
