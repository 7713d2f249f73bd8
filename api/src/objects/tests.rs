use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use reqwest::StatusCode;
use reqwest::header::{CONTENT_DISPOSITION, CONTENT_RANGE, CONTENT_TYPE, ETAG, RANGE};
use tempfile::TempDir;
use tokio::io::{AsyncWriteExt, ReadBuf};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::embedded::{self, Embedded};
use super::*;

const KEY: &str = "files/0190a1b2";

/// An embedded endpoint on a free port with a folder of its own.
struct Endpoint {
    root: TempDir,
    objects: Objects,
    location: Location,
    stop: CancellationToken,
    running: JoinSet<()>,
}

impl Endpoint {
    async fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap()).await
    }

    async fn start_in(root: TempDir) -> Self {
        let credentials = embedded::credentials(root.path()).unwrap();
        let embedded = Embedded::open(&root.path().join("s3"), &credentials).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, mut running) = (CancellationToken::new(), JoinSet::new());
        running.spawn(embedded.run(listener, stop.clone()));
        let location = Location {
            endpoint: format!("http://127.0.0.1:{port}"),
            public_endpoint: format!("http://localhost:{port}"),
            bucket: "solverd".into(),
            region: "eu-central-1".into(),
            access_key_id: credentials.access_key_id,
            secret_access_key: credentials.secret_access_key,
        };
        let objects = Objects::connect(&location).await.unwrap();
        Self { root, objects, location, stop, running }
    }

    async fn stop(mut self) -> TempDir {
        self.stop.cancel();
        self.running.join_next().await.unwrap().unwrap();
        self.root
    }

    async fn content(&self, key: &str) -> Vec<u8> {
        let mut content = Vec::new();
        self.objects.read(key).await.unwrap().read_to_end(&mut content).await.unwrap();
        content
    }

    /// Every file below the root, without the lock.
    fn files(&self) -> Vec<String> {
        let (root, mut found) = (self.root.path().join("s3"), Vec::new());
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.file_name().unwrap() != ".lock" {
                    found.push(path.strip_prefix(&root).unwrap().display().to_string());
                }
            }
        }
        found.sort();
        found
    }
}

/// Bytes that differ from part to part.
fn bytes(size: u64) -> Bytes {
    let mut state = 0x9e37_79b9_u32;
    let words = usize::try_from(size).unwrap().div_ceil(4);
    let mut content = BytesMut::with_capacity(words * 4);
    for _ in 0..words {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        content.extend_from_slice(&state.to_be_bytes());
    }
    content.truncate(usize::try_from(size).unwrap());
    content.freeze()
}

fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

/// As clients do it: no header but the content length. Answers the `ETag`, with quotes.
async fn upload(url: &str, content: Bytes) -> String {
    let answer = reqwest::Client::new().put(url).body(content).send().await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    answer.headers()[ETAG].to_str().unwrap().to_owned()
}

async fn upload_parts(plan: &UploadPlan, content: &Bytes) -> Vec<(i32, String)> {
    let chunk = usize::try_from(plan.chunk_size).unwrap();
    let mut uploads = JoinSet::new();
    for (index, url) in plan.urls.iter().enumerate().rev() {
        let part = content.slice(index * chunk..content.len().min((index + 1) * chunk));
        let (number, url) = (part_number(index as u64 + 1), url.clone());
        uploads.spawn(async move { (number, upload(&url, part).await) });
    }
    uploads.join_all().await
}

#[tokio::test]
async fn small_files_are_one_part() {
    let s3 = Endpoint::start().await;
    for size in [1, 5 * MIB] {
        let (content, key) = (bytes(size), format!("files/{size}"));
        let plan = s3.objects.upload_plan(&key, size).await.unwrap();
        assert_eq!((plan.chunk_size, plan.urls.len()), (size, 1));
        assert!(plan.urls[0].starts_with(&s3.location.public_endpoint), "{}", plan.urls[0]);
        assert!(plan.urls[0].contains("X-Amz-SignedHeaders=host&"), "{}", plan.urls[0]);
        assert!(!plan.urls[0].contains("checksum"), "{}", plan.urls[0]);

        let (upload_id, e_tag) =
            (plan.upload_id.as_deref(), upload(&plan.urls[0], content.clone()).await);
        let complete = |parts| s3.objects.complete_upload(&key, size, upload_id, parts);
        let none = complete(vec![]).await.unwrap_err();
        assert_eq!(none.to_string(), "part 1 of 1 is missing");
        let stat = complete(vec![(1, e_tag.clone())]).await.unwrap();
        assert_eq!(stat, Stat { size, e_tag: e_tag.trim_matches('"').to_owned() });
        assert_eq!(complete(vec![(1, e_tag)]).await.unwrap(), stat);
        assert_eq!(s3.objects.stat(&key).await.unwrap(), Some(stat));
        assert!(s3.content(&key).await == content);
    }
}

