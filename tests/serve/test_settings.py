"""Settings from a file, the environment and flags; API keys on disk."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path

import pytest

from threefold.cli.main import main
from threefold.errors import ConfigError, InputError, OverloadedError
from threefold.serve.files import create, keep_access
from threefold.serve.keys import Key, Keys, change_key, create_key, hashed, read_keys, revoke_key
from threefold.serve.ledger import Ledger
from threefold.serve.load import load_config
from threefold.serve.rates import Rates
from threefold.serve.settings import ServeConfig

# ---- settings ----------------------------------------------------------------------------------------------


def test_later_sources_win(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text(
        '[serve]\nport = 1\nhost = "::1"\nmax_inputs = 3\n[serve.limits]\nbatch_s = 0.5\n', encoding="utf-8"
    )
    environment = {"THREEFOLD_SERVE_PORT": "2", "THREEFOLD_SERVE_LIMITS_QUEUED_TOKENS": "77", "OTHER": "x"}
    config = load_config(file, environment, {"port": 4, "host": None, "limits.stall_s": 9.0})
    assert (config.port, config.host, config.max_inputs) == (4, "::1", 3)
    assert (config.limits.batch_s, config.limits.queued_tokens, config.limits.stall_s) == (0.5, 77, 9.0)


def test_the_variables_of_every_command_are_the_weakest(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('device = "cuda"', encoding="utf-8")
    environment = {"THREEFOLD_MODEL": "m", "THREEFOLD_DEVICE": "cpu", "THREEFOLD_PRECISION": ""}
    config = load_config(file, environment, {})
    assert (config.model, config.device, config.precision) == ("m", "cuda", "auto")
    assert load_config(None, environment | {"THREEFOLD_SERVE_MODEL": "n"}, {}).model == "n"


def test_text_becomes_the_type_of_the_setting() -> None:
    flags = {"served_names": "a, b", "truncate": "off", "max_input_tokens": "64", "limits.batch_s": "1", "model": "m"}
    config = load_config(None, {"THREEFOLD_SERVE_CONFIG": "names the file"}, flags)
    assert config.served_names == ("a", "b")
    assert config.truncate is False
    assert config.max_input_tokens == 64
    assert config.limits.batch_s == 1.0
    assert config.model == "m"


def test_prompts_keep_their_blanks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('query_prompt = "file: "\n[[models]]\npath = "a"\ndocument_prompt = ""\n', encoding="utf-8")
    config = load_config(file, {"THREEFOLD_SERVE_DOCUMENT_PROMPT": "passage: "}, {})
    assert (config.query_prompt, config.document_prompt) == ("file: ", "passage: ")
    assert (config.models[0].query_prompt, config.models[0].document_prompt) == (None, "")
    assert main(["serve", "--show-config", "--set", "query_prompt=query: ", "--set", "max_inputs= 7 "]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["query_prompt"], shown["document_prompt"], shown["max_inputs"]) == ("query: ", None, 7)
    with pytest.raises(ConfigError, match=r"models\[0\]: query_prompt and document_prompt are for encoders"):
        ServeConfig.from_dict({"models": [{"path": "a", "kind": "cross-encoder", "query_prompt": "q"}]}, "serve")


def test_nothing_given_is_the_default() -> None:
    assert load_config(None, {}, {}) == ServeConfig()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"prot": "1"}, r"prot: unknown setting 'prot'; known are host, port"),
        ({"limits.foo": "1"}, r"limits\.foo: unknown setting"),
        ({"queue.foo": "1"}, r"there is no section 'queue'"),
        ({"limits": "1"}, r"unknown setting 'limits'"),
        ({"port": "http"}, r"port: expected a number, got 'http'"),
        ({"truncate": "maybe"}, r"truncate: expected true or false, got 'maybe'"),
        ({"port": "70000"}, r"port must be from 0 .* to 65535; got 70000"),
        ({"tls_cert": "a"}, r"tls_cert and tls_key belong together"),
        ({"max_inputs": "0"}, r"max_inputs must be at least 1"),
        ({"max_input_tokens": "1"}, r"max_input_tokens must be at least 3"),
        ({"body_s": "0"}, r"body_s must be above 0 and finite; got 0"),
        ({"body_s": "nan"}, r"body_s must be above 0 and finite; got nan"),
        ({"body_s": "inf"}, r"body_s must be above 0 and finite; got inf"),
        ({"limits.batch_s": "1e308"}, r"batch_s must be at most 1e\+09 seconds; got 1e\+308"),
    ],
)
def test_a_wrong_setting_is_named(flags: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, {}, flags)


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.toml"
    bad.write_text("port = ", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"bad\.toml is not a TOML file"):
        load_config(bad, {}, {})
    bad.write_text("serve = 1", encoding="utf-8")
    with pytest.raises(ConfigError, match="serve must be a table"):
        load_config(bad, {}, {})
    with pytest.raises(ConfigError, match=r"no\.toml is not a TOML file"):
        load_config(tmp_path / "no.toml", {}, {})


def test_an_empty_variable_is_as_if_it_were_not_set(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('port = 9\ncors_origins = ["*"]', encoding="utf-8")
    names = ("PORT", "CORS_ORIGINS", "TRUNCATE", "LIMITS_BATCH_S", "MAX_INPUT_TOKENS")
    empty = {f"THREEFOLD_SERVE_{name}": "" for name in names}
    assert load_config(file, empty, {}) == ServeConfig(port=9, cors_origins=("*",))


@pytest.mark.parametrize(
    "address", ["foo", "127.0.0.1:4318", "grpc://a:4317", "http://", "http://a:b", "http://[::1", "http://a:0"]
)
def test_traces_go_to_a_web_address(address: str) -> None:
    with pytest.raises(ConfigError, match=r"otlp_endpoint must be an address such as http://127\.0\.0\.1:4318; got"):
        ServeConfig(otlp_endpoint=address)
    for good in ("", "http://collector:4318", "https://[::1]/v1/traces"):
        assert ServeConfig(otlp_endpoint=good).otlp_endpoint == good


# ---- keys --------------------------------------------------------------------------------------------------


def test_only_the_hash_is_kept_and_only_the_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret, key = create_key(path, "someone", ["embed"], "team-a")
    assert secret.startswith("tf-")
    assert len(secret) > 40
    assert secret not in path.read_text(encoding="utf-8")
    assert key.hash == hashed(secret)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_keys(path) == (key,)
    found = Keys(path).find(secret)
    assert found == key
    assert Keys(path).find(secret + "x") is None


def test_a_change_keeps_owner_group_and_mode(tmp_path: Path) -> None:
    """Root changes a quota, and the server, as a user of its own, reads the file still."""
    path = tmp_path / "keys.json"
    _, key = create_key(path, "a", ["embed"])
    path.chmod(0o640)
    root = os.geteuid() == 0
    if root:
        os.chown(path, 12_345, 23_456)
    before = path.stat()
    change_key(path, key.id, tokens_per_day=7)
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid, after.st_mode) == (before.st_uid, before.st_gid, before.st_mode)
    assert not root or (after.st_uid, after.st_gid) == (12_345, 23_456)


def test_who_may_not_give_a_file_away_opens_it_to_no_other_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.json"
    create_key(path, "a", ["embed"])
    path.chmod(0o640)
    theirs = os.stat_result((*path.stat()[:4], 12_345, 23_456, *path.stat()[6:]))

    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    file = create(tmp_path / "new")
    keep_access(file, theirs)
    os.close(file)
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o600


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_root_makes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    os.chown(tmp_path, 12_345, 23_456)
    create_key(tmp_path / "keys.json", "a", ["embed"])
    Ledger(tmp_path / "usage.sqlite").close()
    made = {one.name: one.stat() for one in tmp_path.iterdir()}
    assert set(made) == {"keys.json", ".keys.json.lock", "usage.sqlite"}
    assert {(one.st_uid, one.st_gid) for one in made.values()} == {(12_345, 23_456)}
    assert {stat.S_IMODE(one.st_mode) for one in made.values()} == {0o600}


def test_a_link_that_lies_where_the_draft_goes_is_not_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious", encoding="utf-8")
    (tmp_path / "keys.json.new").symlink_to(other)
    create_key(tmp_path / "keys.json", "a", ["embed"])
    assert other.read_text(encoding="utf-8") == "precious"
    assert not (tmp_path / "keys.json").is_symlink()


def test_a_file_of_keys_that_may_not_be_read_is_said_to_be_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys.json"
    create_key(path, "a", ["embed"])

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(
        ConfigError, match=r"cannot be read: permission denied \(the user of the server should own it\)"
    ):
        Keys(path)


def test_a_running_server_sees_new_and_revoked_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    first, _ = create_key(path, "first", ["embed"])
    keys = Keys(path)
    second, key = create_key(path, "second", ["search", "write"])
    assert keys.find(second) == key
    revoke_key(path, key.id)
    assert keys.find(second) is None
    assert keys.find(first) is not None


def test_a_change_within_a_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    secret, key = create_key(path, "a", ["embed"], tokens_per_day=100)
    keys, before = Keys(path), path.stat()
    change_key(path, key.id, tokens_per_day=200)  # as many bytes as before
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    found = keys.find(secret)
    assert found is not None
    assert found.tokens_per_day == 200


def test_quotas_that_are_none_are_not_written(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    _, key = create_key(path, "a", ["embed"])
    with pytest.raises(InputError, match="unknown quota 'hash'"):
        change_key(path, key.id, hash=0)
    assert read_keys(path) == (key,)


def test_a_bucket_fills_with_time_and_a_debt_is_waited_off() -> None:
    now = [0.0]
    rates = Rates(lambda: now[0])
    key = Key("key-1", "a", "", ("embed",), tokens_per_minute=60)  # one per second
    assert rates.left(key) == 60
    rates.check(key)
    rates.charge(key, 90)
    with pytest.raises(OverloadedError, match="used its 60 tokens per minute") as error:
        rates.check(key)
    assert error.value.retry_after_s == pytest.approx(31.0)  # 30 of debt, and one to use
    now[0] = 31.0
    rates.check(key)
    assert rates.left(key) == 1
    now[0] = 1_000.0
    assert rates.left(key) == 60  # never more than a minute's worth
    unlimited = Key("key-2", "b", "", ("embed",))
    rates.charge(unlimited, 10**9)
    rates.check(unlimited)
    assert rates.left(unlimited) is None


def test_wrong_keys_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with pytest.raises(ConfigError, match="unknown scope 'root'; known are embed, search, write, metrics"):
        create_key(path, "a", ["root"])
    with pytest.raises(ConfigError, match="a namespace is letters"):
        create_key(path, "a", ["embed"], "../other")
    with pytest.raises(InputError, match="the namespace has 66 bytes, the limit is 64"):
        create_key(path, "a", ["embed"], "ü" * 33)
    with pytest.raises(InputError, match="a key needs a name"):
        create_key(path, " ", ["embed"])
    with pytest.raises(InputError, match="a key without scopes may do nothing; give some of embed, search"):
        create_key(path, "a", [])
    with pytest.raises(InputError, match="scopes must be a list of scopes; got the text 'embed'"):
        create_key(path, "a", "embed")
    with pytest.raises(InputError, match="unknown quota 'tokens_per_week'; known are tokens_per_minute"):
        create_key(path, "a", ["embed"], tokens_per_week=1)
    for wrong in (1.5, True, "7"):  # the file could not be read again, and no key would be known any more
        with pytest.raises(ConfigError, match="tokens_per_day: expected int"):
            create_key(path, "a", ["embed"], tokens_per_day=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tokens_per_minute must be at least 0"):
        create_key(path, "a", ["embed"], tokens_per_minute=-1)
    assert not path.exists()
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ConfigError, match="expected a table"):
        Keys(path)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(ConfigError, match="is not a file of API keys"):
        Keys(path)
    _, key = create_key(tmp_path / "other.json", "a", ["embed"])
    with pytest.raises(InputError, match=f"has no key 'key-x'; it has {key.id}"):
        revoke_key(tmp_path / "other.json", "key-x")
