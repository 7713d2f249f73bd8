//! Values of ports: what is accepted when a job is created, and what becomes of a solver's own outputs.
//!
//! The rule for inputs is generous on purpose: oSPARC's tutorials pass `"false"` to a boolean port, so a value whose *text* is valid
//! is accepted, and delivered verbatim; so are 0 and 1 for a boolean. What no reading makes valid is refused, with the port, the value
//! and the rule.

use std::{collections::BTreeMap, ops::Deref};

use jsonschema::Validator;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};
use sha2::{Digest, Sha256};

use super::{
    file::FileRef,
    id::FileId,
    solver::{Port, PortType, Release},
    user::hex,
};

/// Named values: a job's inputs, its outputs, its owner's notes. Keys keep the order they were given in.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Values(pub Map<String, Json>);

impl Deref for Values {
    type Target = Map<String, Json>;
    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl FromIterator<(String, Json)> for Values {
    fn from_iter<I: IntoIterator<Item = (String, Json)>>(pairs: I) -> Self {
        Self(pairs.into_iter().collect())
    }
}

/// A value that its port does not take.
#[derive(Debug, Clone, PartialEq)]
pub struct Problem {
    /// Key of the port.
    pub port: String,
    /// The value as it was given.
    pub value: Json,
    /// The rule that it breaks, e.g. `{"type": "integer"}`.
    pub rule: Json,
    /// A sentence that names all three.
    pub message: String,
}

/// The input ports of a release with their schemas compiled: made once, used for every job.
#[derive(Debug)]
pub struct InputRules(Vec<(Port, Option<Validator>)>);

impl InputRules {
    /// Compiles the schemas of all input ports.
    pub fn compile(release: &Release) -> Result<Self, String> {
        let rule = |port: &Port| {
            if port.is_file() {
                return Ok((port.clone(), None));
            }
            let validator = jsonschema::validator_for(&port.content_schema());
            validator
                .map(|rule| (port.clone(), Some(rule)))
                .map_err(|error| format!("port `{}`: {error}", port.key))
        };
        release.inputs.iter().map(rule).collect::<Result<_, _>>().map(Self)
    }

    /// Checks the values given for a new job; all problems at once. Gives the files that are referred to, by port.
    pub fn check(&self, values: &Values) -> Result<BTreeMap<String, FileId>, Vec<Problem>> {
        let mut files = BTreeMap::new();
        let mut problems = Vec::new();
        for (port, validator) in &self.0 {
            let value = values.get(&port.key).unwrap_or(&Json::Null);
            match (value, validator) {
                (Json::Null, _) if port.required && port.default.is_none() => {
                    problems.push(problem(
                        port,
                        value,
                        json!({"required": true}),
                        "a value is required",
                    ));
                }
                (Json::Null, _) => {}
                (Json::Object(_), None) => match serde_json::from_value::<FileRef>(value.clone()) {
                    Ok(file) => {
                        files.insert(port.key.clone(), file.id);
                    }
                    Err(error) => problems.push(problem(
                        port,
                        value,
                        json!({"type": "File"}),
                        &error.to_string(),
                    )),
                },
                (_, None) => problems.push(problem(
                    port,
                    value,
                    json!({"type": "File"}),
                    "a file is expected",
                )),
                (_, Some(validator)) => {
                    if let Some((rule, message)) = breach(&port.content_schema(), validator, value)
                    {
                        problems.push(problem(port, value, rule, &message));
                    }
                }
            }
        }
        for (key, value) in values.iter() {
            let known = self.0.iter().any(|(port, _)| port.key == *key);
            if !known
                && value.is_object()
                && serde_json::from_value::<FileRef>(value.clone()).is_err()
            {
                problems.push(Problem {
                    port: key.clone(),
                    value: value.clone(),
                    rule: json!({"type": "File"}),
                    message: format!(
                        "input `{key}`: an object must be a file, with `id` and `filename`, got {}",
                        excerpt(value)
                    ),
                });
            }
        }
        if problems.is_empty() { Ok(files) } else { Err(problems) }
    }
}

fn problem(port: &Port, value: &Json, rule: Json, message: &str) -> Problem {
    let message =
        format!("input `{}` ({}): {message}, got {}", port.key, port.label, excerpt(value));
    Problem { port: port.key.clone(), value: value.clone(), rule, message }
}

/// A value as it is shown in a message.
fn excerpt(value: &Json) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 { text } else { text.chars().take(79).chain(['…']).collect() }
}

