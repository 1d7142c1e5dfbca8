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
                self.stop_runs(task, machine, cluster, &Scope::All, &reason, |it| report(Deleting::Stopping(it)))
                    .await?;
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
            description:
                "The repositories at the destination. Use the credentials of its account. The first command lists them."
                    .into(),
            commands: vec![
                format!(
                    r#"aws ecr describe-repositories --region {region} --query "repositories[{below}].repositoryName""#
                ),
                format!("aws ecr delete-repository --region {region} --force --repository-name NAME"),
            ],
        });
        remains
    }
}

fn resource(kind: &str, name: &str, region: &str) -> Option<Remains> {
    let (description, commands) = match kind {
        "AWS::DynamoDB::Table" => (
            format!("The table {name}."),
            vec![format!("aws dynamodb delete-table --region {region} --table-name {name}")],
        ),
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
                "  --query '{Objects: [Versions, DeleteMarkers][].{Key: Key, VersionId: VersionId}}' > versions.json"
                    .into(),
                format!("aws s3api delete-objects --bucket {name} --delete file://versions.json"),
                format!("aws s3api delete-bucket --bucket {name}"),
            ],
        ),
        // Security groups, for example, are gone with the stack or are a failure.
        _ => return None,
    };
    Some(Remains { description, commands })
}

#[cfg(test)]
mod tests {
    use aws_sdk_cloudformation::operation::delete_stack::DeleteStackOutput;
    use aws_sdk_cloudformation::operation::describe_stack_events::DescribeStackEventsOutput;
    use aws_sdk_cloudformation::operation::list_stack_resources::ListStackResourcesOutput;
    use aws_sdk_cloudformation::primitives::DateTime;
    use aws_sdk_cloudformation::types::{ResourceStatus, StackEvent};
    use aws_smithy_mocks::{Rule, mock};
    use std::sync::{Arc, Mutex};

    use super::super::account::tests::account;
    use super::super::stack::tests::{ID, task};
    use super::*;

    /// A stack whose deletions end like this. The events of all earlier ones stay.
    fn deletions(statuses: &'static [&'static str]) -> [Rule; 3] {
        let tokens = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::clone(&tokens);
        let delete = mock!(aws_sdk_cloudformation::Client::delete_stack).then_compute_output(move |request| {
            asked.lock().expect("nothing panicked").push(request.client_request_token().unwrap_or_default().to_owned());
            DeleteStackOutput::builder().build()
        });
        let events = mock!(aws_sdk_cloudformation::Client::describe_stack_events).then_compute_output(move |_| {
            let mut events = Vec::new();
            for (at, token) in tokens.lock().expect("nothing panicked").iter().enumerate() {
                let event = |id: &str, resource: &str, physical: &str, kind: &str, status: &str| {
                    StackEvent::builder()
                        .event_id(format!("{at}-{id}"))
                        .stack_id(ID)
                        .stack_name("copies")
                        .timestamp(DateTime::from_secs(0))
                        .client_request_token(token)
                        .logical_resource_id(resource)
                        .physical_resource_id(physical)
                        .resource_type(kind)
                        .resource_status(ResourceStatus::from(status))
                        .resource_status_reason("in use")
                        .build()
                };
                events.push(event("1", "ImageTable", "table-1", "AWS::DynamoDB::Table", "DELETE_SKIPPED"));
                events.push(event("2", "SelectedImages", "p", "AWS::SSM::Parameter", "DELETE_SKIPPED"));
                if statuses[at] == "DELETE_FAILED" {
                    events.push(event("3", "Vpc", "vpc-1", "AWS::EC2::VPC", "DELETE_FAILED"));
                }
                events.push(event("4", "copies", ID, "AWS::CloudFormation::Stack", statuses[at]));
            }
            events.reverse();
            DescribeStackEventsOutput::builder().set_stack_events(Some(events)).build()
        });
        let resources = mock!(aws_sdk_cloudformation::Client::list_stack_resources)
            .then_output(|| ListStackResourcesOutput::builder().build());
        [delete, events, resources]
    }

    async fn deleted(statuses: &'static [&'static str]) -> (Result<Vec<Remains>>, usize) {
        let [delete, events, resources] = deletions(statuses);
        let deleted = account(&[&delete, &events, &resources]).delete(&task(), |_| ()).await;
        (deleted, delete.num_calls())
    }

    #[tokio::test]
    async fn what_stays_is_told_with_commands() {
        let (remains, calls) = deleted(&["DELETE_COMPLETE"]).await;
        let remains = remains.expect("it is deleted");
        assert_eq!((calls, remains.len()), (1, 2));
        assert_eq!(remains[0].commands, ["aws dynamodb delete-table --region us-east-1 --table-name table-1"]);
        assert!(remains[1].commands[0].contains("repositories[].repositoryName"), "{remains:?}");
    }

    #[tokio::test]
    async fn a_deletion_that_fails_is_tried_again_and_its_end_is_not_taken_for_that_of_the_next() {
        let (remains, calls) = deleted(&["DELETE_FAILED", "DELETE_COMPLETE"]).await;
        assert_eq!((calls, remains.expect("it is deleted").len()), (2, 2));
        let (remains, calls) = deleted(&["DELETE_FAILED", "DELETE_FAILED"]).await;
        let error = remains.expect_err("it failed").to_string();
        assert_eq!((calls, error.as_str()), (2, "copies is DELETE_FAILED. Vpc failed first: in use"));
    }

    #[tokio::test]
    async fn a_protected_task_is_not_deleted() {
        let protected = Task { is_protected: true, ..task() };
        let error = account(&[]).delete(&protected, |_| ()).await.expect_err("it is protected").to_string();
        assert!(error.contains("--no-enable-termination-protection --stack-name copies"), "{error}");
    }

    #[test]
    fn commands_for_each_kind_of_remains_name_it() {
        for kind in ["AWS::DynamoDB::Table", "AWS::Logs::LogGroup", "AWS::S3::Bucket"] {
            let remains = resource(kind, "it-s-name", "eu-west-1").expect(kind);
            assert!(remains.commands.iter().any(|command| command.contains(" it-s-name")), "{remains:?}");
        }
    }
}
