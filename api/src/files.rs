//! Files: content goes straight to the object store and comes straight from it; here are only its names and links.

#![expect(unreachable_pub, reason = "the route macros nest the handlers")]

pub mod form;

use actix_web::{
    HttpRequest, HttpResponse, delete, get,
    http::header,
    post,
    web::{Data, Json},
};
use serde::{Deserialize, Serialize};
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{
        ArrayBuilder, KnownFormat, ObjectBuilder, RefOr, Schema, SchemaFormat, schema::Type,
    },
};

use crate::{
    auth::Caller,
    domain::{
        file::{File, FileRef, check_filename, parse_sha256},
        id::FileId,
        time::now,
    },
    error::{Errors, FieldError, Result},
    objects::Objects,
    paging::{Page, Paging},
    request::{Body, Params, from_request, whole},
    store::Db,
};

from_request!(FilePath, FileFilter);

/// A page of files. An alias, because utoipa would look for a derive on the generic type.
type FilePage = Page<FileRef>;

/// Names a file in a path.
#[derive(IntoParams)]
#[into_params(parameter_in = Path)]
pub struct FilePath {
    /// Identifies the file.
    #[param(value_type = uuid::Uuid)]
    pub file_id: FileId,
}

impl FilePath {
    fn of(request: &HttpRequest) -> Result<Self> {
        let file_id = Params::of_path(request)?.need("file_id", "must be a UUID", str::parse)?;
        Ok(Self { file_id })
    }
}

/// Which files are looked for.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub struct FileFilter {
    /// SHA-256 of the content, hexadecimal.
    #[param(pattern = "^[a-fA-F0-9]{64}$")]
    pub sha256_checksum: Option<String>,
    /// Identifies the file.
    #[param(value_type = Option<uuid::Uuid>)]
    pub file_id: Option<FileId>,
}

impl FileFilter {
    fn of(request: &HttpRequest) -> Result<Self> {
        let params = Params::of_query(request)?;
        Ok(Self {
            sha256_checksum: params.get(
                "sha256_checksum",
                "must be 64 hexadecimal digits",
                parse_sha256,
            )?,
            file_id: params.get("file_id", "must be a UUID", str::parse)?,
        })
    }
}

/// Bytes.
pub struct Content;

impl ToSchema for Content {}

impl PartialSchema for Content {
    fn schema() -> RefOr<Schema> {
        let binary = SchemaFormat::KnownFormat(KnownFormat::Binary);
        ObjectBuilder::new().schema_type(Type::String).format(Some(binary)).into()
    }
}

/// A file about to be uploaded.
// oSPARC's UserFile and UserFileToProgramJob in one: of a union of them, generated clients would make a third type around both.
#[derive(Deserialize, ToSchema)]
#[schema(as = UserFile, example = json!({"filename": "a.txt", "filesize": 12, "sha256_checksum": "d407ad90bb5bb30a7d0b0d37a2cbdd9ecaf2ba9b5a08d3f0b6cd5d8c6a9f3193"}))]
pub struct UserFile {
    /// Name without folders.
    #[schema(
        max_length = 255,
        pattern = r"^([^./\x00-\x1f\x7f-\x9f]|\.[^./\x00-\x1f\x7f-\x9f]|\.\.[^/\x00-\x1f\x7f-\x9f])[^/\x00-\x1f\x7f-\x9f]*$"
    )]
    filename: String,
    /// Bytes.
    #[schema(minimum = 0, maximum = 53_681_722_490_880_i64)]
    #[serde(deserialize_with = "whole::<0, 53_681_722_490_880, _, _>")]
    filesize: i64,
    /// SHA-256 of the content, hexadecimal.
    #[schema(pattern = "^[a-fA-F0-9]{64}$")]
    sha256_checksum: String,
    /// Key of the program whose job the file is for; without effect here.
    #[serde(default, rename = "program_key")]
    _program_key: Option<String>,
    /// Version of that program; without effect here.
    #[serde(default, rename = "program_version")]
    _program_version: Option<String>,
    /// The job that the file is for; without effect here.
    #[serde(default, rename = "job_id")]
    _job_id: Option<String>,
    /// Where the file goes in that job's workspace; without effect here.
    #[serde(default, rename = "workspace_path")]
    _workspace_path: Option<String>,
}

