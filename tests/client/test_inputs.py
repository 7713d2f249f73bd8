"""Input values: checked when the job is created, handed to the solver as they were given."""

import json
from pathlib import Path
from uuid import uuid4

import osparc
import pytest
from harness import SLEEPER, Client, refused


def create(client: Client, values: dict, solver=SLEEPER, version="2.1.6"):
    return client.solvers.create_job(solver, version, osparc.JobInputs(values))


@pytest.fixture
def script(ada: Client, tmp_path: Path):
    return lambda text: ada.upload(tmp_path, "script.sh", text)


@pytest.mark.parametrize(
    ("port", "value", "rule"),
    [
        ("input_2", "abc", "integer"),
        ("input_2", 1.5, "integer"),
        ("input_3", "maybe", "boolean"),
        ("input_4", ["far"], "integer"),
        ("input_1", "a text", "file"),
        ("input_1", 7, "file"),
    ],
)
def test_invalid_value(ada: Client, port: str, value, rule: str):
    with refused(422) as info:
        create(ada, {port: value})
    said = info.value.body
    assert port in said and json.dumps(value).strip('"[]') in said and rule in said.lower(), said


@pytest.mark.parametrize(
    ("port", "value", "rule"), [("bounded", 66, "maximum"), ("bounded", -1, "minimum"), ("bounded", "66", "maximum"), ("whole", "7.5", "integer")]
)
def test_value_against_schema(ada: Client, shell: str, script, port: str, value, rule: str):
    with refused(422) as info:
        create(ada, {"script": script("true"), port: value}, shell, "1.0.0")
    said = info.value.body
    assert port in said and str(value) in said and rule in said, said


def test_every_bad_port_is_named(ada: Client):
    with refused(422) as info:
        create(ada, {"input_2": "abc", "input_3": "maybe"})
    assert "input_2" in info.value.body and "input_3" in info.value.body, info.value.body


def test_value_that_is_an_object(ada: Client):
    response = ada.http.post(f"/v0/solvers/{SLEEPER}/releases/2.1.6/jobs", json={"values": {"input_2": {"seconds": 1}}})
    assert response.status_code == 422
    assert "input_2" in response.text


@pytest.mark.parametrize("whose", ["nobody's", "bob's"])
def test_file_that_is_not_ours(ada: Client, bob: Client, tmp_path: Path, whose: str):
    file = bob.upload(tmp_path, "seconds.txt", "1") if whose == "bob's" else osparc.File(id=str(uuid4()), filename="seconds.txt")
    with refused(404, 422) as info:
        create(ada, {"input_1": file})
    assert "input_1" in info.value.body and str(file.id) in info.value.body, info.value.body


@pytest.mark.parametrize(
    "values",
    [
        {"number": 2, "whole": 7, "flag": False, "text": "a 'b' \"c\"\nü", "bounded": 65},
        {"number": 2.0, "whole": "7", "flag": "false", "text": "7", "bounded": "65"},
        {"number": 2, "whole": 7, "flag": 0, "text": "", "bounded": 0},
    ],
    ids=["values", "texts", "zero for false"],
)
def test_values_reach_the_solver_verbatim(ada: Client, shell: str, script, tmp_path: Path, values: dict):
    job = ada.job(shell, "1.0.0", script=script("cp /inputs/inputs.json /outputs/seen.txt"), **values)
    job.run()
    seen = json.loads(ada.download(job.outputs()["seen"], tmp_path).read_text())
    assert json.dumps(seen, sort_keys=True) == json.dumps(values, sort_keys=True)


def test_missing_values_are_default_or_null(ada: Client, shell: str, script, tmp_path: Path):
    job = ada.job(shell, "1.0.0", script=script("cp /inputs/inputs.json /outputs/seen.txt"))
    job.run()
    seen = json.loads(ada.download(job.outputs()["seen"], tmp_path).read_text())
    assert seen == {"number": 1.5, "whole": None, "flag": None, "text": None, "bounded": None}


def test_unknown_port_is_accepted_and_noted(ada: Client):
    job = ada.job(input_2=0, no_such_port=1)
    job.run()
    [note] = [item for item in job.read_log_stream() if "no_such_port" in item["messages"][0]]
    assert note["log_level"] == 30
    assert "no_such_port" in job.log_file()[1]
