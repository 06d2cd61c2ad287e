//! How long an outage of its destination each exporter's queue covers, at a stated rate.

use super::plan::Plan;
use crate::settings::Sizer;
use crate::storage::space::DEFAULT_MAX_SIZE_BYTES;
use std::time::Duration;

/// The load that the answer is for. The three belong together: requests of 100 items, items of 500 bytes.
pub const REQUESTS_PER_SECOND: u64 = 100;
pub const ITEMS_PER_SECOND: u64 = 10_000;
pub const BYTES_PER_SECOND: u64 = 5_000_000;

/// Seconds until `size` is reached when nothing is delivered.
pub fn covered(sizer: Sizer, size: u64) -> Duration {
    let rate = match sizer {
        Sizer::Requests => REQUESTS_PER_SECOND,
        Sizer::Items => ITEMS_PER_SECOND,
        Sizer::Bytes => BYTES_PER_SECOND,
    };
    Duration::from_secs(size / rate)
}

/// Lines for `validate`: one for each exporter, whichever bound is met first.
pub fn report(plan: &Plan) -> String {
    let disk_bytes = plan.queue.max_size_bytes.unwrap_or(DEFAULT_MAX_SIZE_BYTES);
    let disk = covered(Sizer::Bytes, disk_bytes);
    let mut text = format!(
        "how long a destination may be away before intake is refused, at {REQUESTS_PER_SECOND} requests, \
         {ITEMS_PER_SECOND} items, {BYTES_PER_SECOND} stored bytes a second for each exporter:\n"
    );
    for exporter in &plan.exporters {
        let queue = &exporter.sending_queue;
        let by_size = queue.queue_size.map(|size| (size, covered(queue.sizer, size)));
        let (time, why) = match by_size {
            Some((size, time)) if time < disk => {
                (time, format!("sending_queue.queue_size: {size} {}", queue.sizer.name()))
            }
            _ if plan.queue.max_size_bytes.is_some() => {
                (disk, format!("forebay.queue.max_size: {disk_bytes} bytes for all queues"))
            }
            _ => (disk, format!("{disk_bytes} bytes for all queues, or half of what is free if that is less")),
        };
        text.push_str(&format!("  {:<24} {:>8}  {why}\n", exporter.id, shown(time)));
    }
    text
}

/// `45s`, `33m20s`, `2h46m`.
fn shown(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        _ => format!("{}h{}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_unit_has_its_rate_and_a_time_is_written_short() {
        assert_eq!(covered(Sizer::Requests, 1000), Duration::from_secs(10));
        assert_eq!(covered(Sizer::Items, 1_000_000), Duration::from_secs(100));
        assert_eq!(covered(Sizer::Bytes, 50_000_000), Duration::from_secs(10));
        assert_eq!([10, 100, 10_000].map(|n| shown(Duration::from_secs(n))), ["10s", "1m40s", "2h46m"]);
    }
}
