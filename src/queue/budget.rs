//! The process-wide byte budget: reserved as bodies arrive and inflate, given back when dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number of bytes that may be held at once. Never waits: a shortage is an answer.
#[derive(Clone, Debug)]
pub struct Budget {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    limit_bytes: u64,
    used_bytes: AtomicU64,
}

impl Budget {
    pub fn new(limit_bytes: u64) -> Budget {
        Budget { inner: Arc::new(Inner { limit_bytes, used_bytes: AtomicU64::new(0) }) }
    }

    pub fn limit_bytes(&self) -> u64 {
        self.inner.limit_bytes
    }

    pub fn used_bytes(&self) -> u64 {
        self.inner.used_bytes.load(Ordering::Relaxed)
    }

    /// A permit of zero bytes, to be grown.
    pub fn empty_permit(&self) -> Permit {
        Permit { inner: Arc::clone(&self.inner), bytes: 0 }
    }

    pub fn try_reserve(&self, bytes: u64) -> Option<Permit> {
        let mut permit = self.empty_permit();
        permit.try_grow(bytes).then_some(permit)
    }
}

/// Bytes reserved from a [`Budget`].
#[derive(Debug)]
#[must_use]
pub struct Permit {
    inner: Arc<Inner>,
    bytes: u64,
}

impl Permit {
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A permit of zero bytes from the same budget.
    pub fn sibling(&self) -> Permit {
        Permit { inner: Arc::clone(&self.inner), bytes: 0 }
    }

    /// Reserves `bytes` more; false, and unchanged, when the budget has not got them.
    #[must_use]
    pub fn try_grow(&mut self, bytes: u64) -> bool {
        let limit = self.inner.limit_bytes;
        let grown = self
            .inner
            .used_bytes
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |used| {
                used.checked_add(bytes).filter(|sum| *sum <= limit)
            })
            .is_ok();
        if grown {
            self.bytes += bytes;
        }
        grown
    }

    /// Gives back what exceeds `bytes`.
    pub fn shrink_to(&mut self, bytes: u64) {
        if let Some(excess) = self.bytes.checked_sub(bytes) {
            self.inner.used_bytes.fetch_sub(excess, Ordering::AcqRel);
            self.bytes = bytes;
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_refused_and_what_is_dropped_comes_back() {
        let budget = Budget::new(100);
        let mut first = budget.try_reserve(60).expect("fits");
        assert!(budget.try_reserve(41).is_none());
        assert!(!first.try_grow(41));
        first.shrink_to(10);
        let second = budget.try_reserve(90).expect("fits after the shrink");
        drop(first);
        assert_eq!(budget.used_bytes(), 90);
        drop(second);
        assert_eq!(budget.used_bytes(), 0);
    }
}
