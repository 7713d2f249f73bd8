//! Reads parameters and bodies of requests, so that every refusal names the field, the value and the rule.

use std::{future::Future, iter, pin::Pin, time::Duration};

use actix_web::{
    FromRequest, HttpRequest, dev::Payload, error::PayloadError, http::header, web::Bytes,
};
use percent_encoding::percent_decode_str;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, Error as _},
};
use serde_json::Value as Json;
use serde_path_to_error::Segment;

use crate::error::{ApiError, ErrorCode, FieldError, Result};

/// The largest JSON body that is accepted, in bytes.
pub const BODY_LIMIT: usize = 8 << 20;

/// How long a JSON body may take to arrive, and how long any other may pause.
const BODY_TIMEOUT: Duration = Duration::from_mins(1);

/// Characters of a body that is no JSON object which are shown to whoever sent it.
const EXCERPT: usize = 100;

/// How deep JSON may be nested: what `serde_json` takes.
const DEPTH: usize = 127;

/// Fields that no answer repeats, and what it shows instead.
const SECRETS: [&str; 2] = ["secret", "root_key"];
pub(crate) const CONCEALED: &str = "(not shown)";

/// Lets handlers take types that are read from a request's head by their function `of(&HttpRequest) -> Result<Self>`.
macro_rules! from_request {
    ($($type:ty),*) => {$(
        impl actix_web::FromRequest for $type {
            type Error = crate::error::ApiError;
            type Future = std::future::Ready<crate::error::Result<Self>>;

            fn from_request(request: &actix_web::HttpRequest, _: &mut actix_web::dev::Payload) -> Self::Future {
                std::future::ready(<$type>::of(request))
            }
        }
    )*};
}

pub(crate) use from_request;

/// The parameters of a path or of a query, as text.
pub struct Params {
    place: &'static str,
    values: Vec<(String, String)>,
}

impl Params {
    /// The path's parameters, percent-decoded.
    pub fn of_path(request: &HttpRequest) -> Result<Self> {
        let decoded = request.match_info().iter().map(|(name, text)| {
            let text = percent_decode_str(text).decode_utf8().map_err(|_| {
                ApiError::from(FieldError::new("path", &["path", name], text, "must be UTF-8"))
            })?;
            Ok((name.to_owned(), text.into_owned()))
        });
        Ok(Self { place: "path", values: decoded.collect::<Result<_>>()? })
    }

    /// The query's parameters.
    pub fn of_query(request: &HttpRequest) -> Result<Self> {
        let query = request.query_string();
        let values = serde_urlencoded::from_str(query).map_err(|error| {
            ApiError::from(FieldError::new(
                "query",
                &["query"],
                query,
                &format!("cannot be read: {error}"),
            ))
        })?;
        Ok(Self { place: "query", values })
    }

