"""Configuration: flags, then the environment (FLEXSERVE_*), then a file, then defaults.

The file is $XDG_CONFIG_HOME/flexserve/config.toml, and its keys are the fields below. An unknown
key or a value out of bounds is an error that says where it came from.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.sources import InitSettingsSource

from flexserve import units
from flexserve.errors import CallerError
from flexserve.folders import config_folder, data_folder, default_socket
from flexserve.private_files import check_file, is_private, make_private
from flexserve.protocol.launch import LinuxMemory
from flexserve.protocol.model_options import KvType
from flexserve.units import GIB, MIB, parse_size

if TYPE_CHECKING:
    from flexserve.normal.address import Address
    from flexserve.normal.api.keys import Key
    from flexserve.protocol.launch import SecureOptions

_PREFIX = "FLEXSERVE_"
_MAX_FILE = 1 << 20  # bytes of the configuration file
_MAX_SIZE_TEXT = 32  # characters of a size
_GUEST_LEAST, _GUEST_MOST, _GUEST_STEP = 256 * MIB, 3 * GIB, 2 * MIB  # RAM that the monitor can manage
_YEAR = 365 * 86400.0
_NAME, _MAX_NAME = re.compile(r"[A-Za-z0-9.:_-]+"), 253  # of a host; colons are of IPv6 addresses
_OF_MACHINE = ("guest_memory", "guest_cpus", "npu")  # settings of the emulated one
_SECRETS = frozenset({"api_key", "api_keys"})


def parse_duration(value: object) -> object:
    """Return the seconds that "10m", "90s", "500ms", "300" or -1 (never) stand for.

    What is no text is returned as it is, for the type check that follows. Raises ValueError.
    """
    return units.parse_duration(value) if isinstance(value, str) else value


def _check_duration(seconds: float) -> float:
    if seconds != -1 and not 0 <= seconds <= _YEAR:
        raise ValueError("Give -1 (never), or 0 seconds to a year")
    return seconds


def _names(value: object) -> object:
    """Return the names in a text that has them separated by commas; a list stays one."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _check_names(names: list[str]) -> list[str]:
    for name in names:
        if len(name) > _MAX_NAME or not _NAME.fullmatch(name):
            raise ValueError("a host's name has letters, digits, dots and hyphens: no port, no scheme, no *")
    return names


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


def _parse_size(value: object) -> object:
    """Return the bytes that "2GiB" stands for, None for "none"; other types go on to the type check."""
    if not isinstance(value, str):
        return value
    if value.strip().lower() in ("", "none"):
        return None
    try:
        return parse_size(value[:_MAX_SIZE_TEXT])
    except CallerError as error:
        raise ValueError(str(error).rstrip(".")) from None


def _parse_guest_memory(value: object) -> object:
    """Return bytes as _parse_size does; says in a person's units what the machine cannot have."""
    size = _parse_size(value)
    if isinstance(size, int) and (not _GUEST_LEAST <= size <= _GUEST_MOST or size % _GUEST_STEP):
        raise ValueError("the machine can have 256M to 3G, in steps of 2M")
    return size


Duration = Annotated[float, BeforeValidator(parse_duration), AfterValidator(_check_duration)]
Location = Annotated[Path, AfterValidator(_absolute)]


