//! Translates: a job and its release to the runner's task, the runner's outputs to values of ports.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value as Json, json};
use solverd_runner::task::{self, InputFile, Limits, Output, OutputPort, Resources, Task};

use super::{Dispatcher, INSTANCE_LABEL};
use crate::{
    domain::{
        file::{File, FileRef},
        id::FileId,
        job::Job,
        solver::{self, Body, Release},
        time::now,
        usage::{CpuSource, Usage},
        value::{Values, cast_output},
    },
    store,
};

/// A task with notes for the job's log, or why there is none.
pub(super) type Prepared = Result<(Task, Vec<String>), String>;

impl Dispatcher {
    /// The task of a job: a file that was there at creation may have been deleted since. One that is `staged` has its files.
    pub(super) async fn task(
        &self,
        release: &Release,
        job: &Job,
        staged: bool,
    ) -> store::Result<Prepared> {
        let inputs = self.0.db.job_inputs(job.id).await?;
        let Body::Container(container) = &release.body else {
            return Ok(Err("steps do not run in a container of their own".to_owned()));
        };
        let mut values = serde_json::Map::new();
        let mut files = Vec::new();
        for port in &release.inputs {
            let value = inputs.get(&port.key).filter(|value| !value.is_null());
            if !port.is_file() {
                let value = value.or(port.default.as_ref()).cloned().unwrap_or(Json::Null);
                values.insert(port.key.clone(), value);
                continue;
            }
            let Some(value) = value.filter(|_| !staged) else { continue };
            let id = match serde_json::from_value::<FileRef>(value.clone()) {
                Ok(reference) => reference.id,
                Err(error) => return Ok(Err(format!("input `{}`: {error}", port.key))),
            };
            match self.0.db.file_get(id, job.owner).await {
                Ok(file) => {
                    let unzip = is_zip(&file.filename) && !port.takes_zip();
                    if let (true, Some(path)) = (unzip, &port.path) {
                        return Ok(Err(format!(
                            "input `{}`: `{}` is a zip archive, which is unpacked for this port, but the solver expects the one file `{path}`",
                            port.key, file.filename
                        )));
                    }
                    files.push(InputFile {
                        port: port.key.clone(),
                        file_id: id.0,
                        path: port.path.clone().unwrap_or(file.filename),
                        sha256: Some(file.sha256),
                        unzip,
                    });
                }
                Err(store::Error::NotFound { .. }) => {
                    return Ok(Err(format!(
                        "input `{}`: file `{id}` was deleted after the job was created",
                        port.key
                    )));
                }
                Err(error) => return Err(error),
            }
        }
        let outputs = release.outputs.iter().map(|port| {
            let path = || port.path.clone().unwrap_or_else(|| port.key.clone());
            let path = port.is_file().then(path);
            OutputPort {
                key: port.key.clone(),
                zip: port.takes_zip() && path.as_ref().is_some_and(|path| !is_zip(path)),
                path,
                default: port.default.clone(),
            }
        });
        let gpus = self.0.slots().get(&job.id).map(|slot| slot.gpus.clone());
        let task = Task {
            job_id: job.id.0,
            image: container.image.clone(),
            image_id: Some(container.image_id.clone()),
            image_digest: container.image_digest.clone(),
            command: container.command.clone(),
            env: container.env.clone(),
            resources: Resources {
                nano_cpus: job.resources.nano_cpus,
                memory_bytes: job.resources.memory_bytes,
            },
            limits: narrower(self.0.limits, container.limits),
            gpus: gpus.unwrap_or_default(),
            mpi: container.mpi,
            network: container.network,
            labels: BTreeMap::from([(INSTANCE_LABEL.to_owned(), self.0.lease.instance.clone())]),
            progress_regexp: container.progress_regexp.clone(),
            integration_version: container.integration_version,
            values,
            files,
            outputs: outputs.collect(),
        };
        let notes = if staged { Vec::new() } else { unknown_ports(release, &inputs) };
        Ok(Ok((task, notes)))
    }
}

