//! Reads a release from an image's labels: oSPARC's convention is one label `io.simcore.<field>` per field, whose value is a JSON
//! object with that field as its only key, and `simcore.service.settings` for what the container needs.
//!
//! Three things are ours: an input port may say `"required": true`, the label `solverd.network=bridge` asks for a network, and
//! `solverd.limits` sets limits.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::{
    resources::{Amounts, Resources},
    solver::{Body, Container, Limits, Port, PortType, Release, SolverKey, Version},
};

const PREFIX: &str = "io.simcore.";
const SETTINGS: &str = "simcore.service.settings";
const NETWORK: &str = "solverd.network";
const LIMITS: &str = "solverd.limits";

/// What is wrong with an image's labels; names the label and the rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("label {label}: {rule}")]
pub struct LabelError {
    /// The label in backticks, with the place inside its JSON where that helps.
    pub label: String,
    /// What it should have been.
    pub rule: String,
}

fn wrong(label: impl Into<String>, rule: impl Into<String>) -> LabelError {
    LabelError { label: format!("`{}`", label.into()), rule: rule.into() }
}

/// The fields of the metadata that a release is made of; the rest (badges, icons, authors …) is for catalogues.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Metadata {
    key: String,
    version: String,
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    integration_version: Option<String>,
    name: Option<String>,
    #[serde(default)]
    description: String,
    #[serde(default)]
    contact: String,
    #[serde(default, rename = "version_display")]
    version_display: Option<String>,
    #[serde(default, rename = "progress_regexp")]
    progress_regexp: Option<String>,
    #[serde(default)]
    inputs: Map<String, Json>,
    #[serde(default)]
    outputs: Map<String, Json>,
}

/// A port as it is declared. Unknown fields are refused, so that a misspelt one is noticed.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Declared {
    label: String,
    description: String,
    #[serde(rename = "type")]
    kind: String,
    content_schema: Option<Json>,
    file_to_key_map: Option<Map<String, Json>>,
    unit: Option<String>,
    default_value: Option<Json>,
    #[serde(default)]
    required: bool,
    #[serde(rename = "displayOrder")]
    _display_order: Option<Json>,
    #[serde(rename = "widget")]
    _widget: Option<Json>,
}

/// The digest for the repository that an image is named by.
fn image_digest(image: &str, digests: &[String]) -> Option<String> {
    let name = image.split('@').next().unwrap_or_default();
    // A colon before the last slash belongs to the registry's port.
    let path = name.rfind('/').map_or(0, |slash| slash + 1);
    let repository = name[path..].find(':').map_or(name, |colon| &name[..path + colon]);
    digests.iter().find(|digest| digest.split('@').next() == Some(repository)).cloned()
}

/// Reads a release from the labels of `image`, whose content has the id `image_id`, and is known to registries by `digests`.
pub fn release(
    image: &str,
    image_id: &str,
    digests: &[String],
    labels: &BTreeMap<String, String>,
) -> Result<Release, LabelError> {
    let metadata: Metadata =
        serde_json::from_value(Json::Object(merge(labels)?)).map_err(|error| {
            wrong(format!("{PREFIX}*"), format!("{error}; is `{image}` an oSPARC service?"))
        })?;
    let label = |field: &str| format!("{PREFIX}{field}");
    if let Some(kind) = metadata.kind.filter(|kind| kind != "computational") {
        return Err(wrong(label("type"), format!("must be `computational`, is `{kind}`")));
    }
    // Without one it is the oldest.
    let integration_version = metadata.integration_version.as_deref().unwrap_or("0.0.0");
    let integration_version =
        integration_version.split('.').next().unwrap_or_default().parse().map_err(|_| {
            let rule = format!("must be a version, e.g. 1.0.0, is `{integration_version}`");
            wrong(label("integration-version"), rule)
        })?;
    let key = SolverKey::parse(&metadata.key).map_err(|rule| wrong(label("key"), rule))?;
    let version =
        Version::parse(&metadata.version).map_err(|rule| wrong(label("version"), rule))?;
    let settings = settings(labels.get(SETTINGS).map_or("[]", String::as_str))?;
    let network = match labels.get(NETWORK).map(String::as_str) {
        None | Some("none") => false,
        Some("bridge") => true,
        Some(other) => {
            return Err(wrong(NETWORK, format!("must be `none` or `bridge`, is `{other}`")));
        }
    };
    let limits: Limits = serde_json::from_str(labels.get(LIMITS).map_or("{}", String::as_str))
        .map_err(|error| wrong(LIMITS, error.to_string()))?;
    Ok(Release {
        title: cut(metadata.name.as_deref().unwrap_or_else(|| key.short_name()), 100),
        description: cut(&metadata.description, 1000),
        maintainer: metadata.contact,
        version_display: metadata.version_display,
        inputs: ports("io.simcore.inputs", metadata.inputs)?,
        outputs: ports("io.simcore.outputs", metadata.outputs)?,
        body: Body::Container(Container {
            image: image.to_owned(),
            image_id: image_id.to_owned(),
            image_digest: image_digest(image, digests),
            command: settings.command,
            env: settings.env,
            resources: settings.resources,
            at_most: settings.at_most,
            mpi: settings.mpi,
            limits,
            network,
            progress_regexp: metadata.progress_regexp,
            integration_version,
        }),
        key,
        version,
    })
}

