//! The sleeper: a solver that only takes time. It stands in for real ones in tutorials and tests.
//!
//! One file without dependencies, so that `rustc` alone makes a static program and the image needs no base.
//! It writes nothing to `LOG_FOLDER`: since integration version 1 a solver's log is what it prints.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use std::{env, fs, thread};

const NUMBER_FILE: &str = "single_number.txt";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if args != ["run"] {
        eprintln!("error: the only command is `run`, got {args:?}");
        return ExitCode::from(2);
    }
    match run(&folder("INPUT_FOLDER", "/inputs"), &folder("OUTPUT_FOLDER", "/outputs")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn folder(variable: &str, default: &str) -> PathBuf {
    env::var_os(variable).map_or_else(|| default.into(), PathBuf::from)
}

fn run(inputs: &Path, outputs: &Path) -> Result<(), String> {
    let values = read_values(&inputs.join("inputs.json"))?;
    let from_file = seconds_in_file(&inputs.join(NUMBER_FILE))?;
    let interval = number(&values, "input_2", 2.0)?;
    let fail = boolean(&values, "input_3")?;
    let distance = number(&values, "input_4", 0.0)?; // walked at one metre per second

    let total = Duration::try_from_secs_f64(from_file + interval + distance)
        .map_err(|_| format!("cannot sleep for {} seconds", from_file + interval + distance))?;
    sleep(total);

    if fail {
        return Err("asked to fail after sleeping (input_3 is true)".into());
    }
    let answer = RandomState::new().hash_one(()) % 9 + 1; // the standard library's only source of randomness
    write(outputs, NUMBER_FILE, &answer.to_string())?;
    write(outputs, "outputs.json", &format!("{{\"output_2\": {answer}}}\n"))?;
    say(&format!("Slept well, the answer is {answer}"));
    Ok(())
}

fn sleep(total: Duration) {
    let steps = total.as_secs() + u64::from(total.subsec_nanos() > 0);
    say(&format!("Will sleep for {} seconds", total.as_secs_f64()));
    let start = Instant::now();
    for step in 1..=steps {
        // Every step aims at its time since the start, so that the delays of a busy machine do not add up.
        let until = Duration::from_secs(step).min(total);
        thread::sleep(until.saturating_sub(start.elapsed()));
        say(&format!("[PROGRESS] {step}/{steps}..."));
        say(&format!("Remaining sleep time {:.1}", total.saturating_sub(until).as_secs_f64()));
    }
}

/// Prints one line at once: standard output is a pipe here, and whoever follows the log should not wait for it to fill.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    // A closed log is no reason to stop.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn write(folder: &Path, name: &str, text: &str) -> Result<(), String> {
    let path = folder.join(name);
    fs::write(&path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    // We run as root: what we leave behind should belong to whom the folder belongs to. Without the right to do so it is readable anyway.
    if let Ok(owner) = fs::metadata(folder) {
        use std::os::unix::fs::{MetadataExt, chown};
        let _ = chown(&path, Some(owner.uid()), Some(owner.gid()));
    }
    Ok(())
}

fn seconds_in_file(path: &Path) -> Result<f64, String> {
    match fs::read_to_string(path) {
        Ok(text) => seconds(&text)
            .ok_or_else(|| format!("{NUMBER_FILE} should hold a number of seconds, got {text:?}")),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(0.0),
        Err(e) => Err(format!("cannot read {}: {e}", path.display())),
    }
}

fn seconds(text: &str) -> Option<f64> {
    text.trim().parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0)
}

type Values = HashMap<String, String>;

fn number(values: &Values, port: &str, default: f64) -> Result<f64, String> {
    match values.get(port).map(String::as_str) {
        None | Some("null") => Ok(default),
        Some(text) => seconds(text)
            .ok_or_else(|| format!("{port} should be a number that is not negative, got {text:?}")),
    }
}

/// The tutorial sends the string "false"; it means what it says, although it is a string.
fn boolean(values: &Values, port: &str) -> Result<bool, String> {
    match values.get(port).map(|text| text.to_ascii_lowercase()).as_deref() {
        None | Some("null" | "false" | "0") => Ok(false),
        Some("true" | "1") => Ok(true),
        Some(text) => Err(format!("{port} should be true or false, got {text:?}")),
    }
}

fn read_values(path: &Path) -> Result<Values, String> {
    let text =
        fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    flat_object(&text)
        .ok_or_else(|| format!("{} is not a flat JSON object: {text}", path.display()))
}

/// Reads a JSON object of strings, numbers, booleans and nulls; each value is kept as its text, strings without their quotes.
/// Our ports have no other types, and none needs an escape. What is no value at all is refused by the port that reads it.
fn flat_object(text: &str) -> Option<Values> {
    let mut values = Values::new();
    let mut rest = text.trim().strip_prefix('{')?.strip_suffix('}')?.trim();
    while !rest.is_empty() {
        let (key, after) = rest.strip_prefix('"')?.split_once('"')?;
        let after = after.trim_start().strip_prefix(':')?.trim_start();
        let (value, after) = match after.strip_prefix('"') {
            Some(string) => string.split_once('"')?,
            None => after.split_at(after.find([',', ' ', '\t', '\r', '\n']).unwrap_or(after.len())),
        };
        values.insert(key.to_owned(), value.to_owned());
        rest = after.trim_start();
        if let Some(next) = rest.strip_prefix(',') {
            rest = next.trim_start();
            if rest.is_empty() {
                return None;
            }
        } else if !rest.is_empty() {
            return None;
        }
    }
    Some(values)
}