/// The service's limits, and the solver's own where those are narrower.
fn narrower(service: Limits, own: solver::Limits) -> Limits {
    let seconds = |seconds: u32| Duration::from_secs(seconds.into());
    let [wall, silence] = [own.wall, own.silence].map(|own| own.map(|own| seconds(own.get())));
    let [bytes, disk] = [own.log, own.disk].map(|own| own.map(|mib| u64::from(mib.get()) << 20));
    Limits {
        pull: service.pull,
        wall: wall.into_iter().chain(service.wall).min(),
        silence: silence.map_or(service.silence, |own| own.min(service.silence)),
        grace: own.grace.map_or(service.grace, |own| seconds(own).min(service.grace)),
        disk_bytes: disk.map_or(service.disk_bytes, |own| own.min(service.disk_bytes)),
        disk_files: service.disk_files,
        disk_reserve: service.disk_reserve,
        log_bytes: bytes.map_or(service.log_bytes, |own| own.min(service.log_bytes)),
    }
}

/// Whether a file is a zip archive, by its name as oSPARC has it.
fn is_zip(filename: &str) -> bool {
    filename.to_ascii_lowercase().ends_with(".zip")
}

/// A warning for every value that no port takes.
pub(super) fn unknown_ports(release: &Release, inputs: &Values) -> Vec<String> {
    let names: Vec<_> = release.inputs.iter().map(|port| port.key.as_str()).collect();
    let unknown = inputs.keys().filter(|key| !names.contains(&key.as_str()));
    let ports = names.join(", ");
    unknown
        .map(|key| {
            format!("[WARNING] solverd: unknown input `{key}` is ignored; the solver has {ports}")
        })
        .collect()
}

/// What a container has used, for the books.
pub(super) fn usage(used: task::Usage) -> Usage {
    let micros = |time: std::time::Duration| i64::try_from(time.as_micros()).unwrap_or(i64::MAX);
    Usage {
        cpu_micros: micros(used.cpu),
        cpu_source: if used.measured { CpuSource::Measured } else { CpuSource::Reserved },
        wall_micros: micros(used.wall),
        peak_memory: used.peak_memory_bytes.and_then(|bytes| i64::try_from(bytes).ok()),
    }
}

/// The values of all outputs in declared order, each brought to its port's type, and the files among them.
pub(super) fn results(
    release: &Release,
    job: &Job,
    mut outputs: BTreeMap<String, Output>,
) -> Result<(Values, Vec<File>), String> {
    let (mut values, mut files) = (Values::default(), Vec::new());
    for port in &release.outputs {
        let value = match outputs.remove(&port.key) {
            Some(Output::Value(value)) => cast_output(port, value)?,
            Some(Output::File(stored)) => {
                let at = now();
                let file = File {
                    id: FileId(stored.file_id),
                    owner: job.owner,
                    filename: stored.filename,
                    size: i64::try_from(stored.size)
                        .map_err(|_| format!("output `{}` is too large", port.key))?,
                    sha256: stored.sha256,
                    e_tag: Some(stored.e_tag),
                    upload_id: None,
                    job_id: Some(job.id),
                    created_at: at,
                    completed_at: Some(at),
                };
                files.push(file.clone());
                json!(FileRef::from(file))
            }
            None => return Err(format!("output `{}` is missing", port.key)),
        };
        values.0.insert(port.key.clone(), value);
    }
    Ok((values, files))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_solver_may_narrow_its_limits() {
        let service = Limits::default();
        assert_eq!(narrower(service, solver::Limits::default()), service);
        let own = |text| serde_json::from_str::<solver::Limits>(text).unwrap();
        let narrow = own(r#"{"wall": 60, "silence": 50, "grace": 0, "log": 1, "disk": 2}"#);
        let narrowed = Limits {
            pull: service.pull,
            wall: Some(Duration::from_mins(1)),
            silence: Duration::from_secs(50),
            grace: Duration::ZERO,
            log_bytes: 1 << 20,
            disk_bytes: 2 << 20,
            ..service
        };
        assert_eq!(narrower(service, narrow), narrowed);
        let wide = own(r#"{"wall": 600, "silence": 5000, "grace": 50, "log": 1000, "disk": 1000}"#);
        assert_eq!(narrower(narrowed, wide), narrowed);
    }
}