/// Where to send the content of a new file.
#[derive(Serialize, ToSchema)]
pub struct ClientFileUploadData {
    #[schema(value_type = uuid::Uuid)]
    file_id: FileId,
    upload_schema: FileUploadData,
}

/// How the content is cut, and where each part goes.
#[derive(Serialize, ToSchema)]
pub struct FileUploadData {
    /// Bytes of every part but the last.
    chunk_size: u64,
    /// One link per part, to be sent by PUT; none for an empty file. They are good until the upload is completed, 12 hours at most.
    #[schema(schema_with = links)]
    urls: Vec<String>,
    links: UploadLinks,
}

fn links() -> ArrayBuilder {
    let uri = SchemaFormat::Custom("uri".to_owned());
    let link = ObjectBuilder::new().schema_type(Type::String).format(Some(uri)).min_length(Some(1));
    ArrayBuilder::new().items(link)
}

/// What to call when the parts have been sent, or will not be.
#[derive(Serialize, ToSchema)]
pub struct UploadLinks {
    abort_upload: String,
    complete_upload: String,
}

/// The end of an upload.
#[derive(Deserialize, ToSchema)]
pub struct CompleteUpload {
    /// As it was announced.
    #[serde(rename = "client_file")]
    _client_file: UserFile,
    uploaded_parts: FileUploadCompletionBody,
}

/// The parts that were sent.
#[derive(Deserialize, ToSchema)]
pub struct FileUploadCompletionBody {
    /// In any order.
    parts: Vec<UploadedPart>,
}

/// A part that was sent.
#[derive(Deserialize, ToSchema)]
pub struct UploadedPart {
    /// From 1.
    #[schema(minimum = 1)]
    #[serde(deserialize_with = "whole::<1, { i32::MAX as i64 }, _, _>")]
    number: i32,
    /// The entity tag that the object store answered.
    e_tag: String,
}

/// The withdrawal of an upload.
#[derive(Deserialize, ToSchema)]
pub struct AbortUpload {
    /// As it was announced.
    #[serde(rename = "client_file")]
    _client_file: UserFile,
}

/// Find files.
///
/// Your uploads, newest first; filters can be combined.
#[utoipa::path(tag = "files", params(FileFilter, Paging), responses((status = 200, description = "A page of files.", body = FilePage), Errors))]
#[get("/v0/files:search")]
pub async fn search_files_page(
    filter: FileFilter,
    paging: Paging,
    caller: Caller,
    db: Data<Db>,
) -> Result<Json<FilePage>> {
    let sha256 = filter.sha256_checksum.as_deref();
    let (files, total) =
        db.files_search(caller.id(), sha256, filter.file_id, paging.limit, paging.offset).await?;
    Ok(Json(paging.page(files.into_iter().map(FileRef::from).collect(), total)))
}

/// Begin an upload.
///
/// Answers links to send the content to, in parts; no credentials go with them. Then complete the upload.
#[utoipa::path(tag = "files", request_body = UserFile, responses((status = 200, description = "Where to send the content.", body = ClientFileUploadData), Errors))]
#[post("/v0/files/content")]
pub async fn get_upload_links(
    body: Body<UserFile>,
    caller: Caller,
    db: Data<Db>,
    objects: Data<Objects>,
) -> Result<Json<ClientFileUploadData>> {
    let UserFile { filename, filesize, sha256_checksum, .. } = body.0;
    check_filename(&filename)
        .map_err(|rule| FieldError::new("value_error", &["body", "filename"], &filename, &rule))?;
    let sha256 = parse_sha256(&sha256_checksum).map_err(|rule| {
        FieldError::new("value_error", &["body", "sha256_checksum"], &sha256_checksum, &rule)
    })?;
    let id = FileId::new();
    let plan = objects.upload_plan(&File::object_key(id), filesize.unsigned_abs()).await?;
    let file = File {
        id,
        owner: caller.id(),
        filename,
        size: filesize,
        sha256,
        e_tag: None,
        upload_id: plan.upload_id,
        job_id: None,
        created_at: now(),
        completed_at: None,
    };
    db.file_add(&file).await?;
    let links = UploadLinks {
        abort_upload: format!("/v0/files/{id}:abort"),
        complete_upload: format!("/v0/files/{id}:complete"),
    };
    let upload_schema = FileUploadData { chunk_size: plan.chunk_size, urls: plan.urls, links };
    Ok(Json(ClientFileUploadData { file_id: id, upload_schema }))
}

