//! Solvers made of steps: how they are written down, what is checked before one is published, and what the jobs of the steps make of the
//! job of the whole.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value as Json};

use super::{
    job::{Job, JobError, JobState},
    labels,
    solver::{Body, Port, Release, SolverKey, Version},
    value::{InputRules, Values},
};

/// Steps and where their values come from. They run in the order of their data, side by side where it allows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    /// The steps, in declared order.
    pub steps: Vec<Step>,
    /// For each output port of the whole, the step's output that it shows.
    pub outputs: BTreeMap<String, Source>,
}

/// One step: a published release and what its inputs are fed with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Step {
    /// Unique among the steps; also a file name.
    pub name: String,
    /// Key of the release.
    pub solver: SolverKey,
    /// Version of the release.
    pub version: Version,
    /// Sources by input port. Ports that are left out take their default.
    #[serde(default)]
    pub inputs: BTreeMap<String, Source>,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, try_from = "AnySource")]
pub enum Source {
    /// An input of the whole.
    Input {
        /// Its label.
        input: String,
    },
    /// An output of another step.
    Output {
        /// Name of the step.
        step: String,
        /// Key of its output port.
        output: String,
    },
    /// Always this one.
    Value {
        /// The value.
        value: Json,
    },
}

/// A source as it is written, so that a wrong one is told by more than "matches no variant".
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnySource {
    input: Option<String>,
    step: Option<String>,
    output: Option<String>,
    value: Option<Json>,
}

impl TryFrom<AnySource> for Source {
    type Error = &'static str;

    fn try_from(source: AnySource) -> Result<Self, Self::Error> {
        match source {
            AnySource { input: Some(input), step: None, output: None, value: None } => {
                Ok(Self::Input { input })
            }
            AnySource { input: None, step: Some(step), output: Some(output), value: None } => {
                Ok(Self::Output { step, output })
            }
            AnySource { input: None, step: None, output: None, value: Some(value) } => {
                Ok(Self::Value { value })
            }
            _ => Err(
                r#"a source is one of {"input": LABEL}, {"step": NAME, "output": PORT} and {"value": CONSTANT}"#,
            ),
        }
    }
}

/// A solver made of steps as its author writes it down. Ports are declared like those of images.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    key: SolverKey,
    version: Version,
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default)]
    contact: String,
    version_display: Option<String>,
    #[serde(default)]
    inputs: Map<String, Json>,
    /// Each with its `source` beside the fields of a port.
    #[serde(default)]
    outputs: Map<String, Json>,
    steps: Vec<Step>,
}

impl Definition {
    /// Reads a definition from JSON; an error names the place.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut deserializer = serde_json::Deserializer::from_str(text);
        serde_path_to_error::deserialize(&mut deserializer)
            .map_err(|error| format!("`{}`: {}", error.path(), error.inner()))
    }

    /// The releases that the steps name.
    pub fn releases(&self) -> impl Iterator<Item = (&SolverKey, &Version)> {
        self.steps.iter().map(|step| (&step.solver, &step.version))
    }

    /// Makes a release of it, given those of the releases it names that there are. All that is wrong is told at once, each with
    /// step, port and rule.
    pub fn resolve(mut self, known: &[Release]) -> Result<Release, Vec<String>> {
        let mut problems = Vec::new();
        let mut outputs = BTreeMap::new();
        for (key, port) in &mut self.outputs {
            let source =
                port.as_object_mut().and_then(|fields| fields.remove("source")).unwrap_or_default();
            match serde_json::from_value(source) {
                Ok(source) => drop(outputs.insert(key.clone(), source)),
                Err(error) => problems.push(format!("output `{key}`, `source`: {error}")),
            }
        }
        let mut ports = |direction, declared| {
            labels::ports(direction, declared).unwrap_or_else(|error| {
                problems.push(format!("{}: {}", error.label, error.rule));
                Vec::new()
            })
        };
        let (inputs, output_ports) = (ports("inputs", self.inputs), ports("outputs", self.outputs));
        if !problems.is_empty() {
            return Err(problems);
        }
        let release = Release {
            title: labels::cut(&self.name, 100),
            description: labels::cut(&self.description, 1000),
            maintainer: self.contact,
            version_display: self.version_display,
            inputs,
            outputs: output_ports,
            body: Body::Steps(Steps { steps: self.steps, outputs }),
            key: self.key,
            version: self.version,
        };
        let Body::Steps(steps) = &release.body else { return Ok(release) };
        let problems = Check { steps, release: &release, known }.problems();
        if problems.is_empty() { Ok(release) } else { Err(problems) }
    }
}

