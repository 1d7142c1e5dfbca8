//! The command `ecr-transfer`, on the machine that the tests share.

use std::env;
use std::process::Stdio;

use local::aws::{Aws, xml_text};
use serde_json::Value;
use tokio::process::Command;

use crate::world::{Result, World};

/// The variable that makes this program the command.
pub const IS_COMMAND: &str = "ECR_TRANSFER_IS_COMMAND";

/// What the command printed.
#[derive(Debug)]
pub struct Output {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// What it printed as JSON, if this is its exit code.
    pub fn json(&self, code: i32) -> Result<Value> {
        if self.code != code {
            return Err(format!("{self:?}").into());
        }
        Ok(serde_json::from_str(&self.stdout)?)
    }
}

/// Runs `ecr-transfer`.
pub async fn command(world: &World, arguments: &[&str], environment: &[(&str, String)]) -> Result<Output> {
    let mut command = Command::new(env::current_exe()?);
    command.args(arguments).envs(world.machine().env().iter().cloned());
    command.envs(environment.iter().cloned()).env(IS_COMMAND, "1");
    let output = command.stdin(Stdio::null()).output().await?;
    Ok(Output {
        code: output.status.code().ok_or("it was killed")?,
        stdout: String::from_utf8(output.stdout)?,
        stderr: String::from_utf8(output.stderr)?,
    })
}

/// Creates a user with this policy and no other, and returns the variables of its key.
pub async fn user(home: &Aws, name: &str, policy: &str) -> Result<[(&'static str, String); 2]> {
    let user = ("UserName", name);
    home.query("iam", "CreateUser", &[user]).await?;
    home.query("iam", "PutUserPolicy", &[user, ("PolicyName", "page"), ("PolicyDocument", policy)]).await?;
    let key = home.query("iam", "CreateAccessKey", &[user]).await?;
    let field = |name: &str| xml_text(&key, name).ok_or(format!("the key has no {name}"));
    Ok([("AWS_ACCESS_KEY_ID", field("AccessKeyId")?), ("AWS_SECRET_ACCESS_KEY", field("SecretAccessKey")?)])
}
