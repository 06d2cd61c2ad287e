//! One exporter's view of one queue: leases in order, redelivery of what was not settled, ranges set aside or given up.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use tokio::time::Instant;

use crate::storage::log::Enough;
use crate::storage::log::Position;
use crate::storage::{Durable, Fate, Fates, Log, RangeSet, Record, Weight};

use super::Lease;

/// Ranges that may be set aside at once; then the exporter stops taking fresh records.
pub const HELD_RANGES_MAX: usize = 256;
/// What is handed over at once.
const HAND_OVER_BYTES_MAX: u64 = 4 << 20;
const HAND_OVER_RECORDS_MAX: usize = 256;
/// How long a range that was set aside waits for its next try.
pub const HELD_RETRY_AFTER: Duration = Duration::from_secs(300);

/// Proof that records are somebody else's from now on (back door). Made from a delivery, or from the receipt of the
/// dead-letter queue; only this moves a cursor.
#[derive(Debug)]
#[must_use]
pub struct Settled {
    /// Items of which something else became than `rest`.
    pub(super) others: Fates,
    pub(super) rest: Fate,
}

impl Settled {
    /// The destination took them.
    pub fn by_delivery() -> Settled {
        Settled { others: Fates::default(), rest: Fate::Delivered }
    }

    /// There is nothing in it: numbers never used, records lost to damage or given up meanwhile, all counted elsewhere.
    pub(super) fn of_nothing() -> Settled {
        Settled::by_delivery()
    }

    /// They are on disk as dead letters, or were given up for want of room there, as `fates` says.
    pub fn by_dead_letters(_durable: Durable, fates: Fates) -> Settled {
        Settled { others: fates, rest: Fate::DeadLettered }
    }

    /// The same of some of the items; the rest was delivered.
    pub fn in_part_by_dead_letters(_durable: Durable, fates: Fates) -> Settled {
        Settled { others: fates, rest: Fate::Delivered }
    }

    /// The destination took the batch, and not so many items of it.
    pub fn rejected(mut self, items: u64) -> Settled {
        self.others.add(Fate::Rejected, items);
        self
    }
}

/// Bounds of one lease. At least one record is leased whatever its size.
#[derive(Clone, Copy, Debug)]
pub struct LeaseLimits {
    /// Inflated bytes.
    pub bytes_max: u64,
    pub records_max: usize,
    pub items_max: u64,
}

#[derive(Debug)]
pub(super) struct Held {
    pub range: Range<u64>,
    pub retry_at: Instant,
    pub reason: String,
}

/// What a lease that is out answers for.
#[derive(Debug)]
pub(super) struct Out {
    pub range: Range<u64>,
    /// On its way to the destination at this moment: it must not be given up, or it would be sent and dropped.
    pub is_sending: bool,
}

#[derive(Debug, Default)]
pub(super) struct Book {
    /// Ranges whose lease came back unsettled, in the order they came back.
    pub redeliver: VecDeque<Range<u64>>,
    pub held: Vec<Held>,
    /// What is being given up at this moment: no lease that has some of it is sent meanwhile.
    pub giving: Option<Range<u64>>,
    /// Leases out at the moment, by number.
    pub out: BTreeMap<u64, Out>,
    pub next_lease: u64,
}

/// What [`Subscription::give_up`] brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GivenUp {
    pub weight: Weight,
    /// Nothing in the range is unsettled any more.
    pub is_all: bool,
}

/// What is waiting and what is set aside.
#[derive(Clone, Debug, Default)]
pub struct SubscriptionStatus {
    pub leased: usize,
    pub held_ranges: usize,
    pub held_reason: Option<String>,
}

#[derive(Debug)]
pub struct Subscription {
    pub(super) log: Arc<Log>,
    pub(super) cursor: String,
    /// Whether records may be given up under it ([`Log::let_give_way`] before [`Subscription::new`]).
    pub(super) gives_way: bool,
    /// Where fresh records are read; one reader at a time.
    pub(super) reader: AsyncMutex<Position>,
    pub(super) book: Mutex<Book>,
    pub(super) changed: Notify,
}

