//! How long an image may be pulled, how long a solver may run, and how long it may be silent.

use std::{
    future::pending,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::{sleep, timeout};

use crate::task::{FailureKind, Limits, TaskError};

/// Before a solver that was not listened to is taken to be silent: what it has printed meanwhile is to be read first.
const CATCH_UP: Duration = Duration::from_secs(10);

/// The clocks of one running container. Once made they are the machine's own: setting its time ends no solver.
#[derive(Debug)]
pub(crate) struct Clocks {
    limits: Limits,
    started: Instant,
    /// Since when the solver has been listened to in vain. `None` while something that it has printed is being passed on: a reader
    /// that is slow, or away, does not make the solver silent.
    quiet_since: Mutex<Option<Instant>>,
}

impl Clocks {
    /// Of a container that was started and heard last so long ago: by an earlier life of the service, if not just now.
    pub(crate) fn new(limits: Limits, started: Duration, heard: Duration) -> Self {
        let before = |ago| Instant::now().checked_sub(ago).unwrap_or_else(Instant::now);
        let heard = heard.min(limits.silence.saturating_sub(CATCH_UP));
        Self { limits, started: before(started), quiet_since: Mutex::new(Some(before(heard))) }
    }

    /// The solver has printed something.
    pub(crate) fn heard(&self) {
        *self.quiet() = None;
    }

    /// It has been passed on.
    pub(crate) fn listening(&self) {
        *self.quiet() = Some(Instant::now());
    }

    /// Waits until one of the limits is exceeded, and says which.
    pub(crate) async fn exceeded(&self) -> TaskError {
        let (kind, reason) = tokio::select! {
            limit = self.wall() => {
                (FailureKind::WallTime, format!("ran for {}, its limit of time", spelt(limit)))
            }
            limit = self.silence() => {
                (FailureKind::Silence, format!("printed nothing for {}, its limit of silence", spelt(limit)))
            }
        };
        TaskError::new(kind, format!("the solver {reason}, and was stopped"))
    }

    async fn wall(&self) -> Duration {
        let Some(limit) = self.limits.wall else { return pending().await };
        sleep(limit.saturating_sub(self.started.elapsed())).await;
        limit
    }

    async fn silence(&self) -> Duration {
        let limit = self.limits.silence;
        loop {
            let quiet = self.quiet().map_or(Duration::ZERO, |since| since.elapsed());
            let Some(left) = limit.checked_sub(quiet).filter(|left| !left.is_zero()) else {
                return limit;
            };
            sleep(left).await;
        }
    }

    fn quiet(&self) -> MutexGuard<'_, Option<Instant>> {
        self.quiet_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives pulling an image so much time.
pub(crate) async fn within<T, E: From<TaskError>>(
    limit: Duration,
    pull: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    timeout(limit, pull).await.unwrap_or_else(|_| {
        let message = format!("pulling the image took {}, its limit of time", spelt(limit));
        Err(TaskError::new(FailureKind::PullTime, message).into())
    })
}

/// In the largest unit that leaves no rest.
fn spelt(time: Duration) -> String {
    let seconds = time.as_secs();
    match [(3600, "h"), (60, "min")]
        .iter()
        .find(|(unit, _)| seconds > 0 && seconds.is_multiple_of(*unit))
    {
        Some((unit, name)) => format!("{} {name}", seconds / unit),
        None => format!("{} s", time.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_hours(1);

    fn clocks(wall: Option<Duration>, silence: Duration, ago: [Duration; 2]) -> Clocks {
        let [started, heard] = ago;
        Clocks::new(Limits { wall, silence, ..Limits::default() }, started, heard)
    }

    #[tokio::test]
    async fn time_counts_from_before_the_clocks_were_made() {
        let ran = clocks(Some(2 * HOUR), HOUR, [2 * HOUR, SECOND]).exceeded().await;
        assert_eq!(
            (ran.kind, ran.message.as_str()),
            (FailureKind::WallTime, "the solver ran for 2 h, its limit of time, and was stopped")
        );
    }

    #[tokio::test]
    async fn silence_counts_from_before_but_leaves_time_to_read() {
        let clocks = clocks(None, HOUR, [2 * HOUR, 2 * HOUR]);
        let quiet = clocks.quiet().unwrap().elapsed();
        assert!((HOUR..HOUR + CATCH_UP).contains(&(quiet + CATCH_UP)), "{quiet:?}");
    }

    #[tokio::test]
    async fn whoever_is_heard_is_not_silent_until_listened_to_again() {
        let clocks = clocks(None, SECOND / 10, [HOUR, SECOND]);
        clocks.heard();
        assert!(timeout(SECOND / 2, clocks.exceeded()).await.is_err(), "being passed on");
        clocks.listening();
        let silent = clocks.exceeded().await;
        assert_eq!(
            (silent.kind, silent.message.as_str()),
            (
                FailureKind::Silence,
                "the solver printed nothing for 0.1 s, its limit of silence, and was stopped"
            )
        );
    }

    #[test]
    fn times_are_spelt_in_the_largest_unit_without_rest() {
        for (seconds, expected) in
            [(0.0, "0 s"), (0.25, "0.25 s"), (90.0, "90 s"), (120.0, "2 min"), (7200.0, "2 h")]
        {
            assert_eq!(spelt(Duration::from_secs_f64(seconds)), expected);
        }
    }
}
