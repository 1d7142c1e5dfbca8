"""Checks ecr-transfer in an AWS account: deploys a stack, copies small images, looks at what ECR has, and deletes it all.

usage: check_aws.py --command PATH [--region REGION] [--yes] [--keep] [--parameter name=value]...

Everything that it makes bears one name, ecr-transfer-check-…, and nothing else is written.
"""

import argparse
import json
import re
import secrets
import subprocess
import tempfile
import textwrap
import time
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from aws import KINDS, Problem, Stack, bearing, clients, command, confirmed, empty_bucket, explained, pages, wait

PROJECT = Path(__file__).resolve().parent.parent
ALPINE = "public.ecr.aws/docker/library/alpine"
IMAGES = ["public.ecr.aws/docker/library/busybox:1.36", f"{ALPINE}:3.20", "public.ecr.aws/docker/library/hello-world:linux"]
MISSING = "ecr-transfer-has-no-such-tag"

# Dollars in us-east-1, as docs/guide.md has them; quantities are upper limits.
COSTS = [
    ("6 Fargate tasks of 3 minutes, with an address: 6 × 3 ÷ 60 × ($0.01975 + $0.005)", 6 * 3 / 60 * (0.01975 + 0.005)),
    ("6 executions of 45 transitions: 6 × 45 × $0.000025", 6 * 45 * 0.000025),
    ("an hour of secret, alarms, metrics and dashboard: $6.10 a month ÷ 730", 6.10 / 730),
    ("an hour of 0.2 GB in ECR: 0.2 × $0.10 a month ÷ 730", 0.2 * 0.10 / 730),
    ("requests to Lambda, DynamoDB, S3, SNS, SQS and CloudWatch", 0.01),
]


class Failed(Problem):
    """A check's finding."""


class Stop(Exception):
    """A check failed without which the others say nothing."""


def expect(condition, text):
    if not condition:
        raise Failed(text)


