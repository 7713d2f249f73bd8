"""The real solver, against a formula."""

import json
from pathlib import Path

import pytest
from harness import REPO, Client, refused


def test_cantilever_program(server, calculix):
    done = server.script("cantilever.py")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "max_displacement" in done.stdout and "max_von_mises" in done.stdout


def test_cantilever(ada: Client, calculix, tmp_path: Path):
    folder = REPO / "solvers/calculix"
    example = json.loads((folder / "cantilever.json").read_text())
    model = ada.files.upload_file(file=folder / example["deck"])
    job = ada.job(calculix["key"], calculix["version"], model=model, **example["inputs"])
    job.start().until("SUCCESS", seconds=120)
    outputs = job.outputs()
    assert set(outputs) == set(calculix["outputs"])
    for name, expected in example["expected"].items():
        assert outputs[name] == pytest.approx(expected["theory"], rel=expected["relative_tolerance"]), name
    frd = ada.download(outputs["results"], tmp_path).read_text()
    assert "DISP" in frd and "STRESS" in frd


def test_bad_deck_fails_with_what_calculix_says(ada: Client, calculix, tmp_path: Path):
    deck = ada.upload(tmp_path, "model.inp", "*NO SUCH CARD\n")
    job = ada.job(calculix["key"], calculix["version"], model=deck).start()
    [error] = job.until("FAILED").errors
    assert "the input deck has no *STEP" in str(error.to_dict()), error


def test_threads_must_be_a_number(ada: Client, calculix):
    with refused(422) as info:
        ada.job(calculix["key"], calculix["version"], threads="many")
    assert "threads" in info.value.body
