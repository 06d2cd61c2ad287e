//! How one boot ends and the next begins, and what must hold then.

use std::collections::{BTreeSet, VecDeque};
use std::path::Path;
use std::sync::Arc;

use super::{Broken, DIR, EXPORTERS, QUEUE, Restart, Rig, Running, options};
use crate::queue::Subscription;
use crate::storage::log::{Drive, Lost, Observer};
use crate::storage::simulated::{Fate, Faults};
use crate::storage::{StartAt, Store, StoreError};

/// Starts that may be interrupted one after the other.
const STARTS_MAX: u32 = 8;
const NO_START: &str = "it does not start";

impl Rig {
    /// Nothing is open any more when the power goes, or the process dies.
    pub(super) fn cut_power(&self, fate: Fate) {
        self.world.cut_power(fate);
        if let Some(sled) = &self.sled {
            sled.cut_power(fate).expect("sled's directory is written");
        }
    }

    pub(super) fn kill(&self) {
        self.world.kill();
        if let Some(sled) = &self.sled {
            sled.kill().expect("sled's directory is written");
        }
    }

    pub(super) fn stop_and_start(&mut self) -> Result<(), Broken> {
        self.commit()?;
        if let Some(running) = self.running.take() {
            running.store.close();
        }
        if self.world.is_off() {
            return Ok(());
        }
        self.pending = Restart::Kill;
        self.kill();
        self.start(false)
    }

    /// Ends this boot as was ordered, and starts the next.
    pub(super) fn restart(&mut self) -> Result<(), Broken> {
        self.running = None;
        match self.pending {
            Restart::Kill => {
                self.sights.see("kills", 1);
                self.kill();
            }
            Restart::Cut { again, fate } => {
                self.sights.see("cuts", 1);
                self.cut_power(fate);
                self.world.cut_power_in(again);
            }
        }
        self.start(false)
    }

    pub(super) fn start_with(&mut self, faults: Faults) -> Result<(), Broken> {
        self.running = None;
        self.pending = Restart::Kill;
        self.kill();
        self.world.set_faults(faults);
        match self.try_start(false) {
            Err(reason) if reason.starts_with(NO_START) => {
                self.sights.see("refused starts", 1);
                self.kill();
                self.start(false)
            }
            started => started,
        }
    }

    pub(super) fn forget(&mut self) -> Result<(), Broken> {
        self.running = None;
        self.sights.see("cuts", 1);
        self.sights.see("cursors lost", 1);
        self.cut_power(Fate::Empty);
        // Without a witness there is nothing to lose yet.
        let _ = self.world.spoil(&Path::new(DIR).join("witness"));
        self.start(true)
    }

    pub(super) fn start(&mut self, has_forgotten: bool) -> Result<(), Broken> {
        self.world.set_faults(Faults::default());
        let failures = std::mem::take(&mut *self.seen.failures.lock());
        self.sights.see("failures", failures);
        for _ in 0..STARTS_MAX {
            match self.try_start(has_forgotten) {
                Ok(()) => return Ok(()),
                Err(broken) if !self.world.is_off() => return Err(broken),
                Err(_) => {
                    self.running = None;
                    self.sights.see("cuts while starting", 1);
                    match self.pending {
                        Restart::Kill => self.kill(),
                        Restart::Cut { fate, .. } => {
                            self.sights.see("cuts", 1);
                            let fate = if has_forgotten { Fate::Empty } else { fate };
                            self.cut_power(fate);
                        }
                    }
                }
            }
        }
        Err(NO_START.to_owned())
    }

    pub(super) fn try_start(&mut self, has_forgotten: bool) -> Result<(), Broken> {
        let told = |error: StoreError| format!("{NO_START}: {error}");
        let observer = Arc::clone(&self.seen) as Arc<dyn Observer>;
        let disk = self.world.disk();
        let catalogs = match &self.sled {
            Some(sled) => sled.catalogs(&self.world),
            None => self.world.catalogs(),
        };
        let (store, report) =
            Store::open_with(disk, Path::new(DIR), &options(), observer, catalogs, Drive::Caller).map_err(told)?;
        let cursors = EXPORTERS.map(|name| (name.to_owned(), StartAt::End));
        let log = store.queue(QUEUE, &cursors).map_err(told)?;
        if self.world.is_off() {
            return Err("the power went off".to_owned());
        }
        self.sights.see("catalogues lost", u64::from(!report.catalog_intact));
        if let Some(report) = report.queues.get(QUEUE) {
            self.sights.see("torn tails", u64::from(report.torn_tail_bytes > 0));
            self.sights.see("scans", report.scanned);
        }
        let lost: Vec<Lost> = std::mem::take(&mut *self.seen.lost.lock());
        // Who has forgotten what was reclaimed cannot tell it from a loss; the model knows whether it was one.
        if let Some(lost) = lost.first().filter(|_| !has_forgotten) {
            let known: Vec<u64> = self.model.acknowledged.keys().copied().collect();
            return Err(format!(
                "loss is reported where nothing was lost: {lost:?}; acknowledged: {known:?}; {report:?}"
            ));
        }
        let subscriptions = EXPORTERS.iter().map(|name| Subscription::new(Arc::clone(&log), name)).collect();
        let cursors = EXPORTERS.map(|name| log.cursor(name).unwrap_or_default());
        let allocated = log.status().allocated_bytes;
        let ballast = self.world.len_of(&Path::new(DIR).join("ballast")).unwrap_or(0);
        if store.space().allocated_bytes() != allocated + ballast {
            let accounted = store.space().allocated_bytes();
            return Err(format!("{accounted} bytes accounted for, {allocated} and a ballast of {ballast} allocated"));
        }
        self.running = Some(Running { store, log, subscriptions, leases: Vec::new(), waiting: VecDeque::new() });
        let found = self.read_from(0)?;
        self.check_disk_use(allocated)?;
        let known: BTreeSet<u64> = self.model.acknowledged.keys().copied().collect();
        self.sights
            .see("unacknowledged kept", found.iter().filter(|(sequence, _)| !known.contains(sequence)).count() as u64);
        if has_forgotten {
            self.model.forget(&found)?;
        }
        self.model.recover(&found, |exporter, sequence| cursors[exporter].is_settled(sequence))
    }

    /// The files of the queue are as long as is accounted for.
    pub(super) fn check_disk_use(&self, allocated: u64) -> Result<(), Broken> {
        let dir = Path::new(DIR).join("queues").join(QUEUE);
        let on_disk: u64 =
            self.segment_names().iter().map(|name| self.world.len_of(&dir.join(name)).unwrap_or(0)).sum();
        if on_disk != allocated {
            return Err(format!("{allocated} bytes accounted for, {on_disk} on disk"));
        }
        Ok(())
    }
}
