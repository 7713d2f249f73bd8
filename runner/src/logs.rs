//! The solver's log: lines put together from the engine's frames, each `<RFC 3339 UTC timestamp> <text>`, and followed
//! to the last one.

use std::{
    collections::{HashSet, VecDeque},
    hash::{DefaultHasher, Hash, Hasher},
    pin::pin,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};
use futures_util::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;

use crate::{
    engine::{Docker, EngineError},
    kept::Kept,
    limits::Clocks,
    progress::{Progress, percent},
    report::{Reporter, is_ours},
    task::Event,
};

/// A log stream ends with its container. Should it not, it is left after this much silence.
const SILENCE: Duration = Duration::from_secs(10);

/// How long after an error, or when there was nothing new, the log is opened again.
const AGAIN: Duration = Duration::from_secs(1);

/// How long after it brought new lines, unless they were many: mostly it has ended with the container, of which the engine is about to
/// tell.
const SOON: Duration = Duration::from_millis(50);
const MANY: usize = 10_000;

/// How long after a stopped container the log is still read from where reading stands: of what is unread then only the end is.
const STOPPED: Duration = Duration::from_millis(500);

/// By how much the line read last is behind when a stop does not even wait for that: an engine that has nothing to send ends a container
/// sooner.
const BEHIND: Duration = Duration::from_secs(2);

/// Pieces that are passed on together if they are there, and bytes: short lines are many.
const TOGETHER: usize = 1024;
const TOGETHER_BYTES: usize = 64 * 1024;

/// Lines that a failure carries, and characters of each.
pub(crate) const LAST_LINES: usize = 20;
const LAST_LINE: usize = 2_000;

/// Bytes kept of one line, timestamp included. A solver may print 100 MB without a newline.
const LONGEST: usize = 64 * 1024;

/// What an earlier follower of a log has passed on, by the lines that were written down: the next one goes on behind it.
#[derive(Debug, Default)]
pub struct Recorded {
    /// The second of the solver's last line, since the epoch; `None` until one is seen.
    last: Option<i64>,
    /// That says nothing of how far was read.
    from_begin: bool,
    /// Fingerprints of all lines from then on.
    lines: HashSet<u64>,
    /// Bytes of all that was written down.
    bytes: u64,
}

impl Recorded {
    /// So many bytes in all, of a solver of this integration version.
    pub fn new(bytes: u64, integration_version: u64) -> Self {
        // Lines of the log file have our time of seeing them: what was printed before may be unread.
        Self { bytes, from_begin: integration_version == 0, ..Self::default() }
    }

    /// Takes the lines that were written down, each with its timestamp, from the **last** to the first. Says whether the one before is
    /// needed as well.
    pub fn take(&mut self, line: &str) -> bool {
        let time = line.split(' ').next().and_then(|word| DateTime::parse_from_rfc3339(word).ok());
        let Some(time) = time.map(|time| time.timestamp()) else { return true };
        // Our own have the time of another clock, and say nothing of how far the solver's were read.
        if self.last.is_none() && !is_ours(line) {
            self.last = Some(time);
        }
        self.lines.insert(fingerprint(line));
        self.since().is_none_or(|since| since - 1 <= time)
    }

    /// The second to read from.
    fn since(&self) -> Option<i64> {
        // Lines of the two streams may be out of order by some microseconds.
        self.last.filter(|_| !self.from_begin).map(|last| last - 1)
    }

    /// Only how much was written down.
    pub(crate) fn size(&self) -> Self {
        Self { bytes: self.bytes, ..Self::default() }
    }

    /// How long ago the solver was heard last.
    pub(crate) fn ago(&self) -> Option<Duration> {
        let last = DateTime::<Utc>::from_timestamp(self.last?, 0)?;
        SystemTime::from(last).elapsed().ok()
    }

    fn has(&self, line: &str) -> bool {
        !self.lines.is_empty() && self.lines.contains(&fingerprint(line))
    }
}

