//! Other services on the same database: tells them that this one is there, and sees to the jobs of one that is gone.
//!
//! A service that is gone may only be cut off, with its containers at work. So a job with a container is not run again: it fails. Steps go
//! on here, since they are decided from the database alone. Whoever comes back finds the leases gone, and lets go of these jobs.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use chrono::SecondsFormat;
use solverd_runner::task::{FailureKind, TaskError};

use super::{AT_LATEST, Dispatcher, Result, finish::job_error, logs::log_line};
use crate::{
    domain::{
        file::File,
        id::{FileId, JobId},
        job::{Job, JobState, Lease, Transition},
        solver::{Body, Release},
        time::now,
    },
    report::chain,
    store::{self, Instance},
};

/// Between two signs of this service, and between two looks at the others at least: there are many steps in a second when much happens.
const PAUSE: Duration = Duration::from_secs(2);

/// For how long each of the others has been silent, as seen from here.
#[derive(Default)]
pub(super) struct Watch {
    looked: Option<Instant>,
    silent: HashMap<String, (Instance, Duration)>,
}

impl Watch {
    /// Takes what was seen so long after the last look; gives those that have been silent for longer than `timeout`. What counts is the time
    /// between looks, and no more of it than is usual: while the database or this machine was away, nobody could be heard.
    fn look(&mut self, seen: Vec<Instance>, after: Duration, timeout: Duration) -> Vec<Instance> {
        let before = std::mem::take(&mut self.silent);
        let silence = |instance: &Instance| match before.get(&instance.name) {
            Some((last, silent)) if last == instance => *silent + after.min(AT_LATEST),
            _ => Duration::ZERO,
        };
        self.silent =
            seen.into_iter().map(|it| (it.name.clone(), (it.clone(), silence(&it)))).collect();
        let gone = self.silent.values().filter(|(_, silent)| *silent > timeout);
        gone.map(|(instance, _)| instance.clone()).collect()
    }
}

impl Dispatcher {
    /// Says that this service is there, from now on again and again: however long a step takes, nobody takes it for gone.
    pub(super) async fn be_seen(&self) -> Result<()> {
        self.0.db.instance_seen(&self.0.lease, now()).await?;
        let inner = self.0.clone();
        self.0.tasks.spawn(async move {
            let seen = async {
                loop {
                    tokio::time::sleep(PAUSE).await;
                    let seen = inner.db.instance_seen(&inner.lease, now());
                    if let Err(error) = store::in_time(seen).await {
                        tracing::error!(
                            error = chain(&error),
                            "others may take this service for gone"
                        );
                    }
                }
            };
            inner.closing.run_until_cancelled(seen).await;
        });
        Ok(())
    }

    /// Looks for services that are gone, every few seconds.
    pub(super) async fn look_after_instances(&self) -> Result<()> {
        let inner = &self.0;
        let mut watch = inner.watch.lock().await;
        let after = watch.looked.map_or(PAUSE, |at| at.elapsed());
        if after < PAUSE {
            return Ok(());
        }
        let others = inner.db.instances_holding(&inner.lease, now()).await?;
        watch.looked = Some(Instant::now());
        for gone in watch.look(others, after, inner.instance_timeout) {
            for job in inner.db.jobs_leased(&Lease { instance: gone.name.clone() }).await? {
                // One job that cannot be ended must not keep the others, nor the step.
                if let Err(error) = self.see_to_job_of(&gone, &job).await {
                    tracing::error!(job = %job.id, error = chain(&error), "a job of a service that is gone stays as it is");
                }
            }
        }
        Ok(())
    }

