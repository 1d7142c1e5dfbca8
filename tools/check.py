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

import cfnlint.api
from samcli.yamlhelper import yaml_parse

from plain import plain_template

# One of each kind of partition that the template promises to work in.
REGIONS = ["us-east-1", "cn-north-1", "us-gov-west-1"]

# A zip above this size is slower to start, and has more in it than it needs.
MAX_ZIP_BYTES = 5_000_000
# What Lambda allows, and what the template does.
MAX_ENVIRONMENT = 4_096
MAX_STACK_NAME = 63
MAX_ARN_PREFIX = len("arn:aws-us-gov:secretsmanager:us-gov-west-1:123456789012:secret:")
# The C library of Amazon Linux 2023.
MAX_GLIBC = (2, 34)
# The actions for which AWS's service authorization reference has no resource that would fit: a token is for all registries,
# tasks are listed by their cluster, which is a condition, and the state machine is named by a task token.
WITHOUT_RESOURCE = {"ecr:GetAuthorizationToken", "ecs:ListTasks", "states:SendTaskFailure", "states:SendTaskSuccess"}
# What the person who deploys must be allowed, what IAM takes in one policy, and how it calls services that it names otherwise.
POLICIES = "docs/policies"
MAX_POLICY = 6144
PREFIXES = {"stepfunctions": "states"}
# What says what each parameter is for.
GUIDES = ["docs/guide.md", "docs/guide.zh.md"]
ELF_MACHINES = {"arm64": 183, "x86_64": 62}


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


def documented(guide):
    """The parameters in a guide's table, with their defaults: rows of `name` | `default` or nothing | what it is."""
    rows = re.findall(r"^\| `(\w+)` \| (?:`([^`]*)`)? *\| \S", guide.read_text(encoding="utf-8"), re.MULTILINE)
    return set(rows)


