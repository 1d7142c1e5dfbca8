"""The least that a Lambda function in Python needs to list repositories: boto3, and the loop of the runtime."""

import json
import os
import urllib.request

import boto3

API = f"http://{os.environ['AWS_LAMBDA_RUNTIME_API']}/2018-06-01/runtime/invocation"
ecr = boto3.client("ecr", endpoint_url=os.environ["AWS_ENDPOINT_URL"])

while True:
    with urllib.request.urlopen(f"{API}/next") as event:
        request = event.headers["Lambda-Runtime-Aws-Request-Id"]
    names = [repository["repositoryName"] for repository in ecr.describe_repositories()["repositories"]]
    urllib.request.urlopen(f"{API}/{request}/response", json.dumps(names).encode()).close()
