//! A destination for OTLP over HTTP/1.1 in one of many moods, that never takes some spans. It remembers what it has taken, and counts as taken what it
//! read whole, even where its answer then goes wrong: that is what makes duplicates.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use parking_lot::Mutex;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::Taken;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Well,
    /// Reads, and never answers.
    Silent,
    /// Takes, and closes the connection with a reset instead of an answer.
    ResetAfter,
    /// Resets before the request is read.
    ResetBefore,
    /// 429, with and without `Retry-After`.
    TooMany,
    TooManyWait,
    /// 503, with and without.
    Unavailable,
    UnavailableWait,
    Broken,
    /// 400 to everything, which is nobody's poison.
    Refusing,
    /// Takes, and answers one byte at a time, slower than anybody waits.
    SlowDrip,
    /// Takes, and ends in the middle of its answer.
    HalfAnswer,
    /// The port is closed.
    Dead,
}

pub const MOODS: [Mood; 13] = [
    Mood::Well,
    Mood::ResetAfter,
    Mood::Unavailable,
    Mood::Silent,
    Mood::Refusing,
    Mood::Well,
    Mood::TooManyWait,
    Mood::SlowDrip,
    Mood::Broken,
    Mood::HalfAnswer,
    Mood::TooMany,
    Mood::ResetBefore,
    Mood::UnavailableWait,
];
/// Single spans, and all of a client's request, that are refused in every mood.
const POISON_ONE_IN: u64 = 1009;
const POISON_REQUEST_ONE_IN: u64 = 701;

/// Whether the destination will never take the span of that name.
pub fn is_poison(name: &str) -> bool {
    let number: Option<u64> = name.strip_prefix("span-").and_then(|number| number.parse().ok());
    number.is_some_and(|number| {
        number % POISON_ONE_IN == 7 || (number / super::SPANS_PER_REQUEST) % POISON_REQUEST_ONE_IN == 3
    })
}

/// Closing the port needs another socket, so it comes by chance with the others.
const DEAD_ONE_IN: u64 = 8;

pub fn spans_of(body: &[u8]) -> Vec<Span> {
    let request = ExportTraceServiceRequest::decode(body).expect("an intact request");
    let scopes = request.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
    scopes.flat_map(|scope| scope.spans).collect()
}

pub struct Destination {
    pub address: SocketAddr,
    pub taken: Mutex<Taken>,
    mood: AtomicUsize,
    counts: [AtomicU64; 13],
    dead: AtomicU64,
    random: Mutex<fastrand::Rng>,
}

