//! The dead-letter queue of this process: opened with the store, its figures and its ages watched.

use std::sync::Arc;

use crate::config::Plan;
use crate::dlq::{DeadLetters, OnFull};
use crate::storage::Store;
use crate::storage::dead_letters::{AtCap, Options};

use super::Error;

/// Opens it; what is damaged is said once, here.
pub fn open(plan: &Plan, store: &Store) -> Result<Arc<DeadLetters>, Error> {
    let options = Options { max_bytes: plan.dead_letters.max_size_bytes, at_cap: AtCap::Refuse };
    let (log, opened) = store.dead_letters("dlq", options)?;
    for damage in &opened.damage {
        tracing::error!(%damage, "dead letters are damaged and lost; others are kept");
    }
    let status = log.status();
    if status.letters > 0 {
        tracing::warn!(letters = status.letters, items = status.items, "dead letters wait; see `forebay dlq list`");
    }
    let on_full = if plan.dead_letters.drops { OnFull::Drop } else { OnFull::Block };
    Ok(Arc::new(DeadLetters::new(Arc::new(log), on_full)))
}
