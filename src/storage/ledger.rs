//! The conservation law of one exporter in one queue, in items, since its cursor was born:
//! accepted = waiting + delivered + deduplicated + dead-lettered + dropped.
//!
//! Written down with the cursor, in the same row: after a crash both say the same, and no item is counted twice however
//! often it is sent. What is accepted is counted as it becomes durable; after a restart it is made again from what was
//! settled and what is found waiting, and when that is less than was written down, something was lost: the ledger is
//! rebased, which is counted.

use prost::Message;

use super::backlog::Weight;

/// What became of an item that a cursor has settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Delivered,
    /// Accepted, and not stored: it was durable in the queue already.
    Deduplicated,
    /// On disk as a dead letter.
    DeadLettered,
    /// The destination took its batch and rejected it.
    Rejected,
    /// Given up at the queue's cap.
    QueueFull,
    /// It would have become a dead letter, and there was no room.
    DeadLettersFull,
    /// Its record is damaged.
    Damaged,
}

impl Fate {
    /// In the order in which they are written down; append only.
    pub const ALL: [Fate; 7] = [
        Fate::Delivered,
        Fate::Deduplicated,
        Fate::DeadLettered,
        Fate::Rejected,
        Fate::QueueFull,
        Fate::DeadLettersFull,
        Fate::Damaged,
    ];

    /// As metrics say it: the state, and the reason of what is dropped.
    pub fn state(self) -> (&'static str, &'static str) {
        match self {
            Fate::Delivered => ("delivered", ""),
            Fate::Deduplicated => ("deduplicated", ""),
            Fate::DeadLettered => ("dead_lettered", ""),
            Fate::Rejected => ("dropped", "rejected"),
            Fate::QueueFull => ("dropped", "queue_full"),
            Fate::DeadLettersFull => ("dropped", "dead_letters_full"),
            Fate::Damaged => ("dropped", "damaged"),
        }
    }
}

/// Items by what became of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fates([u64; Fate::ALL.len()]);

impl Fates {
    pub fn of(fate: Fate, items: u64) -> Fates {
        let mut fates = Fates::default();
        fates.add(fate, items);
        fates
    }

    pub fn add(&mut self, fate: Fate, items: u64) {
        self.0[fate as usize] = self.0[fate as usize].saturating_add(items);
    }

    pub fn get(&self, fate: Fate) -> u64 {
        self.0[fate as usize]
    }

    pub fn total(&self) -> u64 {
        self.0.iter().fold(0, |sum, items| sum.saturating_add(*items))
    }

    /// Of `items` items these, as far as they go, and for the rest `rest`. What does not fit is left.
    pub fn take(&mut self, items: u64, rest: Fate) -> Fates {
        let mut taken = Fates::default();
        let mut room = items;
        for fate in Fate::ALL {
            let part = self.get(fate).min(room);
            self.0[fate as usize] -= part;
            taken.add(fate, part);
            room -= part;
        }
        taken.add(rest, room);
        taken
    }
}

#[derive(Clone, PartialEq, Message)]
pub struct LedgerRow {
    #[prost(uint64, tag = "1")]
    pub accepted: u64,
    /// In the order of [`Fate::ALL`].
    #[prost(uint64, repeated, tag = "2")]
    pub fates: Vec<u64>,
    #[prost(uint64, tag = "3")]
    pub rebased: u64,
}

/// One cursor's account, beside its backlog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    pub accepted: u64,
    pub fates: Fates,
    /// How often the sums did not come out, because of damage or an estimate, and were set right.
    pub rebased: u64,
}

impl Ledger {
    /// Of a new cursor that finds this waiting.
    pub fn at_birth(waiting: &Weight) -> Ledger {
        Ledger { accepted: waiting.items, ..Ledger::default() }
    }

    /// After a restart that found this waiting.
    pub fn resumed(self, waiting: &Weight) -> Ledger {
        let accepted = self.fates.total().saturating_add(waiting.items);
        let is_short = accepted < self.accepted;
        Ledger { accepted, rebased: self.rebased + u64::from(is_short), ..self }
    }

