"""Checks the YAML documents of a Markdown file against the schemas of Kubernetes; fields that a schema lacks are faults.

check_kubernetes.py FILE: {"version": "1.37.0", "checked": [{"name": "build", "problem": null}, ...]}. A document that is a list of
containers is checked as those of the job before it.
"""

import copy
import json
import pathlib
import re
import sys

import kubernetes_validate
import yaml


def explain(resource, version):
    try:
        kubernetes_validate.validate(resource, version, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{'.'.join(map(str, error.path))}: {error.message}"
    return None


text = pathlib.Path(sys.argv[1]).read_text()
version = kubernetes_validate.latest_version()
checked = []
job = None
for block in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S):
    for document in yaml.safe_load_all(block):
        if isinstance(document, list):
            containers, document = document, copy.deepcopy(job)
            document["spec"]["template"]["spec"]["containers"] = containers
        else:
            job = document
        name = document["spec"]["template"]["spec"]["containers"][0]["name"]
        checked.append({"name": name, "problem": explain(document, version)})
print(json.dumps({"version": version, "checked": checked}))
