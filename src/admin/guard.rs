//! Which requests reach the admin API over TCP, where browsers and other machines may come from too.

use std::sync::Arc;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::Response;
use http::header::{HOST, ORIGIN, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};

use crate::receivers::{body, listen};

use super::api::refuse;
use super::token::Token;

/// Lets through what shows the token; without one, what this machine itself asks.
pub fn guarded(router: Router, token: Option<Arc<Token>>) -> Router {
    router.layer(middleware::from_fn_with_state(token, check))
}

async fn check(State(token): State<Option<Arc<Token>>>, request: Request, next: Next) -> Response {
    match refusal(token.as_deref(), request.uri(), request.headers()).await {
        None => next.run(request).await,
        Some(refusal) => {
            body::discard_unread(request);
            refusal
        }
    }
}

async fn refusal(token: Option<&Token>, uri: &Uri, headers: &HeaderMap) -> Option<Response> {
    let authority = authority(uri, headers);
    // A page that resolves its own name to this machine still names itself here.
    if token.is_none() && !authority.as_deref().is_some_and(listen::is_loopback) {
        let error = "the request's Host is not this machine's loopback";
        let help = "ask for localhost or 127.0.0.1, or set forebay.admin.token";
        return Some(refuse(StatusCode::FORBIDDEN, error, help));
    }
    if !is_own_origin(authority.as_deref(), headers) {
        let error = "the request comes from a page of another origin";
        return Some(refuse(StatusCode::FORBIDDEN, error, "send it without an Origin header"));
    }
    if let Some(token) = token
        && !token.admits(headers).await
    {
        let help = "send `Authorization: Bearer TOKEN` with the token of forebay.admin";
        let mut refusal = refuse(StatusCode::UNAUTHORIZED, "the token is missing or wrong", help);
        refusal.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        return Some(refusal);
    }
    None
}

/// What the client calls this server, in lower case; None when it does not say so once.
fn authority(uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return None };
    let host = host.to_str().ok()?.to_ascii_lowercase();
    let is_same = uri.authority().is_none_or(|authority| authority.as_str().eq_ignore_ascii_case(&host));
    is_same.then_some(host)
}

fn is_own_origin(authority: Option<&str>, headers: &HeaderMap) -> bool {
    headers.get_all(ORIGIN).iter().all(|origin| {
        let origin = origin.to_str().unwrap_or_default().to_ascii_lowercase();
        // A proxy before this one may speak TLS.
        let named = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
        named.is_some() && named == authority
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::TokenPlan;
    use crate::settings::Secret;
    use http::HeaderName;

    async fn status(token: Option<&Token>, uri: &'static str, headers: &[(HeaderName, &'static str)]) -> Option<u16> {
        let headers =
            headers.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect::<HeaderMap>();
        refusal(token, &Uri::from_static(uri), &headers).await.map(|response| response.status().as_u16())
    }

    #[tokio::test]
    async fn without_a_token_only_this_machine_by_its_own_names_is_let_in() {
        for host in ["localhost:13134", "LOCALHOST", "127.0.0.1:13134", "[::1]:9", "127.0.0.1"] {
            assert_eq!(status(None, "/", &[(HOST, host)]).await, None, "{host}");
        }
        for host in ["evil.example", "localhost.evil.example:13134", "10.1.2.3:13134", "", "localhost@evil.example"] {
            assert_eq!(status(None, "/", &[(HOST, host)]).await, Some(403), "{host}");
        }
        assert_eq!(status(None, "/", &[]).await, Some(403), "no host");
        assert_eq!(status(None, "/", &[(HOST, "localhost"), (HOST, "localhost")]).await, Some(403), "two hosts");
        let absolute = "http://evil.example/api/v1/dlq";
        assert_eq!(status(None, absolute, &[(HOST, "localhost")]).await, Some(403), "two names");
    }

    #[tokio::test]
    async fn pages_of_other_origins_are_kept_out_with_a_token_and_without() {
        let token = Token::new(TokenPlan::Text(Secret("hush".to_owned())));
        let bearer = (http::header::AUTHORIZATION, "Bearer hush");
        let host = (HOST, "localhost:13134");
        for origin in ["http://localhost:13134", "https://localhost:13134", "http://LOCALHOST:13134"] {
            assert_eq!(status(None, "/", &[host.clone(), (ORIGIN, origin)]).await, None, "{origin}");
        }
        for origin in
            ["null", "http://evil.example", "http://localhost:3000", "http://localhost", "", "localhost:13134"]
        {
            assert_eq!(status(None, "/", &[host.clone(), (ORIGIN, origin)]).await, Some(403), "{origin}");
            let shown = [host.clone(), bearer.clone(), (ORIGIN, origin)];
            assert_eq!(status(Some(&token), "/", &shown).await, Some(403), "{origin} with the token");
        }
    }

    #[tokio::test]
    async fn with_a_token_any_name_will_do_and_no_request_goes_without_it() {
        let token = Token::new(TokenPlan::Text(Secret("hush".to_owned())));
        let host = (HOST, "collector.example:13134");
        assert_eq!(status(Some(&token), "/", std::slice::from_ref(&host)).await, Some(401));
        let shown = [host, (http::header::AUTHORIZATION, "Bearer hush")];
        assert_eq!(status(Some(&token), "/", &shown).await, None);
    }
}
