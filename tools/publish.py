"""Publishes the template and the code of the functions to a bucket, for deployments without SAM.

usage: publish.py TEMPLATE BUCKET [PREFIX]      TEMPLATE is the output of `sam build`, PREFIX defaults to ecr-transfer

The published template needs no transform and no CAPABILITY_AUTO_EXPAND, so the console and `aws cloudformation
create-stack` can launch it. Each region needs a bucket, because Lambda reads code only from a bucket in its own region.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import boto3

from plain import plain_template


def publish(template, bucket, prefix):
    s3 = boto3.client("s3")
    with tempfile.TemporaryDirectory() as directory:
        packaged = Path(directory) / "packaged.yaml"
        command = ["sam", "package", "--template-file", template, "--s3-bucket", bucket, "--s3-prefix", prefix]
        result = subprocess.run(
            [*command, "--no-resolve-s3", "--output-template-file", packaged], capture_output=True, text=True
        )
        if result.returncode != 0:
            sys.exit(f"cannot upload the code to {bucket}:\n{result.stderr}")
        body = json.dumps(plain_template(packaged.read_text(encoding="utf-8")), separators=(",", ":"))
    key = f"{prefix}/ecr-transfer.template"
    s3.put_object(Bucket=bucket, Key=key, Body=body.encode(), ContentType="application/json")
    return f"{s3.meta.endpoint_url}/{bucket}/{key}"


if __name__ == "__main__":
    match sys.argv[1:]:
        case [template, bucket]:
            print(publish(template, bucket, "ecr-transfer"))
        case [template, bucket, prefix]:
            print(publish(template, bucket, prefix.strip("/")))
        case _:
            sys.exit(__doc__)
