//! JSON → protobuf in one pass.

use std::fmt;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{self, Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::otlp::schema::{Field, Kind, Message, WireType};
use crate::otlp::wire::MAX_DEPTH;

use super::JsonError;

const LENIENT: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, LENIENT);
const BASE64_URL: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::URL_SAFE, LENIENT);

pub(super) fn message(message: &'static Message, json: &[u8], out: &mut Vec<u8>) -> Result<(), JsonError> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let seed = MessageSeed { message, out, depth_left: MAX_DEPTH };
    seed.deserialize(&mut deserializer).and_then(|()| deserializer.end()).map_err(|error| JsonError {
        message: error.to_string(),
        offset: Some(offset_of(json, error.line(), error.column())),
    })
}

/// The byte that a line and a column, both from 1, stand for.
fn offset_of(json: &[u8], line: usize, column: usize) -> usize {
    let lines = json.split_inclusive(|byte| *byte == b'\n').take(line.saturating_sub(1));
    let start: usize = lines.map(<[u8]>::len).sum();
    (start + column.saturating_sub(1)).min(json.len())
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Puts the length of everything behind `start` in front of it.
fn prefix_len(out: &mut Vec<u8>, start: usize) {
    let len = out.len() - start;
    let mut prefix = Vec::with_capacity(10);
    put_varint(&mut prefix, len as u64);
    out.splice(start..start, prefix);
}

fn put_key(out: &mut Vec<u8>, field: &Field, wire_type: WireType) {
    put_varint(out, u64::from(field.number) << 3 | wire_type as u64);
}

struct MessageSeed<'a> {
    message: &'static Message,
    out: &'a mut Vec<u8>,
    depth_left: u32,
}

impl<'de> DeserializeSeed<'de> for MessageSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for MessageSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an object ({})", self.message.name)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match self.message.field_named(&name) {
                Some(field) => {
                    map.next_value_seed(FieldSeed { field, out: &mut *self.out, depth_left: self.depth_left })?;
                }
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// The value of one field: null, a value, or for a repeated field a list of values.
struct FieldSeed<'a> {
    field: &'static Field,
    out: &'a mut Vec<u8>,
    depth_left: u32,
}

impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.field.repeated {
            return deserializer.deserialize_any(ListVisitor(self));
        }
        let FieldSeed { field, out, depth_left } = self;
        put_value(field, out, depth_left, deserializer)
    }
}

struct ListVisitor<'a>(FieldSeed<'a>);

impl<'de> Visitor<'de> for ListVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list ({})", self.0.field.json)
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let FieldSeed { field, out, depth_left } = self.0;
        let packed = field.kind.wire_type() != WireType::Delimited;
        if !packed {
            while list.next_element_seed(Element { field, out: &mut *out, depth_left })?.is_some() {}
            return Ok(());
        }
        put_key(out, field, WireType::Delimited);
        let start = out.len();
        while let Some(value) = list.next_element::<Scalar<'de>>()? {
            put_scalar(field, out, &value).map_err(de::Error::custom)?;
        }
        prefix_len(out, start);
        Ok(())
    }
}

struct Element<'a> {
    field: &'static Field,
    out: &'a mut Vec<u8>,
    depth_left: u32,
}

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        put_value(self.field, self.out, self.depth_left, deserializer)
    }
}

/// Writes key and value of one occurrence; null writes nothing, but an empty message where a list has one.
fn put_value<'de, D: Deserializer<'de>>(
    field: &'static Field,
    out: &mut Vec<u8>,
    depth_left: u32,
    deserializer: D,
) -> Result<(), D::Error> {
    if let Kind::Message(message) = field.kind {
        let Some(depth_left) = depth_left.checked_sub(1) else {
            return Err(de::Error::custom(format!("{} is nested too deeply (at most {MAX_DEPTH} levels)", field.json)));
        };
        let before = out.len();
        put_key(out, field, WireType::Delimited);
        let start = out.len();
        // Null is absence; an empty object is a message that is there.
        let was_null = deserializer.deserialize_any(Nullable(MessageSeed { message, out: &mut *out, depth_left }))?;
        if was_null && !field.repeated {
            out.truncate(before);
        } else {
            prefix_len(out, start);
        }
        return Ok(());
    }
    let value = Scalar::deserialize(deserializer)?;
    if matches!(value, Scalar::Null) {
        return Ok(());
    }
    put_key(out, field, field.kind.wire_type());
    put_scalar(field, out, &value).map_err(de::Error::custom)
}

/// A message, saying whether it was null.
struct Nullable<'a>(MessageSeed<'a>);

impl<'de> Visitor<'de> for Nullable<'_> {
    type Value = bool;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.expecting(f)
    }
    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(true)
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<bool, A::Error> {
        self.0.visit_map(map).map(|()| false)
    }
}

/// A JSON value that is neither list nor object.
#[derive(Debug)]
enum Scalar<'de> {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(std::borrow::Cow<'de, str>),
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
fn put_scalar(field: &Field, out: &mut Vec<u8>, value: &Scalar<'_>) -> Result<(), String> {
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
            let id = hex::decode(text(name, value)?).map_err(|error| format!("{name} must be hexadecimal: {error}"))?;
            put_bytes(out, &id);
        }
        Kind::Blob => {
            let text = text(name, value)?;
            let blob = BASE64
                .decode(text)
                .or_else(|_| BASE64_URL.decode(text))
                .map_err(|error| format!("{name} must be base64: {error}"))?;
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
