//! A store on a simulated disk, driven one step at a time beside its model.

mod boots;

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use parking_lot::Mutex;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use super::model::{Broken, Found, Model};
use super::sights::Sights;
use crate::queue::{Lease, LeaseLimits, Settled, Subscription};
use crate::storage::log::{AppendError, Lost, Observer, Position};
use crate::storage::record::{self, NonceSeed};
use crate::storage::simulated::{Fate, Faults, SledDirectories, World};
use crate::storage::{Disk, Durable, Log, NewRecord, Options, Store, segment};

const DIR: &str = "/volume/data";
const QUEUE: &str = "traces";
pub const EXPORTERS: [&str; 2] = ["a", "b"];
pub const SEGMENT_BYTES: u64 = 20 << 10;
const MAX_SIZE_BYTES: u64 = 16 * SEGMENT_BYTES;
const DISK_BYTES: u64 = 64 << 20;
/// Leases that draining may take; reads that fail count too.
const LEASES_MAX: u32 = 2_000;

/// One step. Small numbers are taken modulo what there is.
#[derive(Clone, Debug)]
pub enum Op {
    Offer {
        count: usize,
        len: u16,
        is_forged: bool,
    },
    Commit,
    Prepare,
    Rest,
    Lease {
        exporter: usize,
        records: usize,
    },
    Settle {
        lease: usize,
    },
    Release {
        lease: usize,
    },
    /// Both exporters take all there is.
    Drain,
    Checkpoint,
    FailSyncs(u32),
    FailWrites {
        passing: u32,
        failing: u32,
    },
    FailNames(u32),
    FailReads(u32),
    /// The power goes off during the operation named from now on, and again during the start that follows.
    Cut {
        operations: u64,
        again: Option<u64>,
        fate: Fate,
    },
    /// The process dies then.
    Kill {
        operations: u64,
    },
    /// Power cut now, with the catalogue and the witness both gone.
    Forget,
    /// A clean stop and start.
    Restart,
    /// The process dies now, and the disk has errors while it starts.
    FaultyStart {
        syncs: u32,
        reads: u32,
        writes: u32,
    },
}

/// Mistakes of whoever drives the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blunder {
    ReclaimBeforeCheckpoint,
    SettleBeforeDelivery,
}

#[derive(Default)]
struct Seen {
    lost: Mutex<Vec<Lost>>,
    failures: Mutex<u64>,
}

impl Observer for Seen {
    fn failed(&self, _queue: &str, _operation: &'static str, _error: &std::io::Error) {
        *self.failures.lock() += 1;
    }
    fn damaged(&self, _queue: &str, lost: &Lost) {
        self.lost.lock().push(lost.clone());
    }
}

struct Running {
    store: Store,
    log: Arc<Log>,
    subscriptions: Vec<Arc<Subscription>>,
    leases: Vec<(usize, Lease)>,
    waiting: VecDeque<(u64, oneshot::Receiver<Result<Durable, AppendError>>)>,
}

pub struct Rig {
    pub world: Arc<World>,
    pub model: Model,
    pub sights: Sights,
    pub blunder: Option<Blunder>,
    /// Real sled in the place of the catalogue's twin.
    sled: Option<Arc<SledDirectories>>,
    ever_acknowledged: BTreeSet<u64>,
    seen: Arc<Seen>,
    running: Option<Running>,
    /// What the next restart does.
    pending: Restart,
    runtime: Runtime,
}

#[derive(Clone, Copy, Debug)]
enum Restart {
    Cut { again: Option<u64>, fate: Fate },
    Kill,
}

fn options() -> Options {
    Options {
        max_size_bytes: Some(MAX_SIZE_BYTES),
        segment_bytes: Some(SEGMENT_BYTES),
        tail_bytes_max: 3 << 10,
        checkpoint_interval: Duration::ZERO,
        ..Options::default()
    }
}

