//! Exports with the real binary: byte for byte, and past what cannot be read.

mod support;

use std::os::unix::fs::FileExt;
use std::path::Path;

use serde_json::Value;
use support::dlq::{letters, stderr, stdout};
use support::eventually;
use support::scene::{POISON, Scene, log};

/// 300 kB of characters of two to four bytes, in no period of the sizes that bytes are read in.
fn prompt() -> String {
    let words = ["请把这段话翻译成英文", "😀👩‍👩‍👧‍👦", "naïve", "Ω≈ç√", "日本語のプロンプト", "\u{1F680}"];
    (0..).map(|n: usize| words[n * 7 % 11 % words.len()]).take(20_000).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn text_of_any_script_comes_out_byte_for_byte_wherever_the_answer_is_cut_into_pieces() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    let body = format!("{POISON} {}", prompt());
    assert!(body.len() > 250_000);
    for body in ["good", &body] {
        assert_eq!(scene.post("logs", log("billing", body)).await, 200);
    }
    let dir = scene.data_dir();
    eventually("it is parked", async || letters(&dir).len() == 1).await;
    let id = letters(&dir)[0]["id"].as_str().expect("an id").to_owned();
    let path = scene.dir.path().join("out.jsonl");
    let to_file = ["export", "-o", &path.display().to_string()];
    let check = |way: &str| {
        let exported = scene.dlq(&["export"]);
        assert!(exported.status.success(), "{way}: {}", stderr(&exported));
        let text = std::str::from_utf8(&exported.stdout).unwrap_or_else(|error| panic!("{way}: {error}"));
        let line: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{way}: {error}"));
        let found = line["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]["body"]["stringValue"].as_str();
        assert!(found == Some(&body), "{way}: the text was changed");
        assert!(
            stdout(&scene.dlq(&["show", &id, "--show-payload"])).contains(&body),
            "{way}: the text is shown changed"
        );
        stdout(&scene.dlq(&to_file));
        assert!(std::fs::read(&path).expect("written") == exported.stdout, "{way}: the file has something else");
        std::fs::remove_file(&path).expect("removed");
        exported.stdout
    };
    let online = check("with the process");
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
    assert!(check("without") == online, "both ways say the same");
}

/// Flips a bit in the only file under `dir` that has these bytes, in its place: whoever has it open reads it so.
fn damage(dir: &Path, needle: &[u8]) {
    let mut damaged = 0;
    for entry in std::fs::read_dir(dir).expect("listed") {
        let path = entry.expect("entry").path();
        if !path.is_file() {
            continue;
        }
        let bytes = std::fs::read(&path).expect("read");
        if let Some(at) = bytes.windows(needle.len()).position(|found| found == needle) {
            let file = std::fs::File::options().write(true).open(&path).expect("opened");
            file.write_all_at(&[bytes[at] ^ 1], at as u64).expect("written");
            damaged += 1;
        }
    }
    assert_eq!(damaged, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_goes_on_after_a_letter_that_is_damaged_and_says_what_it_left_out() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    let dir = scene.data_dir();
    for count in 1..=3 {
        scene.spans("checkout", &["good".to_owned(), format!("{POISON}-{count}")]).await;
        eventually("it is parked", async || letters(&dir).len() == count).await;
    }
    let ids: Vec<String> = letters(&dir).iter().map(|one| one["id"].as_str().expect("an id").to_owned()).collect();
    let whole = stdout(&scene.dlq(&["export"]));
    let lines: Vec<&str> = whole.lines().collect();
    let expected = format!("{}\n{}\n", lines[0], lines[2]);
    damage(&dir.join("dlq"), format!("{POISON}-2").as_bytes());
    let path = scene.dir.path().join("out.jsonl");
    let check = |reasons: &[&str]| {
        for words in
            [&["export"][..], &["export", "--signal", "traces"], &["export", "-o", &path.display().to_string()]]
        {
            let exported = scene.dlq(words);
            assert_eq!(exported.status.code(), Some(1), "{words:?}: {}", stderr(&exported));
            for reason in reasons {
                assert!(stderr(&exported).contains(reason), "{words:?}: no {reason:?} in {}", stderr(&exported));
            }
            let written = match words.contains(&"-o") {
                true => std::fs::read_to_string(&path).expect("written"),
                false => String::from_utf8(exported.stdout).expect("text"),
            };
            assert_eq!(written, expected, "{words:?}");
        }
        std::fs::remove_file(&path).expect("removed");
    };
    let left_out = format!("letter {} is left out: letter {0} is damaged on disk", ids[1]);
    check(&[&left_out, "1 letters could not be exported; all others were"]);
    assert_eq!(stdout(&scene.dlq(&["export", &ids[0], &ids[2]])), expected, "nothing is left out of these");
    // Over HTTP the answer is whole, and a line stands for what is left out.
    let url = format!("http://127.0.0.1:{}/api/v1/dlq/export", scene.admin_port);
    let answer = scene.client.get(url).send().await.expect("answered");
    assert_eq!(answer.status(), 200);
    let text = answer.text().await.expect("whole");
    let (told, kept): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with("{\"forebayLeftOut\":"));
    assert_eq!((told.len(), kept), (1, expected.lines().collect()));
    let told: Value = serde_json::from_str(told[0]).expect("JSON");
    assert_eq!(told["forebayLeftOut"]["id"], ids[1].as_str());
    assert!(told["forebayLeftOut"]["error"].as_str().is_some_and(|error| error.contains("damaged")), "{told}");
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
    // Without the process the damage is found as the files are opened.
    check(&["warning: ", "is damaged at byte", "what can be read of them was exported"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_malformed_is_left_out_only_where_it_is_named() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    assert_eq!(scene.post("traces", "{\"resourceSpans\": 3}".to_owned()).await, 400);
    let dir = scene.data_dir();
    eventually("it is kept", async || letters(&dir).len() == 1).await;
    let id = letters(&dir)[0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(stdout(&scene.dlq(&["export"])), "");
    let named = scene.dlq(&["export", &id]);
    assert_eq!((named.status.code(), named.stdout.len()), (Some(1), 0));
    assert!(stderr(&named).contains("repair it with `forebay dlq edit --data-dir"), "{}", stderr(&named));
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
}
