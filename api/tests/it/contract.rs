//! What we share with oSPARC's public API, compared with both of its documents: operations, parameters, bodies, statuses, field types.
//!
//! `upstream.json` is their extract; `scripts/upstream.py` makes it. A request that is good there must be good here, and an answer from
//! here must be good there; that ours take or promise more is no difference.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Command,
};

use serde_json::{Map, Value as Json};

use crate::openapi::{document, operations};

const UPSTREAM: &str = include_str!("upstream.json");

/// Differences that are meant: operation, what differs, and why. `*` stands for any operation, or for any beginning or end of what differs.
const INTENDED: [(&str, &str, &str); 24] = [
    ("*", "402", "nothing costs anything here"),
    ("*", "504", "there is no gateway with slow servers behind it, only the object store: 502"),
    (START, "406", "no release grows obsolete"),
    (STREAM, "409", "several readers may follow one log"),
    (
        STREAM,
        "200 application/x-ndjson ",
        "text that generated clients cannot read: they all can read bytes",
    ),
    (LOGFILE, "200 application/octet-stream ", "a log is always a zip"),
    (LOGFILE, "200 text/plain ", "a log is always a zip"),
    (
        "GET /v0/files/{file_id}/content",
        "200 text/plain ",
        "a download is bytes, whatever they mean",
    ),
    ("POST /v0/files/content", "body application/json *", ONE_FILE),
    (
        "PUT /v0/files/content",
        "header content-length*",
        "every client sends it by itself; as a parameter it would have to be counted by hand",
    ),
    ("*", "body application/json .client_file*", ONE_FILE),
    ("*", "path wallet_id", "the older of the two documents leaves the bound out"),
    (STUDY_START, "406", "no release grows obsolete"),
    (STUDY_JOB, "200", "upstream has not built it yet"),
    (STUDY_JOB, "501", "it is built here"),
    ("*", "404", "where nothing is named, nothing is missing"),
    ("*", "403", "what belongs to others does not exist: 404"),
    ("*", "200 application/json .status", "a wallet is always active"),
    ("*", "200 application/json .classification", "a plan never is a licence"),
    ("*", "body application/json .callback.*", "oSPARC's clients send no callback at all"),
    (CLONE, "body application/json .title", NO_NUL),
    (CLONE, "body application/json .description", NO_NUL),
    ("PUT /v0/me", "body application/json .first_name", NO_NUL),
    ("PUT /v0/me", "body application/json .last_name", NO_NUL),
];
/// What is not served of the nouns that are: there are no licensed items, and the hand-written client reaches none of these.
const NOT_SERVED: [&str; 2] = [
    "GET /v0/licensed-items",
    "POST /v0/licensed-items/{licensed_item_id}/checked-out-items/{licensed_item_checkout_id}/release",
];
const CLONE: &str = "POST /v0/studies/{study_id}:clone";
const NO_NUL: &str = "Postgres has no text with NUL";
const STUDY_START: &str = "POST /v0/studies/{study_id}/jobs/{job_id}:start";
const STUDY_JOB: &str = "GET /v0/studies/{study_id}/jobs/{job_id}";
const ONE_FILE: &str = "one type takes what UserFile and UserFileToProgramJob say: of the union clients would make a third type around both";
const START: &str = "POST /v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}:start";
const STREAM: &str = "GET /v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}/logstream";
const LOGFILE: &str =
    "GET /v0/solvers/{solver_key}/releases/{version}/jobs/{job_id}/outputs/logfile";

/// What one document says about one operation, in short sentences.
type Facts = BTreeMap<String, String>;

/// The schemas of a document.
struct Schemas<'a>(&'a Map<String, Json>);

impl<'a> Schemas<'a> {
    fn resolve(&self, schema: &'a Json) -> (&'a Json, Option<&'a str>) {
        let alone = schema["allOf"].as_array().filter(|all| all.len() == 1).map(|all| &all[0]);
        let schema = alone.unwrap_or(schema);
        let Some(name) = schema["$ref"].as_str().and_then(|path| path.rsplit('/').next()) else {
            return (schema, None);
        };
        (self.resolve(&self.0[name]).0, Some(name))
    }

