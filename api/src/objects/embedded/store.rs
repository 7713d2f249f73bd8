//! [`Store`]: the S3 operations of the embedded endpoint. Who may call them is decided before.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::{StreamExt, TryStreamExt, stream};
use s3s::crypto::{Checksum, Md5};
use s3s::dto::{
    AbortMultipartUploadInput, AbortMultipartUploadOutput, CompleteMultipartUploadInput,
    CompleteMultipartUploadOutput, CreateBucketInput, CreateBucketOutput,
    CreateMultipartUploadInput, CreateMultipartUploadOutput, DeleteObjectInput, DeleteObjectOutput,
    ETag, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput,
    HeadObjectOutput, ListBucketsInput, ListBucketsOutput, ListObjectsV2Input, ListObjectsV2Output,
    PutObjectInput, PutObjectOutput, StreamingBlob, UploadPartInput, UploadPartOutput,
};
use s3s::{S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tempfile::NamedTempFile;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufWriter};
use tokio::sync::Mutex;
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use super::{Error, failed};
use crate::domain::user::hex;

/// s3s-fs reads 4 KiB at a time, which costs most of the disk's speed.
const CHUNK: usize = 1 << 20;
const SMALLEST_PART: u64 = 5 << 20;
/// Uploads in progress. Not a legal bucket name, so nothing in it can be reached from outside.
const UPLOADS: &str = ".uploads";

/// s3s-fs for objects, and multipart uploads of our own on top of it.
///
/// s3s-fs forgets an upload before it looks at the parts: a wrong part number, or a crash, and all
/// is lost. Here an upload is a folder, a part is a file named by number and MD5 in it, and
/// completing is one ordinary write of all parts one after the other, after which the folder goes.
#[derive(Debug)]
pub(super) struct Store {
    files: FileSystem,
    root: PathBuf,
    /// Two completions of one upload take turns, so that the second one finds it done. Uploads
    /// share them by chance.
    turns: [Mutex<()>; 64],
    _lock: File,
}

impl Store {
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let uploads = root.join(UPLOADS);
        std::fs::create_dir_all(&uploads).map_err(failed("create", &uploads))?;
        let root = root.canonicalize().map_err(failed("open", root))?;
        let lock = File::create(root.join(".lock")).map_err(failed("lock", &root))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => Error::InUse { root: root.clone() },
            TryLockError::Error(source) => failed("lock", &root)(source),
        })?;
        // Only now: opening the folder deletes the files that another process may be writing.
        let files = FileSystem::new(&root)
            .map_err(|error| failed("open", &root)(io::Error::other(format!("{error:?}"))))?;
        sweep(&uploads).map_err(failed("clean", &uploads))?;
        let turns = std::array::from_fn(|_| Mutex::new(()));
        Ok(Self { files, root, turns, _lock: lock })
    }

    fn object(&self, bucket: &str, key: &str) -> PathBuf {
        self.root.join(bucket).join(key)
    }

    /// The files beside an object in which s3s-fs keeps its `ETag` and headers.
    fn notes(&self, bucket: &str, key: &str) -> [PathBuf; 2] {
        let [bucket, key] = [bucket, key].map(|name| BASE64_URL_SAFE_NO_PAD.encode(name));
        ["internal", "metadata"]
            .map(|kind| self.root.join(format!(".bucket-{bucket}.object-{key}.{kind}.json")))
    }

    /// Puts an object on the disk for good, with its notes and the folders it is in.
    async fn settle(&self, bucket: &str, key: &str) -> S3Result<()> {
        let object = self.object(bucket, key);
        let folders =
            object.ancestors().skip(1).take_while(|folder| folder.starts_with(&self.root));
        let paths: Vec<PathBuf> = std::iter::once(object.as_path())
            .chain(folders)
            .map(Path::to_owned)
            .chain(self.notes(bucket, key))
            .collect();
        let sync = move || {
            paths.iter().try_for_each(|path| match File::open(path) {
                // Deleted meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                file => file?.sync_all(),
            })
        };
        tokio::task::spawn_blocking(sync)
            .await
            .map_err(S3Error::internal_error)?
            .map_err(S3Error::internal_error)
    }

    fn upload(&self, upload_id: &str) -> S3Result<(Uuid, PathBuf)> {
        let id = Uuid::parse_str(upload_id).map_err(|_| s3_error!(NoSuchUpload))?;
        let folder = self.root.join(UPLOADS).join(id.to_string());
        if folder.is_dir() { Ok((id, folder)) } else { Err(s3_error!(NoSuchUpload)) }
    }

    /// One rename ends an upload; deleting its files may be interrupted.
    async fn discard(&self, upload: &Path) -> io::Result<()> {
        let gone = upload.with_extension("gone");
        tokio::fs::rename(upload, &gone).await?;
        tokio::fs::remove_dir_all(gone).await
    }
}