class Settings(BaseSettings):
    """FlexServe's configuration. Immutable; make one with `load`."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = Field("127.0.0.1", max_length=255, description="Address to listen on, or to ask.")
    port: int = Field(7077, ge=0, le=65535, description="TCP port; 0 lets the server take any free one.")
    unix_socket: Location | None = Field(
        None, description="Unix socket to listen on too, or to ask instead; else one of this user's alone."
    )
    api_key: SecretStr | None = Field(
        None, description="Key that clients send, and that a server asks for. Better in the environment."
    )
    api_keys: SecretStr | None = Field(
        None, description="More keys that a server accepts, separated by commas."
    )
    api_key_file: Location | None = Field(
        None, description="File of keys that a server accepts; `flexserve api-key` writes it."
    )
    audit_file: Location | None = Field(
        None, description="File that gets a line for each request: who asked for what, and what came of it."
    )
    allowed_hosts: Annotated[list[str], NoDecode, BeforeValidator(_names), AfterValidator(_check_names)] = (
        Field([], description="Names that the server may be called by besides its own, as a proxy's.")
    )
    allowed_origins: Annotated[list[str], NoDecode, BeforeValidator(_names)] = Field(
        [], description='Origins of web pages that may call the server: "https://app.example", or "*".'
    )
    insecure: bool = Field(False, description="Serve other machines though there are no keys.")
    models: Location = Field(
        default_factory=lambda: data_folder() / "models", description="Folder of the sealed models."
    )
    device_key: Location = Field(
        default_factory=lambda: config_folder() / "device.key",
        description="File of the key that opens them. Keep a backup, apart from the models.",
    )
    memory: LinuxMemory = Field(
        "secret", description="secret: memory that the OS cannot read. plain: unprotected, for trials."
    )
    platform: Literal["linux", "trustzone"] = Field(
        "linux",
        description="linux: this machine. trustzone: an emulated Arm machine, whose kernel is kept out.",
    )
    secure_world: Literal["host", "inside"] = Field(
        "inside",
        description="Where models compute. inside: on that machine's CPUs. host: beside it, in a process.",
    )
    guest_memory: Annotated[int, BeforeValidator(_parse_guest_memory)] = Field(
        GIB, ge=_GUEST_LEAST, le=_GUEST_MOST, multiple_of=_GUEST_STEP, description="RAM of that machine."
    )
    guest_cpus: int = Field(2, ge=1, le=8, description="CPUs of that machine.")
    npu: bool = Field(True, description="Whether that machine has an NPU, and models use it.")
    max_memory: Annotated[int | None, BeforeValidator(_parse_size)] = Field(
        None, ge=0, le=1 << 53, description='The most that models may take of memory: "2GiB", or none.'
    )
    pins: Location = Field(
        default_factory=lambda: config_folder() / "pins.json",
        description="File of the models that `flexserve pin` keeps in memory.",
    )
    model_options: Location = Field(
        default_factory=lambda: config_folder() / "models.json",
        description="File of how single models are served, which `flexserve set` writes.",
    )
    threads: int = Field(0, ge=0, le=1024, description="Threads that compute; 0: one per free core.")
    context: int = Field(0, ge=0, le=1 << 20, description="Tokens of context; 0: 4096.")
    kv_type: KvType = Field(
        "f16", description="How KV is kept: q8_0 takes about half of the memory, q4_0 a quarter."
    )
    parallel: int = Field(4, ge=1, le=64, description="Requests that a model answers at once.")
    kv_disk: Annotated[int, BeforeValidator(_parse_size)] = Field(
        GIB, ge=0, le=1 << 53, description='Disk that a model\'s sealed conversations may take: "1GiB".'
    )
    max_queue: int = Field(64, ge=1, le=1024, description="Requests that may wait.")
    step_seconds: Annotated[float, BeforeValidator(parse_duration)] = Field(
        600.0,
        ge=1,
        le=86400,
        description="How long nothing may move in a step of the engine before its requests fail.",
    )
    keep_alive: Duration = Field(
        300.0, description='How long an idle model keeps its memory unasked: "10m", seconds, -1 for ever.'
    )
    cache_threshold: float = Field(
        0.25, ge=0, le=1, description="A model with at least this share of the requests is worth caching."
    )
    cache_top: int = Field(
        3, ge=0, le=1024, description="When no model has that share, so many of the most asked ones are."
    )
    rewarm: bool = Field(
        True, description="Bring such models back when nobody needs the memory, before a request asks."
    )
    drain: Annotated[float, BeforeValidator(parse_duration)] = Field(
        10.0, ge=0, le=86400, description='What running requests get when the server is to end: "10s", "5m".'
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="What a server logs on standard error; debug has the probes of monitoring, too."
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources, strongest first."""
        del dotenv_settings, file_secret_settings
        return init_settings, env_settings, InitSettingsSource(settings_cls, read_file())

    @property
    def is_inside(self) -> bool:
        """Whether models compute on the CPUs of the emulated machine."""
        return self.platform == "trustzone" and self.secure_world == "inside"

    def effective_socket(self) -> Path | None:
        """Return the Unix socket that a server listens on: the one given, else this user's own, if any."""
        return self.unix_socket or default_socket(self.host, self.port)

    def address(self) -> Address:
        """Return where a running server is to be asked."""
        from flexserve.normal.address import Address

        key = self.api_key.get_secret_value() if self.api_key else ""
        path = self.effective_socket()
        usable = path is not None and (
            path == self.unix_socket or (is_private(path.parent) and path.is_socket())
        )
        return Address(self.host, self.port, path if usable else None, key)

    def server_socket(self) -> Path | None:
        """Return the Unix socket to listen on, whose folder is there if it is not one given by the user.

        Raises CallerError when that folder is not this user's alone.
        """
        path = self.effective_socket()
        if path is not None and path != self.unix_socket:
            make_private(path.parent, f"The folder {path.parent} of the server's socket")
        return path

    def server_keys(self) -> list[Key]:
        """Return the keys that a server accepts; none: it lets everybody in. Raises CallerError."""
        from flexserve.normal.api.keys import Key
        from flexserve.normal.key_file import read_keys

        keys = [Key.of("api_key", self.api_key.get_secret_value())] if self.api_key else []
        more = self.api_keys.get_secret_value().split(",") if self.api_keys else []
        given = [key.strip() for key in more if key.strip()]
        keys += [Key.of(f"api_keys-{number}", key) for number, key in enumerate(given, 1)]
        return keys + (read_keys(self.api_key_file) if self.api_key_file else [])

    def secure_options(self) -> SecureOptions:
        """Return how a secure world is to be started."""
        from flexserve.protocol.launch import SecureOptions

        return SecureOptions(
            store=self.models,
            device_key=self.device_key,
            memory=self.memory,
            threads=self.threads,
            context=self.context,
            parallel=self.parallel,
            kv_type=self.kv_type,
            kv_disk=self.kv_disk,
            max_queue=self.max_queue,
            step_seconds=self.step_seconds,
            idle_seconds=_YEAR if self.keep_alive < 0 else self.keep_alive,
            cache_threshold=self.cache_threshold,
            cache_top=self.cache_top,
            rewarm=self.rewarm,
        )


