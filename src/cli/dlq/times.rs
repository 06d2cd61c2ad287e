//! Points in time as people write and read them: RFC 3339, or how long ago.

use crate::settings::parse_duration;

const DAY_S: i64 = 86_400;

/// A time as milliseconds since 1970: `2026-11-25T17:00:00Z`, or a duration before now, such as `2h`.
pub fn parse(text: &str, now_unix_ms: u64) -> Result<u64, String> {
    if text.contains('-') && !text.starts_with('-') {
        return absolute(text).ok_or_else(|| {
            format!("`{text}` is no time\n  help: write it as 2026-01-31T12:00:00Z, or as 2h for two hours ago")
        });
    }
    let ago = parse_duration(text).map_err(|reason| format!("the duration `{text}` {reason}"))?;
    Ok(now_unix_ms.saturating_sub(ago.as_millis() as u64))
}

/// RFC 3339, section 5.6. What is finer than a millisecond is cut off.
fn absolute(text: &str) -> Option<u64> {
    let (date, rest) = text.split_at_checked(10)?;
    let rest = rest.strip_prefix(['T', 't', ' '])?;
    let (time, zone) = rest.split_at_checked(8)?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = numbers(time, ':', [2, 2, 2])?;
    let digits = zone.strip_prefix('.').map(|rest| rest.bytes().take_while(u8::is_ascii_digit).count());
    let (millis, zone) = match digits {
        Some(0) => return None,
        Some(count) => {
            let shown: String = zone[1..=count].chars().chain("00".chars()).take(3).collect();
            (shown.parse::<i64>().ok()?, &zone[count + 1..])
        }
        None => (0, zone),
    };
    let offset_s = match zone.split_at_checked(1)? {
        ("Z" | "z", "") => 0,
        (sign @ ("+" | "-"), rest) => {
            let [hours, minutes] = numbers(rest, ':', [2, 2])?;
            let seconds = (hours <= 23 && minutes <= 59).then_some(hours * 3600 + minutes * 60)?;
            if sign == "+" { seconds } else { -seconds }
        }
        _ => return None,
    };
    // A leap second counts as the one after it.
    let is_time = hour <= 23 && minute <= 59 && second <= 60;
    let is_date = (1..=12).contains(&month) && (1..=days_of(year, month)).contains(&day);
    let seconds =
        (is_date && is_time).then(|| days_before(year, month, day) * DAY_S + hour * 3600 + minute * 60 + second)?;
    u64::try_from((seconds - offset_s) * 1000 + millis).ok()
}

/// Numbers of so many digits each, and nothing else.
fn numbers<const N: usize>(text: &str, separator: char, digits: [usize; N]) -> Option<[i64; N]> {
    let mut parts = text.split(separator);
    let mut found = [0; N];
    for (number, len) in found.iter_mut().zip(digits) {
        let part = parts.next().filter(|part| part.len() == len && part.bytes().all(|byte| byte.is_ascii_digit()))?;
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(found)
}

fn days_of(year: i64, month: i64) -> i64 {
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    match month {
        2 if is_leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days_before(year: i64, month: i64, day: i64) -> i64 {
    // Years that begin in March have the leap day at their end.
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + (month * 153 + 2) / 5 + day
        - 1
        - 719_468
}

/// `2026-11-25T17:00:00Z`.
pub fn format(unix_ms: u64) -> String {
    let seconds = (unix_ms / 1000) as i64;
    let (days, rest) = (seconds.div_euclid(DAY_S), seconds.rem_euclid(DAY_S));
    // The year is never above this estimate, nor two below it.
    let mut year = 1970 + days / 365;
    while days_before(year, 1, 1) > days {
        year -= 1;
    }
    let mut month = 12;
    while days_before(year, month, 1) > days {
        month -= 1;
    }
    let day = days - days_before(year, month, 1) + 1;
    format!("{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z", rest / 3600, rest / 60 % 60, rest % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_rfc_3339_writes_them_and_durations_as_before_now() {
        for (text, unix_ms) in [
            ("1970-01-01T00:00:00Z", 0),
            ("2000-02-29T12:30:15Z", 951_827_415_000),
            ("2026-11-25T17:00:00Z", 1_795_626_000_000),
            ("2026-11-25t17:00:00.25z", 1_795_626_000_250),
            ("2026-11-25 18:30:00.123456789+01:30", 1_795_626_000_123),
            ("2026-11-25T09:00:00-08:00", 1_795_626_000_000),
            ("2016-12-31T23:59:60Z", 1_483_228_800_000),
            ("2h", 10_000_000 - 7_200_000),
            ("9999h", 0),
        ] {
            assert_eq!(parse(text, 10_000_000), Ok(unix_ms), "{text}");
        }
        for text in [
            "2026-13-01T00:00:00Z",
            "2026-02-29T00:00:00Z",
            "2026-01-01",
            "2026-01-01T00:00Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T00:00:00+1:00",
            "2026-01-01T00:00:00Zx",
            "1969-12-31T23:59:59Z",
            "2026-1-01T00:00:00Z",
            "-1h",
            "yesterday",
            "",
            "é-é-é-é-é-é",
        ] {
            assert!(parse(text, 10_000_000).is_err(), "{text}");
        }
    }

    #[test]
    fn every_time_is_written_as_it_is_read() {
        for days in (0..120_000u64).step_by(7).chain([58, 59, 60, 365, 11_016, 11_017, 47_540, 47_541]) {
            let unix_ms = (days * 86_400 + days % 86_400) * 1000;
            assert_eq!(parse(&format(unix_ms), 0), Ok(unix_ms), "{}", format(unix_ms));
        }
        assert_eq!(format(1_795_626_000_999), "2026-11-25T17:00:00Z");
    }
}