/// Complete an upload.
///
/// Puts the parts together. May be repeated: the answer is the same file.
#[utoipa::path(tag = "files", params(FilePath), request_body = CompleteUpload, responses((status = 200, description = "The file.", body = FileRef), Errors))]
#[post("/v0/files/{file_id:[^/:]+}:complete")]
pub async fn complete_multipart_upload(
    path: FilePath,
    body: Body<CompleteUpload>,
    caller: Caller,
    db: Data<Db>,
    objects: Data<Objects>,
) -> Result<Json<FileRef>> {
    let file = db.file_or_upload(path.file_id, caller.id()).await?;
    if file.completed_at.is_some() {
        return Ok(Json(file.into()));
    }
    let parts =
        body.0.uploaded_parts.parts.into_iter().map(|part| (part.number, part.e_tag)).collect();
    let size = file.size.unsigned_abs();
    let stat = objects
        .complete_upload(&File::object_key(file.id), size, file.upload_id.as_deref(), parts)
        .await?;
    Ok(Json(db.file_complete(file.id, caller.id(), &stat.e_tag, now()).await?.into()))
}

/// Abort an upload.
///
/// Forgets what was sent so far. A file that is complete stays.
#[utoipa::path(tag = "files", params(FilePath), request_body = AbortUpload, responses((status = 200, description = "Forgotten; the answer is null.", body = serde_json::Value), Errors))]
#[post("/v0/files/{file_id:[^/:]+}:abort")]
pub async fn abort_multipart_upload(
    path: FilePath,
    _body: Body<AbortUpload>,
    caller: Caller,
    db: Data<Db>,
    objects: Data<Objects>,
) -> Result<Json<()>> {
    let file = db.file_or_upload(path.file_id, caller.id()).await?;
    if file.completed_at.is_none() && db.upload_remove(file.id, caller.id()).await? {
        objects.forget(&File::object_key(file.id), file.upload_id.as_deref()).await;
    }
    Ok(Json(()))
}

/// List your files.
///
/// All of them: prefer the search, which has pages.
#[utoipa::path(tag = "files", responses((status = 200, description = "Your uploads, newest first.", body = Vec<FileRef>), Errors))]
#[get("/v0/files")]
pub async fn list_files(caller: Caller, db: Data<Db>) -> Result<Json<Vec<FileRef>>> {
    Ok(Json(db.files_all(caller.id()).await?.into_iter().map(FileRef::from).collect()))
}

/// Download a file.
///
/// Leads to the object store with a link that needs no credentials.
#[utoipa::path(tag = "files", params(FilePath), responses(
    (status = 200, description = "The content, after following the link.", body = inline(Content), content_type = "application/octet-stream"),
    (status = 307, description = "Where the content is.", headers(("location" = String, description = "A link that is good for an hour."))),
    Errors
))]
#[get("/v0/files/{file_id:[^/:]+}/content")]
pub async fn download_file(
    path: FilePath,
    caller: Caller,
    db: Data<Db>,
    objects: Data<Objects>,
) -> Result<HttpResponse> {
    let file = db.file_get(path.file_id, caller.id()).await?;
    let link = objects.presign_get(&File::object_key(file.id), &file.filename, None).await?;
    Ok(HttpResponse::TemporaryRedirect().insert_header((header::LOCATION, link)).finish())
}

/// Get a file.
#[utoipa::path(tag = "files", params(FilePath), responses((status = 200, description = "The file.", body = FileRef), Errors))]
#[get("/v0/files/{file_id:[^/:]+}")]
pub async fn get_file(path: FilePath, caller: Caller, db: Data<Db>) -> Result<Json<FileRef>> {
    Ok(Json(db.file_get(path.file_id, caller.id()).await?.into()))
}

/// Delete a file.
///
/// Its content is gone for good. Jobs that have not read it yet will fail.
#[utoipa::path(tag = "files", params(FilePath), responses((status = 200, description = "Deleted; the answer is null.", body = serde_json::Value), Errors))]
#[delete("/v0/files/{file_id:[^/:]+}")]
pub async fn delete_file(
    path: FilePath,
    caller: Caller,
    db: Data<Db>,
    objects: Data<Objects>,
) -> Result<Json<()>> {
    let file = db.file_get(path.file_id, caller.id()).await?;
    db.file_remove(file.id, caller.id()).await?;
    objects.forget(&File::object_key(file.id), None).await;
    Ok(Json(()))
}
