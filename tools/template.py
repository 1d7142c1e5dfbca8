"""Reads the template, for the tools beside this file."""

from pathlib import Path

from samcli.yamlhelper import yaml_parse

PROJECT = Path(__file__).parent.parent


def load(path=PROJECT / "template.yaml"):
    return yaml_parse(Path(path).read_text(encoding="utf-8"))


def resources(template, resource_type):
    """The properties of all resources of a type, by logical id. Without any, a check would prove nothing, so it exits."""
    found = {
        name: resource["Properties"]
        for name, resource in template["Resources"].items()
        if resource["Type"] == resource_type
    }
    if not found:
        raise SystemExit(f"the template has no {resource_type}")
    return found


def mappings(value):
    """All mappings in a value, including the value."""
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else []:
        yield from mappings(item)


def parameter_groups(template):
    """The names of the parameters of each group, by the group's label."""
    groups = template["Metadata"]["AWS::CloudFormation::Interface"]["ParameterGroups"]
    return {group["Label"]["default"]: group["Parameters"] for group in groups}
