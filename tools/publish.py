"""Publishes the template to a bucket, with the functions' code, for those who deploy without SAM.

usage: publish.py TEMPLATE BUCKET [PREFIX]      TEMPLATE is what `sam build` left, PREFIX by default ecr-transfer

What is published needs no transform, and so no CAPABILITY_AUTO_EXPAND: it can be launched from the console or by `aws
cloudformation create-stack`. Lambda takes code only from a bucket in its own region, so each region needs its own.
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
            sys.exit(f"the code cannot be uploaded to {bucket}:\n{result.stderr}")
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
