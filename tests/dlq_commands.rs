//! What each option of `forebay dlq` does with the real binary, with the process and without.

mod support;

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use serde_json::{Value, json};
use support::dlq::{letters, stderr, stdout};
use support::eventually;
use support::scene::{POISON, Scene, log};

fn json_of(output: &Output) -> Value {
    serde_json::from_str(&stdout(output)).unwrap_or_else(|error| panic!("{error}: {}", stdout(output)))
}

/// Each line of a command that may have failed.
fn lines_of(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_filter_finds_what_it_names_and_nothing_else_with_the_process_and_without() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    scene.spans("checkout", &["good".to_owned(), format!("{POISON}-1")]).await;
    for body in ["good", POISON] {
        assert_eq!(scene.post("logs", log("billing", body)).await, 200);
    }
    assert_eq!(scene.post("traces", "{\"resourceSpans\": 3}".to_owned()).await, 400);
    let dir = scene.data_dir();
    eventually("all three are letters", async || letters(&dir).len() == 3).await;
    // By what tells them apart: `t` the span, `l` the record, `m` what was malformed.
    let all = letters(&dir);
    let kind = |letter: &Value| match (letter["reason"].as_str(), letter["signal"].as_str()) {
        (Some("malformed"), _) => 'm',
        (_, Some("logs")) => 'l',
        _ => 't',
    };
    let mut ids: Vec<(char, &str)> = all.iter().map(|one| (kind(one), one["id"].as_str().expect("an id"))).collect();
    ids.sort_unstable();
    assert_eq!(ids.iter().map(|(kind, _)| *kind).collect::<String>(), "lmt");
    let cases: &[(&[&str], &str)] = &[
        (&["--queue", "traces"], "t"),
        (&["--queue", "logs"], "l"),
        (&["--queue", "metrics"], ""),
        (&["--pipeline", "traces"], "t"),
        (&["--pipeline", "nobody"], ""),
        (&["--exporter", "otlp_http/first"], "t"),
        (&["--exporter", "otlp_http/second"], "l"),
        (&["--exporter", "otlp_http"], ""),
        // As `forebay queue` names its cursor.
        (&["--exporter", "otlp_http-first"], "t"),
        (&["--signal", "traces"], "mt"),
        (&["--signal", "logs"], "l"),
        (&["--signal", "metrics"], ""),
        (&["--reason", "rejected"], "lt"),
        (&["--reason", "malformed"], "m"),
        (&["--reason", "expired"], ""),
        (&["--service", "checkout"], "t"),
        (&["--service", "billing"], "l"),
        (&["--service", "check"], ""),
        (&["--since", "1h"], "lmt"),
        (&["--since", "1ms"], ""),
        (&["--until", "1ms"], "lmt"),
        (&["--until", "1h"], ""),
        (&["--since", "2026-01-31T12:00:00+01:00", "--until", "9999-12-31T23:59:59Z"], "lmt"),
        (&["--until", "2026-01-31T12:00:00Z"], ""),
        (&["--signal", "traces", "--reason", "rejected", "--since", "1h"], "t"),
        (&["--signal", "logs", "--service", "checkout"], ""),
    ];
    let check = |way: &str| {
        for (words, expected) in cases {
            let listed = json_of(&scene.dlq(&[&["list", "--json"][..], words].concat()));
            let mut found: Vec<char> = listed["letters"].as_array().expect("a list").iter().map(kind).collect();
            found.sort_unstable();
            assert_eq!(found.iter().collect::<String>(), *expected, "{way}: list {words:?}");
            assert_eq!(listed["matching"], expected.len(), "{way}: {words:?}");
            let purged = json_of(&scene.dlq(&[&["purge", "--json", "--dry-run"][..], words].concat()));
            assert_eq!(
                (&purged["letters"], &purged["dry_run"]),
                (&expected.len().into(), &true.into()),
                "{way}: {words:?}"
            );
            // What was malformed can neither be exported nor sent.
            let sendable: String = expected.chars().filter(|kind| *kind != 'm').collect();
            let replay = scene.dlq(&[&["replay", "--json", "--dry-run"][..], words].concat());
            assert_eq!(lines_of(&replay)[0]["delivered"], sendable.len(), "{way}: replay {words:?}");
            let exported = lines_of(&scene.dlq(&[&["export"][..], words].concat()));
            let keys: BTreeSet<&str> = exported
                .iter()
                .flat_map(|line| line.as_object().expect("an object").keys())
                .map(String::as_str)
                .collect();
            assert_eq!(keys.contains("resourceLogs"), sendable.contains('l'), "{way}: export {words:?}");
            assert_eq!(keys.contains("resourceSpans"), sendable.contains('t'), "{way}: export {words:?}");
            assert_eq!(exported.len(), sendable.len(), "{way}: export {words:?}");
        }
    };
    check("with the process");
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
    check("without");
    assert_eq!(letters(&dir), all, "nothing has changed");
    assert!(scene.first.taken.lock().keys().eq(["good"]), "nothing was sent");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_command_speaks_json_and_show_and_dry_runs_change_nothing_with_the_process_and_without() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    let ids = scene.parked(6).await;
    let config = scene.config().display().to_string();
    let check = |ids: &[String], config: &[&str], total: usize| {
        let [first, second, third] = ids else { panic!("three letters") };
        let shown = json_of(&scene.dlq(&["show", first, "--json"]));
        assert_eq!(
            (&shown["id"], &shown["status"], &shown["items"]),
            (&first.as_str().into(), &"HTTP 400".into(), &1.into())
        );
        assert_eq!((&shown["payload"], &shown["replay"]), (&Value::Null, &Value::Null), "{shown}");
        assert!(shown["attempts"].as_u64() >= Some(2), "{shown}");
        let with_payload = json_of(&scene.dlq(&["show", first, "--json", "--show-payload"]));
        let name = &with_payload["payload"]["resourceSpans"][0]["scopeSpans"][0]["spans"][0]["name"];
        assert!(name.as_str().is_some_and(|name| name.starts_with(POISON)), "{with_payload}");
        let text = stdout(&scene.dlq(&["show", first]));
        assert!(text.contains("status     HTTP 400\n") && text.contains("service    checkout\n"), "{text}");
        assert!(!text.contains(POISON) && stdout(&scene.dlq(&["show", first, "--show-payload"])).contains(POISON));

        let words = [&["replay", "--all", "--dry-run", "--json"][..], config].concat();
        let summary = json!({"event": "summary", "delivered": total, "failed": 0, "items": total, "dry_run": true});
        assert_eq!(lines_of(&scene.dlq(&words)), [summary]);
        let would = stdout(&scene.dlq(&["replay", first, second, "--dry-run"]));
        assert_eq!(would, "2 letters with 2 items would be sent\n");
        let would = stdout(&scene.dlq(&["purge", first, "--dry-run"]));
        assert_eq!(would, "1 letters with 1 items would be purged\n");
        let would = json_of(&scene.dlq(&["purge", "--all", "--dry-run", "--json"]));
        assert_eq!(would, json!({"letters": total, "items": total, "dry_run": true}));
        assert_eq!(letters(&scene.data_dir()).len(), total, "these were dry runs");

        // Replays in vain are counted and shown, each of them.
        for times in 1..=3 {
            let failed = scene.dlq(&[&["replay", second, "--json"][..], config].concat());
            assert_eq!(failed.status.code(), Some(1));
            let [letter, summary] = &lines_of(&failed)[..] else { panic!("{failed:?}") };
            assert_eq!((&letter["event"], &letter["id"]), (&"letter".into(), &second.as_str().into()));
            assert_eq!((&letter["delivered"], &letter["done"], &letter["of"]), (&false.into(), &1.into(), &1.into()));
            assert_eq!((&summary["delivered"], &summary["failed"]), (&0.into(), &1.into()));
            let shown = json_of(&scene.dlq(&["show", second, "--json"]));
            assert_eq!(shown["replay"]["replays"], times, "{shown}");
            let text = stdout(&scene.dlq(&["show", second]));
            assert!(text.contains(&format!("replayed   {times} times in vain, last ")), "{text}");
        }
        let listed = letters(&scene.data_dir());
        let replays: Vec<&Value> =
            listed.iter().map(|letter| &letter["replay"]["replays"]).filter(|n| !n.is_null()).collect();
        assert_eq!(replays, [3], "of the one that was sent");

        let path = scene.dir.path().join(format!("{second}.json"));
        let exported = stdout(&scene.dlq(&["export", second]));
        std::fs::write(&path, exported.replace(&format!("\"name\":\"{POISON}"), "\"name\":\"repaired"))
            .expect("written");
        let edited = json_of(&scene.dlq(&["edit", second, "--from", &path.display().to_string(), "--json"]));
        assert_eq!(edited, json!({"id": second, "items": 1}));
        let sent = lines_of(&scene.dlq(&[&["replay", second, "--json"][..], config].concat()));
        assert_eq!(sent[0], json!({"event": "letter", "id": second, "delivered": true, "done": 1, "of": 1}));
        assert_eq!(sent[1], json!({"event": "summary", "delivered": 1, "failed": 0, "items": 1, "dry_run": false}));
        let purged = json_of(&scene.dlq(&["purge", third, "--json"]));
        assert_eq!(purged, json!({"letters": 1, "items": 1, "dry_run": false}));
        let left = json_of(&scene.dlq(&["list", "--json"]));
        assert_eq!(
            (left["letters"].as_array().map(Vec::len), &left["matching"]),
            (Some(total - 2), &(total - 2).into())
        );
    };
    check(&ids[..3], &[], 6);
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
    check(&ids[3..], &["--config", &config], 4);
    assert_eq!(scene.first.taken.lock().keys().filter(|name| name.starts_with("repaired")).count(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_that_is_none_is_refused_before_anything_is_sent() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    scene.parked(1).await;
    scene.cure();
    for rate in ["nan", "inf", "0", "-1", "1e-9", "fast"] {
        let refused = scene.dlq(&["replay", "--all", "--rate", rate]);
        assert_eq!(refused.status.code(), Some(2), "{rate}: {}", stderr(&refused));
        assert!(stderr(&refused).contains("--rate"), "{rate}: {}", stderr(&refused));
    }
    for rate in ["0", "-1", "1e-9", "1e999", "\"fast\"", "NaN"] {
        let url = format!("http://127.0.0.1:{}/api/v1/dlq/replay", scene.admin_port);
        let request = scene.client.post(url).header("content-type", "application/json");
        let answer = request.body(format!("{{\"all\": true, \"rate\": {rate}}}")).send().await.expect("answered");
        assert_eq!(answer.status(), 400, "{rate}");
    }
    assert_eq!(letters(&scene.data_dir()).len(), 1);
    assert!(Scene::delivered(&scene.first).is_empty());
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_empty_editor_variable_leaves_the_choice_to_the_next() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    let ids = scene.parked(1).await;
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(["dlq", "edit", &ids[0], "--data-dir"]).arg(scene.data_dir()).env_remove("FOREBAY_DATA_DIR");
    let edited =
        command.env("VISUAL", "").env("EDITOR", "sed -i s/tool-call/repaired/").output().expect("forebay runs");
    assert!(stdout(&edited).contains("has 1 items now"), "{}", stderr(&edited));
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_into_a_file_is_private_and_overwrites_nothing() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    scene.parked(2).await;
    let path = scene.dir.path().join("out.jsonl");
    let words = ["export", "--reason", "rejected", "-o", &path.display().to_string()];
    assert_eq!(stdout(&scene.dlq(&words)), "");
    let written = std::fs::read(&path).expect("written");
    assert_eq!(written, scene.dlq(&["export", "--reason", "rejected"]).stdout);
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    std::fs::write(&path, "mine").expect("written");
    let refused = scene.dlq(&words);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("out.jsonl: File exists"), "{}", stderr(&refused));
    assert_eq!(std::fs::read(&path).expect("there"), b"mine");
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_id_that_no_letter_has_is_said_and_what_there_is_is_done_with_the_process_and_without() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    let ids = scene.parked(4).await;
    scene.cure();
    let config = scene.config().display().to_string();
    let dir = scene.data_dir().display().to_string();
    let check = |ids: &[String], more: &[&str]| {
        let told = |output: &Output| {
            assert_eq!(output.status.code(), Some(1), "{}", stderr(output));
            assert!(stderr(output).contains("there is no letter"), "{}", stderr(output));
            assert!(stderr(output).contains("deadbeef"), "{}", stderr(output));
        };
        let exported = scene.dlq(&["export", &ids[0], "deadbeef"]);
        told(&exported);
        assert_eq!(lines_of(&exported).len(), 1);
        for words in [["purge", "deadbeef", "--dry-run"], ["replay", "deadbeef", "--dry-run"]] {
            told(&scene.dlq(&words));
        }
        let sent = scene.dlq(&[&["replay", "deadbeef", &ids[0]][..], more].concat());
        told(&sent);
        assert!(String::from_utf8_lossy(&sent.stdout).contains("1 letters with 1 items delivered"));
        let purged = scene.dlq(&[&["purge", &ids[1], "deadbeef", "--json"][..], more].concat());
        told(&purged);
        // Hints can be copied as they stand.
        assert!(stderr(&purged).contains(&format!("`forebay dlq list --data-dir {dir}")), "{}", stderr(&purged));
        let nobody = scene.dlq(&[&["replay", "--all", "--dry-run", "--to", "nobody"][..], more].concat());
        assert_eq!(nobody.status.code(), Some(1));
        assert!(stderr(&nobody).contains("there are: otlp_http/first, otlp_http/second"), "{}", stderr(&nobody));
    };
    check(&ids[..2], &[]);
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
    check(&ids[2..], &["--config", &config]);
    assert!(letters(&scene.data_dir()).is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_takes_more_ids_than_a_url_with_the_process_and_without() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    let ids = scene.parked(3).await;
    let strangers: Vec<String> = (1..6000).map(|n| format!("{n:016x}")).collect();
    let mut words = vec!["export"];
    words.extend(ids.iter().rev().chain(&strangers).map(String::as_str));
    let whole = stdout(&scene.dlq(&["export"]));
    let check = || {
        let exported = scene.dlq(&words);
        assert_eq!(exported.status.code(), Some(1));
        assert!(stderr(&exported).contains("000a and 5989 more"), "{:.300}", stderr(&exported));
        assert_eq!(String::from_utf8_lossy(&exported.stdout), whole);
    };
    check();
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
    check();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_on_the_files_wait_for_each_other_and_say_who_holds_them() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    scene.parked(2).await;
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
    let dlq = |words: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_forebay"));
        command.arg("dlq").args(words).arg("--data-dir").arg(scene.data_dir()).env_remove("FOREBAY_DATA_DIR");
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command
    };
    let running: Vec<_> = (0..12).map(|_| dlq(&["list", "--json"]).spawn().expect("forebay runs")).collect();
    for child in running {
        let listed = json_of(&child.wait_with_output().expect("ended"));
        assert_eq!(listed["matching"], 2);
    }
    // Who sits over an edit holds the files.
    let ids: Vec<String> =
        letters(&scene.data_dir()).iter().map(|one| one["id"].as_str().expect("an id").to_owned()).collect();
    let begun = scene.dir.path().join("begun");
    let mut holder = dlq(&["edit", &ids[0]]);
    holder.env("VISUAL", format!("touch {}; sleep 60; true", begun.display()));
    std::os::unix::process::CommandExt::process_group(&mut holder, 0);
    let mut holder = holder.spawn().expect("forebay runs");
    eventually("the editor is open", async || begun.exists()).await;
    let refused = scene.dlq(&["list"]);
    let expected = format!("is in use by process {} (forebay dlq edit)", holder.id());
    let killed = std::process::Command::new("kill").args(["-9", "--", &format!("-{}", holder.id())]).status();
    holder.wait().expect("ended");
    assert!(killed.expect("kill runs").success());
    assert!(refused.status.code() == Some(1) && stderr(&refused).contains(&expected), "{}", stderr(&refused));
    assert_eq!(letters(&scene.data_dir()).len(), 2);
}
