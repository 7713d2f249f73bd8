//! The OpenAPI document: it is the committed one, and it says everything that users and generated clients need.

use std::{collections::BTreeSet, fs, path::Path, sync::LazyLock};

use serde_json::Value as Json;

use crate::support::env;

/// The document as it is served.
pub(crate) fn document() -> Json {
    serde_json::to_value(solverd::openapi::document()).unwrap()
}

/// An operation of the document.
pub(crate) struct Operation {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) definition: Json,
}

impl Operation {
    pub(crate) fn id(&self) -> &str {
        self.definition["operationId"].as_str().unwrap_or_default()
    }
}

/// All operations of the document.
pub(crate) fn operations() -> &'static [Operation] {
    static OPERATIONS: LazyLock<Vec<Operation>> = LazyLock::new(read_operations);
    &OPERATIONS
}

fn read_operations() -> Vec<Operation> {
    let mut operations = Vec::new();
    for (path, item) in document()["paths"].as_object().unwrap() {
        for (method, definition) in item.as_object().unwrap() {
            operations.push(Operation {
                method: method.to_uppercase(),
                path: path.clone(),
                definition: definition.clone(),
            });
        }
    }
    assert!(operations.len() > 20, "only {} operations", operations.len());
    operations
}

#[test]
fn the_committed_document_is_the_served_one() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../openapi/openapi.json");
    let served = solverd::openapi::document().to_pretty_json().unwrap() + "\n";
    if env("BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &served).unwrap();
    }
    let committed = fs::read_to_string(&path).unwrap_or_default();
    if served != committed {
        let differs = served.lines().zip(committed.lines()).position(|(new, old)| new != old);
        let line = differs.unwrap_or_else(|| served.lines().count().min(committed.lines().count()));
        panic!(
            "openapi/openapi.json is not what is served, from line {} on; `BLESS=1 cargo test -p solverd --test it openapi` writes it",
            line + 1
        );
    }
}

#[test]
fn every_reference_leads_somewhere() {
    fn walk(node: &Json, found: &mut BTreeSet<String>) {
        match node {
            Json::Object(fields) => {
                if let Some(Json::String(reference)) = fields.get("$ref") {
                    found.insert(reference.clone());
                }
                fields.values().for_each(|value| walk(value, found));
            }
            Json::Array(items) => items.iter().for_each(|item| walk(item, found)),
            Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
        }
    }
    let (document, mut found) = (document(), BTreeSet::new());
    walk(&document, &mut found);
    assert!(!found.is_empty());
    for reference in &found {
        let target = reference.strip_prefix('#').and_then(|pointer| document.pointer(pointer));
        assert!(target.is_some(), "{reference} leads nowhere");
    }
    for name in document["components"]["schemas"].as_object().unwrap().keys() {
        let reference = format!("#/components/schemas/{name}");
        assert!(found.contains(&reference), "nothing refers to the schema {name}");
    }
}

/// What a pointer into an answer leads to, by the answer's schema.
fn schema_at<'a>(document: &'a Json, mut schema: &'a Json, pointer: &str) -> Option<&'a Json> {
    for token in pointer.split('/').skip(1) {
        if let Some(reference) = schema["$ref"].as_str() {
            schema = document.pointer(reference.strip_prefix('#')?)?;
        }
        schema = if token.parse::<usize>().is_ok() {
            schema.get("items")?
        } else {
            schema.get("properties")?.get(token)?
        };
    }
    Some(schema)
}

#[test]
fn every_link_gives_its_target_all_parameters_of_its_path() {
    let (document, operations) = (document(), operations());
    let holes = |operation: &Operation| -> BTreeSet<String> {
        let parts = operation.path.split('{').skip(1);
        parts.map(|part| part.split('}').next().unwrap().to_owned()).collect()
    };
    let mut sources = BTreeSet::new();
    for operation in operations {
        for (status, response) in operation.definition["responses"].as_object().unwrap() {
            for (name, link) in response["links"].as_object().into_iter().flatten() {
                let what = format!("{} {status} -> {name}", operation.id());
                let target = operations.iter().find(|each| link["operationId"] == each.id());
                let given = link["parameters"].as_object().unwrap();
                let wanted = holes(target.unwrap_or_else(|| panic!("{what}: no such operation")));
                assert_eq!(given.keys().cloned().collect::<BTreeSet<_>>(), wanted, "{what}");
                let schema = &response["content"]["application/json"]["schema"];
                for value in given.values().map(|value| value.as_str().unwrap()) {
                    let is_there = if let Some(("$response.body", at)) = value.split_once('#') {
                        schema_at(&document, schema, at).is_some()
                    } else {
                        let own = value.strip_prefix("$request.path.").unwrap_or_default();
                        holes(operation).contains(own)
                    };
                    assert!(is_there, "{what}: there is no {value}");
                }
                sources.insert(operation.id());
            }
        }
    }
    let expected = [
        "clone_study",
        "complete_multipart_upload",
        "create_solver_job",
        "create_study_job",
        "get_default_wallet",
        "get_upload_links",
        "list_files",
        "list_solvers",
        "list_studies",
        "upload_file",
    ];
    assert_eq!(sources, BTreeSet::from(expected));
}

#[test]
fn every_operation_is_documented() {
    let says = |value: &Json| value.as_str().is_some_and(|text| !text.trim().is_empty());
    let (mut missing, mut ids) = (Vec::new(), BTreeSet::new());
    for operation in operations() {
        let Operation { method, path, definition } = operation;
        let mut need = |holds: bool, what: String| {
            if !holds {
                missing.push(format!("{method} {path}: {what}"));
            }
        };
        need(says(&definition["summary"]), "no summary".to_owned());
        need(definition["tags"].as_array().is_some_and(|tags| tags.len() == 1), "no tag".into());
        need(ids.insert(operation.id().to_owned()), "no operationId of its own".to_owned());
        let parameters = definition["parameters"].as_array().into_iter().flatten();
        let mut in_path = BTreeSet::new();
        for parameter in parameters {
            let name = parameter["name"].as_str().unwrap();
            need(says(&parameter["description"]), format!("`{name}` has no description"));
            if parameter["in"] == "path" {
                in_path.insert(format!("{{{name}}}"));
            }
        }
        let holes: BTreeSet<_> = path
            .split(['/', ':'])
            .filter(|part| part.starts_with('{'))
            .map(str::to_owned)
            .collect();
        need(holes == in_path, format!("its path parameters are {in_path:?}"));
        for (status, response) in definition["responses"].as_object().unwrap() {
            need(says(&response["description"]), format!("{status} has no description"));
        }
        let success = definition["responses"]
            .as_object()
            .unwrap()
            .keys()
            .any(|status| status.starts_with('2'));
        need(success, "no success".to_owned());
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

#[test]
fn every_tag_is_described() {
    let document = document();
    let described: BTreeSet<_> = document["tags"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|tag| tag["description"].is_string())
        .map(|tag| tag["name"].as_str().unwrap().to_owned())
        .collect();
    let used: BTreeSet<_> = operations()
        .iter()
        .map(|operation| operation.definition["tags"][0].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(described, used);
}
