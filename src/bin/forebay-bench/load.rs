//! Sends trace requests over keep-alive connections, one request in flight on each, and counts the answers.

mod client;
mod report;

use crate::payload::{Template, identity};
use crate::units::duration;
use crate::wire::{Compression, Protocol, frame};
use bytes::Bytes;
use clap::Args;
use client::{Answer, Client};
use report::Tally;
pub use report::{Identity, Report};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Distinct requests made beforehand: enough that compression and caches see no short cycle, and little memory.
const TEMPLATES: u64 = 16;
const CONNECTIONS_MAX: usize = 1024;
/// Wait before a connection is made again, and the longest wait that a refusal can ask for.
const RECONNECT_DELAY: Duration = Duration::from_millis(50);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    #[arg(long, value_enum, default_value = "http")]
    pub protocol: Protocol,
    #[arg(long, value_enum, default_value = "none")]
    pub compression: Compression,
    /// Where to send, such as http://127.0.0.1:4318; the path is added
    #[arg(long, default_value = "http://127.0.0.1:4318")]
    pub endpoint: String,
    /// Encoded size of one span
    #[arg(long, default_value_t = 551)]
    pub span_bytes: usize,
    #[arg(long, default_value_t = 1000)]
    pub spans_per_request: usize,
    /// Connections, each with one request in flight
    #[arg(long, default_value_t = 8)]
    pub connections: usize,
    /// How long to send
    #[arg(long, value_parser = duration, default_value = "10s")]
    pub duration: Duration,
    /// Stop after this many requests, whatever the time
    #[arg(long)]
    pub requests: Option<u64>,
    /// Spans a second altogether; latency then counts from the moment when a request was due. As fast as possible without
    #[arg(long)]
    pub rate: Option<f64>,
    /// How long to wait for one answer
    #[arg(long, value_parser = duration, default_value = "30s")]
    pub timeout: Duration,
    /// Append the identity of every acknowledged request, after its answer has come
    #[arg(long)]
    pub ledger: Option<PathBuf>,
    /// Compress every request anew so that its ids are unique; implied by --ledger. Without it, compressed requests
    /// repeat and the generator costs no compression
    #[arg(long)]
    pub unique: bool,
    #[arg(long, default_value_t = 1)]
    pub threads: usize,
    /// Print only JSON
    #[arg(long)]
    pub json: bool,
}

/// `forebay-bench load`
pub fn main(arguments: &Arguments) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(arguments.threads.max(1))
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let report = runtime.block_on(run(arguments))?;
    println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
    if !arguments.json {
        eprintln!("{}", report.summary());
    }
    Ok(())
}

/// Everything that the connections share.
struct Shared {
    arguments: Arguments,
    run: u64,
    templates: Vec<Template>,
    /// Compressed beforehand, one for each template, unless ids must be unique.
    ready: Vec<Bytes>,
    next: AtomicU64,
    started: Instant,
    ledger: Option<Mutex<File>>,
}

/// Runs one load to its end.
pub async fn run(arguments: &Arguments) -> Result<Report, String> {
    if arguments.connections == 0 || arguments.connections > CONNECTIONS_MAX {
        return Err(format!("--connections is {}; take 1 to {CONNECTIONS_MAX}", arguments.connections));
    }
    if arguments.rate.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
        return Err("--rate must be above 0".into());
    }
    let seeds = 0..TEMPLATES.min(arguments.requests.unwrap_or(TEMPLATES)).max(1);
    let templates = seeds
        .map(|seed| Template::new(seed, arguments.spans_per_request, arguments.span_bytes))
        .collect::<Result<Vec<Template>, String>>()?;
    let run = fastrand::u64(1..);
    let unique = arguments.unique || arguments.ledger.is_some() || arguments.compression == Compression::None;
    let ready = if unique {
        Vec::new()
    } else {
        (0..)
            .zip(&templates)
            .map(|(number, template)| body(arguments, template.render(run, number)))
            .collect::<Result<_, _>>()?
    };
    let ledger = match &arguments.ledger {
        None => None,
        Some(path) => Some(Mutex::new(
            File::options()
                .create(true)
                .append(true)
                .open(path)
                .map_err(|error| format!("cannot open the ledger {}: {error}", path.display()))?,
        )),
    };
    let shared = Arc::new(Shared {
        arguments: arguments.clone(),
        run,
        templates,
        ready,
        next: AtomicU64::new(0),
        started: Instant::now(),
        ledger,
    });
    let connections: Vec<_> =
        (0..arguments.connections).map(|_| tokio::spawn(connection(Arc::clone(&shared)))).collect();
    let mut tally = Tally::new();
    for connection in connections {
        tally.merge(&connection.await.map_err(|error| format!("a connection's task failed: {error}"))??);
    }
    Ok(tally.report(
        Identity {
            protocol: arguments.protocol.name(),
            compression: arguments.compression.name(),
            connections: arguments.connections,
            spans_per_request: arguments.spans_per_request,
            span_bytes: arguments.span_bytes,
            run: format!("{run:016x}"),
        },
        shared.started.elapsed(),
    ))
}

