//! Uploading through the service, for whoever has no more than `curl`: one form with one file, passed on to the object store as it comes.

use actix_multipart::{Multipart, MultipartError};
use actix_web::{
    HttpMessage, HttpRequest,
    http::header,
    put,
    web::{Bytes, Data, Json},
};
use futures_util::{Stream, StreamExt, stream};
use serde::Deserialize;
use serde_json::Value;
use tokio::{runtime::Handle, sync::mpsc, task::JoinHandle};
use tokio_util::{io::StreamReader, task::TaskTracker};
use utoipa::ToSchema;

use crate::{
    auth::Caller,
    domain::{
        file::{File, FileRef, check_filename},
        id::{FileId, UserId},
        time::now,
    },
    error::{ApiError, ErrorCode, Errors, FieldError, Result},
    objects::{self, LONGEST_STREAM, Objects},
    request::in_time,
    store::{self, Db},
};

/// The one field of the form.
const FILE: &str = "file";

/// Pieces of content that wait for the object store, of 64 KiB at most.
const WAITING: usize = 4;

/// A form with a file.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[expect(dead_code, reason = "only its schema is used")]
pub struct FileForm {
    /// The content, with the name of the file.
    #[schema(value_type = String, format = Binary)]
    file: Vec<u8>,
}

/// Stores what requests bring, in tasks that outlive them: whoever hangs up drops the request wherever it stands, and what the object
/// store has got so far has to go.
pub struct Uploads {
    db: Db,
    objects: Objects,
    tasks: TaskTracker,
    /// That of the whole service; the threads that handle requests have others, and end before the tasks do.
    runtime: Handle,
}

/// An upload under way.
struct Upload {
    /// `None` says that the content is whole; without it nothing is stored.
    pieces: mpsc::Sender<Option<Bytes>>,
    stored: JoinHandle<objects::Result<store::Result<File>>>,
}

impl Uploads {
    /// For requests of the runtime that calls it.
    pub fn new(db: Db, objects: Objects) -> Self {
        Self { db, objects, tasks: TaskTracker::new(), runtime: Handle::current() }
    }

    /// Waits for what is under way, once no request brings more.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn begin(&self, filename: String, owner: UserId) -> Upload {
        let (pieces, receiver) = mpsc::channel(WAITING);
        let storing = store(self.db.clone(), self.objects.clone(), filename, owner, receiver);
        Upload { pieces, stored: self.tasks.spawn_on(storing, &self.runtime) }
    }
}

/// Object first, row second: a crash between leaves an object that nobody sees.
async fn store(
    db: Db,
    objects: Objects,
    filename: String,
    owner: UserId,
    pieces: mpsc::Receiver<Option<Bytes>>,
) -> objects::Result<store::Result<File>> {
    let content = stream::unfold(pieces, async |mut pieces| {
        let piece = match pieces.recv().await {
            Some(Some(bytes)) => Ok(bytes),
            Some(None) => return None,
            None => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof)),
        };
        Some((piece, pieces))
    });
    let id = FileId::new();
    let key = File::object_key(id);
    let created_at = now();
    let stored = objects.put_stream(&key, StreamReader::new(Box::pin(content))).await?;
    let file = File {
        id,
        owner,
        filename,
        size: i64::try_from(stored.size).unwrap_or(i64::MAX),
        sha256: stored.sha256,
        e_tag: Some(stored.e_tag),
        upload_id: None,
        job_id: None,
        created_at,
        completed_at: Some(now()),
    };
    let added = db.file_add(&file).await;
    // Its row may be there although the answer was lost: as long as that may be so, the content stays.
    if let Err(error) = &added
        && (!error.is_transient()
            || matches!(
                db.file_remove(id, owner).await,
                Ok(()) | Err(store::Error::NotFound { .. })
            ))
    {
        objects.forget(&key, None).await;
    }
    Ok(added.map(|()| file))
}

