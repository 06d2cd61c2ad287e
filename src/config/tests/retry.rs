//! `retry_on_failure`: what `validate` says becomes of a batch is what becomes of it.

use super::*;
use crate::dlq::Reason;

#[test]
fn who_disables_or_limits_retries_is_told_that_batches_become_dead_letters() {
    for (setting, reason) in [("enabled: false", Reason::RetryDisabled), ("max_elapsed_time: 5m", Reason::Expired)] {
        let text = format!("exporters: {{debug: {{retry_on_failure: {{{setting}}}}}}}\n");
        let world = FakeWorld {
            files: HashMap::from([("base.yaml", BASE), ("c.yaml", &*text.leak())]),
            ..FakeWorld::default()
        };
        let plan = load_plan(&sources(&["base.yaml", "c.yaml"], &[]), &world).expect("valid");
        let said: Vec<String> = plan.warnings.iter().map(ToString::to_string).collect();
        assert!(said.len() == 1 && said[0].contains(&format!("dead letter (`{}`)", reason.name())), "{said:?}");
        assert!(!said[0].contains("set aside"), "{said:?}");
    }
}
