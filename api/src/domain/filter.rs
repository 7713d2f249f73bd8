//! What lists of jobs and solvers can be narrowed to.

use regex::Regex;

use super::{id::JobId, job::JobState, solver::SolverKey, time::Timestamp};

/// A pattern for whole texts: `*` is any text, `?` any character; upper and lower case are the same.
#[derive(Debug, Clone)]
pub struct Glob {
    text: String,
    regex: Regex,
}

impl Glob {
    /// The rule, as it is told to users.
    pub const RULE: &str = "must be a pattern of at most 512 characters, in which `*` is any text and `?` any character";

    /// Checks the length.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        if text.chars().count() > 512 {
            return Err(Self::RULE);
        }
        let text = fold(text);
        let pattern = regex::escape(&text).replace(r"\*", ".*").replace(r"\?", ".");
        let regex = Regex::new(&format!("(?s)^{pattern}$")).map_err(|_| Self::RULE)?;
        Ok(Self { text, regex })
    }

    /// Whether it matches a text.
    pub fn matches(&self, text: &str) -> bool {
        self.regex.is_match(&fold(text))
    }

    /// The text that it stands for, if it stands for one.
    pub fn literal(&self) -> Option<&str> {
        (!self.text.contains(['*', '?'])).then_some(&self.text)
    }

    /// For SQL's `LIKE` with `\` as escape, on text that was folded.
    pub fn like(&self) -> String {
        let escaped = self.text.replace('\\', r"\\").replace('%', r"\%").replace('_', r"\_");
        escaped.replace('*', "%").replace('?', "_")
    }
}

/// Text as patterns see it.
pub fn fold(text: &str) -> String {
    text.to_lowercase()
}

/// A condition on one of the owner's notes.
#[derive(Debug, Clone)]
pub struct NoteFilter {
    /// Name of the note.
    pub name: String,
    /// What its value must match, as text.
    pub value: Glob,
}

impl NoteFilter {
    /// Longest name of a note that can be searched for, in characters.
    pub const LONGEST_NAME: usize = 64;
    /// Longest value.
    pub const LONGEST_VALUE: usize = 512;

    /// Reads name and pattern with a separator between.
    pub fn parse(text: &str, separator: char) -> Option<Self> {
        let (name, value) = text.split_once(separator)?;
        let named = (1..=Self::LONGEST_NAME).contains(&name.chars().count());
        named.then_some(Self { name: name.to_owned(), value: Glob::parse(value).ok()? })
    }
}

/// Which of an owner's jobs a list holds. The default is all of them but those of steps.
#[derive(Debug, Clone, Default)]
pub struct JobFilter {
    /// The jobs of this one's steps, instead.
    pub parent: Option<JobId>,
    /// Of one of these releases, named by key and version.
    pub releases: Option<Vec<(SolverKey, String)>>,
    /// In one of these states; none means any.
    pub states: Vec<JobState>,
    /// With all of these notes.
    pub all_notes: Vec<NoteFilter>,
    /// With at least one of these notes, if there are any.
    pub any_notes: Vec<NoteFilter>,
    /// Created then or later.
    pub created_from: Option<Timestamp>,
    /// Created before.
    pub created_before: Option<Timestamp>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glob_matches_whole_texts() {
        for (pattern, text, expected) in [
            ("*sleeper", "simcore/services/comp/itis/sleeper", true),
            ("*sleep", "simcore/services/comp/itis/sleeper", false),
            ("V?.0", "v2.0", true),
            ("v?.0", "v22.0", false),
            ("a.c", "abc", false),
            ("*", "", true),
            ("a*z", "a\nz", true),
            ("ÜB*", "über", true),
            (r"100%_\", r"100%_\", true),
        ] {
            let glob = Glob::parse(pattern).unwrap();
            assert_eq!(glob.matches(text), expected, "{pattern} {text}");
        }
        assert_eq!(Glob::parse(r"5%_\?*").unwrap().like(), r"5\%\_\\_%");
        assert_eq!(Glob::parse("Fine.").unwrap().literal(), Some("fine."));
        assert_eq!(Glob::parse("fine?").unwrap().literal(), None);
        assert!(Glob::parse(&"?".repeat(512)).is_ok());
        assert!(Glob::parse(&"a".repeat(513)).is_err());
    }

    #[test]
    fn a_note_filter_has_a_name() {
        let filter = NoteFilter::parse("mesh:f:ne", ':').unwrap();
        assert_eq!((filter.name.as_str(), filter.value.like().as_str()), ("mesh", "f:ne"));
        for text in ["mesh", ":fine", &format!("{}:fine", "n".repeat(65))] {
            assert!(NoteFilter::parse(text, ':').is_none(), "{text}");
        }
    }
}
