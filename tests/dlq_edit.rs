//! Edits with the real binary: nothing vanishes by one, and what was typed is kept where it has no other place.

mod support;

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use support::dlq::{letters, stderr, stdout};
use support::eventually;
use support::scene::{POISON, Scene};

fn edit(scene: &Scene, words: &[&str], editor: &str, temporary: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(["dlq", "edit"]).args(words).arg("--data-dir").arg(scene.data_dir());
    command.env_remove("FOREBAY_DATA_DIR").env("VISUAL", editor).env("TMPDIR", temporary);
    command.output().expect("forebay runs")
}

fn with_input(scene: &Scene, words: &[&str], text: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.args(["dlq", "edit"]).args(words).arg("--data-dir").arg(scene.data_dir()).env_remove("FOREBAY_DATA_DIR");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("forebay runs");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("taken");
    child.wait_with_output().expect("ended")
}

fn left_in(dir: &Path) -> usize {
    std::fs::read_dir(dir).expect("listed").count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_misspelled_name_is_refused_with_its_place_and_what_was_typed_is_kept() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    let ids = scene.parked(1).await;
    let before = stdout(&scene.dlq(&["show", &ids[0], "--show-payload", "--json"]));
    let temporary = tempfile::tempdir().expect("temporary directory");
    let refused = edit(&scene, &[&ids[0]], "sed -i s/name/nmae/", temporary.path());
    assert_eq!(refused.status.code(), Some(1));
    let said = stderr(&refused);
    assert!(said.contains("there is no field `nmae` in Span (did you mean `name`?) at line "), "{said}");
    assert_eq!(left_in(temporary.path()), 1, "{said}");
    let again = format!("`forebay dlq edit {} --from {}/", ids[0], temporary.path().display());
    assert!(said.contains(&again) && said.contains("--data-dir"), "{said}");
    assert_eq!(stdout(&scene.dlq(&["show", &ids[0], "--show-payload", "--json"])), before);
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_editor_that_fails_leaves_no_payload_behind_unless_somebody_changed_it() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    let ids = scene.parked(1).await;
    let temporary = tempfile::tempdir().expect("temporary directory");
    let failed = edit(&scene, &[&ids[0]], "false", temporary.path());
    assert!(stderr(&failed).contains("nothing was changed"), "{}", stderr(&failed));
    assert_eq!((failed.status.code(), left_in(temporary.path())), (Some(1), 0));
    let failed = edit(&scene, &[&ids[0]], "sh -c 'echo x >> $0; exit 3'", temporary.path());
    assert!(stderr(&failed).contains("your text is in"), "{}", stderr(&failed));
    assert_eq!((failed.status.code(), left_in(temporary.path())), (Some(1), 1));
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edit_from_standard_input_shows_and_a_malformed_letter_is_told_to_name_its_exporter() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    let ids = scene.parked(1).await;
    assert!(!stdout(&scene.dlq(&["show", &ids[0]])).contains("edited"));
    let text = stdout(&scene.dlq(&["export"])).replace(&format!("\"{POISON}"), "\"repaired");
    let edited = stdout(&with_input(&scene, &[&ids[0], "--from", "-"], &text));
    let dir = scene.data_dir().display().to_string();
    assert_eq!(
        edited,
        format!("letter {0} has 1 items now; `forebay dlq replay {0} --data-dir {dir}` sends it\n", ids[0])
    );
    let shown = stdout(&scene.dlq(&["show", &ids[0]]));
    assert!(shown.contains("\nedited     20") && shown.contains("\nreceived   20"), "{shown}");
    let listed = letters(&scene.data_dir());
    assert!(listed[0]["edited_unix_ms"].as_u64().is_some(), "{listed:?}");
    assert_eq!(scene.post("traces", "{\"resourceSpans\": 3}".to_owned()).await, 400);
    eventually("it is kept", async || letters(&scene.data_dir()).len() == 2).await;
    let malformed = letters(&scene.data_dir())[1]["id"].as_str().expect("an id").to_owned();
    let edited = stdout(&with_input(&scene, &[&malformed, "--from", "-"], &text));
    assert!(edited.contains(&format!("`forebay dlq replay {malformed} --to EXPORTER --data-dir {dir}`")), "{edited}");
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fields_that_no_json_can_show_are_dropped_by_nobody_who_does_not_say_so() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    // A span with a name, ids, and field 99.
    let mut span = [&[0x0a, 16][..], &[7; 16], &[0x12, 8], &[7; 8], &[0x2a, POISON.len() as u8]].concat();
    span.extend_from_slice(POISON.as_bytes());
    span.extend_from_slice(&[0x98, 0x06, 7]);
    let mut request = span;
    for key in [0x12, 0x12, 0x0a] {
        request = [&[key, request.len() as u8][..], &request].concat();
    }
    scene.spans("checkout", &["good".to_owned()]).await;
    scene.post_protobuf(request).await;
    let dir = scene.data_dir();
    eventually("it is parked", async || letters(&dir).len() == 1).await;
    let id = letters(&dir)[0]["id"].as_str().expect("an id").to_owned();
    let fields = "1 fields that this version does not know, the first is number 99 of Span";
    let shown = stdout(&scene.dlq(&["show", &id, "--show-payload"]));
    assert!(shown.contains(&format!("not shown  {fields}\n")), "{shown}");
    let exported = scene.dlq(&["export"]);
    assert!(stderr(&exported).contains(&format!("note: letter {id} is exported without {fields}")), "{exported:?}");
    let text = stdout(&exported);
    assert_eq!(text.lines().count(), 1, "the note is on standard error alone");
    let temporary = tempfile::tempdir().expect("temporary directory");
    let opened = temporary.path().join("opened");
    let refused = edit(&scene, &[&id], &format!("touch {}; true", opened.display()), temporary.path());
    assert!(stderr(&refused).contains(fields) && stderr(&refused).contains("--force"), "{}", stderr(&refused));
    assert!(refused.status.code() == Some(1) && !opened.exists(), "nobody works in vain");
    let refused = with_input(&scene, &[&id, "--from", "-"], &text);
    assert!(refused.status.code() == Some(1) && stderr(&refused).contains(fields), "{}", stderr(&refused));
    let url = format!("http://127.0.0.1:{}/api/v1/dlq/{id}", scene.admin_port);
    let put = scene.client.put(url).header("content-type", "application/json").body(text.clone()).send();
    let answer = put.await.expect("answered");
    assert_eq!(answer.status(), 409);
    let refusal: Value = serde_json::from_str(&answer.text().await.expect("whole")).expect("JSON");
    assert!(refusal["help"].as_str().is_some_and(|help| help.contains("?force=true")), "{refusal}");
    stdout(&with_input(&scene, &[&id, "--from", "-", "--force"], &text));
    assert_eq!(stderr(&scene.dlq(&["export"])), "", "it has nothing unknown any more");
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}
