//! Forebay as a whole process between a load and a sink.

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use clap::Args;
use rustix::thread::CpuSet;
use tokio::net::TcpListener;

use crate::load::{self, Protocol};
use crate::payload::Compression;
use crate::sink::{self, Counts};

const START_TIMEOUT: Duration = Duration::from_secs(20);
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Clone, Debug, Args)]
pub struct Options {
    /// The program to measure; default: `forebay` beside this one.
    #[arg(long)]
    forebay: Option<PathBuf>,
    /// Where its data directory goes; a file system on the disk to be measured.
    #[arg(long, default_value = "target/bench-data")]
    dir: PathBuf,
    /// Forebay on the first processor, load and sink on the second.
    #[arg(long)]
    pin: bool,
    #[arg(long, default_value_t = 8.0)]
    seconds: f64,
    #[arg(long, default_value_t = 551)]
    span_bytes: usize,
    #[arg(long, default_value_t = 1000)]
    spans_per_request: usize,
    #[arg(long, default_value_t = 8)]
    connections: usize,
    /// Only the first case: HTTP without compression.
    #[arg(long)]
    quick: bool,
    /// A line of JSON per case instead of the table.
    #[arg(long)]
    json: bool,
}

struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        // Already ended in the ordinary case.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn main(options: &Options) -> Result<(), Box<dyn Error>> {
    if options.pin {
        let mut second = CpuSet::new();
        second.set(1);
        rustix::thread::sched_setaffinity(None, &second)?;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut cases = vec![(Protocol::Http, Compression::None)];
    if !options.quick {
        cases.extend([
            (Protocol::Http, Compression::Gzip),
            (Protocol::Http, Compression::Zstd),
            (Protocol::Grpc, Compression::None),
            (Protocol::Grpc, Compression::Gzip),
            (Protocol::Grpc, Compression::Zstd),
        ]);
    }
    if !options.json {
        println!(
            "| protocol | compression | spans/s | CPU-s per million | ack p50 ms | ack p99 ms | peak RSS MiB | drained after s |"
        );
        println!("|---|---|---|---|---|---|---|---|");
    }
    for (protocol, compression) in cases {
        runtime.block_on(case(options, protocol, compression))?;
    }
    Ok(())
}

async fn case(options: &Options, protocol: Protocol, compression: Compression) -> Result<(), Box<dyn Error>> {
    let counts = Arc::new(Counts::default());
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let sink_address = listener.local_addr()?;
    let sink = tokio::spawn(sink::serve(listener, Arc::clone(&counts)));
    fs::create_dir_all(&options.dir)?;
    let data_dir = options.dir.join(format!("run-{}", std::process::id()));
    let config = options.dir.join("bench.yaml");
    let ports = free_ports()?;
    fs::write(&config, configuration(&ports, sink_address.port()))?;
    let mut victim = start(options, &config, &data_dir)?;
    wait_ready(&mut victim, ports[2]).await?;

    let port = if protocol == Protocol::Http { ports[0] } else { ports[1] };
    let load_options = load::Options {
        protocol,
        endpoint: Some(format!("127.0.0.1:{port}")),
        compression,
        span_bytes: options.span_bytes,
        spans_per_request: options.spans_per_request,
        connections: options.connections,
        seconds: options.seconds,
    };
    let cpu_before = cpu_seconds(victim.0.id())?;
    let outcome = load::run(load_options).await?;
    let drain_started = Instant::now();
    wait_drained(&counts).await;
    // Quiet for a while is how an end shows; that while is not the drain's.
    let drained_s = drain_started.elapsed().saturating_sub(QUIET).as_secs_f64();
    let cpu = cpu_seconds(victim.0.id())? - cpu_before;
    let rss_mib = peak_rss_mib(victim.0.id())?;
    drop(victim);
    sink.abort();
    fs::remove_dir_all(&data_dir)?;

    let millions = outcome.acknowledged_spans as f64 / 1e6;
    let (p50, p99) = (outcome.latency.quantile_ms(0.5), outcome.latency.quantile_ms(0.99));
    let name = if protocol == Protocol::Http { "http" } else { "grpc" };
    if options.json {
        let row = serde_json::json!({
            "protocol": name, "compression": compression.name(), "spans_per_second": outcome.spans_per_second(),
            "cpu_seconds_per_million": cpu / millions, "ack_p50_ms": p50, "ack_p99_ms": p99, "peak_rss_mib": rss_mib,
            "refused_requests": outcome.refused_requests, "failed_requests": outcome.failed_requests,
            "drained_after_s": drained_s,
        });
        println!("{row}");
    } else {
        println!(
            "| {name} | {} | {:.0} | {:.2} | {p50:.1} | {p99:.1} | {rss_mib:.0} | {drained_s:.1} |",
            compression.name(),
            outcome.spans_per_second(),
            cpu / millions,
        );
    }
    if outcome.failed_requests + outcome.refused_requests > 0 {
        eprintln!("{} requests were refused, {} failed", outcome.refused_requests, outcome.failed_requests);
    }
    Ok(())
}