#[tokio::test]
async fn links_end_with_the_upload() {
    let s3 = Endpoint::start().await;
    let (content, other) = (bytes(1000), Bytes::from(vec![b'x'; 1000]));
    let size = content.len() as u64;
    let plan = s3.objects.upload_plan(KEY, size).await.unwrap();
    let upload_id = plan.upload_id.as_deref();
    let parts = upload_parts(&plan, &content).await;
    // Sent in between, it does not slip in: the ETag tells which content is meant.
    let slipped = upload(&plan.urls[0], other.clone()).await;
    let stat = s3.objects.complete_upload(KEY, size, upload_id, parts).await.unwrap();

    let late = reqwest::Client::new().put(&plan.urls[0]).body(other).send().await.unwrap();
    assert_eq!(late.status(), StatusCode::NOT_FOUND);
    assert!(late.text().await.unwrap().contains("NoSuchUpload"));
    let again = s3.objects.complete_upload(KEY, size, upload_id, vec![(1, slipped)]).await;
    assert_eq!(again.unwrap(), stat);
    assert_eq!(s3.objects.stat(KEY).await.unwrap(), Some(stat));
    assert!(s3.content(KEY).await == content);
    assert_eq!(s3.files().len(), 3, "an object and two notes: {:?}", s3.files());
}

#[tokio::test]
async fn an_empty_file_needs_no_put() {
    let s3 = Endpoint::start().await;
    let plan = s3.objects.upload_plan(KEY, 0).await.unwrap();
    assert_eq!((plan.chunk_size, plan.urls.len(), plan.upload_id), (1, 0, None));
    let stat = s3.objects.complete_upload(KEY, 0, None, vec![]).await.unwrap();
    assert_eq!(stat, Stat { size: 0, e_tag: "d41d8cd98f00b204e9800998ecf8427e".into() });
    assert_eq!(s3.objects.complete_upload(KEY, 0, None, vec![]).await.unwrap(), stat);
    assert!(s3.content(KEY).await.is_empty());
}

#[tokio::test]
async fn large_files_come_in_parts() {
    let s3 = Endpoint::start().await;
    let content = bytes(143 * MIB);
    let size = content.len() as u64;
    let plan = s3.objects.upload_plan(KEY, size).await.unwrap();
    assert_eq!((plan.chunk_size, plan.urls.len()), (10 * MIB, 15));
    let (upload_id, parts) = (plan.upload_id.as_deref(), upload_parts(&plan, &content).await);

    let complete = || s3.objects.complete_upload(KEY, size, upload_id, parts.clone());
    // Broken off half-way, as by a crash, it can be done again; twice at once as well.
    let _ = tokio::time::timeout(Duration::from_millis(50), complete()).await;
    let (first, second) = tokio::join!(complete(), complete());
    let stat = first.unwrap();
    assert_eq!(second.unwrap(), stat);
    assert_eq!(complete().await.unwrap(), stat);
    assert_eq!(stat.size, size);
    assert_eq!(sha256(&s3.content(KEY).await), sha256(&content));
    assert_eq!(s3.files().len(), 3, "an object and two notes: {:?}", s3.files());

    let link = s3.objects.presign_get(KEY, "a.bin", None).await.unwrap();
    let range = |range: &str| reqwest::Client::new().get(&link).header(RANGE, range).send();
    let part = range("bytes=10485759-10485760").await.unwrap();
    assert_eq!(part.status(), StatusCode::PARTIAL_CONTENT);
    assert_eq!(part.headers()[CONTENT_RANGE], format!("bytes 10485759-10485760/{size}"));
    assert_eq!(part.bytes().await.unwrap(), content[10_485_759..=10_485_760]);
    let tail = range("bytes=-3000000").await.unwrap().bytes().await.unwrap();
    assert!(tail == content[content.len() - 3_000_000..]);
    assert_eq!(
        range(&format!("bytes={size}-")).await.unwrap().status(),
        StatusCode::RANGE_NOT_SATISFIABLE
    );
}

