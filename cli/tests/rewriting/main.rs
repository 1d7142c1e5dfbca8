//! Runs the command on files, and the examples of its pages with real tools.

#![expect(missing_docs, clippy::unwrap_used, reason = "tests")]

mod command;
mod pages;

use std::ffi::OsStr;
use std::path::Path;

/// The inventory of the examples.
const INVENTORY: &str = include_str!("inventory.json");

/// The destination of the inventory.
const HOST: &str = "111111111111.dkr.ecr.us-west-2.amazonaws.com";

/// A shell in a directory that has the inventory in the environment.
fn shell(script: &str, directory: &Path) -> std::process::Command {
    let inventory = directory.join(".inventory.json");
    std::fs::write(&inventory, INVENTORY).unwrap();
    let program = Path::new(env!("CARGO_BIN_EXE_ecr-transfer"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<&OsStr> =
        vec![directory.join(".stubs").as_os_str(), program.parent().unwrap().as_os_str(), &path].into_iter().collect();
    let mut command = std::process::Command::new("bash");
    command.args(["-c", script]).current_dir(directory).env("PATH", path.join(OsStr::new(":")));
    command.env("ECR_TRANSFER_INVENTORY", inventory).env("HOME", directory);
    for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(variable, directory.join(".helm").join(variable));
    }
    command
}