/// The lengths are those of oSPARC's `Solver` schema, which its clients enforce.
pub fn cut(text: &str, characters: usize) -> String {
    text.chars().take(characters).collect()
}

fn merge(labels: &BTreeMap<String, String>) -> Result<Map<String, Json>, LabelError> {
    let mut document = Map::new();
    for (label, text) in labels.iter().filter(|(label, _)| label.starts_with(PREFIX)) {
        let value: Json = serde_json::from_str(text)
            .map_err(|error| wrong(label, format!("is not JSON: {error}")))?;
        let Json::Object(fields) = unescape(value) else {
            return Err(wrong(label, "must be a JSON object with the field as its only key"));
        };
        document.extend(fields);
    }
    Ok(document)
}

/// Compose files would interpolate `$ref`, so labels carry `$$ref`.
fn unescape(value: Json) -> Json {
    match value {
        Json::Object(fields) => fields
            .into_iter()
            .map(|(key, value)| {
                (if key == "$$ref" { "$ref".to_owned() } else { key }, unescape(value))
            })
            .collect(),
        Json::Array(items) => items.into_iter().map(unescape).collect(),
        plain @ (Json::Null | Json::Bool(_) | Json::Number(_) | Json::String(_)) => plain,
    }
}

/// Reads the ports of one direction; `place` is where they stand.
pub(super) fn ports(place: &str, declared: Map<String, Json>) -> Result<Vec<Port>, LabelError> {
    declared.into_iter().map(|(key, value)| port(place, key, value)).collect()
}

fn port(place: &str, key: String, value: Json) -> Result<Port, LabelError> {
    let place = format!("{place}` port `{key}");
    if !Port::is_valid_key(&key) {
        return Err(wrong(place, format!("the key {}", Port::KEY_RULE)));
    }
    let declared: Declared =
        serde_json::from_value(value).map_err(|error| wrong(&place, error.to_string()))?;
    let kind = match (declared.kind.as_str(), declared.content_schema) {
        ("ref_contentSchema", Some(schema)) => {
            jsonschema::validator_for(&schema).map_err(|error| {
                wrong(&place, format!("contentSchema is not a JSON Schema: {error}"))
            })?;
            PortType::Schema(schema)
        }
        ("ref_contentSchema", None) => {
            return Err(wrong(place, "type `ref_contentSchema` needs a `contentSchema`"));
        }
        (_, Some(_)) => {
            return Err(wrong(place, "`contentSchema` is only for type `ref_contentSchema`"));
        }
        ("number", None) => PortType::Number,
        ("integer", None) => PortType::Integer,
        ("boolean", None) => PortType::Boolean,
        ("string", None) => PortType::String,
        (other, None) => match other.strip_prefix("data:") {
            Some(mime) => PortType::File(mime.to_owned()),
            None => {
                return Err(wrong(
                    place,
                    format!(
                        "type `{other}` is none of number, integer, boolean, string, ref_contentSchema, data:<MIME type>"
                    ),
                ));
            }
        },
    };
    // Only the first entry is used at run time, as upstream does; a map is what oSPARC chose to write one path in.
    let path = declared.file_to_key_map.and_then(|map| map.keys().next().cloned());
    if let Some(path) = &path {
        let inside = path.split('/').all(|segment| !matches!(segment, "" | "." | ".."));
        if !inside || path.contains(char::is_control) {
            return Err(wrong(
                place,
                format!("fileToKeyMap: `{path}` must be a relative path without `..`"),
            ));
        }
    }
    Ok(Port {
        key,
        label: declared.label,
        description: declared.description,
        kind,
        path,
        unit: declared.unit,
        default: declared.default_value.filter(|value| !value.is_null()),
        required: declared.required,
    })
}

