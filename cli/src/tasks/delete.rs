//! Deletes a task, also while a run is active.
//!
//! CloudFormation alone would fail: tasks that run use the cluster and the network, and executions use the state machine.

use serde::Serialize;

use super::run::{Scope, Stopping, cluster_of};
use super::{Account, Error, Event, Result, Task};

/// What happens while a task is deleted.
#[derive(Clone, Debug)]
pub enum Deleting {
    /// Its runs are stopped first.
    Stopping(Stopping),
    /// CloudFormation deletes its resources.
    Event(Event),
}

/// Something that a deleted task leaves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Remains {
    /// What it is, in words.
    pub description: String,
    /// Commands that remove it.
    pub commands: Vec<String>,
}

impl Account {
    /// Stops the runs of a task, deletes its stack, waits until it is gone, and returns what stays.
    ///
    /// # Errors
    /// If it is protected, or a resource cannot be deleted.
    pub async fn delete(&self, task: &Task, mut report: impl FnMut(Deleting)) -> Result<Vec<Remains>> {
        if task.is_protected {
            return Err(Error::Rejected(format!(
                "{0} is protected from deletion. To allow it: aws cloudformation update-termination-protection --region {1} \
                 --no-enable-termination-protection --stack-name {0}",
                task.name, self.region
            )));
        }
        let resources = self.resources(task).await?;
        let cluster = cluster_of(task, &resources);
        let mut kept = Vec::new();
        // A function that was just starting a task may have done so after the last look.
        for is_last in [false, true] {
            if let Some(machine) = resources.get("StateMachine") {
                let reason = format!("The stack {} is being deleted.", task.name);
                self.stop_runs(task, machine, cluster, &Scope::All, &reason, |it| report(Deleting::Stopping(it))).await?;
            }
            // Its events have a token of their own, so the end of an earlier deletion is not taken for the end of this one.
            let change = self.start_deletion(task).await?;
            let deleted = self
                .follow(&change, |event| {
                    if event.status == "DELETE_SKIPPED" {
                        kept.push((event.kind.clone(), event.physical.clone()));
                    }
                    report(Deleting::Event(event.clone()));
                })
                .await;
            match deleted {
                Err(Error::Failed { .. }) if !is_last => {}
                other => {
                    other?;
                    break;
                }
            }
        }
        kept.sort();
        kept.dedup();
        Ok(self.remains(task, &kept))
    }

    fn remains(&self, task: &Task, kept: &[(String, String)]) -> Vec<Remains> {
        let region = &self.region;
        let mut remains: Vec<_> = kept.iter().filter_map(|(kind, name)| resource(kind, name, region)).collect();
        let parameter = |name: &str| task.parameters.get(name).map(String::as_str).filter(|value| !value.is_empty());
        let region = parameter("destRegion").unwrap_or(region);
        let below = parameter("destPrefix").map(|prefix| format!("?starts_with(repositoryName, '{prefix}/')"));
        let below = below.unwrap_or_default();
        remains.push(Remains {
            description: "The repositories at the destination, with the credentials of its account. The first command lists them."
                .into(),
            commands: vec![
                format!(r#"aws ecr describe-repositories --region {region} --query "repositories[{below}].repositoryName""#),
                format!("aws ecr delete-repository --region {region} --force --repository-name NAME"),
            ],
        });
        remains
    }
}

fn resource(kind: &str, name: &str, region: &str) -> Option<Remains> {
    let (description, commands) = match kind {
        "AWS::DynamoDB::Table" => {
            (format!("The table {name}."), vec![format!("aws dynamodb delete-table --region {region} --table-name {name}")])
        }
        "AWS::Logs::LogGroup" => (
            format!("The log group {name}."),
            vec![format!("aws logs delete-log-group --region {region} --log-group-name {name}")],
        ),
        "AWS::S3::Bucket" => (
            format!(
                "The bucket {name} with the plans. Repeat the first two commands while it has more than 1,000 versions."
            ),
            vec![
                format!("aws s3api list-object-versions --bucket {name} --max-items 1000 --output json \\"),
                "  --query '{Objects: [Versions, DeleteMarkers][].{Key: Key, VersionId: VersionId}}' > versions.json".into(),
                format!("aws s3api delete-objects --bucket {name} --delete file://versions.json"),
                format!("aws s3api delete-bucket --bucket {name}"),
            ],
        ),
        // Security groups, for example, are gone with the stack or are a failure.
        _ => return None,
    };
    Some(Remains { description, commands })
}