    /// Of two accounts of one cursor the later.
    pub fn later(self, other: Ledger) -> Ledger {
        let progress = |ledger: &Ledger| (ledger.fates.total(), ledger.accepted);
        if progress(&self) >= progress(&other) { self } else { other }
    }

    pub fn accept(&mut self, items: u64) {
        self.accepted = self.accepted.saturating_add(items);
    }

    pub fn deduplicate(&mut self, items: u64) {
        self.accept(items);
        self.fates.add(Fate::Deduplicated, items);
    }

    /// `gone` items have left the backlog, with these fates. They are as many, unless records are damaged or the
    /// backlog was estimated.
    pub fn settle(&mut self, fates: &Fates, gone: u64, is_damaged: bool) {
        for fate in Fate::ALL {
            self.fates.add(fate, fates.get(fate));
        }
        let known = fates.total();
        if known > gone {
            self.accept(known - gone);
            self.rebased += 1;
        } else if gone > known && is_damaged {
            self.fates.add(Fate::Damaged, gone - known);
        } else if gone > known {
            self.accepted = self.accepted.saturating_sub(gone - known);
            self.rebased += 1;
        }
    }

    pub fn row(&self) -> LedgerRow {
        LedgerRow { accepted: self.accepted, fates: self.fates.0.to_vec(), rebased: self.rebased }
    }

    pub fn from_row(row: &LedgerRow) -> Ledger {
        let mut fates = Fates::default();
        for (fate, items) in Fate::ALL.into_iter().zip(&row.fates) {
            fates.add(fate, *items);
        }
        Ledger { accepted: row.accepted, fates, rebased: row.rebased }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(ledger: &Ledger, waiting: u64) -> bool {
        ledger.accepted == ledger.fates.total() + waiting
    }

    #[test]
    fn the_law_holds_through_settling_damage_and_restarts() {
        let mut ledger = Ledger::at_birth(&Weight { records: 1, items: 10, bytes: 1 });
        ledger.accept(90);
        ledger.deduplicate(7);
        let mut others = Fates::of(Fate::DeadLettered, 2);
        others.add(Fate::Rejected, 1);
        ledger.settle(&others.take(50, Fate::Delivered), 50, false);
        assert!(holds(&ledger, 50) && ledger.rebased == 0, "{ledger:?}");
        assert_eq!(ledger.fates.get(Fate::Delivered), 47);
        // Thirty could be read, twenty more are gone with their records.
        ledger.settle(&Fates::of(Fate::Delivered, 30), 50, true);
        assert!(holds(&ledger, 0) && ledger.rebased == 0, "{ledger:?}");
        assert_eq!(ledger.fates.get(Fate::Damaged), 20);
        let resumed = Ledger::from_row(&ledger.row()).resumed(&Weight::default());
        assert_eq!(resumed, ledger);
        // Later records that were not written down yet are found again.
        let found = ledger.resumed(&Weight { records: 1, items: 5, bytes: 1 });
        assert!(holds(&found, 5) && found.rebased == 0, "{found:?}");
    }

    #[test]
    fn what_was_lost_over_a_restart_rebases_and_says_so() {
        let mut ledger = Ledger::default();
        ledger.accept(10);
        let resumed = ledger.resumed(&Weight { records: 1, items: 4, bytes: 1 });
        assert_eq!((resumed.accepted, resumed.rebased), (4, 1));
        let mut estimated = Ledger::at_birth(&Weight { records: 1, items: 4, bytes: 1 });
        estimated.settle(&Fates::of(Fate::Delivered, 6), 4, false);
        assert!(holds(&estimated, 0) && estimated.rebased == 1, "{estimated:?}");
    }

    #[test]
    fn of_two_accounts_the_later_holds() {
        let early = Ledger { accepted: 10, ..Ledger::default() };
        let mut late = early;
        late.settle(&Fates::of(Fate::Delivered, 3), 3, false);
        assert_eq!(early.later(late), late);
        assert_eq!(late.later(early), late);
    }
}
