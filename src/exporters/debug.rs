//! The `debug` exporter: a line per request in the log.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::settings::Table;

use super::{Batch, BuildError, Context, Exporter, Outcome};

/// Of a request's JSON this much is logged with `verbosity: detailed`.
const DETAIL_BYTES_MAX: usize = 64 << 10;
const MAX_REQUEST_BYTES: u64 = 16_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Verbosity {
    #[default]
    Basic,
    Normal,
    Detailed,
}

#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub verbosity: Verbosity,
}

impl Settings {
    pub fn read(table: &mut Table<'_>) -> Settings {
        table.unsupported(&["sampling_initial", "sampling_thereafter", "use_internal_logger", "output_paths"]);
        let choices = [("basic", Verbosity::Basic), ("normal", Verbosity::Normal), ("detailed", Verbosity::Detailed)];
        Settings { verbosity: table.choice("verbosity", &choices).unwrap_or_default() }
    }
}

impl super::Settings for Settings {
    fn build(&self, context: &Context<'_>) -> Result<Arc<dyn Exporter>, BuildError> {
        Ok(Arc::new(build(context.id, self)?))
    }

    fn is_remote(&self) -> bool {
        false
    }
}

struct Debug {
    id: String,
    verbosity: Verbosity,
}

pub fn build(id: &str, settings: &Settings) -> Result<impl Exporter + use<>, BuildError> {
    Ok(Debug { id: id.to_owned(), verbosity: settings.verbosity })
}

impl Exporter for Debug {
    fn export(&self, batch: Batch) -> BoxFuture<'_, Outcome> {
        async move {
            let (signal, items, bytes) = (batch.signal.name(), batch.items, batch.payload.len());
            match self.verbosity {
                Verbosity::Basic => tracing::info!(exporter = %self.id, signal, items, "received"),
                Verbosity::Normal => tracing::info!(exporter = %self.id, signal, items, bytes, "received"),
                Verbosity::Detailed => match batch.payload.into_json(batch.signal).await {
                    Ok(mut text) => {
                        text.truncate(DETAIL_BYTES_MAX);
                        let detail = String::from_utf8_lossy(&text);
                        tracing::info!(exporter = %self.id, signal, items, bytes, %detail, "received");
                    }
                    Err(error) => tracing::warn!(exporter = %self.id, signal, items, %error, "received, not shown"),
                },
            }
            Outcome::Delivered
        }
        .boxed()
    }

    fn max_request_bytes(&self) -> u64 {
        MAX_REQUEST_BYTES
    }

    fn leaves_machine(&self) -> bool {
        false
    }
}