    /// The members of a union, without `null`, and whether that is one.
    fn members(&self, schema: &'a Json) -> (Vec<(Json, Option<&'a str>)>, bool) {
        let (schema, name) = self.resolve(schema);
        let union = ["anyOf", "oneOf"].iter().find_map(|word| schema[word].as_array());
        if let (Some(union), true) = (union, schema["type"].is_null()) {
            let (mut all, mut nullable) = (Vec::new(), false);
            for member in union {
                let (members, null) = self.members(member);
                all.extend(members);
                nullable |= null;
            }
            return (all, nullable);
        }
        let Some(kinds) = schema["type"].as_array() else {
            let null = schema["type"] == "null";
            return (if null { vec![] } else { vec![(schema.clone(), name)] }, null);
        };
        let plain = kinds.iter().filter(|kind| *kind != "null").map(|kind| {
            let mut plain = schema.clone();
            plain["type"] = kind.clone();
            (plain, name)
        });
        (plain.collect(), kinds.iter().any(|kind| kind == "null"))
    }

    /// Says what is at `place` and below.
    fn describe(&self, place: &str, schema: &'a Json, within: &[&str], facts: &mut Facts) {
        let (members, nullable) = self.members(schema);
        let mut kinds: Vec<_> = members.iter().map(|(member, _)| kind(member)).collect();
        kinds.sort_unstable();
        kinds.dedup();
        if kinds.contains(&"number".to_owned()) {
            kinds.retain(|kind| kind != "integer");
        }
        if nullable {
            kinds.push("null".to_owned());
        }
        facts.insert(place.to_owned(), kinds.join(" or "));
        let objects = members.iter().filter(|(member, _)| member["properties"].is_object()).count();
        for (member, name) in &members {
            if name.is_some_and(|name| within.contains(&name)) {
                continue;
            }
            let within: Vec<_> = within.iter().copied().chain(*name).collect();
            // The objects of a union are told apart by their names.
            let of = name.filter(|_| objects > 1).map(|name| format!("<{name}>"));
            let place = format!("{place}{}", of.unwrap_or_default());
            let nested = |schema: &Json, place: String, facts: &mut Facts| {
                let mut deeper = Facts::new();
                Schemas(self.0).describe(&place, &schema.clone(), &within, &mut deeper);
                facts.extend(deeper);
            };
            for (field, schema) in member["properties"].as_object().into_iter().flatten() {
                nested(schema, format!("{place}.{field}"), facts);
                let required = member["required"].as_array().into_iter().flatten();
                let required = required.filter_map(Json::as_str).any(|each| each == field);
                facts.insert(format!("{place}.{field} required"), required.to_string());
            }
            for (word, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
                if member[word].is_object() {
                    nested(&member[word], format!("{place}{mark}"), facts);
                }
            }
        }
    }
}

/// A type in words, with its bounds.
fn kind(schema: &Json) -> String {
    let mut words = vec![schema["type"].as_str().unwrap_or("anything").to_owned()];
    if let Some(values) = schema["enum"].as_array() {
        let mut values: Vec<_> = values.iter().map(Json::to_string).collect();
        values.sort_unstable();
        words.push(values.join("|"));
    }
    for word in [
        "format",
        "pattern",
        "minimum",
        "exclusiveMinimum",
        "maximum",
        "exclusiveMaximum",
        "minLength",
        "maxLength",
        "minItems",
        "maxItems",
    ] {
        match (word, &schema[word]) {
            (_, Json::Null) => {}
            // The width of a number is no rule for its text.
            ("format", width) if width == "int32" || width == "int64" || width == "double" => {}
            ("exclusiveMinimum", bound) if words[0] == "integer" => {
                words.push(format!("minimum={}", bound.as_i64().unwrap() + 1));
            }
            // 0 and 0.0 are one bound.
            (word, Json::Number(bound)) => {
                words.push(format!("{word}={}", bound.as_f64().unwrap()));
            }
            (word, value) => words.push(format!("{word}={value}")),
        }
    }
    words.join(" ")
}

