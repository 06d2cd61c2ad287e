//! Time as dedup counts it: it never goes back, and began long enough ago that ages from before a restart fit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::storage::unix_now_ns;

/// Longer than any window.
const ORIGIN: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

#[derive(Clone)]
pub enum Clock {
    Real(Instant),
    /// Time that has passed since the origin, and seconds since 1970.
    Set(Arc<Mutex<(Duration, u64)>>),
}

impl Clock {
    pub fn real() -> Clock {
        Clock::Real(Instant::now())
    }

    pub fn set(unix_seconds: u64) -> Clock {
        Clock::Set(Arc::new(Mutex::new((Duration::ZERO, unix_seconds))))
    }

    pub fn now(&self) -> Duration {
        match self {
            Clock::Real(started) => ORIGIN + started.elapsed(),
            Clock::Set(time) => ORIGIN + time.lock().0,
        }
    }

    pub fn unix_seconds(&self) -> u64 {
        match self {
            Clock::Real(_) => unix_now_ns() / 1_000_000_000,
            Clock::Set(time) => time.lock().1,
        }
    }

    /// For a clock that is set.
    pub fn advance(&self, by: Duration) {
        if let Clock::Set(time) = self {
            let mut time = time.lock();
            time.0 += by;
            time.1 += by.as_secs();
        }
    }

    /// When on this clock something happened that has that date. A date to come is taken for now.
    pub fn at_unix_seconds(&self, then: u64) -> Duration {
        self.now().saturating_sub(Duration::from_secs(self.unix_seconds().saturating_sub(then)))
    }
}