impl Subscription {
    /// The cursor must exist in the log. What it has settled is never leased again.
    pub fn new(log: Arc<Log>, cursor: &str) -> Arc<Subscription> {
        let (low, redeliver, fresh) = match log.cursor(cursor) {
            Some(found) => {
                let fresh = found.above().iter().last().map_or(found.low(), |range| range.end);
                (found.low(), found.above().gaps(found.low()..fresh), fresh)
            }
            None => (0, Vec::new(), 0),
        };
        debug_assert!(low <= fresh);
        Arc::new(Subscription {
            gives_way: log.gives_way(cursor),
            log,
            cursor: cursor.to_owned(),
            reader: AsyncMutex::new(Position::at(fresh)),
            book: Mutex::new(Book { redeliver: redeliver.into(), ..Book::default() }),
            changed: Notify::new(),
        })
    }

    pub fn queue(&self) -> &str {
        self.log.id()
    }

    pub fn cursor(&self) -> &str {
        &self.cursor
    }

    pub fn status(&self) -> SubscriptionStatus {
        let book = self.book.lock();
        SubscriptionStatus {
            leased: book.out.len(),
            held_ranges: book.held.len(),
            held_reason: book.held.last().map(|held| held.reason.clone()),
        }
    }

    /// Whether everything durable is settled or set aside and no lease is out.
    pub async fn is_drained(&self) -> bool {
        let position = self.reader.lock().await.sequence;
        let book = self.book.lock();
        book.out.is_empty() && book.redeliver.is_empty() && position >= self.log.durable_end()
    }

