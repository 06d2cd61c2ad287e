//! Request metadata as the bytes that a record keeps.
//!
//! Each entry: name length u16, name, value length u32, value; little-endian, in the order received.

use bytes::Bytes;

use crate::otlp::Metadata;

/// The bytes of `metadata`; entries with a name over 64 KiB are impossible in HTTP and left out.
pub fn encode(metadata: &Metadata) -> Bytes {
    if metadata.is_empty() {
        return Bytes::new();
    }
    let mut out = Vec::new();
    for (name, value) in metadata {
        let (Ok(name_len), Ok(value_len)) = (u16::try_from(name.len()), u32::try_from(value.len())) else { continue };
        out.extend_from_slice(&name_len.to_le_bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&value_len.to_le_bytes());
        out.extend_from_slice(value);
    }
    Bytes::from(out)
}

/// The metadata in `bytes`; what does not parse is left out (the record's check has passed, so there is none).
pub fn decode(mut bytes: &[u8]) -> Metadata {
    let mut metadata = Metadata::new();
    while let Some((name, value, rest)) = take_entry(bytes) {
        metadata.push((name, value));
        bytes = rest;
    }
    metadata
}

fn take_entry(bytes: &[u8]) -> Option<(String, Vec<u8>, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    let (name, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    let (len, rest) = rest.split_first_chunk::<4>()?;
    let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    Some((String::from_utf8(name.to_vec()).ok()?, value.to_vec(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_survives_the_record() {
        let metadata =
            vec![("tenant".to_owned(), b"a".to_vec()), ("x-bin".to_owned(), vec![0, 255]), (String::new(), vec![])];
        assert_eq!(decode(&encode(&metadata)), metadata);
        assert!(encode(&Metadata::new()).is_empty());
        assert!(decode(&encode(&metadata)[..5]).is_empty());
    }
}
