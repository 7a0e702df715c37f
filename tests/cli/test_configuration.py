"""config, and where settings come from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from servers import Cli

from flexserve import settings
from flexserve.errors import CallerError
from flexserve.normal.api.keys import digest_of


@pytest.fixture
def file(home: Path) -> Path:
    path = home / "config/flexserve/config.toml"
    path.parent.mkdir(parents=True)
    return path


def test_flags_win_over_environment_over_file_over_defaults(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('host = "10.0.0.1"\nport = 1\nthreads = 1\nmemory = "plain"\n')
    monkeypatch.setenv("FLEXSERVE_PORT", "2")
    monkeypatch.setenv("FLEXSERVE_THREADS", "2")
    chosen = settings.load(threads=3)
    assert (chosen.threads, chosen.port, chosen.host, chosen.memory) == (3, 2, "10.0.0.1", "plain")
    assert chosen.max_queue == 64


def test_a_flag_not_given_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXSERVE_PORT", "2")
    assert settings.load(port=None).port == 2


def test_config_says_where_each_value_comes_from(
    cli: Cli, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("threads = 5\n")
    monkeypatch.setenv("FLEXSERVE_HOST", "::1")
    shown = json.loads(cli("config", "--json").stdout)
    assert shown["threads"] == {"value": 5, "from": f"threads in {file}"}
    assert shown["host"] == {"value": "::1", "from": "FLEXSERVE_HOST"}
    assert shown["max_queue"] == {"value": 64, "from": "default"}
    assert "FLEXSERVE_HOST" in cli("config").stdout


def test_config_shows_values_as_the_file_has_them(cli: Cli, file: Path) -> None:
    file.write_text('rewarm = false\nallowed_hosts = ["a.example"]\n')
    lines = [line.split() for line in cli("config").stdout.splitlines()]
    shown = {words[0]: words[1] for words in lines if len(words) > 1}
    assert {name: shown[name] for name in ("rewarm", "npu", "allowed_hosts", "keep_alive", "memory")} == {
        "rewarm": "false",
        "npu": "true",
        "allowed_hosts": '["a.example"]',
        "keep_alive": "300.0",
        "memory": "secret",
    }


def test_config_shows_the_socket_that_a_server_listens_on(
    cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shown() -> object:
        return json.loads(cli("config", "--json").stdout)["unix_socket"]

    monkeypatch.setenv("FLEXSERVE_PORT", "4711")
    own = settings.load().server_socket()
    assert own is not None
    assert shown() == {"value": str(own), "from": "default"}
    monkeypatch.setenv("FLEXSERVE_HOST", "models.example")
    assert shown() == {"value": None, "from": "default"}, "the server of another machine has none here"
    monkeypatch.setenv("FLEXSERVE_UNIX_SOCKET", str(home / "given"))
    assert shown() == {"value": str(home / "given"), "from": "FLEXSERVE_UNIX_SOCKET"}


def test_the_schema_describes_every_setting(cli: Cli) -> None:
    schema = json.loads(cli("config", "--schema").stdout)
    assert set(schema["properties"]) == set(settings.Settings.model_fields)
    assert all(field["description"] for field in schema["properties"].values())
    assert schema["additionalProperties"] is False


def test_files_lie_where_xdg_says(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings.load()
    assert chosen.models == home / "data/flexserve/models"
    assert chosen.device_key == home / "config/flexserve/device.key"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert settings.load().models == home / ".local/share/flexserve/models"


def test_a_path_may_start_with_a_tilde(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXSERVE_MODELS", "~/sealed")
    assert settings.load().models == home / "sealed"


@pytest.mark.parametrize(
    ("text", "mode", "remedy"),
    [
        ("port = 1", 0o666, "chmod go-w"),
        ("port = 1", 0o660, "chmod go-w"),
        ('api_key = "sk-x"', 0o644, "600"),
    ],
)
def test_a_configuration_that_others_could_have_got_at_is_refused(
    cli: Cli, file: Path, text: str, mode: int, remedy: str
) -> None:
    file.write_text(text)
    file.chmod(mode)
    result = cli("config")
    assert result.exit_code == 1
    assert remedy in result.stderr


def test_names_of_hosts_come_from_flags_or_a_list_or_text(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text('allowed_hosts = ["a.example"]')
    assert settings.load().allowed_hosts == ["a.example"]
    monkeypatch.setenv("FLEXSERVE_ALLOWED_HOSTS", "b.example, c.example")
    assert settings.load().allowed_hosts == ["b.example", "c.example"]
    for wrong in ("http://a.example", "*", "a b"):
        with pytest.raises(CallerError):
            settings.load(allowed_hosts=[wrong])


@pytest.mark.parametrize("text", [b"prot = 1", b"port = ", b'port = "1x"', b"port = -1", b"\xff", b"[host]"])
def test_a_bad_file_is_an_error_that_names_it(
    cli: Cli, file: Path, text: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_bytes(text)
    monkeypatch.delenv("FLEXSERVE_PORT")
    result = cli("config")
    assert result.exit_code == 1
    assert str(file) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("variable", "value"),
    [("PORT", "many"), ("MEMORY", "safe"), ("KEEP_ALIVE", "-2"), ("KEEP_ALIVE", "nan"), ("CONTEXT", "-1")],
)
def test_a_bad_variable_is_an_error_that_names_it(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"FLEXSERVE_{variable}", value)
    with pytest.raises(CallerError, match=f"^FLEXSERVE_{variable}: ") as refusal:
        settings.load()
    assert refusal.value.code == "bad_setting"


@pytest.mark.parametrize(
    ("text", "seconds"), [("10m", 600.0), ("250ms", 0.25), (" 2 h ", 7200.0), ("5", 5.0), ("-1", -1.0)]
)
def test_times_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert settings.load(keep_alive=text).keep_alive == pytest.approx(seconds)


def test_ram_that_the_emulated_machine_cannot_have_is_refused_in_units_that_people_use(cli: Cli) -> None:
    for size in ("100M", "301M", "4G"):
        result = cli("boot", "--guest-memory", size)
        assert result.exit_code == 1
        assert "--guest-memory: the machine can have 256M to 3G" in result.stderr


def test_keys_are_known_and_never_shown(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("sk-of-the-file\n")
    file.chmod(0o600)
    monkeypatch.setenv("FLEXSERVE_API_KEY", "sk-of-mine")
    monkeypatch.setenv("FLEXSERVE_API_KEYS", "sk-of-ada, sk-of-bob")
    monkeypatch.setenv("FLEXSERVE_API_KEY_FILE", str(file))
    loaded = settings.load()
    keys = loaded.server_keys()
    assert [key.name for key in keys] == ["api_key", "api_keys-1", "api_keys-2", "line-1"]
    given = ["sk-of-mine", "sk-of-ada", "sk-of-bob", "sk-of-the-file"]
    assert [key.digest for key in keys] == [digest_of(key.encode()) for key in given]
    assert loaded.address().key == "sk-of-mine"
    for arguments in (["config"], ["config", "--json"]):
        result = cli(*arguments)
        assert result.exit_code == 0
        assert "sk-of" not in result.stdout
    assert "sk-of" not in repr(loaded) + repr(loaded.address())


@pytest.mark.parametrize(
    "words",
    [
        ("serve",),
        ("run", "tiny", "Hello"),
        ("chat", "tiny"),
        ("bench", "paper"),
    ],
    ids=" ".join,
)
def test_plain_memory_on_the_emulated_machine_is_the_callers_error(cli: Cli, words: tuple[str, ...]) -> None:
    refused = cli(*words, "--platform", "trustzone", "--memory", "plain")
    assert refused.exit_code == 1
    assert "--memory: plain memory is the linux platform's" in refused.stderr
    assert "hint: Leave --memory plain out, or give --platform linux." in refused.stderr


def test_measurements_of_this_machine_may_use_plain_memory_whatever_is_configured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLEXSERVE_PLATFORM", "trustzone")
    assert settings.load(platform="linux", memory="plain").memory == "plain"
    with pytest.raises(CallerError, match="FLEXSERVE_PLATFORM"):
        settings.load(memory="plain")


@pytest.mark.parametrize(
    "words", [("serve",), ("run", "tiny", "Hello"), ("chat", "tiny"), ("attack",), ("measure",)], ids=" ".join
)
def test_a_secure_world_inside_of_no_machine_is_the_callers_error(cli: Cli, words: tuple[str, ...]) -> None:
    refused = cli(*words, "--secure-world", "inside")
    assert refused.exit_code == 1
    assert "--secure-world: models compute inside of the emulated machine only" in refused.stderr
    assert "hint: Give --platform trustzone" in refused.stderr


def test_models_compute_inside_of_the_machine_unless_somebody_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert settings.load(platform="trustzone").is_inside
    assert not settings.load(platform="trustzone", secure_world="host").is_inside
    monkeypatch.setenv("FLEXSERVE_SECURE_WORLD", "host")
    assert not settings.load(platform="trustzone").is_inside
    assert settings.load(platform="trustzone", secure_world="inside").is_inside


def test_where_models_compute_on_the_machine_is_no_matter_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEXSERVE_SECURE_WORLD", "inside")
    monkeypatch.setenv("FLEXSERVE_GUEST_MEMORY", "2G")
    assert not settings.load(platform="linux", threads=64).is_inside


@pytest.mark.parametrize(
    "words", [("--guest-memory", "2G"), ("--guest-cpus", "4"), ("--npu",), ("--no-npu",)], ids=" ".join
)
@pytest.mark.parametrize("command", [("serve",), ("run", "tiny", "Hello"), ("chat", "tiny")], ids=" ".join)
def test_what_is_of_the_machine_is_refused_where_there_is_none(
    cli: Cli, command: tuple[str, ...], words: tuple[str, ...]
) -> None:
    refused = cli(*command, *words)
    option = words[0].replace("--no-", "--")
    assert refused.exit_code == 1
    assert f"error: {option}: that is of the emulated machine, and the platform is linux" in refused.stderr
    assert "hint: Give --platform trustzone" in refused.stderr


def test_more_threads_than_the_machine_has_cpus_are_refused_inside() -> None:
    assert settings.load(platform="trustzone", threads=2).threads == 2
    assert settings.load(platform="trustzone", threads=3, guest_cpus=4).threads == 3
    assert settings.load(platform="trustzone", threads=8, secure_world="host").threads == 8
    with pytest.raises(CallerError, match="--threads: the machine has 2 CPUs"):
        settings.load(platform="trustzone", threads=3)


def test_an_npu_is_not_for_models_that_compute_inside() -> None:
    assert settings.load(platform="trustzone", npu=False).npu is False
    assert settings.load(platform="trustzone", secure_world="host", npu=True).npu is True
    with pytest.raises(CallerError, match="--npu") as refused:
        settings.load(platform="trustzone", npu=True)
    assert "--secure-world host" in refused.value.hint