/// The rule that no reading of the value meets: that of the reading that comes closest, so `"66"` is above a maximum of 65 rather
/// than no integer.
fn breach(schema: &Json, validator: &Validator, value: &Json) -> Option<(Json, String)> {
    let first = |value: &Json| {
        let error = validator.iter_errors(value).next()?;
        let keyword = error.kind().keyword();
        let rule = schema.pointer(error.schema_path().as_str()).cloned().unwrap_or_default();
        let at = error.instance_path().to_string();
        let place = if at.is_empty() { at } else { format!(" at {at}") };
        Some((keyword.to_owned(), json!({ keyword: rule }), format!("{error}{place}")))
    };
    let (mut keyword, mut rule, mut message) = first(value)?;
    // A number is read as its text only where text is asked for: without a `type`, text would slip past `minimum`.
    let readings =
        if value.is_string() || keyword == "type" { readings(value) } else { Vec::new() };
    for reading in readings {
        let (other, other_rule, other_message) = first(&reading)?;
        if keyword == "type" && other != "type" {
            (keyword, rule, message) = (other, other_rule, other_message);
        }
    }
    Some((rule, message))
}

/// What the text of a value may also mean.
fn readings(value: &Json) -> Vec<Json> {
    match value {
        Json::String(text) => {
            // Python prints its booleans with a capital.
            let text = text.trim();
            let text = if text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false") {
                text.to_ascii_lowercase()
            } else {
                text.to_owned()
            };
            serde_json::from_str(&text).ok().into_iter().collect()
        }
        Json::Number(number) => {
            // oSPARC's older tutorials mean `false` when they pass 0.
            let truth = number.as_u64().filter(|number| *number < 2);
            let truth = truth.map(|number| Json::Bool(number == 1));
            [Json::String(value.to_string())].into_iter().chain(truth).collect()
        }
        Json::Bool(_) => vec![Json::String(value.to_string())],
        Json::Null | Json::Array(_) | Json::Object(_) => Vec::new(),
    }
}

/// A fingerprint of the values a job was created with: SHA-256 over `key:value` of the sorted keys, the values as Python prints
/// them, so that the common ones agree with oSPARC's.
pub fn inputs_checksum(values: &Values) -> String {
    let sorted: BTreeMap<_, _> = values.iter().collect();
    let mut hash = Sha256::new();
    for (key, value) in sorted {
        let text = match value {
            Json::Bool(true) => "True".to_owned(),
            Json::Bool(false) => "False".to_owned(),
            Json::Null => "None".to_owned(),
            Json::String(text) => text.clone(),
            Json::Number(_) | Json::Array(_) | Json::Object(_) => value.to_string(),
        };
        hash.update(format!("{key}:{text}"));
    }
    hex(&hash.finalize())
}

/// Brings a solver's own output to the type its port declares. Strict where the value would change its meaning, generous in notation:
/// `"3"` and `3.0` are the integer 3. Objects become JSON text, because oSPARC's clients take no object but a file.
pub fn cast_output(port: &Port, value: Json) -> Result<Json, String> {
    let refuse =
        |rule: &str| Err(format!("output `{}`: {rule}, got {}", port.key, excerpt(&value)));
    match &port.kind {
        PortType::Integer => match integer(&value) {
            Some(number) => Ok(json!(number)),
            None => refuse("an integer is expected"),
        },
        PortType::Number => match number(&value) {
            Some(number) => Ok(json!(number)),
            None => refuse("a finite number is expected"),
        },
        PortType::Boolean => match boolean(&value) {
            Some(truth) => Ok(json!(truth)),
            None => refuse("true or false is expected"),
        },
        PortType::String => match value {
            Json::String(_) => Ok(value),
            Json::Bool(_) | Json::Number(_) | Json::Array(_) | Json::Object(_) => {
                Ok(json!(value.to_string()))
            }
            Json::Null => refuse("text is expected"),
        },
        PortType::Schema(schema) => {
            let validator = jsonschema::validator_for(schema).map_err(|error| error.to_string())?;
            let breach = validator.validate(&value).err().map(|error| error.to_string());
            match breach {
                Some(rule) => refuse(&rule),
                None if value.is_object() => Ok(json!(value.to_string())),
                None => Ok(value),
            }
        }
        PortType::File(_) => refuse("a file is expected"),
    }
}

fn number(value: &Json) -> Option<f64> {
    let number = match value {
        Json::Number(number) => number.as_f64(),
        Json::String(text) => text.trim().parse().ok(),
        Json::Bool(truth) => Some(f64::from(u8::from(*truth))),
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    };
    number.filter(|number| number.is_finite())
}

fn integer(value: &Json) -> Option<i64> {
    if let Some(exact) = value.as_i64() {
        return Some(exact);
    }
    if let Some(exact) = value.as_str().and_then(|text| text.trim().parse().ok()) {
        return Some(exact);
    }
    // Floats hold integers exactly up to 2^53.
    let number = number(value)
        .filter(|number| number.fract() == 0.0 && number.abs() <= 9_007_199_254_740_992.0)?;
    #[expect(clippy::cast_possible_truncation, reason = "no fraction, within 2^53")]
    Some(number as i64)
}