    async fn see_to_job_of(&self, gone: &Instance, job: &Job) -> store::Result<()> {
        let inner = &self.0;
        let Instance { name, seen_at } = gone;
        let seen_at = seen_at.to_rfc3339_opts(SecondsFormat::Secs, true);
        let silence = format!("not seen since {seen_at}");
        let id = job.id;
        let steps = match self.release(job).await {
            Ok(Release { body, .. }) => matches!(body, Body::Steps(_)),
            Err(error) if error.is_transient() => return Err(error),
            Err(_) => false,
        };
        tracing::warn!(job = %id, instance = name, seen_at, "the service that ran the job is gone");
        if steps {
            let line = format!(
                "[solverd] instance {name}, which followed the steps, was {silence}; instance {} goes on",
                inner.lease.instance
            );
            let line = log_line(&line) + "\n";
            return inner.db.job_take_over(id, gone, &inner.lease, &line).await.map(drop);
        }
        let message = format!(
            "instance {name} of solverd, which ran the job, was {silence}; start a new job"
        );
        let line = log_line(&format!("[ERROR] solverd: {message}")) + "\n";
        let ending = if job.stop_requested_at.is_some() {
            Transition::Abort { log: None }
        } else {
            let error = job_error(job, TaskError::new(FailureKind::Lost, message));
            Transition::Fail { error, log: None }
        };
        inner.db.job_lose(id, gone, ending, &line, now()).await.map(drop)
    }

    /// Deletes the output files of a job that has ended without them, because another service had taken its lease.
    pub(super) async fn forget_unless_succeeded(
        &self,
        job: &Job,
        outputs: Vec<FileId>,
    ) -> store::Result<()> {
        match self.persist(|| self.0.db.job_get(job.id, job.owner)).await {
            Ok(job) if job.state == JobState::Success => {}
            Ok(_) => self.delete_files(outputs),
            // What was stored after it was removed has nobody else to see to it.
            Err(store::Error::NotFound { .. }) => {
                let keys = outputs.into_iter().map(File::object_key);
                self.delete_objects(keys.chain([Job::log_object_key(job.id)]).collect());
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Lets go of the jobs that are at work here although another service took their lease, taking this one for gone. For one that has just
    /// ended it means nothing.
    pub(super) fn let_go(&self, at_work: &HashSet<JobId>, leased: &[Job]) {
        let leased: HashSet<JobId> = leased.iter().map(|job| job.id).collect();
        let slots = self.0.slots();
        for slot in at_work.difference(&leased).filter_map(|id| slots.get(id)) {
            slot.lost.cancel();
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;

    use super::*;
    use crate::domain::time::Timestamp;

    const TIMEOUT: Duration = Duration::from_secs(15);

    fn seen(at: Timestamp) -> Vec<Instance> {
        vec![Instance { name: "other".to_owned(), seen_at: at }]
    }

    /// At which looks it is gone: when it was last seen, and how long after the look before.
    fn gone_at(looks: &[(Timestamp, u64)]) -> Vec<usize> {
        let mut watch = Watch::default();
        let gone = looks.iter().map(|(at, after)| {
            !watch.look(seen(*at), Duration::from_secs(*after), TIMEOUT).is_empty()
        });
        gone.enumerate().filter(|(_, gone)| *gone).map(|(number, _)| number).collect()
    }

    #[test]
    fn who_does_not_change_is_gone_after_a_while() {
        let at = now();
        assert_eq!(gone_at(&[(at, 5), (at, 5), (at, 5), (at, 5), (at, 5)]), [4]);
    }

    #[test]
    fn any_change_is_a_sign_also_of_a_clock_that_was_set_back() {
        let at = now();
        let back = at - TimeDelta::hours(9);
        assert!(gone_at(&[(at, 5), (at, 5), (at, 5), (at, 5), (back, 5), (back, 5)]).is_empty());
    }

    #[test]
    fn time_without_looks_says_nothing_about_others() {
        let at = now();
        assert!(gone_at(&[(at, 5), (at, 3600), (at, 3600)]).is_empty());
    }

    #[test]
    fn who_holds_nothing_is_forgotten() {
        let (at, five) = (now(), Duration::from_secs(5));
        let mut watch = Watch::default();
        for _ in 0..4 {
            assert_eq!(watch.look(seen(at), five, TIMEOUT), []);
        }
        assert_eq!(watch.look(Vec::new(), five, TIMEOUT), []);
        assert_eq!(watch.look(seen(at), five, TIMEOUT), []);
    }
}
