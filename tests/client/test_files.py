"""Files: up and down, the same one twice, finding, deleting."""

import hashlib
import os
from math import ceil
from pathlib import Path
from uuid import uuid4

import httpx
import osparc
import pytest
from harness import Client, errors_of, refused

MIB = 2**20


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def user_file(name: str, content: bytes) -> osparc.UserFile:
    return osparc.UserFile(filename=name, filesize=len(content), sha256_checksum=hashlib.sha256(content).hexdigest())


@pytest.mark.parametrize("size", [0, 1, 5 * MIB, 150 * MIB], ids=["0B", "1B", "5MiB", "150MiB"])
def test_round_trip(ada: Client, tmp_path: Path, size: int):
    file = ada.upload(tmp_path, f"{size}.bin", os.urandom(size))
    checksum = sha256(tmp_path / f"{size}.bin")
    assert (file.filename, file.checksum) == (f"{size}.bin", checksum)
    assert ada.files.get_file(str(file.id)) == file
    down = ada.download(file, tmp_path)
    assert (down.stat().st_size, sha256(down)) == (size, checksum)


def test_large_file_goes_up_in_parts(ada: Client):
    file = osparc.ClientFile(osparc.UserFile(filename="large.bin", filesize=150 * MIB, sha256_checksum=os.urandom(32).hex()))
    links = ada.files.get_upload_links(file)
    schema = links.upload_schema
    assert len(schema.urls) == ceil(150 * MIB / schema.chunk_size) > 1
    assert httpx.put(schema.urls[0], content=bytes(schema.chunk_size), timeout=60).is_success

    # What was begun and then given up never becomes a file.
    abort = osparc.BodyAbortMultipartUploadV0FilesFileIdAbortPost(client_file=file)
    ada.files.abort_multipart_upload(str(links.file_id), abort)
    with refused(404):
        ada.files.get_file(str(links.file_id))
    assert ada.files.search_files_page(sha256_checksum=file.to_dict()["sha256_checksum"]).total == 0


def test_complete_twice_is_one_file(ada: Client):
    content = os.urandom(100)
    client_file = user_file("twice.bin", content).to_dict()
    links = ada.http.post("/v0/files/content", json=client_file).json()
    [url] = links["upload_schema"]["urls"]
    e_tag = httpx.put(url, content=content).headers["ETag"].strip('"')
    body = {"client_file": client_file, "uploaded_parts": {"parts": [{"number": 1, "e_tag": e_tag}]}}
    first, second = (ada.http.post(links["upload_schema"]["links"]["complete_upload"], json=body) for _ in range(2))
    assert (first.status_code, second.status_code) == (200, 200), second.text
    assert first.json() == second.json()
    assert ada.files.search_files_page(sha256_checksum=client_file["sha256_checksum"]).total == 1


def test_same_file_is_stored_once(ada: Client, tmp_path: Path):
    content = os.urandom(1000)
    first, again = (ada.upload(tmp_path, "same.bin", content) for _ in range(2))
    assert first.id == again.id
    found = ada.files.search_files_page(sha256_checksum=first.checksum)
    assert (found.total, found.items) == (1, [first])
    assert len(ada.files._search_files(sha256_checksum=first.checksum)) == 1
    assert ada.files.search_files_page(file_id=str(first.id)).items == [first]

    other_name = ada.upload(tmp_path, "other.bin", content)
    assert other_name.id != first.id
    assert {file.id for file in ada.files._search_files(sha256_checksum=first.checksum)} == {first.id, other_name.id}


def test_nothing_has_a_random_checksum(ada: Client):
    assert len(ada.files._search_files(sha256_checksum=os.urandom(32).hex())) == 0


def test_malformed_checksum(ada: Client):
    response = ada.http.get("/v0/files:search", params={"sha256_checksum": "abc"})
    assert response.status_code == 422
    assert "sha256_checksum" in errors_of(response)


def test_list(newcomer: Client, tmp_path: Path):
    assert newcomer.files.list_files() == []
    files = [newcomer.upload(tmp_path, name, name) for name in ("a.txt", "b.txt")]
    assert {file.id for file in newcomer.files.list_files()} == {file.id for file in files}


def test_deleted_file_is_gone(ada: Client, tmp_path: Path):
    file = ada.upload(tmp_path, "gone.bin", os.urandom(10))
    ada.files.delete_file(str(file.id))
    for call in (ada.files.get_file, ada.files.delete_file):
        with refused(404):
            call(str(file.id))
    with pytest.raises(httpx.HTTPStatusError, match="404"):
        ada.download(file, tmp_path)
    assert ada.files.search_files_page(sha256_checksum=file.checksum).total == 0


def test_unknown_file(ada: Client):
    with refused(404) as info:
        ada.files.get_file(str(uuid4()))
    assert "not found" in info.value.reason.lower()