fn fingerprint(line: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    line.hash(&mut hasher);
    hasher.finish()
}

/// Follows a container's log until `ended` is cancelled and everything is read; answers with the last lines.
///
/// The engine's stream is not to be relied on: Docker 20.10 often ends it with the container, thousands of lines before the
/// last. So reading goes on from the last line seen, and only a reading that began after the end counts as complete.
pub(crate) async fn follow(
    engine: &Docker,
    container: &str,
    mut printed: Printed<'_>,
    ended: &CancellationToken,
    stop: &CancellationToken,
) -> Vec<String> {
    let mut lines = Lines::since(printed.recorded.since().unwrap_or_default());
    loop {
        let complete = ended.is_cancelled();
        let (was_full, last) = (printed.kept.is_full(), printed.kept.lines_that_matter());
        // Not even a container that cannot be stopped is followed for ever.
        let stream = engine.logs(container, &mut lines, last, !complete);
        let result = printed.read(stream, complete, ended, stop).await;
        // One that became full meanwhile was left there: the end is still to be read.
        if complete && printed.kept.is_full() == was_full {
            if let Err(error) = result {
                let text = format!("log lines may be missing: {error}");
                printed.report.warning(text).await;
            } else if lines.jump() {
                continue;
            }
            break;
        }
        if printed.closed {
            ended.cancelled().await;
        }
        let pause = match result {
            Ok(0) | Err(_) => AGAIN,
            Ok(1..MANY) => SOON,
            // The engine has begun another file, and throws the oldest away.
            Ok(_) => Duration::ZERO,
        };
        ended.run_until_cancelled(tokio::time::sleep(pause)).await;
        if result.is_err() {
            // An engine that is away does not make the solver silent.
            printed.clocks.listening();
        }
    }
    for line in lines.finish() {
        printed.line(line).await;
    }
    printed.finish().await
}

/// Passes the solver's lines on: within the limit, and but for those that were written down already.
pub(crate) struct Printed<'a> {
    report: &'a Reporter<'a>,
    progress: &'a Progress,
    recorded: &'a Recorded,
    clocks: &'a Clocks,
    kept: Kept,
    /// The beginning was closed by a stop: to be said where that leaves something out.
    closed: bool,
    /// Lines to be passed on together.
    lines: String,
    last: VecDeque<String>,
}

impl<'a> Printed<'a> {
    pub(crate) fn new(
        report: &'a Reporter<'a>,
        progress: &'a Progress,
        recorded: &'a Recorded,
        clocks: &'a Clocks,
        limit: u64,
    ) -> Self {
        let kept = Kept::new(limit, recorded.bytes);
        let (lines, last) = (String::new(), VecDeque::new());
        Self { report, progress, recorded, clocks, kept, closed: false, lines, last }
    }

    /// Reads a stream, a `complete` one to its end; how many lines there were.
    async fn read(
        &mut self,
        pieces: impl Stream<Item = Result<Piece, EngineError>>,
        complete: bool,
        ended: &CancellationToken,
        stop: &CancellationToken,
    ) -> Result<usize, EngineError> {
        let mut pieces = pin!(pieces.ready_chunks(TOGETHER));
        let mut stopped = pin!(async {
            stop.cancelled().await;
            ended.cancelled().await;
            tokio::time::sleep(STOPPED).await;
        });
        let only_the_end = complete && self.kept.is_full();
        let mut lines = 0;
        loop {
            let silence = async {
                ended.cancelled().await;
                tokio::time::sleep(SILENCE).await;
            };
            let ready = tokio::select! {
                biased;
                // By now only the end matters, and the next reading begins there.
                () = ended.cancelled(), if self.kept.is_full() && !only_the_end => return Ok(lines),
                () = &mut stopped, if !self.kept.is_full() => {
                    self.close();
                    return Ok(lines);
                }
                ready = pieces.next() => ready,
                () = silence => {
                    let reason = "it did not end with the container".to_owned();
                    return Err(EngineError::Failed { doing: "reading the log", reason });
                }
            };
            let Some(ready) = ready else { return Ok(lines) };
            self.clocks.heard();
            let mut result = Ok(());
            for piece in ready {
                match piece {
                    Ok(piece) => lines += usize::from(self.piece(piece).await),
                    Err(error) => result = Err(error),
                }
            }
            self.pass_on().await;
            result?;
            self.clocks.listening();
            if stop.is_cancelled() && !self.kept.is_full() && self.is_behind() {
                self.close();
                return Ok(lines);
            }
        }
    }

