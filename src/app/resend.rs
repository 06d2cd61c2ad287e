//! Dead letters on their way out again: each alone, past the queues.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::admin::api::{Resend, Unsent};
use crate::config::Plan;
use crate::dlq::{Description, is_exporter, payload_protobuf};
use crate::exporters::{Batch, Class, Context, Exporter, Outcome};
use crate::otlp::Signal;
use crate::storage::dead_letters::Letter;

/// The exporters of a configuration, by id.
#[derive(Default)]
pub struct Exporters(pub BTreeMap<String, Arc<dyn Exporter>>);

impl Exporters {
    /// Builds those of a plan, for a command that runs without the process.
    pub fn of_plan(plan: &Plan, data_dir: &Path) -> Result<Exporters, super::Error> {
        let mut exporters = BTreeMap::new();
        for exporter in &plan.exporters {
            let context = Context {
                id: &exporter.id,
                data_dir,
                max_request_bytes: exporter.max_request_bytes,
                status_policy: &exporter.status_policy,
            };
            let built = exporter.settings.build(&context);
            let built = built.map_err(|error| super::Error::Exporter { id: exporter.id.clone(), reason: error.0 })?;
            exporters.insert(exporter.id.clone(), built);
        }
        Ok(Exporters(exporters))
    }

    fn known(&self) -> String {
        if self.0.is_empty() {
            return "none; name a configuration with --config".to_owned();
        }
        self.0.keys().cloned().collect::<Vec<_>>().join(", ")
    }
}

impl Resend for Exporters {
    fn exporter(&self, name: &str) -> Result<String, String> {
        let exact = self.0.contains_key(name).then(|| name.to_owned());
        exact
            .or_else(|| self.0.keys().find(|id| is_exporter(name, id)).cloned())
            .ok_or_else(|| format!("no exporter `{name}` is configured; there are: {}", self.known()))
    }

    fn resend<'a>(&'a self, letter: &'a Letter, to: &'a str) -> BoxFuture<'a, Result<(), Unsent>> {
        async move {
            let of_letter = |message: String| Unsent { message, is_destination: false };
            let exporter = self.0.get(to).ok_or_else(|| of_letter(format!("no exporter `{to}` is configured")))?;
            let signal = Signal::from_u8(letter.row.signal)
                .ok_or_else(|| of_letter("its signal is unknown to this version".to_owned()))?;
            let description = Description::from_bytes(&letter.description).ok();
            let batch = Batch {
                signal,
                items: u64::from(letter.row.items),
                payload: bytes::Bytes::from(payload_protobuf(letter).map_err(of_letter)?).into(),
                metadata: description.map(|description| description.metadata()).unwrap_or_default(),
            };
            match exporter.export(batch).await {
                Outcome::Delivered | Outcome::Partial { rejected_items: 0, .. } => Ok(()),
                Outcome::Partial { rejected_items, message } => {
                    Err(of_letter(format!("{rejected_items} items rejected: {message}")))
                }
                Outcome::Failed(failure) => {
                    Err(Unsent { is_destination: failure.class != Class::Batch, message: failure.message })
                }
            }
        }
        .boxed()
    }
}
