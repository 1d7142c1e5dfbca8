"""The template without transforms: what CloudFormation makes of it, and what is published."""

import boto3
from samcli.yamlhelper import yaml_parse
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

from template import parameter_groups

REGION = "us-east-1"


def plain_template(text):
    """Expands the SAM resources, and replaces what only AWS::LanguageExtensions allows.

    That is a parameter as DeletionPolicy or UpdateReplacePolicy: its default takes its place, and the parameter is removed.
    """
    template = yaml_parse(text)
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function" and isinstance(resource["Properties"]["CodeUri"], str):
            if not resource["Properties"]["CodeUri"].startswith("s3://"):
                # The transform accepts code only where `sam package` uploads it.
                resource["Properties"]["CodeUri"] = "s3://bucket/key"
    plain = Translator(None, Parser(), boto_session=boto3.Session(region_name=REGION)).translate(template, {})
    plain.pop("Transform", None)
    replaced = set()
    for resource in plain["Resources"].values():
        for policy in ("DeletionPolicy", "UpdateReplacePolicy"):
            if isinstance(resource.get(policy), dict):
                name = resource[policy]["Ref"]
                resource[policy] = plain["Parameters"][name]["Default"]
                replaced.add(name)
    for name in replaced:
        del plain["Parameters"][name]
    for names in parameter_groups(plain).values():
        names[:] = [name for name in names if name not in replaced]
    return plain
