//! # Forebay: the map
//!
//! An OpenTelemetry collector and forwarder with one promise, *at-least-once*: what it has acknowledged is synced
//! to disk and stays there until every destination has taken it.
//!
//! ```text
//! client ─▶ receivers ─▶ gates, queue::Intake ══▶ storage::log writer thread: append · one fdatasync per group
//!                            ◀══ Durable ══                                        [durable boundary]
//! 200/OK ◀── Accepted(Durable)
//!                           segment log  ◀── sled: catalogue and cursors, witness beside it
//! pipeline:  Lease ─▶ batch ─▶ exporters::Exporter ─▶ Outcome ─▶ retry │ hold │ Settled ─▶ cursor
//! ```
//!
//! Each module uses only what stands to its right (a test in `tests/layering.rs` holds it):
//!
//! `main → cli → app → admin, config, receivers, pipeline, exporters → dlq, dedup → queue → storage → otlp`; `settings` and
//! `telemetry` are leaves that anybody may use.
//!
//! | room | what it holds |
//! |---|---|
//! | [`cli`] | the commands |
//! | [`app`] | start and stop order of one process |
//! | [`admin`] | metrics page, health endpoints, admin API |
//! | [`config`] | files as written → validated plan, all errors at once |
//! | [`receivers`] | OTLP over gRPC and HTTP; answers success only with [`queue::Accepted`] |
//! | [`dedup`] | seen before: the gates of the queues, exact sets, fingerprints on disk |
//! | [`pipeline`] | one delivery loop per exporter: lease, batch, export, retry, hold, settle |
//! | [`exporters`] | the trait, its outcomes, and one file per destination kind |
//! | [`dlq`] | dead letters: parked with their reason, until somebody decides |
//! | [`queue`] | intake, leases and settling over the log; byte budgets |
//! | [`storage`] | segment log, catalogue, witness, recovery, disk; knows no metrics |
//! | [`otlp`] | bounded wire scan, cutting items out, JSON ↔ protobuf, compression |
//! | [`settings`] | positioned configuration tree and its typed reader |
//! | [`telemetry`] | counters and histograms; log set-up |

pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod dedup;
pub mod dlq;
pub mod exporters;
pub mod otlp;
pub mod pipeline;
pub mod queue;
pub mod receivers;
pub mod settings;
pub mod storage;
pub mod telemetry;
