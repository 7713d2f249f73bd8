//! What we say while a task runs: our own log lines among the solver's, and progress.

use std::{
    sync::atomic::{AtomicU8, Ordering},
    time::SystemTime,
};

use chrono::{DateTime, SecondsFormat, Utc};
use tokio::sync::mpsc::Sender;

use crate::{logs::printable, task::Event};

const INFO: &str = "[solverd]";
const WARNING: &str = "[WARNING] solverd:";
const ERROR: &str = "[ERROR] solverd:";

/// Whether a log line, timestamp included, has the form of ours.
pub(crate) fn is_ours(line: &str) -> bool {
    let text = line.split_once(' ').map_or("", |(_, text)| text);
    [INFO, WARNING, ERROR].iter().any(|prefix| text.starts_with(prefix))
}

/// Sends a task's events: its own lines, the solver's, and progress that only rises.
#[derive(Debug)]
pub(crate) struct Reporter<'a> {
    events: &'a Sender<Event>,
    percent: AtomicU8,
}

impl<'a> Reporter<'a> {
    pub(crate) fn new(events: &'a Sender<Event>) -> Self {
        Self { events, percent: AtomicU8::new(0) }
    }

    /// Sends an event. When nobody listens any more the task goes on: its outcome still counts.
    pub(crate) async fn send(&self, event: Event) {
        let _ = self.events.send(event).await;
    }

    pub(crate) async fn info(&self, text: impl AsRef<str>) {
        self.line(INFO, text.as_ref()).await;
    }

    pub(crate) async fn warning(&self, text: impl AsRef<str>) {
        self.line(WARNING, text.as_ref()).await;
    }

    pub(crate) async fn error(&self, text: impl AsRef<str>) {
        self.line(ERROR, text.as_ref()).await;
    }

    pub(crate) async fn progress(&self, percent: u8) {
        if self.percent.fetch_max(percent, Ordering::Relaxed) < percent {
            self.send(Event::Progress(percent)).await;
        }
    }

    async fn line(&self, prefix: &str, text: &str) {
        let now = now();
        // A message may carry names and words from elsewhere; it stays one line.
        let text = printable(text.replace('\n', " ").as_bytes());
        self.send(Event::Log(format!("{now} {prefix} {text}"))).await;
    }
}

/// The time as log lines begin with it.
pub(crate) fn now() -> String {
    DateTime::<Utc>::from(SystemTime::now()).to_rfc3339_opts(SecondsFormat::Nanos, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn progress_only_rises() {
        let (sender, mut events) = tokio::sync::mpsc::channel(8);
        let report = Reporter::new(&sender);
        for percent in [5, 35, 20, 35, 36] {
            report.progress(percent).await;
        }
        drop(sender);
        let mut seen = Vec::new();
        while let Some(event) = events.recv().await {
            seen.push(event);
        }
        assert_eq!(seen, [5, 35, 36].map(Event::Progress));
    }

    #[tokio::test]
    async fn our_lines_look_like_the_engines() {
        let (sender, mut events) = tokio::sync::mpsc::channel(8);
        Reporter::new(&sender).warning("two\nlines").await;
        let Some(Event::Log(line)) = events.recv().await else { panic!("no line") };
        let (at, text) = line.split_once(' ').unwrap();
        assert_eq!((at.len(), text), (30, "[WARNING] solverd: two lines"));
        assert!(DateTime::parse_from_rfc3339(at).is_ok() && at.ends_with('Z'), "{at}");
    }
}
