"""The template as CloudFormation takes it without any transform: what `sam deploy` makes of it, and what is published."""

import boto3
from samcli.yamlhelper import yaml_parse
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

REGION = "us-east-1"


def plain_template(text):
    """Expands the SAM resources, and settles what only AWS::LanguageExtensions leaves open until the deployment.

    A policy for the deletion of a resource that is a parameter becomes that parameter's default, and the parameter goes.
    """
    template = yaml_parse(text)
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function" and isinstance(resource["Properties"]["CodeUri"], str):
            if not resource["Properties"]["CodeUri"].startswith("s3://"):
                # The transform takes code only where `sam package` puts it.
                resource["Properties"]["CodeUri"] = "s3://bucket/key"
    plain = Translator(None, Parser(), boto_session=boto3.Session(region_name=REGION)).translate(template, {})
    plain.pop("Transform", None)
    settled = set()
    for resource in plain["Resources"].values():
        for policy in ("DeletionPolicy", "UpdateReplacePolicy"):
            if isinstance(resource.get(policy), dict):
                name = resource[policy]["Ref"]
                resource[policy] = plain["Parameters"][name]["Default"]
                settled.add(name)
    interface = plain["Metadata"]["AWS::CloudFormation::Interface"]
    for name in settled:
        del plain["Parameters"][name], interface["ParameterLabels"][name]
    for group in interface["ParameterGroups"]:
        group["Parameters"] = [name for name in group["Parameters"] if name not in settled]
    return plain
