//! What stands before a queue and says which items of a request are in it already. Its only kind is `dedup`'s.
//!
//! An offer meets it in rounds. A round sorts the items that are left: those that nobody has had are claimed and stored
//! at once; those that are durable are left out; those that another offer has claimed wait until its claim ends, and
//! are sorted again in the next round. Nobody waits while holding a claim, so no two offers wait for each other.

use std::net::IpAddr;

use bytes::Bytes;
use futures_util::future::BoxFuture;

use crate::otlp::wire::Summary;
use crate::otlp::{Encoding, Signal};

use super::Permit;

/// What a request and its items are known by: keyed hashes, made where the message is at hand inflated. 0 stands for
/// what has no identity.
#[derive(Debug, Default)]
pub struct Marks {
    pub request: u128,
    /// For each item in message order; empty when no gate asked.
    pub by_id: Vec<u128>,
    pub by_content: Vec<u128>,
    /// The memory that the marks take, and what gates take for them while the offer is under way.
    pub permit: Option<Permit>,
}

/// Some of an offer's items, by their index in message order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selection {
    None,
    All,
    /// Ascending; neither empty nor all.
    Some(Vec<u32>),
}

impl Selection {
    /// Of `items` items those with the indices `chosen`, ascending.
    pub fn of(chosen: Vec<u32>, items: u64) -> Selection {
        match chosen.len() as u64 {
            0 => Selection::None,
            len if len == items => Selection::All,
            _ => Selection::Some(chosen),
        }
    }

    pub fn count(&self, items: u64) -> u64 {
        match self {
            Selection::None => 0,
            Selection::All => items,
            Selection::Some(chosen) => chosen.len() as u64,
        }
    }

    pub fn is_none(&self) -> bool {
        *self == Selection::None
    }
}

/// One request on its way into a queue, as a gate and the log see it.
#[derive(Debug)]
pub struct Offered {
    pub signal: Signal,
    pub encoding: Encoding,
    pub items: u64,
    pub raw_len: u64,
    pub received_unix_ns: u64,
    /// Encoded as the record keeps it.
    pub metadata: Bytes,
    pub payload: Bytes,
    pub marks: Marks,
    pub peer: Option<IpAddr>,
}

/// How one round sorts the items that are left.
pub struct Verdict {
    /// Nobody has had these: they are to be stored now.
    pub fresh: Selection,
    /// Durable already.
    pub duplicates: u64,
    /// Somebody else is storing these.
    pub waiting: Selection,
    /// Each resolves when one of the others' claims has ended, well or not.
    pub waits: Vec<BoxFuture<'static, ()>>,
    /// Given back when the fresh items are durable; dropping it voids it.
    pub claim: Option<Box<dyn Claim>>,
}

impl Verdict {
    pub fn store(fresh: Selection) -> Verdict {
        Verdict { fresh, duplicates: 0, waiting: Selection::None, waits: Vec::new(), claim: None }
    }
}

/// Keys that nobody had had before, held until their items are durable. Dropping it lets go of them: then they were
/// never seen.
pub trait Claim: Send {
    fn durable(self: Box<Self>, sequence: u64);
}

/// The gate of one queue.
pub trait Gate: Send + Sync {
    /// Memory that the marks of such a request take while it is under way.
    fn marks_bytes(&self, summary: &Summary) -> u64;

    /// Adds what the gate will ask for, unless another gate has added it.
    fn mark(&self, signal: Signal, message: &[u8], summary: &Summary, marks: &mut Marks);

    fn claim(&self, offered: &Offered, left: &Selection) -> Verdict;
}
