//! Objects: the bytes of files, outputs and logs, kept in a store that speaks S3.
//!
//! [`Objects`] is the only way to them. It knows keys and bytes, not files, jobs or users: whoever
//! calls it has checked the right to the key. Large bytes do not pass through here: clients get
//! presigned links and talk to the store. A service without an S3 of its own serves one itself, see
//! [`embedded`].

pub mod embedded;

use std::fmt::{self, Write as _};
use std::io;
use std::time::Duration;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    BehaviorVersion, Config, Credentials, Region, RequestChecksumCalculation,
    ResponseChecksumValidation, SharedHttpClient,
};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::head_object::HeadObjectError;
use aws_sdk_s3::presigning::PresigningConfig;
use aws_sdk_s3::types::{
    BucketLocationConstraint, CompletedMultipartUpload, CompletedPart, CreateBucketConfiguration,
};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use bytes::{Bytes, BytesMut};
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::domain::user::hex;
use crate::report::chain;

const MIB: u64 = 1 << 20;

/// Uploads below this size are one part. Part sizes, limit and threshold are those oSPARC's clients
/// know.
const SEVERAL_PARTS_FROM: u64 = 100 * MIB;
const PART_SIZES_MIB: [u64; 12] = [10, 50, 100, 200, 400, 600, 800, 1024, 2048, 3072, 4096, 5120];
const MOST_PARTS: u64 = 9_999;
/// The most bytes S3 takes in one request.
const LARGEST_PUT: u64 = 5120 * MIB;

/// The most bytes that [`Objects::put_stream`] takes: 2000 parts of each of four sizes, and the rest.
pub const LONGEST_STREAM: u64 = (2000 * (16 + 32 + 64 + 128) + (MOST_PARTS - 8000) * 256) * MIB;

/// All links of an upload are made at its start, so the last one has to outlive a slow line.
const UPLOAD_LINK_LIFE: Duration = Duration::from_hours(12);
const DOWNLOAD_LINK_LIFE: Duration = Duration::from_hours(1);

/// How long the store may take to begin its answer. The SDK itself would wait for ever.
const ANSWER_WITHIN: Duration = Duration::from_mins(2);
/// Putting the parts together copies every byte in some stores. Clients give up on it after 30
/// minutes.
const COMPLETE_WITHIN: Duration = Duration::from_mins(29);

/// How long a shutdown waits for what has to be taken back.
const FINISH_WITHIN: Duration = Duration::from_secs(5);

/// What went wrong, in the terms of whoever asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An upload was to be completed, but the store holds nothing under its key.
    #[error("nothing has been uploaded")]
    NotUploaded,
    /// Sizes are in bytes.
    #[error("{declared} bytes were declared, but {found} bytes have been uploaded")]
    SizeMismatch { declared: u64, found: u64 },
    /// The parts named do not make up the upload, which stays open: it can be completed once they
    /// are put right.
    #[error("{0}")]
    BadParts(String),
    /// Sizes are in bytes.
    #[error("{size} bytes are too many, the limit is {limit}")]
    TooLarge { size: u64, limit: u64 },
    #[error("there is no object {key}")]
    NotFound { key: String },
    /// The source of the bytes failed, not the store.
    #[error("the content could not be read to its end")]
    Content(#[source] io::Error),
    /// The store cannot be reached, refuses us or fails. Worth trying again later.
    #[error("the object store failed to {doing}")]
    Unavailable { doing: &'static str, source: Box<dyn std::error::Error + Send + Sync> },
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

fn unavailable<E: std::error::Error + Send + Sync + 'static>(
    doing: &'static str,
) -> impl FnOnce(E) -> Error {
    move |source| Error::Unavailable { doing, source: Box::new(source) }
}

/// Text that stays out of logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Where the objects are, and the keys to them.
#[derive(Debug, Clone)]
pub struct Location {
    /// Base URL for our own calls, `http` or `https`.
    pub endpoint: String,
    /// Base URL that presigned links carry. A link is signed for its host, so this is what clients
    /// really connect to.
    pub public_endpoint: String,
    pub bucket: String,
    pub region: String,
    pub access_key_id: String,
    pub secret_access_key: Secret,
}

/// How a client uploads: PUT the bytes to `urls` in order, `chunk_size` bytes each, the last one
/// shorter. Nothing is sent for an empty file, which has no `urls`.
#[derive(Debug, Clone)]
pub struct UploadPlan {
    /// In bytes, never 0.
    pub chunk_size: u64,
    /// Presigned PUT links, valid for 12 hours at most: they end with the upload. They expect no
    /// header but `Content-Length`.
    pub urls: Vec<String>,
    /// `None` for an empty file. To be kept until the upload is completed or aborted.
    pub upload_id: Option<String>,
}

/// What the store knows about an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// In bytes.
    pub size: u64,
    /// Without quotes.
    pub e_tag: String,
}

