//! Which letters a command means, as the API takes it.

use super::arguments::Select;
use super::times;
use crate::cli::Failure;
use crate::dlq::{Filter, Reason};
use crate::storage::unix_now_ns;

/// Ids that one URL names: servers bound the length of it.
const URL_IDS_MAX: usize = 200;

pub fn filter(select: &Select, ids: Vec<String>) -> Result<Filter, Failure> {
    let now_unix_ms = unix_now_ns() / 1_000_000;
    let time = |text: &Option<String>| {
        text.as_deref().map(|text| times::parse(text, now_unix_ms)).transpose().map_err(Failure::Usage)
    };
    let reason = match &select.reason {
        None => None,
        Some(name) => Some(Reason::parse(name).ok_or_else(|| {
            let known: Vec<&str> = Reason::ALL.iter().map(|reason| reason.name()).collect();
            Failure::Usage(format!("`{name}` is no reason\n  help: there are {}", known.join(", ")))
        })?),
    };
    let filter = Filter {
        ids,
        queue: select.queue.clone(),
        exporter: select.exporter.clone(),
        signal: select.signal.clone(),
        reason,
        service: select.service.clone(),
        since_unix_ms: time(&select.since)?,
        until_unix_ms: time(&select.until)?,
    };
    let shown = "`forebay dlq list` shows which letters there are";
    filter.check().map_err(|error| Failure::Other(format!("{error}\n  help: {shown}")))?;
    Ok(filter)
}

/// The filter in queries, one after the other, for as many ids as a URL takes; oldest letters first.
pub fn queries(mut filter: Filter) -> Vec<String> {
    filter.ids.sort_by_key(|id| crate::dlq::parse_id(id));
    filter.ids.dedup();
    if filter.ids.is_empty() {
        return vec![query(&filter)];
    }
    let ids = std::mem::take(&mut filter.ids);
    ids.chunks(URL_IDS_MAX).map(|ids| query(&Filter { ids: ids.to_vec(), ..filter.clone() })).collect()
}

/// The filter as it stands in a URL.
pub fn query(filter: &Filter) -> String {
    let mut query = Vec::new();
    let mut put = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            query.push(format!("{name}={}", escape(&value)));
        }
    };
    put("ids", Some(filter.ids.join(",")).filter(|ids| !ids.is_empty()));
    put("queue", filter.queue.clone());
    put("exporter", filter.exporter.clone());
    put("signal", filter.signal.clone());
    put("reason", filter.reason.map(|reason| reason.name().to_owned()));
    put("service", filter.service.clone());
    put("since_unix_ms", filter.since_unix_ms.map(|ms| ms.to_string()));
    put("until_unix_ms", filter.until_unix_ms.map(|ms| ms.to_string()));
    query.join("&")
}

/// Percent-encodes what has a meaning in a query.
pub fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.,".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { (byte as char).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// Ids that no letter has are a failure of the command, which has done what else it was asked.
pub fn strangers(unknown: &[String]) -> Result<(), Failure> {
    const SHOWN_MAX: usize = 10;
    if unknown.is_empty() {
        return Ok(());
    }
    let mut shown = unknown.iter().take(SHOWN_MAX).cloned().collect::<Vec<_>>().join(", ");
    if unknown.len() > SHOWN_MAX {
        shown.push_str(&format!(" and {} more", unknown.len() - SHOWN_MAX));
    }
    Err(Failure::Other(format!("there is no letter {shown}\n  help: `forebay dlq list` shows which there are")))
}
