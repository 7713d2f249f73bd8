//! What clients are told when something is wrong: one table of codes, one body, also for the framework's own errors.

use std::{fmt, sync::LazyLock};

use actix_web::{
    HttpRequest, HttpResponse, ResponseError,
    http::{Method, StatusCode, header},
    web::Bytes,
};
use chrono::Utc;
use regex::Regex;
use serde::Serialize;
use serde_json::{Value as Json, json};
use utoipa::{IntoResponses, ToSchema};

use crate::{domain::id::JobId, objects, openapi, report::chain, store};

/// What every handler returns.
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident => $status:ident,)*) => {
        /// What went wrong, for programs. Codes are stable; texts are not.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ToSchema)]
        #[serde(rename_all = "snake_case")]
        pub enum ErrorCode {
            $($(#[$doc])* $name,)*
        }

        impl ErrorCode {
            /// The one table from codes to HTTP statuses.
            const fn status(self) -> StatusCode {
                match self {
                    $(Self::$name => StatusCode::$status,)*
                }
            }
        }
    };
}

codes! {
    /// No credentials came with the request.
    NotAuthenticated => UNAUTHORIZED,
    /// The key is unknown or the secret is another one.
    InvalidCredentials => UNAUTHORIZED,
    /// There is no such thing, or it belongs to somebody else.
    NotFound => NOT_FOUND,
    /// No operation has this path.
    RouteNotFound => NOT_FOUND,
    /// The path exists, but not with this method.
    MethodNotAllowed => METHOD_NOT_ALLOWED,
    /// The request breaks a rule; the errors name the field, the value and the rule.
    InvalidRequest => UNPROCESSABLE_ENTITY,
    /// The request does not fit what is there already.
    Conflict => CONFLICT,
    /// The job has no outputs: it has not succeeded.
    NoOutputs => CONFLICT,
    /// The job's outputs and log were deleted.
    AssetsDeleted => CONFLICT,
    /// The caller has as many jobs in the queue as there may be.
    QueueFull => CONFLICT,
    /// The body is larger than is accepted.
    PayloadTooLarge => PAYLOAD_TOO_LARGE,
    /// The request's target and headers are larger than is accepted.
    HeadTooLarge => REQUEST_HEADER_FIELDS_TOO_LARGE,
    /// The body did not arrive in time.
    RequestTimeout => REQUEST_TIMEOUT,
    /// The caller has as many requests in flight as there may be; later there is room again.
    TooManyRequests => TOO_MANY_REQUESTS,
    /// The database is away or busy; later it is there again.
    Unavailable => SERVICE_UNAVAILABLE,
    /// The object store does not answer.
    StorageUnavailable => BAD_GATEWAY,
    /// The service failed; the support id is in its log.
    Internal => INTERNAL_SERVER_ERROR,
}

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ErrorGet, example = json!({"errors": ["job `019a9c6e-5f3a-7c30-9d2e-0b9a3d1f2c11` not found"], "support_id": null, "code": "not_found"}))]
pub struct ErrorBody {
    /// Sentences; for `invalid_request` objects with `type`, `loc`, `msg` and `input`.
    #[schema(value_type = Vec<serde_json::Value>)]
    errors: Vec<Json>,
    /// To be quoted when asking for help; also in the service's log.
    #[schema(pattern = r"OEC:([a-fA-F0-9]{12})-(\d{13,14})")]
    support_id: Option<String>,
    /// What went wrong, for programs.
    code: ErrorCode,
}

/// The errors that every operation may answer with.
#[derive(IntoResponses)]
pub enum Errors {
    /// No or wrong credentials.
    #[response(status = 401, description = "No or wrong credentials.")]
    Unauthorized(ErrorBody),
    /// There is no such thing, or it belongs to somebody else.
    #[response(
        status = 404,
        description = "There is no such thing, or it belongs to somebody else."
    )]
    NotFound(ErrorBody),
    /// The request breaks a rule; the errors name the field, the value and the rule.
    #[response(
        status = 422,
        description = "The request breaks a rule; the errors name the field, the value and the rule."
    )]
    Invalid(ErrorBody),
    /// The body is larger than is accepted.
    #[response(status = 413, description = "The body is larger than is accepted.")]
    TooLarge(ErrorBody),
    /// The request took too long to arrive.
    #[response(status = 408, description = "The body took too long to arrive.")]
    TooSlow(ErrorBody),
    /// Target and headers are larger than is accepted.
    #[response(status = 431, description = "Target and headers are larger than is accepted.")]
    HeadTooLarge(ErrorBody),
    /// The caller has too many requests in flight.
    #[response(
        status = 429,
        description = "You have too many requests in flight; try again when `Retry-After` says."
    )]
    TooMany(ErrorBody),
    /// Something that the service needs does not answer.
    #[response(status = 502, description = "Something that the service needs does not answer.")]
    BadGateway(ErrorBody),
    /// Something that the service needs is away for the moment.
    #[response(
        status = 503,
        description = "The database is away for the moment; try again when `Retry-After` says."
    )]
    Unavailable(ErrorBody),
    /// The service failed.
    #[response(
        status = 500,
        description = "The service failed; quote the support id when asking for help."
    )]
    Internal(ErrorBody),
}