class Check:
    """One run of the check: what it has made, and what it has found."""

    def __init__(self, arguments):
        self.aws, self.local, self.extra = clients(arguments.region), arguments.local, arguments.parameter
        self.command = arguments.command
        self.region = self.aws("sts").meta.region_name
        caller = self.aws("sts").get_caller_identity()
        self.account, self.caller = caller["Account"], caller["Arn"]
        self.name = f"ecr-transfer-check-{secrets.token_hex(3)}"
        self.poll, self.number, self.evidence, self.received = 0.3 if self.local else 3, 0, [], []
        self.stack = self.queue = self.subscription = self.execution = self.cause = None

    # -- How checks are made

    def step(self, what, function, *arguments, vital=False):
        """Makes a check, and prints what came of it."""
        self.number += 1
        began, problem = time.monotonic(), None
        try:
            function(*arguments)
        except Exception as error:  # Whatever it is, the other checks go on, and all is deleted.
            problem = explained(error)
        result = "FAILED" if problem else "ok"
        print(f"{self.number:2}  {what:<72} {result:<6} {time.monotonic() - began:4.0f} s", flush=True)
        if problem:
            print(textwrap.indent(problem, "      "), flush=True)
            self.evidence.append(f"{self.number} {what}\n{problem}\n{self.traces()}".replace(self.account, "ACCOUNT"))
            if vital:
                raise Stop

    def traces(self):
        """What helps to understand a failure, as long as it is there: the execution, and the ends of the logs."""
        lines = []
        try:
            if self.execution:
                end = self.aws("stepfunctions").describe_execution(executionArn=self.execution)
                lines += [f"execution: {self.execution}", f"{end['status']} {end.get('error', '')}: {end.get('cause', '')}"]
            for logical, group in sorted(self.stack.resources.items()) if self.stack else ():
                if logical.endswith(("FunctionLog", "LogGroup")):
                    lines += [f"--- {logical}", *self.log(group)[-10:]]
        except (BotoCoreError, ClientError) as error:
            lines.append(explained(error))
        return "\n".join(lines)

    def log(self, group):
        """A log group's lines, without those that Lambda writes about each invocation."""
        lines = [event["message"].rstrip() for event in pages(self.aws("logs"), "filter_log_events", "events", logGroupName=group)]
        return [line for line in lines if not re.match(r'(START|END|REPORT) RequestId|.*"type":"platform', line)]

    # -- What is checked

    def deploy(self):
        parameters = {
            **{"sourceType": "Public", "srcList": "SELECTED", "srcImageList": ",".join(IMAGES)},
            **{"destPrefix": self.name, "schedule": "once", "recordsOnDeletion": "Retain"},
            **self.extra,
        }
        arguments = ["--stack-name", self.name, "--s3-prefix", self.name, "--region", self.region, "--resolve-s3"]
        arguments += ["--template-file", str(PROJECT / ".aws-sam/build/template.yaml"), "--capabilities", "CAPABILITY_IAM"]
        arguments += ["--no-confirm-changeset", "--no-progressbar", "--parameter-overrides"]
        # sam takes an empty value for a missing one, and so does the template.
        arguments += [f"{name}={json.dumps(value)}" for name, value in parameters.items() if value]
        with tempfile.TemporaryFile("w+") as log:
            sam = subprocess.Popen(["sam", "deploy", *arguments], cwd=PROJECT, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                wait("deploying", lambda: sam.poll() is not None, 30 * 60, self.poll)
            finally:
                sam.terminate()
            log.seek(0)
            expect(sam.wait() == 0, "sam deploy failed:\n" + "".join(log.readlines()[-40:]))
        self.stack = Stack(self.aws, self.name)
        for role, actions in json.loads(self.local or "{}").items():
            document = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": actions, "Resource": "*"}]}
            policy = {"PolicyName": "LocalAws", "PolicyDocument": json.dumps(document)}
            self.aws("iam").put_role_policy(RoleName=self.stack.resources[role], **policy)

    def subscribe(self):
        sqs, topic = self.aws("sqs"), self.stack.resources["Topic"]
        self.queue = sqs.create_queue(QueueName=self.name)["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        statement = {"Effect": "Allow", "Principal": {"Service": "sns.amazonaws.com"}, "Action": "sqs:SendMessage"}
        statement |= {"Resource": arn, "Condition": {"ArnEquals": {"aws:SourceArn": topic}}}
        policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        sqs.set_queue_attributes(QueueUrl=self.queue, Attributes={"Policy": policy})
        subscribed = self.aws("sns").subscribe(TopicArn=topic, Protocol="sqs", Endpoint=arn, ReturnSubscriptionArn=True)
        self.subscription = subscribed["SubscriptionArn"]

    def first_execution(self):
        states = self.aws("stepfunctions")
        executions = lambda: states.list_executions(stateMachineArn=self.stack.machine)["executions"]
        try:
            found = wait("waiting for the stack's first execution", executions, 3 if self.local else 180, self.poll)
            self.execution = found[-1]["executionArn"]
        except Problem:
            # The rest can be checked all the same.
            self.execution = states.start_execution(stateMachineArn=self.stack.machine)["executionArn"]
            expect(self.local, "The stack has not started its first execution. Its rule DeployedRule should have.")

    def start(self, images=None):
        """Starts an execution, of another selection if one is given."""
        if images:
            parameter = {"Name": self.stack.resources["SelectedImages"], "Type": "String", "Overwrite": True}
            self.aws("ssm").put_parameter(Value=",".join(images), **parameter)
        self.execution = self.aws("stepfunctions").start_execution(stateMachineArn=self.stack.machine)["executionArn"]

    def ends(self, status):
        """Waits until the execution ends, as it should, and returns its description."""
        describe = lambda: self.aws("stepfunctions").describe_execution(executionArn=self.execution)
        wait("the execution runs", lambda: describe()["status"] != "RUNNING", 30 * 60, self.poll)
        end = describe()
        text = f"The execution should be {status}, and is {end['status']}: {end.get('error')}: {end.get('cause')}"
        expect(end["status"] == status, "\n".join([text, *self.errors()]))
        return end

    def rows(self):
        table = self.stack.resources["ImageTable"]
        items = pages(self.aws("dynamodb"), "scan", "Items", TableName=table, ConsistentRead=True)
        return [{name: next(iter(value.values())) for name, value in item.items()} for item in items]

    def errors(self):
        rows = [row for row in self.rows() if row["Status"] != "Done"]
        return [f"{row['Image']} {row['Tag']}: {row.get('ErrorMessage')}" for row in rows]

    def destination(self):
        """What ECR itself lists below the prefix: digests by repository:tag, without the prefix. And its host."""
        ecr, prefix, digests, hosts = self.aws("ecr"), f"{self.name}/", {}, set()
        for repository in pages(ecr, "describe_repositories", "repositories"):
            name = repository["repositoryName"]
            if name.startswith(prefix):
                hosts.add(repository["repositoryUri"].removesuffix(f"/{name}"))
                for image in pages(ecr, "describe_images", "imageDetails", repositoryName=name):
                    for tag in image.get("imageTags", []):
                        digests[f"{name.removeprefix(prefix)}:{tag}"] = image["imageDigest"]
        return digests, hosts

    def copies(self, images):
        """An execution copies these images: ECR lists their tags and no others, and the table says the same."""
        self.ends("SUCCEEDED")
        digests, hosts = self.destination()
        tags = {image.partition("@")[0]: image.partition("@")[2] for image in images}
        # Signatures and attestations come along, under tags such as sha256-….sig.
        others = {name for name in digests if not re.search(r":sha256-[0-9a-f]{64}", name)} - tags.keys()
        expect(not others and tags.keys() <= digests.keys(), f"ECR lists {sorted(digests)}, and not just {sorted(tags)}")
        rows = {row.get("Destination"): row for row in self.rows() if row["Status"] == "Done"}
        for tag, wanted in tags.items():
            expect(wanted in ("", digests[tag]), f"{tag} is {digests[tag]} in ECR, and not {wanted}")
            recorded = [rows.get(f"{host}/{self.name}/{tag}", {}).get("Digest") for host in hosts]
            expect(recorded == [digests[tag]], f"{tag} is {digests[tag]} in ECR, and {recorded} in the table")

    def copies_nothing(self):
        before = {task["taskArn"] for task in self.stack.tasks()}
        expect(before, "ECS lists no task of the first run")
        self.start()
        output = json.loads(self.ends("SUCCEEDED")["output"])
        expect(output.get("batches") == 0, f"The execution's output is {output}; batches should be 0")
        started = {task["taskArn"] for task in self.stack.tasks()} - before
        expect(not started, f"It started {len(started)} tasks")

    def adds_and_moves(self, moved):
        """A tag that the source does not have: first for the digest of 3.20, then for that of 3.19."""
        digest = self.destination()[0][f"{ALPINE}:{'3.19' if moved else '3.20'}"]
        images = [*IMAGES, f"{ALPINE}:3.19", f"{ALPINE}:extra@{digest}"]
        self.start(images)
        self.copies(images)

    def fails(self):
        self.start([*IMAGES, f"{ALPINE}:3.19", f"{ALPINE}:{MISSING}"])
        end = self.ends("FAILED")
        expect(end.get("error") == "ImagesNotCopied", f"The error is {end.get('error')}, and not ImagesNotCopied")
        rows = [row for row in self.rows() if row["Tag"] == MISSING]
        expect([row["Status"] for row in rows] == ["Error"], f"The rows of {MISSING} are {rows}; one with Error is expected")
        expect(rows[0].get("ErrorMessage"), "The row has no ErrorMessage")
        self.cause = end["cause"]

    def receive(self, seconds=0):
        sqs = self.aws("sqs")
        answer = sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10, WaitTimeSeconds=seconds)
        for message in answer.get("Messages", []):
            self.received.append(json.loads(message["Body"]))
            sqs.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])
        return self.received

    def is_told(self):
        wait("waiting for the message", self.receive, 180, self.poll)
        expect(len(self.received) == 1, f"There are {len(self.received)} messages: {self.received}")
        subject, text = self.received[0].get("Subject"), self.received[0]["Message"]
        expect(subject, "The message has no subject")
        expect(MISSING in text or (self.cause and self.cause in text), f"The message does not have the cause:\n{text}")
        for pattern in (r"^Execution: https://\S+", r"^Logs[^:\n]*: https://\S+"):
            expect(re.search(pattern, text, re.MULTILINE), f"The message has no {pattern}:\n{text}")

    def is_told_no_more(self):
        self.receive(1 if self.local else 20)
        expect(len(self.received) == 1, f"There are {len(self.received)} messages: {self.received}")

    def heals(self):
        images = [*IMAGES, f"{ALPINE}:3.19"]
        self.start(images)
        self.ends("SUCCEEDED")
        expect(not self.errors(), "\n".join(["Rows that should be gone or Done:", *self.errors()]))

    def is_watched(self):
        resources, cloudwatch = self.stack.resources, self.aws("cloudwatch")
        names = [name for logical, name in resources.items() if logical.endswith("Alarm")]
        alarms = {alarm["AlarmName"]: alarm["StateValue"] for alarm in cloudwatch.describe_alarms(AlarmNames=names)["MetricAlarms"]}
        expect(names and alarms.keys() == set(names), f"CloudWatch has the alarms {sorted(alarms)}, and not {sorted(names)}")
        body = json.loads(cloudwatch.get_dashboard(DashboardName=resources["Dashboard"])["DashboardBody"])
        expect(body.get("widgets"), "The dashboard is empty")
        for logical, line in (("DTHECRContainerLogGroup", r"^Done\t"), ("ListImagesFunctionLog", "ImagesListed")):
            found = any(re.search(line, text) for text in self.log(resources[logical]))
            expect(found, f"The log group {resources[logical]} has no line with {line}")

    def is_found(self):
        """Or the last check would find nothing whatever is left."""
        missing = [kind for kind in KINDS if not bearing(self.aws, self.name, kind)]
        expect(set(missing) <= ({"VPC"} - self.stack.resources.keys()), f"Nothing of these kinds is found: {missing}")

    # -- What is deleted

    def unsubscribe(self):
        self.aws("sns").unsubscribe(SubscriptionArn=self.subscription)
        self.aws("sqs").delete_queue(QueueUrl=self.queue)

    def delete(self):
        command = [self.command, "delete", self.name, "--yes", "--region", self.region]
        result = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        expect(result.returncode == 0, f"ecr-transfer delete failed:\n{result.stderr}")

    def remove_rest(self):
        for table in bearing(self.aws, self.name, "table"):
            self.aws("dynamodb").delete_table(TableName=table)
        # CloudFormation only makes them inactive.
        inactive = {"familyPrefix": f"{self.name}-copy", "status": "INACTIVE"}
        definitions = pages(self.aws("ecs"), "list_task_definitions", "taskDefinitionArns", **inactive)
        if definitions:
            self.aws("ecs").delete_task_definitions(taskDefinitions=definitions)
        for repository in bearing(self.aws, self.name, "repository"):
            self.aws("ecr").delete_repository(repositoryName=repository, force=True)
        for bucket in bearing(self.aws, self.name, "bucket"):
            empty_bucket(self.aws, bucket)
            self.aws("s3").delete_bucket(Bucket=bucket)
        # What sam has uploaded, to a bucket that it keeps for all stacks of the account and region.
        uploads = Stack(self.aws, "aws-sam-cli-managed-default").resources.get("SamCliSourceBucket")
        if uploads:
            empty_bucket(self.aws, uploads, f"{self.name}/")

    def nothing_left(self):
        remaining = {}

        def gone():
            remaining.clear()
            remaining.update({kind: names for kind in KINDS if (names := bearing(self.aws, self.name, kind))})
            return not remaining

        # SQS and DynamoDB take up to a minute.
        wait(lambda: f"still there: {remaining}", gone, 180, self.poll)

    def clean_up(self):
        if self.subscription:
            self.step("queue and subscription are deleted", self.unsubscribe)
        try:
            Stack(self.aws, self.name)
        except Problem:
            pass  # The deployment did not come that far.
        else:
            self.step("the stack is deleted", self.delete)
        self.step("tables, bucket, repositories and uploaded code are deleted", self.remove_rest)
        self.step("nothing is left that bears the name", self.nothing_left)

    # -- All of it

    def run(self):
        self.step("a stack is deployed", self.deploy, vital=True)
        self.step("a queue is subscribed to its topic", self.subscribe)
        first = "an execution is started, as the local AWS sends no event" if self.local else "the stack starts its first execution"
        self.step(first, self.first_execution)
        self.step("three images are copied; ECR lists their tags and digests", self.copies, IMAGES, vital=True)
        self.step("a second run copies nothing and starts no task", self.copies_nothing)
        self.step("another tag of an image that is there is added", self.adds_and_moves, False)
        self.step("that tag is moved to another image", self.adds_and_moves, True)
        self.step("an image that is missing fails the run, and its row says why", self.fails)
        self.step("one message has the cause and the links", self.is_told)
        self.step("without that image the next run succeeds, and no row says Error", self.heals)
        self.step("no other message was sent", self.is_told_no_more)
        self.step("alarms, dashboard and logs are there", self.is_watched)
        self.step("all that was made is found by its name", self.is_found)


