//! Each room uses only what stands to its right in the map of `src/lib.rs`.

use std::fs;
use std::path::{Path, PathBuf};

/// Left to right; a room may use itself, what stands to its right, and the leaves.
const ORDER: [&str; 12] =
    ["main", "cli", "app", "admin", "config", "receivers", "pipeline", "exporters", "dlq", "dedup", "queue", "storage"];
const LAST: &str = "otlp";
const LEAVES: [&str; 2] = ["settings", "telemetry"];
/// Rooms that must not know of each other although the order would let them.
const APART: [(&str, &str); 4] =
    [("exporters", "queue"), ("exporters", "dlq"), ("exporters", "storage"), ("receivers", "storage")];

fn rust_files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("listed") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            rust_files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn room_of(path: &Path, src: &Path) -> String {
    let first = path.strip_prefix(src).expect("below src").components().next().expect("a name");
    first.as_os_str().to_string_lossy().trim_end_matches(".rs").to_owned()
}

/// Rooms named by `crate::room` in code (comments left out).
fn rooms_used(text: &str) -> Vec<String> {
    let mut used = Vec::new();
    for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
        for (at, _) in line.match_indices("crate::") {
            let word: String = line[at + 7..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect();
            used.push(word);
        }
    }
    used
}

fn rank(room: &str) -> Option<usize> {
    ORDER.iter().chain([&LAST]).position(|name| *name == room)
}

#[test]
fn each_room_uses_only_what_stands_to_its_right() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    rust_files(&src, &mut files);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for path in files {
        let room = room_of(&path, &src);
        if room == "lib" || room == "bin" {
            continue;
        }
        // Tests of the pipeline feed it through the doors it is fed through.
        let text = fs::read_to_string(&path).expect("readable");
        for used in rooms_used(&text).into_iter().filter(|used| *used != room) {
            seen += 1;
            let allowed = LEAVES.contains(&used.as_str())
                || match (rank(&room), rank(&used)) {
                    (Some(from), Some(to)) => from < to,
                    _ => false,
                };
            let apart = APART.contains(&(room.as_str(), used.as_str()));
            if !allowed || apart {
                wrong.push(format!("{} uses {used}", path.display()));
            }
        }
    }
    assert!(seen > 50, "the test reads the code: {seen} uses");
    assert!(wrong.is_empty(), "{wrong:#?}");
}
