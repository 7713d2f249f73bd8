//! What a container uses. The engine tells once a second while it runs and nothing afterwards, so the last second is a guess, and a short
//! run would be little else.

use std::{
    pin::pin,
    time::{Duration, Instant},
};

use futures_util::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::{engine::Sample, report::Reporter, task::Usage};

/// Runs that are shorter are not sampled: little would be learnt, and the engine is busy starting and ending them.
const FIRST: Duration = Duration::from_millis(500);

/// Measures a running container.
pub(crate) struct Meter {
    started: Instant,
    nano_cpus: i64,
}

/// What was measured.
#[derive(Debug)]
pub(crate) struct Sampled {
    nano_cpus: i64,
    cpu: Duration,
    /// When: time since the start.
    at: Duration,
    memory_bytes: Option<u64>,
}

impl Meter {
    /// Of a container that was started so long ago.
    pub(crate) fn new(nano_cpus: i64, ago: Duration) -> Self {
        let now = Instant::now();
        Self { started: now.checked_sub(ago).unwrap_or(now), nano_cpus }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// Takes samples until the container has `ended`. The stream must do nothing before it is asked. Says once when there are nearly as
    /// many processes as there may be: a solver that cannot start more may not say so.
    pub(crate) async fn sample(
        &self,
        samples: impl Stream<Item = Sample>,
        report: &Reporter<'_>,
        ended: &CancellationToken,
    ) -> Sampled {
        let mut seen = Sampled::new(self.nano_cpus);
        let mut samples = pin!(samples);
        let mut told = false;
        ended.run_until_cancelled(tokio::time::sleep(FIRST)).await;
        while let Some(Some(sample)) = ended.run_until_cancelled(samples.next()).await {
            seen.add(sample, self.elapsed());
            if let Some((there, limit)) = sample.processes
                && there + limit / 16 >= limit
                && !std::mem::replace(&mut told, true)
            {
                let text =
                    format!("the solver has {there} processes and threads, its limit is {limit}");
                report.warning(text).await;
            }
        }
        seen
    }
}

impl Sampled {
    const fn new(nano_cpus: i64) -> Self {
        Self { nano_cpus, cpu: Duration::ZERO, at: Duration::ZERO, memory_bytes: None }
    }

    fn add(&mut self, sample: Sample, at: Duration) {
        // Of a container that has ended the engine says 0.
        if sample.cpu >= self.cpu && !sample.cpu.is_zero() {
            (self.cpu, self.at) = (sample.cpu, at);
        }
        self.memory_bytes = self.memory_bytes.max(sample.memory_bytes);
    }

    /// What was used in `wall`: if at least half of it was measured, the rest is taken to be like that.
    pub(crate) fn usage(self, wall: Duration) -> Usage {
        let (at, measured) = (self.at.min(wall), self.at * 2 >= wall && !self.at.is_zero());
        let cpu = if measured {
            self.cpu.as_secs_f64() * wall.as_secs_f64() / at.as_secs_f64()
        } else {
            #[expect(clippy::cast_precision_loss, reason = "no machine has that many CPUs")]
            let cpus = self.nano_cpus.max(0) as f64 / 1e9;
            wall.as_secs_f64() * cpus
        };
        let cpu = Duration::try_from_secs_f64(cpu).unwrap_or(self.cpu);
        Usage { cpu, measured, wall, peak_memory_bytes: self.memory_bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn sampled(samples: &[(u64, u32)]) -> Sampled {
        let mut sampled = Sampled::new(2_000_000_000);
        for &(cpu, at) in samples {
            let sample = Sample {
                cpu: Duration::from_millis(cpu),
                memory_bytes: Some(cpu),
                processes: None,
            };
            sampled.add(sample, SECOND * at);
        }
        sampled
    }

    #[test]
    fn the_rest_is_like_what_was_measured() {
        let usage = sampled(&[(10, 0), (500, 1), (1000, 2), (0, 3)]).usage(SECOND * 5 / 2);
        let expected = Usage {
            cpu: SECOND * 5 / 4,
            measured: true,
            wall: SECOND * 5 / 2,
            peak_memory_bytes: Some(1000),
        };
        assert_eq!(usage, expected);
        let late = sampled(&[(1000, 3)]).usage(SECOND * 2);
        assert_eq!((late.cpu, late.measured), (SECOND, true), "the two clocks differ");
    }

    #[test]
    fn what_was_hardly_measured_counts_as_reserved() {
        for samples in [&[][..], &[(10, 0)], &[(10, 0), (500, 1)]] {
            let usage = sampled(samples).usage(SECOND * 3);
            assert_eq!((usage.cpu, usage.measured), (SECOND * 6, false), "{samples:?}");
        }
        assert_eq!(sampled(&[]).usage(Duration::ZERO).cpu, Duration::ZERO);
    }
}
