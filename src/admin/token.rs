//! The bearer token of the admin API.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use http::HeaderMap;
use http::header::AUTHORIZATION;
use parking_lot::Mutex;
use subtle::ConstantTimeEq;

use crate::config::TokenPlan;
use crate::settings::Secret;

/// No token is longer.
const TOKEN_BYTES_MAX: u64 = 8 << 10;

/// What a request must show.
#[derive(Debug)]
pub struct Token {
    plan: TokenPlan,
    /// Why the file is of no use, so that it is said once and not at every request.
    problem: Mutex<Option<String>>,
}

impl Token {
    pub fn new(plan: TokenPlan) -> Token {
        Token { plan, problem: Mutex::default() }
    }

    /// Whether the request shows it. A file is read now: secrets are renewed under running processes. Without one that
    /// can be used nothing passes.
    pub async fn admits(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = self.expected().await else { return false };
        presented(headers).is_some_and(|shown| bool::from(shown.ct_eq(expected.0.as_bytes())))
    }

    /// The token of this moment; that its file is of no use is logged, once.
    pub async fn expected(&self) -> Option<Secret> {
        let path = match &self.plan {
            TokenPlan::Text(token) => return Some(token.clone()),
            TokenPlan::File(path) => path.clone(),
        };
        let reading = tokio::task::spawn_blocking(move || read(&path)).await;
        let result = reading.map_err(|error| error.to_string()).flatten();
        let problem = result.as_ref().err().cloned();
        let before = std::mem::replace(&mut *self.problem.lock(), problem.clone());
        match (problem, before) {
            (Some(problem), before) if before.as_ref() != Some(&problem) => {
                tracing::error!(
                    "forebay.admin.token_file: {problem}; every request to the admin API over TCP is refused until it can be read"
                );
            }
            (None, Some(_)) => tracing::info!("forebay.admin.token_file can be read again"),
            _ => {}
        }
        result.ok()
    }
}

fn read(path: &PathBuf) -> Result<Secret, String> {
    let failed = |error: io::Error| format!("{} cannot be read: {error}", path.display());
    let mut text = Vec::new();
    std::fs::File::open(path).map_err(failed)?.take(TOKEN_BYTES_MAX + 1).read_to_end(&mut text).map_err(failed)?;
    token_of(text, path)
}

fn token_of(text: Vec<u8>, path: &Path) -> Result<Secret, String> {
    let token = text.trim_ascii();
    let reason = if text.len() as u64 > TOKEN_BYTES_MAX {
        "is longer than a token can be"
    } else if token.is_empty() {
        "is empty"
    } else if !token.iter().all(u8::is_ascii_graphic) {
        "holds more than one word of visible ASCII"
    } else {
        return Ok(Secret(token.iter().copied().map(char::from).collect()));
    };
    Err(format!("{} {reason}", path.display()))
}

/// `Authorization: Bearer TOKEN`, there once.
fn presented(headers: &HeaderMap) -> Option<&[u8]> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    let (scheme, token) = value.as_bytes().split_at_checked(b"bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn headers(values: &[&'static str]) -> HeaderMap {
        values.iter().map(|value| (AUTHORIZATION, HeaderValue::from_static(value))).collect()
    }

    #[tokio::test]
    async fn only_the_whole_token_passes() {
        let token = Token::new(TokenPlan::Text(Secret("open-sesame".to_owned())));
        for shown in ["Bearer open-sesame", "bearer open-sesame", "BEARER  open-sesame "] {
            assert!(token.admits(&headers(&[shown])).await, "{shown}");
        }
        for shown in
            ["", "Bearer", "Bearer ", "Bearer open-sesam", "Bearer open-sesame2", "Basic open-sesame", "open-sesame"]
        {
            assert!(!token.admits(&headers(&[shown])).await, "{shown}");
        }
        assert!(!token.admits(&headers(&[])).await);
        assert!(!token.admits(&headers(&["Bearer open-sesame", "Bearer open-sesame"])).await, "there twice");
        assert!(!format!("{token:?}").contains("sesame"));
    }

    #[tokio::test]
    async fn a_file_counts_as_it_is_now_and_one_that_is_missing_or_empty_admits_nobody() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("token");
        let token = Token::new(TokenPlan::File(path.clone()));
        for shown in [&[][..], &["Bearer "], &["Bearer first"]] {
            assert!(!token.admits(&headers(shown)).await, "no file: {shown:?}");
        }
        for (content, admitted) in [("first\n", "Bearer first"), ("  second\r\n", "Bearer second")] {
            std::fs::write(&path, content).expect("written");
            assert!(token.admits(&headers(&[admitted])).await, "{content:?}");
            assert!(!token.admits(&headers(&["Bearer other"])).await);
        }
        let long = "x".repeat(TOKEN_BYTES_MAX as usize + 1);
        for content in ["", "\n", "two words", "umlaut-\u{e4}", &long] {
            std::fs::write(&path, content).expect("written");
            for shown in [&["Bearer "][..], &["Bearer second"], &["Bearer two words"], &["Bearer two"]] {
                assert!(!token.admits(&headers(shown)).await, "{content:.20?} and {shown:?}");
            }
        }
    }
}