/// What became of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// In bytes.
    pub size: u64,
    /// Lower-case hex.
    pub sha256: String,
    /// Without quotes.
    pub e_tag: String,
}

/// One bucket of an S3 store. Clones share their connections.
#[derive(Debug, Clone)]
pub struct Objects {
    calls: Client,
    /// Only signs, never connects.
    links: Client,
    bucket: String,
    /// Take back what was sent of streams that broke off.
    ending: TaskTracker,
}

impl Objects {
    /// Looks for the bucket and creates it when it is missing.
    pub async fn connect(location: &Location) -> Result<Self> {
        let Location { endpoint, public_endpoint, bucket, region, .. } = location;
        let calls = Client::from_conf(config(location, endpoint));
        let links = Client::from_conf(config(location, public_endpoint));
        let objects = Self { calls, links, bucket: bucket.clone(), ending: TaskTracker::new() };
        match objects.calls.head_bucket().bucket(bucket).send().await {
            Ok(_) => return Ok(objects),
            Err(error) if is_missing(&error) => {}
            Err(error) => return Err(unavailable("find the bucket")(error)),
        }
        // us-east-1 is the one region that must not be named.
        let place = (region != "us-east-1").then(|| {
            CreateBucketConfiguration::builder()
                .location_constraint(BucketLocationConstraint::from(&**region))
                .build()
        });
        let created = objects
            .calls
            .create_bucket()
            .bucket(bucket)
            .set_create_bucket_configuration(place)
            .send()
            .await;
        if let Err(error) = created {
            // Another instance may have been quicker. When the bucket is somebody else's, looking
            // at it fails.
            let there = objects.calls.head_bucket().bucket(bucket).send().await.is_ok();
            if !there {
                return Err(unavailable("create the bucket")(error));
            }
        }
        Ok(objects)
    }

    /// Whether the store answers and the bucket is there.
    pub async fn ping(&self) -> Result<()> {
        let asked = self.calls.head_bucket().bucket(&self.bucket).send().await;
        asked.map(drop).map_err(unavailable("find the bucket"))
    }

    /// Prepares the upload of `size` bytes by a client: one part below 100 MiB, several from there
    /// on, none for an empty file.
    ///
    /// It is a multipart upload even for one part. The link of a plain PUT would outlive the
    /// upload, and whoever has it could replace the finished object.
    pub async fn upload_plan(&self, key: &str, size: u64) -> Result<UploadPlan> {
        let life = link_life(UPLOAD_LINK_LIFE)?;
        let chunk_size = part_size(size)?;
        if size == 0 {
            return Ok(UploadPlan { chunk_size, urls: Vec::new(), upload_id: None });
        }
        let upload_id = self.begin(key).await?;
        let mut urls = Vec::new();
        for number in 1..=part_number(size.div_ceil(chunk_size)) {
            let put = self
                .links
                .upload_part()
                .bucket(&self.bucket)
                .key(key)
                .upload_id(&upload_id)
                .part_number(number);
            let put = put.presigned(life.clone()).await.map_err(unavailable("sign a link"))?;
            urls.push(put.uri().to_owned());
            // Signing never waits; thousands of links would keep other requests from this thread.
            tokio::task::consume_budget().await;
        }
        Ok(UploadPlan { chunk_size, urls, upload_id: Some(upload_id) })
    }

    /// Turns what was uploaded into an object of exactly `size` bytes; again and again with the
    /// same result.
    ///
    /// `upload_id` is the plan's. `parts` are numbers (from 1) and `ETags` (with or without quotes)
    /// in any order: all parts of the plan. For an empty file there are none, and its object is
    /// created here.
    ///
    /// # Errors
    /// [`Error::BadParts`], [`Error::NotUploaded`] and [`Error::SizeMismatch`] are the client's to
    /// mend, the latter two with a new upload: this one has ended.
    pub async fn complete_upload(
        &self,
        key: &str,
        size: u64,
        upload_id: Option<&str>,
        parts: Vec<(i32, String)>,
    ) -> Result<Stat> {
        if let Some(upload_id) = upload_id {
            self.complete(key, upload_id, completed_parts(size, parts)?).await?;
        }
        match self.expect(key, size).await {
            Err(Error::NotUploaded) if size == 0 => self.put(key, Bytes::new()).await,
            outcome => outcome,
        }
    }

