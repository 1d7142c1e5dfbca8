"""Checks of the template, and of the upload, that the linters do not make.

usage: check.py template TEMPLATE            what CloudFormation gets, and the two languages inside the template
       check.py artifacts DIRECTORY ARCH     the output of `sam build` in DIRECTORY, for arm64 or x86_64

It runs in the environment of the SAM CLI, with its cfn-lint and its SAM transform, and needs no network.
"""

import io
import json
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import cfnlint.api
import yaml

import parameters
from plain import plain_template
from template import PROJECT, load, mappings, parameter_groups, resources

# One of each kind of partition that the template supports.
REGIONS = ["us-east-1", "cn-north-1", "us-gov-west-1"]
REFERENCES = {"AWS::AccountId": "123456789012", "AWS::Partition": "aws", "AWS::Region": REGIONS[0]}

# Larger zips start slower, and contain something unnecessary.
MAX_ZIP_BYTES = 5_200_000
# The C library of Amazon Linux 2023.
MAX_GLIBC = (2, 34)
ELF_MACHINES = {"arm64": 183, "x86_64": 62}

# Lambda's quota, and the longest values that the template allows.
MAX_ENVIRONMENT = 4_096
MAX_STACK_NAME = 63
MAX_ARN_PREFIX = len("arn:aws-us-gov:secretsmanager:us-gov-west-1:123456789012:secret:")
MAX_LENGTHS = {"AWS::StackName": MAX_STACK_NAME, "AWS::AccountId": 12, "AWS::Partition": 10, "AWS::Region": 15}

# Actions for which the service authorization reference has no narrower resource: a token is valid for all registries,
# a condition limits ListTasks to the cluster, and a task token identifies the execution.
WITHOUT_RESOURCE = {"ecr:GetAuthorizationToken", "ecs:ListTasks", "states:SendTaskFailure", "states:SendTaskSuccess"}

# The policies of people, IAM's quota for one, and IAM's names of services that CloudFormation calls otherwise.
POLICIES = "docs/policies"
MAX_POLICY = 6144
IAM_NAMES = {"stepfunctions": "states"}


def report(title, problems):
    """Prints the problems, and returns whether there are none."""
    print(f"{title}: {'FAILED, ' + ', '.join(map(str, problems)) if problems else 'ok'}", flush=True)
    return not problems


def substituted(value, template):
    """A string, or the string of an Fn::Sub with a possible value for each reference: a parameter's is its default."""
    if isinstance(value, str):
        return value

    def possible(match):
        name = match[1]
        if name.startswith("!"):
            return f"${{{name[1:]}}}"
        if name in template["Parameters"]:
            return str(template["Parameters"][name].get("Default", ""))
        if name.endswith(".Arn"):
            return f"arn:aws:lambda:{REGIONS[0]}:123456789012:function:{name.removesuffix('.Arn')}"
        return REFERENCES.get(name, name.replace("::", ""))

    return re.sub(r"\$\{([^}]+)\}", possible, value["Fn::Sub"])


def listed(actions):
    """The actions of a statement, which are a list or a string."""
    return actions if isinstance(actions, list) else [actions]


def check_with(linter, suffix, text):
    """What is wrong according to the exit code of a linter, which prints the details."""
    with tempfile.NamedTemporaryFile("w", prefix="template-", suffix=suffix) as file:
        file.write(text)
        file.flush()
        code = subprocess.run([*linter, file.name]).returncode
    return [f"exit code {code}"] if code else []


def check_scripts(template):
    scripts = [
        substituted(argument, template)
        for task in resources(template, "AWS::ECS::TaskDefinition").values()
        for container in task["ContainerDefinitions"]
        for argument in container["Command"]
    ]
    return [problem for script in scripts for problem in check_with(["shellcheck", "--shell=sh"], ".sh", script)]


def definition_of(machine, template):
    return substituted(machine["DefinitionString"], template)


def check_definitions(template):
    machines = resources(template, "AWS::StepFunctions::StateMachine").values()
    linter = ["asl-validator", "--json-path"]
    return [problem for it in machines for problem in check_with(linter, ".json", definition_of(it, template))]


def check_parameters(template):
    """Each parameter is in one group, is restricted, has a default, and says what a blank value means."""
    grouped = [name for names in parameter_groups(template).values() for name in names]
    for name, parameter in template["Parameters"].items():
        if grouped.count(name) != 1:
            yield f"{name} is in {grouped.count(name)} groups"
        if not {"AllowedPattern", "AllowedValues", "MinValue"} & parameter.keys():
            yield f"{name} accepts any value"
        if "Default" not in parameter:
            yield f"{name} has no default"
        elif parameter["Default"] == "" and "Blank" not in parameter["Description"]:
            yield f"{name} does not say what Blank means"


