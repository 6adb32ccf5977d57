"""Usage, cost, credit and quotas: worked by hand, over restarts, and as clients of every dialect see them."""

from __future__ import annotations

import contextlib
import io
import json
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.serve.fakes import POISON, START_S, FakeCross, ServedEncoder, make_server, serving

from threefold.cli.main import main
from threefold.errors import ConfigError, InputError, OverloadedError, UnavailableError
from threefold.serve.accounts import Accounts
from threefold.serve.errors import CreditError
from threefold.serve.keys import Key, Keys, change_key, create_key, read_keys, usage_file_of
from threefold.serve.ledger import UNIT, Amount, Balance, Ledger, Slot
from threefold.serve.prices import MOST, Price
from threefold.serve.reports import report
from threefold.serve.settings import ServeConfig
from threefold.text.tokenizer import Tokenizer

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC).timestamp()
#: 0.15 per million is 150,000 picos per token.
PRICES = {"m": Price(embed=0.15, rerank=2.0)}


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "usage.sqlite"


@pytest.fixture
def accounts(file: Path, clock: Clock) -> Iterator[Accounts]:
    """Not started: what is written is written by the test."""
    opened = Accounts(file, PRICES, clock)
    yield opened
    opened.close()


def key(**quotas: int) -> Key:
    return Key("k", "someone", "", ("embed",), "default", 0, 0, **quotas)


# ---- sums --------------------------------------------------------------------------------------------------


def test_cost_is_tokens_times_price_to_the_last_digit(accounts: Accounts) -> None:
    assert accounts.use("k", "m", "/embed", "embed", 1_000_000) == 15 * UNIT // 100
    assert accounts.use("k", "m", "/rerank", "rerank", 3) == 6_000_000
    assert accounts.use("k", "free", "/embed", "embed", 1_000) == 0
    assert accounts.balance("k").spent == 15 * UNIT // 100 + 6_000_000
    assert Price(embed=0.000001).picos("embed", 1) == 1  # the smallest price that is not nothing


def test_what_was_used_is_one_row_per_day_model_route_and_kind(accounts: Accounts, clock: Clock) -> None:
    accounts.use("k", "m", "/embed", "embed", 10)
    accounts.use("k", "m", "/embed", "embed", 5)
    accounts.use("k", "m", "/rerank", "rerank", 7)
    accounts.use("other", "m", "/embed", "embed", 1)
    clock.now += 86_400
    accounts.use("k", "m", "/embed", "embed", 2)
    assert accounts.usage("2026-01-01", "2026-12-31", "k") == [
        (Slot("k", "2026-01-31", "m", "/embed", "embed"), Amount(2, 15, 15 * 150_000)),
        (Slot("k", "2026-01-31", "m", "/rerank", "rerank"), Amount(1, 7, 7 * 2_000_000)),
        (Slot("k", "2026-02-01", "m", "/embed", "embed"), Amount(1, 2, 2 * 150_000)),
    ]
    assert len(accounts.usage("2026-01-01", "2026-01-31")) == 3
    assert accounts.keys() == ["k", "other"]


def test_a_restart_goes_on_with_the_same_sums(accounts: Accounts, file: Path, clock: Clock) -> None:
    accounts.use("k", "m", "/embed", "embed", 10)
    accounts.write()
    accounts.use("k", "m", "/embed", "embed", 99)  # a process that is killed here loses this, and only this
    again = Accounts(file, PRICES, clock)
    assert again.balance("k").day == 10
    again.use("k", "m", "/embed", "embed", 1)
    again.close()
    with sqlite3.connect(file) as raw:
        assert raw.execute("SELECT tokens, requests FROM usage").fetchall() == [(11, 2)]
    raw.close()


def test_two_processes_share_one_file(accounts: Accounts, file: Path, clock: Clock) -> None:
    other = Accounts(file, PRICES, clock)
    accounts.use("k", "m", "/embed", "embed", 10)
    other.use("k", "m", "/embed", "embed", 20)
    for one in (accounts, other, accounts):
        one.write()
    accounts.use("k", "m", "/embed", "embed", 1)
    assert accounts.balance("k").day == 31
    assert other.balance("k").day == 30
    other.close()


