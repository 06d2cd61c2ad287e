//! Segments made ahead of need, on a thread of their own, so that a roll costs the writer nothing.

use std::io::{self, IoSlice};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::storage::disk::DiskFile;
#[cfg(test)]
use crate::storage::mutant;
use crate::storage::segment::{self, Identity, RECORDS_START};

use super::Inner;
use super::writer::{WriteError, publish_room};

/// Names of files that are not (or no longer) segments; removed at open.
pub const TEMPORARY_PREFIX: &str = "new.";
pub const SPARE_PREFIX: &str = "spare.";

pub(super) fn run(inner: &Inner) {
    loop {
        inner.prepare_wanted.wait(None);
        if inner.stopping.load(Ordering::Acquire) {
            return end(inner);
        }
        step(inner);
    }
}

/// Makes one segment ahead, unless there is one or no room for it.
pub(super) fn step(inner: &Inner) {
    let _making = inner.maker.lock();
    // One more than is needed stays free: intake may have promised it already.
    if inner.state.lock().prepared.is_some() {
        return;
    }
    if inner.shared.space.check(2 * inner.shared.segment_bytes, Default::default).is_err() {
        inner.shared.pressure.raise();
        return;
    }
    match make(inner, inner.shared.segment_bytes) {
        Ok(made) => {
            let mut state = inner.state.lock();
            state.prepared = Some(made);
            publish_room(inner, &state);
        }
        // The writer will meet the same error when it needs a segment, and deals with it.
        Err(error) => inner.shared.observer.failed(&inner.id, error.operation, &error.cause),
    }
}

/// Gives back what was kept ready.
pub(super) fn end(inner: &Inner) {
    let (prepared, spare) = {
        let mut state = inner.state.lock();
        (state.prepared.take(), state.spare.take())
    };
    discard(inner, prepared, spare);
}

/// A segment file with its header synced and its name durable. Recycles the spare when there is one of that size.
pub(super) fn make(inner: &Inner, len: u64) -> Result<(Identity, Arc<dyn DiskFile>), WriteError> {
    let disk = &inner.shared.disk;
    let (id, sequence_floor, spare) = {
        let mut state = inner.state.lock();
        let id = state.next_segment_id;
        if id > segment::ID_MAX {
            let cause =
                io::Error::other("there are no segment ids left; `forebay queue forget --queue` makes the queue anew");
            return Err(WriteError { operation: "number", cause });
        }
        state.next_segment_id += 1;
        let spare = if len == inner.shared.segment_bytes { state.spare.take() } else { None };
        (id, state.durable_end, spare)
    };
    let mut nonce = [0; 16];
    for byte in &mut nonce {
        *byte = fastrand::u8(..);
    }
    #[cfg(test)]
    if let Some(fixed) = mutant::fixed_nonce() {
        nonce = fixed;
    }
    let identity = Identity { id, nonce, sequence_floor };
    let recycled = spare.is_some();
    let (temporary, file) = match spare {
        Some(spare) => spare,
        None => {
            let path = inner.dir.join(format!("{TEMPORARY_PREFIX}{id:016x}"));
            let file = disk.create(&path, len).map_err(WriteError::during("allocate"))?;
            (path, file)
        }
    };
    let path = segment::path_in(&inner.dir, id);
    let mut is_named = false;
    let mut finish = || -> Result<(), WriteError> {
        let page = identity.encode();
        file.write_all_at(&mut [IoSlice::new(&page)], 0).map_err(WriteError::during("write the header of"))?;
        file.sync_data().map_err(WriteError::during("sync the header of"))?;
        // Whatever has that name is not ours to replace; the next one gets another.
        disk.rename_new(&temporary, &path).map_err(WriteError::during("name"))?;
        is_named = true;
        disk.sync_dir(&inner.dir).map_err(WriteError::during("sync the directory of"))
    };
    if let Err(error) = finish() {
        // Whatever is left of it is swept up at the next open at the latest.
        let removed = disk.remove(if is_named { &path } else { &temporary });
        if recycled && removed.is_ok() {
            inner.shared.space.subtract(len);
        }
        return Err(error);
    }
    if !recycled {
        inner.shared.space.add(len);
    }
    debug_assert!(len > RECORDS_START);
    Ok((identity, file))
}

/// Removes what was kept ready: an unused segment and a spare file.
pub(super) fn discard(
    inner: &Inner,
    prepared: Option<(Identity, Arc<dyn DiskFile>)>,
    spare: Option<(PathBuf, Arc<dyn DiskFile>)>,
) {
    let paths = prepared
        .map(|(identity, _)| segment::path_in(&inner.dir, identity.id))
        .into_iter()
        .chain(spare.map(|(path, _)| path));
    for path in paths {
        match inner.shared.disk.remove(&path) {
            Ok(()) => inner.shared.space.subtract(inner.shared.segment_bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => inner.shared.observer.failed(&inner.id, "remove a spare", &error),
        }
    }
}
