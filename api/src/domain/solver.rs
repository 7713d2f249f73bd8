//! Solvers: a key and a version name a release; a release has typed ports and a body that says what to run.

use std::{collections::BTreeMap, fmt, num::NonZeroU32, str::FromStr, sync::LazyLock};

use regex::Regex;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json, json};

use super::{
    resources::{Amounts, Resources},
    steps::Steps,
};

#[expect(clippy::unwrap_used, reason = "a literal, compiled by every test")]
static KEY: LazyLock<Regex> = LazyLock::new(|| Regex::new(SolverKey::PATTERN).unwrap());

#[expect(clippy::unwrap_used, reason = "a literal, compiled by every test")]
static VERSION: LazyLock<Regex> = LazyLock::new(|| Regex::new(Version::PATTERN).unwrap());

#[expect(clippy::unwrap_used, reason = "a literal, compiled by every test")]
static PORT_KEY: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^[^_\W0-9]\w*$").unwrap());

/// Names a solver, e.g. `simcore/services/comp/itis/sleeper`. The pattern is oSPARC's.
#[derive(
    Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, sqlx::Type,
)]
#[serde(try_from = "String", into = "String")]
#[sqlx(transparent)]
pub struct SolverKey(String);

impl SolverKey {
    /// The rule, as it is told to programs.
    pub const PATTERN: &str =
        r"^simcore/services/comp/([a-z0-9][a-z0-9_.-]*/)*([a-z0-9-_]+[a-z0-9])$";

    /// The rule, as it is told to users.
    pub const RULE: &str =
        "must match ^simcore/services/comp/… (lower-case letters, digits, `_`, `.`, `-`)";

