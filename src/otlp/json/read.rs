//! JSON → protobuf in one pass.

use std::fmt;

use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Unexpected, Visitor,
};

use crate::otlp::schema::{Field, Kind, Message, WireType};
use crate::otlp::wire::MAX_DEPTH;

use crate::settings::nearest;

use super::scalar::{Scalar, put_scalar, put_varint};
use super::{JsonError, Names};

/// Of a key that nobody knows, and of what may have been meant, at most so much is said.
const KEY_CHARS_MAX: usize = 64;

/// How deep it may still go, and whether every name must be known.
#[derive(Clone, Copy)]
struct Rules {
    depth_left: u32,
    names: Names,
}

pub(super) fn message(
    message: &'static Message,
    json: &[u8],
    names: Names,
    out: &mut Vec<u8>,
) -> Result<(), JsonError> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let seed = MessageSeed { message, out, rules: Rules { depth_left: MAX_DEPTH, names } };
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

/// Of a value that is of the wrong kind only the kind is named: what serde would quote may be personal data.
macro_rules! no_scalar {
    () => {
        fn visit_bool<E: de::Error>(self, _: bool) -> Result<Self::Value, E> {
            Err(E::invalid_type(Unexpected::Other("a boolean"), &self))
        }
        fn visit_i64<E: de::Error>(self, _: i64) -> Result<Self::Value, E> {
            Err(E::invalid_type(Unexpected::Other("a number"), &self))
        }
        fn visit_u64<E: de::Error>(self, _: u64) -> Result<Self::Value, E> {
            Err(E::invalid_type(Unexpected::Other("a number"), &self))
        }
        fn visit_f64<E: de::Error>(self, _: f64) -> Result<Self::Value, E> {
            Err(E::invalid_type(Unexpected::Other("a number"), &self))
        }
        fn visit_str<E: de::Error>(self, _: &str) -> Result<Self::Value, E> {
            Err(E::invalid_type(Unexpected::Other("a string"), &self))
        }
    };
}

/// Only where whoever reads the error wrote the text: it quotes the key.
fn unknown<E: de::Error>(message: &Message, key: &str) -> E {
    let name = message.name;
    let shown: String = key.escape_debug().take(KEY_CHARS_MAX).collect();
    let similar = nearest(&shown, message.fields.iter().map(|field| field.json));
    let help = similar.map(|field| format!(" (did you mean `{field}`?)")).unwrap_or_default();
    E::custom(format!("there is no field `{shown}` in {name}{help}"))
}

struct MessageSeed<'a> {
    message: &'static Message,
    out: &'a mut Vec<u8>,
    rules: Rules,
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

    no_scalar!();

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut once = Once::default();
        while let Some(name) = map.next_key::<std::borrow::Cow<'de, str>>()? {
            match self.message.field_named(&name) {
                Some(field) => {
                    if self.rules.names == Names::Known {
                        once.check(self.message, field).map_err(de::Error::custom)?;
                    }
                    map.next_value_seed(FieldSeed { field, out: &mut *self.out, rules: self.rules })?;
                }
                None if self.rules.names == Names::Known => return Err(unknown(self.message, &name)),
                None => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(())
    }
}

/// What a text has so far of the fields that a message has once.
#[derive(Default)]
struct Once {
    seen: Vec<u32>,
    /// The member of the oneof.
    chosen: Option<&'static str>,
}

impl Once {
    /// Of two the last would hold, and the first would be gone.
    fn check(&mut self, message: &Message, field: &'static Field) -> Result<(), String> {
        if !field.repeated {
            if self.seen.contains(&field.number) {
                return Err(format!("`{}` is there twice in {}", field.json, message.name));
            }
            self.seen.push(field.number);
        }
        match self.chosen.filter(|_| field.oneof) {
            Some(other) => Err(format!("{} has `{other}` or `{}`, not both", message.name, field.json)),
            None => {
                self.chosen = self.chosen.or(field.oneof.then_some(field.json));
                Ok(())
            }
        }
    }
}

/// The value of one field: null, a value, or for a repeated field a list of values.
struct FieldSeed<'a> {
    field: &'static Field,
    out: &'a mut Vec<u8>,
    rules: Rules,
}

impl<'de> DeserializeSeed<'de> for FieldSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.field.repeated {
            return deserializer.deserialize_any(ListVisitor(self));
        }
        let FieldSeed { field, out, rules } = self;
        put_value(field, out, rules, deserializer)
    }
}

struct ListVisitor<'a>(FieldSeed<'a>);

impl<'de> Visitor<'de> for ListVisitor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a list ({})", self.0.field.json)
    }

    no_scalar!();

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        let FieldSeed { field, out, rules } = self.0;
        let packed = field.kind.wire_type() != WireType::Delimited;
        if !packed {
            while list.next_element_seed(Element { field, out: &mut *out, rules })?.is_some() {}
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
    rules: Rules,
}

impl<'de> DeserializeSeed<'de> for Element<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        put_value(self.field, self.out, self.rules, deserializer)
    }
}

/// Writes key and value of one occurrence; null writes nothing, but an empty message where a list has one.
fn put_value<'de, D: Deserializer<'de>>(
    field: &'static Field,
    out: &mut Vec<u8>,
    rules: Rules,
    deserializer: D,
) -> Result<(), D::Error> {
    if let Kind::Message(message) = field.kind {
        let Some(depth_left) = rules.depth_left.checked_sub(1) else {
            return Err(de::Error::custom(format!("{} is nested too deeply (at most {MAX_DEPTH} levels)", field.json)));
        };
        let rules = Rules { depth_left, ..rules };
        let before = out.len();
        put_key(out, field, WireType::Delimited);
        let start = out.len();
        // Null is absence; an empty object is a message that is there.
        let was_null = deserializer.deserialize_any(Nullable(MessageSeed { message, out: &mut *out, rules }))?;
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

    no_scalar!();
    fn visit_unit<E>(self) -> Result<bool, E> {
        Ok(true)
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<bool, A::Error> {
        self.0.visit_map(map).map(|()| false)
    }
}