#[tokio::test]
async fn bad_parts_leave_the_upload_open_even_across_a_restart() {
    let mut s3 = Endpoint::start().await;
    let content = bytes(100 * MIB);
    let size = content.len() as u64;
    let plan = s3.objects.upload_plan(KEY, size).await.unwrap();
    let upload_id = plan.upload_id.as_deref();
    let first_nine = UploadPlan { urls: plan.urls[..9].to_vec(), ..plan.clone() };
    let parts = upload_parts(&first_nine, &content).await;
    let with = |number, e_tag: &str| [&parts[..], &[(number, e_tag.to_owned())]].concat();

    for (parts, complaint) in [
        (parts.clone(), "part 10 of 10 is missing"),
        (with(11, "0"), "part 10 of 10 is missing"),
        (with(9, "0"), "part 9 is named twice or not one of 1 to 10"),
        (with(0, "0"), "part 0 is named twice or not one of 1 to 10"),
        (with(10, "0123"), "Part 10 has not been uploaded, or its ETag is another one"),
        (with(10, "../../x"), "Part 10 has not been uploaded, or its ETag is another one"),
    ] {
        let outcome = s3.objects.complete_upload(KEY, size, upload_id, parts).await;
        assert_eq!(outcome.unwrap_err().to_string(), complaint);
    }
    let root = s3.stop().await;
    s3 = Endpoint::start_in(root).await;

    let link = s3.objects.links.upload_part().bucket("solverd").key(KEY).part_number(10);
    let link = link
        .upload_id(upload_id.unwrap())
        .presigned(PresigningConfig::expires_in(UPLOAD_LINK_LIFE).unwrap());
    let last = upload(link.await.unwrap().uri(), content.slice(90 << 20..)).await;
    s3.objects.complete_upload(KEY, size, upload_id, with(10, &last)).await.unwrap();
    assert_eq!(sha256(&s3.content(KEY).await), sha256(&content));
}

#[tokio::test]
async fn sizes_are_compared() {
    let s3 = Endpoint::start().await;
    let missing = s3.objects.complete_upload(KEY, 12, None, vec![]).await;
    assert!(matches!(missing, Err(Error::NotUploaded)), "{missing:?}");
    let plan = s3.objects.upload_plan(KEY, 12).await.unwrap();
    let parts = vec![(1, upload(&plan.urls[0], bytes(11)).await)];
    for _ in 0..2 {
        let upload_id = plan.upload_id.as_deref();
        match s3.objects.complete_upload(KEY, 12, upload_id, parts.clone()).await {
            Err(Error::SizeMismatch { declared, found }) => assert_eq!((declared, found), (12, 11)),
            other => panic!("{other:?}"),
        }
    }
    let empty = s3.objects.complete_upload(KEY, 0, None, vec![]).await;
    assert!(matches!(empty, Err(Error::SizeMismatch { found: 11, .. })), "{empty:?}");
}

#[tokio::test]
async fn what_is_forgotten_is_gone_and_may_be_forgotten_again() {
    let s3 = Endpoint::start().await;
    let plan = s3.objects.upload_plan(KEY, 100 * MIB).await.unwrap();
    let upload_id = plan.upload_id.as_deref();
    let e_tag = upload(&plan.urls[3], bytes(MIB)).await;
    let small = s3.objects.upload_plan("files/small", 3).await.unwrap();
    upload(&small.urls[0], bytes(3)).await;
    s3.objects.complete_upload("files/empty", 0, None, vec![]).await.unwrap();
    s3.objects.put("files/whole", Bytes::from_static(b"whole")).await.unwrap();
    for _ in 0..2 {
        s3.objects.end_upload(KEY, upload_id.unwrap()).await.unwrap();
        s3.objects.forget("files/small", small.upload_id.as_deref()).await;
        s3.objects.forget("files/empty", None).await;
        s3.objects.end_upload("files/whole", upload_id.unwrap()).await.unwrap();
    }
    assert_eq!(s3.content("files/whole").await, b"whole", "an object is no upload");
    s3.objects.forget("files/whole", None).await;
    assert_eq!(s3.files(), [""; 0]);
    let parts = (1..=10).map(|number| (number, e_tag.clone())).collect();
    let completed = s3.objects.complete_upload(KEY, 100 * MIB, upload_id, parts).await;
    assert!(matches!(completed, Err(Error::NotUploaded)), "{completed:?}");
}