    /// Takes nothing more into the beginning.
    fn close(&mut self) {
        self.kept.close();
        self.closed = true;
    }

    /// Whether the solver has printed long ago what was read just now.
    fn is_behind(&self) -> bool {
        let time = self.last.back().and_then(|line| line.split(' ').next());
        let time = time.and_then(|word| DateTime::parse_from_rfc3339(word).ok());
        time.is_some_and(|time| SystemTime::from(time).elapsed().is_ok_and(|ago| ago > BEHIND))
    }

    /// Whether it was a line.
    async fn piece(&mut self, Piece { line, torn }: Piece) -> bool {
        if torn && self.kept.is_full() {
            if std::mem::take(&mut self.closed) {
                self.warn("the solver was stopped: of what it had printed and was not read yet only the last lines are shown").await;
            }
            self.kept.forget();
        } else if torn {
            self.warn("lines are missing here: the engine threw them away unread").await;
        }
        let Some(line) = line else { return false };
        self.line(line).await;
        true
    }

    async fn line(&mut self, line: String) {
        let done = self.progress.find(&line);
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back(line.chars().take(LAST_LINE).collect());
        if self.recorded.has(&line) {
            return;
        }
        if let Some(done) = done {
            self.report.progress(percent(done)).await;
        }
        let was_full = self.kept.is_full();
        if let Some(line) = self.kept.take(line) {
            self.add(&line).await;
        }
        if self.kept.is_full() && !was_full {
            let notice = self.kept.notice();
            self.warn(&notice).await;
        }
    }

    async fn add(&mut self, line: &str) {
        if !self.lines.is_empty() {
            self.lines.push('\n');
        }
        self.lines += line;
        if self.lines.len() > TOGETHER_BYTES {
            self.pass_on().await;
        }
    }

    async fn pass_on(&mut self) {
        if !self.lines.is_empty() {
            self.report.send(Event::Log(std::mem::take(&mut self.lines))).await;
        }
    }

    async fn warn(&mut self, text: &str) {
        self.pass_on().await;
        self.report.warning(text).await;
    }

    /// Passes on lines that came together. Whether they count as recorded: those that are held back do not.
    pub(crate) async fn together(&mut self, lines: Vec<String>) -> bool {
        self.clocks.heard();
        for line in lines {
            self.line(line).await;
        }
        self.pass_on().await;
        self.clocks.listening();
        !self.kept.is_full()
    }

    /// Passes on what was held back; gives the last lines.
    pub(crate) async fn finish(mut self) -> Vec<String> {
        let (left_out, held_back) = self.kept.finish();
        if let Some(left_out) = left_out {
            self.warn(&left_out.to_string()).await;
        }
        for line in held_back {
            self.add(&line).await;
        }
        self.pass_on().await;
        self.last.into()
    }
}

/// Puts lines together. The engine cuts long lines into frames of 16 KiB, and puts a timestamp before each of them.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    stdout: Partial,
    stderr: Partial,
    /// The second to begin at while no frame was taken.
    since: i64,
    /// The last frame taken: where to go on in another stream of the same log.
    last: Vec<u8>,
    /// Frames come from a stream that begins before `last`.
    behind: bool,
    /// Some of them were taken to be from before `last`.
    skipped: bool,
    /// The next frame does not follow `last`.
    jumped: bool,
}

/// What a frame brings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The line that it completes.
    pub(crate) line: Option<String>,
    /// Whether frames are missing before it: the stream goes on from another, but did not have the last frame of that one.
    pub(crate) torn: bool,
}