/// Removes what a crash left of discarded uploads and unfinished parts.
fn sweep(uploads: &Path) -> io::Result<()> {
    for upload in std::fs::read_dir(uploads)? {
        let upload = upload?.path();
        if upload.extension().is_some_and(|extension| extension == "gone") {
            std::fs::remove_dir_all(upload)?;
            continue;
        }
        for part in std::fs::read_dir(upload)? {
            let part = part?;
            if part.file_name().to_string_lossy().starts_with('.') {
                std::fs::remove_file(part.path())?;
            }
        }
    }
    Ok(())
}

#[async_trait::async_trait]
impl S3 for Store {
    async fn create_bucket(
        &self,
        request: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        self.files.create_bucket(request).await
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.files.head_bucket(request).await
    }

    async fn list_buckets(
        &self,
        request: S3Request<ListBucketsInput>,
    ) -> S3Result<S3Response<ListBucketsOutput>> {
        self.files.list_buckets(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.files.list_objects_v2(request).await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        self.files.head_object(request).await
    }

    async fn get_object(
        &self,
        request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        let path = self.object(&request.input.bucket, &request.input.key);
        let range = request.input.range;
        let mut response = self.files.get_object(request).await?;

        let mut file = tokio::fs::File::open(path).await.map_err(S3Error::internal_error)?;
        let size = file.metadata().await.map_err(S3Error::internal_error)?.len();
        let bytes = range.map_or(Ok(0..size), |range| range.check(size))?;
        file.seek(io::SeekFrom::Start(bytes.start)).await.map_err(S3Error::internal_error)?;
        let length = bytes.end - bytes.start;
        let chunk = usize::try_from(length).unwrap_or(CHUNK).clamp(1, CHUNK);
        response.output.body =
            Some(StreamingBlob::wrap(ReaderStream::with_capacity(file.take(length), chunk)));
        Ok(response)
    }

    async fn put_object(
        &self,
        request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
        let response = self.files.put_object(request).await?;
        self.settle(&bucket, &key).await?;
        Ok(response)
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
        let response = self.files.delete_object(request).await?;
        // Left-overs take space but do no harm: the next object of that name replaces them.
        for note in self.notes(&bucket, &key) {
            let _ = tokio::fs::remove_file(note).await;
        }
        // `a/b/c` takes the folder `a/b` along when that is empty now. `a` stays: others may be
        // about to write there.
        let object = self.object(&bucket, &key);
        let mut above = object.ancestors().skip(1).take(key.split('/').count().saturating_sub(2));
        while let Some(folder) = above.next()
            && tokio::fs::remove_dir(folder).await.is_ok()
        {}
        Ok(response)
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let CreateMultipartUploadInput { bucket, key, .. } = request.input;
        let id = Uuid::now_v7().to_string();
        tokio::fs::create_dir(self.root.join(UPLOADS).join(&id))
            .await
            .map_err(S3Error::internal_error)?;
        Ok(S3Response::new(CreateMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            upload_id: Some(id),
            ..Default::default()
        }))
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        let UploadPartInput { body, upload_id, part_number, .. } = request.input;
        let (_, folder) = self.upload(&upload_id)?;
        if !(1..=10_000).contains(&part_number) {
            return Err(s3_error!(InvalidArgument, "Part numbers are 1 to 10000"));
        }
        let mut body = body.ok_or_else(|| s3_error!(IncompleteBody))?;
        let part = NamedTempFile::new_in(&folder).map_err(S3Error::internal_error)?;
        let file = part.as_file().try_clone().map_err(S3Error::internal_error)?;
        let mut file = BufWriter::with_capacity(CHUNK, tokio::fs::File::from_std(file));
        let mut digest = Md5::new();
        while let Some(bytes) = body.next().await {
            let bytes =
                bytes.map_err(|error| S3Error::with_source(S3ErrorCode::IncompleteBody, error))?;
            digest.update(&bytes);
            file.write_all(&bytes).await.map_err(S3Error::internal_error)?;
        }
        file.flush().await.map_err(S3Error::internal_error)?;
        let e_tag = hex(&digest.finalize());
        part.persist(folder.join(format!("{part_number}.{e_tag}")))
            .map_err(S3Error::internal_error)?;
        Ok(S3Response::new(UploadPartOutput {
            e_tag: Some(ETag::Strong(e_tag)),
            ..Default::default()
        }))
    }

