//! Certificates that are read again while the process runs.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use rustls::ClientConfig;

use crate::exporters::BuildError;

use super::{Pems, Settings, client_config};

/// A TLS set-up that follows its files where `reload_interval` says so.
pub struct Reloading {
    settings: Settings,
    alpn: &'static [&'static [u8]],
    state: Mutex<State>,
}

struct State {
    read_at: Instant,
    pems: Pems,
    config: Arc<ClientConfig>,
    version: u64,
}

impl Reloading {
    /// Reads the files for the first time. `alpn`: protocols to offer; none where the client offers its own.
    pub fn new(settings: &Settings, alpn: &'static [&'static [u8]]) -> Result<Reloading, BuildError> {
        let pems = settings.load()?;
        let config = build(settings, &pems, alpn)?;
        let state = State { read_at: Instant::now(), pems, config, version: 0 };
        Ok(Reloading { settings: settings.clone(), alpn, state: Mutex::new(state) })
    }

    /// What holds for new connections, and a number that changes with it. Files that cannot be used leave the old
    /// set-up in force: a renewal may be half done.
    pub async fn current(self: &Arc<Self>) -> (u64, Arc<ClientConfig>) {
        let is_due = {
            let mut state = self.state.lock();
            let is_due = self.settings.reload_interval.is_some_and(|interval| state.read_at.elapsed() >= interval);
            if is_due {
                // One request reads; the others go on with what there is.
                state.read_at = Instant::now();
            }
            is_due
        };
        if is_due {
            let this = Arc::clone(self);
            let reading = tokio::task::spawn_blocking(move || this.read_again());
            match reading.await {
                Ok(Ok(true)) => tracing::info!("TLS certificates have changed and are used from now on"),
                Ok(Ok(false)) => {}
                Ok(Err(error)) => {
                    tracing::warn!(%error, "TLS certificates cannot be read again; the old ones are kept")
                }
                Err(error) => tracing::error!(%error, "the task that reads TLS certificates ended early"),
            }
        }
        self.last()
    }

    /// What was read last.
    pub fn last(&self) -> (u64, Arc<ClientConfig>) {
        let state = self.state.lock();
        (state.version, Arc::clone(&state.config))
    }

    fn read_again(&self) -> Result<bool, BuildError> {
        let pems = self.settings.load()?;
        if self.state.lock().pems == pems {
            return Ok(false);
        }
        let config = build(&self.settings, &pems, self.alpn)?;
        let mut state = self.state.lock();
        state.pems = pems;
        state.config = config;
        state.version += 1;
        Ok(true)
    }
}

fn build(settings: &Settings, pems: &Pems, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, BuildError> {
    let mut config = client_config(settings, pems)?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(config))
}
