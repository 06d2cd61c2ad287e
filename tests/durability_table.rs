//! Every test that docs/durability.md names is there.

use std::fs;
use std::path::Path;

fn sources(dir: &Path, text: &mut String) {
    for entry in fs::read_dir(dir).expect("listed") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("readable"));
        }
    }
}

#[test]
fn every_test_named_in_the_fault_table_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut text = String::new();
    sources(&root.join("src"), &mut text);
    sources(&root.join("tests"), &mut text);
    let document = fs::read_to_string(root.join("docs/durability.md")).expect("readable");
    let faults = document.split("## Faults").nth(1).and_then(|rest| rest.split("## Volumes").next()).expect("a table");
    let last_cells = faults.lines().filter_map(|line| line.trim_end_matches(['|', ' ']).rsplit('|').next());
    let names: Vec<&str> = last_cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)).collect();
    assert!(names.len() > 25, "only {} tests are named", names.len());
    let missing: Vec<_> = names.iter().filter(|name| !text.contains(&format!("fn {name}("))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