struct Settings {
    resources: Resources,
    at_most: Amounts,
    mpi: bool,
    command: Vec<String>,
    env: BTreeMap<String, String>,
}

/// One entry of `simcore.service.settings`.
#[derive(Deserialize)]
struct Setting {
    name: String,
    value: Json,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Demand {
    limits: Amount,
    reservations: Amount,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Amount {
    #[serde(rename = "NanoCPUs")]
    nano_cpus: Option<i64>,
    #[serde(rename = "MemoryBytes")]
    memory_bytes: Option<i64>,
    #[serde(rename = "GenericResources")]
    generic: Vec<Generic>,
}

#[derive(Deserialize)]
struct Generic {
    #[serde(rename = "DiscreteResourceSpec")]
    discrete: Option<Discrete>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Discrete {
    kind: String,
    #[serde(default)]
    value: Json,
}

impl Discrete {
    /// How many GPUs it stands for. oSPARC's VRAM, counted or in bytes, means that there must be one.
    fn gpus(&self) -> i64 {
        match self.kind.to_ascii_uppercase().as_str() {
            "VRAM" => 1,
            "GPU" | "NVIDIA-GPU" => self.value.as_i64().unwrap_or(1).max(0),
            _ => 0,
        }
    }
}

fn settings(text: &str) -> Result<Settings, LabelError> {
    let list: Vec<Setting> =
        serde_json::from_str(text).map_err(|error| wrong(SETTINGS, error.to_string()))?;
    let mut settings = Settings {
        resources: Resources::default(),
        at_most: Amounts::default(),
        mpi: false,
        command: vec!["run".to_owned()],
        env: BTreeMap::new(),
    };
    for Setting { name, value } in list {
        let bad =
            |error: serde_json::Error| wrong(format!("{SETTINGS}, `{name}`"), error.to_string());
        match name.to_ascii_lowercase().as_str() {
            "resources" => {
                let Demand { limits, reservations } = serde_json::from_value(value).map_err(bad)?;
                let smaller = |a: Option<i64>, b: Option<i64>| {
                    a.into_iter().chain(b).filter(|n| *n > 0).min()
                };
                let generic = || limits.generic.iter().chain(&reservations.generic);
                let generic = || generic().filter_map(|each| each.discrete.as_ref());
                let declared = Amounts {
                    nano_cpus: smaller(limits.nano_cpus, reservations.nano_cpus),
                    memory_bytes: smaller(limits.memory_bytes, reservations.memory_bytes),
                    gpus: generic().map(Discrete::gpus).max(),
                };
                settings.resources = declared.or(settings.resources);
                settings.at_most = Amounts {
                    nano_cpus: smaller(limits.nano_cpus, None),
                    memory_bytes: smaller(limits.memory_bytes, None),
                    gpus: None,
                };
                settings.mpi = generic().any(|each| each.kind.eq_ignore_ascii_case("MPI"));
            }
            "containerspec" => {
                #[derive(Deserialize)]
                #[serde(rename_all = "PascalCase")]
                struct ContainerSpec {
                    command: Vec<String>,
                }
                settings.command =
                    serde_json::from_value::<ContainerSpec>(value).map_err(bad)?.command;
            }
            "env" => {
                let entries: Vec<String> = serde_json::from_value(value).map_err(bad)?;
                // Entries with another number of `=` than one are dropped, as upstream does.
                settings.env.extend(entries.iter().filter_map(|entry| {
                    let (key, value) = entry.split_once('=')?;
                    (!value.contains('=')).then(|| (key.to_owned(), value.to_owned()))
                }));
            }
            // Placement, mounts and ports concern swarms and interactive services.
            _ => {}
        }
    }
    Ok(settings)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use serde_json::json;

    use super::*;

    fn labels(extra: &[(&str, Json)]) -> BTreeMap<String, String> {
        let mut fields = vec![
            ("key", json!("simcore/services/comp/test/one")),
            ("version", json!("1.2.3")),
            ("type", json!("computational")),
            ("integration-version", json!("1.0.0")),
            ("name", json!("One")),
            ("contact", json!("a@b.c")),
        ];
        fields.extend(extra.iter().map(|(field, value)| (*field, value.clone())));
        fields
            .iter()
            .map(|(field, value)| {
                (format!("{PREFIX}{field}"), json!({ *field: value }).to_string())
            })
            .collect()
    }

    #[test]
    fn the_digest_is_that_of_the_repository() {
        let digests = ["a/b@sha256:1", "127.0.0.1:5000/a/b@sha256:2"].map(str::to_owned);
        for (image, expected) in [
            ("a/b:1.0.0", Some("a/b@sha256:1")),
            ("a/b", Some("a/b@sha256:1")),
            ("127.0.0.1:5000/a/b", Some("127.0.0.1:5000/a/b@sha256:2")),
            ("127.0.0.1:5000/a/b:1.0.0", Some("127.0.0.1:5000/a/b@sha256:2")),
            ("127.0.0.1:5000/a/b@sha256:2", Some("127.0.0.1:5000/a/b@sha256:2")),
            ("b:1.0.0", None),
        ] {
            assert_eq!(image_digest(image, &digests).as_deref(), expected, "{image}");
        }
    }

    #[test]
    fn a_release_is_read_in_declared_order() {
        let mut labels = labels(&[(
            "inputs",
            json!({
                "z": {"label": "Z", "description": "last letter", "type": "integer", "defaultValue": 2, "unit": "second"},
                "a": {"label": "A", "description": "a file", "type": "data:text/plain", "fileToKeyMap": {"dir/a.txt": "a"}},
                "s": {"label": "S", "description": "schema", "type": "ref_contentSchema", "contentSchema": {"type": "array", "items": {"$$ref": "#"}}},
            }),
        )]);
        labels.insert(
            SETTINGS.into(),
            json!([
                {"name": "Resources", "type": "Resources", "value": {"Limits": {"NanoCPUs": 2_000_000_000_i64, "MemoryBytes": 100}, "Reservations": {"NanoCPUs": 500_000_000, "MemoryBytes": 200, "GenericResources": [{"DiscreteResourceSpec": {"Kind": "VRAM", "Value": 8_000_000_000_i64}}, {"DiscreteResourceSpec": {"Kind": "MPI", "Value": 1}}]}}},
                {"name": "env", "type": "string", "value": ["A=1", "B=2=3"]},
                {"name": "constraints", "type": "string", "value": ["node.role==x"]},
            ])
            .to_string(),
        );
        let release = release("one:1.2.3", "sha256:1", &[], &labels).unwrap();
        assert_eq!(
            release.inputs.iter().map(|port| port.key.as_str()).collect::<Vec<_>>(),
            ["z", "a", "s"]
        );
        assert_eq!(
            release.inputs[0].content_schema(),
            json!({"title": "Z", "type": "integer", "description": "last letter", "x_unit": "second", "default": 2})
        );
        assert_eq!(release.inputs[1].path.as_deref(), Some("dir/a.txt"));
        assert_eq!(release.inputs[2].content_schema()["items"], json!({"$ref": "#"}));
        let Body::Container(container) = release.body else { panic!("an image is one container") };
        assert_eq!(
            (container.resources, container.mpi),
            (Resources { nano_cpus: 500_000_000, memory_bytes: 100, gpus: 1 }, true)
        );
        assert_eq!(
            container.at_most,
            Amounts { nano_cpus: Some(2_000_000_000), memory_bytes: Some(100), gpus: None }
        );
        assert_eq!(container.env, BTreeMap::from([("A".to_owned(), "1".to_owned())]));
        assert_eq!((container.command, container.network), (vec!["run".to_owned()], false));
        assert_eq!(container.limits, Limits::default());
    }

    #[test]
    fn a_solver_sets_its_limits_itself() {
        let limits = |text: &str| {
            let mut labels = labels(&[]);
            labels.insert(LIMITS.to_owned(), text.to_owned());
            release("one:1.2.3", "sha256:1", &[], &labels).map(|release| match release.body {
                Body::Container(container) => container.limits,
                Body::Steps(_) => panic!("an image is one container"),
            })
        };
        let expected = Limits { wall: NonZeroU32::new(7200), grace: Some(0), ..Limits::default() };
        assert_eq!(limits(r#"{"wall": 7200, "grace": 0}"#), Ok(expected));
        for (text, rule) in [
            (r#"{"wal": 1}"#, "unknown field `wal`, expected one of `wall`"),
            (r#"{"silence": 0}"#, "invalid value: integer `0`, expected a nonzero u32"),
            (r#"{"grace": -1}"#, "invalid value: integer `-1`, expected u32"),
            ("2 h", "invalid type: integer `2`, expected an object"),
        ] {
            let error = limits(text).unwrap_err().to_string();
            assert!(
                error.starts_with("label `solverd.limits`: ") && error.contains(rule),
                "{error}"
            );
        }
    }

    #[test]
    fn without_an_integration_version_it_is_the_oldest() {
        let version = |labels: &BTreeMap<String, String>| {
            let release = release("one:1.2.3", "sha256:1", &[], labels).unwrap();
            let Body::Container(container) = release.body else {
                panic!("an image is one container")
            };
            container.integration_version
        };
        let mut labels = labels(&[]);
        assert_eq!(version(&labels), 1);
        for (field, expected) in [("0.1.0", 0), ("2.0.0", 2), ("0", 0)] {
            let value = json!({"integration-version": field}).to_string();
            labels.insert("io.simcore.integration-version".to_owned(), value);
            assert_eq!(version(&labels), expected, "{field}");
        }
        labels.remove("io.simcore.integration-version");
        assert_eq!(version(&labels), 0);
    }

    #[test]
    fn every_error_names_the_label_and_the_rule() {
        let port = |value: Json| json!({ "p": value });
        let cases = [
            ("key", json!("sleeper"), "label `io.simcore.key`: must match"),
            ("version", json!("one"), "label `io.simcore.version`: must be a semantic version"),
            (
                "type",
                json!("dynamic"),
                "label `io.simcore.type`: must be `computational`, is `dynamic`",
            ),
            (
                "integration-version",
                json!("one"),
                "label `io.simcore.integration-version`: must be a version, e.g. 1.0.0, is `one`",
            ),
            ("inputs", json!({"_p": {}}), "port `_p`: the key must match"),
            (
                "inputs",
                port(json!({"label": "P", "type": "integer"})),
                "port `p`: missing field `description`",
            ),
            (
                "inputs",
                port(json!({"label": "", "description": "", "type": "int"})),
                "type `int` is none of",
            ),
            (
                "inputs",
                port(json!({"label": "", "description": "", "type": "integer", "defualtValue": 1})),
                "unknown field `defualtValue`",
            ),
            (
                "inputs",
                port(
                    json!({"label": "", "description": "", "type": "ref_contentSchema", "contentSchema": {"type": 5}}),
                ),
                "is not a JSON Schema",
            ),
            (
                "outputs",
                port(
                    json!({"label": "", "description": "", "type": "data:*/*", "fileToKeyMap": {"../x": "p"}}),
                ),
                "`../x` must be a relative path",
            ),
        ];
        for (field, value, expected) in cases {
            let error = release("image", "sha256:1", &[], &labels(&[(field, value)]))
                .unwrap_err()
                .to_string();
            assert!(error.contains(expected), "{error}\n  lacks\n{expected}");
        }
        let error = release("busybox", "sha256:1", &[], &BTreeMap::new()).unwrap_err().to_string();
        assert!(error.contains("is `busybox` an oSPARC service?"), "{error}");
    }
}
