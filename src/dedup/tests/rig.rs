//! A store without threads, gates before its queues, and clients that wait or hang up.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::dedup::clock::Clock;
use crate::dedup::{Bounds, Dedup, Ground, Match, Restored, Wanted};
use crate::otlp::{Encoding, Signal, compression, wire};
use crate::queue::{Accepted, Budget, Intake, Offer, Refused, Router};
use crate::storage::catalog::encode_name;
use crate::storage::log::{Drive, Lost, Observer, Position};
use crate::storage::record::HEADER_LEN;
use crate::storage::segment::{self, HeaderPage, Identity};
use crate::storage::simulated::World;
use crate::storage::{Disk, Log, Options, StartAt, Store};

pub const WINDOW: Duration = Duration::from_secs(600);
pub const CURSOR: &str = "x";
const DIR: &str = "/volume/data";

pub type Answer = JoinHandle<Result<Accepted, Refused>>;

/// Which queues there are, and what each has before it.
#[derive(Clone, Copy, Debug)]
pub struct Want {
    pub queue: &'static str,
    pub signal: Signal,
    pub requests: bool,
    pub spans: Option<Match>,
}

pub const TRACES: Want = Want { queue: "traces", signal: Signal::Traces, requests: true, spans: None };

#[derive(Default)]
struct Forgetful(Arc<OnceLock<Arc<Dedup>>>);

impl Observer for Forgetful {
    fn giving_up(&self, queue: &str, sequences: std::ops::Range<u64>) {
        if let Some(dedup) = self.0.get() {
            dedup.forget(queue, sequences);
        }
    }

    fn damaged(&self, queue: &str, lost: &Lost) {
        self.giving_up(queue, lost.sequences.clone());
    }
}

pub struct Running {
    pub store: Arc<Store>,
    pub logs: Vec<Arc<Log>>,
    pub dedup: Arc<Dedup>,
    pub restored: BTreeMap<String, Restored>,
    router: Arc<Router>,
}

pub struct Rig {
    pub world: Arc<World>,
    pub clock: Clock,
    pub budget: Budget,
    wants: Vec<Want>,
    running: Option<Running>,
    runtime: Option<Runtime>,
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().build().expect("a runtime")
}

impl Rig {
    pub fn new(wants: &[Want]) -> Rig {
        Rig::seeded(1, wants)
    }

    pub fn seeded(seed: u64, wants: &[Want]) -> Rig {
        fastrand::seed(seed);
        let world = World::new(seed, 64 << 20);
        let disk = world.disk();
        disk.create_dir(Path::new("/volume")).expect("made");
        disk.sync_dir(Path::new("/")).expect("synced");
        let clock = Clock::set(crate::storage::unix_now_ns() / 1_000_000_000);
        let budget = Budget::new(64 << 20);
        let mut rig = Rig { world, clock, budget, wants: wants.to_vec(), running: None, runtime: Some(runtime()) };
        rig.start().expect("starts");
        rig
    }

    /// Opens what the disk has.
    pub fn start(&mut self) -> Result<(), String> {
        let options = Options {
            max_size_bytes: Some(8 << 20),
            segment_bytes: Some(64 << 10),
            tail_bytes_max: 4 << 10,
            checkpoint_interval: Duration::ZERO,
            ..Options::default()
        };
        let told = Forgetful::default();
        let seen_before = Arc::clone(&told.0);
        let opened = Store::open_with(
            self.world.disk(),
            Path::new(DIR),
            &options,
            Arc::new(told),
            self.world.catalogs(),
            Drive::Caller,
        );
        let (store, _) = opened.map_err(|error| error.to_string())?;
        let queue = |want: &Want| store.queue(want.queue, &[(CURSOR.to_owned(), StartAt::Beginning)]);
        let logs = self.wants.iter().map(queue).collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        let bounds = Bounds { window: WINDOW, bytes_max: 1 << 20 };
        let wanted = self.wants.iter().zip(&logs).map(|(want, log)| Wanted {
            log: Arc::clone(log),
            signal: want.signal,
            requests: want.requests.then_some(bounds),
            spans: want.spans.map(|by| (by, bounds)),
        });
        let ground = Ground {
            disk: self.world.disk(),
            space: Arc::clone(store.space()),
            data_dir: DIR.into(),
            clock: self.clock.clone(),
            drive: Drive::Caller,
        };
        let opened = Dedup::open(ground, wanted.collect()).map_err(|error| error.to_string())?;
        let (dedup, restored) = opened.expect("some queue wants it");
        let mut router = Router::new();
        for (want, log) in self.wants.iter().zip(&logs) {
            router.add_behind(want.signal, Arc::clone(log), dedup.gate(want.queue));
        }
        let dedup = Arc::new(dedup);
        assert!(seen_before.set(Arc::clone(&dedup)).is_ok());
        self.running = Some(Running { store: Arc::new(store), logs, dedup, restored, router: Arc::new(router) });
        Ok(())
    }

    pub fn running(&self) -> &Running {
        self.running.as_ref().expect("it runs")
    }

    pub fn log(&self) -> &Arc<Log> {
        &self.running().logs[0]
    }

    pub fn restored(&self) -> Restored {
        self.running().restored[self.wants[0].queue]
    }

    /// The process is gone, with everything that it had in memory.
    fn end(&mut self) {
        // Tasks first: they hold what the process held.
        self.runtime = None;
        self.running = None;
        self.runtime = Some(runtime());
    }

    /// kill -9: what was written stays.
    pub fn kill(&mut self) {
        self.world.kill();
        self.reopen();
    }

