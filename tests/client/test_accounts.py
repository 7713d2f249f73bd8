"""Profiles, wallets and prices, and the books of what jobs have used."""

import json

import osparc
import osparc_client
import pytest
from harness import SLEEPER, Client, Job, errors_of, refused

RELEASE = SLEEPER, "2.1.6"


def test_profile_changes_where_it_is_told_to(newcomer: Client):
    before = newcomer.users.get_my_profile()
    update = osparc.ProfileUpdate(first_name="Grace", last_name="Hopper")
    changed = newcomer.users.update_my_profile(update)
    assert (changed.first_name, changed.last_name) == ("Grace", "Hopper")
    assert newcomer.users.get_my_profile() == changed
    newcomer.users.update_my_profile(osparc.ProfileUpdate(last_name="Brewster"))
    after = newcomer.users.get_my_profile()
    assert (after.first_name, after.last_name) == ("Grace", "Brewster")
    assert (after.id, after.login, after.groups) == (before.id, before.login, before.groups)


@pytest.mark.parametrize(("language", "status"), [("en", 200), ("es_ES", 200), ("zh_CN", 200), (None, 200), ("fr", 422), ("EN", 422)])
def test_language(newcomer: Client, language: str | None, status: int):
    response = newcomer.http.put("/v0/me", json={"language": language})
    assert response.status_code == status
    if status == 200:
        assert response.json()["language"] == newcomer.http.get("/v0/me").json()["language"] == language
    else:
        assert "language" in errors_of(response) and language in errors_of(response)


def test_wallet(ada: Client, bob: Client):
    wallet = ada.wallets.get_default_wallet()
    assert ada.wallets.get_wallet(wallet.wallet_id) == wallet
    assert str(wallet.owner) == ada.users.get_my_profile().groups.me.gid
    assert (wallet.status, wallet.available_credits) == ("ACTIVE", 0)
    assert bob.wallets.get_default_wallet().wallet_id != wallet.wallet_id
    with refused(404):
        bob.wallets.get_wallet(wallet.wallet_id)


def test_nothing_is_for_rent(ada: Client, bob: Client):
    wallet = ada.wallets.get_default_wallet().wallet_id
    page = ada.wallets.get_available_licensed_items_for_wallet(wallet)
    assert (page.items, page.total) == ([], 0)
    seats = osparc_client.LicensedItemCheckoutData(number_of_seats=1, service_run_id="run")
    with refused(404):
        ada.wallets.checkout_licensed_item(wallet, "3fa85f64-5717-4562-b3fc-2c963f66afa6", seats)
    with refused(404):
        bob.wallets.get_available_licensed_items_for_wallet(wallet)


def test_nothing_has_a_price(ada: Client):
    price = ada.credits.get_credits_price()
    assert (price.usd_per_credit, price.min_payment_amount_usd) == (None, None)
    plan = ada.solvers.get_solver_pricing_plan(*RELEASE)
    [unit] = plan.pricing_units
    assert (plan.classification, unit.current_cost_per_unit, unit.default) == ("TIER", 0, True)
    with refused(404):
        ada.solvers.get_solver_pricing_plan(SLEEPER, "9.9.9")
    job = ada.job()
    assert ada.solvers.get_job_wallet(*job.at) == ada.wallets.get_default_wallet()
    assert ada.solvers.get_job_pricing_unit(*job.at) == unit


def books(server, email: str) -> dict:
    return json.loads(server.run("users", "usage", email, "--json"))


def used(job: Job) -> dict | None:
    job.client.solvers.get_job_pricing_unit(*job.at)  # the client takes it, and leaves out what it does not know
    return job.client.http.get(job.path("/pricing_unit")).json().get("usage")


def test_the_books(server, newcomer: Client):
    email = newcomer.users.get_my_profile().login
    assert books(server, email) == {
        "email": email, "jobs": 0, "cpu_seconds": 0, "cpu_seconds_reserved": 0, "wall_seconds": 0,
    }  # fmt: skip
    job = newcomer.job(input_2=3)
    assert used(job) is None
    job.run()
    usage = used(job)
    assert usage["cpuSource"] == "MEASURED" and usage["wallSeconds"] >= 3, usage
    assert 0 < usage["cpuSeconds"] < 1, f"it only sleeps: {usage}"
    assert usage["peakMemoryBytes"] > 2**16, usage

    stopped = newcomer.job(input_2=600).start()
    stopped.until("STARTED")
    stopped.stop()
    stopped.until("ABORTED")
    newcomer.job().stop()
    newcomer.solvers.delete_job(*job.at)
    total = books(server, email)
    assert total["jobs"] == 2, "those that ran, deleted or not"
    cpu = usage["cpuSeconds"] + used(stopped)["cpuSeconds"]
    wall = usage["wallSeconds"] + used(stopped)["wallSeconds"]
    assert (total["cpu_seconds"], total["wall_seconds"]) == (pytest.approx(cpu), pytest.approx(wall))
    assert f"{email}: 2 jobs ran for " in server.run("users", "usage", email)
