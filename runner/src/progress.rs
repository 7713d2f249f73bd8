//! Progress lines: what a solver prints to say how far it is.

use std::sync::LazyLock;

use regex::{Captures, Regex, RegexBuilder};

/// `[PROGRESS]` in its spellings, or nothing; then a fraction of one, percents, or a count of steps.
/// The order of the alternatives matters, and so do their quirks: images in use rely on both.
const STANDARD: &str = concat!(
    r"^(?:\[?PROGRESS\]?:?)?\s*",
    r"(?P<value>[01]?\.[0-9]+",
    r"|[0-9]+\s*(?P<percent_sign>%)",
    r"|[0-9]+\s*[0-9]+\s*(?P<percent_explicit>percent)",
    r"|\[?(?P<fraction>[0-9]+/[0-9]+)\]?",
    r"|[01])",
);

/// A first word that is a date or a point in time: loggers put one there, and so does the engine.
const TIMESTAMP: &str = concat!(
    r"^[0-9]{4}(?:-?[0-9]{2}(?:-?[0-9]{2})?)?",
    r"(?:T[0-9]{2}(?::?[0-9]{2}(?::?[0-9]{2}(?:[.,][0-9]+)?)?)?)?(?:Z|[+-][0-9]{2}:?[0-9]{2})? ",
);

/// An image may bring an expression of its own: it is compiled within this many bytes.
const LARGEST: usize = 1 << 20;

static TIMESTAMP_WORD: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(TIMESTAMP).expect("a valid expression"));

/// Finds progress in log lines.
#[derive(Debug)]
pub(crate) struct Progress(Regex);

impl Default for Progress {
    fn default() -> Self {
        Self(Regex::new(STANDARD).expect("a valid expression"))
    }
}

impl Progress {
    /// With a solver's own expression: groups `value`, and if wanted `percent_sign`, `percent_explicit`, `fraction`.
    pub(crate) fn with(expression: &str) -> Result<Self, regex::Error> {
        RegexBuilder::new(expression).size_limit(LARGEST).build().map(Self)
    }

    /// The fraction done that a line reports, from 0 to 1. A timestamp may stand before the text.
    pub(crate) fn find(&self, line: &str) -> Option<f64> {
        let text = TIMESTAMP_WORD.find(line).map_or(line, |word| &line[word.end()..]);
        let value = value(&self.0.captures(text)?)?;
        value.is_finite().then(|| value.clamp(0.0, 1.0))
    }
}

fn value(found: &Captures<'_>) -> Option<f64> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let value = found.name("value")?.as_str();
    if found.name("percent_sign").is_some() {
        Some(number(value.split('%').next()?)? / 100.0)
    } else if found.name("percent_explicit").is_some() {
        Some(number(value.split("percent").next()?)? / 100.0)
    } else if let Some(fraction) = found.name("fraction") {
        let (done, all) = fraction.as_str().split_once('/')?;
        Some(number(done)? / number(all)?)
    } else {
        number(value)
    }
}

/// The whole task's percent while the solver runs: 5 were staging, 90 are the solver's, 5 are left for outputs.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 5 and 95")]
pub(crate) fn percent(done: f64) -> u8 {
    (5.0 + 90.0 * done.clamp(0.0, 1.0)).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_that_images_in_use_print() {
        let vectors = [
            ("[PROGRESS] 1/3...", Some(1.0 / 3.0)),
            ("[PROGRESS]: 0.4", Some(0.4)),
            ("PROGRESS: 50%", Some(0.5)),
            ("PROGRESS 50 %", Some(0.5)),
            ("50%", Some(0.5)),
            ("  50%", Some(0.5)),
            ("44 percent done", Some(0.44)),
            ("7 percent", None),
            ("4 4 percent", None),
            ("[3/4]", Some(0.75)),
            ("3/4 done", Some(0.75)),
            ("[PROGRESS] [2/5]", Some(0.4)),
            ("[PROGRESS][2/5]", Some(0.4)),
            ("10/0", None),
            ("150%", Some(1.0)),
            ("[PROGRESS]100%", Some(1.0)),
            ("2026-01-01T10:00:00Z 50%", Some(0.5)),
            ("2026 0.5", Some(0.5)),
            ("1", Some(1.0)),
            ("0", Some(0.0)),
            ("1.7", Some(1.0)),
            (".25", Some(0.25)),
            ("2.5", None),
            ("20.5%", None),
            ("0.123%", Some(0.123)),
            ("-0.5", None),
            ("Step 1", None),
            ("Progress 50%", None),
            ("[progress] 50%", None),
            ("[PROGRESS] 5", None),
            ("100", Some(1.0)),
            ("[PROGRESS] 100", Some(1.0)),
            ("10 items processed", Some(1.0)),
            ("12:30:01 something", Some(1.0)),
            ("0 errors", Some(0.0)),
        ];
        let progress = Progress::default();
        for (line, expected) in vectors {
            assert_eq!(progress.find(line), expected, "{line:?}");
        }
    }

    #[test]
    fn the_engines_timestamp_stands_before_a_line() {
        let progress = Progress::default();
        assert_eq!(progress.find("2026-01-01T10:00:00.123456789Z [PROGRESS] 1/2"), Some(0.5));
        assert_eq!(progress.find("2026-01-01T10:00:00.123456789Z "), None);
        // Only one is taken away: a time printed by the solver's logger is no progress.
        assert_eq!(progress.find("2026-01-01T10:00:00.123456789Z 2026-01-01 12:30:01 INFO"), None);
    }

    #[test]
    fn a_solvers_own_expression_replaces_the_standard_one() {
        let progress = Progress::with(r"step (?P<value>(?P<fraction>\d+/\d+))").unwrap();
        assert_eq!(progress.find("we are at step 3/4"), Some(0.75));
        assert_eq!(progress.find("50%"), None);
        let progress = Progress::with(r"done: (?P<value>\d+(?P<percent_sign>%))").unwrap();
        assert_eq!(progress.find("2026-01-01T10:00:00Z done: 20%"), Some(0.2));
        assert!(Progress::with(r"(?P<value>\d+)(?=%)").is_err(), "only Python looks ahead");
        assert_eq!(Progress::with(r"\d+").unwrap().find("1"), None, "no group called value");
    }

    #[test]
    fn ninety_percent_of_the_task_are_the_solvers() {
        assert_eq!([0.0, 1.0 / 3.0, 2.0 / 3.0, 1.0, 1.7].map(percent), [5, 35, 65, 95, 95]);
    }
}
