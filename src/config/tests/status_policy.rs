//! `forebay.exporters.<id>.status_policy`.

use super::*;
use crate::exporters::Class;

const HTTP: &str = "\
receivers:
  otlp:
    protocols:
      grpc:
exporters:
  otlp_http:
    endpoint: https://example.org
service:
  pipelines:
    traces:
      receivers: [otlp]
      exporters: [otlp_http]
";

fn load_over_http(text: &'static str) -> Result<Plan, Vec<Problem>> {
    let world = FakeWorld { files: HashMap::from([("c.yaml", text), ("http.yaml", HTTP)]), ..FakeWorld::default() };
    load_plan(&sources(&["http.yaml", "c.yaml"], &[]), &world)
}

#[test]
fn a_status_takes_the_class_that_is_written_by_number_or_by_name_and_the_others_keep_theirs() {
    let plan = load_over_http(
        "forebay:\n  exporters:\n    otlphttp:\n      status_policy:\n        http:\n          404: retryable\n          \
         \"409\": destination\n          500: batch\n        grpc: {NOT_FOUND: batch, 13: retryable}\n",
    )
    .expect("valid");
    let policy = &plan.exporters[0].status_policy;
    let http = [404, 409, 500, 503].map(|status| policy.http(status).0);
    assert_eq!(http, [Class::Retryable, Class::Destination, Class::Batch, Class::Retryable]);
    assert_eq!(
        [5, 13, 2].map(|code| policy.grpc(code, false, "").0),
        [Class::Batch, Class::Retryable, Class::Destination]
    );
}

#[test]
fn bad_statuses_codes_and_classes_are_all_refused_with_their_place() {
    let problems = load_over_http(
        "forebay:\n  exporters:\n    otlp_http:\n      status_policy:\n        http:\n          200: batch\n          \
         4xx: batch\n          404: retry\n        grpc:\n          NOTFOUND: batch\n          OK: batch\n          \
         17: batch\n          5: batch\n          NOT_FOUND: batch\n        htpp: {}\n",
    )
    .expect_err("it is wrong");
    let shown = shown(&problems);
    let path = "forebay.exporters.otlp_http.status_policy";
    for expected in [
        format!("c.yaml:6:11: {path}.http: expected an HTTP status from 300 to 599, found `200`"),
        format!("c.yaml:7:11: {path}.http: expected an HTTP status from 300 to 599, found `4xx`"),
        format!(
            "c.yaml:8:16: {path}.http.404: expected one of retryable, destination, batch, found the text \"retry\""
        ),
        format!(
            "c.yaml:10:11: {path}.grpc: expected a gRPC code such as NOT_FOUND, or its number from 1 to 16, found `NOTFOUND`\n  help: did you mean NOT_FOUND?"
        ),
        format!("c.yaml:11:11: {path}.grpc: expected a gRPC code"),
        format!("c.yaml:12:11: {path}.grpc: expected a gRPC code"),
        format!("c.yaml:14:11: {path}.grpc: `NOT_FOUND` is there twice"),
        format!("c.yaml:15:9: unknown key `htpp` in {path}\n  help: did you mean `http`?"),
    ] {
        assert!(shown.iter().any(|problem| problem.contains(&expected)), "no {expected}\nin {shown:#?}");
    }
    assert_eq!(shown.len(), 8, "{shown:#?}");
}

#[test]
fn what_no_server_answers_has_no_status_policy() {
    let problems = errors_over_base(
        "forebay:\n  exporters:\n    debug:\n      status_policy: {http: {404: batch}}\n      max_request_bytes: 1MiB\n",
    );
    assert_eq!(problems.len(), 2, "{problems:#?}");
    assert!(problems.iter().all(|problem| problem.contains("c.yaml:3:5") && problem.contains("has no effect")));
}

#[test]
fn the_code_that_is_no_failure_is_not_offered_for_itself() {
    let problems = load_over_http("forebay: {exporters: {otlp_http: {status_policy: {grpc: {OK: batch}}}}}\n");
    let shown = shown(&problems.expect_err("it is wrong"));
    assert!(shown.len() == 1 && !shown[0].contains("did you mean OK"), "{shown:#?}");
}
