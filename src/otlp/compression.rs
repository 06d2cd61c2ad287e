//! gzip, zstd and deflate with a bound on what comes out, checked while inflating.

use std::cell::RefCell;

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};

use super::Encoding;

/// Output grows in steps of this, each asked for before it is taken.
const STEP_LEN: usize = 256 << 10;
/// zstd frames that need a larger window (8 MiB) are refused: the window is memory that a client makes us hold.
const ZSTD_WINDOW_LOG_MAX: u32 = 23;
/// Fast levels: beside the network, the processor is what is scarce.
const GZIP_LEVEL: u32 = 1;
const ZSTD_LEVEL: i32 = 1;

/// Why a compressed body could not be inflated.
#[derive(Debug, thiserror::Error)]
pub enum InflateError {
    #[error("the body inflates beyond {limit_bytes} bytes")]
    TooLarge { limit_bytes: usize },
    #[error("malformed {encoding} body: {reason}")]
    Malformed { encoding: &'static str, reason: String },
    #[error("no memory left for the inflated body")]
    NoMemory,
}

/// Grows the output within the limit, asking first.
struct Output<'a> {
    out: &'a mut Vec<u8>,
    /// Bytes of `out` in use; what lies behind is room.
    len: usize,
    limit_bytes: usize,
    reserve: &'a mut dyn FnMut(usize) -> bool,
}

impl Output<'_> {
    /// At least one byte of room, or why not.
    fn room(&mut self) -> Result<&mut [u8], InflateError> {
        if self.len == self.out.len() {
            let step = STEP_LEN.max(self.len / 2).min(self.limit_bytes - self.len);
            if step == 0 {
                return Err(InflateError::TooLarge { limit_bytes: self.limit_bytes });
            }
            if !(self.reserve)(step) {
                return Err(InflateError::NoMemory);
            }
            self.out.reserve_exact(step);
            self.out.resize(self.len + step, 0);
        }
        Ok(&mut self.out[self.len..])
    }
}

/// Inflates `body` into `out` (cleared first), never beyond `limit_bytes`. `reserve` is asked before each growth
/// of `out` with the number of bytes to be added, and may refuse.
pub fn inflate(
    encoding: Encoding,
    body: &[u8],
    limit_bytes: usize,
    out: &mut Vec<u8>,
    reserve: &mut dyn FnMut(usize) -> bool,
) -> Result<(), InflateError> {
    out.clear();
    let mut output = Output { out, len: 0, limit_bytes, reserve };
    let result = match encoding {
        Encoding::Identity => {
            if body.len() > limit_bytes {
                return Err(InflateError::TooLarge { limit_bytes });
            }
            if !(output.reserve)(body.len()) {
                return Err(InflateError::NoMemory);
            }
            output.out.extend_from_slice(body);
            output.len = body.len();
            Ok(())
        }
        Encoding::Gzip => gunzip(body, &mut output),
        Encoding::Zstd => unzstd(body, &mut output),
    };
    let len = output.len;
    out.truncate(len);
    result
}

/// Inflates HTTP's `deflate`: a zlib stream (RFC 9110 8.4.1.2).
pub fn inflate_zlib(
    body: &[u8],
    limit_bytes: usize,
    out: &mut Vec<u8>,
    reserve: &mut dyn FnMut(usize) -> bool,
) -> Result<(), InflateError> {
    out.clear();
    let mut output = Output { out, len: 0, limit_bytes, reserve };
    let mut state = Decompress::new(true);
    let result = inflate_stream(&mut state, body, &mut output, "deflate").and_then(|rest| {
        if rest.is_empty() { Ok(()) } else { Err(malformed("deflate", "bytes follow the end of the stream")) }
    });
    let len = output.len;
    out.truncate(len);
    result
}

fn malformed(encoding: &'static str, reason: impl ToString) -> InflateError {
    InflateError::Malformed { encoding, reason: reason.to_string() }
}