    /// Waits until there is something to lease.
    pub async fn ready(&self) {
        let mut durable_end = self.log.watch_durable_end();
        loop {
            let changed = self.changed.notified();
            let next_held = self.release_held();
            if self.has_work(&mut durable_end).await {
                return;
            }
            let held = async {
                match next_held {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changed => {}
                result = durable_end.changed() => {
                    if result.is_err() {
                        // The log is closed; nothing will come any more.
                        std::future::pending::<()>().await;
                    }
                }
                () = held => {}
            }
        }
    }

    async fn has_work(&self, durable_end: &mut watch::Receiver<u64>) -> bool {
        let fresh = self.reader.lock().await.sequence;
        let end = *durable_end.borrow_and_update();
        let book = self.book.lock();
        !book.redeliver.is_empty() || (fresh < end && book.held.len() < HELD_RANGES_MAX)
    }

    /// Moves ranges whose time has come back among those to redeliver; returns when the next one is due.
    fn release_held(&self) -> Option<Instant> {
        let mut book = self.book.lock();
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = book.held.drain(..).partition(|held| held.retry_at <= now);
        book.redeliver.extend(due.into_iter().map(|held| held.range));
        book.held = later;
        book.held.iter().map(|held| held.retry_at).min()
    }

    /// Everything set aside is to be tried now; how many ranges that are.
    pub fn retry_held(&self) -> u64 {
        let mut book = self.book.lock();
        let held = std::mem::take(&mut book.held);
        let count = held.len() as u64;
        book.redeliver.extend(held.into_iter().map(|held| held.range));
        drop(book);
        self.changed.notify_waiters();
        count
    }

    /// By how much the backlog is beyond `queue_size`, where records may be given up.
    pub fn excess(&self) -> Option<(crate::settings::Sizer, u64)> {
        self.log.excess(&self.cursor)
    }

    /// Settles what is unsettled in `range` unsent, oldest first, until that is `enough`; what is being sent at this
    /// moment stays. Blocks on the disk.
    pub fn give_up(&self, range: Range<u64>, mut enough: Enough) -> std::io::Result<GivenUp> {
        let mut weight = Weight::default();
        for part in self.idle_parts(&range) {
            let (end, part_weight) = self.log.weigh(part.clone(), enough)?;
            let part = part.start..end.min(part.end);
            {
                let mut book = self.book.lock();
                // Weighing took a while: a part that is settled or on its way by now waits for the next round.
                let is_idle = book.out.values().all(|out| !out.is_sending || !overlap(&out.range, &part));
                if part.is_empty() || !is_idle || self.log.unsettled(&self.cursor, part.clone()) != [part.clone()] {
                    continue;
                }
                book.giving = Some(part.clone());
            }
            // Before they are, lest a crash in between leaves them seen; without the lock, since it may wait for the disk.
            self.log.giving_up(part.clone());
            let mut book = self.book.lock();
            book.giving = None;
            let fates = Fates::of(Fate::QueueFull, part_weight.items);
            self.log.settle_weighed(&self.cursor, part.clone(), part_weight, &fates);
            let settled = |range: &Range<u64>| self.log.unsettled(&self.cursor, range.clone()).is_empty();
            book.held.retain(|held| !settled(&held.range));
            book.redeliver.retain(|range| !settled(range));
            drop(book);
            self.changed.notify_waiters();
            weight = weight.plus(&part_weight);
            if let Some((sizer, size)) = &mut enough {
                *size = size.saturating_sub(part_weight.measure(*sizer));
                if *size == 0 {
                    break;
                }
            }
        }
        self.changed.notify_waiters();
        Ok(GivenUp { weight, is_all: self.log.unsettled(&self.cursor, range).is_empty() })
    }

    /// The same for records that somebody else takes over first, in pieces.
    pub fn hand_over(
        &self,
        range: Range<u64>,
        mut enough: Enough,
        park: &super::overflow::Park,
    ) -> std::io::Result<GivenUp> {
        let mut weight = Weight::default();
        'parts: for part in self.idle_parts(&range) {
            let mut start = part.start;
            while start < part.end {
                let chunk = self.log.read_file(Position::at(start), HAND_OVER_BYTES_MAX, HAND_OVER_RECORDS_MAX)?;
                let piece = start..chunk.next.sequence.min(part.end);
                start = piece.end;
                let records: Vec<Record> =
                    chunk.records.into_iter().filter(|record| piece.contains(&record.sequence)).collect();
                let piece_weight = records.iter().fold(Weight::default(), |sum, record| sum.plus(&record.weight()));
                if piece.is_empty() {
                    continue 'parts;
                }
                let undo = if records.is_empty() { None } else { Some(park(&records)?) };
                let mut book = self.book.lock();
                let is_idle = book.out.values().all(|out| !out.is_sending || !overlap(&out.range, &piece));
                if !is_idle || self.log.unsettled(&self.cursor, piece.clone()) != [piece.clone()] {
                    drop(book);
                    undo.into_iter().for_each(|undo| undo());
                    continue 'parts;
                }
                let fates = Fates::of(Fate::DeadLettered, piece_weight.items);
                self.log.settle_weighed(&self.cursor, piece.clone(), piece_weight, &fates);
                let settled = |range: &Range<u64>| self.log.unsettled(&self.cursor, range.clone()).is_empty();
                book.held.retain(|held| !settled(&held.range));
                book.redeliver.retain(|range| !settled(range));
                drop(book);
                weight = weight.plus(&piece_weight);
                if let Some((sizer, size)) = &mut enough {
                    *size = size.saturating_sub(piece_weight.measure(*sizer));
                    if *size == 0 {
                        break 'parts;
                    }
                }
            }
        }
        self.changed.notify_waiters();
        Ok(GivenUp { weight, is_all: self.log.unsettled(&self.cursor, range).is_empty() })
    }

    /// Whether something in `range` is on its way at this moment.
    pub fn is_sending(&self, range: &Range<u64>) -> bool {
        self.book.lock().out.values().any(|out| out.is_sending && overlap(&out.range, range))
    }

    pub fn has_unsettled(&self, range: &Range<u64>) -> bool {
        !self.log.unsettled(&self.cursor, range.clone()).is_empty()
    }

    /// What is unsettled in `range` and not on its way, ascending.
    fn idle_parts(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let mut sending = RangeSet::new();
        for out in self.book.lock().out.values().filter(|out| out.is_sending) {
            sending.insert(out.range.clone());
        }
        let unsettled = self.log.unsettled(&self.cursor, range.clone());
        unsettled.into_iter().flat_map(|part| sending.gaps(part)).collect()
    }

