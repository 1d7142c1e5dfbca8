"""Deletes a stack of ecr-transfer, also while a run is active.

usage: delete.py STACK [--region REGION] [--yes]

CloudFormation alone would fail: tasks that run keep the cluster and the network, and executions keep the state machine.
"""

import argparse
import time

from botocore.exceptions import ClientError

from aws import Problem, Stack, bearing, clients, command, confirmed, wait

# After this, what launch-task has not stopped is stopped here.
GRACE = 30
TASKS_STOP = 10 * 60
STACK_IS_DELETED = 30 * 60


def stop_runs(stack):
    """Stops the executions that run, and waits until none of their tasks is left."""
    states, ecs = stack.aws("stepfunctions"), stack.aws("ecs")
    reason = f"The stack {stack.name} is being deleted."
    began = time.monotonic()
    seen, tasks = set(), []

    def all_stopped():
        # Each time anew: a schedule may start another execution meanwhile.
        executions = stack.running_executions()
        for execution in executions:
            if execution not in seen:
                print(f"    stopping execution {execution.rpartition(':')[2]}", flush=True)
                seen.add(execution)
            try:
                states.stop_execution(executionArn=execution, cause=reason)
            except ClientError as error:
                # It has just ended by itself.
                if error.response["Error"]["Code"] not in ("ExecutionDoesNotExist", "ValidationException"):
                    raise
        tasks[:] = stack.unstopped_tasks()
        if time.monotonic() - began > GRACE:
            for task in tasks:
                try:
                    ecs.stop_task(cluster=stack.cluster, task=task, reason=reason)
                except ClientError as error:
                    # launch-task stops them, too, whatever this caller is allowed to.
                    if error.response["Error"]["Code"] != "AccessDeniedException":
                        raise
        return not executions and not tasks

    wait(lambda: f"waiting for {len(tasks)} tasks to stop", all_stopped, TASKS_STOP)


def delete_stack(stack):
    """Deletes the stack, and waits until it is gone."""
    # A function that was just starting a task may have done so after the last look.
    for is_last in (False, True):
        if stack.machine:
            stop_runs(stack)
        stack.cloudformation.delete_stack(StackName=stack.id)
        status = wait(lambda: f"deleting {stack.name}: {progress(stack)}", lambda: deletion(stack), STACK_IS_DELETED)
        if status == "DELETE_COMPLETE":
            return
        if is_last:
            raise Problem(f"{stack.name} is {status}.\n" + "\n".join(reasons(stack)))


def deletion(stack):
    """How the deletion ended, if it has. It may take a moment until CloudFormation shows that it has begun."""
    described = stack.describe(stack.id)
    status = described["StackStatus"] if described else "DELETE_COMPLETE"
    return status if status in ("DELETE_COMPLETE", "DELETE_FAILED") else None


def progress(stack):
    resources = stack.list_resources()
    gone = sum(resource["ResourceStatus"] in ("DELETE_COMPLETE", "DELETE_SKIPPED") for resource in resources)
    return f"{gone} of {len(resources)} resources are gone"


def reasons(stack):
    """Why resources could not be deleted."""
    for resource in stack.list_resources():
        if resource["ResourceStatus"] == "DELETE_FAILED":
            yield f"{resource['LogicalResourceId']}: {resource.get('ResourceStatusReason', 'no reason is given')}"


def kept(stack, kind):
    """What is still there of a kind, though the stack is deleted."""
    try:
        return sorted(set(stack.resources.values()).intersection(bearing(stack.aws, "", kind)))
    except ClientError as error:
        # Who may delete a stack need not be allowed to list an account's buckets.
        print(f"\n  # Whether a {kind} stays cannot be seen: {error.response['Error']['Code']}")
        return []


def say_what_stays(stack):
    """Says what the deletion has left, with the commands that remove it."""
    region = stack.cloudformation.meta.region_name
    print("\nThese stay. The commands remove them:")
    for table in kept(stack, "table"):
        print(f"\n  aws dynamodb delete-table --region {region} --table-name {table}")
    for group in kept(stack, "log group"):
        print(f"\n  aws logs delete-log-group --region {region} --log-group-name {group}")
    for bucket in kept(stack, "bucket"):
        print("\n  # The bucket with the plans. Repeat the first two commands while it has more than 1,000 versions.")
        print(f"  aws s3api list-object-versions --bucket {bucket} --max-items 1000 --output json \\")
        print("    --query '{Objects: [Versions, DeleteMarkers][].{Key: Key, VersionId: VersionId}}' > versions.json")
        print(f"  aws s3api delete-objects --bucket {bucket} --delete file://versions.json")
        print(f"  aws s3api delete-bucket --bucket {bucket}")
    prefix, region = stack.parameters.get("destPrefix", ""), stack.parameters.get("destRegion") or region
    below = f"[?starts_with(repositoryName, '{prefix}/')]" if prefix else "[]"
    print("\n  # The repositories at the destination, with the credentials of its account. The first command lists them.")
    print(f'  aws ecr describe-repositories --region {region} --query "repositories{below}.repositoryName"')
    print(f"  aws ecr delete-repository --region {region} --force --repository-name NAME")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stack")
    parser.add_argument("--region", help="where the stack is; by default the AWS CLI's")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    arguments = parser.parse_args()
    stack = Stack(clients(arguments.region), arguments.stack)
    stack.check_kind()
    running, region = len(stack.running_executions()), stack.cloudformation.meta.region_name
    print(f"{stack.name} in {region}: {running} executions run, {len(stack.unstopped_tasks())} tasks.", flush=True)
    if not arguments.yes and not confirmed("Stop them, and delete the stack?"):
        raise Problem("Nothing was deleted. YES=1 deletes without asking.")
    delete_stack(stack)
    print(f"{stack.name} is deleted.")
    say_what_stays(stack)


if __name__ == "__main__":
    command(main)
