//! The whole-process benchmark: load → forebay → sink, one case for each protocol and compression.
//!
//! A case starts a fresh forebay on a fresh data directory, loads it for a while, waits until everything that was
//! acknowledged has arrived at the sink, and reads the process's CPU time and peak memory. The CPU seconds cover
//! receiving, storing and forwarding.

mod process;

use crate::host;
use crate::load;
use crate::sink;
use crate::units::duration;
use crate::wire::{Compression, Protocol};
use clap::{Args, ValueEnum};
use process::Forebay;
use serde::Serialize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

const POLL_INTERVAL: Duration = Duration::from_millis(20);

#[derive(Clone, Debug, Args)]
pub struct Arguments {
    /// The binary to measure; the one beside this one without
    #[arg(long)]
    forebay: Option<PathBuf>,
    /// Where data directories are made and removed: a real disk; without, beside the binary
    #[arg(long)]
    data_root: Option<PathBuf>,
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["http", "grpc"])]
    protocol: Vec<Protocol>,
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["none", "gzip", "zstd"])]
    compression: Vec<Compression>,
    /// What Forebay looks for among earlier requests; off in compressed cases, whose load repeats itself
    #[arg(long, value_enum, default_value = "request")]
    dedup: Dedup,
    /// Further exporters of the same pipeline: `dead` reaches nobody, `slow` waits long for each answer
    #[arg(long, value_enum, value_delimiter = ',')]
    beside: Vec<Neighbour>,
    /// How long the slow one waits for each answer; ten requests at a time are on their way to it
    #[arg(long, value_parser = duration, default_value = "1s")]
    slow_answer: Duration,
    /// Cap of the queue, such as 256MiB; the neighbours give way at it (`on_full: drop`), the measured exporter does not
    #[arg(long)]
    max_size: Option<String>,
    /// Forebay on CPU 0, load and sink on CPU 1
    #[arg(long)]
    pin: bool,
    #[arg(long, default_value_t = 551)]
    span_bytes: usize,
    #[arg(long, default_value_t = 1000)]
    spans_per_request: usize,
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Spans a second; as fast as possible without
    #[arg(long)]
    rate: Option<f64>,
    /// Of each case
    #[arg(long, value_parser = duration, default_value = "10s")]
    duration: Duration,
    /// How long the sink may wait for the rest after the load ended
    #[arg(long, value_parser = duration, default_value = "60s")]
    drain: Duration,
    /// Print one line of JSON for each case instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Dedup {
    Off,
    Request,
    Span,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Neighbour {
    Dead,
    Slow,
}

#[derive(Debug, Serialize)]
struct Case {
    #[serde(flatten)]
    load: load::Report,
    /// Spans at the sink; equal to the acknowledged ones unless a request was sent twice.
    delivered_spans: u64,
    /// At the sink by the end of the load.
    delivered_spans_per_second: f64,
    /// What the slow neighbour took meanwhile.
    slow_spans_per_second: f64,
    /// From the end of the load until everything acknowledged had arrived.
    drain_seconds: f64,
    cpu_seconds: f64,
    cpu_seconds_per_million_spans: f64,
    rss_peak_mib: f64,
}

/// `forebay-bench run`
pub fn main(arguments: &Arguments) -> Result<(), String> {
    if !arguments.json {
        println!(
            "| case | spans/s | delivered/s | slow one/s | CPU-s per million | ack p50 ms | ack p99 ms | peak RSS MiB | drain s |"
        );
        println!("|---|---:|---:|---:|---:|---:|---:|---:|---:|");
    }
    let mut incomplete = false;
    for protocol in &arguments.protocol {
        for compression in &arguments.compression {
            let case = measure(arguments, *protocol, *compression)?;
            if case.delivered_spans < case.load.acked_spans {
                incomplete = true;
                eprintln!(
                    "{} of {} acknowledged spans arrived within {:?}",
                    case.delivered_spans, case.load.acked_spans, arguments.drain
                );
            }
            if let Some(error) = &case.load.last_error {
                eprintln!(
                    "{} refused, {} failed; last: {error}",
                    case.load.refused_requests, case.load.failed_requests
                );
            }
            if arguments.json {
                println!("{}", serde_json::to_string(&case).map_err(|error| error.to_string())?);
            } else {
                println!(
                    "| {} {} | {:.0} | {:.0} | {:.0} | {:.2} | {:.1} | {:.1} | {:.0} | {:.1} |",
                    protocol.name(),
                    compression.name(),
                    case.load.spans_per_second,
                    case.delivered_spans_per_second,
                    case.slow_spans_per_second,
                    case.cpu_seconds_per_million_spans,
                    case.load.ack_p50_ms,
                    case.load.ack_p99_ms,
                    case.rss_peak_mib,
                    case.drain_seconds,
                );
            }
        }
    }
    if incomplete { Err("not everything acknowledged was delivered in time".into()) } else { Ok(()) }
}

