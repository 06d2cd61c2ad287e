//! Mistakes that a test makes on purpose, to see that it would be noticed. Compiled for tests only.

use std::cell::Cell;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Recovery numbers on from the last record that it found, whatever cursors and witness say.
    ReusedSequence,
    /// A cursor that was found nowhere starts at the end although the catalogue was rebuilt.
    CursorBornAtEnd,
    /// What a recycled segment held before passes for its own: one nonce for all, neither id nor floor looked at.
    StaleRecord,
    /// The nonce can be guessed.
    KnownNonce,
    /// A key counts as seen as soon as somebody holds it.
    HeldIsDurable,
    /// A claim that ends badly leaves its keys behind as seen.
    FailedIsDurable,
    /// Fingerprints count whether or not their records are there.
    UncheckedFingerprint,
    /// What is given up stays seen.
    NothingForgotten,
}

thread_local! {
    static ACTIVE: Cell<Option<Mutant>> = const { Cell::new(None) };
}

/// Whether this thread makes that mistake.
pub fn is_on(mutant: Mutant) -> bool {
    ACTIVE.get() == Some(mutant)
}

/// The nonce that is no secret.
pub fn fixed_nonce() -> Option<[u8; 16]> {
    match ACTIVE.get() {
        Some(Mutant::KnownNonce) => Some([0; 16]),
        Some(Mutant::StaleRecord) => Some([1; 16]),
        _ => None,
    }
}

/// Makes the mistake on this thread until it is told otherwise.
pub fn set(mutant: Option<Mutant>) {
    ACTIVE.set(mutant);
}