def check_guides(template):
    for name in parameters.untranslated(template):
        yield f"{name} is only in the template or only in {parameters.TRANSLATION}"
    for path, text, current in parameters.guides(template):
        if text != current:
            yield f"{path.name} is stale: run `make parameters`"


def check_code_in_guides():
    """Readers copy policies and templates from the guides, so both guides must have the same."""
    texts = [(PROJECT / guide).read_text(encoding="utf-8") for guide in (parameters.ENGLISH, parameters.CHINESE)]
    code = [re.findall(r"^```((?:policy|yaml|json).*?)^ *```", text, re.MULTILINE | re.DOTALL) for text in texts]
    return [] if code[0] == code[1] != [] else ["they differ"]


def check_role_of_machine(template):
    """The role of the state machine allows what its states do, and nothing else. The local AWS does not check that."""
    machine = resources(template, "AWS::StepFunctions::StateMachine")["StateMachine"]
    needed = set()
    for value in mappings(json.loads(definition_of(machine, template))):
        if value.get("Type") in ("Task", "Map"):
            resource = value.get("Resource") or value["ItemReader"]["Resource"]
            *_, service, action = resource.removesuffix(".waitForTaskToken").split(":")
            action = {"invoke": "InvokeFunction"}.get(action, action[0].upper() + action[1:])
            needed.add(f"{service}:{action}")
        if "VersionId.$" in value.get("ItemReader", {}).get("Parameters", {}):
            needed.add("s3:GetObjectVersion")
        if value.get("ProcessorConfig", {}).get("Mode") == "DISTRIBUTED":
            needed.update({"states:StartExecution", "states:DescribeExecution", "states:StopExecution"})
    role = resources(template, "AWS::IAM::Role")[machine["RoleArn"]["Fn::GetAtt"][0]]
    statements = [statement for policy in role["Policies"] for statement in policy["PolicyDocument"]["Statement"]]
    # The conditional statement, an Fn::If, is for kmsKey.
    granted = {action for statement in statements for action in listed(statement.get("Action", []))}
    return sorted(needed ^ granted)


def check_wildcards(template):
    """Statements allow all resources only for actions that support no narrower resource."""
    wrong = set()
    for statement in mappings(template["Resources"]):
        if statement.get("Effect") == "Allow" and "*" in (statement.get("Resource"), statement.get("Action")):
            wrong.update(set(listed(statement["Action"])) - WITHOUT_RESOURCE)
    return sorted(wrong)


def check_dependencies(template):
    """Every DependsOn names a resource of the template. AWS::LanguageExtensions does not know those that SAM adds:
    https://github.com/aws-cloudformation/cfn-language-discussion/issues/109"""
    depends = [resource.get("DependsOn", []) for resource in template["Resources"].values()]
    return sorted({name for names in depends for name in listed(names)} - template["Resources"].keys())


def longest(value, template):
    """The maximum length of a value in the environment of a function."""
    if not isinstance(value, dict):
        return len(str(value))
    [(function, argument)] = value.items()
    match function:
        case "Ref" if argument in template["Parameters"]:
            parameter = template["Parameters"][argument]
            if parameter["Type"] == "Number":
                return len(str(parameter.get("MaxValue", 10**12)))
            return parameter.get("MaxLength") or max(len(allowed) for allowed in parameter["AllowedValues"])
        case "Ref" if argument in MAX_LENGTHS:
            return MAX_LENGTHS[argument]
        case "Ref":
            # CloudFormation makes the name of a resource of the stack's name, the logical id and 14 characters.
            prefix = MAX_ARN_PREFIX if argument in ("TaskDefinition", "Topic") else 0
            return prefix + MAX_STACK_NAME + len(argument) + 14
        case "Fn::GetAtt":
            return longest({"Ref": argument[0]}, template) + MAX_ARN_PREFIX
        case "Fn::If":
            return max(longest(branch, template) for branch in argument[1:])
        case "Fn::Sub" if isinstance(argument, str):
            names = re.findall(r"\$\{([^}]+)\}", argument)
            return len(re.sub(r"\$\{[^}]+\}", "", argument)) + sum(longest({"Ref": name}, template) for name in names)
        case "Fn::FindInMap":
            values = template["Mappings"][argument[0]].values()
            return max(len(value[argument[2]]) for value in values)
    raise SystemExit(f"check.py does not know the maximum length of {function}")


