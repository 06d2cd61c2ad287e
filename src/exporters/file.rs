//! The `file` exporter: OTLP-JSON lines, one a request, delivered only after `fdatasync`.
//!
//! A thread of its own owns the file. It writes what is waiting, syncs once, and only then answers. A torn last line
//! (a crash in the middle of a write) is cut off at start: its request was not delivered and comes again.

mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::sync::oneshot;

use crate::settings::Table;

use super::{Batch, BuildError, Class, Context, Exporter, Failure, Outcome};

const MAX_REQUEST_BYTES: u64 = 16_000_000;
const ROTATE_AT_BYTES_DEFAULT: u64 = 100 << 20;
/// Lines waiting for the writer; each waits for its answer, so consumers bound it anyway.
const WAITING_MAX: usize = 64;

#[derive(Clone, Debug)]
pub struct Settings {
    /// Relative paths stand below the data directory.
    pub path: PathBuf,
    pub rotate_at_bytes: u64,
    /// None: nothing is ever deleted.
    pub max_backups: Option<u64>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { path: PathBuf::new(), rotate_at_bytes: ROTATE_AT_BYTES_DEFAULT, max_backups: None }
    }
}

impl Settings {
    pub fn read(table: &mut Table<'_>) -> Settings {
        table.unsupported(&[
            "compression",
            "append",
            "group_by",
            "flush_interval",
            "encoding",
            "create_directory",
            "directory_permissions",
        ]);
        table.choice("format", &[("json", ())]);
        let path = table.text("path");
        if path.as_ref().is_none_or(String::is_empty) {
            table.problem("path", "a path is required");
        }
        let rotation = table.table("rotation", |table| {
            table.unsupported(&["max_days", "localtime"]);
            (table.integer("max_megabytes", 1..=1 << 20), table.integer("max_backups", 1..=100_000))
        });
        let (megabytes, max_backups) = rotation.unwrap_or_default();
        Settings {
            path: path.unwrap_or_default().into(),
            rotate_at_bytes: megabytes.map_or(ROTATE_AT_BYTES_DEFAULT, |n| n << 20),
            max_backups,
        }
    }

    /// Makes a relative path absolute.
    pub fn resolve(&mut self, base: &Path) {
        self.path = base.join(&self.path);
    }
}

impl super::Settings for Settings {
    fn build(&self, context: &Context<'_>) -> Result<Arc<dyn Exporter>, BuildError> {
        let mut settings = self.clone();
        settings.resolve(context.data_dir);
        Ok(Arc::new(build(&settings)?))
    }

    fn is_remote(&self) -> bool {
        false
    }
}

/// A line on its way to the file.
struct Waiting {
    line: Vec<u8>,
    answer: oneshot::Sender<Result<(), String>>,
}

struct File {
    path: PathBuf,
    sender: mpsc::SyncSender<Waiting>,
}

/// Opens the file (made if it is not there) and starts its writer.
pub fn build(settings: &Settings) -> Result<impl Exporter + use<>, BuildError> {
    build_on(settings, writer::RealDisk)
}

fn build_on(settings: &Settings, disk: impl writer::Disk) -> Result<File, BuildError> {
    let mut writer = writer::Writer::open(settings, disk).map_err(|error| {
        BuildError(format!("cannot open {}: {error}; check `path` and its permissions", settings.path.display()))
    })?;
    let (sender, receiver) = mpsc::sync_channel(WAITING_MAX);
    std::thread::Builder::new()
        .name("file-exporter".to_owned())
        .spawn(move || writer.run(&receiver))
        .map_err(|error| BuildError(format!("cannot start the writer of {}: {error}", settings.path.display())))?;
    Ok(File { path: settings.path.clone(), sender })
}

impl Exporter for File {
    fn export(&self, batch: Batch) -> BoxFuture<'_, Outcome> {
        async move {
            let failed = |class, message: String| {
                Outcome::Failed(Failure { class, status: None, retry_after: None, too_large: false, message })
            };
            let mut line = match batch.payload.into_json(batch.signal).await {
                Ok(line) => line,
                Err(error) => return failed(error.class(), error.to_string()),
            };
            line.push(b'\n');
            let (answer, answered) = oneshot::channel();
            let sender = self.sender.clone();
            let waiting = Waiting { line, answer };
            let sent = match sender.try_send(waiting) {
                Err(mpsc::TrySendError::Full(waiting)) => {
                    tokio::task::spawn_blocking(move || sender.send(waiting).is_ok()).await.unwrap_or(false)
                }
                other => other.is_ok(),
            };
            let result = if sent { answered.await.ok() } else { None };
            match result {
                Some(Ok(())) => Outcome::Delivered,
                Some(Err(message)) => failed(Class::Retryable, message),
                None => failed(Class::Retryable, format!("the writer of {} has ended", self.path.display())),
            }
        }
        .boxed()
    }

    fn max_request_bytes(&self) -> u64 {
        MAX_REQUEST_BYTES
    }

    fn leaves_machine(&self) -> bool {
        false
    }

    fn local_path(&self) -> Option<&Path> {
        Some(&self.path)
    }
}

#[cfg(test)]
mod tests;
