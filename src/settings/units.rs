//! Durations (`200ms`, `1h30m`) and byte sizes (`64MiB`) as people write them.

use std::time::Duration;

/// Longest duration accepted: a hundred years, so that adding one to a clock never overflows.
const DURATION_MAX: Duration = Duration::from_secs(100 * 366 * 24 * 3600);

/// Parses a duration in the notation of Go's `time.ParseDuration`, without sign: `200ms`, `1.5h`, `1h30m`, `0`.
/// The error says what is wrong, to follow a quotation of the text.
pub fn parse_duration(text: &str) -> Result<Duration, &'static str> {
    let text = text.trim();
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    if text.is_empty() {
        return Err("is empty");
    }
    if text.starts_with('-') {
        return Err("is negative");
    }
    let mut seconds_total = 0.0_f64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.')).ok_or("has no unit")?;
        let number: f64 = rest[..digits].parse().map_err(|_| "is not a duration")?;
        rest = &rest[digits..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit_seconds = match &rest[..end] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return Err("has an unknown unit"),
        };
        seconds_total += number * unit_seconds;
        rest = &rest[end..];
    }
    // Rounded to whole nanoseconds, so that 0.1 s written as 100ms is exactly 100 ms.
    match Duration::try_from_secs_f64((seconds_total * 1e9).round() / 1e9) {
        Ok(duration) if duration <= DURATION_MAX => Ok(duration),
        _ => Err("is too long"),
    }
}

/// Parses `1048576`, `5_000`, `64MiB`, `1.5 GB`. Powers of 1024 with `i`, of 1000 without.
pub fn parse_byte_size(text: &str) -> Result<u64, &'static str> {
    let text = text.trim();
    let digits = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err("does not start with a number");
    }
    let number = number.replace('_', "");
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "ki" => 1 << 10,
        "mib" | "mi" => 1 << 20,
        "gib" | "gi" => 1 << 30,
        "tib" | "ti" => 1 << 40,
        "kb" | "k" => 1_000,
        "mb" | "m" => 1_000_000,
        "gb" | "g" => 1_000_000_000,
        "tb" | "t" => 1_000_000_000_000,
        _ => return Err("has an unknown unit"),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or("is too large");
    }
    let fraction: f64 = number.parse().map_err(|_| "is not a number")?;
    let bytes = (fraction * factor as f64).round();
    if bytes < i64::MAX as f64 { Ok(bytes as u64) } else { Err("is too large") }
}