    /// The next records, or None when there are none just now. All of a lease's records have the same metadata.
    pub async fn lease(self: &Arc<Self>, limits: LeaseLimits) -> std::io::Result<Option<Lease>> {
        let again = self.book.lock().redeliver.pop_front();
        if let Some(range) = again {
            // Put back if the read fails or is cancelled.
            let mut lease = Lease::new(self, range.clone(), Vec::new());
            let (records, next) = match self.read(Position::at(range.start), range.end, limits).await {
                Err(error) if is_disks(&error) => {
                    let end = self.log.end_of_segment(range.start).min(range.end);
                    if end < range.end {
                        self.book.lock().redeliver.push_front(end..range.end);
                    }
                    lease.cover_to(end);
                    lease.hold(unreadable(&error));
                    return Ok(None);
                }
                read => read?,
            };
            let end = next.sequence.min(range.end);
            lease.cover_to(end);
            if end < range.end {
                self.book.lock().redeliver.push_front(end..range.end);
                self.changed.notify_waiters();
            }
            if records.is_empty() {
                lease.settle(Settled::of_nothing());
                return Ok(None);
            }
            lease.fill(records);
            return Ok(Some(lease));
        }
        let mut position = self.reader.lock().await;
        if self.book.lock().held.len() >= HELD_RANGES_MAX {
            return Ok(None);
        }
        if self.gives_way
            && let Some(low) =
                self.log.cursor(&self.cursor).map(|cursor| cursor.low()).filter(|low| *low > position.sequence)
        {
            *position = Position::at(low);
        }
        let end = self.log.durable_end();
        if position.sequence >= end {
            return Ok(None);
        }
        let start = position.sequence;
        let (records, next) = match self.read(*position, end, limits).await {
            Err(error) if is_disks(&error) => {
                // What lies behind is not kept from its destination by what cannot be read.
                *position = Position::at(self.log.end_of_segment(start));
                Lease::new(self, start..position.sequence, Vec::new()).hold(unreadable(&error));
                return Ok(None);
            }
            read => read?,
        };
        *position = next;
        let lease = Lease::new(self, start..next.sequence, records);
        drop(position);
        if lease.records().is_empty() {
            // Numbers never used, or records lost to damage, which the log has reported.
            lease.settle(Settled::of_nothing());
            return Ok(None);
        }
        Ok(Some(lease))
    }

    /// Records from `from` up to `until`, cut where the metadata changes, and the position behind them.
    pub(super) async fn read(
        &self,
        from: Position,
        until: u64,
        limits: LeaseLimits,
    ) -> std::io::Result<(Vec<Record>, Position)> {
        let chunk = match self.log.read_tail(from, limits.bytes_max, limits.records_max) {
            Some(chunk) => chunk,
            None => {
                let log = Arc::clone(&self.log);
                tokio::task::spawn_blocking(move || log.read_file(from, limits.bytes_max, limits.records_max))
                    .await
                    .map_err(std::io::Error::other)??
            }
        };
        let mut records = chunk.records;
        let mut next = chunk.next;
        let mut items = 0;
        let cut = records.iter().enumerate().position(|(index, record)| {
            items += u64::from(record.items);
            record.sequence >= until
                || (index > 0 && (record.metadata != records[0].metadata || items > limits.items_max))
        });
        if let Some(cut) = cut {
            // Up to the last record kept; what lies between the two was never used or is lost.
            next = Position::at(records[cut].sequence);
            records.truncate(cut);
        }
        Ok((records, next))
    }
}

/// The disk failed, not this process.
pub(super) fn is_disks(error: &std::io::Error) -> bool {
    error.raw_os_error().is_some()
}

fn unreadable(error: &std::io::Error) -> String {
    tracing::error!(
        %error,
        "records cannot be read from the disk and are set aside; later ones go on. If the disk does not recover, stop and run \
         `forebay queue repair`"
    );
    format!("it cannot be read: {error}")
}

pub(super) fn overlap(one: &Range<u64>, other: &Range<u64>) -> bool {
    one.start < other.end && other.start < one.end
}
