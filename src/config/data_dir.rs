//! Where the data directory is: the first place that applies, never the working directory and never `/tmp`.

use super::plan::DataDirSetting;
use super::source::World;
use std::path::{Path, PathBuf};

/// The place that systems keep for state.
const SYSTEM_DIR: &str = "/var/lib/forebay";

/// A data directory that cannot be used, with the remedy.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DataDirError {
    #[error(
        "no data directory: {SYSTEM_DIR} is not writable, and neither XDG_STATE_HOME nor HOME names an absolute path\n  \
         help: give --data-dir DIR, or set FOREBAY_DATA_DIR or forebay.data_dir"
    )]
    NoPlace,
    #[error("the data directory \"{}\" from {source_name} is not an absolute path\n  help: write the whole path, starting with /", path.display())]
    Relative { path: PathBuf, source_name: String },
    #[error("the environment variable {name} cannot be read: {why}\n  help: unset it, or set it to an absolute path")]
    Variable { name: &'static str, why: String },
}

/// Resolves the data directory; it is not created here.
///
/// Order: `--data-dir`, `FOREBAY_DATA_DIR` (both in `flag`: the command line reads the variable), `forebay.data_dir` or
/// `file_storage.directory` (`setting`), `$STATE_DIRECTORY`, `/var/lib/forebay` if writable,
/// `$XDG_STATE_HOME/forebay`, `~/.local/state/forebay`. What a person named on the command line may be relative to the
/// working directory; everything else is absolute.
pub fn resolve(
    flag: Option<&Path>,
    setting: Option<&DataDirSetting>,
    world: &dyn World,
    is_writable: impl Fn(&Path) -> bool,
) -> Result<PathBuf, DataDirError> {
    if let Some(path) = flag {
        return std::path::absolute(path)
            .map_err(|_| DataDirError::Relative { path: path.to_owned(), source_name: "--data-dir".to_owned() });
    }
    if let Some(path) = variable(world, "FOREBAY_DATA_DIR")? {
        return absolute(PathBuf::from(path), "FOREBAY_DATA_DIR");
    }
    if let Some(setting) = setting {
        return absolute(setting.path.clone(), &setting.origin.to_string());
    }
    // systemd gives several directories separated by colons; the first is ours.
    if let Some(paths) = variable(world, "STATE_DIRECTORY")? {
        return absolute(PathBuf::from(paths.split(':').next().unwrap_or_default()), "STATE_DIRECTORY");
    }
    if is_writable(Path::new(SYSTEM_DIR)) {
        return Ok(PathBuf::from(SYSTEM_DIR));
    }
    // The XDG specification has relative paths ignored.
    let state_home = variable(world, "XDG_STATE_HOME")?.map(PathBuf::from).filter(|path| path.is_absolute());
    let home_state = variable(world, "HOME")?.map(|home| Path::new(&home).join(".local/state"));
    let state = state_home.or(home_state.filter(|path| path.is_absolute())).ok_or(DataDirError::NoPlace)?;
    Ok(state.join("forebay"))
}

fn variable(world: &dyn World, name: &'static str) -> Result<Option<String>, DataDirError> {
    let value = world.variable(name).map_err(|why| DataDirError::Variable { name, why })?;
    Ok(value.filter(|value| !value.is_empty()))
}

fn absolute(path: PathBuf, source_name: &str) -> Result<PathBuf, DataDirError> {
    if !path.is_absolute() {
        return Err(DataDirError::Relative { path, source_name: source_name.to_owned() });
    }
    Ok(path)
}

/// Whether files can be made in `dir`, or `dir` itself can be made in its parent.
pub fn is_writable(dir: &Path) -> bool {
    use rustix::fs::{Access, access};
    match dir.try_exists() {
        Ok(true) => access(dir, Access::WRITE_OK | Access::EXEC_OK).is_ok(),
        Ok(false) => dir.parent().is_some_and(|parent| access(parent, Access::WRITE_OK | Access::EXEC_OK).is_ok()),
        Err(_) => false,
    }
}