/// What is looked at to find out whether steps can ever run.
struct Check<'a> {
    steps: &'a Steps,
    release: &'a Release,
    known: &'a [Release],
}

impl<'a> Check<'a> {
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if self.steps.steps.is_empty() {
            problems.push("`steps` must not be empty".to_owned());
        }
        let mut names = BTreeSet::new();
        for step in &self.steps.steps {
            let name = &step.name;
            if !is_name(name) {
                problems.push(format!(
                    "step `{name}`: a name must be up to 100 letters, digits, `_`, `-` and `.`, the first a letter or digit"
                ));
            }
            if !names.insert(name) {
                problems.push(format!("step `{name}`: the name is taken by another step"));
            }
            match self.release_of(step) {
                Some(release) => self.check_step(step, release, &mut problems),
                None => problems.push(format!(
                    "step `{name}`: {} {} is not published",
                    step.solver, step.version
                )),
            }
        }
        for port in &self.release.outputs {
            let place = format!("output `{}`", port.key);
            match self.steps.outputs.get(&port.key) {
                Some(source @ Source::Output { .. }) => {
                    problems.extend(self.check_edge(source, port, &place));
                }
                _ => problems.push(format!(
                    r#"{place}: `source` must be an output of a step, {{"step": NAME, "output": PORT}}"#
                )),
            }
        }
        let circle = circle(self.steps);
        if !circle.is_empty() {
            problems.push(format!("steps {} wait for each other", list(circle.into_iter())));
        }
        problems
    }

    fn step(&self, name: &str) -> Option<&'a Step> {
        self.steps.steps.iter().find(|step| step.name == name)
    }

    fn release_of(&self, step: &Step) -> Option<&'a Release> {
        self.known.iter().find(|known| known.key == step.solver && known.version == step.version)
    }

    fn check_step(&self, step: &Step, release: &Release, problems: &mut Vec<String>) {
        let ports = &release.inputs;
        for (key, source) in &step.inputs {
            let place = format!("step `{}`, input `{key}`", step.name);
            match find(ports, key) {
                Some(port) => problems.extend(self.check_edge(source, port, &place)),
                None => problems
                    .push(format!("{place}: the solver has no such input; it has {}", keys(ports))),
            }
        }
        for port in ports.iter().filter(|port| port.required && port.default.is_none()) {
            let why = match step.inputs.get(&port.key) {
                None => "a value is required, and no source feeds it".to_owned(),
                Some(Source::Input { input }) => {
                    let optional = |port: &Port| !port.required && port.default.is_none();
                    if !find(&self.release.inputs, input).is_some_and(optional) {
                        continue;
                    }
                    format!(
                        "a value is required, so the study's input `{input}` must be `required` or have a default"
                    )
                }
                Some(Source::Output { .. } | Source::Value { .. }) => continue,
            };
            problems.push(format!("step `{}`, input `{}`: {why}", step.name, port.key));
        }
        // Constants obey the rules that values of jobs do.
        let constants: Values = step
            .inputs
            .iter()
            .filter_map(|(key, source)| match source {
                Source::Value { value } => Some((key.clone(), value.clone())),
                Source::Input { .. } | Source::Output { .. } => None,
            })
            .filter(|(key, _)| find(ports, key).is_some_and(|port| !port.is_file()))
            .collect();
        match InputRules::compile(release).map(|rules| rules.check(&constants)) {
            Ok(Ok(_)) => {}
            Ok(Err(found)) => problems.extend(
                found
                    .into_iter()
                    .filter(|problem| constants.contains_key(&problem.port))
                    .map(|problem| format!("step `{}`, {}", step.name, problem.message)),
            ),
            Err(error) => problems.push(format!("step `{}`, {error}", step.name)),
        }
    }

    /// Whether a source exists and gives what a port takes.
    fn check_edge(&self, source: &Source, to: &Port, place: &str) -> Option<String> {
        let (from, name) = match source {
            Source::Value { .. } if to.is_file() => {
                return Some(format!("{place}: a file cannot be a constant"));
            }
            Source::Value { .. } => return None,
            Source::Input { input } => {
                let Some(port) = find(&self.release.inputs, input) else {
                    return Some(format!(
                        "{place}: the study has no input `{input}`; it has {}",
                        keys(&self.release.inputs)
                    ));
                };
                (port, format!("the study's input `{input}`"))
            }
            Source::Output { step: name, output } => {
                let Some(step) = self.step(name) else {
                    let names = self.steps.steps.iter().map(|step| step.name.as_str());
                    return Some(format!(
                        "{place}: there is no step `{name}`; there is {}",
                        list(names)
                    ));
                };
                // A release that is not there is a problem of its step.
                let release = self.release_of(step)?;
                let Some(port) = find(&release.outputs, output) else {
                    return Some(format!(
                        "{place}: step `{name}` has no output `{output}`; it has {}",
                        keys(&release.outputs)
                    ));
                };
                (port, format!("output `{output}` of step `{name}`"))
            }
        };
        (!from.kind.feeds(&to.kind))
            .then(|| format!("{place}: takes {}, and {name} is {}", to.kind, from.kind))
    }
}