/// Inflates one stream and returns what follows it.
fn inflate_stream<'b>(
    state: &mut Decompress,
    mut body: &'b [u8],
    output: &mut Output<'_>,
    encoding: &'static str,
) -> Result<&'b [u8], InflateError> {
    loop {
        // A stream of exactly the limit needs no room for its end; one byte beyond shows that there is more.
        let mut probe = [0];
        let at_limit = output.len == output.limit_bytes;
        let room = if at_limit { &mut probe[..] } else { output.room()? };
        let (in_before, out_before) = (state.total_in(), state.total_out());
        let status = state.decompress(body, room, FlushDecompress::None).map_err(|error| malformed(encoding, error))?;
        let (read, written) = ((state.total_in() - in_before) as usize, (state.total_out() - out_before) as usize);
        body = &body[read..];
        if at_limit && written > 0 {
            return Err(InflateError::TooLarge { limit_bytes: output.limit_bytes });
        }
        output.len += if at_limit { 0 } else { written };
        match status {
            Status::StreamEnd => return Ok(body),
            Status::Ok | Status::BufError if read == 0 && written == 0 => {
                return Err(malformed(encoding, "the stream is cut off"));
            }
            Status::Ok | Status::BufError => {}
        }
    }
}

thread_local! {
    static INFLATE: RefCell<Decompress> = RefCell::new(Decompress::new(false));
    static DEFLATE: RefCell<Compress> = RefCell::new(Compress::new(Compression::new(GZIP_LEVEL), false));
    static ZSTD_IN: RefCell<Option<zstd::zstd_safe::DCtx<'static>>> = const { RefCell::new(None) };
}

/// One or more gzip members (RFC 1952), each with its checksum.
fn gunzip(mut body: &[u8], output: &mut Output<'_>) -> Result<(), InflateError> {
    loop {
        let header = gzip_header_len(body).ok_or_else(|| malformed("gzip", "no whole gzip header"))?;
        let start = output.len;
        let rest = INFLATE.with_borrow_mut(|state| {
            state.reset(false);
            inflate_stream(state, &body[header..], output, "gzip")
        })?;
        let Some((trailer, rest)) = rest.split_first_chunk::<8>() else {
            return Err(malformed("gzip", "the stream is cut off"));
        };
        let member = &output.out[start..output.len];
        let mut crc = flate2::Crc::new();
        crc.update(member);
        let (crc_bytes, len_bytes) = trailer.split_at(4);
        if crc_bytes != crc.sum().to_le_bytes() || len_bytes != (member.len() as u32).to_le_bytes() {
            return Err(malformed("gzip", "the checksum does not match"));
        }
        if rest.is_empty() {
            return Ok(());
        }
        body = rest;
    }
}

fn gzip_header_len(body: &[u8]) -> Option<usize> {
    const HEADER_CRC: u8 = 2;
    const EXTRA: u8 = 4;
    const NAME: u8 = 8;
    const COMMENT: u8 = 16;
    let head = body.get(..10)?;
    if head[0] != 0x1F || head[1] != 0x8B || head[2] != 8 {
        return None;
    }
    let flags = head[3];
    let mut at = 10;
    if flags & EXTRA != 0 {
        let len = body.get(at..at + 2)?;
        at += 2 + usize::from(u16::from_le_bytes([len[0], len[1]]));
    }
    for flag in [NAME, COMMENT] {
        if flags & flag != 0 {
            at += body.get(at..)?.iter().position(|byte| *byte == 0)? + 1;
        }
    }
    if flags & HEADER_CRC != 0 {
        at += 2;
    }
    (at <= body.len()).then_some(at)
}

fn unzstd(body: &[u8], output: &mut Output<'_>) -> Result<(), InflateError> {
    use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, ResetDirective, get_error_name};
    let failed = |code| malformed("zstd", get_error_name(code));
    ZSTD_IN.with_borrow_mut(|slot| {
        let context = slot.get_or_insert_with(DCtx::create);
        context.reset(ResetDirective::SessionAndParameters).map_err(failed)?;
        context.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG_MAX)).map_err(failed)?;
        let mut input = InBuffer::around(body);
        loop {
            let mut probe = [0];
            let at_limit = output.len == output.limit_bytes;
            let room = if at_limit { &mut probe[..] } else { output.room()? };
            let before = input.pos();
            let mut buffer = OutBuffer::around(room);
            let hint = context.decompress_stream(&mut buffer, &mut input).map_err(failed)?;
            let written = buffer.pos();
            if at_limit && written > 0 {
                return Err(InflateError::TooLarge { limit_bytes: output.limit_bytes });
            }
            output.len += if at_limit { 0 } else { written };
            // A hint of 0 is the end of a frame; another may follow.
            if hint == 0 && input.pos() == body.len() {
                return Ok(());
            }
            if written == 0 && input.pos() == before {
                return Err(malformed("zstd", "the stream is cut off"));
            }
        }
    })
}