impl Upload {
    /// The content is whole, or could not be stored.
    async fn end(self) -> Result<FileRef> {
        // Nobody listens any more if it could not.
        let _ = self.pieces.send(None).await;
        let stored = self.stored.await;
        let stored = stored.map_err(|error| ApiError::internal(ErrorCode::Internal, error))?;
        let file = stored.map_err(|error| {
            if let objects::Error::TooLarge { size, .. } = error {
                return too_large(size);
            }
            error.into()
        })??;
        Ok(file.into())
    }
}

/// Upload a file in one request.
///
/// A form with one field, `file`. Large files had better be sent by links, in parts that can be repeated: see
/// `POST /v0/files/content`. A request that breaks off leaves nothing behind.
#[utoipa::path(
    tag = "files",
    request_body(content = FileForm, content_type = "multipart/form-data"),
    responses((status = 200, description = "The file.", body = FileRef), Errors)
)]
#[put("/v0/files/content")]
pub async fn upload_file(
    request: HttpRequest,
    mut form: Multipart,
    caller: Caller,
    uploads: Data<Uploads>,
) -> Result<Json<FileRef>> {
    check_head(&request)?;
    let mut upload: Option<Upload> = None;
    while let Some(mut field) = next(&mut form).await? {
        let name = field.name().unwrap_or_default();
        if name != FILE {
            let rule = "must be a form with no field but `file`";
            return Err(FieldError::new("extra_forbidden", &["body"], name, rule).into());
        }
        if upload.is_some() {
            let rule = "must be there once";
            return Err(FieldError::new("value_error", &["body", FILE], 2, rule).into());
        }
        let filename = filename(&field)?;
        let begun = uploads.begin(filename, caller.id());
        while let Some(bytes) = next(&mut field).await? {
            if begun.pieces.send(Some(bytes)).await.is_err() {
                return begun.end().await.map(Json);
            }
        }
        upload = Some(begun);
    }
    let missing = || FieldError::new("missing", &["body", FILE], Value::Null, "is required");
    upload.ok_or_else(missing)?.end().await.map(Json)
}

/// Looks at what is known of a form before it comes.
fn check_head(request: &HttpRequest) -> Result<()> {
    if !request.content_type().eq_ignore_ascii_case("multipart/form-data") {
        let given = request.headers().get(header::CONTENT_TYPE);
        let given = given.map(|value| String::from_utf8_lossy(value.as_bytes()));
        let place = ["header", "content-type"];
        let rule = "must be multipart/form-data";
        return Err(FieldError::new("value_error", &place, given, rule).into());
    }
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|value| value.to_str().ok()?.parse().ok());
    match length {
        Some(length) if length > LONGEST_STREAM => Err(too_large(length)),
        _ => Ok(()),
    }
}

fn too_large(size: u64) -> ApiError {
    let message = format!("the body must not be larger than {LONGEST_STREAM} bytes, is {size}");
    ApiError::new(ErrorCode::PayloadTooLarge, message)
}

/// The name that came with a file.
fn filename(field: &actix_multipart::Field) -> Result<String> {
    let disposition = field.content_disposition();
    // How some clients write what is not ASCII.
    let extended = disposition.and_then(|each| each.get_filename_ext());
    let extended = extended.and_then(|name| String::from_utf8(name.value.clone()).ok());
    let plain = || Some(disposition?.get_filename()?.to_owned());
    let place = ["body", FILE, "filename"];
    let missing = || FieldError::new("missing", &place, Value::Null, "is required");
    let name = extended.or_else(plain).ok_or_else(missing)?;
    match check_filename(&name) {
        Ok(()) => Ok(name),
        Err(rule) => Err(FieldError::new("value_error", &place, name, &rule).into()),
    }
}

/// The next field of a form, or piece of a field.
async fn next<T>(
    parts: &mut (impl Stream<Item = Result<T, MultipartError>> + Unpin),
) -> Result<Option<T>> {
    in_time(parts.next()).await?.transpose().map_err(|error| {
        let rule = format!("must be a form as RFC 7578 has it: {error}");
        FieldError::about("form", &["body"], rule).into()
    })
}