fn measure(arguments: &Arguments, protocol: Protocol, compression: Compression) -> Result<Case, String> {
    let ports: [u16; 7] = host::free_ports()?;
    let [http, grpc, sink_port, health, _metrics, slow_port, _dead] = ports;
    // A child and its threads run where the thread that starts them does.
    if arguments.pin {
        host::pin(0)?;
    }
    let dedup = if compression == Compression::None { arguments.dedup } else { Dedup::Off };
    let config = config(protocol, compression, dedup, arguments, ports);
    let mut forebay = Forebay::start(arguments.forebay.as_deref(), arguments.data_root.as_deref(), &config)?;
    if arguments.pin {
        host::pin(1)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start the runtime: {error}"))?;
    let case = runtime.block_on(async {
        let counters = Arc::new(sink::Counters::default());
        let listener = TcpListener::bind(("127.0.0.1", sink_port))
            .await
            .map_err(|error| format!("cannot listen on port {sink_port}: {error}"))?;
        sink::start(listener, Arc::clone(&counters), None)?;
        let slow_counters = Arc::new(sink::Counters::default());
        if arguments.beside.contains(&Neighbour::Slow) {
            let listener = TcpListener::bind(("127.0.0.1", slow_port))
                .await
                .map_err(|error| format!("cannot listen on port {slow_port}: {error}"))?;
            sink::start(listener, Arc::clone(&slow_counters), Some(arguments.slow_answer))?;
        }
        forebay.wait_until_ready(health).await?;
        let cpu_before = host::cpu_seconds(forebay.pid())?;
        let loading = Instant::now();
        let load = load::run(&load::Arguments {
            protocol,
            compression,
            endpoint: format!("http://127.0.0.1:{}", if protocol == Protocol::Http { http } else { grpc }),
            span_bytes: arguments.span_bytes,
            spans_per_request: arguments.spans_per_request,
            connections: arguments.connections,
            duration: arguments.duration,
            requests: None,
            rate: arguments.rate,
            timeout: Duration::from_secs(30),
            ledger: None,
            unique: false,
            threads: 1,
            json: true,
        })
        .await?;
        let load_seconds = loading.elapsed().as_secs_f64();
        let per_second = |counters: &sink::Counters| counters.spans.load(Relaxed) as f64 / load_seconds;
        let (delivered_spans_per_second, slow_spans_per_second) = (per_second(&counters), per_second(&slow_counters));
        let drain = Instant::now();
        while counters.spans.load(Relaxed) < load.acked_spans && drain.elapsed() < arguments.drain {
            forebay.still_runs()?;
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        let drain_seconds = drain.elapsed().as_secs_f64();
        let cpu_seconds = host::cpu_seconds(forebay.pid())? - cpu_before;
        let rss_peak_mib = host::peak_rss_bytes(forebay.pid())? as f64 / f64::from(1 << 20);
        Ok::<_, String>(Case {
            delivered_spans: counters.spans.load(Relaxed),
            delivered_spans_per_second,
            slow_spans_per_second,
            drain_seconds,
            cpu_seconds,
            cpu_seconds_per_million_spans: cpu_seconds * 1e6 / (load.acked_spans.max(1) as f64),
            rss_peak_mib,
            load,
        })
    });
    forebay.stop()?;
    case
}

/// The exporter speaks what the load speaks.
fn config(
    protocol: Protocol,
    compression: Compression,
    dedup: Dedup,
    arguments: &Arguments,
    ports: [u16; 7],
) -> String {
    let [http, grpc, sink, health, metrics, slow, dead] = ports;
    let exporter = match protocol {
        Protocol::Http => "otlp_http",
        Protocol::Grpc => "otlp_grpc",
    };
    let compression = compression.name();
    let requests = if dedup == Dedup::Off { "" } else { "traces" };
    let mut neighbours = String::new();
    let mut exporters = exporter.to_owned();
    let mut give_way = String::new();
    for neighbour in &arguments.beside {
        let (name, port) = match neighbour {
            Neighbour::Dead => ("dead", dead),
            Neighbour::Slow => ("slow", slow),
        };
        exporters.push_str(&format!(", {exporter}/{name}"));
        neighbours.push_str(&format!(
            "  {exporter}/{name}: {{endpoint: 'http://127.0.0.1:{port}', compression: {compression}}}\n"
        ));
        if arguments.max_size.is_some() {
            give_way.push_str(&format!("    {exporter}/{name}: {{on_full: drop}}\n"));
        }
    }
    let give_way = if give_way.is_empty() { give_way } else { format!("  exporters:\n{give_way}") };
    let cap = arguments.max_size.as_ref().map(|size| format!("  queue: {{max_size: {size}}}\n")).unwrap_or_default();
    let declared = if dedup == Dedup::Span { "processors: {dedup: }\n" } else { "" };
    let processors = if dedup == Dedup::Span { "dedup" } else { "" };
    format!(
        "receivers:
  otlp:
    protocols:
      http: {{endpoint: '127.0.0.1:{http}'}}
      grpc: {{endpoint: '127.0.0.1:{grpc}'}}
exporters:
  {exporter}:
    endpoint: 'http://127.0.0.1:{sink}'
    compression: {compression}
{neighbours}{declared}forebay:
  dedup: {{requests: [{requests}]}}
{cap}{give_way}extensions:
  health_check: {{endpoint: '127.0.0.1:{health}'}}
service:
  extensions: [health_check]
  pipelines:
    traces: {{receivers: [otlp], processors: [{processors}], exporters: [{exporters}]}}
  telemetry:
    logs: {{level: warn}}
    metrics: {{address: '127.0.0.1:{metrics}'}}
"
    )
}
