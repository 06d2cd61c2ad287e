//! A crash between a letter's sync and the checkpoint of its queue brings the record again.

use super::*;

fn spans() -> Vec<String> {
    // Two items that are the same to the last byte are two letters.
    ["good", "poison", "poison", "good", "poison other"].map(str::to_owned).to_vec()
}

/// A process on a queue of its own, with dead letters that others had before it: as if all settling had been lost.
async fn park_again(letters: &Path, requests: &[Vec<String>]) -> (u64, u64) {
    let mut case = case();
    case.letters = letters_in(letters, 64 << 20, OnFull::Block);
    for names in requests {
        put_spans(&case.router, names).await;
    }
    let destination = case.destination(&scripted(hates_poison), |policy| policy.batch.max_items = 100);
    case.deliver_all(&destination).await;
    let dead_lettered = case.log.status().cursors[0].ledger.fates.get(Fate::DeadLettered);
    case.letters.shelf().close();
    (case.letters.shelf().parked().status().letters, dead_lettered)
}

#[tokio::test]
async fn a_record_that_comes_again_after_a_crash_becomes_no_second_letter() {
    let dir = tempfile::tempdir().expect("temporary directory");
    assert_eq!(park_again(dir.path(), &[spans()]).await, (3, 3));
    for _ in 0..2 {
        assert_eq!(
            park_again(dir.path(), &[spans()]).await,
            (3, 3),
            "the letters it is already, and the account whole"
        );
    }
    // The same content in another record is another letter, and so is other content in its place.
    assert_eq!(park_again(dir.path(), &[spans(), spans()]).await, (6, 6));
    assert_eq!(park_again(dir.path(), &[vec!["good".to_owned(), "poison new".to_owned()]]).await, (7, 1));
}
