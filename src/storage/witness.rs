//! The witness: a second, tiny account of how far everything has come, in two slots overwritten in turn.
//!
//! It tells an intact catalogue from one that a power cut emptied without an error, and keeps the cursors when the
//! catalogue is lost.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use prost::Message;

use super::catalog::{CursorRow, MetaRow, QueueRow};
use super::disk::{Disk, DiskFile};

const MAGIC: [u8; 8] = *b"FOREBAYW";
const HEAD_LEN: usize = 24;
/// Room for one account; where it does not do, no cursor is written with more of its ranges than these.
const SLOT_LEN: u64 = 256 << 10;
const RANGES_SHORTENED: [usize; 6] = [512, 256, 128, 64, 16, 0];

#[derive(Clone, PartialEq, Message)]
pub struct Account {
    #[prost(message, optional, tag = "1")]
    pub meta: Option<MetaRow>,
    #[prost(btree_map = "string, message", tag = "2")]
    pub queues: BTreeMap<String, QueueAccount>,
}

#[derive(Clone, PartialEq, Message)]
pub struct QueueAccount {
    #[prost(message, optional, tag = "1")]
    pub row: Option<QueueRow>,
    #[prost(btree_map = "string, message", tag = "2")]
    pub cursors: BTreeMap<String, CursorRow>,
}

impl Account {
    pub fn meta(&self) -> MetaRow {
        self.meta.unwrap_or_default()
    }
}

impl Copy for MetaRow {}

#[derive(Debug)]
pub struct Witness {
    file: Arc<dyn DiskFile>,
    slot: u64,
}

impl Witness {
    /// Opens the witness file, creating it if it is missing, and returns the newest valid account in it.
    pub fn open(disk: &dyn Disk, dir: &Path) -> io::Result<(Witness, Option<Account>)> {
        let path = dir.join("witness");
        let file = match disk.open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = disk.create(&path, 2 * SLOT_LEN)?;
                // Real blocks now, so that a full disk cannot stop a checkpoint later.
                let zeros = vec![0; (2 * SLOT_LEN) as usize];
                file.write_all_at(&mut [IoSlice::new(&zeros)], 0)?;
                file.sync_data()?;
                disk.sync_dir(dir)?;
                file
            }
            Err(error) => return Err(error),
        };
        let accounts = [read_slot(file.as_ref(), 0)?, read_slot(file.as_ref(), 1)?];
        let newest = (0..2).max_by_key(|&slot| {
            accounts[slot].as_ref().map(|account| (account.meta().generation, account.meta().checkpoint))
        });
        let slot = newest.unwrap_or(0);
        let account = accounts.into_iter().nth(slot).flatten();
        Ok((Witness { file, slot: slot as u64 }, account))
    }

    /// Overwrites the older slot; durable when it returns. Gives the account back as it was written.
    pub fn write(&mut self, mut account: Account) -> io::Result<Account> {
        let mut body = account.encode_to_vec();
        if body.len() + HEAD_LEN > SLOT_LEN as usize {
            for ranges_max in RANGES_SHORTENED {
                for cursor in account.queues.values_mut().flat_map(|queue| queue.cursors.values_mut()) {
                    cursor.ranges.truncate(2 * ranges_max);
                }
                body = account.encode_to_vec();
                if body.len() + HEAD_LEN <= SLOT_LEN as usize {
                    break;
                }
            }
        }
        if body.len() + HEAD_LEN > SLOT_LEN as usize {
            return Err(io::Error::other(format!("{} bytes do not fit a slot of the witness file", body.len())));
        }
        let mut head = [0; HEAD_LEN];
        head[0..8].copy_from_slice(&MAGIC);
        head[8..16].copy_from_slice(&(body.len() as u64).to_le_bytes());
        let check = crc32c::crc32c_append(crc32c::crc32c(&head[..16]), &body);
        head[16..20].copy_from_slice(&check.to_le_bytes());
        let slot = 1 - self.slot;
        self.file.write_all_at(&mut [IoSlice::new(&head), IoSlice::new(&body)], slot * SLOT_LEN)?;
        self.file.sync_data()?;
        self.slot = slot;
        Ok(account)
    }
}

/// The newest valid account, without making anything. Its owner overwrites one slot at a time, the older one.
pub fn peek(disk: &dyn Disk, dir: &Path) -> io::Result<Option<Account>> {
    let file = match disk.open(&dir.join("witness")) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let accounts = [read_slot(file.as_ref(), 0)?, read_slot(file.as_ref(), 1)?];
    Ok(accounts.into_iter().flatten().max_by_key(|account| (account.meta().generation, account.meta().checkpoint)))
}

fn read_slot(file: &dyn DiskFile, slot: u64) -> io::Result<Option<Account>> {
    let mut bytes = vec![0; SLOT_LEN as usize];
    let read = file.read_at(&mut bytes, slot * SLOT_LEN)?;
    bytes.truncate(read);
    let Some(head) = bytes.get(..HEAD_LEN) else { return Ok(None) };
    if head[0..8] != MAGIC {
        return Ok(None);
    }
    let len = u64::from_le_bytes([head[8], head[9], head[10], head[11], head[12], head[13], head[14], head[15]]);
    let body = usize::try_from(len).ok().and_then(|len| bytes.get(HEAD_LEN..HEAD_LEN.checked_add(len)?));
    let Some(body) = body else { return Ok(None) };
    if crc32c::crc32c_append(crc32c::crc32c(&head[..16]), body).to_le_bytes() != head[16..20] {
        return Ok(None);
    }
    Ok(Account::decode(body).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::RealDisk;

    fn account(checkpoint: u64) -> Account {
        Account { meta: Some(MetaRow { generation: 1, checkpoint }), ..Account::default() }
    }

    #[test]
    fn an_account_that_is_too_large_is_written_with_as_many_ranges_of_each_cursor_as_fit() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (mut witness, _) = Witness::open(&RealDisk, dir.path()).expect("opens");
        for (checkpoint, (cursors, most)) in (1..).zip([(80, 1000), (200, 512), (500, 128), (2000, 16)]) {
            let row = CursorRow { low: 1 << 40, ranges: vec![100; 2000], ledger: None };
            let cursors = (0..cursors).map(|n| (format!("{n}"), row.clone())).collect();
            let queue = QueueAccount { row: None, cursors };
            let account = Account { queues: BTreeMap::from([("traces".to_owned(), queue)]), ..account(checkpoint) };
            let written = witness.write(account).expect("fits");
            assert!(written.queues["traces"].cursors.values().all(|row| row.ranges.len() == 2 * most), "{most}");
            let found = peek(&RealDisk, dir.path()).expect("read").expect("an account");
            assert!(found == written, "{most}: what lets segments go is what was written");
        }
    }

    #[test]
    fn the_newest_valid_slot_is_read_and_a_torn_one_passed_over() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let (mut witness, found) = Witness::open(&RealDisk, dir.path()).expect("opens");
        assert_eq!(found, None);
        for checkpoint in 1..=3 {
            witness.write(account(checkpoint)).expect("written");
        }
        let (witness, found) = Witness::open(&RealDisk, dir.path()).expect("opens");
        assert_eq!(found, Some(account(3)));
        witness.file.write_all_at(&mut [IoSlice::new(b"torn")], witness.slot * SLOT_LEN + 16).expect("written");
        let (_, found) = Witness::open(&RealDisk, dir.path()).expect("opens");
        assert_eq!(found, Some(account(2)));
    }
}