    async fn complete_multipart_upload(
        &self,
        mut request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let (id, _) = self.upload(&request.input.upload_id)?;
        let _turn = self.turns[usize::from(id.as_bytes()[15]) % self.turns.len()].lock().await;
        let (_, folder) = self.upload(&request.input.upload_id)?;

        let parts = request
            .input
            .multipart_upload
            .take()
            .and_then(|upload| upload.parts)
            .unwrap_or_default();
        let (mut paths, mut size, mut before) = (Vec::new(), 0, None::<(i32, u64)>);
        for part in parts {
            let (Some(number), Some(e_tag)) = (part.part_number, part.e_tag) else {
                return Err(s3_error!(InvalidPart, "A part has no number or no ETag"));
            };
            if before.is_some_and(|(before, _)| before >= number) {
                return Err(s3_error!(InvalidPartOrder, "Part {number} is out of order"));
            }
            if before.is_some_and(|(_, size)| size < SMALLEST_PART) {
                return Err(s3_error!(
                    EntityTooSmall,
                    "A part before part {number} is smaller than 5 MiB"
                ));
            }
            let missing = || {
                s3_error!(
                    InvalidPart,
                    "Part {number} has not been uploaded, or its ETag is another one"
                )
            };
            let e_tag = e_tag.value();
            // It becomes part of a path.
            if !e_tag.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(missing());
            }
            let path = folder.join(format!("{number}.{e_tag}"));
            let length = tokio::fs::metadata(&path).await.map_err(|_| missing())?.len();
            before = Some((number, length));
            size += length;
            paths.push(path);
        }
        if paths.is_empty() {
            return Err(s3_error!(InvalidPart, "You must specify at least one part"));
        }

        let chunks = stream::iter(paths)
            .then(tokio::fs::File::open)
            .map_ok(|file| ReaderStream::with_capacity(file, CHUNK))
            .try_flatten();
        let (bucket, key) = (request.input.bucket.clone(), request.input.key.clone());
        let whole = request.map_input(|input| PutObjectInput {
            bucket: input.bucket,
            key: input.key,
            body: Some(StreamingBlob::wrap(chunks)),
            content_length: i64::try_from(size).ok(),
            ..Default::default()
        });
        let e_tag = self.put_object(whole).await?.output.e_tag;
        self.discard(&folder).await.map_err(S3Error::internal_error)?;
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(bucket),
            key: Some(key),
            e_tag,
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let (_, folder) = self.upload(&request.input.upload_id)?;
        self.discard(&folder).await.map_err(S3Error::internal_error)?;
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }
}