impl Rig {
    pub fn new(seed: u64) -> Result<Rig, Broken> {
        Rig::on(seed, None)
    }

    pub fn with_sled(seed: u64) -> Result<Rig, Broken> {
        Rig::on(seed, Some(SledDirectories::new(seed).map_err(|error| error.to_string())?))
    }

    fn on(seed: u64, sled: Option<Arc<SledDirectories>>) -> Result<Rig, Broken> {
        // Nonces come from the thread's generator.
        fastrand::seed(seed);
        let world = World::new(seed, DISK_BYTES);
        let disk = world.disk();
        let volume = Path::new(DIR).parent().unwrap_or(Path::new("/"));
        disk.create_dir(volume).and_then(|()| disk.sync_dir(Path::new("/"))).map_err(|error| error.to_string())?;
        let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
        let mut rig = Rig {
            world,
            model: Model::new(EXPORTERS.len()),
            sights: Sights::default(),
            blunder: None,
            sled,
            ever_acknowledged: BTreeSet::new(),
            seen: Arc::default(),
            running: None,
            pending: Restart::Cut { again: None, fate: Fate::Any },
            runtime,
        };
        // The first start may be interrupted like any other.
        let mut rng = Rng::with_seed(seed);
        let first = rng.u64(0..80);
        rig.world.cut_power_in((first < 40).then_some(first));
        if rng.bool() {
            rig.pending = Restart::Kill;
        }
        rig.start(false)?;
        Ok(rig)
    }

    pub fn run(&mut self, op: &Op) -> Result<(), Broken> {
        self.apply(op)?;
        if self.world.is_off() {
            self.restart()?;
        }
        self.account_holds()
    }

    /// accepted = waiting + what became of the rest, at every moment.
    fn account_holds(&self) -> Result<(), Broken> {
        let Some(running) = &self.running else { return Ok(()) };
        let wrong = running.log.status().cursors.into_iter().find(|cursor| {
            let ledger = &cursor.ledger;
            ledger.accepted != ledger.fates.total() + cursor.backlog.items
        });
        wrong.map_or(Ok(()), |cursor| Err(format!("the account does not come out: {cursor:?}")))
    }

    fn apply(&mut self, op: &Op) -> Result<(), Broken> {
        match *op {
            Op::Offer { count, len, is_forged } => {
                for _ in 0..count {
                    self.offer(len, is_forged);
                }
            }
            Op::Commit => return self.commit(),
            Op::Prepare => self.with(|running| running.log.prepare()),
            Op::Rest => self.with(|running| running.log.rest()),
            Op::Lease { exporter, records } => return self.lease(exporter % EXPORTERS.len(), records.max(1)),
            Op::Settle { lease } => self.settle(lease),
            Op::Release { lease } => self.with(|running| {
                if !running.leases.is_empty() {
                    drop(running.leases.remove(lease % running.leases.len()));
                }
            }),
            Op::Drain => return self.drain(),
            Op::Checkpoint => return self.checkpoint(),
            Op::FailSyncs(count) => self.world.update_faults(|faults| faults.failing_syncs = count),
            Op::FailWrites { passing, failing } => self.world.update_faults(|faults| {
                (faults.passing_writes, faults.failing_writes) = (passing, failing);
            }),
            Op::FailNames(count) => self.world.update_faults(|faults| faults.failing_names = count),
            Op::FailReads(count) => self.world.update_faults(|faults| faults.failing_reads = count),
            Op::Cut { operations, again, fate } => {
                self.pending = Restart::Cut { again, fate };
                self.world.cut_power_in(Some(operations));
            }
            Op::Kill { operations } => {
                self.pending = Restart::Kill;
                self.world.cut_power_in(Some(operations));
            }
            Op::Forget => return self.forget(),
            Op::Restart => return self.stop_and_start(),
            Op::FaultyStart { syncs, reads, writes } => {
                let faults =
                    Faults { failing_syncs: syncs, failing_reads: reads, failing_writes: writes, ..Faults::default() };
                return self.start_with(faults);
            }
        }
        Ok(())
    }