    /// Checks the pattern.
    pub fn parse(text: &str) -> Result<Self, String> {
        if KEY.is_match(text) { Ok(Self(text.to_owned())) } else { Err(Self::RULE.to_owned()) }
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last segment, e.g. `sleeper`.
    pub fn short_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl fmt::Display for SolverKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SolverKey {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<SolverKey> for String {
    fn from(key: SolverKey) -> Self {
        key.0
    }
}

/// A release's version, by the rules of Semantic Versioning 2.0.0; ordered as they say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(semver::Version);

impl Version {
    /// The rule, as it is told to programs: oSPARC's, which is that of Semantic Versioning.
    pub const PATTERN: &str = r"^(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}(-(0|[1-9]\d*|\d*[-a-zA-Z][-\da-zA-Z]*)(\.(0|[1-9]\d*|\d*[-a-zA-Z][-\da-zA-Z]*))*)?(\+[-\da-zA-Z]+(\.[-\da-zA-Z-]+)*)?$";

    /// The rule, as it is told to users.
    pub const RULE: &str = "must be a semantic version, e.g. 2.1.6";

    /// Checks the syntax.
    pub fn parse(text: &str) -> Result<Self, String> {
        semver::Version::parse(text).map(Self).map_err(|_| Self::RULE.to_owned())
    }

    /// Whether this is a version by the rules, though its numbers may be greater than any release has.
    pub fn is_well_formed(text: &str) -> bool {
        VERSION.is_match(text)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl TryFrom<String> for Version {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl FromStr for Version {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        Self::parse(text)
    }
}

/// One published version of a solver. Immutable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Release {
    /// The solver.
    pub key: SolverKey,
    /// Its version.
    pub version: Version,
    /// Short name for people, at most 100 characters.
    pub title: String,
    /// What it computes, at most 1000 characters.
    pub description: String,
    /// E-mail address of whoever answers for it.
    pub maintainer: String,
    /// The version as its authors call it.
    pub version_display: Option<String>,
    /// Inputs in the order they were declared.
    pub inputs: Vec<Port>,
    /// Outputs in the order they were declared.
    pub outputs: Vec<Port>,
    /// What runs.
    pub body: Body,
}

impl Release {
    /// Whether publishing the one again as the other changes nothing: an image stays the same when a registry gets to know it.
    pub fn is_same(&self, other: &Self) -> bool {
        let known = |release: &Self| {
            let mut release = release.clone();
            if let Body::Container(container) = &mut release.body {
                container.image_digest = None;
            }
            release
        };
        known(self) == known(other)
    }

    /// What a job takes that is not asked for otherwise. Where there are steps, their jobs take what they need, each for itself.
    pub const fn resources(&self) -> Resources {
        match &self.body {
            Body::Container(container) => container.resources,
            Body::Steps(_) => Resources::NOTHING,
        }
    }

    /// The release as versions of this program read it from the same image that did not know of limits, GPUs and MPI.
    #[must_use]
    pub fn as_read_before(mut self) -> Self {
        if let Body::Container(container) = &mut self.body {
            container.resources.gpus = 0;
            (container.at_most, container.mpi) = (Amounts::default(), false);
        }
        self
    }
}

/// What a release runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "nearly all are the large one, and few are held")]
pub enum Body {
    /// One container.
    Container(Container),
    /// Other releases, one feeding the next.
    Steps(Steps),
}

/// An image and how to start it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Container {
    /// Image reference as the engine knows it.
    pub image: String,
    /// The engine's id of the image that was published: jobs run this one, wherever the reference points by now.
    pub image_id: String,
    /// Where that image can be pulled from when the engine does not have it, as `repository@sha256:…`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image_digest: Option<String>,
    /// Arguments to the entry point.
    pub command: Vec<String>,
    /// Environment.
    pub env: BTreeMap<String, String>,
    /// What a run takes, unless it is asked for otherwise.
    pub resources: Resources,
    /// What may be asked for at most, where the solver says so.
    #[serde(default)]
    pub at_most: Amounts,
    /// Whether the solver wants to be told that it runs with MPI.
    #[serde(default)]
    pub mpi: bool,
    /// What a run must not exceed beside that.
    #[serde(default)]
    pub limits: Limits,
    /// Whether a run gets a network.
    pub network: bool,
    /// The solver's own expression for progress lines.
    pub progress_regexp: Option<String>,
    /// Major version of how the solver is spoken to: 0 reads `input.json`, writes `output.json` and logs to `/logs/log.dat`.
    #[serde(default = "one")]
    pub integration_version: u64,
}

/// What was published before there was any other.
const fn one() -> u64 {
    1
}

/// Limits that a solver sets itself. Those of the service hold as well, so nothing can be gained.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, expecting = "an object")]
pub struct Limits {
    /// Seconds from start to end.
    pub wall: Option<NonZeroU32>,
    /// Seconds without a line of log.
    pub silence: Option<NonZeroU32>,
    /// Seconds between SIGTERM and SIGKILL.
    pub grace: Option<u32>,
    /// MiB of log that are kept.
    pub log: Option<NonZeroU32>,
    /// MiB on disk.
    pub disk: Option<NonZeroU32>,
}

/// A typed input or output.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Unique among the release's inputs, or among its outputs.
    pub key: String,
    /// Short name for people.
    pub label: String,
    /// What it means.
    pub description: String,
    /// What values it takes.
    #[serde(rename = "type")]
    pub kind: PortType,
    /// Path of the file below the input or output folder, where the declaration fixes one.
    #[serde(default)]
    pub path: Option<String>,
    /// Physical unit of the value.
    #[serde(default)]
    pub unit: Option<String>,
    /// Used when no value is given.
    #[serde(default)]
    pub default: Option<Json>,
    /// Inputs only: creating a job without a value is an error.
    #[serde(default)]
    pub required: bool,
}

/// What values a port takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PortType {
    /// A finite number.
    Number,
    /// A number without fraction.
    Integer,
    /// True or false.
    Boolean,
    /// Text.
    String,
    /// Whatever a JSON Schema allows.
    Schema(Json),
    /// A file of this MIME type (`*` allowed).
    File(String),
}

impl PortType {
    /// Whether what a port of this type gives can be what another takes. What a schema says beyond its type is left to the value.
    pub fn feeds(&self, to: &Self) -> bool {
        match (self, to) {
            (Self::File(from), Self::File(to)) => mime_types_meet(from, to),
            (Self::File(_), _) | (_, Self::File(_)) => false,
            (from, to) => match (from.json_type(), to.json_type()) {
                (Some(from), Some(to)) => from == to || (from == "integer" && to == "number"),
                _ => true,
            },
        }
    }

    /// JSON Schema's name of the type, where there is one.
    fn json_type(&self) -> Option<&str> {
        match self {
            Self::Number => Some("number"),
            Self::Integer => Some("integer"),
            Self::Boolean => Some("boolean"),
            Self::String | Self::File(_) => Some("string"),
            Self::Schema(schema) => schema.get("type")?.as_str(),
        }
    }
}

impl fmt::Display for PortType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(mime) => write!(f, "a file of type {mime}"),
            Self::Schema(_) => match self.json_type() {
                Some(name) => write!(f, "{name} by a schema"),
                None => f.write_str("a value by a schema"),
            },
            Self::Number | Self::Integer | Self::Boolean | Self::String => {
                f.write_str(self.json_type().unwrap_or_default())
            }
        }
    }
}

