//! A flag that a thread can wait for.

use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

#[derive(Default)]
pub struct Signal {
    raised: Mutex<bool>,
    changed: Condvar,
}

impl Signal {
    pub fn raise(&self) {
        let mut raised = self.raised.lock();
        if !*raised {
            *raised = true;
            self.changed.notify_all();
        }
    }

    /// Waits until it is raised or the time is over, lowers it, and says whether it was raised.
    pub fn wait(&self, timeout: Option<Duration>) -> bool {
        let mut raised = self.raised.lock();
        match timeout {
            Some(timeout) => {
                let deadline = Instant::now() + timeout;
                while !*raised && !self.changed.wait_until(&mut raised, deadline).timed_out() {}
            }
            None => {
                while !*raised {
                    self.changed.wait(&mut raised);
                }
            }
        }
        std::mem::take(&mut *raised)
    }
}