    /// Ends an upload: what was sent so far goes, and nothing more is taken. A completed object
    /// stays. Doing it twice is fine.
    pub async fn end_upload(&self, key: &str, upload_id: &str) -> Result<()> {
        let abort =
            self.calls.abort_multipart_upload().bucket(&self.bucket).key(key).upload_id(upload_id);
        match abort.send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("NoSuchUpload") => Ok(()),
            Err(error) => Err(unavailable("end an upload")(error)),
        }
    }

    /// Deletes an object that no row names any more, and ends the upload that was to become it.
    /// Nobody can reach either: that one stays behind is told to the log only.
    pub async fn forget(&self, key: &str, upload_id: Option<&str>) {
        let forgotten = async {
            if let Some(upload_id) = upload_id {
                self.end_upload(key, upload_id).await?;
            }
            // An upload may have become an object meanwhile.
            self.delete(key).await
        };
        if let Err(error) = forgotten.await {
            tracing::warn!(key, error = chain(&error), "an object that nobody needs stays behind");
        }
    }

    /// A link, valid for an hour, that downloads the object as an attachment called `filename`.
    /// The object need not exist. `content_type` overrides the stored one.
    pub async fn presign_get(
        &self,
        key: &str,
        filename: &str,
        content_type: Option<&str>,
    ) -> Result<String> {
        let life = link_life(DOWNLOAD_LINK_LIFE)?;
        let get = self.links.get_object().bucket(&self.bucket).key(key);
        let get = get.response_content_disposition(attachment(filename));
        let get = get.set_response_content_type(content_type.map(str::to_owned));
        let get = get.presigned(life).await.map_err(unavailable("sign a link"))?;
        Ok(get.uri().to_owned())
    }

    /// Size and `ETag`, or `None` when there is no such object.
    pub async fn stat(&self, key: &str) -> Result<Option<Stat>> {
        match self.calls.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(head) => {
                let size = head.content_length().and_then(|size| u64::try_from(size).ok());
                let size = size.ok_or_else(|| Error::Unavailable {
                    doing: "look at an object",
                    source: "the answer has no content length".into(),
                })?;
                Ok(Some(Stat { size, e_tag: unquoted(head.e_tag()) }))
            }
            Err(error) if error.as_service_error().is_some_and(HeadObjectError::is_not_found) => {
                Ok(None)
            }
            Err(error) => Err(unavailable("look at an object")(error)),
        }
    }

    /// The bytes of an object, as they arrive from the store.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such object.
    pub async fn read(&self, key: &str) -> Result<impl AsyncRead + Send + Unpin + use<>> {
        match self.calls.get_object().bucket(&self.bucket).key(key).send().await {
            Ok(object) => Ok(Box::pin(object.body.into_async_read())),
            Err(error) if error.code() == Some("NoSuchKey") => {
                Err(Error::NotFound { key: key.to_owned() })
            }
            Err(error) => Err(unavailable("read an object")(error)),
        }
    }

    /// Writes a small object, replacing the one that may be there.
    pub async fn put(&self, key: &str, content: Bytes) -> Result<Stat> {
        let size = content.len() as u64;
        let put = self.calls.put_object().bucket(&self.bucket).key(key).body(content.into());
        let put = put.send().await.map_err(unavailable("write an object"))?;
        Ok(Stat { size, e_tag: unquoted(put.e_tag()) })
    }

    /// Writes all of `content`, whose size nobody needs to know, and hashes it on the way.
    ///
    /// Keeps one part in memory: 16 MiB for what is smaller than 31 GiB, at most 256 MiB. Takes up
    /// to [`LONGEST_STREAM`]. The object appears whole or not at all, also when the caller
    /// stops waiting half-way.
    pub async fn put_stream(
        &self,
        key: &str,
        mut content: impl AsyncRead + Send + Unpin,
    ) -> Result<Stored> {
        let mut digest = Sha256::new();
        let first = read_part(&mut content, 1, &mut digest).await?;
        let stat = if (first.len() as u64) < stream_part_size(1) {
            self.put(key, first).await?
        } else {
            let upload_id = self.begin(key).await?;
            let (whole, broken_off) = oneshot::channel::<()>();
            let (objects, name, id) = (self.clone(), key.to_owned(), upload_id.clone());
            self.ending.spawn(async move {
                if broken_off.await.is_err()
                    && let Err(left) = objects.end_upload(&name, &id).await
                {
                    tracing::warn!(key = name, error = %left, "parts stay in the object store");
                }
            });
            let stat = self.put_parts(key, &upload_id, first, content, &mut digest).await?;
            let _ = whole.send(());
            stat
        };
        Ok(Stored { size: stat.size, sha256: hex(&digest.finalize()), e_tag: stat.e_tag })
    }

    /// Waits until what was sent of streams that broke off has been taken back; not for a store
    /// that is away.
    pub async fn finish(&self) {
        self.ending.close();
        if timeout(FINISH_WITHIN, self.ending.wait()).await.is_err() {
            tracing::warn!("parts of objects that nobody needs stay in the object store");
        }
    }

    async fn put_parts(
        &self,
        key: &str,
        upload_id: &str,
        first: Bytes,
        mut content: impl AsyncRead + Send + Unpin,
        digest: &mut Sha256,
    ) -> Result<Stat> {
        let (mut part, mut size, mut number, mut parts) = (first, 0, 1, Vec::new());
        while !part.is_empty() {
            size += part.len() as u64;
            if number > part_number(MOST_PARTS) {
                return Err(Error::TooLarge { size, limit: LONGEST_STREAM });
            }
            let put = self
                .calls
                .upload_part()
                .bucket(&self.bucket)
                .key(key)
                .upload_id(upload_id)
                .part_number(number);
            let put = put
                .body(part.into())
                .send()
                .await
                .map_err(unavailable("write a part of an object"))?;
            parts.push(CompletedPart::builder().part_number(number).set_e_tag(put.e_tag).build());
            number += 1;
            part = read_part(&mut content, number, digest).await?;
        }
        self.complete(key, upload_id, parts).await?;
        self.expect(key, size).await
    }

    /// Deletes an object. One that is not there is as good as deleted.
    pub async fn delete(&self, key: &str) -> Result<()> {
        match self.calls.delete_object().bucket(&self.bucket).key(key).send().await {
            Ok(_) => Ok(()),
            Err(error) if error.code() == Some("NoSuchKey") => Ok(()),
            Err(error) => Err(unavailable("delete an object")(error)),
        }
    }

    async fn begin(&self, key: &str) -> Result<String> {
        let begun = self.calls.create_multipart_upload().bucket(&self.bucket).key(key).send().await;
        let begun = begun.map_err(unavailable("begin an upload"))?;
        begun.upload_id.ok_or_else(|| Error::Unavailable {
            doing: "begin an upload",
            source: "the answer has no upload id".into(),
        })
    }

    async fn complete(&self, key: &str, upload_id: &str, parts: Vec<CompletedPart>) -> Result<()> {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts)).build();
        let complete = self
            .calls
            .complete_multipart_upload()
            .bucket(&self.bucket)
            .key(key)
            .upload_id(upload_id);
        let patience = TimeoutConfig::builder().read_timeout(COMPLETE_WITHIN).build();
        let complete = complete.multipart_upload(parts).customize();
        let complete = complete.config_override(Config::builder().timeout_config(patience));
        let Err(error) = complete.send().await else { return Ok(()) };
        match error.code() {
            // Completed before and the answer was lost, or aborted: the object tells which.
            Some("NoSuchUpload") => Ok(()),
            Some(code @ ("InvalidPart" | "InvalidPartOrder" | "EntityTooSmall")) => {
                Err(Error::BadParts(error.message().unwrap_or(code).to_owned()))
            }
            _ => Err(unavailable("complete an upload")(error)),
        }
    }

    async fn expect(&self, key: &str, size: u64) -> Result<Stat> {
        match self.stat(key).await? {
            Some(stat) if stat.size == size => Ok(stat),
            Some(stat) => Err(Error::SizeMismatch { declared: size, found: stat.size }),
            None => Err(Error::NotUploaded),
        }
    }
}

