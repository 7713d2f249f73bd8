//! The document for programs that only read OpenAPI 3.0: the same one, said in the older words.

use std::sync::LazyLock;

use actix_web::{HttpResponse, Responder};
use serde_json::{Map, Value as Json, json};

/// Keywords that OpenAPI 3.0 has no words for. Without them a schema says less, but nothing wrong.
const UNKNOWN: [&str; 16] = [
    "$comment",
    "$defs",
    "$id",
    "$schema",
    "contains",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "dependentRequired",
    "dependentSchemas",
    "else",
    "if",
    "patternProperties",
    "propertyNames",
    "then",
    "unevaluatedProperties",
];

/// Answers the document. Not part of the API.
pub async fn version_3_0() -> impl Responder {
    static DOCUMENT: LazyLock<String> =
        LazyLock::new(|| convert(json!(super::document())).to_string());
    HttpResponse::Ok().content_type("application/json").body(DOCUMENT.as_str())
}

/// Turns a document of OpenAPI 3.1 into one of 3.0.
fn convert(mut document: Json) -> Json {
    document["openapi"] = json!("3.0.3");
    for (place, words) in [
        ("/info/license", &["identifier"][..]),
        ("/info", &["summary"]),
        ("", &["jsonSchemaDialect", "webhooks"]),
    ] {
        if let Some(Json::Object(fields)) = document.pointer_mut(place) {
            fields.retain(|name, _| !words.contains(&name.as_str()));
        }
    }
    if let Some(Json::Object(schemas)) = document.pointer_mut("/components/schemas") {
        schemas.values_mut().for_each(schema);
    }
    outside(&mut document);
    document
}

/// Whatever is not a schema: schemas are looked for in it.
fn outside(node: &mut Json) {
    match node {
        Json::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "schema" => schema(value),
                    "schemas" | "example" | "examples" => {}
                    _ => outside(value),
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(outside),
        Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_) => {}
    }
}

fn schema(node: &mut Json) {
    let Json::Object(fields) = node else {
        // `true` takes everything; `false` is of no use in any answer or request.
        *node = json!({});
        return;
    };
    for word in UNKNOWN {
        fields.remove(word);
    }
    for (name, value) in &mut *fields {
        match name.as_str() {
            "properties" => value
                .as_object_mut()
                .into_iter()
                .flatten()
                .for_each(|(_, property)| schema(property)),
            "allOf" | "anyOf" | "oneOf" => {
                value.as_array_mut().into_iter().flatten().for_each(schema);
            }
            "items" | "not" => schema(value),
            "additionalProperties" if value.is_object() => schema(value),
            _ => {}
        }
    }
    if let Some(value) = fields.shift_remove("const") {
        fields.insert("enum".to_owned(), json!([value]));
    }
    if let Some(Json::Array(examples)) = fields.shift_remove("examples")
        && let Some(first) = examples.into_iter().next()
    {
        fields.entry("example").or_insert(first);
    }
    for (bound, exclusive) in [("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")] {
        if fields.get(exclusive).is_some_and(Json::is_number) {
            let value = fields.insert(exclusive.to_owned(), json!(true)).unwrap_or_default();
            fields.insert(bound.to_owned(), value);
        }
    }
    types(fields);
    unions(fields);
    if fields.get("type").is_some_and(|kind| kind == "array") {
        fields.entry("items").or_insert_with(|| json!({}));
    }
    // What stands beside a reference is not read in 3.0.
    if fields.len() > 1
        && let Some(reference) = fields.shift_remove("$ref")
    {
        fields.insert("allOf".to_owned(), json!([{"$ref": reference}]));
    }
}

/// `null` among the types is a word of its own, and there is one type only.
fn types(fields: &mut Map<String, Json>) {
    let mut kinds = match fields.get("type") {
        Some(Json::Array(kinds)) => kinds.clone(),
        Some(kind) if kind == "null" => vec![kind.clone()],
        _ => return,
    };
    let all = kinds.len();
    kinds.retain(|kind| kind != "null");
    if kinds.len() < all {
        fields.insert("nullable".to_owned(), json!(true));
    }
    match kinds.as_slice() {
        [] => {
            fields.shift_remove("type");
            fields.insert("enum".to_owned(), json!([null]));
        }
        [kind] => drop(fields.insert("type".to_owned(), kind.clone())),
        kinds => {
            let members: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
            fields.shift_remove("type");
            fields.insert("anyOf".to_owned(), json!(members));
        }
    }
}

/// `null` among the members of a union is that word, too.
fn unions(fields: &mut Map<String, Json>) {
    for word in ["anyOf", "oneOf"] {
        let Some(Json::Array(members)) = fields.get_mut(word) else { continue };
        let all = members.len();
        members.retain(|member| *member != json!({"nullable": true, "enum": [null]}));
        if members.len() == all {
            continue;
        }
        if members.len() == 1 {
            let member = members.remove(0);
            fields.shift_remove(word);
            if member.get("$ref").is_some() {
                fields.insert("allOf".to_owned(), json!([member]));
            } else if let Json::Object(only) = member {
                for (name, value) in only {
                    fields.entry(name).or_insert(value);
                }
            }
        }
        fields.insert("nullable".to_owned(), json!(true));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_3_1_says_otherwise() {
        for (new, old) in [
            (json!({"type": ["string", "null"]}), json!({"type": "string", "nullable": true})),
            (
                json!({"type": ["string", "integer"]}),
                json!({"anyOf": [{"type": "string"}, {"type": "integer"}]}),
            ),
            (
                json!({"oneOf": [{"type": "null"}, {"$ref": "#/x"}], "description": "An x."}),
                json!({"allOf": [{"$ref": "#/x"}], "nullable": true, "description": "An x."}),
            ),
            (
                json!({"anyOf": [{"type": "number"}, {"$ref": "#/x"}, {"type": "null"}]}),
                json!({"anyOf": [{"type": "number"}, {"$ref": "#/x"}], "nullable": true}),
            ),
            (
                json!({"anyOf": [{"type": "array", "items": true}, {"type": "null"}]}),
                json!({"type": "array", "items": {}, "nullable": true}),
            ),
            (json!({"const": 1}), json!({"enum": [1]})),
            (
                json!({"exclusiveMinimum": 0, "examples": [1, 2]}),
                json!({"minimum": 0, "exclusiveMinimum": true, "example": 1}),
            ),
            (
                json!({"$ref": "#/x", "description": "An x."}),
                json!({"allOf": [{"$ref": "#/x"}], "description": "An x."}),
            ),
            // A property may have the name of a keyword.
            (
                json!({"properties": {"type": {"type": ["string", "null"]}, "const": {}}}),
                json!({"properties": {"type": {"type": "string", "nullable": true}, "const": {}}}),
            ),
        ] {
            let mut converted = new.clone();
            schema(&mut converted);
            assert_eq!(converted, old, "from {new}");
        }
    }
}
