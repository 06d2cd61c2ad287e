//! One value of JSON that is neither list nor object, as protobuf writes it.
//!
//! No message here quotes a value: it may be personal data, and messages are answered, logged and kept in the open.

use std::borrow::Cow;
use std::fmt;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{Deserialize, Deserializer, Visitor};

use crate::otlp::schema::{Field, Kind};

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT);

/// A JSON value that is neither list nor object.
#[derive(Debug)]
pub(super) enum Scalar<'de> {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(Cow<'de, str>),
}

impl<'de> Deserialize<'de> for Scalar<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Scalar<'de>, D::Error> {
        deserializer.deserialize_any(ScalarVisitor)
    }
}

struct ScalarVisitor;

impl<'de> Visitor<'de> for ScalarVisitor {
    type Value = Scalar<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a number, a string or a boolean")
    }
    fn visit_unit<E>(self) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Null)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Bool(value))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Unsigned(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Signed(value))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Float(value))
    }
    fn visit_str<E>(self, value: &str) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Text(value.to_owned().into()))
    }
    fn visit_borrowed_str<E>(self, value: &'de str) -> Result<Scalar<'de>, E> {
        Ok(Scalar::Text(value.into()))
    }
}

impl Scalar<'_> {
    /// As an integer, also out of a string or a float without a fraction.
    fn integer(&self) -> Option<i128> {
        match self {
            Scalar::Unsigned(value) => Some(i128::from(*value)),
            Scalar::Signed(value) => Some(i128::from(*value)),
            Scalar::Float(value) if value.fract() == 0.0 && value.abs() < 1e30 => Some(*value as i128),
            Scalar::Text(text) => text.parse().ok(),
            _ => None,
        }
    }

    fn double(&self) -> Option<f64> {
        match self {
            Scalar::Unsigned(value) => Some(*value as f64),
            Scalar::Signed(value) => Some(*value as f64),
            Scalar::Float(value) => Some(*value),
            Scalar::Text(text) => match &**text {
                "NaN" => Some(f64::NAN),
                "Infinity" => Some(f64::INFINITY),
                "-Infinity" => Some(f64::NEG_INFINITY),
                text => text.parse().ok(),
            },
            _ => None,
        }
    }

    fn bool(&self) -> Option<bool> {
        match self {
            Scalar::Bool(value) => Some(*value),
            Scalar::Text(text) => text.parse().ok(),
            _ => None,
        }
    }
}

/// Writes a scalar's value without its key.
pub(super) fn put_scalar(field: &Field, out: &mut Vec<u8>, value: &Scalar<'_>) -> Result<(), String> {
    let name = field.json;
    let integer = |low: i128, high: i128| {
        value
            .integer()
            .filter(|number| (low..=high).contains(number))
            .ok_or_else(|| format!("{name} must be an integer from {low} to {high}"))
    };
    match field.kind {
        Kind::Bool => put_varint(out, u64::from(value.bool().ok_or_else(|| format!("{name} must be true or false"))?)),
        Kind::Int32 => put_varint(out, integer(i32::MIN.into(), i32::MAX.into())? as i64 as u64),
        Kind::Enum(names) => {
            let named = match value {
                Scalar::Text(text) => names.iter().position(|name| name == text).map(|number| number as i128),
                _ => None,
            };
            let number = match named {
                Some(number) => number,
                None => integer(i32::MIN.into(), i32::MAX.into())?,
            };
            put_varint(out, number as i64 as u64);
        }
        Kind::Uint32 => put_varint(out, integer(0, u32::MAX.into())? as u64),
        Kind::Int64 => put_varint(out, integer(i64::MIN.into(), i64::MAX.into())? as i64 as u64),
        Kind::Uint64 => put_varint(out, integer(0, u64::MAX.into())? as u64),
        Kind::Sint32 => {
            let number = integer(i32::MIN.into(), i32::MAX.into())? as i32;
            put_varint(out, u64::from(((number << 1) ^ (number >> 31)) as u32));
        }
        Kind::Fixed32 => out.extend_from_slice(&(integer(0, u32::MAX.into())? as u32).to_le_bytes()),
        Kind::Fixed64 => out.extend_from_slice(&(integer(0, u64::MAX.into())? as u64).to_le_bytes()),
        Kind::Sfixed64 => out.extend_from_slice(&(integer(i64::MIN.into(), i64::MAX.into())? as i64).to_le_bytes()),
        Kind::Double => {
            let number = value.double().ok_or_else(|| format!("{name} must be a number"))?;
            out.extend_from_slice(&number.to_le_bytes());
        }
        Kind::Text => put_bytes(out, text(name, value)?.as_bytes()),
        Kind::Id => {
            let id = hex::decode(text(name, value)?).map_err(|error| {
                // The library's own words quote the character.
                let is_odd = error == hex::FromHexError::OddLength;
                let what = if is_odd { "it has an odd number of digits" } else { "it has another character" };
                format!("{name} must be hexadecimal: {what}")
            })?;
            put_bytes(out, &id);
        }
        Kind::Blob => {
            let text = text(name, value)?;
            let blob = BASE64
                .decode(text)
                .or_else(|_| BASE64_URL.decode(text))
                .map_err(|_| format!("{name} must be base64"))?;
            put_bytes(out, &blob);
        }
        Kind::Message(_) => return Err(format!("{name} must be an object")),
    }
    Ok(())
}

fn text<'v>(name: &str, value: &'v Scalar<'_>) -> Result<&'v str, String> {
    match value {
        Scalar::Text(text) => Ok(text),
        _ => Err(format!("{name} must be a string")),
    }
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(super) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