fn config(location: &Location, endpoint: &str) -> Config {
    let Location { region, access_key_id, secret_access_key, .. } = location;
    let keys = Credentials::new(access_key_id, secret_access_key.expose(), None, None, "settings");
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        .read_timeout(ANSWER_WITHIN)
        .build();
    Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .endpoint_url(endpoint)
        .force_path_style(true)
        .region(Region::new(region.clone()))
        .credentials_provider(keys)
        .http_client(http_client(endpoint.starts_with("https:")))
        .retry_config(RetryConfig::standard())
        .timeout_config(timeouts)
        // Otherwise links would demand a checksum that their users cannot know of.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .build()
}

/// The SDK's own client brings a second TLS library. Without `https` no certificates are loaded
/// either: there may be none, on which the client panics in debug builds.
fn http_client(tls: bool) -> SharedHttpClient {
    let trust = if tls { TrustStore::default() } else { TrustStore::empty() };
    let builder =
        aws_smithy_http_client::Builder::new().tls_provider(Provider::rustls(CryptoMode::Ring));
    match TlsContext::builder().with_trust_store(trust).build() {
        Ok(context) => builder.tls_context(context).build_https(),
        Err(_) => builder.build_https(),
    }
}

fn link_life(life: Duration) -> Result<PresigningConfig> {
    PresigningConfig::expires_in(life).map_err(unavailable("sign a link"))
}