#[tokio::test]
async fn links_name_the_file_and_nothing_works_without_them() {
    let s3 = Endpoint::start().await;
    s3.objects.put(KEY, Bytes::from_static(b"hello")).await.unwrap();
    let link = s3.objects.presign_get(KEY, "a \"b\"/ü%.txt", Some("text/plain")).await.unwrap();
    let answer = reqwest::get(&link).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()[CONTENT_TYPE], "text/plain");
    let disposition =
        r#"attachment; filename="a _b____.txt"; filename*=UTF-8''a%20%22b%22%2F%C3%BC%25.txt"#;
    assert_eq!(answer.headers()[CONTENT_DISPOSITION], disposition);
    assert_eq!(answer.text().await.unwrap(), "hello");

    let plain = link.split('?').next().unwrap();
    let client = reqwest::Client::new();
    for request in [
        client.get(plain),
        client.put(plain).body("x"),
        client.delete(plain),
        client.delete(&link),
        client.get(link.replace(KEY, "files/other")),
        client.get(link.replace("text%2Fplain", "text%2Fhtml")),
        client.get(&s3.location.endpoint),
    ] {
        assert_eq!(request.send().await.unwrap().status(), StatusCode::FORBIDDEN);
    }
    assert_eq!(s3.content(KEY).await, b"hello");
}

#[tokio::test]
async fn keys_stay_in_their_bucket() {
    let s3 = Endpoint::start().await;
    for key in ["../other/x", "a/../../x", "a//b", "/a", "a/", "./a"] {
        s3.objects.put(key, Bytes::from_static(b"x")).await.expect_err(key);
        s3.objects.read(key).await.err().expect(key);
        s3.objects.stat(key).await.expect_err(key);
    }
    assert_eq!(s3.files(), [""; 0]);
}

#[tokio::test]
async fn streams_are_hashed_on_the_way() {
    let s3 = Endpoint::start().await;
    for size in [0, 1, 16 * MIB, 40 * MIB] {
        let (content, key) = (bytes(size), format!("jobs/{size}/out"));
        let stored = s3.objects.put_stream(&key, &content[..]).await.unwrap();
        assert_eq!((stored.size, &stored.sha256), (size, &sha256(&content)));
        assert_eq!(
            s3.objects.stat(&key).await.unwrap().unwrap(),
            Stat { size, e_tag: stored.e_tag }
        );
        assert!(s3.content(&key).await == content);
    }
}

#[tokio::test]
async fn a_stream_that_breaks_leaves_nothing() {
    struct Breaks;
    impl AsyncRead for Breaks {
        fn poll_read(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
        }
    }
    let s3 = Endpoint::start().await;
    let content = bytes(20 * MIB);
    for length in [5, content.len()] {
        let stored = s3.objects.put_stream(KEY, content[..length].chain(Breaks)).await;
        assert!(matches!(stored, Err(Error::Content(_))), "{stored:?}");
    }
    s3.objects.finish().await;
    assert_eq!(s3.files(), [""; 0]);
    assert_eq!(s3.objects.stat(KEY).await.unwrap(), None);
}

#[tokio::test]
async fn a_stream_that_is_given_up_leaves_nothing() {
    let s3 = Endpoint::start().await;
    let (content, (mut sender, receiver)) = (bytes(20 * MIB), tokio::io::duplex(1 << 20));
    tokio::select! {
        stored = s3.objects.put_stream(KEY, receiver) => panic!("{stored:?}"),
        sent = sender.write_all(&content) => sent.unwrap(),
    }
    assert_ne!(s3.files(), [""; 0], "the first part is there");
    s3.objects.finish().await;
    assert_eq!(s3.files(), [""; 0]);
}