def check_environments(template):
    """The environment of each function is within the quota for all values of the parameters. Lambda measures it as JSON:
    https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html"""
    shared = template["Globals"]["Function"]["Environment"]["Variables"]
    for name, function in resources(template, "AWS::Serverless::Function").items():
        variables = shared | function["Environment"]["Variables"]
        size = sum(len(f'"{key}":"",') + longest(value, template) for key, value in variables.items()) + 1
        if size > MAX_ENVIRONMENT:
            yield f"that of {name} can have {size} characters"


def check_image(template, text):
    """The default of skopeoImage has a digest, because a tag can be moved. A comment has the tag, for people."""
    image = template["Parameters"]["skopeoImage"]["Default"]
    if not re.fullmatch(r"[^@\s]+@sha256:[0-9a-f]{64}", image):
        yield f"{image} has no digest"
    if not re.search(rf"Default: {re.escape(image)} # v\d+\.\d+\.\d+", text):
        yield "no comment names its tag"


def check_policies(plain):
    """The policies in the guides are within the quota of IAM, and those for deploying cover each service of the template."""
    services = {resource["Type"].split("::")[1].lower() for resource in plain["Resources"].values()}
    missing = {IAM_NAMES.get(service, service) for service in services}
    for path in sorted((PROJECT / POLICIES).glob("*.json")):
        policy = json.loads(path.read_text(encoding="utf-8"))
        size = len(re.sub(r"\s", "", json.dumps(policy)))
        if size > MAX_POLICY:
            yield f"{path.name} has {size} characters, of {MAX_POLICY}"
        if path.stem.startswith("deploy"):
            for statement in policy["Statement"]:
                missing -= {action.split(":")[0] for action in listed(statement["Action"])}
    yield from (f"no action of {service} is allowed" for service in sorted(missing))


def check_with_cfnlint(plain):
    """`sam validate --lint` does not look at what the transform creates."""
    for match in cfnlint.api.lint(json.dumps(plain, indent=2), config=cfnlint.api.ManualArgs(regions=REGIONS)):
        yield f"{match.rule.id} {'/'.join(map(str, match.path or []))}: {match.message}"


def check_template(path):
    text, template = Path(path).read_text(encoding="utf-8"), load(path)
    plain = plain_template(text)
    checks = {
        "scripts of the containers, shellcheck": check_scripts(template),
        "state machine, asl-validator": check_definitions(template),
        "parameters": check_parameters(template),
        "parameters in the guides": check_guides(template),
        "code in the guides": check_code_in_guides(),
        "permissions of the state machine": check_role_of_machine(template),
        "permissions on all resources": check_wildcards(template),
        "dependencies": check_dependencies(template),
        "environments": check_environments(template),
        "skopeoImage": check_image(template, text),
        f"policies in {POLICIES}": check_policies(plain),
        "cfn-lint, after the transform": check_with_cfnlint(plain),
    }
    return all([report(title, list(problems)) for title, problems in checks.items()])


def check_artifacts(directory, architecture):
    binaries = sorted(Path(directory).glob("*/bootstrap"))
    if not binaries:
        raise SystemExit(f"{directory} has no */bootstrap")
    path = Path(directory) / "template.yaml"
    stated = load(path)["Globals"]["Function"]["Architectures"]
    # CloudFormation rejects aliases: https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/template-formats.html
    aliases = [token.value for token in yaml.scan(path.read_text(encoding="utf-8")) if isinstance(token, yaml.AliasToken)]
    passed = [
        report("architecture of the functions in the template", [] if stated == [architecture] else stated),
        report("no aliases in the template", aliases),
    ]
    for binary in binaries:
        content = binary.read_bytes()
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.write(binary, binary.name)
        size = len(packed.getvalue())
        machine = int.from_bytes(content[18:20], "little")
        glibc = max(((2, int(minor)) for minor in re.findall(rb"GLIBC_2\.(\d+)", content)), default=(2, 0))
        problems = [
            *([f"is larger than {MAX_ZIP_BYTES} bytes"] if size > MAX_ZIP_BYTES else []),
            *([f"is for ELF machine {machine}"] if machine != ELF_MACHINES[architecture] else []),
            *([f"needs a C library newer than {MAX_GLIBC}"] if glibc > MAX_GLIBC else []),
        ]
        title = f"{binary.parent.name}: zip of {size / 1e6:.2f} MB, {architecture}, glibc {glibc[0]}.{glibc[1]}"
        passed.append(report(title, problems))
    return all(passed)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["template", path]:
            sys.exit(not check_template(path))
        case ["artifacts", directory, architecture]:
            sys.exit(not check_artifacts(directory, architecture))
        case _:
            sys.exit(__doc__)
