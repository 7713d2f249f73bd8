//! Files: an object in S3 and its row. Immutable once complete.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{
    id::{FileId, JobId, UserId},
    time::Timestamp,
};

/// A file as the store keeps it.
#[derive(Debug, Clone, PartialEq, Eq, sqlx::FromRow)]
pub struct File {
    /// Identifies the file.
    pub id: FileId,
    /// Who may see it.
    pub owner: UserId,
    /// Name without folders.
    pub filename: String,
    /// Bytes.
    pub size: i64,
    /// SHA-256, lower-case hexadecimal: declared by the uploader, or computed for outputs.
    pub sha256: String,
    /// The object store's entity tag once the content is there.
    pub e_tag: Option<String>,
    /// The S3 multipart upload in progress, when there is one.
    pub upload_id: Option<String>,
    /// The job that made it, for outputs.
    pub job_id: Option<JobId>,
    /// When upload links were given, or the output was stored.
    pub created_at: Timestamp,
    /// When the content was complete; until then the file is seen by nobody but its upload.
    pub completed_at: Option<Timestamp>,
}

impl File {
    /// Where the content lies in the bucket.
    pub fn object_key(id: FileId) -> String {
        format!("files/{id}")
    }
}

/// A file, as it is listed, given as an input value and returned as an output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
// Not `File`: that is a type of its own in browsers, and TypeScript's generator would answer `any`.
#[schema(example = json!({
    "id": "019a9c6e-5f3a-7c30-9d2e-0b9a3d1f2c11", "filename": "single_number.txt", "content_type": "text/plain",
    "checksum": "4e07408562bedb8b60ce05c1decfe3ad16b72230967de01f640b7e4729b49fce", "e_tag": "eccbc87e4b5ce2fe28308fd9f2a7baf3"
}))]
pub struct FileRef {
    /// Identifies the file.
    #[schema(value_type = uuid::Uuid)]
    pub id: FileId,
    /// Name without folders.
    pub filename: String,
    /// MIME type guessed from the name.
    #[serde(default)]
    pub content_type: Option<String>,
    /// SHA-256 of the content, hexadecimal.
    #[serde(default)]
    #[schema(pattern = "^[a-fA-F0-9]{64}$")]
    pub checksum: Option<String>,
    /// Entity tag of the object, without quotes.
    #[serde(default)]
    pub e_tag: Option<String>,
}

impl From<File> for FileRef {
    fn from(file: File) -> Self {
        let content_type = mime_guess::from_path(&file.filename).first_raw();
        Self {
            id: file.id,
            content_type: Some(content_type.unwrap_or("application/octet-stream").to_owned()),
            filename: file.filename,
            checksum: Some(file.sha256),
            e_tag: file.e_tag,
        }
    }
}

/// Checks a file name: it becomes a name on disk in the solver's input folder.
pub fn check_filename(name: &str) -> Result<(), String> {
    let rule = if name.is_empty() {
        "must not be empty"
    } else if name.len() > 255 {
        "must not be longer than 255 bytes"
    } else if name == "." || name == ".." || name.contains('/') {
        "must be a name without folders"
    } else if name.contains(char::is_control) {
        "must not contain control characters"
    } else {
        return Ok(());
    };
    Err(rule.to_owned())
}

/// Checks a SHA-256 in hexadecimal and gives it in lower case.
pub fn parse_sha256(text: &str) -> Result<String, String> {
    if text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err("must be 64 hexadecimal digits".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        for bad in ["", ".", "..", "a/b", "/etc/passwd", "a\0b", "a\nb", &"x".repeat(256)] {
            assert!(check_filename(bad).is_err(), "{bad:?}");
        }
        for good in ["a.txt", "..a", "ünïcode name.dat", &"x".repeat(255)] {
            assert_eq!(check_filename(good), Ok(()), "{good:?}");
        }
    }
}