    fn with(&mut self, act: impl FnOnce(&mut Running)) {
        if let Some(running) = &mut self.running {
            act(running);
        }
    }

    fn offer(&mut self, len: u16, is_forged: bool) {
        let number = self.model.offered.len() as u64;
        let mut rng = Rng::with_seed(number);
        let mut payload = number.to_le_bytes().to_vec();
        if is_forged {
            payload.extend(self.forgery());
        }
        payload.resize_with(payload.len().max(usize::from(len)), || rng.u8(..));
        self.model.offer(payload.clone());
        let Some(running) = &mut self.running else { return };
        let payload = Bytes::from(payload);
        let record = NewRecord {
            signal: 1,
            encoding: 0,
            items: 1,
            raw_len: payload.len() as u32,
            received_unix_ns: number,
            metadata: if number.is_multiple_of(5) { Bytes::from_static(b"tenant=x") } else { Bytes::new() },
            payload,
            guard: Arc::new(()),
        };
        match running.log.reserve(record.weight()) {
            Ok(reservation) => running.waiting.push_back((number, running.log.append(reservation, record))),
            Err(_) => self.sights.see("refusals", 1),
        }
    }

    /// Whole records as a client could make them who knows everything but the nonce, and guesses that it is zero.
    fn forgery(&self) -> Vec<u8> {
        let Some(running) = &self.running else { return Vec::new() };
        let status = running.log.status();
        let seed = NonceSeed::new(&[0; 16]);
        let mut bytes = Vec::new();
        let newest = self.newest_segment();
        while bytes.len() < 9000 {
            for segment_id in newest.saturating_sub(1)..=newest + 1 {
                let header = record::Header {
                    segment_id,
                    sequence: status.next_sequence + 3,
                    previous: status.next_sequence + 2,
                    durable_end: 0,
                    received_unix_ns: 0,
                    raw_len: 12,
                    stored_len: 12,
                    metadata_len: 0,
                    items: 1,
                    signal: 1,
                    encoding: 0,
                    flags: 0,
                }
                .encode(seed);
                bytes.extend_from_slice(&header);
                bytes.extend_from_slice(&[0xFF; 12]);
                bytes.extend_from_slice(&record::trailer(seed, &header, b"", &[0xFF; 12]).to_le_bytes());
            }
        }
        bytes
    }

    fn newest_segment(&self) -> u64 {
        self.segment_names().iter().filter_map(|name| segment::parse_file_name(name)).max().unwrap_or(0)
    }

    fn segment_names(&self) -> Vec<String> {
        self.as_oracle(|| {
            let entries = self.world.disk().list(&Path::new(DIR).join("queues").join(QUEUE)).unwrap_or_default();
            entries.into_iter().map(|entry| entry.name).collect()
        })
    }

    fn as_oracle<T>(&self, look: impl FnOnce() -> T) -> T {
        self.world.set_oracle(true);
        let seen = look();
        self.world.set_oracle(false);
        seen
    }