/// An operation as either document has it, in one form.
struct Operation {
    request: Facts,
    answer: Facts,
    errors: BTreeSet<String>,
}

impl Operation {
    /// Ours, as the document says it.
    fn ours(definition: &Json, schemas: &Schemas<'_>) -> Self {
        let content = |body: &Json| -> Map<String, Json> {
            let media = body["content"].as_object().into_iter().flatten();
            media.map(|(kind, media)| (kind.clone(), media["schema"].clone())).collect()
        };
        let mut operation = serde_json::json!({
            "parameters": definition["parameters"].as_array().cloned().unwrap_or_default(),
            "responses": {},
        });
        if definition["requestBody"].is_object() {
            let body = &definition["requestBody"];
            operation["body"] = serde_json::json!({"required": body["required"].as_bool().unwrap_or(false), "content": content(body)});
        }
        for (status, response) in definition["responses"].as_object().unwrap() {
            operation["responses"][status] = Json::Object(content(response));
        }
        Self::of(&operation, schemas)
    }

    /// One in the form of the extract.
    fn of(operation: &Json, schemas: &Schemas<'_>) -> Self {
        let (mut request, mut answer, mut errors) = (Facts::new(), Facts::new(), BTreeSet::new());
        let describe = |place: &str, schema: &Json, facts: &mut Facts| {
            let mut found = Facts::new();
            Schemas(schemas.0).describe(place, &schema.clone(), &[], &mut found);
            facts.extend(found);
        };
        for parameter in operation["parameters"].as_array().unwrap() {
            let place = format!(
                "{} {}",
                parameter["in"].as_str().unwrap(),
                parameter["name"].as_str().unwrap()
            );
            describe(&place, &parameter["schema"], &mut request);
            // Nobody can write null in a path, a query or a header.
            let text = request.get_mut(&place).unwrap();
            *text = text.trim_end_matches(" or null").to_owned();
            let default = &parameter["schema"]["default"];
            if !default.is_null() {
                request.insert(format!("{place} default"), default.to_string());
            }
            let required = parameter["required"].as_bool().unwrap_or(false);
            request.insert(format!("{place} required"), required.to_string());
        }
        if let Some(content) = operation["body"]["content"].as_object() {
            request.insert("body required".to_owned(), operation["body"]["required"].to_string());
            for (kind, schema) in content {
                describe(&format!("body {kind} "), schema, &mut request);
            }
        }
        for (status, content) in operation["responses"].as_object().unwrap() {
            if !status.starts_with(['2', '3']) {
                errors.insert(status.clone());
                continue;
            }
            answer.insert(status.clone(), "answered".to_owned());
            for (kind, schema) in content.as_object().unwrap() {
                describe(&format!("{status} {kind} "), schema, &mut answer);
            }
        }
        Self { request, answer, errors }
    }

    /// What a client of the other document stumbles over here.
    fn differences(&self, upstream: &Self) -> Vec<(String, String)> {
        let mut found = Vec::new();
        let mut differ = |fact: &str, theirs: &str, ours: &str| {
            found.push((fact.to_owned(), format!("theirs {theirs}, ours {ours}")));
        };
        for (fact, theirs) in &upstream.request {
            let ours = self.request.get(fact).map_or("absent", String::as_str);
            let wider = ours == "false" && fact.ends_with(" required")
                || *ours == format!("{theirs} or null");
            if ours != theirs && !wider {
                differ(fact, theirs, ours);
            }
        }
        // A body that the other document does not have may be left out here.
        let body = upstream.request.contains_key("body required")
            || self.request.get("body required").is_some_and(|required| required == "true");
        for (fact, ours) in &self.request {
            if fact.ends_with(" required")
                && ours == "true"
                && (body || !fact.starts_with("body"))
                && !upstream.request.contains_key(fact)
            {
                differ(fact, "absent", ours);
            }
        }
        for (fact, theirs) in &upstream.answer {
            let ours = self.answer.get(fact).map_or("absent", String::as_str);
            let narrower = ours == "true" && fact.ends_with(" required")
                || *theirs == format!("{ours} or null");
            if ours != theirs && !narrower {
                differ(fact, theirs, ours);
            }
        }
        for fact in self
            .answer
            .keys()
            .filter(|fact| fact.len() == 3 && !upstream.answer.contains_key(*fact))
        {
            differ(fact, "absent", "answered");
        }
        for status in upstream.errors.difference(&self.errors) {
            differ(status, "answered", "absent");
        }
        found
    }
}

