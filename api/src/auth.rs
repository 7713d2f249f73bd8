//! Who is calling: HTTP Basic with an API key and its secret (RFC 7617).

use std::{future::Future, pin::Pin};

use actix_web::{FromRequest, HttpRequest, dev::Payload, http::header, web::Data};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use subtle::ConstantTimeEq;

use crate::{
    domain::{
        id::UserId,
        user::{User, secret_hash},
    },
    error::{ApiError, ErrorCode, Result},
    store::Db,
};

/// The user whose key came with the request. A handler that takes one is closed to everybody else.
pub struct Caller(pub User);

impl Caller {
    /// The caller's id: whatever is loaded is loaded for this owner.
    pub const fn id(&self) -> UserId {
        self.0.id
    }
}

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self>>>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let credentials =
            request.headers().get(header::AUTHORIZATION).and_then(|value| basic(value.as_bytes()));
        let db = request.app_data::<Data<Db>>().cloned();
        Box::pin(async move {
            let db = db.ok_or_else(|| {
                ApiError::internal(ErrorCode::Internal, "no database in the application")
            })?;
            let (key, secret) = credentials
                .ok_or_else(|| ApiError::new(ErrorCode::NotAuthenticated, "Not authenticated"))?;
            let found = db.key_find(&key).await?;
            // An unknown key takes the same path as a wrong secret, and as long.
            let (hash, user) =
                found.map_or_else(|| (vec![0; 32], None), |(hash, user)| (hash, Some(user)));
            let matches = bool::from(secret_hash(&secret).ct_eq(&hash));
            user.filter(|_| matches).map(Self).ok_or_else(|| {
                ApiError::new(ErrorCode::InvalidCredentials, "Invalid API credentials")
            })
        })
    }
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