impl Destination {
    pub async fn start(seed: u64) -> Arc<Destination> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let destination = Arc::new(Destination {
            address: listener.local_addr().expect("address"),
            taken: Mutex::default(),
            mood: AtomicUsize::new(0),
            counts: Default::default(),
            dead: AtomicU64::new(0),
            random: Mutex::new(fastrand::Rng::with_seed(seed)),
        });
        tokio::spawn(Arc::clone(&destination).listen(listener));
        destination
    }

    /// Now and then the port is closed for the time of a mood.
    pub fn set(&self, mood: Mood) {
        let index = MOODS.iter().position(|other| *other == mood).unwrap_or(0);
        let dies = mood != Mood::Well && self.random.lock().u64(..DEAD_ONE_IN) == 0;
        self.mood.store(if dies { usize::MAX } else { index }, Ordering::SeqCst);
    }

    /// Requests that met each mood; refused connections cannot be counted, closed ports are.
    pub fn counts(&self) -> Vec<(Mood, u64)> {
        let mut counts: Vec<(Mood, u64)> = Vec::new();
        for (mood, count) in MOODS.iter().zip(&self.counts) {
            match counts.iter_mut().find(|(other, _)| other == mood) {
                Some((_, sum)) => *sum += count.load(Ordering::SeqCst),
                None => counts.push((*mood, count.load(Ordering::SeqCst))),
            }
        }
        counts.push((Mood::Dead, self.dead.load(Ordering::SeqCst)));
        counts
    }

    fn mood(&self) -> (usize, Mood) {
        let index = self.mood.load(Ordering::SeqCst);
        (index, MOODS.get(index).copied().unwrap_or(Mood::Dead))
    }

    async fn listen(self: Arc<Self>, listener: TcpListener) {
        let mut listener = Some(listener);
        loop {
            if self.mood().1 == Mood::Dead {
                if listener.take().is_some() {
                    self.dead.fetch_add(1, Ordering::SeqCst);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
                continue;
            }
            let Some(open) = &listener else {
                // Connections of the former life may still hold the port.
                let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
                socket.set_reuseaddr(true).expect("an option");
                listener = socket.bind(self.address).and_then(|()| socket.listen(128)).ok();
                if listener.is_none() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                continue;
            };
            if let Ok(Ok((stream, _))) = tokio::time::timeout(Duration::from_millis(5), open.accept()).await {
                tokio::spawn(Arc::clone(&self).serve(stream));
            }
        }
    }

    async fn serve(self: Arc<Self>, mut stream: TcpStream) {
        let mut buffer = Vec::new();
        // An error is the other side's end; it notices ours by itself.
        while let Ok(Some(body)) = read_request(&mut stream, &mut buffer).await {
            let (index, mood) = self.mood();
            if let Some(count) = self.counts.get(index) {
                count.fetch_add(1, Ordering::SeqCst);
            }
            if !self.answer(&mut stream, mood, &body).await.unwrap_or(false) {
                return;
            }
        }
    }

    fn take(&self, spans: Vec<Span>) {
        let mut taken = self.taken.lock();
        for span in spans {
            let bytes = span.encode_to_vec();
            taken.entry(span.name).or_insert((0, bytes)).0 += 1;
        }
    }

    /// Whether the connection goes on.
    async fn answer(&self, stream: &mut TcpStream, mood: Mood, body: &[u8]) -> std::io::Result<bool> {
        let ok = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 0\r\n\r\n";
        let refusal = |status: &str, header: &str| format!("HTTP/1.1 {status}\r\n{header}content-length: 0\r\n\r\n");
        let spans = spans_of(body);
        let takes = matches!(mood, Mood::Well | Mood::ResetAfter | Mood::SlowDrip | Mood::HalfAnswer);
        let mood = if takes && spans.iter().any(|span| is_poison(&span.name)) { Mood::Refusing } else { mood };
        let status = match mood {
            Mood::Well => {
                self.take(spans);
                ok.to_owned()
            }
            Mood::TooMany => refusal("429 Too Many Requests", ""),
            Mood::TooManyWait => refusal("429 Too Many Requests", "retry-after: 1\r\n"),
            Mood::Unavailable => refusal("503 Service Unavailable", ""),
            Mood::UnavailableWait => refusal("503 Service Unavailable", "retry-after: 1\r\n"),
            Mood::Broken => refusal("500 Internal Server Error", ""),
            Mood::Refusing => refusal("400 Bad Request", ""),
            Mood::Silent => {
                tokio::time::sleep(Duration::from_secs(2)).await;
                return Ok(false);
            }
            Mood::ResetBefore | Mood::Dead => {
                stream.set_zero_linger()?;
                return Ok(false);
            }
            Mood::ResetAfter => {
                self.take(spans);
                stream.set_zero_linger()?;
                return Ok(false);
            }
            Mood::SlowDrip => {
                self.take(spans);
                for byte in ok.bytes() {
                    stream.write_all(&[byte]).await?;
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                return Ok(true);
            }
            Mood::HalfAnswer => {
                self.take(spans);
                stream.write_all(&ok.as_bytes()[..30]).await?;
                return Ok(false);
            }
        };
        stream.write_all(status.as_bytes()).await?;
        Ok(true)
    }
}

/// The body of the next request; None at the end of the connection. Everything has a content length here.
async fn read_request(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> std::io::Result<Option<Vec<u8>>> {
    let mut piece = vec![0; 64 << 10];
    loop {
        if let Some(end) = buffer.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).to_ascii_lowercase();
            assert!(!head.contains("content-encoding: gzip"), "nothing is compressed on loopback");
            let len = head.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
            let len = len.expect("a content length");
            if buffer.len() >= end + 4 + len {
                let body = buffer[end + 4..end + 4 + len].to_vec();
                buffer.drain(..end + 4 + len);
                return Ok(Some(body));
            }
        }
        match stream.read(&mut piece).await? {
            0 => return Ok(None),
            read => buffer.extend_from_slice(&piece[..read]),
        }
    }
}
