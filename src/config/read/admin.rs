//! `forebay.admin`: where the admin API listens, and who may use it.

use super::service;
use crate::config::plan::{ADMIN_ENDPOINT_DEFAULT, AdminPlan, TokenPlan};
use crate::receivers::listen;
use crate::settings::{Problem, Table};
use std::path::PathBuf;

pub fn read(table: &mut Table<'_>) -> AdminPlan {
    let endpoint = service::endpoint(table, "endpoint").unwrap_or_else(|| ADMIN_ENDPOINT_DEFAULT.to_owned());
    let (has_token, has_file) = (table.has("token"), table.has("token_file"));
    let text = table.secret("token").filter(|token| !token.0.is_empty());
    let file = if has_token && has_file {
        table.ignore("token_file");
        table.problem("token_file", "there is a token too; give one of both");
        None
    } else if has_token {
        None
    } else {
        table.text("token_file").filter(|path| !path.is_empty())
    };
    // An empty one would leave the door open that somebody meant to lock, such as by a variable that is not set.
    for (key, is_given) in [("token", text.is_some()), ("token_file", file.is_some() || has_token)] {
        if table.has(key) && !is_given {
            let problem = Problem::error(table.origin_of(key), format!("{}.{key} is empty", table.path()));
            table.report(problem.with_help("give it a value, or remove the key"));
        }
    }
    if text.as_ref().is_some_and(|token| !token.0.bytes().all(|byte| byte.is_ascii_graphic())) {
        table.problem("token", "must be visible ASCII without spaces, as it stands in a header");
    }
    if !has_token && !has_file && !listen::is_loopback(&endpoint) {
        let message = format!(
            "{}.endpoint: \"{}\" can be reached from other machines, and there is no token",
            table.path(),
            endpoint.escape_debug()
        );
        let problem = Problem::error(table.origin_of("endpoint"), message);
        table.report(problem.with_help("set token or token_file beside it, or listen on localhost"));
    }
    AdminPlan { endpoint, token: text.map(TokenPlan::Text).or(file.map(|path| TokenPlan::File(PathBuf::from(path)))) }
}
