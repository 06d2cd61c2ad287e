//! At the cap, the oldest records of exporters with `on_full: drop` are given up so that intake goes on.
//!
//! Storage raises [`crate::storage::Store::pressure`] when room runs short; a thread of its own then has a checkpoint bring
//! back what is settled, also where nobody gives way, so that a small queue does not wait for the next one. It gives up whole
//! segments that nobody else holds, and what an exporter has beyond its `queue_size`. The space comes back with a
//! checkpoint, which the thread does not wait for.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use crate::storage::log::{Droppable, Enough, Signal};
use crate::storage::{Record, Store, Weight};

use super::Subscription;

/// Segments' worth of room that is kept free: one to be filled, one prepared behind it, one in reserve.
const FREE_SEGMENTS: u64 = 3;
/// Segments looked at in one round.
const SEGMENTS_PER_ROUND_MAX: usize = 1024;
/// Pause between rounds, so that a full disk costs no core.
const ROUND_PAUSE: Duration = Duration::from_millis(5);
/// The same where nothing can be done.
const VAIN_ROUND_PAUSE: Duration = Duration::from_millis(25);
/// When what is beyond a limit was on its way in or out, it is looked at again after this, also if nothing new comes.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Takes records over, durably, or fails; what it returns takes that back, should they be on their way by then.
pub type Park = Box<dyn Fn(&[Record]) -> std::io::Result<Undo> + Send>;
pub type Undo = Box<dyn FnOnce()>;

/// One exporter's part of one queue that gives way, and who counts what it gives up.
pub struct Giver {
    pub subscription: Arc<Subscription>,
    /// Who has the records then; None: nobody.
    pub park: Option<Park>,
    pub on_gone: Box<dyn Fn(&Weight) + Send>,
}

/// The thread that makes room; ended by [`Overflow::close`].
pub struct Overflow {
    pressure: Arc<Signal>,
    stopping: Arc<AtomicBool>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Overflow {
    pub fn start(store: &Arc<Store>, givers: Vec<Giver>) -> std::io::Result<Overflow> {
        let stopping = Arc::new(AtomicBool::new(false));
        let thread = {
            let (store, stopping) = (Arc::clone(store), Arc::clone(&stopping));
            let work = move || {
                let mut again = None;
                loop {
                    let was_raised = store.pressure().wait(again);
                    if stopping.load(Ordering::Acquire) {
                        return;
                    }
                    let has_freed = relieve(&store, &givers);
                    if has_freed && let Err(error) = store.checkpoint() {
                        // The keeper tries again, and says so too.
                        tracing::debug!(%error, "what was given up comes back later");
                    }
                    let is_beyond = givers.iter().any(|giver| giver.subscription.excess().is_some());
                    // What raised it may not have been durable yet, and so not counted.
                    again = (was_raised || is_beyond).then_some(AGAIN_AFTER);
                    std::thread::sleep(if has_freed { ROUND_PAUSE } else { VAIN_ROUND_PAUSE });
                }
            };
            Some(std::thread::Builder::new().name("queue-overflow".to_owned()).spawn(work)?)
        };
        Ok(Overflow { pressure: Arc::clone(store.pressure()), stopping, thread: Mutex::new(thread) })
    }

    pub fn close(&self) {
        self.stopping.store(true, Ordering::Release);
        self.pressure.raise();
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that gives up old records panicked");
        }
    }
}

impl Drop for Overflow {
    fn drop(&mut self) {
        self.close();
    }
}

/// One round: what exporters have beyond their own limits, then what the disk needs back. Whether a checkpoint would bring
/// room that is short.
pub fn relieve(store: &Store, givers: &[Giver]) -> bool {
    for giver in givers {
        if let Some((sizer, excess)) = giver.subscription.excess() {
            give_up(giver, 0..u64::MAX, Some((sizer, excess)));
        }
    }
    let logs = store.queues();
    let coming_back: u64 = logs.iter().map(|log| log.reclaimable_bytes()).sum();
    let room_ahead = FREE_SEGMENTS * store.segment_bytes();
    let shortfalls = [room_ahead, store.space().take_wanted()].map(|bytes| store.space().shortfall(bytes));
    let [ahead, wanted] = shortfalls.map(|bytes| bytes.saturating_sub(coming_back));
    let mut has_freed = coming_back > 0 && shortfalls.iter().any(|bytes| *bytes > 0);
    if ahead == 0 && wanted == 0 {
        return has_freed;
    }
    // Dead letters take as much of the file system as the queue gives back: where that is short, they would make no room.
    let parks_in_vain = store.space().shortfall_of_disk(room_ahead) > coming_back;
    let would_be_parked = |queue: &str, range: &Range<u64>| {
        let parking = givers.iter().filter(|giver| giver.park.is_some() && giver.subscription.queue() == queue);
        parks_in_vain && parking.map(|giver| &giver.subscription).any(|parking| parking.has_unsettled(range))
    };
    // What is being sent cannot go yet: to give up the rest of its segment, or another's hold on it, would free nothing.
    let is_sent = |queue: &str, range: &Range<u64>| {
        let mut of_queue = givers.iter().filter(|giver| giver.subscription.queue() == queue);
        of_queue.any(|giver| giver.subscription.is_sending(range))
    };
    let mut candidates: BTreeMap<&str, VecDeque<Droppable>> = BTreeMap::new();
    for log in &logs {
        let may_go = |segment: &Droppable| {
            !is_sent(log.id(), &segment.sequences) && !would_be_parked(log.id(), &segment.sequences)
        };
        candidates.insert(log.id(), log.droppable().into_iter().filter(may_go).collect());
    }
    let bytes = |segments: &VecDeque<Droppable>| segments.iter().map(|segment| segment.allocated_bytes).sum::<u64>();
    let possible: u64 = candidates.values().map(bytes).sum();
    // For a request that will not fit whatever goes, nothing goes.
    let mut needed = if wanted <= possible { wanted.max(ahead) } else { ahead };
    for _ in 0..SEGMENTS_PER_ROUND_MAX {
        // The queue that holds the most of what may go gives first.
        let fullest = candidates.iter_mut().max_by_key(|(_, segments)| bytes(segments));
        let Some((queue, segments)) = fullest.filter(|_| needed > 0) else { break };
        let Some(segment) = segments.pop_front() else { break };
        let mut is_free = true;
        for giver in givers.iter().filter(|giver| giver.subscription.queue() == *queue) {
            is_free &= give_up(giver, segment.sequences.clone(), None);
        }
        if is_free {
            needed = needed.saturating_sub(segment.allocated_bytes);
            has_freed = true;
        }
    }
    has_freed
}

/// Whether everything in the range is settled now.
fn give_up(giver: &Giver, range: Range<u64>, enough: Enough) -> bool {
    let given = match &giver.park {
        None => giver.subscription.give_up(range, enough),
        Some(park) => giver.subscription.hand_over(range, enough, park),
    };
    match given {
        Ok(given) => {
            if given.weight.records > 0 {
                (giver.on_gone)(&given.weight);
            }
            given.is_all
        }
        Err(error) => {
            let (queue, exporter) = (giver.subscription.queue(), giver.subscription.cursor());
            tracing::error!(queue, exporter, %error, "what is to give way stays: it cannot be read or parked; trying again");
            false
        }
    }
}