fn is_intended(entry: (&str, &str, &str), operation: &str, fact: &str) -> bool {
    let (operations, facts, _) = entry;
    let matches = match (facts.strip_prefix('*'), facts.strip_suffix('*')) {
        (Some(_), Some(_)) => fact.contains(facts.trim_matches('*')),
        (Some(end), None) => fact.ends_with(end),
        (None, Some(begin)) => fact.starts_with(begin),
        (None, None) => fact == facts,
    };
    matches && (operations == "*" || operations == operation)
}

#[test]
fn shared_operations_fit_clients_of_both_upstream_documents() {
    let upstream: Json = serde_json::from_str(UPSTREAM).unwrap();
    let document = document();
    let our_schemas = Schemas(document["components"]["schemas"].as_object().unwrap());
    let (newer, older) = (&upstream["0.16.0"], &upstream["0.13.0"]);
    let (mut compared, mut used, mut surprises) = (0, BTreeSet::new(), BTreeSet::new());
    for operation in operations() {
        let name = format!("{} {}", operation.method, operation.path);
        for older in [None, Some(older)] {
            let mut theirs = newer["operations"][&name].clone();
            let mut schemas = newer["schemas"].as_object().unwrap().clone();
            if let Some(older) = older {
                let changed = older["operations"].as_object().unwrap().get(&name);
                theirs = changed.cloned().unwrap_or(theirs);
                schemas.extend(older["schemas"].as_object().unwrap().clone());
            }
            if theirs.is_null() {
                continue;
            }
            compared += usize::from(older.is_none());
            let theirs = Operation::of(&theirs, &Schemas(&schemas));
            let ours = Operation::ours(&operation.definition, &our_schemas);
            for (fact, difference) in ours.differences(&theirs) {
                let entry = INTENDED.iter().position(|entry| is_intended(*entry, &name, &fact));
                match entry {
                    Some(entry) => drop(used.insert(entry)),
                    None => drop(surprises.insert(format!("{name}: {fact}: {difference}"))),
                }
            }
        }
    }
    let surprises: Vec<_> = surprises.into_iter().collect();
    assert!(surprises.is_empty(), "{} differences:\n{}", surprises.len(), surprises.join("\n"));
    for (number, (operation, fact, reason)) in INTENDED.iter().enumerate() {
        assert!(
            used.contains(&number),
            "there is no such difference: {operation}: {fact} ({reason})"
        );
    }
    let ours: BTreeSet<_> = operations()
        .iter()
        .map(|operation| format!("{} {}", operation.method, operation.path))
        .collect();
    let theirs = newer["operations"].as_object().unwrap();
    let missing: Vec<_> = theirs.keys().filter(|name| !ours.contains(*name)).collect();
    assert_eq!(missing, NOT_SERVED, "of the nouns that are served");
    assert_eq!(compared, theirs.len() - missing.len());
}

/// Who has oSPARC's documents at hand sees when the extract is stale.
#[test]
fn the_extract_is_that_of_upstreams_documents() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let documents = root.join("../shared/contract");
    if !fs::exists(&documents).unwrap() {
        return;
    }
    let mut check = Command::new("python3");
    check.arg(root.join("scripts/upstream.py")).arg(documents).arg("--check");
    let output = check.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// oSPARC's clients leave out what has a default, and generated ones must be able to.
#[test]
fn every_query_parameter_is_optional() {
    for operation in operations() {
        for parameter in operation.definition["parameters"].as_array().into_iter().flatten() {
            let required = parameter["required"].as_bool().unwrap_or(false);
            // oSPARC demands this one as well.
            let demanded = parameter["in"] == "path" || parameter["name"] == "job_ids";
            assert_eq!(required, demanded, "{}: {parameter}", operation.id());
        }
    }
}