fn boolean(value: &Json) -> Option<bool> {
    match value {
        Json::Bool(truth) => Some(*truth),
        Json::String(text) if text.trim().eq_ignore_ascii_case("true") => Some(true),
        Json::String(text) if text.trim().eq_ignore_ascii_case("false") => Some(false),
        Json::Number(_) | Json::String(_) => number(value).map(|number| number != 0.0),
        Json::Null | Json::Array(_) | Json::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(kind: PortType) -> Port {
        Port {
            key: "p".into(),
            label: "P".into(),
            description: String::new(),
            kind,
            path: None,
            unit: None,
            default: None,
            required: false,
        }
    }

    fn rules(port: Port) -> InputRules {
        let validator =
            (!port.is_file()).then(|| jsonschema::validator_for(&port.content_schema()).unwrap());
        InputRules(vec![(port, validator)])
    }

    fn check(port: Port, value: &Json) -> Result<BTreeMap<String, FileId>, String> {
        let values = Values::from_iter([("p".to_owned(), value.clone())]);
        rules(port).check(&values).map_err(|problems| problems[0].message.clone())
    }

    #[test]
    fn text_that_reads_as_the_type_is_taken() {
        let schema = json!({"type": "integer", "minimum": 3});
        for (kind, value) in [
            (PortType::Boolean, json!("false")),
            (PortType::Boolean, json!("True")),
            (PortType::Boolean, json!(0)),
            (PortType::Boolean, json!(1)),
            (PortType::Integer, json!("7")),
            (PortType::Integer, json!(2.0)),
            (PortType::Number, json!("1e-3")),
            (PortType::Number, json!(4)),
            (PortType::String, json!(5)),
            (PortType::Schema(schema), json!("3")),
            (PortType::Integer, Json::Null),
        ] {
            assert_eq!(check(port(kind.clone()), &value), Ok(BTreeMap::new()), "{kind:?} {value}");
        }
    }

    #[test]
    fn what_no_reading_makes_valid_is_refused_with_port_value_and_rule() {
        for (kind, value, expected) in [
            (
                PortType::Boolean,
                json!("maybe"),
                r#"input `p` (P): "maybe" is not of type "boolean", got "maybe""#,
            ),
            (PortType::Boolean, json!(2), r#"input `p` (P): 2 is not of type "boolean", got 2"#),
            (
                PortType::Integer,
                json!(2.5),
                r#"input `p` (P): 2.5 is not of type "integer", got 2.5"#,
            ),
            (
                PortType::Integer,
                json!([1]),
                r#"input `p` (P): [1] is not of type "integer", got [1]"#,
            ),
            (
                PortType::Schema(json!({"type": "integer", "minimum": 3})),
                json!("2"),
                r#"input `p` (P): 2 is less than the minimum of 3, got "2""#,
            ),
            (
                PortType::Schema(json!({"minimum": 3})),
                json!(2),
                "input `p` (P): 2 is less than the minimum of 3, got 2",
            ),
            (
                PortType::File("text/plain".into()),
                json!("x"),
                r#"input `p` (P): a file is expected, got "x""#,
            ),
            (
                PortType::File("text/plain".into()),
                json!({"id": 1}),
                "input `p` (P): invalid type: integer `1`",
            ),
        ] {
            let message = check(port(kind), &value).unwrap_err();
            assert!(message.starts_with(expected), "{message}");
        }
        let required = Port { required: true, ..port(PortType::Number) };
        assert_eq!(
            check(required, &Json::Null),
            Err("input `p` (P): a value is required, got null".to_owned())
        );
    }

    #[test]
    fn files_are_found_by_port() {
        let id = FileId::new();
        let value = json!({"id": id, "filename": "a.txt", "content_type": null, "checksum": null, "e_tag": null});
        assert_eq!(
            check(port(PortType::File("*/*".into())), &value),
            Ok(BTreeMap::from([("p".to_owned(), id)]))
        );
    }

    #[test]
    fn checksum_agrees_with_upstream() {
        let values = json!({"x": 4.33, "n": 55, "title": "Temperature", "enabled": true});
        assert_eq!(
            inputs_checksum(&serde_json::from_value(values).unwrap()),
            "f6fce006d0fe7b6168fc20a10ec1fe74d1723ebc935232d3c0707c277db2ef0c"
        );
        assert_eq!(
            inputs_checksum(&Values::default()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
    }

    #[test]
    fn outputs_are_cast_or_refused() {
        let cast = |kind, value| cast_output(&port(kind), value);
        assert_eq!(cast(PortType::Integer, json!("3")), Ok(json!(3)));
        assert_eq!(cast(PortType::Integer, json!(3.0)), Ok(json!(3)));
        assert_eq!(cast(PortType::Number, json!(3)), Ok(json!(3.0)));
        assert_eq!(cast(PortType::Boolean, json!("false")), Ok(json!(false)));
        assert_eq!(cast(PortType::String, json!(1.5)), Ok(json!("1.5")));
        assert_eq!(
            cast(PortType::Schema(json!({"type": "object"})), json!({"a": 1})),
            Ok(json!(r#"{"a":1}"#))
        );
        assert_eq!(
            cast(PortType::Integer, json!(3.5)),
            Err("output `p`: an integer is expected, got 3.5".to_owned())
        );
        assert!(cast(PortType::Number, json!("NaN")).is_err());
        assert!(cast(PortType::Boolean, Json::Null).is_err());
    }
}
