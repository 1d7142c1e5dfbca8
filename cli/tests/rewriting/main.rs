//! Runs the command on files, and the examples of its pages with real tools.

#![expect(clippy::unwrap_used, reason = "tests")]

mod command;
mod pages;

use std::ffi::OsStr;
use std::path::Path;
use std::process::Command;

/// The inventory of the examples.
const INVENTORY: &str = include_str!("inventory.json");

/// The destination of the inventory.
const HOST: &str = "111111111111.dkr.ecr.us-west-2.amazonaws.com";

/// A shell in a directory that has the inventory in the environment.
fn shell(script: &str, directory: &Path) -> Command {
    let inventory = directory.join(".inventory.json");
    std::fs::write(&inventory, INVENTORY).unwrap();
    let stubs = directory.join(".stubs");
    let program = Path::new(env!("CARGO_BIN_EXE_ecr-transfer")).parent().unwrap();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut command = Command::new("bash");
    command.args(["-c", script]).current_dir(directory);
    command.env("PATH", [stubs.as_os_str(), program.as_os_str(), &path].join(OsStr::new(":")));
    command.env("ECR_TRANSFER_INVENTORY", inventory).env("HOME", directory);
    for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(variable, directory.join(".helm").join(variable));
    }
    command
}
