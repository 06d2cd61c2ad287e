//! A network between two processes that can be cut, slowed and healed: it forwards TCP, byte for byte, as its fault says.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

const CHUNK_BYTES: usize = 16 << 10;
const SLOW_CHUNK: Duration = Duration::from_millis(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Nothing passes; what was under way goes on when the network is healed.
    Frozen,
    /// Nothing passes, and connections that something wanted to pass on are forgotten: healed or not, they are silent.
    Forgotten,
    /// Requests pass, answers do not, ever, on connections that had one under way.
    Deaf,
    /// The answers' direction is closed at the next answer; requests go on.
    HalfClosed,
    /// A connection is reset in the middle of what the client sends.
    CutMidBody,
    /// Everything arrives, in drops.
    Slow,
}

pub const FAULTS: [Fault; 6] =
    [Fault::Frozen, Fault::Forgotten, Fault::Deaf, Fault::HalfClosed, Fault::CutMidBody, Fault::Slow];

pub struct Proxy {
    pub address: SocketAddr,
    fault: watch::Sender<Fault>,
    /// Chunks that met each of [`FAULTS`].
    met: [AtomicU64; FAULTS.len()],
}

impl Proxy {
    pub async fn start(target: SocketAddr) -> Arc<Proxy> {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("address");
        let proxy = Arc::new(Proxy { address, fault: watch::channel(Fault::None).0, met: Default::default() });
        let forwarding = Arc::clone(&proxy);
        tokio::spawn(async move {
            loop {
                let Ok((client, _)) = listener.accept().await else { return };
                // A backend that is not there closes the client's connection too.
                let Ok(server) = TcpStream::connect(target).await else { continue };
                let (from_client, to_client) = client.into_split();
                let (from_server, to_server) = server.into_split();
                let cut = CancellationToken::new();
                for (from, to, is_answer) in [(from_client, to_server, false), (from_server, to_client, true)] {
                    let (proxy, cut) = (Arc::clone(&forwarding), cut.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            () = cut.cancelled() => {}
                            () = proxy.forward(from, to, is_answer, &cut) => {}
                        }
                    });
                }
            }
        });
        proxy
    }

    pub fn set(&self, fault: Fault) {
        self.fault.send_replace(fault);
    }

    pub fn met(&self) -> Vec<(Fault, u64)> {
        FAULTS.iter().zip(&self.met).map(|(fault, count)| (*fault, count.load(Ordering::SeqCst))).collect()
    }

    async fn forward(&self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf, is_answer: bool, cut: &CancellationToken) {
        let mut chunk = vec![0; CHUNK_BYTES];
        let mut fault = self.fault.subscribe();
        loop {
            let read = match from.read(&mut chunk).await {
                Ok(read) if read > 0 => read,
                _ => return cut.cancel(),
            };
            let now = *fault.borrow_and_update();
            if let Some(index) = FAULTS.iter().position(|other| *other == now) {
                self.met[index].fetch_add(1, Ordering::SeqCst);
            }
            match now {
                Fault::None => {}
                Fault::Frozen => while *fault.borrow_and_update() == Fault::Frozen && fault.changed().await.is_ok() {},
                Fault::Forgotten => return std::future::pending().await,
                Fault::Deaf if is_answer => return std::future::pending().await,
                Fault::HalfClosed if is_answer => {
                    // The connection's end is then the client's to choose.
                    let _ = to.shutdown().await;
                    return std::future::pending().await;
                }
                Fault::Deaf | Fault::HalfClosed => {}
                Fault::CutMidBody if !is_answer => {
                    let _ = to.write_all(&chunk[..read / 2]).await;
                    return cut.cancel();
                }
                Fault::CutMidBody => {}
                Fault::Slow => tokio::time::sleep(SLOW_CHUNK).await,
            }
            if to.write_all(&chunk[..read]).await.is_err() {
                return cut.cancel();
            }
        }
    }
}
