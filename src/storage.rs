//! The segment log, its catalogue, and recovery. Returns outcomes; knows no metrics.

/// Proof that a record's bytes were synced (front door). Only the log makes one, after the sync returned Ok.
///
/// ```compile_fail
/// let forged = forebay::storage::Durable { _sealed: () };
/// ```
#[derive(Debug)]
#[must_use]
pub struct Durable {
    _sealed: (),
}

#[cfg(test)]
impl Durable {
    /// For tests of the receivers, which need an answer and no disk.
    pub(crate) fn for_test() -> Durable {
        Durable { _sealed: () }
    }
}