fn free_ports() -> std::io::Result<[u16; 3]> {
    let listeners = [(); 3].map(|()| std::net::TcpListener::bind("127.0.0.1:0"));
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(listeners) {
        *port = listener?.local_addr()?.port();
    }
    Ok(ports)
}

fn configuration(ports: &[u16; 3], sink_port: u16) -> String {
    let [http, grpc, health] = ports;
    format!(
        "receivers:\n  otlp:\n    protocols:\n      http: {{endpoint: 127.0.0.1:{http}}}\n      \
         grpc: {{endpoint: 127.0.0.1:{grpc}}}\n\
         exporters:\n  otlp_http:\n    endpoint: http://127.0.0.1:{sink_port}\n    compression: none\n\
         extensions:\n  health_check: {{endpoint: 127.0.0.1:{health}}}\n\
         service:\n  extensions: [health_check]\n  telemetry: {{metrics: {{level: none}}, logs: {{level: warn}}}}\n  \
         pipelines:\n    traces: {{receivers: [otlp], exporters: [otlp_http]}}\n"
    )
}

fn start(options: &Options, config: &Path, data_dir: &Path) -> Result<Victim, Box<dyn Error>> {
    let program = match &options.forebay {
        Some(program) => program.clone(),
        None => std::env::current_exe()?.with_file_name("forebay"),
    };
    // taskset is where Linux keeps it (util-linux).
    let mut command = if options.pin {
        let mut taskset = Command::new("taskset");
        taskset.args(["-c", "0"]).arg(&program);
        taskset
    } else {
        Command::new(&program)
    };
    command.arg("run").arg("--config").arg(config).arg("--data-dir").arg(data_dir).stdin(Stdio::null());
    let child = command.spawn().map_err(|error| format!("cannot start {}: {error}", program.display()))?;
    Ok(Victim(child))
}

async fn wait_ready(victim: &mut Victim, health_port: u16) -> Result<(), Box<dyn Error>> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let started = Instant::now();
    while started.elapsed() < START_TIMEOUT {
        if let Some(status) = victim.0.try_wait()? {
            return Err(format!("forebay ended at start: {status}").into());
        }
        if let Ok(mut stream) = tokio::net::TcpStream::connect(("127.0.0.1", health_port)).await {
            let mut answer = String::new();
            stream.write_all(b"GET /readyz HTTP/1.0\r\n\r\n").await?;
            stream.read_to_string(&mut answer).await?;
            if answer.contains(" 200 ") {
                return Ok(());
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Err("forebay was not ready in time".into())
}

const QUIET: Duration = Duration::from_millis(600);

async fn wait_drained(counts: &Counts) {
    let started = Instant::now();
    let mut last = (counts.bytes.load(Ordering::Relaxed), Instant::now());
    while started.elapsed() < DRAIN_TIMEOUT && last.1.elapsed() < QUIET {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let now = counts.bytes.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        }
    }
}

/// User and system time of all threads.
fn cpu_seconds(pid: u32) -> Result<f64, Box<dyn Error>> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after = stat.rsplit_once(')').ok_or("no stat")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks: u64 =
        fields.get(11).ok_or("no utime")?.parse::<u64>()? + fields.get(12).ok_or("no stime")?.parse::<u64>()?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

fn peak_rss_mib(pid: u32) -> Result<f64, Box<dyn Error>> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).ok_or("no VmHWM")?;
    Ok(line.split_whitespace().next().ok_or("no number")?.parse::<f64>()? / 1024.0)
}
