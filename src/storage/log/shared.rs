//! What every log of a store shares.

use std::sync::Arc;
use std::time::Duration;

use crate::storage::disk::Disk;
use crate::storage::space::Space;

use super::{Lost, Peers, Pool, Signal};

/// Told what the writer does, on the writer's thread; for counting.
pub trait Observer: Send + Sync {
    fn synced(&self, _queue: &str, _took: Duration, _records: u64, _bytes: u64) {}
    fn failed(&self, _queue: &str, _operation: &'static str, _error: &std::io::Error) {}
    fn damaged(&self, _queue: &str, _lost: &Lost) {}
    /// Somebody is about to give these records up although they were not delivered everywhere.
    fn giving_up(&self, _queue: &str, _sequences: std::ops::Range<u64>) {}
}

/// What every log of a store shares.
#[derive(Clone)]
pub struct Shared {
    pub disk: Arc<dyn Disk>,
    pub space: Arc<Space>,
    pub observer: Arc<dyn Observer>,
    pub segment_bytes: u64,
    /// Recent records kept in memory for the exporters.
    pub tails: Arc<Pool>,
    /// Every log, to say who holds what another is refused.
    pub peers: Arc<Peers>,
    pub sync_interval_min: Duration,
    pub drive: Drive,
    /// Set when a checkpoint has something to write.
    pub dirty: Arc<Signal>,
    /// Raised when there is no room, or soon will be none, for who can make some.
    pub pressure: Arc<Signal>,
}

/// Who does the work of the writer, its helper and the keeper.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Drive {
    /// Threads of their own.
    #[default]
    Threads,
    /// Whoever calls [`Log::write_pending`], [`Log::prepare`] and the store's checkpoint: the same steps in an order that
    /// can be repeated.
    Caller,
}