fn is_missing<E>(error: &SdkError<E>) -> bool {
    error.raw_response().is_some_and(|answer| answer.status().as_u16() == 404)
}

/// The size of the parts of an upload. Never 0, as clients divide by it.
fn part_size(size: u64) -> Result<u64> {
    if size < SEVERAL_PARTS_FROM {
        return Ok(size.max(1));
    }
    let mut sizes = PART_SIZES_MIB.into_iter().map(|mib| mib * MIB);
    let fitting = sizes.find(|part| size.div_ceil(*part) <= MOST_PARTS);
    fitting.ok_or(Error::TooLarge { size, limit: MOST_PARTS * LARGEST_PUT })
}

/// Doubles every 2000 parts, so that any stream fits into the parts there are.
fn stream_part_size(number: i32) -> u64 {
    (16 * MIB) << ((number - 1) / 2000)
}

/// S3 counts in `i32`; all our counts are below 10 000.
fn part_number(count: u64) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Every part of the upload once, in order. Checked here because the store would take any selection
/// of parts and the upload would be gone.
fn completed_parts(size: u64, mut parts: Vec<(i32, String)>) -> Result<Vec<CompletedPart>> {
    let expected = part_number(size.div_ceil(part_size(size)?));
    parts.sort_by_key(|(number, _)| *number);
    let missing = |number: i32| Error::BadParts(format!("part {number} of {expected} is missing"));
    for (wanted, (number, _)) in (1..).zip(&parts) {
        if wanted > expected || *number < wanted {
            let complaint = format!("part {number} is named twice or not one of 1 to {expected}");
            return Err(Error::BadParts(complaint));
        }
        if *number > wanted {
            return Err(missing(wanted));
        }
    }
    let given = part_number(parts.len() as u64);
    if given < expected {
        return Err(missing(given + 1));
    }
    let completed = |(number, e_tag): (i32, String)| {
        CompletedPart::builder()
            .part_number(number)
            .e_tag(format!("\"{}\"", e_tag.trim_matches('"')))
            .build()
    };
    Ok(parts.into_iter().map(completed).collect())
}

/// The next part of a stream: full, or short at its end, or empty after it.
async fn read_part(
    content: &mut (impl AsyncRead + Unpin),
    number: i32,
    digest: &mut Sha256,
) -> Result<Bytes> {
    let mut part = BytesMut::new();
    let mut rest = content.take(stream_part_size(number));
    loop {
        let from = part.len();
        part.reserve(64 * 1024);
        if rest.read_buf(&mut part).await.map_err(Error::Content)? == 0 {
            return Ok(part.freeze());
        }
        digest.update(&part[from..]);
    }
}

/// A `Content-Disposition` that no file name can break out of: an ASCII rendering, and the true
/// name as RFC 8187 has it.
fn attachment(filename: &str) -> String {
    let plain: String = filename
        .chars()
        .map(|c| if c.is_ascii_graphic() && !r#""\/%"#.contains(c) || c == ' ' { c } else { '_' })
        .collect();
    let mut value = format!("attachment; filename=\"{plain}\"; filename*=UTF-8''");
    for byte in filename.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
            value.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(value, "%{byte:02X}");
        }
    }
    value
}

fn unquoted(e_tag: Option<&str>) -> String {
    e_tag.unwrap_or_default().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests;
