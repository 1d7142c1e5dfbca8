"""Writes the parameter tables of the guides: in English from the template, in Chinese from docs/parameters.zh.yaml.

usage: parameters.py
"""

import re
import sys

import yaml

from template import PROJECT, load, parameter_groups

BEGIN = "<!-- The rest of this section is written by `make parameters`. -->\n"
END = "<!-- End of what `make parameters` writes. -->\n"
ENGLISH, CHINESE = "docs/guide.md", "docs/guide.zh.md"
TRANSLATION = "docs/parameters.zh.yaml"
HEADERS = {ENGLISH: "| Parameter | Default | Description |", CHINESE: "| 参数 | 默认值 | 说明 |"}


def translation():
    """The Chinese labels of the groups, and the Chinese descriptions of the parameters."""
    return yaml.safe_load((PROJECT / TRANSLATION).read_text(encoding="utf-8"))


def untranslated(template):
    """The groups and parameters that are only in the translation, or only in the template."""
    chinese = translation()
    differences = set(chinese["groups"]) ^ set(parameter_groups(template))
    return sorted(differences | set(chinese["parameters"]) ^ set(template["Parameters"]))


def guides(template):
    """Each guide's path, its text, and the text that it should have."""
    chinese = translation()
    english = {name: parameter["Description"] for name, parameter in template["Parameters"].items()}
    for guide, labels, descriptions in [(ENGLISH, {}, english), (CHINESE, chinese["groups"], chinese["parameters"])]:
        path = PROJECT / guide
        text = path.read_text(encoding="utf-8")
        before, _, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        if not end:
            raise SystemExit(f"{guide} lacks the lines {BEGIN}and {END}")
        tables = [
            f"\n### {labels.get(label, label)}\n\n{table(HEADERS[guide], names, template, descriptions)}"
            for label, names in parameter_groups(template).items()
        ]
        yield path, text, before + BEGIN + "".join(tables) + "\n" + END + after


def table(header, names, template, descriptions):
    lines = [header, "| --- | --- | --- |"]
    for name in names:
        default = str(template["Parameters"][name].get("Default", ""))
        description = with_names_as_code(descriptions.get(name, ""), template)
        lines.append(f"| `{name}` | {default and f'`{default}`'} | {description} |")
    return "\n".join(lines) + "\n"


def with_names_as_code(description, template):
    """Marks the parameters' names as code, except those that are also words, such as schedule."""
    names = "|".join(name for name in template["Parameters"] if not name.islower())
    code_or_name = rf"`[^`]*`|\b(?:{names})\b"
    return re.sub(code_or_name, lambda match: f"`{match[0].strip('`')}`", description, flags=re.ASCII)


if __name__ == "__main__":
    if sys.argv[1:]:
        sys.exit(__doc__)
    for path, _, text in guides(load()):
        path.write_text(text, encoding="utf-8")
