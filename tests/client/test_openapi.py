"""The document in its older version is a good one, and says the same operations."""

from harness import Client
from openapi_spec_validator import OpenAPIV30SpecValidator, OpenAPIV31SpecValidator


def test_documents(ada: Client):
    newer, older = (ada.http.get(path).json() for path in ("/openapi.json", "/openapi-3.0.json"))
    OpenAPIV31SpecValidator(newer).validate()
    OpenAPIV30SpecValidator(older).validate()
    assert (newer["openapi"][:3], older["openapi"][:3]) == ("3.1", "3.0")
    operations = [{(path, method) for path, item in each["paths"].items() for method in item} for each in (newer, older)]
    assert operations[0] == operations[1] and operations[0]
