//! Work over the bytes of a batch: short work stays on the async worker, long work leaves it.

use std::io;

/// Over more bytes than this the work goes to the blocking threads: it takes milliseconds there, and others need the worker.
const INLINE_BYTES_MAX: u64 = 1 << 20;

/// Does `work` over so many bytes. Err: it panicked, or the runtime is ending.
pub async fn run<T: Send + 'static>(bytes: u64, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    if bytes <= INLINE_BYTES_MAX {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread::current;

    #[tokio::test]
    async fn long_work_leaves_the_worker_and_its_panic_is_an_error() {
        let here = current().id();
        assert_eq!(run(1, || current().id()).await.expect("done"), here);
        assert_ne!(run(INLINE_BYTES_MAX + 1, || current().id()).await.expect("done"), here);
        assert!(run(INLINE_BYTES_MAX + 1, || assert_eq!(1, 2)).await.is_err());
    }
}
