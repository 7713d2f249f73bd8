//! Every answer of the whole suite against our own document: the status is documented, with this content type, and the body fits its schema.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex},
};

use jsonschema::Validator;
use percent_encoding::percent_decode_str;
use regex::Regex;
use reqwest::header::CONTENT_TYPE;
use serde_json::{Value as Json, json};

use crate::{
    openapi::{document, operations},
    support::Answer,
};

static DOCUMENT: LazyLock<Json> = LazyLock::new(document);

/// Method, pattern of the path, place of the operation in the document; the most literal paths first.
static OPERATIONS: LazyLock<Vec<(String, Regex, String)>> = LazyLock::new(|| {
    let mut all: Vec<_> = operations().iter().collect();
    all.sort_by_key(|operation| (operation.path.matches('{').count(), operation.path.clone()));
    let pattern = |path: &str| {
        let escaped = regex::escape(path).replace(r"\{solver_key\}", ".+");
        let holes = Regex::new(r"\\\{\w+\\\}").unwrap();
        Regex::new(&format!("^{}$", holes.replace_all(&escaped, "[^/:]+"))).unwrap()
    };
    let place = |path: &str, method: &str| {
        format!("/paths/{}/{}", path.replace('/', "~1"), method.to_lowercase())
    };
    all.iter()
        .map(|each| (each.method.clone(), pattern(&each.path), place(&each.path, &each.method)))
        .collect()
});

/// Compiled schemas by their place in the document.
static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);

fn validator(place: &str) -> Arc<Validator> {
    let mut known = VALIDATORS.lock().unwrap();
    if let Some(validator) = known.get(place) {
        return validator.clone();
    }
    let mut schema = DOCUMENT.pointer(place).unwrap_or_else(|| panic!("no {place}")).clone();
    schema["components"] = DOCUMENT["components"].clone();
    let compiled = jsonschema::options().should_validate_formats(true).build(&schema);
    let compiled = Arc::new(compiled.unwrap_or_else(|error| panic!("{place}: {error}")));
    known.insert(place.to_owned(), compiled.clone());
    compiled
}

/// The place of the operation in the document that answers such a request.
fn place(method: &str, path: &str) -> Option<&'static str> {
    let decoded = percent_decode_str(path).decode_utf8_lossy();
    let found = OPERATIONS.iter().find(|(verb, pattern, _)| {
        verb == method && (pattern.is_match(path) || pattern.is_match(&decoded))
    });
    found.map(|(.., place)| place.as_str())
}

/// The id of that operation.
pub(crate) fn operation(method: &str, path: &str) -> Option<&'static str> {
    DOCUMENT.pointer(&format!("{}/operationId", place(method, path)?))?.as_str()
}

/// Panics if an answer is not what the document says.
pub(crate) fn check(method: &str, path: &str, answer: &Answer) {
    // The sign of life is not part of the API.
    if !path.starts_with("/v0/") || path == "/v0/" {
        return;
    }
    let status = answer.status.as_u16();
    let Some(operation) = place(method, path) else {
        // A path or a method that there is not; 307 leads to the one without the slash.
        assert!(matches!(status, 307 | 401 | 404 | 405 | 413), "{method} {path}: {answer}");
        if status != 307 && method != "HEAD" {
            fits("/components/schemas/ErrorGet", &answer.body, method, path, answer);
        }
        return;
    };
    let place = format!("{operation}/responses/{status}");
    let documented = DOCUMENT.pointer(&place);
    let documented =
        documented.unwrap_or_else(|| panic!("{method} {path}: not documented: {answer}"));
    let kind = answer.header(&CONTENT_TYPE).and_then(|kind| kind.split(';').next());
    let Some(content) = documented.get("content").and_then(Json::as_object) else {
        assert!(answer.body.is_empty(), "{method} {path}: a body that is not documented: {answer}");
        return;
    };
    let kind = kind.unwrap_or_else(|| panic!("{method} {path}: no content type: {answer}"));
    assert!(content.contains_key(kind), "{method} {path}: {kind} is not documented: {answer}");
    let schema = format!("{place}/content/{}/schema", kind.replace('/', "~1"));
    match kind {
        "application/json" => fits(&schema, &answer.body, method, path, answer),
        "application/x-ndjson" => {
            let lines = answer.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            for line in lines {
                fits(&format!("{schema}/x-itemSchema"), line, method, path, answer);
            }
        }
        _ => {}
    }
}

fn fits(schema: &str, body: &[u8], method: &str, path: &str, answer: &Answer) {
    let body: Json = serde_json::from_slice(body)
        .unwrap_or_else(|error| panic!("{method} {path}: no JSON, {error}: {answer}"));
    let validator = validator(schema);
    let errors: Vec<_> = validator
        .iter_errors(&body)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(errors.is_empty(), "{method} {path}: {schema}: {}\n{answer}", errors.join("\n"));
}

#[test]
#[should_panic(expected = "not documented")]
fn a_status_that_is_not_documented_is_found() {
    let headers = reqwest::header::HeaderMap::new();
    check(
        "GET",
        "/v0/me",
        &Answer { status: reqwest::StatusCode::IM_A_TEAPOT, headers, body: vec![] },
    );
}

#[test]
#[should_panic(expected = "\"login\" is a required property")]
fn a_body_that_does_not_fit_is_found() {
    let headers = [(CONTENT_TYPE, "application/json".parse().unwrap())].into_iter().collect();
    let body = json!({"id": 1, "role": "USER"}).to_string().into_bytes();
    check("GET", "/v0/me", &Answer { status: reqwest::StatusCode::OK, headers, body });
}
