//! What the queue promises, as numbers in a few sets, in lockstep with a store on a simulated disk.
//!
//! A record has the number that its payload begins with, and the sequence under which it was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

/// One exporter, as it ought to be.
#[derive(Debug, Default)]
pub struct Exporter {
    /// Numbers that its destination has taken.
    pub delivered: BTreeSet<u64>,
    /// Sequences that it settled, in memory at least.
    settled: BTreeSet<u64>,
    /// Sequences that it settled before a checkpoint that succeeded.
    confirmed: BTreeSet<u64>,
}

#[derive(Debug)]
pub struct Model {
    pub offered: Vec<Vec<u8>>,
    /// Sequence → number.
    pub acknowledged: BTreeMap<u64, u64>,
    pub exporters: Vec<Exporter>,
    /// Every sequence seen is below.
    sequence_end: u64,
    /// Sequences that a successful checkpoint reclaimed.
    reclaimed: BTreeSet<u64>,
}

/// A broken promise.
pub type Broken = String;

/// What recovery found: sequence → payload.
pub type Found = Vec<(u64, Vec<u8>)>;

impl Model {
    pub fn new(exporters: usize) -> Model {
        Model {
            offered: Vec::new(),
            acknowledged: BTreeMap::new(),
            exporters: (0..exporters).map(|_| Exporter::default()).collect(),
            sequence_end: 0,
            reclaimed: BTreeSet::new(),
        }
    }

    pub fn offer(&mut self, payload: Vec<u8>) {
        self.offered.push(payload);
    }

    /// The number of a payload that was offered just so.
    pub fn number_of(&self, payload: &[u8]) -> Result<u64, Broken> {
        let number = payload.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).unwrap_or(u64::MAX);
        match usize::try_from(number).ok().and_then(|index| self.offered.get(index)) {
            Some(offered) if offered == payload => Ok(number),
            Some(_) => Err(format!("record {number} came back with other bytes")),
            None => Err("a record came back that nobody offered".to_owned()),
        }
    }

    /// What the writer made durable, in its order, against what it acknowledged.
    pub fn acknowledge(&mut self, acknowledged: &[u64], found: &Found) -> Result<(), Broken> {
        let numbers = found.iter().map(|(_, payload)| self.number_of(payload)).collect::<Result<Vec<_>, _>>()?;
        if numbers != acknowledged {
            return Err(format!("acknowledged {acknowledged:?}, readable {numbers:?}"));
        }
        for ((sequence, _), number) in found.iter().zip(numbers) {
            if *sequence < self.sequence_end {
                return Err(format!("sequence {sequence} was used before (all below {} are)", self.sequence_end));
            }
            self.sequence_end = sequence + 1;
            self.acknowledged.insert(*sequence, number);
        }
        Ok(())
    }

    pub fn lease(&self, exporter: usize, sequence: u64, payload: &[u8]) -> Result<u64, Broken> {
        let number = self.number_of(payload)?;
        if self.exporters[exporter].confirmed.contains(&sequence) {
            return Err(format!("record {number} is leased again after its settling was durable"));
        }
        Ok(number)
    }

    pub fn deliver(&mut self, exporter: usize, sequence: u64, number: u64) {
        self.exporters[exporter].delivered.insert(number);
        self.exporters[exporter].settled.insert(sequence);
    }

    /// What stood in memory when a checkpoint began is durable when it has succeeded; `retained` is what is left then.
    pub fn checkpoint(&mut self, retained: &Found) -> Result<(), Broken> {
        let retained: BTreeSet<u64> = retained.iter().map(|(sequence, _)| *sequence).collect();
        for exporter in &mut self.exporters {
            exporter.confirmed.clone_from(&exporter.settled);
        }
        for (sequence, number) in self.acknowledged.iter().filter(|(sequence, _)| !retained.contains(sequence)) {
            if !self.exporters.iter().all(|exporter| exporter.confirmed.contains(sequence)) {
                return Err(format!("record {number} was reclaimed early"));
            }
            self.reclaimed.insert(*sequence);
        }
        Ok(())
    }

    /// After a restart: `found` is all that the segments hold, `is_settled` what the cursors say.
    pub fn recover(&mut self, found: &Found, is_settled: impl Fn(usize, u64) -> bool) -> Result<(), Broken> {
        let mut last = None;
        for (sequence, payload) in found {
            let number = self.number_of(payload)?;
            if last.is_some_and(|last| last >= *sequence) {
                return Err(format!("sequence {sequence} does not rise"));
            }
            if self.reclaimed.contains(sequence) {
                return Err(format!("record {number} came back after it was reclaimed"));
            }
            last = Some(*sequence);
        }
        self.sequence_end = self.sequence_end.max(last.map_or(0, |last| last + 1));
        let found: BTreeMap<u64, &[u8]> = found.iter().map(|(sequence, payload)| (*sequence, &payload[..])).collect();
        for (sequence, number) in &self.acknowledged {
            for (index, exporter) in self.exporters.iter().enumerate() {
                let settled = is_settled(index, *sequence);
                if settled && !exporter.settled.contains(sequence) {
                    return Err(format!("cursor {index} is ahead: record {number} was never delivered"));
                }
                if !settled && exporter.confirmed.contains(sequence) {
                    return Err(format!("cursor {index} went back behind record {number}"));
                }
                if !settled && found.get(sequence).copied() != self.offered.get(*number as usize).map(Vec::as_slice) {
                    return Err(format!("record {number} (sequence {sequence}) is lost to cursor {index}"));
                }
            }
        }
        // What was settled in memory only and is not now, is to be settled again.
        for (index, exporter) in self.exporters.iter_mut().enumerate() {
            exporter.settled.retain(|sequence| is_settled(index, *sequence));
        }
        Ok(())
    }

    /// Catalogue and witness are gone: no cursor is known, and numbers may begin again. What some exporter has not
    /// settled must be there; what all have, may.
    pub fn forget(&mut self, found: &Found) -> Result<(), Broken> {
        let found: BTreeSet<u64> = found.iter().map(|(sequence, _)| *sequence).collect();
        for (sequence, number) in &self.acknowledged {
            let owed = self.exporters.iter().any(|exporter| !exporter.settled.contains(sequence));
            if owed && !found.contains(sequence) {
                return Err(format!("record {number} is lost with the catalogue"));
            }
        }
        self.acknowledged.retain(|sequence, _| found.contains(sequence));
        for exporter in &mut self.exporters {
            exporter.settled.clear();
            exporter.confirmed.clear();
        }
        self.reclaimed.clear();
        self.sequence_end = found.last().map_or(0, |last| last + 1);
        Ok(())
    }

    /// When nothing is left to deliver.
    pub fn finish(&self, ever_acknowledged: &BTreeSet<u64>) -> Result<(), Broken> {
        for (index, exporter) in self.exporters.iter().enumerate() {
            let missing: Vec<&u64> = ever_acknowledged.difference(&exporter.delivered).collect();
            if !missing.is_empty() {
                return Err(format!("acknowledged and never delivered to exporter {index}: {missing:?}"));
            }
        }
        Ok(())
    }
}