/// A value in a request that breaks a rule. The shape is that of oSPARC's `ValidationError`.
#[derive(Debug, Clone, Serialize)]
pub struct FieldError {
    /// The kind of rule.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Where: `path`, `query` or `body`, then names and positions.
    pub loc: Vec<String>,
    /// A sentence that names the field, the value and the rule.
    pub msg: String,
    /// The value.
    pub input: Json,
    /// Further facts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ctx: Option<Json>,
}

impl FieldError {
    /// A value that breaks a rule which can be told in a few words, e.g. "must be a UUID".
    pub fn new(kind: &'static str, loc: &[&str], input: impl Serialize, rule: &str) -> Self {
        let input = json!(input);
        Self { input: input.clone(), ..Self::about(kind, loc, format!("{rule}, got {input}")) }
    }

    /// Something is wrong that no value shows.
    pub fn about(kind: &'static str, loc: &[&str], rule: impl fmt::Display) -> Self {
        let field = loc.last().copied().unwrap_or("request");
        Self {
            kind,
            msg: format!("`{field}` {rule}"),
            loc: loc.iter().map(|&part| part.to_owned()).collect(),
            input: Json::Null,
            ctx: None,
        }
    }
}

/// An error on its way to the client.
#[derive(Debug)]
pub struct ApiError {
    code: ErrorCode,
    errors: Vec<Json>,
    /// For the log only.
    cause: Option<Box<dyn std::error::Error>>,
    /// Methods that the path does have.
    allow: Option<String>,
}

impl ApiError {
    /// An error with one sentence.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, errors: vec![Json::String(message.into())], cause: None, allow: None }
    }

    /// Something went wrong inside: clients learn the support id, the log learns the cause.
    pub fn internal(code: ErrorCode, cause: impl Into<Box<dyn std::error::Error>>) -> Self {
        Self { cause: Some(cause.into()), ..Self::new(code, "internal error") }
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.errors)
    }
}

impl From<FieldError> for ApiError {
    fn from(error: FieldError) -> Self {
        vec![error].into()
    }
}

impl From<Vec<FieldError>> for ApiError {
    fn from(errors: Vec<FieldError>) -> Self {
        let errors = errors.into_iter().map(|error| json!(error)).collect();
        Self { code: ErrorCode::InvalidRequest, errors, cause: None, allow: None }
    }
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        match error {
            store::Error::NotFound { .. } => Self::new(ErrorCode::NotFound, error.to_string()),
            store::Error::Conflict(_) | store::Error::Illegal(_) => {
                Self::new(ErrorCode::Conflict, error.to_string())
            }
            store::Error::QueueFull(_) => Self::new(ErrorCode::QueueFull, error.to_string()),
            store::Error::Database { .. } if error.is_away() => Self {
                cause: Some(error.into()),
                ..Self::new(ErrorCode::Unavailable, "the database does not answer; try again")
            },
            store::Error::Database { .. }
            | store::Error::Migration(_)
            | store::Error::Address(_) => Self::internal(ErrorCode::Internal, error),
        }
    }
}

impl From<objects::Error> for ApiError {
    fn from(error: objects::Error) -> Self {
        match error {
            objects::Error::NotUploaded
            | objects::Error::SizeMismatch { .. }
            | objects::Error::TooLarge { .. }
            | objects::Error::BadParts(_) => {
                let rule = format!("must make up the file: {error}");
                FieldError::about("upload", &["body", "uploaded_parts"], rule).into()
            }
            objects::Error::NotFound { .. } => Self::new(ErrorCode::NotFound, error.to_string()),
            objects::Error::Unavailable { .. } | objects::Error::Content(_) => Self {
                cause: Some(error.into()),
                ..Self::new(ErrorCode::StorageUnavailable, "the object store does not answer")
            },
        }
    }
}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.code.status()
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if self.status_code() == StatusCode::UNAUTHORIZED {
            response.insert_header((
                header::WWW_AUTHENTICATE,
                r#"Basic realm="solverd", charset="UTF-8""#,
            ));
        }
        // Clients repeat these two by themselves, so whatever answers them must pass.
        if matches!(self.code, ErrorCode::TooManyRequests | ErrorCode::Unavailable) {
            response.insert_header((header::RETRY_AFTER, "1"));
        }
        if let Some(methods) = &self.allow {
            response.insert_header((header::ALLOW, methods.as_str()));
        }
        response.json(self.body())
    }
}

impl ApiError {
    /// What the client is told. Of what is not the client's fault the log learns more, here and only here.
    fn body(&self) -> ErrorBody {
        let support_id = self.status_code().is_server_error().then(support_id);
        if let Some(id) = &support_id {
            let cause = self.cause.as_deref().map(chain).unwrap_or_default();
            tracing::error!(support_id = id, code = ?self.code, "{self}: {cause}");
        }
        ErrorBody { errors: self.errors.clone(), support_id, code: self.code }
    }

