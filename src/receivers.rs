//! What comes in. A receiver answers success only with a [`crate::queue::Accepted`], which only a sync can make.
//!
//! | file | what |
//! |---|---|
//! | `otlp` | settings, binding and serving of the `otlp` receiver |
//! | `otlp/http`, `otlp/grpc` | the two transports: framing, statuses, nothing else |
//! | `body` | bodies within their limit and the memory budget, in bounded time |
//! | `ingest` | inflate, validate, offer: the same for both transports |
//! | `listen` | opening ports, with errors that say what to do |
//! | `serve` | connections: bounded, closed when idle or old, ended in order |
//! | `status` | `google.rpc.Status` in both encodings |

pub mod body;
pub mod ingest;
pub mod listen;
pub mod otlp;
pub mod serve;
pub mod status;

use crate::settings::Kind;

/// Every kind of receiver: configuration, `components` and the process take their names from this list.
pub const KINDS: &[Kind<Settings>] = &[Kind {
    name: "otlp",
    aliases: &[],
    summary: "OTLP over gRPC and HTTP",
    read: |table| Settings::Otlp(otlp::Settings::read(table)),
}];

/// Settings of one receiver, by kind.
#[derive(Clone, Debug)]
pub enum Settings {
    Otlp(otlp::Settings),
}

impl Settings {
    /// Opens the ports.
    pub async fn bind(&self, id: &str) -> Result<otlp::Bound, listen::BindError> {
        match self {
            Settings::Otlp(settings) => otlp::bind(id, settings.clone()).await,
        }
    }
}
