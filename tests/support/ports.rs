//! Ports for the processes that the tests start.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the ports that the kernel hands out by itself, to listeners on port 0 and to outgoing connections (from 32768
/// on by default): nobody takes one of these between its choice and the start of its process, or while that is down.
pub const RANGE: Range<u16> = 20_000..32_000;

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Ports that are free, all different, and given out once in this process.
pub fn free_ports<const N: usize>() -> [u16; N] {
    std::array::from_fn(|_| free_port())
}

fn free_port() -> u16 {
    let count = u32::from(RANGE.end - RANGE.start);
    // Test processes beside each other begin far apart.
    let first = std::process::id().wrapping_mul(997);
    (0..count)
        .map(|_| first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % count)
        .map(|offset| RANGE.start + u16::try_from(offset).expect("within the range"))
        .find(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
        .expect("a free port")
}
