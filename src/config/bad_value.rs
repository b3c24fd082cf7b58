//! Why a user-supplied value is invalid.

use thiserror::Error;

/// Why a value is invalid and what to write instead: a sentence for the user, without secrets.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct BadValue(String);

impl From<String> for BadValue {
    fn from(sentence: String) -> BadValue {
        BadValue(sentence)
    }
}

impl From<&str> for BadValue {
    fn from(sentence: &str) -> BadValue {
        BadValue(sentence.to_owned())
    }
}