    fn commit(&mut self) -> Result<(), Broken> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let before = running.log.durable_end();
        let had_spare = running.log.has_spare();
        running.log.write_pending();
        self.sights.see("recycled", u64::from(had_spare && !running.log.has_spare()));
        let mut acknowledged = Vec::new();
        while let Some((number, answer)) = running.waiting.front_mut() {
            match answer.try_recv() {
                Ok(Ok(_receipt)) => acknowledged.push(*number),
                Err(oneshot::error::TryRecvError::Empty) => break,
                Ok(Err(_)) | Err(_) => self.sights.see("refusals", 1),
            }
            running.waiting.pop_front();
        }
        self.sights.see("records", acknowledged.len() as u64);
        let found = self.read_from(before)?;
        self.ever_acknowledged.extend(&acknowledged);
        self.model.acknowledge(&acknowledged, &found)
    }

    /// All records from a sequence on, as the test itself sees them.
    fn read_from(&self, sequence: u64) -> Result<Found, Broken> {
        let Some(running) = &self.running else { return Ok(Found::new()) };
        self.as_oracle(|| {
            let mut position = Position::at(sequence);
            let mut found = Found::new();
            while position.sequence < running.log.durable_end() {
                let chunk = running.log.read_file(position, u64::MAX, usize::MAX).map_err(|error| error.to_string())?;
                if chunk.next.sequence <= position.sequence {
                    return Err(format!("reading does not get on at {}", position.sequence));
                }
                position = chunk.next;
                found.extend(chunk.records.into_iter().map(|record| (record.sequence, record.payload.to_vec())));
            }
            Ok(found)
        })
    }

    fn lease(&mut self, exporter: usize, records: usize) -> Result<(), Broken> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let limits = LeaseLimits { bytes_max: 64 << 10, records_max: records, items_max: u64::MAX };
        // A read that fails is tried again with the next lease.
        let Ok(Some(lease)) = self.runtime.block_on(running.subscriptions[exporter].lease(limits)) else {
            return Ok(());
        };
        for record in lease.records() {
            let number = self.model.lease(exporter, record.sequence, &record.payload)?;
            self.sights.see("redelivered", u64::from(self.model.exporters[exporter].delivered.contains(&number)));
        }
        if self.blunder == Some(Blunder::SettleBeforeDelivery) {
            running.log.settle(EXPORTERS[exporter], lease.covers());
        }
        running.leases.push((exporter, lease));
        Ok(())
    }

    fn settle(&mut self, lease: usize) {
        let Some(running) = &mut self.running else { return };
        if running.leases.is_empty() {
            return;
        }
        let (exporter, lease) = running.leases.remove(lease % running.leases.len());
        for record in lease.records() {
            let number = record.payload.first_chunk().map_or(u64::MAX, |bytes| u64::from_le_bytes(*bytes));
            self.model.deliver(exporter, record.sequence, number);
        }
        lease.settle(Settled::by_delivery());
    }

    fn checkpoint(&mut self) -> Result<(), Broken> {
        let Some(running) = &self.running else { return Ok(()) };
        if self.blunder == Some(Blunder::ReclaimBeforeCheckpoint) {
            let _ = running.log.reclaim(&running.log.snapshot().cursors);
        }
        let before = running.log.status().segments;
        let failures = *self.seen.failures.lock();
        let is_durable = running.store.checkpoint().is_ok();
        self.sights.see("reclaimed", before.saturating_sub(running.log.status().segments));
        if is_durable && *self.seen.failures.lock() == failures && !self.world.is_off() {
            let retained = self.read_from(0)?;
            return self.model.checkpoint(&retained);
        }
        Ok(())
    }

    /// A last cut; then all that is owed is delivered, and a fresh record goes through.
    pub fn finish(&mut self) -> Result<(), Broken> {
        self.pending = Restart::Cut { again: None, fate: Fate::Any };
        self.restart()?;
        self.drain_all()?;
        self.offer(300, false);
        let before = self.ever_acknowledged.len();
        self.commit()?;
        if self.ever_acknowledged.len() == before {
            return Err("nothing is accepted any more".to_owned());
        }
        self.drain_all()?;
        self.model.finish(&self.ever_acknowledged)
    }

    fn drain(&mut self) -> Result<(), Broken> {
        for (exporter, name) in EXPORTERS.iter().enumerate() {
            for _ in 0..LEASES_MAX {
                let Some(running) = &self.running else { break };
                let end = running.log.durable_end();
                if running.log.cursor(name).is_none_or(|cursor| cursor.low() >= end) {
                    break;
                }
                self.lease(exporter, 64)?;
                self.settle(0);
                if self.world.is_off() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn drain_all(&mut self) -> Result<(), Broken> {
        self.drain()?;
        self.checkpoint()
    }
}
