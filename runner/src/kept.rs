//! What is kept of a log, however long it is: its beginning, passed on as it comes, and its last lines, held back until the end.

use std::{collections::VecDeque, fmt};

/// The share of the limit that is for the last lines: one in so many bytes.
const LAST: u64 = 16;

/// A log up to its limit.
#[derive(Debug)]
pub(crate) struct Kept {
    limit: u64,
    /// Bytes that the beginning may still take. Its last line may be longer.
    room: u64,
    last: VecDeque<String>,
    last_bytes: u64,
    left_out: LeftOut,
}

/// What is missing between beginning and end, as far as it was seen: of a log that grows faster than it can be read the engine throws
/// more away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LeftOut {
    lines: u64,
    bytes: u64,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at least {} lines ({}) are left out here", self.lines, mib(self.bytes))
    }
}

impl Kept {
    /// Keeps about `limit` bytes, of which the beginning has `taken` some already.
    pub(crate) fn new(limit: u64, taken: u64) -> Self {
        Self {
            limit,
            room: (limit - limit / LAST).saturating_sub(taken),
            last: VecDeque::new(),
            last_bytes: 0,
            left_out: LeftOut::default(),
        }
    }

    /// What is to be said when the beginning is complete.
    pub(crate) fn notice(&self) -> String {
        let limit = mib(self.limit);
        format!(
            "the log reaches {limit}, its limit: of what follows only the last lines are kept, and shown at the end"
        )
    }

    /// Takes nothing more into the beginning, and a shorter end, which is read sooner.
    pub(crate) const fn close(&mut self) {
        self.room = 0;
        self.limit /= 4;
    }

    /// Whether the beginning is complete.
    pub(crate) const fn is_full(&self) -> bool {
        self.room == 0
    }

    /// About how many lines from the end matter, once the beginning is complete: more than are held back.
    pub(crate) fn lines_that_matter(&self) -> Option<u64> {
        // None is shorter than its timestamp. How many are held back now says little: there may be none, and lines may get shorter.
        self.is_full().then_some(self.limit / LAST / 30)
    }

    /// Gives a line back that is to be passed on.
    pub(crate) fn take(&mut self, line: String) -> Option<String> {
        let bytes = size(&line);
        if !self.is_full() {
            self.room = self.room.saturating_sub(bytes);
            return Some(line);
        }
        self.last.push_back(line);
        self.last_bytes += bytes;
        self.hold(self.limit / LAST);
        None
    }

    /// Leaves out what is more than so many bytes.
    fn hold(&mut self, most: u64) {
        while self.last_bytes > most {
            let Some(line) = self.last.pop_front() else { break };
            self.last_bytes -= size(&line);
            self.left_out.lines += 1;
            self.left_out.bytes += size(&line);
        }
    }

    /// Between the lines that are held back and those that follow some are missing: they would not be the end.
    pub(crate) fn forget(&mut self) {
        self.hold(0);
    }

    /// At the end: what was left out, and the lines after that.
    pub(crate) fn finish(&mut self) -> (Option<LeftOut>, VecDeque<String>) {
        let left_out = std::mem::take(&mut self.left_out);
        (Some(left_out).filter(|it| it.lines > 0), std::mem::take(&mut self.last))
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// With its newline.
const fn size(line: &str) -> u64 {
    line.len() as u64 + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines of ten bytes each.
    fn line(number: u64) -> String {
        format!("{number:09}")
    }

    fn passed(kept: &mut Kept, numbers: std::ops::Range<u64>) -> u64 {
        numbers.filter(|number| kept.take(line(*number)).is_some()).count() as u64
    }

    #[test]
    fn a_log_within_its_limit_is_passed_on_whole() {
        let mut kept = Kept::new(320, 0);
        assert_eq!(passed(&mut kept, 0..29), 29);
        assert!(!kept.is_full() && kept.lines_that_matter().is_none());
        assert_eq!(kept.finish(), (None, VecDeque::new()));
    }

    #[test]
    fn of_a_longer_one_beginning_and_end_are_kept() {
        let mut kept = Kept::new(320, 0);
        assert_eq!(passed(&mut kept, 0..1000), 30);
        assert!(kept.is_full());
        assert_eq!(
            kept.finish(),
            (Some(LeftOut { lines: 968, bytes: 9680 }), [998, 999].map(line).into())
        );
    }

    #[test]
    fn lines_before_a_gap_are_not_the_end() {
        let mut kept = Kept::new(320, 0);
        passed(&mut kept, 0..32);
        kept.forget();
        passed(&mut kept, 40..41);
        assert_eq!(kept.finish(), (Some(LeftOut { lines: 2, bytes: 20 }), [line(40)].into()));
    }

    #[test]
    fn as_many_lines_matter_as_may_be_held_back() {
        let mut kept = Kept::new(1 << 20, 1 << 20);
        let shortest = "2026-01-01T10:00:00.000000000Z ";
        for _ in 0..10_000 {
            kept.take(shortest.to_owned());
        }
        let held = kept.last.len() as u64;
        for _ in 0..2 {
            assert!(kept.lines_that_matter().unwrap() > held);
            kept.forget();
        }
    }

    #[test]
    fn what_was_taken_before_counts() {
        let mut kept = Kept::new(320, 280);
        assert_eq!(passed(&mut kept, 0..4), 2);
        assert_eq!(kept.finish(), (None, [2, 3].map(line).into()));
        assert_eq!(passed(&mut Kept::new(320, 10_000), 0..4), 0);
    }

    #[test]
    fn a_line_may_be_longer_than_the_limit() {
        let mut kept = Kept::new(320, 0);
        let long = "x".repeat(400);
        assert_eq!(kept.take(long.clone()), Some(long.clone()));
        assert_eq!((kept.take(long), kept.take(line(1))), (None, None));
        assert_eq!(kept.finish(), (Some(LeftOut { lines: 1, bytes: 401 }), [line(1)].into()));
    }
}