    /// The error as a line of a stream whose answer has begun already.
    pub fn line(&self) -> Bytes {
        (json!(self.body()).to_string() + "\n").into()
    }
}

/// The pattern is oSPARC's, and its client checks it: 12 hexadecimal digits, then milliseconds.
#[expect(clippy::disallowed_methods, reason = "milliseconds, not stored")]
fn support_id() -> String {
    let random = JobId::new().0.simple().to_string();
    format!("OEC:{}-{}", &random[20..], Utc::now().timestamp_millis())
}

/// Every path of the API with its methods, as patterns: what the default route looks into.
static PATHS: LazyLock<Vec<(Regex, Vec<Method>)>> = LazyLock::new(|| {
    let pattern = |path: &str| {
        // `-` stands for all solvers, and is spelt out.
        let escaped = regex::escape(path).replace(r"\{solver_key\}", "[^-].*");
        #[expect(clippy::unwrap_used, reason = "a literal, compiled by every test")]
        let parameter = Regex::new(r"\\\{\w+\\\}").unwrap();
        Regex::new(&format!("^{}$", parameter.replace_all(&escaped, "[^/:]+"))).ok()
    };
    let document = openapi::document();
    document
        .paths
        .paths
        .iter()
        .filter_map(|(path, item)| {
            let methods = [
                (Method::GET, &item.get),
                (Method::PUT, &item.put),
                (Method::POST, &item.post),
                (Method::DELETE, &item.delete),
                (Method::PATCH, &item.patch),
            ];
            let methods = methods
                .into_iter()
                .filter(|(_, operation)| operation.is_some())
                .map(|(method, _)| method);
            Some((pattern(path)?, methods.collect()))
        })
        .collect()
});

/// The methods of a path, in order. What is spelt out wins over a parameter that would match as well, as in the router.
fn methods(path: &str) -> Vec<&'static str> {
    // The router knows the colon before a verb in both spellings.
    let path = path.replace("%3A", ":").replace("%3a", ":");
    let matching = || PATHS.iter().filter(|(pattern, _)| pattern.is_match(&path));
    let spelt_out = matching().any(|(pattern, _)| is_spelt_out(pattern));
    let all = matching()
        .filter(|(pattern, _)| is_spelt_out(pattern) == spelt_out)
        .flat_map(|(_, methods)| methods);
    let mut names: Vec<_> = all.map(Method::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// Whether the end of a path is a word.
fn is_spelt_out(pattern: &Regex) -> bool {
    !pattern.as_str().ends_with("+$")
}

fn not_allowed(method: &Method, allowed: &[&str]) -> ApiError {
    let allowed = allowed.join(", ");
    let message = format!("{method} is not allowed here, only {allowed}");
    ApiError { allow: Some(allowed), ..ApiError::new(ErrorCode::MethodNotAllowed, message) }
}

/// Refuses a method that a path does not have, although another route would take it: `DELETE …/jobs/page` deletes no job `page`.
pub fn check_method(route: &str, path: &str, method: &Method) -> Result<()> {
    // Only where the end is a word can another route have a parameter.
    if route.ends_with('}') || route.contains("}:") {
        return Ok(());
    }
    let allowed = methods(path);
    if allowed.is_empty() || allowed.contains(&method.as_str()) {
        return Ok(());
    }
    Err(not_allowed(method, &allowed))
}

/// Answers whatever no route has taken: a wrong method, a slash too many, or an unknown path.
pub async fn default_route(request: HttpRequest) -> Result<HttpResponse> {
    let path = request.path();
    let allowed = methods(path);
    if !allowed.is_empty() {
        return Err(not_allowed(request.method(), &allowed));
    }
    if let Some(shorter) = path.strip_suffix('/').filter(|shorter| !methods(shorter).is_empty()) {
        let query = request.query_string();
        let mark = if query.is_empty() { "" } else { "?" };
        let location = (header::LOCATION, format!("{shorter}{mark}{query}"));
        return Ok(HttpResponse::TemporaryRedirect().insert_header(location).finish());
    }
    // oSPARC's two words, and what they are about.
    let message = format!("Not Found: no operation has the path `{path}`");
    Err(ApiError::new(ErrorCode::RouteNotFound, message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_is_told_from_what_does_not() {
        let answer = |source| {
            let error = store::Error::Database { doing: "reading", source };
            ApiError::from(error).error_response()
        };
        let away = answer(sqlx::Error::PoolTimedOut);
        assert_eq!(away.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(away.headers().get(header::RETRY_AFTER).unwrap(), "1");
        let broken = answer(sqlx::Error::RowNotFound);
        assert_eq!(broken.status(), StatusCode::INTERNAL_SERVER_ERROR);
        assert_eq!(broken.headers().get(header::RETRY_AFTER), None);
    }
}
