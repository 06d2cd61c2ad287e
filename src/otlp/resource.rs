//! What a request says of the resource that it comes from, without decoding it.

use super::wire::{self, MAX_DEPTH};

/// `service.name` of the first resource in a valid `Export*ServiceRequest`, which is built alike for all signals.
pub fn service_name(request: &[u8]) -> Option<&str> {
    let first = delimited_fields(request, 1).next()?;
    service_name_of(delimited_fields(first, 1).next()?)
}

fn service_name_of(resource: &[u8]) -> Option<&str> {
    let value = delimited_fields(resource, 1).find_map(|pair| {
        let key = delimited_fields(pair, 1).last()?;
        (key == b"service.name").then(|| delimited_fields(pair, 2).last()).flatten()
    })?;
    std::str::from_utf8(delimited_fields(value, 1).last()?).ok()
}

/// The same from the beginning of a request, if that has the resource as a whole.
pub fn service_name_in_beginning(beginning: &[u8]) -> Option<&str> {
    let (number, wire_type, next) = wire::key(beginning, 0, beginning.len()).ok()?;
    let (len, start) = wire::varint(beginning, next, beginning.len()).ok()?;
    if (number, wire_type) != (1, 2) {
        return None;
    }
    // The first element may reach further than what is known.
    let known = &beginning[start..];
    let first = &known[..usize::try_from(len).map_or(known.len(), |len| len.min(known.len()))];
    service_name_of(delimited_fields(first, 1).next()?)
}

/// The values of every field of that number that has a length; ends where the message is not valid.
fn delimited_fields(message: &[u8], wanted: u32) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    std::iter::from_fn(move || {
        while at < message.len() {
            let (number, wire_type, next) = wire::key(message, at, message.len()).ok()?;
            if wire_type == 2 {
                let (start, end) = wire::delimited(message, next, message.len()).ok()?;
                at = end;
                if number == wanted {
                    return Some(&message[start..end]);
                }
            } else {
                at = wire::skip(message, number, wire_type, next, message.len(), MAX_DEPTH).ok()?;
            }
        }
        None
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::otlp::{Signal, json};

    #[test]
    fn the_name_of_the_service_is_found_in_all_signals_and_missed_without_harm() {
        let resource = r#"{"attributes":[{"key":"host","value":{"intValue":"4"}},{"key":"service.name","value":{"stringValue":"checkout"}}]}"#;
        for (signal, list) in
            [(Signal::Traces, "resourceSpans"), (Signal::Metrics, "resourceMetrics"), (Signal::Logs, "resourceLogs")]
        {
            let named = format!(r#"{{"{list}":[{{"resource":{resource}}}]}}"#);
            let named = json::to_protobuf(signal, named.as_bytes()).expect("valid");
            assert_eq!(service_name(&named), Some("checkout"));
            let nameless = format!(r#"{{"{list}":[{{"resource":{{}}}}]}}"#);
            assert_eq!(service_name(&json::to_protobuf(signal, nameless.as_bytes()).expect("valid")), None);
            for end in 0..named.len() {
                let _cut = service_name(&named[..end]);
            }
            // Of the first resource alone, however much follows and wherever it is cut behind the resource.
            let nameless_first = format!(r#"{{"{list}":[{{}},{{"resource":{resource}}}]}}"#);
            let nameless_first = json::to_protobuf(signal, nameless_first.as_bytes()).expect("valid");
            assert_eq!(service_name_in_beginning(&nameless_first), None);
            let long = [&named[..], &named].concat();
            let missed = (0..=long.len()).take_while(|end| service_name_in_beginning(&long[..*end]).is_none()).count();
            assert!(missed <= named.len());
            for end in missed..=long.len() {
                assert_eq!(service_name_in_beginning(&long[..end]), Some("checkout"), "{end} bytes");
            }
        }
        assert_eq!((service_name(&[]), service_name_in_beginning(&[])), (None, None));
    }
}