    /// The headers, as far as they are text.
    pub fn of_headers(request: &HttpRequest) -> Self {
        let values = request.headers().iter().map(|(name, value)| {
            (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
        });
        Self { place: "header", values: values.collect() }
    }

    /// A parameter that may be absent.
    pub fn get<T, E>(
        &self,
        name: &str,
        rule: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Option<T>> {
        // Of several the last counts.
        Ok(self.all(name, rule, parse)?.pop())
    }

    /// A parameter that may be repeated.
    pub fn all<T, E>(
        &self,
        name: &str,
        rule: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<Vec<T>> {
        let values = self.values.iter().filter(|(other, _)| other == name);
        let parsed = values.map(|(_, text)| match parse(text) {
            Ok(value) if !text.contains('\0') => Ok(value),
            _ => Err(FieldError::new("value_error", &[self.place, name], text, rule).into()),
        });
        parsed.collect()
    }

    /// A parameter that says yes or no.
    pub fn flag(&self, name: &str) -> Result<Option<bool>> {
        self.get(name, "must be true or false", |text| match text {
            "true" | "True" | "1" => Ok(true),
            "false" | "False" | "0" => Ok(false),
            _ => Err(()),
        })
    }

    /// A parameter that must be there.
    pub fn need<T, E>(
        &self,
        name: &str,
        rule: &str,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<T> {
        self.get(name, rule, parse)?.ok_or_else(|| {
            FieldError::new("missing", &[self.place, name], Json::Null, "is required").into()
        })
    }
}

/// Where clients reach this service: the setting, or what the request itself says.
pub struct BaseUrl(String);

/// The setting, as the application holds it.
#[derive(Clone)]
pub struct PublicUrl(pub Option<String>);

from_request!(BaseUrl);

impl BaseUrl {
    #[expect(clippy::unnecessary_wraps, reason = "the signature is from_request's")]
    fn of(request: &HttpRequest) -> Result<Self> {
        let set = request.app_data::<PublicUrl>().and_then(|url| url.0.clone());
        Ok(Self(set.unwrap_or_else(|| {
            let connection = request.connection_info();
            // Proxies say which; anybody may pretend to be one.
            let scheme = if connection.scheme() == "https" { "https" } else { "http" };
            format!("{scheme}://{}", connection.host())
        })))
    }

    /// An absolute URL.
    pub fn join(&self, path: &str) -> String {
        format!("{}{path}", self.0)
    }
}

/// A JSON body.
pub struct Body<T>(pub T);

impl<T: DeserializeOwned + 'static> FromRequest for Body<T> {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let body = read(request, payload);
        Box::pin(
            async move { parse(&body.await?).map(Self).map_err(|error| ApiError::from(*error)) },
        )
    }
}

/// The whole body, if it is not too large.
fn read(
    request: &HttpRequest,
    payload: &mut Payload,
) -> impl Future<Output = Result<Bytes>> + 'static {
    let bytes = Bytes::from_request(request, payload);
    let declared = request
        .headers()
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok());
    async move {
        if let Some(length) = declared.filter(|length: &usize| *length > BODY_LIMIT) {
            return Err(too_large(&format!("is {length}")));
        }
        in_time(bytes).await?.map_err(|error| match error.as_error::<PayloadError>() {
            Some(PayloadError::Overflow) => too_large("is longer"),
            _ => FieldError::about("body", &["body"], format!("cannot be read: {error}")).into(),
        })
    }
}

/// A JSON body that may be absent, or null.
pub struct OptionalBody<T>(pub Option<T>);

impl<T: DeserializeOwned + 'static> FromRequest for OptionalBody<T> {
    type Error = ApiError;
    type Future = Pin<Box<dyn Future<Output = Result<Self>>>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let body = read(request, payload);
        Box::pin(async move {
            let bytes = body.await?;
            if bytes.trim_ascii().is_empty() || bytes.trim_ascii() == b"null" {
                return Ok(Self(None));
            }
            parse(&bytes).map(|body| Self(Some(body))).map_err(|error| ApiError::from(*error))
        })
    }
}

/// Reads a whole number as JSON Schema has it: `3.0` is one.
pub fn whole<'de, const FROM: i64, const TO: i64, D: Deserializer<'de>, T: TryFrom<i64>>(
    deserializer: D,
) -> Result<T, D::Error> {
    let number = serde_json::Number::deserialize(deserializer)?;
    #[expect(clippy::cast_possible_truncation, reason = "checked by the comparison")]
    let exact = |float: f64| {
        // 2^53: beyond, floats leave out numbers.
        (float.fract() == 0.0 && float.abs() <= 9_007_199_254_740_992.0).then_some(float as i64)
    };
    let found = number.as_i64().or_else(|| number.as_f64().and_then(exact));
    found
        .filter(|number| (FROM..=TO).contains(number))
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| {
            D::Error::custom(format!("must be a whole number from {FROM} to {TO}, got {number}"))
        })
}

fn too_large(size: &str) -> ApiError {
    ApiError::new(
        ErrorCode::PayloadTooLarge,
        format!("the body must not be larger than {BODY_LIMIT} bytes, {size}"),
    )
}

/// A body, or the next piece of one, unless it takes too long.
pub fn in_time<T>(coming: impl Future<Output = T>) -> impl Future<Output = Result<T>> {
    within(BODY_TIMEOUT, coming)
}