fn is_name(name: &str) -> bool {
    name.len() <= 100
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
}

fn find<'p>(ports: &'p [Port], key: &str) -> Option<&'p Port> {
    ports.iter().find(|port| port.key == key)
}

fn keys(ports: &[Port]) -> String {
    list(ports.iter().map(|port| port.key.as_str()))
}

fn list<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let names: Vec<_> = names.map(|name| format!("`{name}`")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

/// The steps that can never run, because each waits for another of them; steps that do not exist hold up nobody.
fn circle(steps: &Steps) -> BTreeSet<&str> {
    let mut waiting: BTreeSet<_> = steps.steps.iter().map(|step| step.name.as_str()).collect();
    loop {
        let free = |step: &&Step| {
            waiting.contains(step.name.as_str())
                && step.needs().all(|needed| !waiting.contains(needed))
        };
        let done: Vec<_> = steps.steps.iter().filter(free).map(|step| step.name.as_str()).collect();
        if done.is_empty() {
            return waiting;
        }
        for name in done {
            waiting.remove(name);
        }
    }
}

impl Step {
    /// Names of the steps whose outputs it takes.
    fn needs(&self) -> impl Iterator<Item = &str> {
        self.inputs.values().filter_map(|source| match source {
            Source::Output { step, .. } => Some(step.as_str()),
            Source::Input { .. } | Source::Value { .. } => None,
        })
    }

    /// The values of its inputs, from those of the whole and the outputs of the steps that have ended. What has no value is left to the
    /// port's default.
    pub fn values(
        &self,
        ports: &[Port],
        inputs: &Values,
        outputs: &BTreeMap<String, Values>,
    ) -> Values {
        let value = |source: &Source| match source {
            Source::Value { value } => Some(value.clone()),
            Source::Output { step, output } => outputs.get(step)?.get(output).cloned(),
            Source::Input { input } => inputs
                .get(input)
                .filter(|value| !value.is_null())
                .or_else(|| find(ports, input)?.default.as_ref())
                .cloned(),
        };
        let fed = self.inputs.iter().filter_map(|(key, from)| Some((key.clone(), value(from)?)));
        fed.collect()
    }
}

impl Steps {
    /// The steps that have no job yet and whose data are all there.
    pub fn ready<'s>(&'s self, jobs: &[Job]) -> Vec<&'s Step> {
        let job = |name: &str| jobs.iter().find(|job| job.step.as_deref() == Some(name));
        let done = |name: &str| job(name).is_some_and(|job| job.state == JobState::Success);
        let ready = |step: &&Step| job(&step.name).is_none() && step.needs().all(done);
        self.steps.iter().filter(ready).collect()
    }
}

/// Where the whole stands, by where its steps' jobs stand.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// PENDING until a step runs, STARTED until all have ended.
    pub state: JobState,
    /// Percent: the mean of all steps; 100 only at the end.
    pub progress: i32,
    /// Why it fails. The steps that still run are to be stopped.
    pub error: Option<JobError>,
}

