//! One forebay under measurement: started, watched, stopped, its directory removed.

use rustix::process::{Pid, Signal, kill_process};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const READY_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(30);
const POLL_INTERVAL: Duration = Duration::from_millis(20);
const ASK_TIMEOUT: Duration = Duration::from_secs(1);

pub struct Forebay {
    child: Child,
    directory: PathBuf,
}

impl Forebay {
    pub fn start(binary: Option<&Path>, root: Option<&Path>, config: &str) -> Result<Forebay, String> {
        let own = std::env::current_exe().map_err(|error| format!("cannot find this binary: {error}"))?;
        let beside = own.parent().unwrap_or(Path::new("."));
        let binary = binary.map_or_else(|| beside.join("forebay"), Path::to_path_buf);
        let root = root.unwrap_or(beside);
        let directory = root.join(format!("forebay-bench-{}-{:08x}", std::process::id(), fastrand::u32(..)));
        let failed = |what: &str, error: std::io::Error| format!("cannot {what} {}: {error}", directory.display());
        std::fs::create_dir(&directory).map_err(|error| failed("create", error))?;
        let config_path = directory.join("forebay.yaml");
        let written = std::fs::write(&config_path, config).map_err(|error| failed("write into", error));
        let started = written.and_then(|()| {
            Command::new(&binary)
                .arg("run")
                .arg("--config")
                .arg(&config_path)
                .arg("--data-dir")
                .arg(directory.join("data"))
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()
                .map_err(|error| format!("cannot start {}: {error}; name it with --forebay", binary.display()))
        });
        match started {
            Ok(child) => Ok(Forebay { child, directory }),
            Err(error) => {
                remove(&directory);
                Err(error)
            }
        }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn still_runs(&mut self) -> Result<(), String> {
        match self.child.try_wait() {
            Ok(None) => Ok(()),
            Ok(Some(status)) => Err(format!("forebay ended: {status}")),
            Err(error) => Err(format!("cannot watch forebay: {error}")),
        }
    }

    pub async fn wait_until_ready(&mut self, port: u16) -> Result<(), String> {
        let deadline = Instant::now() + READY_TIMEOUT;
        while Instant::now() < deadline {
            self.still_runs()?;
            let answer = tokio::task::spawn_blocking(move || is_ready(port)).await;
            if answer.is_ok_and(|result| result.unwrap_or(false)) {
                return Ok(());
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
        Err(format!("forebay was not ready within {READY_TIMEOUT:?}"))
    }

    /// SIGTERM, and SIGKILL when that takes too long.
    pub fn stop(mut self) -> Result<(), String> {
        self.still_runs()?;
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).ok_or("forebay has no process id")?;
        kill_process(pid, Signal::TERM).map_err(|error| format!("cannot stop forebay: {error}"))?;
        let deadline = Instant::now() + STOP_TIMEOUT;
        while Instant::now() < deadline {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return Ok(()),
                Ok(Some(status)) => return Err(format!("forebay stopped badly: {status}")),
                Ok(None) => std::thread::sleep(POLL_INTERVAL),
                Err(error) => return Err(format!("cannot watch forebay: {error}")),
            }
        }
        Err(format!("forebay did not stop within {STOP_TIMEOUT:?}"))
    }
}

impl Drop for Forebay {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            let ended = self.child.kill().and_then(|()| self.child.wait());
            if let Err(error) = ended {
                eprintln!("cannot kill forebay ({}): {error}", self.child.id());
            }
        }
        remove(&self.directory);
    }
}

fn remove(directory: &Path) {
    if let Err(error) = std::fs::remove_dir_all(directory) {
        eprintln!("cannot remove {}: {error}", directory.display());
    }
}

fn is_ready(port: u16) -> std::io::Result<bool> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(ASK_TIMEOUT))?;
    stream.set_write_timeout(Some(ASK_TIMEOUT))?;
    stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")?;
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    Ok(status.ends_with(b" 200"))
}