def code_blocks(guide):
    """What readers copy from a guide: its policies and templates."""
    return re.findall(r"^```((?:policy|yaml|json).*?)^ *```", guide.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def check_parameters(template):
    """Each can be given a wrong value only once: it is described, labelled, grouped, and restricted."""
    interface = template["Metadata"]["AWS::CloudFormation::Interface"]
    grouped = [name for group in interface["ParameterGroups"] for name in group["Parameters"]]
    problems = [f"{name} has no label" for name in template["Parameters"] if name not in interface["ParameterLabels"]]
    problems += [f"{name} is in {grouped.count(name)} groups" for name in template["Parameters"] if grouped.count(name) != 1]
    for name, parameter in template["Parameters"].items():
        if not {"AllowedPattern", "AllowedValues", "MinValue"} & parameter.keys():
            problems.append(f"{name} takes anything")
        if parameter.get("Default") == "" and "blank" not in parameter["Description"].lower():
            problems.append(f"{name} does not say what happens when it is blank")
        if "Default" not in parameter:
            problems.append(f"{name} has no default")
    print(f"parameters: {'FAILED, ' + ', '.join(problems) if problems else 'ok'}")
    return not problems


def mappings(value):
    """All mappings in a value, itself included."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from mappings(item)


def listed(actions):
    """A statement's actions, which are a list or just one."""
    return actions if isinstance(actions, list) else [actions]


def check_role_of_machine(template):
    """The state machine's role allows what its states do, and nothing else: no local AWS looks at it."""
    machine = resources(template, "AWS::StepFunctions::StateMachine")["StateMachine"]
    needed = set()

    for value in mappings(json.loads(resolved(machine["DefinitionString"], template))):
        if value.get("Type") in ("Task", "Map"):
            resource = value.get("Resource") or value["ItemReader"]["Resource"]
            *_, service, action = resource.removesuffix(".waitForTaskToken").split(":")
            service = {"sfn": "states"}.get(service, service)
            action = {"invoke": "InvokeFunction"}.get(action, action[0].upper() + action[1:])
            needed.add(f"{service}:{action}")
        # The very version that was written.
        if "VersionId.$" in value.get("ItemReader", {}).get("Parameters", {}):
            needed.add("s3:GetObjectVersion")
        if value.get("ProcessorConfig", {}).get("Mode") == "DISTRIBUTED":
            needed.update({"states:StartExecution", "states:DescribeExecution", "states:StopExecution"})
    role = resources(template, "AWS::IAM::Role")[machine["RoleArn"]["Fn::GetAtt"][0]]
    statements = [statement for policy in role["Policies"] for statement in policy["PolicyDocument"]["Statement"]]
    # With a key of one's own, which not everybody has.
    statements = [statement for statement in statements if "Action" in statement]
    granted = {action for statement in statements for action in listed(statement["Action"])}
    wrong = sorted(needed ^ granted)
    print(f"permissions of the state machine: {'FAILED, ' + ', '.join(wrong) if wrong else 'ok'}")
    return not wrong


def check_wildcards(template):
    """Only what knows no narrower resource is allowed on all of them."""
    wrong = set()
    for statement in mappings(template["Resources"]):
        if statement.get("Effect") == "Allow" and "*" in (statement.get("Resource"), statement.get("Action")):
            wrong.update(set(listed(statement["Action"])) - WITHOUT_RESOURCE)
    print(f"permissions on all resources: {'FAILED, ' + ', '.join(sorted(wrong)) if wrong else 'ok'}")
    return not wrong


def longest(value, template):
    """The most characters that a value in a function's environment can have."""
    if not isinstance(value, dict):
        return len(str(value))
    [(function, argument)] = value.items()
    match function:
        case "Ref" if argument in template["Parameters"]:
            parameter = template["Parameters"][argument]
            if parameter["Type"] == "Number":
                return len(str(parameter.get("MaxValue", 10**12)))
            return parameter.get("MaxLength") or max(len(allowed) for allowed in parameter["AllowedValues"])
        case "Ref":
            # A pseudo parameter or a resource, whose name CloudFormation makes of the stack's and its own.
            known = {"AWS::StackName": MAX_STACK_NAME, "AWS::AccountId": 12, "AWS::Partition": 10, "AWS::Region": 15}
            prefix = MAX_ARN_PREFIX if argument in ("TaskDefinition", "Topic") else 0
            return known.get(argument) or prefix + MAX_STACK_NAME + len(argument) + 14
        case "Fn::GetAtt":
            return longest({"Ref": argument[0]}, template) + MAX_ARN_PREFIX
        case "Fn::If":
            return max(longest(branch, template) for branch in argument[1:])
        case "Fn::Sub" if isinstance(argument, str):
            names = re.findall(r"\$\{([^}]+)\}", argument)
            return len(re.sub(r"\$\{[^}]+\}", "", argument)) + sum(longest({"Ref": name}, template) for name in names)
        case "Fn::Join":
            return sum(longest(part, template) for part in argument[1])
        case "Fn::FindInMap":
            values = template["Mappings"][argument[0]].values()
            return max(len(value[argument[2]]) for value in values)
    raise SystemExit(f"the longest value of {function} is not known")


def check_environments(template):
    """A function can be deployed whatever the parameters are. Lambda measures its environment as JSON:
    https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html"""
    shared = template["Globals"]["Function"]["Environment"]["Variables"]
    wrong = []
    for name, function in resources(template, "AWS::Serverless::Function").items():
        variables = shared | function["Environment"]["Variables"]
        size = sum(len(f'"{key}":"",') + longest(value, template) for key, value in variables.items()) + 1
        if size > MAX_ENVIRONMENT:
            wrong.append(f"that of {name} may have {size} characters")
    print(f"environments: {'FAILED, ' + ', '.join(wrong) if wrong else 'ok'}")
    return not wrong


def check_policies(template, directory):
    """Who has these policies can deploy: each is one that IAM takes, and each service of the template is in one."""
    services = {resource["Type"].split("::")[1].lower() for resource in template["Resources"].values()}
    missing, problems = {PREFIXES.get(service, service) for service in services}, []
    for path in sorted(directory.glob("*.json")):
        policy = json.loads(path.read_text(encoding="utf-8"))
        size = len(re.sub(r"\s", "", json.dumps(policy)))
        if size > MAX_POLICY:
            problems.append(f"{path.name} has {size} characters, of {MAX_POLICY}")
        for statement in policy["Statement"]:
            missing -= {action.split(":")[0] for action in listed(statement["Action"])}
    problems += [f"nothing of {service} is allowed" for service in sorted(missing)]
    print(f"policies in {POLICIES}: {'FAILED, ' + ', '.join(problems) if problems else 'ok'}")
    return not problems


def check_dependencies(template):
    """What a resource waits for is in the template. AWS::LanguageExtensions does not know what SAM is going to add:
    https://github.com/aws-cloudformation/cfn-language-discussion/issues/109"""
    wrong = set()
    for resource in template["Resources"].values():
        depends = resource.get("DependsOn", [])
        wrong.update(set([depends] if isinstance(depends, str) else depends) - template["Resources"].keys())
    print(f"dependencies: {'FAILED, ' + ', '.join(sorted(wrong)) if wrong else 'ok'}")
    return not wrong


def check_image(template, text):
    """The tasks' image is named by its digest, since a tag can be moved. A comment names the tag, for people."""
    image = template["Parameters"]["skopeoImage"]["Default"]
    tag = r"#.*\bv\d+\.\d+\.\d+"
    before, beside = re.search(rf"(.*)\n +Default: [\"']?{re.escape(image)}(.*)", text).groups()
    problems = [
        *([] if re.fullmatch(r"[^@\s]+@sha256:[0-9a-f]{64}", image) else [f"{image} has no digest"]),
        *([] if re.match(f" *{tag}", before) or re.search(f" {tag}", beside) else ["no comment names its tag"]),
    ]
    print(f"skopeoImage: {'FAILED, ' + ', '.join(problems) if problems else 'ok'}")
    return not problems


def check_template(path):
    text = Path(path).read_text(encoding="utf-8")
    template = yaml_parse(text)
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

    parameters = {name: str(parameter.get("Default", "")) for name, parameter in template["Parameters"].items()}
    for guide in GUIDES:
        differences = sorted(set(parameters.items()) ^ documented(Path(path).parent / guide))
        print(f"parameters in {guide}: {'FAILED, ' + str(differences) if differences else 'ok'}")
        passed &= not differences
    blocks = [code_blocks(Path(path).parent / guide) for guide in GUIDES]
    print(f"code in {' and '.join(GUIDES)}: {'ok' if blocks[0] == blocks[1] else 'FAILED, they differ'}")
    passed &= blocks[0] == blocks[1] != []
    passed &= check_parameters(template)
    passed &= check_role_of_machine(template)
    passed &= check_wildcards(template)
    passed &= check_dependencies(template)
    passed &= check_environments(template)
    passed &= check_image(template, text)

    plain = plain_template(text)
    passed &= check_policies(plain, Path(path).parent / POLICIES)
    matches = cfnlint.api.lint(json.dumps(plain, indent=2), config=cfnlint.api.ManualArgs(regions=REGIONS))
    for match in matches:
        print(f"{match.rule.id} {'/'.join(map(str, match.path or []))}: {match.message}")
    print(f"cfn-lint, after the transform: {'FAILED' if matches else 'ok'}")
    return passed and not matches


def check_artifacts(directory, architecture):
    binaries = sorted(Path(directory).glob("*/bootstrap"))
    if not binaries:
        raise SystemExit(f"{directory} has no */bootstrap")
    template = yaml_parse((Path(directory) / "template.yaml").read_text(encoding="utf-8"))
    promised = template["Globals"]["Function"]["Architectures"]
    passed = promised == [architecture]
    print(f"architecture of the functions in the template: {'ok' if passed else f'FAILED, {promised}'}")
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
