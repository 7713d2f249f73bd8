//! Who is calling: HTTP Basic with an API key and its secret (RFC 7617).
//!
//! [`authenticate`] stands before every operation, so that strangers learn nothing but 401: not which parameter is wrong, and no body
//! of theirs is read. Handlers that act for somebody take a [`Caller`].

use std::future::{Ready, ready};

use actix_web::{
    FromRequest, HttpMessage, HttpRequest,
    body::MessageBody,
    dev::{Payload, ServiceRequest, ServiceResponse},
    http::header,
    middleware::Next,
    web::Data,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use subtle::ConstantTimeEq;

use crate::{
    domain::{
        id::UserId,
        user::{User, secret_hash},
    },
    error::{ApiError, ErrorCode, Result, check_method},
    store::Db,
};

/// What needs no credentials.
const OPEN: [&str; 3] = ["/v0/", "/v0/meta", "/v0/state"];

/// The user whose key came with the request.
#[derive(Clone)]
pub struct Caller(pub User);

impl Caller {
    /// The caller's id: whatever is loaded is loaded for this owner.
    pub const fn id(&self) -> UserId {
        self.0.id
    }
}

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        ready(request.extensions().get().cloned().ok_or_else(not_authenticated))
    }
}

/// Lets requests for operations of the API pass only with good credentials.
pub async fn authenticate<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let route = request.match_pattern();
    let route = route.filter(|route| route.starts_with("/v0/") && !OPEN.contains(&&**route));
    if let Some(route) = route {
        let caller = caller(&request).await?;
        request.extensions_mut().insert(caller);
        check_method(&route, request.path(), request.method())?;
    }
    next.call(request).await
}

async fn caller(request: &ServiceRequest) -> Result<Caller> {
    let header =
        request.headers().get(header::AUTHORIZATION).and_then(|value| basic(value.as_bytes()));
    let (key, secret) = header.ok_or_else(not_authenticated)?;
    let db = request.app_data::<Data<Db>>();
    let db = db
        .ok_or_else(|| ApiError::internal(ErrorCode::Internal, "no database in the application"))?;
    let found = db.key_find(&key).await?;
    // An unknown key takes the same path as a wrong secret, and as long.
    let (hash, user) = found.map_or_else(|| (vec![0; 32], None), |(hash, user)| (hash, Some(user)));
    let matches = bool::from(secret_hash(&secret).ct_eq(&hash));
    user.filter(|_| matches)
        .map(Caller)
        .ok_or_else(|| ApiError::new(ErrorCode::InvalidCredentials, "Invalid API credentials"))
}

fn not_authenticated() -> ApiError {
    ApiError::new(ErrorCode::NotAuthenticated, "Not authenticated")
}

fn basic(header: &[u8]) -> Option<(String, String)> {
    let (scheme, encoded) = header.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"basic ") {
        return None;
    }
    let text = String::from_utf8(STANDARD.decode(encoded.trim_ascii()).ok()?).ok()?;
    let (key, secret) = text.split_once(':')?;
    // NUL is in no key, and Postgres refuses it in text.
    (!key.contains('\0')).then(|| (key.to_owned(), secret.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_well_formed_basic_headers_are_read() {
        let pair = Some(("a".to_owned(), "b:c".to_owned()));
        assert_eq!(basic(b"Basic YTpiOmM="), pair);
        assert_eq!(basic(b"bAsIc  YTpiOmM="), pair);
        for bad in [&b""[..], b"Basic", b"Basic YQ==", b"Bearer YTpi", b"Basic %%%", b"Basic /w=="]
        {
            assert_eq!(basic(bad), None, "{}", String::from_utf8_lossy(bad));
        }
    }
}
