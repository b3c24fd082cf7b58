//! Why the relay, or a command to a running one, failed.

use thiserror::Error;

/// What has failed, and what to do about it, as a sentence for the user. Nothing distinguishes failures by kind, so there are none.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct Failure(String);

impl From<String> for Failure {
    fn from(sentence: String) -> Failure {
        Failure(sentence)
    }
}

impl From<&str> for Failure {
    fn from(sentence: &str) -> Failure {
        Failure(sentence.to_owned())
    }
}
