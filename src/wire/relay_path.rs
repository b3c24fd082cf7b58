//! The ids of relays that a request or a stream has passed through, for detecting loops.

use super::sdp::PATH_ATTRIBUTE;
use crate::escape::beginning;

/// The header of a 503 response, and the attribute of a description, that list the relays that a stream has passed through.
pub const PATH: &str = PATH_ATTRIBUTE;

/// Maximum number of relay ids in a `Via` or path, and of bytes that are parsed.
const PATH_IDS_MAX: usize = 32;
const PATH_BYTES_MAX: usize = 1_024;

/// The ids in a path from another relay; invalid ones are ignored.
pub fn ids(path: &str) -> impl Iterator<Item = &str> {
    beginning(path, PATH_BYTES_MAX).split(',').map(str::trim).filter(|part| is_id(part)).take(PATH_IDS_MAX)
}

fn is_id(text: &str) -> bool {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=64).contains(&text.len()) && text.bytes().all(safe)
}

/// The ids in a `Via` header (RFC 2326 section 12.43), each after the protocol's name and version.
pub fn via_ids(via: &str) -> impl Iterator<Item = &str> {
    let named = beginning(via, PATH_BYTES_MAX).split(',').filter_map(|hop| hop.split_ascii_whitespace().nth(1));
    named.filter(|part| is_id(part)).take(PATH_IDS_MAX)
}

/// Joins ids to a path.
pub fn joined<'a>(ids: impl Iterator<Item = &'a str>) -> String {
    ids.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_others_are_taken_as_far_as_they_can_be_ids() {
        assert_eq!(ids("a1, b-2,, c d ,\u{e4},e").collect::<Vec<_>>(), ["a1", "b-2", "e"]);
        assert_eq!(via_ids("RTSP/1.0 a1, 1.0 b (comment),x, RTSP/1.0 \u{e4}").collect::<Vec<_>>(), ["a1", "b"]);
        let long = "ä".repeat(2_000) + ",a";
        assert_eq!(ids(&long).count(), 0);
        assert_eq!(ids(&"a,".repeat(100)).count(), PATH_IDS_MAX);
        assert_eq!(joined(["a", "b"].into_iter()), "a, b");
    }
}
