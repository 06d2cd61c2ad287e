//! Why a data directory does not open.

use std::io;
use std::path::{Path, PathBuf};

use super::QUEUES_MAX;
use crate::storage::catalog::CatalogError;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("failed to {operation} {}: {cause}", path.display())]
    Io { operation: &'static str, path: PathBuf, cause: io::Error },
    #[error(
        "the data directory {} is in use by another process (pid {pid}); stop it, or give this one another --data-dir",
        path.display()
    )]
    InUse { path: PathBuf, pid: String },
    #[error(
        "{} has an unknown format ({found}); this version knows format 1. Use the version that wrote it, or an empty data directory",
        path.display()
    )]
    Format { path: PathBuf, found: String },
    #[error("a process may have at most {QUEUES_MAX} queues; the data directory and the configuration have more")]
    TooManyQueues,
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(
        "{cause}; the file system of {} is full, and no ballast is left there whose room could be used: free a few MiB on \
         it and start again. What was acknowledged is kept",
        path.display()
    )]
    NoRoom { path: PathBuf, cause: Box<StoreError> },
}

impl StoreError {
    pub(crate) fn io(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
        let path = path.to_owned();
        move |cause| StoreError::Io { operation, path, cause }
    }

    /// Whether it is for want of room on the disk.
    pub fn is_full(&self) -> bool {
        match self {
            StoreError::Io { cause, .. } => {
                matches!(cause.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            }
            StoreError::Catalog(error) => error.is_full,
            StoreError::NoRoom { .. } => true,
            StoreError::InUse { .. } | StoreError::Format { .. } | StoreError::TooManyQueues => false,
        }
    }

    /// The same, where nothing is left to give way.
    pub(super) fn without_room(self, dir: &Path) -> StoreError {
        match self {
            error @ StoreError::NoRoom { .. } => error,
            error if error.is_full() => StoreError::NoRoom { path: dir.to_owned(), cause: Box::new(error) },
            error => error,
        }
    }
}
