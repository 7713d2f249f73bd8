//! Errors as they are written to the log.

use std::{error::Error, iter::successors};

/// An error and its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    successors(Some(error), |&error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