/// Folds the jobs of a whole's steps. `stopping`: somebody has asked to stop the whole.
pub fn fold(whole: &Job, steps: &Steps, jobs: &[Job], stopping: bool) -> Standing {
    let count = i32::try_from(steps.steps.len()).unwrap_or(i32::MAX).max(1);
    let progress = jobs.iter().map(|job| job.progress).sum::<i32>() / count;
    let error = if stopping { None } else { first_failure(whole, jobs) };
    let live = jobs.iter().any(|job| !job.state.is_final());
    let succeeded = jobs.iter().filter(|job| job.state == JobState::Success).count();
    let state = if succeeded == steps.steps.len() {
        JobState::Success
    } else if !live && error.is_some() {
        JobState::Failed
    } else if !live && stopping {
        JobState::Aborted
    } else if jobs.iter().any(|job| job.started_at.is_some()) {
        JobState::Started
    } else {
        JobState::Pending
    };
    let progress = if state.is_final() { 100 } else { progress.min(99) };
    Standing { state, progress, error }
}

/// The failure that came first; a step that was stopped counts only if none failed.
fn first_failure(whole: &Job, jobs: &[Job]) -> Option<JobError> {
    let ended = |state| {
        jobs.iter().filter(move |job| job.state == state).min_by_key(|job| (job.stopped_at, job.id))
    };
    let job = ended(JobState::Failed).or_else(|| ended(JobState::Aborted))?;
    let step = job.step.clone().unwrap_or_default();
    let reason = job.error.clone().unwrap_or_else(|| JobError {
        loc: Vec::new(),
        msg: "somebody stopped it".to_owned(),
        kind: "runtime.stopped".to_owned(),
        ctx: Map::new(),
    });
    Some(JobError {
        msg: format!("step `{step}`: {}", reason.msg),
        // The step in place of its job: clients know the whole.
        loc: [whole.id.to_string(), step]
            .into_iter()
            .chain(reason.loc.into_iter().skip(1))
            .collect(),
        ..reason
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::domain::{
        id::UserId,
        resources::{Amounts, Resources},
        solver::{Container, Limits, PortType},
        time::now,
    };

    const TOOL: &str = "simcore/services/comp/tool";

    fn port(key: &str, kind: PortType, required: bool) -> Port {
        Port {
            key: key.into(),
            label: key.into(),
            description: String::new(),
            kind,
            path: None,
            unit: None,
            default: None,
            required,
        }
    }

    /// A solver with a required file and an optional integer, that gives both.
    fn tool() -> Release {
        let ports = |required| {
            vec![
                port("file", PortType::File("text/plain".into()), required),
                port("number", PortType::Integer, false),
            ]
        };
        Release {
            key: SolverKey::parse(TOOL).unwrap(),
            version: Version::parse("1.0.0").unwrap(),
            title: String::new(),
            description: String::new(),
            maintainer: String::new(),
            version_display: None,
            inputs: ports(true),
            outputs: ports(false),
            body: Body::Container(Container {
                image: String::new(),
                image_id: String::new(),
                image_digest: None,
                command: vec![],
                env: BTreeMap::new(),
                resources: Resources::default(),
                limits: Limits::default(),
                at_most: Amounts::default(),
                mpi: false,
                network: false,
                progress_regexp: None,
                integration_version: 1,
            }),
        }
    }

    /// Two tools side by side and one that takes from both.
    fn definition() -> Json {
        let step = |name: &str, inputs: Json| json!({"name": name, "solver": TOOL, "version": "1.0.0", "inputs": inputs});
        json!({
            "key": "simcore/services/comp/whole", "version": "1.0.0", "name": "whole",
            "inputs": {"start": {"label": "start", "description": "", "type": "data:*/*", "required": true}},
            "outputs": {"end": {"label": "end", "description": "", "type": "number", "source": {"step": "join", "output": "number"}}},
            "steps": [
                step("join", json!({"file": {"step": "left", "output": "file"}, "number": {"step": "right", "output": "number"}})),
                step("left", json!({"file": {"input": "start"}, "number": {"value": 3}})),
                step("right", json!({"file": {"input": "start"}})),
            ],
        })
    }

    fn resolve(definition: &Json) -> Result<Release, Vec<String>> {
        Definition::parse(&definition.to_string()).unwrap().resolve(&[tool()])
    }

    fn whole() -> (Release, Steps) {
        let release = resolve(&definition()).unwrap();
        let Body::Steps(steps) = release.body.clone() else { panic!("steps") };
        (release, steps)
    }

    #[test]
    fn a_definition_reads_back_as_it_was_stored() {
        let (release, _) = whole();
        let stored = serde_json::to_string(&release).unwrap();
        assert_eq!(serde_json::from_str::<Release>(&stored).unwrap(), release);
    }

    #[test]
    fn what_can_never_run_is_refused_with_step_port_and_rule() {
        let cases = [
            ("/steps", json!([]), "`steps` must not be empty"),
            ("/steps/0/name", json!("a/b"), "step `a/b`: a name must be up to 100"),
            ("/steps/0/name", json!("left"), "step `left`: the name is taken by another step"),
            (
                "/steps/1/version",
                json!("2.0.0"),
                "step `left`: simcore/services/comp/tool 2.0.0 is not published",
            ),
            (
                "/steps/0/inputs/file/step",
                json!("lfet"),
                "step `join`, input `file`: there is no step `lfet`; there is `join`, `left`, `right`",
            ),
            (
                "/steps/0/inputs/file/output",
                json!("fiel"),
                "step `join`, input `file`: step `left` has no output `fiel`; it has `file`, `number`",
            ),
            (
                "/steps/0/inputs/file/output",
                json!("number"),
                "step `join`, input `file`: takes a file of type text/plain, and output `number` of step `left` is integer",
            ),
            (
                "/steps/1/inputs/file/input",
                json!("satrt"),
                "step `left`, input `file`: the study has no input `satrt`; it has `start`",
            ),
            (
                "/inputs/start/type",
                json!("data:image/png"),
                "step `left`, input `file`: takes a file of type text/plain, and the study's input `start` is a file of type image/png",
            ),
            (
                "/inputs/start/required",
                json!(false),
                "step `left`, input `file`: a value is required, so the study's input `start` must be `required` or have a default",
            ),
            (
                "/steps/2/inputs",
                json!({"nubmer": {"value": 1}}),
                "step `right`, input `nubmer`: the solver has no such input; it has `file`, `number`",
            ),
            (
                "/steps/2/inputs",
                json!({}),
                "step `right`, input `file`: a value is required, and no source feeds it",
            ),
            (
                "/steps/1/inputs/number/value",
                json!("many"),
                r#"step `left`, input `number` (number): "many" is not of type "integer""#,
            ),
            (
                "/steps/1/inputs/file",
                json!({"value": 1}),
                "step `left`, input `file`: a file cannot be a constant",
            ),
            (
                "/steps/1/inputs/file",
                json!({"step": "join", "output": "file"}),
                "steps `join`, `left` wait for each other",
            ),
            (
                "/steps/1/inputs/file",
                json!({"step": "left", "output": "file"}),
                "steps `join`, `left` wait for each other",
            ),
            (
                "/outputs/end/source",
                json!({"input": "start"}),
                "output `end`: `source` must be an output of a step",
            ),
            ("/outputs/end/source", json!(null), "output `end`, `source`: "),
            (
                "/outputs/end/type",
                json!("boolean"),
                "output `end`: takes boolean, and output `number` of step `join` is integer",
            ),
            ("/outputs/end/type", json!("int"), "`outputs` port `end`: type `int` is none of"),
        ];
        for (place, value, expected) in cases {
            let mut definition = definition();
            *definition.pointer_mut(place).unwrap() = value;
            let problems = resolve(&definition).unwrap_err();
            assert!(
                problems.iter().any(|problem| problem.starts_with(expected)),
                "{problems:#?}\n  lack\n{expected}"
            );
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_names_the_place() {
        let mut definition = definition();
        definition["steps"][0]["inputs"]["file"] = json!({"step": "left"});
        let error = Definition::parse(&definition.to_string()).unwrap_err();
        assert!(error.starts_with("`steps[0].inputs.file`: a source is one of"), "{error}");
        definition["steps"][0]["inputs"] = json!({});
        definition["stpes"] = json!([]);
        let error = Definition::parse(&definition.to_string()).unwrap_err();
        assert!(error.contains("unknown field `stpes`"), "{error}");
    }

    fn job(step: &str, state: JobState, progress: i32) -> Job {
        let version = "1.0.0".to_owned();
        let job =
            Job::new(UserId(1), SolverKey::parse(TOOL).unwrap(), version, String::new(), now());
        let started_at = (progress > 0).then(now);
        let stopped_at = state.is_final().then(now);
        Job { step: Some(step.into()), state, progress, started_at, stopped_at, ..job }
    }

    fn failed(step: &str, message: &str) -> Job {
        let error = JobError {
            loc: vec!["job".into(), "port".into()],
            msg: message.into(),
            kind: "runtime.oom".into(),
            ctx: Map::new(),
        };
        Job { error: Some(error), ..job(step, JobState::Failed, 100) }
    }

    #[test]
    fn steps_are_ready_when_their_data_are_there() {
        let (_, steps) = whole();
        let ready = |jobs: &[Job]| {
            steps.ready(jobs).iter().map(|step| step.name.clone()).collect::<Vec<_>>()
        };
        assert_eq!(ready(&[]), ["left", "right"]);
        let left = job("left", JobState::Success, 100);
        let right = |state| job("right", state, 50);
        assert_eq!(ready(&[left.clone(), right(JobState::Started)]), [] as [&str; 0]);
        assert_eq!(ready(&[left.clone(), right(JobState::Failed)]), [] as [&str; 0]);
        assert_eq!(ready(&[left.clone(), right(JobState::Success)]), ["join"]);
        let join = job("join", JobState::Published, 0);
        assert_eq!(ready(&[left, right(JobState::Success), join]), [] as [&str; 0]);
    }

    #[test]
    fn the_whole_stands_where_its_steps_stand() {
        use JobState::{Aborted, Pending, Published, Started, Success};
        let (_, steps) = whole();
        let whole = job("", Pending, 0);
        let standing = |jobs: &[Job], stopping| {
            let Standing { state, progress, error } = fold(&whole, &steps, jobs, stopping);
            (state, progress, error.map(|error| error.msg))
        };
        let failure = |message: &str| Some(message.to_owned());
        let success = |name| job(name, Success, 100);
        for (jobs, stopping, expected) in [
            (vec![], false, (Pending, 0, None)),
            (vec![], true, (Aborted, 100, None)),
            (vec![job("left", Published, 0)], false, (Pending, 0, None)),
            (vec![job("left", Started, 30), job("right", Pending, 0)], false, (Started, 10, None)),
            (vec![success("left"), success("right")], false, (Started, 66, None)),
            (vec![success("left"), success("right"), success("join")], true, (Success, 100, None)),
            (
                vec![failed("left", "no"), job("right", Started, 50)],
                false,
                (Started, 50, failure("step `left`: no")),
            ),
            (
                vec![job("right", Aborted, 100), failed("left", "no")],
                false,
                (JobState::Failed, 100, failure("step `left`: no")),
            ),
            (
                vec![job("left", Aborted, 100)],
                false,
                (JobState::Failed, 100, failure("step `left`: somebody stopped it")),
            ),
            (vec![job("left", Aborted, 100)], true, (Aborted, 100, None)),
            (vec![job("left", Started, 60)], true, (Started, 20, None)),
        ] {
            assert_eq!(standing(&jobs, stopping), expected, "{jobs:#?}");
        }
        let error = fold(&whole, &steps, &[failed("left", "no")], false).error.unwrap();
        assert_eq!(error.loc, [whole.id.to_string(), "left".to_owned(), "port".to_owned()]);
        assert_eq!(error.kind, "runtime.oom");
    }

    #[test]
    fn values_come_from_their_sources() {
        let (release, steps) = whole();
        let file = json!({"id": "x", "filename": "f"});
        let inputs = Values::from_iter([("start".to_owned(), file.clone())]);
        let left = steps.steps[1].values(&release.inputs, &inputs, &BTreeMap::new());
        assert_eq!(json!(left), json!({"file": file, "number": 3}));
        let outputs = BTreeMap::from([
            ("left".to_owned(), Values::from_iter([("file".to_owned(), json!("l"))])),
            ("right".to_owned(), Values::from_iter([("number".to_owned(), json!(7))])),
        ]);
        let join = steps.steps[0].values(&release.inputs, &inputs, &outputs);
        assert_eq!(json!(join), json!({"file": "l", "number": 7}));
        let defaults =
            vec![Port { default: Some(json!(5)), ..port("start", PortType::Integer, false) }];
        let right = steps.steps[2].values(&defaults, &Values::default(), &outputs);
        assert_eq!(json!(right), json!({"file": 5}), "the default of the whole's input");
        assert_eq!(json!(steps.steps[2].values(&[], &Values::default(), &outputs)), json!({}));
    }
}
