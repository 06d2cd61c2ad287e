//! Who must not wait for the disk: a checkpoint may take as long as sled does.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use super::*;
use crate::storage::catalog::{Catalog, CatalogError, Change, Row, SledCatalog};
use crate::storage::log::Drive;
use crate::storage::store::OpenCatalog;

/// Commits when it is let through.
struct Hanging {
    inner: SledCatalog,
    barrier: Arc<Barrier>,
}

#[derive(Default)]
struct Barrier {
    closed: Mutex<()>,
    somebody_waits: AtomicBool,
}

impl Catalog for Hanging {
    fn load(&mut self) -> Result<Vec<Row>, CatalogError> {
        self.inner.load()
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), CatalogError> {
        self.barrier.somebody_waits.store(true, Ordering::SeqCst);
        {
            let _through = self.barrier.closed.lock();
            self.barrier.somebody_waits.store(false, Ordering::SeqCst);
        }
        self.inner.commit(changes)
    }
}

#[test]
fn who_asks_for_the_queues_does_not_wait_for_a_checkpoint_that_waits_for_sled() {
    // The keeper's checkpoint, and one that somebody asks for.
    for drive in [Drive::Threads, Drive::Caller] {
        let dir = tempfile::tempdir().expect("temporary directory");
        let barrier = Arc::new(Barrier::default());
        let passed = Arc::clone(&barrier);
        let open_catalog: OpenCatalog = Box::new(move |path| {
            let inner = SledCatalog::open(path)?;
            Ok(Box::new(Hanging { inner, barrier: Arc::clone(&passed) }) as Box<dyn Catalog>)
        });
        let observer = Arc::new(Seen::default()) as Arc<dyn Observer>;
        let (store, _) =
            Store::open_with(Arc::new(RealDisk), dir.path(), &options(), observer, open_catalog, drive).expect("opens");
        let store = Arc::new(store);
        let log = store.queue("traces", &cursor("a")).expect("queue");

        let closed = barrier.closed.lock();
        log.ensure_cursor("another", 0);
        let asked = (drive == Drive::Caller).then(|| {
            let store = Arc::clone(&store);
            std::thread::spawn(move || store.checkpoint())
        });
        eventually("a checkpoint is under way", || barrier.somebody_waits.load(Ordering::SeqCst));
        let (answer, answers) = mpsc::channel();
        let asking = {
            let store = Arc::clone(&store);
            std::thread::spawn(move || {
                let is_known = store.queue("traces", &[]).is_ok();
                // The test may have given up by now.
                let _ = answer.send((store.queues().len(), is_known));
            })
        };
        let answered = answers.recv_timeout(PATIENCE);
        drop(closed);
        asking.join().expect("no panic");
        asked.into_iter().for_each(|asked| asked.join().expect("no panic").expect("written"));
        assert_eq!(answered, Ok((1, true)), "{drive:?}");
        store.close();
    }
}
