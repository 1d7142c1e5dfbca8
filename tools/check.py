"""Checks of the template that the linters do not make by themselves, and of what is uploaded with it.

usage: check.py template TEMPLATE            what CloudFormation gets, and the two languages inside the template
       check.py artifacts DIRECTORY ARCH     what `sam build` left in DIRECTORY for arm64 or x86_64

Runs in the environment of the SAM CLI, which brings cfn-lint and the SAM transform. Nothing here needs a network.
"""

import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import boto3
import cfnlint.api
from samcli.yamlhelper import yaml_parse
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

# One of each kind of partition that the template promises to work in.
REGIONS = ["us-east-1", "cn-north-1", "us-gov-west-1"]

# A zip above this size is slower to start, and has more in it than it needs.
MAX_ZIP_BYTES = 5_000_000
# The C library of Amazon Linux 2023.
MAX_GLIBC = (2, 34)
ELF_MACHINES = {"arm64": 183, "x86_64": 62}


def after_transform(template):
    """What the SAM transform makes of the template: this, and not the template, is what gets deployed."""
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            # The transform takes code only where `sam package` puts it.
            resource["Properties"]["CodeUri"] = "s3://bucket/key"
    translator = Translator(None, Parser(), boto_session=boto3.Session(region_name=REGIONS[0]))
    transformed = translator.translate(template, {})
    transformed.pop("Transform", None)
    return transformed


def resources(template, resource_type):
    """The properties of all resources of a type, by their names. There must be one: no check may pass on nothing."""
    found = {
        name: resource["Properties"]
        for name, resource in template["Resources"].items()
        if resource["Type"] == resource_type
    }
    if not found:
        raise SystemExit(f"the template has no {resource_type}")
    return found


def resolved(value, template):
    """A string, or an Fn::Sub as it could look after the deployment: parameters have their defaults."""
    if isinstance(value, str):
        return value
    body, variables = value["Fn::Sub"], {}
    if isinstance(body, list):
        body, variables = body
    pseudo = {"AWS::AccountId": "123456789012", "AWS::Partition": "aws", "AWS::Region": REGIONS[0]}

    def substitute(match):
        name = match[1]
        if name.startswith("!"):
            return f"${{{name[1:]}}}"
        variable = variables.get(name, {})
        if not isinstance(variable, str):
            name = variable.get("Ref", name)
        if name.endswith(".Arn"):
            return f"arn:aws:lambda:{REGIONS[0]}:123456789012:function:{name.removesuffix('.Arn')}"
        default = template["Parameters"].get(name, {}).get("Default")
        return str(default) if default is not None else pseudo.get(name, name.replace("::", ""))

    return re.sub(r"\$\{([^}]+)\}", substitute, body)


def task_scripts(template):
    """The shell scripts in the containers' commands, by the containers' names."""
    for task in resources(template, "AWS::ECS::TaskDefinition").values():
        for container in task["ContainerDefinitions"]:
            for argument in container.get("EntryPoint", []) + container.get("Command", []):
                text = resolved(argument, template)
                if "\n" in text:
                    yield container["Name"], text


def accepted(title, suffix, text, *command):
    """Whether a linter accepts a text as a file. What it has to say goes to the terminal."""
    with tempfile.NamedTemporaryFile("w", prefix="template-", suffix=suffix) as file:
        file.write(text)
        file.flush()
        accepts = subprocess.run([*command, file.name]).returncode == 0
    print(f"{title}: {'ok' if accepts else 'FAILED'}", flush=True)
    return accepts


def check_template(path):
    template = yaml_parse(Path(path).read_text(encoding="utf-8"))
    passed = True

    scripts = list(task_scripts(template))
    if not scripts:
        raise SystemExit("no container has a script in its command")
    for container, script in scripts:
        passed &= accepted(f"shellcheck, script of container {container}", ".sh", script, "shellcheck", "--shell=sh")

    for name, machine in resources(template, "AWS::StepFunctions::StateMachine").items():
        definition = resolved(machine["DefinitionString"], template)
        try:
            json.loads(definition)
        except json.JSONDecodeError as error:
            raise SystemExit(f"the definition of {name} is not JSON: {error}") from error
        passed &= accepted(f"asl-validator, {name}", ".json", definition, "asl-validator", "--json-path")

    guide = (Path(path).parent / "README.md").read_text(encoding="utf-8")
    rows = "".join(line.split("|")[1] for line in guide.splitlines() if line.startswith("| `"))
    missing = [name for name in template["Parameters"] if f"`{name}`" not in rows]
    print(f"parameters in the README: {'FAILED, without ' + ', '.join(missing) if missing else 'ok'}")
    passed &= not missing

    text = json.dumps(after_transform(template), indent=2)
    matches = cfnlint.api.lint(text, config=cfnlint.api.ManualArgs(regions=REGIONS))
    for match in matches:
        print(f"{match.rule.id} {'/'.join(map(str, match.path or []))}: {match.message}")
    print(f"cfn-lint, after the transform: {'FAILED' if matches else 'ok'}")
    return passed and not matches


def check_artifacts(directory, architecture):
    binaries = sorted(Path(directory).glob("*/bootstrap"))
    if not binaries:
        raise SystemExit(f"{directory} has no */bootstrap")
    passed = True
    for binary in binaries:
        content = binary.read_bytes()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(binary, binary.name)
        size = len(packed.getvalue())
        machine = int.from_bytes(content[18:20], "little")
        glibc = max(((2, int(minor)) for minor in re.findall(rb"GLIBC_2\.(\d+)", content)), default=(2, 0))
        problems = [
            *([f"is over {MAX_ZIP_BYTES} bytes"] if size > MAX_ZIP_BYTES else []),
            *([f"is for ELF machine {machine}"] if machine != ELF_MACHINES[architecture] else []),
            *([f"needs a C library newer than {MAX_GLIBC}"] if glibc > MAX_GLIBC else []),
        ]
        summary = f"{binary.parent.name}: zip of {size / 1e6:.2f} MB, {architecture}, glibc {glibc[0]}.{glibc[1]}"
        print(f"{summary}: {'FAILED, ' + ', '.join(problems) if problems else 'ok'}")
        passed &= not problems
    return passed


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["template", path]:
            sys.exit(not check_template(path))
        case ["artifacts", directory, architecture]:
            sys.exit(not check_artifacts(directory, architecture))
        case _:
            sys.exit(__doc__)
