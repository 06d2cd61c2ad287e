//! Whether the process may be sent traffic.

use std::time::Instant;

use parking_lot::Mutex;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    Starting,
    Running,
    Stopping,
}

type Check = Box<dyn Fn() -> Result<(), String> + Send + Sync>;

/// Back-pressure is no illness: a sidecar's readiness is its pod's. Only starting, stopping and a failed disk are.
pub struct Health {
    started: Instant,
    state: Mutex<State>,
}

struct State {
    phase: Phase,
    disk: Check,
    capacity: Check,
}

impl Default for Health {
    fn default() -> Health {
        let state = State { phase: Phase::Starting, disk: Box::new(|| Ok(())), capacity: Box::new(|| Ok(())) };
        Health { started: Instant::now(), state: Mutex::new(state) }
    }
}

impl Health {
    pub fn set_phase(&self, phase: Phase) {
        self.state.lock().phase = phase;
    }

    /// How to ask whether the disk has failed, and whether a request could be made durable now.
    pub fn set_checks(
        &self,
        disk: impl Fn() -> Result<(), String> + Send + Sync + 'static,
        capacity: impl Fn() -> Result<(), String> + Send + Sync + 'static,
    ) {
        let mut state = self.state.lock();
        state.disk = Box::new(disk);
        state.capacity = Box::new(capacity);
    }

    pub fn uptime_s(&self) -> u64 {
        self.started.elapsed().as_secs()
    }

    /// Ok, or why not.
    pub fn ready(&self, with_capacity: bool) -> Result<(), String> {
        let state = self.state.lock();
        match state.phase {
            Phase::Starting => return Err("starting: the queues are being recovered".to_owned()),
            Phase::Stopping => return Err("stopping".to_owned()),
            Phase::Running => {}
        }
        (state.disk)()?;
        if with_capacity { (state.capacity)() } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_means_running_with_a_working_disk_and_capacity_only_where_asked() {
        let health = Health::default();
        assert!(health.ready(false).is_err());
        health.set_phase(Phase::Running);
        assert!(health.ready(true).is_ok());
        health.set_checks(|| Ok(()), || Err("full".to_owned()));
        assert!(health.ready(false).is_ok());
        assert_eq!(health.ready(true), Err("full".to_owned()));
        health.set_checks(|| Err("the disk failed".to_owned()), || Ok(()));
        assert_eq!(health.ready(false), Err("the disk failed".to_owned()));
        health.set_phase(Phase::Stopping);
        assert_eq!(health.ready(false), Err("stopping".to_owned()));
    }
}
