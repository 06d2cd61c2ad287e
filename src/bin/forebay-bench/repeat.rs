//! One step of a record's way, so many times and nothing else, for a tool that counts instructions.

use crate::payload::Template;
use bytes::Bytes;
use clap::{Args, ValueEnum};
use forebay::otlp::{Encoding, Signal, compression, json, wire};
use forebay::storage::log::Observer;
use forebay::storage::{NewRecord, Options, RealDisk, StartAt, Store};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

const SPANS: usize = 1000;
const SPAN_BYTES: usize = 551;
/// Appends on their way to the disk at one time.
const IN_FLIGHT: u64 = 8;
/// The keeper's work depends on the time that passes; it is not counted.
const NO_CHECKPOINT: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Step {
    /// Check and count one request of a thousand 551-byte spans
    Scan,
    /// Read the same from JSON
    Json,
    /// Inflate the same from gzip
    Inflate,
    /// Make one record of 1 KiB durable
    Append1k,
    /// Make one record of 64 KiB durable
    Append64k,
}

#[derive(Debug, Args)]
pub struct Arguments {
    step: Step,
    times: u64,
    /// An empty directory for what is appended, which stays there
    #[arg(long)]
    data_dir: Option<PathBuf>,
}

pub fn main(arguments: &Arguments) -> Result<(), String> {
    let request = Bytes::from(Template::new(7, SPANS, SPAN_BYTES)?.render(1, 1));
    let times = 0..arguments.times;
    match arguments.step {
        Step::Scan => {
            for _ in times {
                wire::scan(Signal::Traces, black_box(&request)).map_err(|error| error.to_string())?;
            }
        }
        Step::Json => {
            let mut text = Vec::new();
            json::write_json(Signal::Traces, &request, &mut text).map_err(|error| error.to_string())?;
            for _ in times {
                black_box(json::to_protobuf(Signal::Traces, black_box(&text)).map_err(|error| error.to_string())?);
            }
        }
        Step::Inflate => {
            let packed = compression::compress(Encoding::Gzip, &request).map_err(|error| error.to_string())?;
            let mut out = Vec::new();
            for _ in times {
                compression::inflate(Encoding::Gzip, black_box(&packed), request.len(), &mut out, &mut |_| true)
                    .map_err(|error| error.to_string())?;
            }
        }
        Step::Append1k | Step::Append64k => {
            let dir = arguments.data_dir.as_deref().ok_or("appending needs --data-dir")?;
            let len = if matches!(arguments.step, Step::Append1k) { 1 << 10 } else { 64 << 10 };
            append(dir, &request.slice(..len), arguments.times)?;
        }
    }
    Ok(())
}

struct Unobserved;
impl Observer for Unobserved {}

fn append(dir: &Path, payload: &Bytes, times: u64) -> Result<(), String> {
    let options = Options { checkpoint_interval: NO_CHECKPOINT, ..Options::default() };
    let (store, _) =
        Store::open(Arc::new(RealDisk), dir, &options, Arc::new(Unobserved)).map_err(|error| error.to_string())?;
    let log = store.queue("traces", &[("x".to_owned(), StartAt::End)]).map_err(|error| error.to_string())?;
    let mut left = times;
    while left > 0 {
        let mut pending = Vec::new();
        for _ in 0..left.min(IN_FLIGHT) {
            let record = NewRecord {
                signal: Signal::Traces as u8,
                encoding: Encoding::Identity as u8,
                items: 1,
                raw_len: payload.len() as u32,
                received_unix_ns: 1,
                metadata: Bytes::new(),
                payload: payload.clone(),
                guard: Arc::new(()),
            };
            let reservation = log.reserve(record.weight()).map_err(|full| full.to_string())?;
            pending.push(log.append(reservation, record));
        }
        left -= pending.len() as u64;
        for answer in pending {
            let answer = answer.blocking_recv().map_err(|error| error.to_string())?;
            let _receipt = answer.map_err(|error| error.to_string())?;
        }
    }
    // Closing would wait for the keeper, which sleeps.
    std::process::exit(0)
}