/// The solver's stream a frame came from; long lines of both may be interleaved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    Stdout,
    Stderr,
}

impl Lines {
    /// From a second of the epoch on.
    fn since(since: i64) -> Self {
        Self { since, ..Self::default() }
    }

    /// To be called before another stream of the same log is read, which must begin at the second that it answers with.
    pub(crate) fn resume(&mut self) -> i64 {
        self.behind = !self.last.is_empty();
        self.skipped = false;
        let timestamp = self
            .last
            .split(|byte| *byte == b' ')
            .next()
            .and_then(|word| std::str::from_utf8(word).ok());
        timestamp
            .and_then(|word| DateTime::parse_from_rfc3339(word).ok())
            .map_or(self.since, |at| at.timestamp())
    }

    /// To be called when a stream was read to its end: whether it did not have the last frame taken, so that all that it had came later,
    /// be it in the same second. Then the next stream is taken as it comes.
    fn jump(&mut self) -> bool {
        let jumped = self.behind && self.skipped;
        if jumped {
            self.since = self.resume();
            self.last.clear();
            (self.stdout, self.stderr) = (Partial::default(), Partial::default());
            self.jumped = true;
        }
        jumped
    }

    /// Takes a frame, unless it was taken before.
    pub(crate) fn push(&mut self, source: Source, frame: &[u8]) -> Option<Piece> {
        let torn = self.behind || std::mem::take(&mut self.jumped);
        if self.behind {
            // Frames of two streams may be out of order by some microseconds: identity counts, within the second.
            self.behind = frame != self.last && second(frame) <= second(&self.last);
            if self.behind || frame == self.last {
                self.skipped = true;
                return None;
            }
            (self.stdout, self.stderr) = (Partial::default(), Partial::default());
        }
        self.last.clear();
        self.last.extend_from_slice(frame);
        let partial = match source {
            Source::Stdout => &mut self.stdout,
            Source::Stderr => &mut self.stderr,
        };
        Some(Piece { line: partial.push(frame), torn })
    }

    /// What was printed last without a newline.
    pub(crate) fn finish(&mut self) -> Vec<String> {
        [&mut self.stdout, &mut self.stderr].into_iter().filter_map(Partial::take).collect()
    }
}

#[derive(Debug, Default)]
pub(crate) struct Partial {
    bytes: Vec<u8>,
    dropped: usize,
}

impl Partial {
    /// Takes a piece of a line with a timestamp before it; answers with the line when it is complete.
    pub(crate) fn push(&mut self, frame: &[u8]) -> Option<String> {
        let text = if self.bytes.is_empty() { frame } else { after_timestamp(frame) };
        let (text, complete) = text.strip_suffix(b"\n").map_or((text, false), |text| (text, true));
        let kept = text.len().min(LONGEST - self.bytes.len());
        self.bytes.extend_from_slice(&text[..kept]);
        self.dropped += text.len() - kept;
        if complete { self.take() } else { None }
    }

    /// What there is without a newline.
    pub(crate) fn take(&mut self) -> Option<String> {
        let bytes = std::mem::take(&mut self.bytes);
        let dropped = std::mem::take(&mut self.dropped);
        if bytes.is_empty() {
            return None;
        }
        let mut line = printable(&bytes);
        if dropped > 0 {
            line.extend([" [solverd: line cut here, ", &dropped.to_string(), " bytes more]"]);
        }
        Some(line)
    }
}

fn after_timestamp(frame: &[u8]) -> &[u8] {
    frame.iter().position(|byte| *byte == b' ').map_or(frame, |space| &frame[space + 1..])
}

/// The part of a frame's timestamp down to the second: `2026-01-01T10:00:00`. With a smaller part less would be lost of a log whose end
/// is read without its last frame taken; but on a busy machine frames of two streams are out of order by many milliseconds.
fn second(frame: &[u8]) -> &[u8] {
    frame.get(..19).unwrap_or(frame)
}

