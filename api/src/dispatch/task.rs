//! Makes the runner's task of a job and its release.

use std::collections::BTreeMap;

use serde_json::Value as Json;
use solverd_runner::task::{InputFile, OutputPort, Resources, Task};

use super::{Dispatcher, INSTANCE_LABEL, Result};
use crate::{
    domain::{
        file::FileRef,
        job::Job,
        solver::{Body, Release},
    },
    store,
};

impl Dispatcher {
    /// The task, or why there is none: a file that was there at creation may have been deleted since.
    pub(super) async fn task(&self, release: &Release, job: &Job) -> Result<Result<Task, String>> {
        let Body::Container(container) = &release.body;
        let mut values = serde_json::Map::new();
        let mut files = Vec::new();
        for port in &release.inputs {
            let value = job.inputs.get(&port.key).filter(|value| !value.is_null());
            if !port.is_file() {
                let value = value.or(port.default.as_ref()).cloned().unwrap_or(Json::Null);
                values.insert(port.key.clone(), value);
                continue;
            }
            let Some(value) = value else { continue };
            let id = match serde_json::from_value::<FileRef>(value.clone()) {
                Ok(reference) => reference.id,
                Err(error) => return Ok(Err(format!("input `{}`: {error}", port.key))),
            };
            match self.0.db.file_get(id, job.owner).await {
                Ok(file) => files.push(InputFile {
                    port: port.key.clone(),
                    file_id: id.0,
                    path: port.path.clone().unwrap_or(file.filename),
                    sha256: Some(file.sha256),
                }),
                Err(store::Error::NotFound { .. }) => {
                    return Ok(Err(format!(
                        "input `{}`: file `{id}` was deleted after the job was created",
                        port.key
                    )));
                }
                Err(error) => return Err(error.into()),
            }
        }
        let outputs = release.outputs.iter().map(|port| OutputPort {
            key: port.key.clone(),
            path: port.is_file().then(|| port.path.clone().unwrap_or_else(|| port.key.clone())),
            default: port.default.clone(),
        });
        Ok(Ok(Task {
            job_id: job.id.0,
            image: container.image.clone(),
            command: container.command.clone(),
            env: container.env.clone(),
            resources: Resources {
                nano_cpus: container.resources.nano_cpus,
                memory_bytes: container.resources.memory_bytes,
            },
            network: container.network,
            labels: BTreeMap::from([(INSTANCE_LABEL.to_owned(), self.0.lease.instance.clone())]),
            progress_regexp: container.progress_regexp.clone(),
            values,
            files,
            outputs: outputs.collect(),
        }))
    }
}

/// A warning for every value that no port takes.
pub(super) fn unknown_ports(release: &Release, job: &Job) -> Vec<String> {
    let known = |key: &str| release.inputs.iter().any(|port| port.key == key);
    let names: Vec<_> = release.inputs.iter().map(|port| port.key.as_str()).collect();
    let unknown = job.inputs.keys().filter(|key| !known(key));
    unknown
        .map(|key| {
            format!(
                "[WARNING] solverd: unknown input `{key}` is ignored; the solver has {}",
                names.join(", ")
            )
        })
        .collect()
}