    pub fn cut_power(&mut self) {
        self.world.cut_power(crate::storage::simulated::Fate::Any);
        self.reopen();
    }

    /// A new process on what the disk has.
    pub fn reopen(&mut self) {
        self.end();
        self.start().expect("starts again");
    }

    /// What the disk has is changed while nothing runs.
    pub fn restart_with(&mut self, change: impl FnOnce(&mut Vec<Want>)) {
        self.running().dedup.write(true);
        self.running().store.close();
        self.world.kill();
        self.end();
        change(&mut self.wants);
        self.start().expect("starts again");
    }

    pub fn offer(&self, signal: Signal, message: &[u8], encoding: Encoding, peer: Option<&str>) -> Answer {
        let running = self.running();
        let summary = wire::scan(signal, message).expect("valid");
        let marks = running.router.mark(signal, message, &summary, &self.budget).expect("memory");
        let payload = match encoding {
            Encoding::Identity => Bytes::copy_from_slice(message),
            encoding => compression::compress(encoding, &Bytes::copy_from_slice(message)).expect("compresses"),
        };
        let offer = Offer {
            signal,
            encoding,
            items: summary.items,
            raw_len: message.len() as u64,
            metadata: Vec::new(),
            permit: self.budget.try_reserve(payload.len() as u64).expect("memory"),
            payload,
            marks,
            peer: peer.map(|peer| peer.parse::<IpAddr>().expect("an address")),
        };
        let router = Arc::clone(&running.router);
        let answer = self.runtime().spawn(async move { router.offer(offer).await });
        self.turn();
        answer
    }

    pub fn traces(&self, message: &[u8]) -> Answer {
        self.offer(Signal::Traces, message, Encoding::Identity, None)
    }

    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().expect("a runtime")
    }

    /// Lets every task go as far as it can.
    pub fn turn(&self) {
        self.runtime().block_on(async {
            for _ in 0..50 {
                tokio::task::yield_now().await;
            }
        });
    }

    pub fn commit(&self) {
        for log in &self.running().logs {
            log.write_pending();
        }
        self.turn();
    }

    /// The answer, which must be there: how many were duplicates, or why not.
    pub fn answer(&self, answer: Answer) -> Result<u64, Refused> {
        assert!(answer.is_finished(), "no answer yet");
        self.runtime().block_on(answer).expect("no panic").map(|accepted| accepted.deduplicated())
    }

    /// Sends and commits; how many were duplicates.
    pub fn send(&self, message: &[u8]) -> u64 {
        let answer = self.traces(message);
        self.commit();
        self.commit();
        self.answer(answer).expect("accepted")
    }

    /// Flips a bit of that record's payload where it lies.
    pub fn damage(&self, log: &Log, sequence: u64) {
        let dir = Path::new(DIR).join("queues").join(encode_name(log.id()));
        self.world.set_oracle(true);
        let disk = self.world.disk();
        let found = disk.list(&dir).expect("listed").into_iter().find_map(|entry| {
            let id = segment::parse_file_name(&entry.name)?;
            let path = segment::path_in(&dir, id);
            let file = disk.open(&path).expect("opens");
            let HeaderPage::Valid(identity) = Identity::read(file.as_ref(), id).expect("read") else { return None };
            let records = segment::scan_all(&file, identity).expect("scanned").records;
            let located = records.into_iter().find(|located| located.header.sequence == sequence)?;
            Some((path, located.offset + HEADER_LEN as u64))
        });
        let (path, offset) = found.expect("it lies somewhere");
        self.world.flip(&path, offset, 3).expect("flipped");
        self.world.set_oracle(false);
    }

    /// Every message stored in a queue, inflated.
    pub fn stored(&self, log: &Log) -> Vec<(u64, Vec<u8>)> {
        self.world.set_oracle(true);
        let mut position = Position::at(0);
        let mut found = Vec::new();
        while position.sequence < log.durable_end() {
            let chunk = log.read_file(position, u64::MAX, usize::MAX).expect("reads");
            assert!(chunk.next.sequence > position.sequence);
            position = chunk.next;
            for record in chunk.records {
                let mut message = Vec::new();
                let encoding = Encoding::from_u8(record.encoding).expect("known");
                compression::inflate(encoding, &record.payload, 64 << 20, &mut message, &mut |_| true).expect("whole");
                assert_eq!(message.len(), record.raw_len as usize);
                let signal = Signal::from_u8(record.signal).expect("known");
                assert_eq!(wire::scan(signal, &message).expect("valid").items, u64::from(record.items));
                found.push((record.sequence, message));
            }
        }
        self.world.set_oracle(false);
        found
    }
}

pub fn span(trace: u8, id: u16, name: &str) -> Span {
    Span {
        trace_id: if trace == 0 { Vec::new() } else { vec![trace; 16] },
        span_id: if id == 0 { Vec::new() } else { [&[1; 6][..], &id.to_be_bytes()].concat() },
        name: name.to_owned(),
        ..Span::default()
    }
}

pub fn request(spans: Vec<Span>) -> Vec<u8> {
    let scope_spans = vec![ScopeSpans { spans, ..ScopeSpans::default() }];
    ExportTraceServiceRequest { resource_spans: vec![ResourceSpans { scope_spans, ..ResourceSpans::default() }] }
        .encode_to_vec()
}

pub fn names(message: &[u8]) -> Vec<String> {
    let request = ExportTraceServiceRequest::decode(message).expect("decodes");
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).map(|span| span.name).collect()
}
