//! `forebay dlq export`.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use http::Method;

use super::arguments::Export;
use super::hints::Hints;
use super::select::{filter, queries};
use super::sieve::Sieve;
use crate::cli::ask::Way;
use crate::cli::{Failure, output};

pub async fn export(mut way: Way, export: Export) -> Result<(), Failure> {
    let queries = queries(filter(&export.select, export.ids)?);
    let mut sieve = Sieve::new(output::complain, Hints::of(&export.place));
    match export.output {
        None => fetch(&mut way, &queries, &mut sieve, output::print_bytes).await?,
        Some(target) => {
            let failed =
                |error: std::io::Error| Failure::Other(format!("failed to write {}: {error}", target.display()));
            // Prompts are personal data.
            let mut file =
                std::fs::File::options().write(true).create_new(true).mode(0o600).open(&target).map_err(failed)?;
            fetch(&mut way, &queries, &mut sieve, |bytes| file.write_all(bytes).map_err(failed)).await?;
            file.sync_all().map_err(failed)?;
        }
    }
    sieve.end()?;
    match way {
        Way::Files { damaged, .. } if damaged > 0 => Err(Failure::Other(
            "the files are damaged where it was said; what can be read of them was exported\n  \
             help: letters that lay there are lost, unless they can be read by other means"
                .to_owned(),
        )),
        _ => Ok(()),
    }
}

async fn fetch(
    way: &mut Way,
    queries: &[String],
    sieve: &mut Sieve,
    mut write: impl FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    for query in queries {
        let path = format!("/api/v1/dlq/export?{query}");
        way.stream(Method::GET, &path, Vec::new(), |piece| sieve.take(piece, &mut write)).await?;
    }
    Ok(())
}