/// Whether a file can be of both types. A type is `text/plain`, with `*` for any, or a list, `[text/csv,text/plain]`.
fn mime_types_meet(a: &str, b: &str) -> bool {
    let each = |list: &str| -> Vec<(String, String)> {
        let types = list.trim_matches(['[', ']']).split(',');
        let halves = types.map(|mime| mime.trim().split_once('/').unwrap_or((mime, "*")));
        halves.map(|(kind, form)| (kind.to_lowercase(), form.to_lowercase())).collect()
    };
    let meet = |a: &str, b: &str| a == b || a == "*" || b == "*";
    let (a, b) = (each(a), each(b));
    a.iter().any(|a| b.iter().any(|b| meet(&a.0, &b.0) && meet(&a.1, &b.1)))
}

impl Port {
    /// The rule for keys; oSPARC's clients enforce it on every port they are shown.
    pub const KEY_RULE: &str =
        "must match ^[^_\\W0-9]\\w*$ (a letter, then letters, digits and `_`)";

    /// Whether a key can be shown to clients.
    pub fn is_valid_key(key: &str) -> bool {
        PORT_KEY.is_match(key)
    }

    /// Whether the port carries a file.
    pub const fn is_file(&self) -> bool {
        matches!(self.kind, PortType::File(_))
    }

    /// Whether the port's files are zip archives by declaration: any other port gets what is in them.
    pub fn takes_zip(&self) -> bool {
        matches!(&self.kind, PortType::File(mime) if mime == "application/zip")
    }

    /// The JSON Schema that clients are shown, and that plain values are checked against.
    pub fn content_schema(&self) -> Json {
        if let PortType::Schema(schema) = &self.kind {
            return schema.clone();
        }
        let mut schema = Map::new();
        schema.insert("title".into(), json!(self.label));
        schema.insert("type".into(), json!(self.kind.json_type()));
        schema.insert("description".into(), json!(self.description));
        if let Some(unit) = &self.unit {
            schema.insert("x_unit".into(), json!(unit));
        }
        if let (false, Some(default)) = (self.is_file(), &self.default) {
            schema.insert("default".into(), default.clone());
        }
        Json::Object(schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_the_pattern() {
        assert_eq!(
            SolverKey::parse("simcore/services/comp/itis/sleeper").unwrap().short_name(),
            "sleeper"
        );
        for bad in [
            "",
            "sleeper",
            "simcore/services/comp",
            "simcore/services/comp/",
            "simcore/services/comp/A",
            "simcore/services/dynamic/x",
        ] {
            assert!(SolverKey::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn versions_sort_by_number_not_by_text() {
        let mut versions: Vec<_> =
            ["2.10.0", "2.9.1", "2.9.1-rc.1"].map(|text| Version::parse(text).unwrap()).into();
        versions.sort();
        assert_eq!(
            versions.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["2.9.1-rc.1", "2.9.1", "2.10.0"]
        );
        assert!(Version::parse("latest").is_err());
    }

    #[test]
    fn a_port_feeds_those_that_can_take_what_it_gives() {
        let file = |mime: &str| PortType::File(mime.into());
        let schema = |schema: Json| PortType::Schema(schema);
        for (from, to, expected) in [
            (file("text/plain"), file("text/plain"), true),
            (file("text/plain"), file("*/*"), true),
            (file("*/*"), file("text/plain"), true),
            (file("text/csv"), file("text/*"), true),
            (file("text/csv"), file("[text/plain,Text/CSV]"), true),
            (file("text/csv"), file("text/plain"), false),
            (file("image/png"), file("text/*"), false),
            (file("text/plain"), PortType::String, false),
            (PortType::String, file("*/*"), false),
            (PortType::Integer, PortType::Number, true),
            (PortType::Number, PortType::Integer, false),
            (PortType::Boolean, PortType::Boolean, true),
            (PortType::Boolean, PortType::String, false),
            (PortType::Integer, schema(json!({"type": "number"})), true),
            (schema(json!({"type": "array"})), schema(json!({"type": "number"})), false),
            (schema(json!({"minimum": 3})), PortType::Integer, true),
        ] {
            assert_eq!(from.feeds(&to), expected, "{from} to {to}");
        }
    }
}