/// Compresses for sending: gzip level 1 or zstd level 1; `Identity` returns the bytes as they are.
pub fn compress(encoding: Encoding, body: &Bytes) -> std::io::Result<Bytes> {
    match encoding {
        Encoding::Identity => Ok(body.clone()),
        Encoding::Zstd => zstd::bulk::compress(body, ZSTD_LEVEL).map(Bytes::from),
        Encoding::Gzip => DEFLATE.with_borrow_mut(|state| {
            state.reset();
            // Magic, deflate, no flags, no time, "fastest", unknown system.
            let mut out = vec![0x1F, 0x8B, 8, 0, 0, 0, 0, 0, 4, 255];
            out.reserve(body.len() / 3 + 64);
            let mut rest = &body[..];
            loop {
                if out.capacity() - out.len() < 64 {
                    out.reserve(out.len().max(STEP_LEN));
                }
                let before = state.total_in();
                let status =
                    state.compress_vec(rest, &mut out, FlushCompress::Finish).map_err(std::io::Error::other)?;
                rest = &rest[(state.total_in() - before) as usize..];
                if status == Status::StreamEnd {
                    break;
                }
            }
            let mut crc = flate2::Crc::new();
            crc.update(body);
            out.extend_from_slice(&crc.sum().to_le_bytes());
            out.extend_from_slice(&(body.len() as u32).to_le_bytes());
            Ok(Bytes::from(out))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(encoding: Encoding, body: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
        let mut out = Vec::new();
        let mut asked = 0;
        let result = inflate(encoding, body, limit, &mut out, &mut |more| {
            asked += more;
            true
        });
        assert!(asked <= limit && out.len() <= limit, "asked for {asked} of {limit}");
        result.map(|()| out)
    }

    #[test]
    fn what_is_compressed_inflates_to_the_same_also_at_exactly_the_limit() {
        for len in [0, 1, 1000, STEP_LEN, STEP_LEN + 1, 3 << 20] {
            let body: Bytes = (0..len).map(|n| (n * n / 7) as u8).collect::<Vec<_>>().into();
            for encoding in [Encoding::Identity, Encoding::Gzip, Encoding::Zstd] {
                let packed = compress(encoding, &body).expect("compresses");
                assert_eq!(run(encoding, &packed, len.max(1)).expect("inflates"), body, "{encoding:?} {len}");
                if len > 1 {
                    assert!(
                        matches!(run(encoding, &packed, len - 1), Err(InflateError::TooLarge { .. })),
                        "{encoding:?} {len}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_bomb_is_cut_off_at_the_limit_while_inflating() {
        let zeros = Bytes::from(vec![0; 64 << 20]);
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let bomb = compress(encoding, &zeros).expect("compresses");
            assert!(bomb.len() < 1 << 20);
            assert!(matches!(run(encoding, &bomb, 1 << 20), Err(InflateError::TooLarge { .. })));
        }
    }

    #[test]
    fn a_cut_or_damaged_stream_is_malformed() {
        let body = Bytes::from((0..10_000u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>());
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let packed = compress(encoding, &body).expect("compresses");
            for len in [0, 1, 5, 11, packed.len() / 2, packed.len() - 1] {
                let result = run(encoding, &packed[..len], 1 << 20);
                assert!(matches!(result, Err(InflateError::Malformed { .. })), "{encoding:?} cut at {len}: {result:?}");
            }
            let mut garbage = packed.to_vec();
            garbage.extend_from_slice(b"and more");
            assert!(matches!(run(encoding, &garbage, 1 << 20), Err(InflateError::Malformed { .. })), "{encoding:?}");
        }
        let mut damaged = compress(Encoding::Gzip, &body).expect("compresses").to_vec();
        let at = damaged.len() - 6;
        damaged[at] ^= 1;
        assert!(matches!(run(Encoding::Gzip, &damaged, 1 << 20), Err(InflateError::Malformed { .. })));
    }

    #[test]
    fn several_members_are_one_body_and_a_refused_reservation_is_no_memory() {
        let (one, two) = (Bytes::from_static(b"one "), Bytes::from_static(b"two"));
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let mut packed = compress(encoding, &one).expect("compresses").to_vec();
            packed.extend_from_slice(&compress(encoding, &two).expect("compresses"));
            assert_eq!(run(encoding, &packed, 100).expect("inflates"), b"one two");
            let refused = inflate(encoding, &packed, 100, &mut Vec::new(), &mut |_| false);
            assert!(matches!(refused, Err(InflateError::NoMemory)));
        }
    }
}