async fn within<T>(patience: Duration, coming: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(patience, coming).await.map_err(|_| {
        let seconds = patience.as_secs();
        let message = format!("the body, or more of it, must arrive within {seconds} seconds");
        ApiError::new(ErrorCode::RequestTimeout, message)
    })
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Box<FieldError>> {
    if bytes.is_empty() {
        return Err(FieldError::new("missing", &["body"], Json::Null, "is required").into());
    }
    let excerpt = || String::from_utf8_lossy(bytes).chars().take(EXCERPT).collect::<String>();
    // serde would take a list for a struct, field by field.
    if bytes.trim_ascii_start().starts_with(b"[") {
        return Err(FieldError::new("json_type", &["body"], excerpt(), "must be an object").into());
    }
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let refuse = |loc: Vec<String>, error: &serde_json::Error| {
        let mut input = serde_json::from_slice::<Json>(bytes).unwrap_or_default();
        for part in &loc[1..] {
            input = match input {
                Json::Object(mut fields) => fields.remove(part),
                Json::Array(mut items) => part
                    .parse()
                    .ok()
                    .filter(|index| *index < items.len())
                    .map(|index: usize| items.swap_remove(index)),
                Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => None,
            }
            .unwrap_or_default();
        }
        conceal(loc.last().map_or("", String::as_str), &mut input);
        // serde_json has no other mark for it.
        let msg = if error.to_string().starts_with("recursion limit exceeded") {
            format!("`body` must not be nested deeper than {DEPTH} levels")
        } else if error.is_data() {
            // Types have the same names in the document.
            let error = error.to_string().replace("expected struct ", "expected the object ");
            format!("`{}`: {error}", loc.join("."))
        } else {
            input = excerpt().into();
            format!("`body` must be JSON: {error}")
        };
        Box::new(FieldError { kind: "json_invalid", msg, loc, input, ctx: None })
    };
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let parts = error.path().iter().filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { variant } => Some(variant.clone()),
            Segment::Unknown => None,
        });
        refuse(iter::once("body".to_owned()).chain(parts).collect(), error.inner())
    })?;
    deserializer.end().map_err(|error| refuse(vec!["body".to_owned()], &error))?;
    Ok(value)
}

/// Takes secrets out of a value that is to be repeated to whoever sent it: answers end up in logs.
fn conceal(name: &str, value: &mut Json) {
    match value {
        _ if SECRETS.contains(&name) => *value = CONCEALED.into(),
        Json::Object(fields) => fields.iter_mut().for_each(|(name, value)| conceal(name, value)),
        Json::Array(items) => items.iter_mut().for_each(|item| conceal("", item)),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use actix_web::{ResponseError, http::StatusCode};
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, Deserialize)]
    struct Outer {
        #[expect(dead_code, reason = "only parsed")]
        inner: Inner,
    }

    #[derive(Debug, Deserialize)]
    struct Inner {
        #[expect(dead_code, reason = "only parsed")]
        size: u32,
    }

    #[tokio::test]
    async fn a_body_has_so_long_to_arrive() {
        let late = within(Duration::ZERO, std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(late.status_code(), StatusCode::REQUEST_TIMEOUT);
        assert!(late.to_string().contains("must arrive within 0 seconds"), "{late}");
        assert!(in_time(async { "in time" }).await.is_ok());
    }

    #[test]
    fn a_bad_body_names_field_value_and_rule() {
        let error = parse::<Outer>(br#"{"inner": {"size": -1}}"#).unwrap_err();
        assert_eq!(error.loc, ["body", "inner", "size"]);
        assert_eq!(error.input, Json::from(-1));
        assert!(
            error.msg.starts_with("`body.inner.size`: invalid value: integer `-1`, expected u32"),
            "{}",
            error.msg
        );
        assert_eq!(parse::<Outer>(b"").unwrap_err().msg, "`body` is required, got null");
        let broken = parse::<Outer>(b"{").unwrap_err();
        assert!(broken.msg.starts_with("`body` must be JSON: EOF"), "{}", broken.msg);
        assert_eq!(broken.input, Json::from("{"));
        let nested = |depth| format!("{{\"x\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
        assert!(parse::<Json>(nested(DEPTH - 1).as_bytes()).is_ok());
        let error = parse::<Json>(nested(DEPTH).as_bytes()).unwrap_err();
        assert_eq!(error.msg, "`body` must not be nested deeper than 127 levels");
        assert!(parse::<Json>(b"{} {}").unwrap_err().msg.contains("trailing characters"));
        let list = br#"{"x": [{"size": 1}, {"size": "a.b"}]}"#;
        let error = parse::<HashMap<String, Vec<Inner>>>(list).unwrap_err();
        assert_eq!(
            (error.loc.join("."), error.input),
            ("body.x.1.size".to_owned(), Json::from("a.b"))
        );
        let list = parse::<Outer>(b"[{}]").unwrap_err().msg;
        assert_eq!(list, r#"`body` must be an object, got "[{}]""#);
        for secret in ["\"s3cret\"", "[\"s3cret\"]"] {
            let body = format!(r#"{{"inner": {{"secret": {secret}}}}}"#);
            let error = parse::<Outer>(body.as_bytes()).unwrap_err();
            assert_eq!(error.input, serde_json::json!({"secret": CONCEALED}));
        }
    }
}
