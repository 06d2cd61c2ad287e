//! Where our own log goes: standard error, as text for people or JSON for collectors.

use tracing_subscriber::EnvFilter;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEncoding {
    Console,
    Json,
}

/// Installs the process's log. `RUST_LOG` wins over `level`. A second call changes nothing.
pub fn init_logs(level: &str, encoding: LogEncoding) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(format!("{level},h2=warn,hyper=warn,rustls=warn,sled=warn")));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()));
    // Only the first call can succeed; a test process calls it many times.
    let _ = match encoding {
        LogEncoding::Console => builder.try_init(),
        LogEncoding::Json => builder.json().flatten_event(true).try_init(),
    };
}