def parameter(text):
    name, separator, value = text.partition("=")
    if not separator:
        raise argparse.ArgumentTypeError(f"{text} should be name=value")
    return name, value


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--command", required=True, help="the command ecr-transfer, which deletes the stack")
    parser.add_argument("--region", help="where to deploy; by default the AWS CLI's")
    parser.add_argument("--yes", action="store_true", help="do not ask before money is spent")
    parser.add_argument("--keep", action="store_true", help="delete nothing in the end")
    parser.add_argument("--parameter", action="append", default=[], type=parameter, help="a parameter of the stack, name=value")
    parser.add_argument("--local", help="on the local AWS: as JSON, the actions that it asks for besides, by role")
    arguments = parser.parse_args()
    arguments.parameter = dict(arguments.parameter)
    check = Check(arguments)

    print(f"This deploys {check.name} in account {check.account}, {check.region}, as {check.caller}, and deletes it again.")
    print("It takes about 20 minutes. It costs at most, at the public prices of us-east-1:")
    print(*(f"  ${dollars:.4f}  {what}" for what, dollars in COSTS), sep="\n")
    print(f"  ${sum(dollars for _, dollars in COSTS):.4f}  in all", flush=True)
    if not arguments.yes and not confirmed("Go on?"):
        raise Problem("Nothing was done. YES=1 goes on without asking.")
    if not arguments.local:
        build = ["tools/exclusively", "tools/build", "arm64"]
        if subprocess.run(build, cwd=PROJECT).returncode:
            raise Problem("The Lambdas cannot be built; see above.")

    try:
        check.run()
    except Stop:
        pass
    except KeyboardInterrupt:
        print("\nInterrupted.", "" if arguments.keep else "What was made is deleted; interrupt again to leave it.", flush=True)
        raise
    finally:
        if not arguments.keep:
            check.clean_up()
    if arguments.keep:
        print(f"\n{check.name} is kept. make delete STACK={check.name} deletes it, and says how to remove what stays.")
    if not check.evidence:
        print(f"\nAll {check.number} checks passed.")
        return 0
    print(f"\n{len(check.evidence)} of {check.number} checks failed. If you report this, send what follows, and the version:\n")
    print("\n\n".join(check.evidence))
    return 1


if __name__ == "__main__":
    command(main)
