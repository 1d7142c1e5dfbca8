"""What the commands that talk to an AWS account share: credentials, errors, waiting, and what a stack is made of."""

import functools
import json
import os
import signal
import sys
import time

import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

POLL = 2
DENIED = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError", "NotAuthorized"}
BAD_CREDENTIALS = {
    *("ExpiredToken", "ExpiredTokenException", "InvalidAccessKeyId", "InvalidClientTokenId"),
    *("RequestExpired", "SignatureDoesNotMatch", "UnrecognizedClientException"),
}
# What a stack is made of, by kind: the service and operation that list it, the list's key, and the field with the name.
KINDS = {
    "state machine": ("stepfunctions", "list_state_machines", "stateMachines", "name"),
    "function": ("lambda", "list_functions", "Functions", "FunctionName"),
    "table": ("dynamodb", "list_tables", "TableNames", None),
    "bucket": ("s3", "list_buckets", "Buckets", "Name"),
    "repository": ("ecr", "describe_repositories", "repositories", "repositoryName"),
    "queue": ("sqs", "list_queues", "QueueUrls", None),
    "topic": ("sns", "list_topics", "Topics", "TopicArn"),
    "subscription": ("sns", "list_subscriptions", "Subscriptions", "SubscriptionArn"),
    "log group": ("logs", "describe_log_groups", "logGroups", "logGroupName"),
    "secret": ("secretsmanager", "list_secrets", "SecretList", "Name"),
    "parameter": ("ssm", "describe_parameters", "Parameters", "Name"),
    "role": ("iam", "list_roles", "Roles", "RoleName"),
    "rule": ("events", "list_rules", "Rules", "Name"),
    "alarm": ("cloudwatch", "describe_alarms", "MetricAlarms", "AlarmName"),
    "dashboard": ("cloudwatch", "list_dashboards", "DashboardEntries", "DashboardName"),
    "task definition": ("ecs", "list_task_definitions", "taskDefinitionArns", None),
    "VPC": ("ec2", "describe_vpcs", "Vpcs", "VpcId"),
}


class Problem(Exception):
    """What a person must know, and what to do about it."""


def explained(error):
    """An error of AWS or of boto3, in words that say what to do."""
    match error:
        case NoCredentialsError():
            return "There are no AWS credentials. Give those that the AWS CLI would use: aws configure, or AWS_PROFILE."
        case NoRegionError():
            return "No region is given. Set REGION=… or AWS_REGION, for example REGION=us-west-2."
        case ClientError() if error.response["Error"]["Code"] in DENIED:
            return f"A permission is missing for {error.operation_name}: {error.response['Error']['Message']}"
        case ClientError() if error.response["Error"]["Code"] in BAD_CREDENTIALS:
            return f"The AWS credentials are wrong or have expired: {error.response['Error']['Message']}"
        case ClientError() | BotoCoreError():
            return f"AWS refused or did not answer: {error}"
        case Problem():
            return str(error)
        case _:
            return f"{type(error).__name__}: {error}"


def command(main):
    """Runs a command. Its problems end it with a message, and so do Ctrl-C and a polite kill."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        sys.exit(main())
    except (Problem, BotoCoreError, ClientError) as error:
        sys.exit(explained(error))
    except KeyboardInterrupt:
        sys.exit(130)


def clients(region):
    """A function that returns the client of a service, as the AWS CLI would configure it."""
    region = region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    session = boto3.Session(region_name=region or None)
    if not session.region_name:
        raise NoRegionError
    return functools.cache(session.client)


def confirmed(question):
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


def wait(what, probe, seconds, poll=POLL):
    """Asks until the answer is true, and returns it. Says every 15 seconds what it waits for: `what` may be a function."""
    began = said = time.monotonic()
    while not (answer := probe()):
        now = time.monotonic()
        text = what() if callable(what) else what
        if now - began > seconds:
            raise Problem(f"Timed out after {seconds} s: {text}.")
        if now - said >= 15:
            print(f"    {text}, {now - began:.0f} s", flush=True)
            said = now
        time.sleep(poll)
    return answer


def pages(client, operation, key, **arguments):
    """All items of a list that comes in pages."""
    return [item for page in client.get_paginator(operation).paginate(**arguments) for item in page.get(key, [])]


class Stack:
    """A stack, and what it is made of."""

    def __init__(self, aws, name):
        self.aws = aws
        self.cloudformation = aws("cloudformation")
        described = self.describe(name)
        if described is None:
            region = self.cloudformation.meta.region_name
            raise Problem(f"There is no stack {name} in {region}. Check STACK and REGION.")
        self.id, self.name = described["StackId"], described["StackName"]
        self.parameters = {it["ParameterKey"]: it.get("ParameterValue", "") for it in described.get("Parameters", [])}
        self.resources = {it["LogicalResourceId"]: it.get("PhysicalResourceId", "") for it in self.list_resources()}
        self.machine = self.resources.get("StateMachine", "")
        self.cluster = self.resources.get("Cluster") or self.parameters.get("ecsClusterName", "")
        self.family = f"{self.name}-copy"

    def describe(self, name):
        """What CloudFormation says of a stack; None if there is none."""
        try:
            return self.cloudformation.describe_stacks(StackName=name)["Stacks"][0]
        except ClientError as error:
            if "does not exist" in str(error):
                return None
            raise

    def list_resources(self):
        return pages(self.cloudformation, "list_stack_resources", "StackResourceSummaries", StackName=self.id)

    def tasks(self):
        """The copying tasks that ECS still knows. Those that have stopped stay on its lists for an hour."""
        ecs = self.aws("ecs")
        found = []
        for status in ("RUNNING", "STOPPED") if self.cluster else ():
            try:
                for page in ecs.get_paginator("list_tasks").paginate(
                    cluster=self.cluster, family=self.family, desiredStatus=status
                ):
                    if page["taskArns"]:
                        found += ecs.describe_tasks(cluster=self.cluster, tasks=page["taskArns"])["tasks"]
            except ecs.exceptions.ClusterNotFoundException:
                return []
        return found


def bearing(aws, name, kind):
    """The names of all of a kind that bear a name. CloudFormation tags what it makes, so the name or a tag has it."""
    service, operation, key, field = KINDS[kind]
    items = [item for item in pages(aws(service), operation, key) if name in json.dumps(item, default=str)]
    return [item[field] if field else item for item in items]


def empty_bucket(aws, bucket, prefix=""):
    """Deletes all versions of all objects below a prefix."""
    for page in aws("s3").get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix):
        versions = [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
        objects = [{"Key": version["Key"], "VersionId": version["VersionId"]} for version in versions]
        if objects:
            answer = aws("s3").delete_objects(Bucket=bucket, Delete={"Objects": objects, "Quiet": True})
            if answer.get("Errors"):
                raise Problem(f"{bucket} cannot be emptied: {answer['Errors']}")
