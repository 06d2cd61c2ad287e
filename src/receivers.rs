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