def config_file() -> Path:
    """Return the configuration file's path; the file need not exist."""
    return config_folder() / "config.toml"


def read_file() -> dict[str, Any]:
    """Return what the configuration file says; nothing if there is none.

    Raises CallerError, also when others could have written it, or read keys in it.
    """
    path = config_file()
    try:
        with path.open("rb") as file:
            said = tomllib.loads(file.read(_MAX_FILE).decode())
            secret = not _SECRETS.isdisjoint(said)
            what = f"The configuration {path}"
            check_file(path, os.fstat(file.fileno()), what, secret=secret, code="configuration_unsafe")
            return said
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CallerError(
            f"{path} cannot be read: {error.strerror}.", hint="Check its permissions."
        ) from None
    except ValueError as error:  # not TOML, or not UTF-8
        raise CallerError(f"{path} is not a TOML file: {error}.", hint="Correct it.") from None


def load(**flags: object) -> Settings:
    """Return the effective settings. `flags` are those of the command line; None: not given.

    Raises CallerError for a value that cannot be used, naming the place it came from.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    _refuse_unknown_variables()
    try:
        chosen = Settings(**given)  # type: ignore[arg-type]  # checked there
    except ValidationError as error:
        defect = error.errors(include_input=False, include_url=False)[0]
        name = str(defect["loc"][0]) if defect["loc"] else "?"
        reason = defect["msg"].removeprefix("Value error, ")
        if defect["type"] == "extra_forbidden":
            reason = f"there is no such setting{_meant(name, Settings.model_fields)}"
        raise CallerError(
            f"{origin(name, given)}: {reason}.",
            hint="`flexserve config --schema` lists the settings.",
            code="bad_setting",
        ) from None
    if chosen.platform == "trustzone" and chosen.memory == "plain":
        raise CallerError(
            f"{origin('memory', given)}: plain memory is the linux platform's. The emulated machine "
            f"({origin('platform', given)}) keeps models in its own, which is protected.",
            hint="Leave --memory plain out, or give --platform linux.",
            code="bad_setting",
        )
    if chosen.platform == "linux" and given.get("secure_world") == "inside":
        raise CallerError(
            f"--secure-world: models compute inside of the emulated machine only, and the platform is linux "
            f"({origin('platform', given)}).",
            hint="Give --platform trustzone, or leave --secure-world out.",
            code="bad_setting",
        )
    of_machine = [name for name in _OF_MACHINE if name in given]
    if chosen.platform == "linux" and of_machine:
        option = f"--{of_machine[0].replace('_', '-')}"
        raise CallerError(
            f"{option}: that is of the emulated machine, and the platform is linux "
            f"({origin('platform', given)}).",
            hint=f"Give --platform trustzone, or leave {option} out.",
            code="bad_setting",
        )
    if chosen.is_inside and given.get("npu"):
        raise CallerError(
            "--npu: models that compute inside of the machine do not use its NPU "
            f"(--secure-world inside: {origin('secure_world', given)}).",
            hint="Leave --npu out, or give --secure-world host.",
            code="bad_setting",
        )
    if chosen.is_inside and chosen.threads > chosen.guest_cpus:
        raise CallerError(
            f"{origin('threads', given)}: the machine has {chosen.guest_cpus} CPUs, and threads that "
            "share one would wait for each other.",
            hint=f"Give at most --threads {chosen.guest_cpus}, or more --guest-cpus, or --secure-world host.",
            code="bad_setting",
        )
    return chosen


def _refuse_unknown_variables() -> None:
    """Raise CallerError when the environment has a variable of ours that sets nothing: a misspelt one."""
    known = {_PREFIX + name.upper() for name in Settings.model_fields}
    for variable in sorted(os.environ):
        if variable.upper().startswith(_PREFIX) and variable.upper() not in known:
            raise CallerError(
                f"{variable}: there is no such setting{_meant(variable.upper(), known)}.",
                hint=f"Correct it, or `unset {variable}`; `flexserve config --schema` lists the settings.",
                code="bad_setting",
            )


def _meant(name: str, known: Iterable[str]) -> str:
    """Return, for the end of a sentence, which of the `known` names `name` may stand for."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; {close[0]} is one" if close else ""


def origin(name: str, flags: Mapping[str, object] | None = None) -> str:
    """Return where the setting `name` gets its value from, as people would write it."""
    if flags and flags.get(name) is not None:
        return f"--{name.replace('_', '-')}"
    variable = _PREFIX + name.upper()
    if any(given.upper() == variable for given in os.environ):
        return variable
    return f"{name} in {config_file()}" if name in read_file() else "default"


def schema() -> dict[str, Any]:
    """Return the JSON Schema of the configuration file."""
    return Settings.model_json_schema()
