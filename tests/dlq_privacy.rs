//! What clients write in a malformed payload is shown to nobody who does not ask for payloads.

mod support;

use support::dlq::{letters, stdout};
use support::eventually;
use support::scene::Scene;

const SECRET: &str = "s3cr3t-prompt";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_text_of_a_malformed_payload_is_in_no_answer_list_show_api_or_log() {
    let scene = Scene::new("").await;
    let forebay = scene.start().await;
    let span = |fields: &str| format!(r#"{{"resourceSpans":[{{"scopeSpans":[{{"spans":[{{{fields}}}]}}]}}]}}"#);
    let long = SECRET.repeat(3000);
    let bodies = [
        format!(r#"{{"resourceSpans":"{SECRET}"}}"#),
        format!(r#"{{"resourceSpans":[["{SECRET}"]]}}"#),
        format!(r#"{{"resourceSpans":["{SECRET}"]}}"#),
        span(&format!(r#""attributes":"{SECRET}""#)),
        span(&format!(r#""attributes":{{"{SECRET}":1}}"#)),
        span(&format!(r#""attributes":[{{"key":"prompt","value":"{SECRET}"}}]"#)),
        span(&format!(r#""attributes":[{{"key":"prompt","value":{{"bytesValue":"{SECRET}!"}}}}]"#)),
        span(&format!(r#""attributes":[{{"key":"prompt","value":{{"intValue":"{SECRET}"}}}}]"#)),
        span(&format!(r#""events":"{long}""#)),
        span(&format!(r#""kind":"{SECRET}""#)),
        span(&format!(r#""traceId":"{SECRET}""#)),
        span(&format!(r#""name":"{SECRET}"#)),
        format!(r#""{SECRET}""#),
        SECRET.to_owned(),
    ];
    for body in &bodies {
        let (status, answer) = scene.answer("traces", body.clone()).await;
        assert_eq!(status, 400, "{body:.200}");
        assert!(!answer.contains(SECRET) && answer.len() < 400, "{body:.200}: {answer:.400}");
    }
    let dir = scene.data_dir();
    eventually("all are kept", async || letters(&dir).len() == bodies.len()).await;
    let ids: Vec<String> = letters(&dir).iter().map(|one| one["id"].as_str().expect("an id").to_owned()).collect();
    let api = format!("http://127.0.0.1:{}/api/v1/dlq", scene.admin_port);
    let get = async |url: String| scene.client.get(url).send().await.expect("answered").text().await.expect("whole");
    let mut said = vec![scene.log(), get(api.clone()).await];
    for id in &ids {
        said.push(get(format!("{api}/{id}")).await);
    }
    let mut commands = |words: &[&str]| said.push(stdout(&scene.dlq(words)));
    let mut ask = || {
        for words in [&["list"][..], &["list", "--json"]] {
            commands(words);
        }
        for id in &ids {
            commands(&["show", id]);
            commands(&["show", id, "--json"]);
        }
    };
    ask();
    assert_eq!(forebay.stop().await, 0, "{}", scene.log());
    ask();
    for text in said {
        assert!(!text.contains(SECRET), "{text}");
    }
    for id in &ids {
        assert!(stdout(&scene.dlq(&["show", id, "--show-payload"])).contains(SECRET), "who asks for it sees it");
    }
}