/// As text, without control characters except tabs: databases refuse NUL, terminals obey escapes.
pub(crate) fn printable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).chars().filter(|c| *c == '\t' || !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tokio::sync::mpsc;

    use super::*;
    use crate::{engine::pretended, task::Limits};

    const AT: &str = "2026-01-01T10:00:00.000000000Z";

    fn frame(text: &str) -> Vec<u8> {
        format!("{AT} {text}").into_bytes()
    }

    fn line(text: &str) -> Piece {
        Piece { line: Some(format!("{AT} {text}")), torn: false }
    }

    const PART: Piece = Piece { line: None, torn: false };

    #[test]
    fn a_frame_with_a_newline_is_a_line() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(Source::Stdout, &frame("one\n")), Some(line("one")));
        assert_eq!(lines.push(Source::Stderr, &frame("\n")), Some(line("")));
        assert_eq!(lines.finish(), Vec::<String>::new());
    }

    #[test]
    fn frames_without_newline_go_on_in_the_next_frame_of_their_stream() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(Source::Stdout, &frame("first ")), Some(PART));
        assert_eq!(lines.push(Source::Stderr, &frame("error\n")), Some(line("error")));
        assert_eq!(lines.push(Source::Stdout, &frame("second ")), Some(PART));
        assert_eq!(lines.push(Source::Stdout, &frame("third\n")), Some(line("first second third")));
        assert_eq!(lines.push(Source::Stdout, &frame("no newline")), Some(PART));
        assert_eq!(lines.finish(), [format!("{AT} no newline")]);
    }

    #[test]
    fn a_line_without_end_is_cut_and_says_so() {
        let mut lines = Lines::default();
        let chunk = frame(&"x".repeat(16 * 1024));
        for _ in 0..100 {
            assert_eq!(lines.push(Source::Stdout, &chunk), Some(PART));
        }
        let cut = lines.push(Source::Stdout, &frame("\n")).unwrap().line.unwrap();
        let dropped = 100 * 16 * 1024 + AT.len() + 1 - LONGEST;
        assert!(
            cut.ends_with(&format!("x [solverd: line cut here, {dropped} bytes more]")),
            "{}",
            &cut[LONGEST - 9..]
        );
        assert_eq!(lines.push(Source::Stdout, &frame("next\n")), Some(line("next")));
    }

    #[test]
    fn a_log_is_read_on_from_its_last_line_but_not_where_a_file_is_a_log_as_well() {
        let at = |second: u32| format!("2026-01-01T10:00:{second:02}.000000000Z line");
        for (version, taken, since) in [(1, 3, Some(1_767_261_608)), (0, 10, None)] {
            let mut recorded = Recorded::new(0, version);
            assert!(recorded.take("2026-01-01T11:00:00.000000000Z [solverd] said later"));
            let count = (0..10).rev().take_while(|second| recorded.take(&at(*second))).count();
            assert_eq!((count, recorded.since()), (taken, since));
            assert_eq!(recorded.last, Some(1_767_261_609));
        }
    }

    #[test]
    fn what_no_terminal_or_database_should_see_is_taken_out() {
        let mut lines = Lines::default();
        let bytes = [format!("{AT} a\0b\x1b[31m\tc\r").as_bytes(), &[0xff, b'd', b'\n']].concat();
        assert_eq!(lines.push(Source::Stdout, &bytes), Some(line("ab[31m\tc\u{fffd}d")));
    }

    #[test]
    fn a_second_reading_goes_on_where_the_first_ended() {
        let at =
            |nanos: u32, text: &str| format!("2026-01-01T10:00:01.{nanos:09}Z {text}").into_bytes();
        let mut lines = Lines::default();
        assert_eq!(lines.resume(), 0);
        assert!(lines.push(Source::Stdout, &at(5, "one\n")).is_some());
        assert!(lines.push(Source::Stderr, &at(4, "two\n")).is_some());
        assert_eq!(lines.push(Source::Stdout, &at(6, "thr")), Some(PART));

        assert_eq!(lines.resume(), 1_767_261_601);
        for seen in [at(3, "zero\n"), at(5, "one\n"), at(4, "two\n"), at(6, "thr")] {
            assert_eq!(lines.push(Source::Stdout, &seen), None);
        }
        let line = lines.push(Source::Stdout, &at(7, "ee\n"));
        let three = "2026-01-01T10:00:01.000000006Z three".to_owned();
        assert_eq!(line, Some(Piece { line: Some(three), torn: false }));
        assert_eq!(lines.push(Source::Stdout, &at(8, "begun")), Some(PART));

        assert_eq!(lines.resume(), 1_767_261_601);
        assert_eq!(lines.push(Source::Stdout, &at(9, "the frame seen last is gone\n")), None);
        assert!(lines.jump(), "nothing was taken");
        assert_eq!(lines.resume(), 1_767_261_601);
        for torn in [true, false] {
            let piece = lines.push(Source::Stdout, &at(9, "the frame seen last is gone\n"));
            let text = "2026-01-01T10:00:01.000000009Z the frame seen last is gone".to_owned();
            assert_eq!(piece, Some(Piece { line: Some(text), torn }));
        }
        lines.resume();
        assert_eq!(lines.push(Source::Stdout, &at(9, "the frame seen last is gone\n")), None);
        assert!(!lines.jump(), "it was there");

        lines.resume();
        let text = "2026-01-01T10:00:02.000000000Z the frame seen last is not there any more";
        for torn in [true, false] {
            let piece = lines.push(Source::Stdout, format!("{text}\n").as_bytes());
            assert_eq!(piece, Some(Piece { line: Some(text.to_owned()), torn }));
        }
    }

    /// Does something with a log with a limit, whose container has ended.
    async fn at_the_end<T>(
        limit: u64,
        work: impl AsyncFnOnce(Printed<'_>, &CancellationToken) -> T,
    ) -> T {
        let (sender, _) = mpsc::channel(1);
        let report = Reporter::new(&sender);
        let (progress, recorded) = (Progress::default(), Recorded::default());
        let clocks = Clocks::new(Limits::default(), Duration::ZERO, Duration::ZERO);
        let ended = CancellationToken::new();
        ended.cancel();
        work(Printed::new(&report, &progress, &recorded, &clocks, limit), &ended).await
    }

    /// Reads a log with a limit, of so many lines, to its end; answers with what the engine was asked.
    async fn asked(limit: u64, count: usize) -> Vec<String> {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let heard = asked.clone();
        let engine = pretended(move |request| {
            heard.lock().unwrap().push(request.to_owned());
            let line = [&[1, 0, 0, 0, 0, 0, 0, 36], &frame("line\n")[..]].concat();
            (200, line.repeat(count))
        });
        at_the_end(limit, async |printed, ended| {
            follow(&engine, "x", printed, ended, &CancellationToken::new()).await
        })
        .await;
        asked.lock().unwrap().clone()
    }

    #[tokio::test]
    async fn at_the_end_a_log_is_not_followed() {
        let asked = asked(1 << 20, 1).await;
        assert!(asked.len() == 1 && asked[0].contains("follow=false"), "{asked:?}");
    }

    #[tokio::test]
    async fn of_a_log_that_turns_out_to_be_too_long_at_the_end_only_the_last_lines_are_read() {
        const COUNT: usize = 1 << 13;
        let asked = asked(1 << 16, COUNT).await;
        let tails = ["tail=all", "tail=136"];
        let as_expected = asked.iter().zip(tails).all(|(asked, tail)| asked.contains(tail));
        assert!(asked.len() == 2 && as_expected, "{asked:?}");

        let lines = futures_util::stream::iter((0..COUNT).map(|_| Ok(line("line"))));
        let read = at_the_end(1 << 16, async |mut printed, ended| {
            printed.read(lines, true, ended, &CancellationToken::new()).await.unwrap()
        });
        assert!(read.await < COUNT);
    }
}
