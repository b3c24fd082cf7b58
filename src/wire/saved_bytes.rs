//! For `#[serde(with)]`: bytes where the format supports them, otherwise base64 (RFC 4648 section 4). For any type that is made of
//! bytes.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{Error, Visitor};
use serde::{Deserializer, Serializer};

/// Writes them.
pub fn serialize<S: Serializer>(bytes: &impl AsRef<[u8]>, serializer: S) -> Result<S::Ok, S::Error> {
    if serializer.is_human_readable() {
        return serializer.serialize_str(&STANDARD.encode(bytes));
    }
    serializer.serialize_bytes(bytes.as_ref())
}

/// Reads them.
pub fn deserialize<'de, D: Deserializer<'de>, T: From<Vec<u8>>>(deserializer: D) -> Result<T, D::Error> {
    let read = if deserializer.is_human_readable() {
        deserializer.deserialize_str(Reader)
    } else {
        deserializer.deserialize_byte_buf(Reader)
    };
    read.map(T::from)
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("bytes")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<u8>, E> {
        STANDARD.decode(text).map_err(E::custom)
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }

    fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Vec<u8>, E> {
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use serde::{Deserialize, Serialize};

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Held(#[serde(with = "super")] Vec<u8>);

    #[test]
    fn bytes_are_base64_in_a_text() {
        let held = Held(vec![0, 255, 36]);
        let written = serde_json::to_string(&held).unwrap();
        assert_eq!((written.as_str(), serde_json::from_str::<Held>(&written).unwrap()), ("\"AP8k\"", held));
        assert!(serde_json::from_str::<Held>("\"A\"").is_err());
    }
}