/// One request as it goes over the wire.
fn body(arguments: &Arguments, message: Vec<u8>) -> Result<Bytes, String> {
    let message = forebay::otlp::compression::compress(arguments.compression.encoding(), &Bytes::from(message))
        .map_err(|error| format!("cannot compress: {error}"))?;
    match arguments.protocol {
        Protocol::Http => Ok(message),
        Protocol::Grpc => frame(&message, arguments.compression != Compression::None),
    }
}

impl Shared {
    /// The number of the next request and when it is due; None when the load is over.
    fn claim(&self) -> Option<(u64, Instant)> {
        let arguments = &self.arguments;
        if self.started.elapsed() >= arguments.duration {
            return None;
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        if arguments.requests.is_some_and(|requests| number >= requests) {
            return None;
        }
        let due = match arguments.rate {
            None => Instant::now(),
            Some(rate) => {
                let offset = Duration::try_from_secs_f64(number as f64 * arguments.spans_per_request as f64 / rate);
                self.started + offset.unwrap_or(Duration::MAX).min(arguments.duration)
            }
        };
        (due < self.started + arguments.duration).then_some((number, due))
    }

    fn request(&self, number: u64) -> Result<Bytes, String> {
        let at = (number % self.templates.len() as u64) as usize;
        match self.ready.get(at) {
            Some(ready) => Ok(ready.clone()),
            None => body(&self.arguments, self.templates[at].render(self.run, number)),
        }
    }

    fn acknowledged(&self, number: u64) -> Result<(), String> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        let line = format!("{} {}\n", identity(self.run, number), self.arguments.spans_per_request);
        let mut file = ledger.lock().map_err(|_| "the ledger's lock is poisoned".to_owned())?;
        file.write_all(line.as_bytes()).map_err(|error| format!("cannot write the ledger: {error}"))
    }
}

async fn connection(shared: Arc<Shared>) -> Result<Tally, String> {
    let mut tally = Tally::new();
    let mut open: Option<Client> = None;
    while let Some((number, due)) = shared.claim() {
        let body = shared.request(number)?;
        if due > Instant::now() {
            tokio::time::sleep_until(due.into()).await;
        }
        let begun = if shared.arguments.rate.is_some() { due } else { Instant::now() };
        let mut client = match open.take() {
            Some(client) => client,
            None => match Client::connect(&shared.arguments).await {
                Ok(client) => client,
                Err(error) => {
                    tally.errors += 1;
                    tally.last_error = Some(error);
                    tokio::time::sleep(RECONNECT_DELAY).await;
                    continue;
                }
            },
        };
        let bytes = body.len() as u64;
        match tokio::time::timeout(shared.arguments.timeout, client.send(body)).await {
            Ok(Ok(Answer::Acknowledged)) => {
                shared.acknowledged(number)?;
                tally.acknowledged(shared.templates[0].spans(), bytes, begun.elapsed());
                open = Some(client);
            }
            Ok(Ok(Answer::Refused { what, retry_after })) => {
                tally.refused += 1;
                tally.last_error = Some(what);
                open = Some(client);
                tokio::time::sleep(retry_after.unwrap_or(RECONNECT_DELAY).min(RETRY_AFTER_MAX)).await;
            }
            Ok(Err(error)) => {
                tally.errors += 1;
                tally.last_error = Some(error);
            }
            Err(_) => {
                tally.errors += 1;
                tally.last_error = Some(format!("no answer within {:?}", shared.arguments.timeout));
            }
        }
    }
    Ok(tally)
}
