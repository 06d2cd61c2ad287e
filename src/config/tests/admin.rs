use super::*;
use crate::settings::Secret;

#[test]
fn the_admin_api_is_off_unless_it_is_named_and_open_without_a_token_on_loopback_alone() {
    assert_eq!(load_plan(&sources(&["base.yaml"], &[]), &files("")).expect("valid").admin, None);
    let admin = |text: &str| load_plan(&sources(&["base.yaml"], &[&format!("forebay.admin={text}")]), &files(""));
    let on = |endpoint: &str, token| Some(AdminPlan { endpoint: endpoint.to_owned(), token });
    assert_eq!(admin("{}").expect("valid").admin, on("localhost:13134", None));
    let text = Some(TokenPlan::Text(Secret("hush".to_owned())));
    let plan = admin("{endpoint: '0.0.0.0:1', token: hush}").expect("valid");
    assert_eq!(plan.admin, on("0.0.0.0:1", text));
    assert!(!format!("{plan:?}").contains("hush"));
    let file = Some(TokenPlan::File(PathBuf::from("/run/token")));
    let plan = admin("{endpoint: ':1', token_file: /run/token}").expect("valid");
    assert_eq!(plan.admin, on(":1", file));

    let open = "can be reached from other machines, and there is no token\n  help: set token or token_file beside it, or listen on localhost";
    for (text, message) in [
        ("{endpoint: '0.0.0.0:1'}", open),
        ("{endpoint: ':1'}", open),
        ("{endpoint: 'forebay:1'}", open),
        ("{token: ''}", "forebay.admin.token is empty"),
        ("{token: ~}", "forebay.admin.token is empty"),
        ("{token_file: ''}", "forebay.admin.token_file is empty"),
        ("{token: a, token_file: /b}", "forebay.admin.token_file: there is a token too; give one of both"),
        ("{token: 'two words'}", "forebay.admin.token: must be visible ASCII"),
        ("{endpoint: nowhere}", "forebay.admin.endpoint: \"nowhere\" is no host:port"),
        ("{tokens: a}", "did you mean `token`?"),
    ] {
        let problems = admin(text).expect_err(text);
        assert_eq!(problems.len(), 1, "{text}: {problems:?}");
        let shown = problems[0].to_string();
        assert!(shown.contains(message) && !shown.contains("two words"), "{text}: {shown}");
    }
}

#[test]
fn the_token_is_never_printed_and_where_it_lies_is() {
    let printed = |text: &str| {
        let set = format!("forebay.admin={text}");
        print::to_yaml(&load(&sources(&["base.yaml"], &[&set]), &files("")).expect("loads"))
    };
    let text = printed("{token: hush}");
    assert!(text.contains("token: \"[REDACTED]\"") && !text.contains("hush"), "{text}");
    let text = printed("{token_file: /run/secrets/token}");
    assert!(text.contains("token_file: /run/secrets/token"), "{text}");
}
