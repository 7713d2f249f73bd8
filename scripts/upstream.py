"""Extracts from oSPARC's own OpenAPI documents what api/tests/it/contract.rs compares ours with.

    python3 scripts/upstream.py FOLDER            writes api/tests/it/upstream.json
    python3 scripts/upstream.py FOLDER --check    fails if that file is stale

FOLDER holds the two documents. Kept are parameters, bodies, statuses and the schemas they use; texts go. Of the older document only what
differs from the newer one is kept, null for what it lacks.
"""

import json
import sys
from pathlib import Path

DOCUMENTS = {"0.16.0": "osparc-openapi-0.16.0.json", "0.13.0": "osparc-openapi-0.13.0-client-0.8.5.json"}
TARGET = Path(__file__).parent.parent / "api/tests/it/upstream.json"
# Nouns that are not served.
OTHERS = ("/v0/function", "/v0/programs", "/v0/responses", "/v0/tasks")
WORDS = {
    "$ref", "type", "format", "pattern", "enum", "const", "default", "items", "properties", "required", "additionalProperties", "anyOf", "oneOf",
    "allOf", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems",
}  # fmt: skip


def schema(node):
    """A schema without its texts."""
    if not isinstance(node, dict):
        return node
    kept = {}
    for word, value in node.items():
        if word in ("anyOf", "oneOf", "allOf"):
            kept[word] = [schema(member) for member in value]
        elif word == "properties":
            kept[word] = {name: schema(member) for name, member in value.items()}
        elif word in ("items", "additionalProperties"):
            kept[word] = schema(value)
        elif word in WORDS:
            kept[word] = value
    return kept


def content(node):
    return {kind: schema(media.get("schema", {})) for kind, media in node.get("content", {}).items()}


def operation(node):
    parameters = [
        {"name": each["name"], "in": each["in"], "required": each.get("required", False), "schema": schema(each["schema"])}
        for each in node.get("parameters", [])
    ]
    kept = {"parameters": parameters, "responses": {}}
    if body := node.get("requestBody"):
        kept["body"] = {"required": body.get("required", False), "content": content(body)}
    for status, response in node["responses"].items():
        # What is said about errors is one and the same body everywhere.
        kept["responses"][status] = content(response) if status.startswith("2") else {}
    return kept


def references(node):
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"].rsplit("/", 1)[1]
        node = list(node.values())
    for member in node if isinstance(node, list) else []:
        yield from references(member)


def extract(document):
    operations = {
        f"{method.upper()} {path}": operation(node)
        for path, item in document["paths"].items()
        for method, node in item.items()
        if path.startswith("/v0/") and not path.startswith(OTHERS)
    }
    schemas, wanted = {}, list(references(list(operations.values())))
    while wanted:
        if (name := wanted.pop()) not in schemas:
            schemas[name] = schema(document["components"]["schemas"][name])
            wanted.extend(references(schemas[name]))
    return {"operations": operations, "schemas": schemas}


def lines(extracted):
    """One operation or schema per line, so that a difference between two versions can be read."""
    parts = []
    for version, kinds in extracted.items():
        inner = []
        for kind, members in kinds.items():
            rows = [f"{json.dumps(name)}: {json.dumps(members[name], sort_keys=True, separators=(',', ':'))}" for name in sorted(members)]
            inner.append(f"{json.dumps(kind)}: {{\n" + ",\n".join(rows) + "\n}")
        parts.append(f"{json.dumps(version)}: {{\n" + ",\n".join(inner) + "\n}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


folder = Path(sys.argv[1])
newer, older = (extract(json.loads((folder / name).read_text())) for name in DOCUMENTS.values())
older = {kind: {name: older[kind].get(name) for name in {**newer[kind], **older[kind]} if newer[kind].get(name) != older[kind].get(name)} for kind in older}
text = lines(dict(zip(DOCUMENTS, (newer, older))))
if "--check" in sys.argv:
    if TARGET.read_text() != text:
        sys.exit(f"{TARGET.name} is stale: run scripts/upstream.py {folder}")
else:
    TARGET.write_text(text)