#[tokio::test]
async fn deleting_twice_is_fine_and_leaves_nothing() {
    let s3 = Endpoint::start().await;
    let missing = s3.objects.read("jobs/1/log.zip").await.err().unwrap();
    assert!(matches!(&missing, Error::NotFound { key } if key == "jobs/1/log.zip"), "{missing:?}");
    s3.objects.put("jobs/1/log.zip", bytes(10)).await.unwrap();
    s3.objects.put("jobs/1/outputs/a", bytes(10)).await.unwrap();
    for _ in 0..2 {
        s3.objects.delete("jobs/1/log.zip").await.unwrap();
    }
    assert_eq!(s3.objects.stat("jobs/1/log.zip").await.unwrap(), None);
    assert_eq!(s3.content("jobs/1/outputs/a").await, bytes(10));
    s3.objects.delete("jobs/1/outputs/a").await.unwrap();
    assert_eq!(s3.files(), [""; 0]);
    let bucket = s3.root.path().join("s3/solverd");
    assert!(bucket.join("jobs").is_dir() && !bucket.join("jobs/1").exists());
}

#[tokio::test]
async fn one_owner_per_folder() {
    let s3 = Endpoint::start().await;
    let folder = s3.root.path().join("s3");
    let credentials = embedded::credentials(s3.root.path()).unwrap();
    s3.objects.put(KEY, bytes(1)).await.unwrap();
    let second = Embedded::open(&folder, &credentials).unwrap_err();
    assert!(matches!(second, embedded::Error::InUse { .. }), "{second:?}");

    let root = s3.stop().await;
    let again = Endpoint::start_in(root).await;
    assert_eq!(again.content(KEY).await, bytes(1));
    Objects::connect(&again.location).await.unwrap();
}

#[tokio::test]
async fn stopping_lets_downloads_finish() {
    let s3 = Endpoint::start().await;
    let content = bytes(30 * MIB);
    s3.objects.put(KEY, content.clone()).await.unwrap();
    let mut download =
        reqwest::get(s3.objects.presign_get(KEY, "a", None).await.unwrap()).await.unwrap();
    let mut received = BytesMut::from(&download.chunk().await.unwrap().unwrap()[..]);
    s3.stop.cancel();
    while let Some(chunk) = download.chunk().await.unwrap() {
        received.extend_from_slice(&chunk);
    }
    assert!(received == content);
    let began = Instant::now();
    s3.stop().await;
    assert!(began.elapsed() < Duration::from_secs(5), "idle connections do not wait");
}

#[tokio::test]
async fn an_endpoint_that_is_away_is_unavailable() {
    let s3 = Endpoint::start().await;
    let (objects, location) = (s3.objects.clone(), s3.location.clone());
    s3.stop().await;
    let put = objects.put(KEY, bytes(1)).await.unwrap_err();
    assert_eq!(put.to_string(), "the object store failed to write an object");
    let connect = Objects::connect(&location).await.unwrap_err();
    assert_eq!(connect.to_string(), "the object store failed to find the bucket");
    assert!(!format!("{location:?}").contains(location.secret_access_key.expose()));
}

#[test]
fn keys_are_made_once_and_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let data_dir = folder.path().join("data");
    let first = embedded::credentials(&data_dir).unwrap();
    assert_eq!(first.secret_access_key.expose().len(), 64);
    assert!(!format!("{first:?}").contains(first.secret_access_key.expose()));
    assert_eq!(
        embedded::credentials(&data_dir).unwrap().secret_access_key,
        first.secret_access_key
    );
    let mode = std::fs::metadata(data_dir.join("s3-credentials")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn parts_grow_with_the_file() {
    for (size, part) in [
        (0, 1),
        (1, 1),
        (100 * MIB - 1, 100 * MIB - 1),
        (100 * MIB, 10 * MIB),
        (10 * MIB * 9_999, 10 * MIB),
        (10 * MIB * 9_999 + 1, 50 * MIB),
        (LARGEST_PUT * 9_999, LARGEST_PUT),
    ] {
        assert_eq!(part_size(size).unwrap(), part, "{size}");
    }
    let too_large = part_size(LARGEST_PUT * 9_999 + 1);
    assert!(
        matches!(too_large, Err(Error::TooLarge { limit, .. }) if limit == LARGEST_PUT * 9_999)
    );
    assert_eq!((stream_part_size(2000) / MIB, stream_part_size(2001) / MIB), (16, 32));
    assert_eq!(stream_part_size(9_999) / MIB, 256);
    assert_eq!((1..=9_999).map(stream_part_size).sum::<u64>(), LONGEST_STREAM);
}
