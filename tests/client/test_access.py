"""Who may see what, and what is answered without a right, a route or credentials."""

import httpx
import pytest
from harness import SLEEPER, Client, Server, errors_of, refused


@pytest.mark.parametrize(("key", "secret"), [("wrong", Server.SECRET), (Server.KEY, "wrong"), (Server.KEY, ""), ("", "")])
def test_wrong_credentials(server, ada: Client, key: str, secret: str):
    assert ada.users.get_my_profile().login == server.EMAIL
    with refused(401):
        server.client(key, secret).users.get_my_profile()
    assert ada.users.get_my_profile().login == server.EMAIL


def test_key_of_one_with_secret_of_another(server, bob: Client):
    with refused(401):
        server.client(Server.KEY, bob.secret).users.get_my_profile()


@pytest.mark.parametrize("authorization", [None, "Basic", "Basic !!!", "Basic bm9jb2xvbg==", "Bearer token"])
@pytest.mark.parametrize("path", ["/v0/me", "/v0/files:search", f"/v0/solvers/{SLEEPER}/releases/2.1.6/jobs"])
def test_no_credentials(server, path: str, authorization: str | None):
    response = httpx.get(server.url + path, headers={"Authorization": authorization} if authorization else {})
    assert response.status_code == 401
    errors_of(response)


def test_revoked_key(server, newcomer: Client):
    assert newcomer.users.get_my_profile()
    server.run("keys", "revoke", newcomer.key)
    with refused(401):
        newcomer.users.get_my_profile()


@pytest.mark.parametrize(("method", "suffix"), [("GET", ""), ("GET", "/content"), ("DELETE", "")])
def test_foreign_file(ada: Client, bob: Client, tmp_path, method: str, suffix: str):
    file = ada.upload(tmp_path, "mine.txt", "mine")
    response = bob.http.request(method, f"/v0/files/{file.id}{suffix}")
    assert response.status_code == 404
    errors_of(response)
    assert bob.files.search_files_page(file_id=str(file.id)).total == 0
    assert bob.files.search_files_page(sha256_checksum=file.checksum).total == 0
    assert ada.files.get_file(str(file.id)) == file


@pytest.mark.parametrize(
    ("method", "suffix"),
    [
        ("GET", ""), ("POST", ":inspect"), ("POST", ":start"), ("POST", ":stop"), ("DELETE", ""), ("GET", "/outputs"),
        ("GET", "/outputs/logfile"), ("GET", "/logstream"), ("GET", "/metadata"), ("PATCH", "/metadata"),
        ("GET", "/wallet"), ("GET", "/pricing_unit"),
    ],
)  # fmt: skip
def test_foreign_job(ada: Client, bob: Client, method: str, suffix: str):
    job = ada.job()
    response = bob.http.request(method, job.path(suffix), json={"metadata": {}} if method == "PATCH" else None)
    assert response.status_code == 404
    errors_of(response)
    assert job.id not in [str(other.id) for other in bob.solvers.iter_jobs(*job.at[:2])]
    assert job.inspect().state == "NOT_STARTED"


def test_foreign_outputs(ada: Client, bob: Client):
    job = ada.job(input_2=0)
    job.run()
    assert bob.http.get(f"/v0/files/{job.outputs()['output_1'].id}/content").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/v0/nothing", 404),
        ("DELETE", "/v0/meta", 405),
        ("PUT", "/v0/solvers", 405),
        ("POST", f"/v0/solvers/{SLEEPER}/latest", 405),
    ],
)
def test_no_such_route_or_method(ada: Client, method: str, path: str, status: int):
    response = ada.http.request(method, path)
    assert response.status_code == status
    assert response.headers["content-type"].startswith("application/json")
    errors_of(response)


@pytest.mark.parametrize("body", ["", "{", "[]", '{"values": 1}'])
def test_malformed_body(ada: Client, body: str):
    response = ada.http.post(
        f"/v0/solvers/{SLEEPER}/releases/2.1.6/jobs", content=body, headers={"Content-Type": "application/json"}
    )
    assert response.status_code == 422
    errors_of(response)


def test_meta_needs_no_credentials(server):
    meta = httpx.get(f"{server.url}/v0/meta")
    assert meta.status_code == 200
    assert meta.json()["name"] and meta.json()["version"].count(".") == 2
    assert {"released", "docs_url", "docs_dev_url"} <= meta.json().keys()


def test_pages_need_no_credentials(server):
    docs = httpx.get(f"{server.url}/docs", follow_redirects=True)
    assert docs.status_code == 200 and "swagger" in docs.text.lower()
    document = httpx.get(f"{server.url}/openapi.json")
    assert document.status_code == 200 and "/v0/me" in document.json()["paths"]
    assert httpx.get(f"{server.url}/health").status_code == 200
