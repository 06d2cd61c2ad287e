//! The next batch: what is leased at once, and what a small one waits for.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::otlp::Signal;
use crate::queue::{Lease, Subscription};

use super::Destination;
use super::deliver::Leased;
use super::tries::Place;

pub(super) struct Delivery {
    pub subscription: Arc<Subscription>,
    pub destination: Arc<Destination>,
    pub draining: CancellationToken,
}

impl Delivery {
    /// Leases the next batch; waits a little for more when it would be small.
    pub async fn next(&self, place: Place) -> std::io::Result<Option<Leased>> {
        let policy = &self.destination.batch;
        let limits = self.destination.lease_limits();
        // Memory first: what the lease may bring at the most.
        let most = memory_share(limits.bytes_max, &self.destination);
        let Ok(mut memory) = Arc::clone(&self.destination.memory).acquire_many_owned(most).await else {
            return Ok(None);
        };
        let mut lease = match self.subscription.lease(limits).await? {
            Some(lease) => lease,
            None => return Ok(None),
        };
        let is_small = |lease: &Lease| item_count(lease) < policy.min_items;
        if is_small(&lease) && !policy.flush_timeout.is_zero() && self.destination.clock.is_open() {
            let flush_at = oldest(&lease) + policy.flush_timeout;
            tokio::select! {
                () = tokio::time::sleep_until(flush_at) => {}
                () = self.draining.cancelled() => {}
                grown = self.grow(&mut lease, limits, is_small) => grown?,
            }
        }
        let signal = lease.records().first().and_then(|record| Signal::from_u8(record.signal)).ok_or_else(|| {
            std::io::Error::new(std::io::ErrorKind::InvalidData, "a record has a signal of another version")
        })?;
        let excess = most.saturating_sub(memory_share(raw_bytes(&lease), &self.destination));
        drop(memory.split(excess as usize));
        Ok(Some(Leased {
            bytes: raw_bytes(&lease),
            signal,
            destination: Arc::clone(&self.destination),
            lease,
            memory: Some(memory),
            place,
            was_refused: false,
            draining: self.draining.clone(),
        }))
    }

    /// Adds what comes in behind the lease until it is no longer small.
    async fn grow(
        &self,
        lease: &mut Lease,
        limits: crate::queue::LeaseLimits,
        is_small: impl Fn(&Lease) -> bool,
    ) -> std::io::Result<()> {
        while is_small(lease) {
            if !lease.extend(limits).await? {
                return Ok(());
            }
        }
        Ok(())
    }
}

pub(super) fn item_count(lease: &Lease) -> u64 {
    lease.records().iter().map(|record| u64::from(record.items)).sum()
}

fn raw_bytes(lease: &Lease) -> u64 {
    lease.records().iter().map(|record| u64::from(record.raw_len)).sum()
}

/// Permits for a batch of `bytes`: merging and compressing take about as much again.
pub(super) fn memory_share(bytes: u64, destination: &Destination) -> u32 {
    u32::try_from(bytes.saturating_mul(2)).unwrap_or(u32::MAX).clamp(1, destination.memory_bytes)
}

/// When the oldest record of the lease came, on the clock that sleeps.
fn oldest(lease: &Lease) -> Instant {
    let now_ns = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX));
    let received_ns = lease.records().first().map_or(now_ns, |record| record.received_unix_ns);
    // A wall clock that jumped makes the record as old as the timeout at the most, or brand-new.
    let age = Duration::from_nanos(now_ns.saturating_sub(received_ns));
    Instant::now().checked_sub(age).unwrap_or_else(Instant::now)
}