def test_the_thread_writes_without_being_asked(file: Path) -> None:
    accounts = Accounts(file, PRICES)
    accounts.start()
    accounts.use("k", "m", "/embed", "embed", 10)
    reader = Ledger(file)
    while not reader.keys():
        pass
    assert reader.balance("k", datetime.now(UTC).date().isoformat()).spent == 1_500_000
    reader.close()
    accounts.close()


def test_what_cannot_be_written_waits_in_memory(
    accounts: Accounts, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    accounts.use("k", "m", "/embed", "embed", 10)
    with sqlite3.connect(file, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="locked"):
            accounts.write()
        other.execute("ROLLBACK")
    other.close()
    assert accounts.balance("k").day == 10
    accounts.write()
    assert accounts.usage("2026-01-31", "2026-01-31")[0][1].tokens == 10


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.sqlite"
    bad.write_bytes(b"not a database, and longer than the header of one: " * 40)
    with pytest.raises(ConfigError, match=r"bad\.sqlite cannot be used: .* \(usage_file names another one\)"):
        Ledger(bad)
    with pytest.raises(ConfigError, match="unable to open"):
        Ledger(tmp_path / "no" / "folder.sqlite")


# ---- bounds ------------------------------------------------------------------------------------------------


def test_quotas_of_the_day_and_of_the_month(accounts: Accounts, clock: Clock) -> None:
    limited = key(tokens_per_day=10, tokens_per_month=15)
    accounts.use("k", "m", "/embed", "embed", 9)
    accounts.check(limited)
    accounts.use("k", "m", "/embed", "embed", 1)
    with pytest.raises(OverloadedError, match="10 tokens per day") as error:
        accounts.check(limited)
    assert error.value.retry_after_s == 12 * 3600  # from noon to midnight
    clock.now += 12 * 3600  # the first of February: a new month as well
    accounts.check(limited)
    assert (accounts.balance("k").day, accounts.balance("k").month) == (0, 0)
    for _ in range(2):
        accounts.use("k", "m", "/embed", "embed", 8)
        clock.now += 86_400
    with pytest.raises(OverloadedError, match="15 tokens per month") as error:
        accounts.check(limited)
    assert error.value.retry_after_s == 26 * 86_400  # from the 3rd of February to the 1st of March
    accounts.check(key())  # no limit


def test_credit_bounds_a_key_once_it_was_granted(accounts: Accounts, file: Path) -> None:
    accounts.use("k", "m", "/rerank", "rerank", 1_000_000)  # 2 units
    accounts.check(key())
    cli = Ledger(file)
    cli.grant("k", 3 * UNIT, int(NOON))
    accounts.write()  # what the writer does every half second: it sees the grant
    assert accounts.balance("k").left == UNIT
    accounts.check(key())
    accounts.use("k", "m", "/rerank", "rerank", 500_000)
    with pytest.raises(CreditError, match="spent its credit: 3 of 3"):
        accounts.check(key())
    cli.grant("k", UNIT // 2, int(NOON))
    cli.close()
    accounts.write()
    accounts.check(key())


def test_the_highest_price_can_be_written(file: Path, clock: Clock) -> None:
    accounts = Accounts(file, {"m": Price(embed=MOST)}, clock)
    accounts.use("k", "m", "/embed", "embed", 9_000_000)
    accounts.write()
    assert accounts.usage("2026-01-31", "2026-01-31")[0][1].picos == 9_000_000 * UNIT
    accounts.close()


def test_grants_beyond_64_bits_add_up(accounts: Accounts, file: Path) -> None:
    with contextlib.closing(Ledger(file)) as cli:
        for _ in range(10):
            cli.grant("k", 1_000_000 * UNIT, int(NOON))
        with pytest.raises(InputError, match="a grant is at most 1,000,000 at a time; got -1e"):
            cli.grant("k", -(10**20), int(NOON))
    assert accounts.balance("k").granted == 10_000_000 * UNIT
    accounts.check(key())


def test_use_is_not_lost_when_balances_are_read_again_just_then(
    accounts: Accounts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the thread that writes does it: between finding a balance and spending from it, another takes its place."""
    accounts.use("k", "m", "/embed", "embed", 10)
    original = accounts.balance

    def overtaken(name: str) -> Balance:
        found = original(name)
        accounts._keep({name: Balance(None, 0, 0, 0)})
        return found

    monkeypatch.setattr(accounts, "balance", overtaken)
    accounts.use("k", "m", "/embed", "embed", 5)
    assert original("k").day == 15


def test_no_balance_of_the_day_before_is_kept(
    accounts: Accounts, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that writes has just read one when the day changes, and keeps it a moment later."""
    for name in ("k", "other"):
        accounts.use(name, "m", "/embed", "embed", 10)
    accounts.write()
    has_read, turned, original = threading.Event(), threading.Event(), accounts._try_to_write

    def read_again() -> None:
        with accounts._writing:
            fresh = {"other": accounts._ledger.balance("other", "2026-01-31")}
            has_read.set()
            turned.wait(0.2)
            accounts._keep(fresh)

    writer = threading.Thread(target=read_again)

    def write_and_read_again() -> None:
        original()
        writer.start()
        has_read.wait(START_S)

    monkeypatch.setattr(accounts, "_try_to_write", write_and_read_again)
    clock.now += 86_400
    accounts.balance("k")
    turned.set()
    writer.join()
    monkeypatch.setattr(accounts, "_try_to_write", original)
    assert accounts.balance("other").day == 0


def test_a_report_of_many_keys_reads_its_rows_once() -> None:
    class Rows(list[tuple[Slot, Amount]]):
        read = 0

        def __iter__(self) -> Iterator[tuple[Slot, Amount]]:
            self.read += 1
            return super().__iter__()

    ids = ["a", "b", "c"]
    rows = Rows((Slot(id, day, "m", "/embed", "embed"), Amount(1, 2, 3)) for day in ("1", "2") for id in ids[:2])
    found = report(rows, "1", "2", "USD", ids, {}, lambda id: Balance(None, 0, 0, 0))
    assert [[one["day"] for one in key["usage"]] for key in found["keys"]] == [["1", "2"], ["1", "2"], []]
    assert rows.read == 1


def test_prices_are_checked() -> None:
    config = ServeConfig.from_dict({"prices": {"m": {"embed": 0.1}}})
    assert config.prices == {"m": Price(0.1, 0.0)}
    for price in (-1, float("nan"), 2e6):
        with pytest.raises(
            ConfigError, match=r"prices\.m: embed must be a price from 0 to 1,000,000 per million tokens"
        ):
            ServeConfig.from_dict({"prices": {"m": {"embed": price}}}, "serve")
    with pytest.raises(ConfigError, match="unknown setting 'search'"):
        ServeConfig.from_dict({"prices": {"m": {"search": 1}}}, "serve")


# ---- over a socket -----------------------------------------------------------------------------------------


class World:
    """A server with keys, and the headers of two of them."""

    def __init__(self, folder: Path, served: ServedEncoder, tokenizer: Tokenizer) -> None:
        self.keys = folder / "keys.json"
        secret, self.key = create_key(self.keys, "ann", ["embed", "search", "write"])
        admin, self.admin_key = create_key(self.keys, "root", ["admin"])
        self.mine, self.admin = ({"authorization": f"Bearer {one}"} for one in (secret, admin))
        prices = {"fake-m3": Price(embed=1.0), "fake-cross": Price(rerank=10.0)}
        config = ServeConfig(keys_file=str(self.keys), collections=str(folder / "all"), prices=prices)
        self.server = make_server(served, config, FakeCross(tokenizer))


@pytest.fixture
def world(tmp_path: Path, served: ServedEncoder, tokenizer: Tokenizer) -> World:
    return World(tmp_path, served, tokenizer)


def embed(client: httpx.Client, world: World, text: str = "a fox") -> httpx.Response:
    return client.post("/v1/embeddings", json={"model": "fake-m3", "input": text}, headers=world.mine)


def test_answers_are_counted_once_and_failures_never(world: World, served: ServedEncoder) -> None:
    tokens = int(served.tokenizer.count(["a fox"])[0])
    with serving(world.server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        assert embed(client, world).status_code == 200
        assert embed(client, world, POISON).status_code == 500
        assert embed(client, world, "").status_code == 400
        body = {"query": "a fox", "texts": ["a fox", "dog"]}
        ranked = client.post("/rerank", json=body, headers=world.mine)
        read = int(ranked.headers["x-compute-tokens"])
        found = client.get("/v1/usage", headers=world.mine).json()
        metrics = world.server.meters.text().decode()
    assert [one["key"] for one in found["keys"]] == [world.key.id]
    one = found["keys"][0]
    assert one["name"] == "ann"
    day = one["usage"][0]["day"]
    assert one["usage"] == [
        {"day": day, "model": "fake-cross", "route": "/rerank", "kind": "rerank", "requests": 1, "tokens": read,
         "cost": pytest.approx(read * 10e-6)},
        {"day": day, "model": "fake-m3", "route": "/v1/embeddings", "kind": "embed", "requests": 1, "tokens": tokens,
         "cost": pytest.approx(tokens * 1e-6)},
    ]  # fmt: skip
    assert one["total"]["tokens"] == one["today"]["tokens"] == tokens + read
    assert one["credit"] == {"granted": None, "spent": pytest.approx(one["total"]["cost"]), "left": None}
    assert f'threefold_cost_total{{key="{world.key.id}",model="fake-m3"}}' in metrics
    with sqlite3.connect(usage_file_of(world.keys)) as raw:  # all of it is on disk when the server has ended
        assert raw.execute("SELECT SUM(tokens) FROM usage").fetchone() == (tokens + read,)
    raw.close()


def test_collections_are_counted_with_what_reranking_reads(world: World) -> None:
    with serving(world.server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        client.put("/collections/papers", headers=world.mine, json={"chunking": {"max_tokens": 32}})
        line = json.dumps({"id": "a", "text": "quick brown fox"}).encode()
        added = client.post("/collections/papers/documents", content=line, headers=world.mine)
        tokens = json.loads(added.text.splitlines()[-1])["report"]["tokens"]
        body = {"query": "fox", "rerank": {"by": "cross"}}
        found = client.post("/collections/papers/search", json=body, headers=world.mine)
        assert found.status_code == 200, found.text
        rows = client.get("/v1/usage", headers=world.mine).json()["keys"][0]["usage"]
    counted = {(row["route"], row["kind"]): (row["requests"], row["tokens"]) for row in rows}
    assert counted["/collections/{name}/documents", "embed"] == (1, tokens)
    assert counted["/collections/{name}/search", "embed"][0] == 1
    assert counted["/collections/{name}/search", "rerank"][1] > tokens


def test_a_request_of_many_parts_is_one_request(world: World) -> None:
    with serving(world.server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        ranks = {"query": "a", "texts": ["a fox", "dog"]}
        instances = [{"inputs": "a"}, {"inputs": "a fox"}, ranks, ranks]
        assert client.post("/vertex", json={"instances": instances}, headers=world.mine).status_code == 200
        rows = client.get("/v1/usage", headers=world.mine).json()["keys"][0]["usage"]
        tokens = client.get("/v1/usage", headers=world.mine).json()["keys"][0]["total"]["tokens"]
    assert {row["kind"]: row["requests"] for row in rows} == {"embed": 1, "rerank": 1}
    assert tokens == world.server.embedder.tokenizer.count(["a", "a fox"]).sum() + 2 * _pairs_read(world)


def _pairs_read(world: World) -> int:
    """Tokens of `ranks` above, which the cross-encoder reads pair by pair: <s> query </s></s> text </s>."""
    tokenizer = world.server.embedder.tokenizer
    query, *texts = (len(tokenizer.pieces(text)) for text in ("a", "a fox", "dog"))
    return sum(query + text + 4 for text in texts)


def test_who_may_see_what(world: World) -> None:
    with serving(world.server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        embed(client, world)
        assert client.get("/v1/usage").status_code == 401
        everyone = client.get("/v1/usage", headers=world.admin).json()["keys"]
        assert {one["key"] for one in everyone} == {world.key.id, world.admin_key.id}
        one = client.get("/v1/usage", params={"key": world.key.id}, headers=world.admin).json()["keys"]
        assert [found["key"] for found in one] == [world.key.id]
        other = client.get("/v1/usage", params={"key": world.admin_key.id}, headers=world.mine)
        assert other.status_code == 403
        nobody = client.get("/v1/usage", params={"key": "key-x"}, headers=world.admin)
        assert nobody.status_code == 404
        assert nobody.json()["error"]["message"] == "there is no key 'key-x'"
        bad = client.get("/v1/usage", params={"from": "yesterday"}, headers=world.mine)
        assert bad.json()["error"]["message"] == "from must be a day such as 2026-01-31; got 'yesterday'"
        wrong = client.get("/v1/usage", params={"from": "2026-02-01", "to": "2026-01-01"}, headers=world.mine)
        assert wrong.status_code == 400
        past = client.get("/v1/usage", params={"from": "2020-01-01", "to": "2020-12-31"}, headers=world.mine).json()
        assert past["keys"][0]["usage"] == []
        assert past["keys"][0]["today"]["tokens"] > 0


def test_credit_that_is_spent_is_said_in_every_dialect(world: World) -> None:
    ledger = Ledger(usage_file_of(world.keys))
    ledger.grant(world.key.id, 1, 0)  # a millionth of a millionth: the first request spends it
    ledger.close()
    with serving(world.server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        assert embed(client, world).status_code == 200
        openai = embed(client, world)
        tei = client.post("/embed", json={"inputs": "a"}, headers=world.mine)
        cohere = client.post("/v2/rerank", json={"model": "x", "query": "a", "documents": ["a"]}, headers=world.mine)
        vllm = client.post("/pooling", json={"input": "a"}, headers=world.mine)
        still = client.get("/v1/usage", headers=world.mine)
    assert openai.status_code == 429
    assert openai.json()["error"]["code"] == openai.json()["error"]["type"] == "insufficient_quota"
    assert openai.headers["x-should-retry"] == "false"
    assert [one.status_code for one in (tei, cohere, vllm)] == [402, 402, 402]
    assert tei.json()["error_type"] == "Overloaded"
    assert set(cohere.json()) == {"message", "id"}
    assert vllm.json()["error"] | {"message": ""} == {
        "message": "", "type": "PaymentRequiredError", "param": None, "code": 402,
    }  # fmt: skip
    assert still.json()["keys"][0]["credit"]["left"] < 0


def test_a_quota_that_is_used_up_is_429_until_the_day_ends(world: World) -> None:
    change_key(world.keys, world.key.id, tokens_per_day=1)
    with serving(world.server) as url, httpx.Client(base_url=url, timeout=START_S) as client:
        assert embed(client, world).status_code == 200
        refused = embed(client, world)
        change_key(world.keys, world.key.id, tokens_per_day=0)
        assert embed(client, world).status_code == 200
    assert refused.status_code == 429
    assert refused.json()["error"]["message"] == "this API key has used its 1 tokens per day"
    assert 1 <= int(refused.headers["retry-after"]) <= 86_400


def test_a_server_without_keys_counts_where_it_is_told_to(served: ServedEncoder, file: Path) -> None:
    with serving(make_server(served, ServeConfig(usage_file=str(file)))) as url:
        httpx.post(f"{url}/embed", json={"inputs": "a fox"}, timeout=START_S)
        found = httpx.get(f"{url}/v1/usage", timeout=START_S).json()
    assert [one["key"] for one in found["keys"]] == [""]
    assert found["keys"][0]["total"]["requests"] == 1


def test_a_server_that_counts_nothing_says_so(http: httpx.Client) -> None:
    missing = http.get("/v1/usage")
    assert missing.status_code == 404
    assert "usage_file" in missing.json()["error"]["message"]


# ---- by the command line -----------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    assert main(["keys", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_keys_made_at_once_are_all_kept(tmp_path: Path) -> None:
    """By processes: a key that was shown must not be lost to another writer."""
    file = tmp_path / "keys.json"
    code = "import sys; from pathlib import Path; from threefold.serve.keys import create_key\n"
    code += "for i in range(5): create_key(Path(sys.argv[1]), f'{sys.argv[2]}-{i}', ['embed'])"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(file), str(i)]) for i in range(4)]
    assert [writer.wait(60) for writer in writers] == [0] * 4
    assert sorted(key.name for key in read_keys(file)) == sorted(f"{i}-{j}" for i in range(4) for j in range(5))


def test_credit_quota_and_usage_by_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    _, key = create_key(file, "ann", ["embed"])
    where = ("--file", str(file))
    assert run(capsys, "credit", key.id, *where, "--make") == {
        "key": key.id, "granted": None, "spent": 0.0, "left": None, "currency": None,
        "usage_file": str(usage_file_of(file)),
    }  # fmt: skip
    assert run(capsys, "credit", key.id, *where, "--amount", "2.5", "--note", "January")["left"] == 2.5
    assert run(capsys, "credit", key.id, *where, "--amount", "-1")["left"] == 1.5
    changed = run(capsys, "quota", key.id, *where, "--tokens-per-day", "100")
    assert (changed["tokens_per_day"], changed["tokens_per_month"]) == (100, 0)
    accounts = Accounts(usage_file_of(file), PRICES, currency="EUR")
    accounts.use(key.id, "m", "/embed", "embed", 1_000_000)
    accounts.close()
    found = run(capsys, "usage", *where)
    assert found["currency"] == "EUR"  # as the server says
    assert found["keys"][0]["total"] == {"requests": 1, "tokens": 1_000_000, "cost": 0.15}
    assert found["keys"][0]["today"] == {"tokens": 1_000_000, "limit": 100}
    assert found["keys"][0]["credit"]["left"] == pytest.approx(1.35)
    assert main(["keys", "usage", key.id, *where]) == 0
    said = capsys.readouterr()
    assert "1,000,000" in said.out
    assert "EUR" in said.out
    assert "1.35 left" in said.err.replace("\n", " ")
    assert main(["keys", "usage", "key-x", *where]) == 2
    assert main(["keys", "credit", "key-x", *where]) == 2
    assert main(["keys", "usage", "--from", "soon", *where]) == 2


@pytest.mark.parametrize(
    "command", [["usage"], ["usage", "KEY"], ["credit", "KEY"], ["credit", "KEY", "--amount", "5"]]
)
def test_a_file_of_usage_that_is_not_there_is_named_and_not_made(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, typo = tmp_path / "keys.json", tmp_path / "typo.sqlite"
    _, key = create_key(file, "ann", ["embed"])
    given = [key.id if one == "KEY" else one for one in command]
    assert main(["keys", *given, "--file", str(file), "--usage-file", str(typo)]) == 2
    assert "there is no file of usage at" in capsys.readouterr().err.replace("\n", " ")
    assert not typo.exists()


def test_credit_goes_into_no_file_that_no_server_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The server has its usage_file elsewhere: next to the keys there is none, and none is made."""
    file, usage = tmp_path / "keys.json", tmp_path / "usage.sqlite"
    _, key = create_key(file, "ann", ["embed"])
    Ledger(usage).close()
    grant = ("keys", "credit", key.id, "--file", str(file), "--amount", "25")
    assert main([*grant]) == 2
    assert "say so with --usage-file" in capsys.readouterr().err
    assert not usage_file_of(file).exists()
    assert main([*grant, "--usage-file", str(usage)]) == 0
    said = capsys.readouterr().err
    assert f"25 granted, 25 left; 0 spent; in {usage}" in said
    assert f"no server has opened {usage} yet" in said
    with contextlib.closing(Ledger(usage)) as ledger:
        assert ledger.balance(key.id, "2026-01-31").granted == 25 * UNIT


def test_the_file_of_usage_is_for_its_owner_alone(file: Path) -> None:
    with contextlib.closing(Ledger(file)) as ledger:
        ledger.grant("k", UNIT, 0)
        modes = {one.name: stat.S_IMODE(one.stat().st_mode) for one in file.parent.iterdir()}
    assert modes == dict.fromkeys(("usage.sqlite", "usage.sqlite-wal", "usage.sqlite-shm"), 0o600)


def test_another_name_for_the_money_is_said(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    Accounts(file, PRICES, currency="EUR").close()
    assert not caplog.messages
    Accounts(file, PRICES, currency="USD").close()
    assert caplog.messages == ["the file of usage has sums in EUR; from now on they are called USD"]


def test_usage_of_a_file_that_no_server_has_opened_has_no_currency(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    create_key(file, "ann", ["embed"])
    Ledger(usage_file_of(file)).close()
    assert run(capsys, "usage", "--file", str(file))["currency"] is None
    assert run(capsys, "usage", "--file", str(file), "--currency", "CHF")["currency"] == "CHF"
    assert main(["keys", "usage", "--file", str(file)]) == 0
    assert "cost" in capsys.readouterr().out


def test_usage_that_nobody_has_counted_is_not_nothing(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    create_key(file, "ann", ["embed"])
    assert main(["keys", "usage", "--file", str(file)]) == 2
    assert not usage_file_of(file).exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scopes", ""], "a key without scopes may do nothing; give some of embed"),
        (["--scopes", " , "], "a key without scopes"),
        (["--namespace", "ü" * 33], "namespace has 66 bytes, the limit is 64"),
    ],
)
def test_a_key_that_is_of_no_use_is_not_made(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    assert main(["keys", "create", "ann", "--file", str(file), *options]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")
    assert not file.exists()


def test_a_key_that_clients_have_already(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file, secret = tmp_path / "keys.json", "sk-an-old-key-of-another-server"
    command = ["keys", "create", "ann", "--file", str(file), "--key-stdin"]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{secret}\r\n"))
    assert main(command) == 0
    said = capsys.readouterr()
    assert (said.out, secret in said.err) == ("", False)
    found = Keys(file).find(secret)
    assert found is not None
    assert found.name == "ann"
    assert secret not in file.read_text()
    monkeypatch.setattr("sys.stdin", io.StringIO(secret))
    assert main([*command, "--json"]) == 2
    said = capsys.readouterr()
    assert f"has this key already: {found.id} for ann" in " ".join(said.err.split())
    assert secret not in said.err
    assert [key.id for key in read_keys(file)] == [found.id]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "the key has 0 characters; at least 20 are needed"),
        ("short\n", "the key has 5 characters"),
        ("with a space in the middle", "without spaces"),
        ("ein-schlüssel-mit-einem-ü", "letters, digits and signs of ASCII"),
        ("a" * 5_000, "the key has 5,000 characters; at most 4,096 can be sent"),
        (None, "the key has 0 characters"),  # a service without standard input
    ],
)
def test_a_key_that_cannot_be_one(
    line: str | None, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", None if line is None else io.StringIO(line))
    assert main(["keys", "create", "ann", "--file", str(tmp_path / "keys.json"), "--key-stdin"]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "keys.json").exists()
