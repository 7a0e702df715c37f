"""The whole program over a scripted secure process, and OpenAI's own client as its judge."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest
from server_process import SCRIPT, Server, ask, until

from flexserve.errors import CallerError
from flexserve.normal.main import ServeOptions, check, listening, serve, tcp_socket
from flexserve.protocol.launch import SecureOptions
from flexserve.testing.script import Script


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    yield server
    server.process.kill()
    server.process.wait()


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[openai.OpenAI]:
    """OpenAI's client, at a server that the tests of its conformance share."""
    server = Server(tmp_path_factory.mktemp("judge"))
    yield server.openai()
    server.process.kill()
    server.process.wait()


def test_openai_chat(judge: openai.OpenAI) -> None:
    answer = judge.chat.completions.create(model="tiny", messages=ask(), temperature=0, seed=1)
    assert answer.choices[0].message.content == "Hello, world!"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


def test_openai_chat_stream(judge: openai.OpenAI) -> None:
    stream = judge.chat.completions.create(
        model="tiny", messages=ask(), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello, world!"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 4


def test_openai_chat_logprobs(judge: openai.OpenAI) -> None:
    answer = judge.chat.completions.create(model="tiny", messages=ask(), logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.content is not None
    first = answer.choices[0].logprobs.content[0]
    assert (first.token, first.bytes) == ("Hello", list(b"Hello"))
    assert [top.logprob for top in first.top_logprobs] == [-1.0, -2.0]


def test_openai_completions(judge: openai.OpenAI) -> None:
    answer = judge.completions.create(model="tiny", prompt="x", logprobs=1, max_tokens=2)
    assert answer.choices[0].text == "Hello,"
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is not None
    assert answer.choices[0].logprobs.tokens == ["Hello", ","]
    stream = judge.completions.create(model="tiny", prompt="x", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "Hello, world!"


def test_openai_models(judge: openai.OpenAI) -> None:
    assert {model.id for model in judge.models.list()} == set(SCRIPT.models)
    assert judge.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        judge.models.retrieve("nobody")


def test_openai_errors_are_its_own_types(judge: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        judge.chat.completions.create(model="nobody", messages=ask())
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        judge.chat.completions.create(model="tiny", messages=ask(), extra_body={"audio": {"voice": "x"}})
    assert wrong.value.param == "audio"
    with pytest.raises(openai.APIError, match="forged"):
        list(judge.chat.completions.create(model="forged", messages=ask(), stream=True))
    with pytest.raises(openai.InternalServerError):
        judge.chat.completions.create(model="forged", messages=ask())


def test_the_banner_says_where_what_and_how_protected(server: Server) -> None:
    where, protection, models = server.banner
    assert "http://127.0.0.1:" in where
    assert f"unix:{server.unix}" in where
    assert (
        protection == "protection: scripted: A scripted world: nothing is protected, nothing is computed.\n"
    )
    assert "tiny" in models


def test_it_serves_on_a_unix_socket_of_its_user_alone(server: Server) -> None:
    assert server.unix.stat().st_mode & 0o777 == 0o600
    transport = httpx.HTTPTransport(uds=str(server.unix))
    with httpx.Client(transport=transport, base_url="http://any.name") as client:
        assert client.get("/health").status_code == 200
    assert httpx.get(f"{server.url}/health", headers={"Host": "any.name"}).status_code == 403


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_cancels_its_request(server: Server, stream: bool) -> None:
    body = json.dumps({"model": "endless", "messages": ask(), "stream": stream})
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        until(lambda: httpx.get(f"{server.url}/models").json()["running"] == 1)
    until(lambda: httpx.get(f"{server.url}/models").json()["running"] == 0)
    until(lambda: '"error": "client_gone"' in server.log())


def test_a_full_queue_is_openais_rate_limit_error(server: Server) -> None:
    clients = [httpx.Client() for _ in range(3)]
    host, port = server.url.removeprefix("http://").split(":")
    body = json.dumps({"model": "stuck", "prompt": "x"})
    request = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )
    waiting = [socket.create_connection((host, int(port))) for _ in clients]
    for sock in waiting:
        sock.sendall(request.encode())
    until(lambda: httpx.get(f"{server.url}/models").json()["running"] == 3)
    with pytest.raises(openai.RateLimitError) as full:
        server.openai().completions.create(model="tiny", prompt="x")
    assert int(full.value.response.headers["retry-after"]) >= 1
    for sock in waiting:
        sock.close()
    until(lambda: httpx.get(f"{server.url}/models").json()["running"] == 0)
    assert server.openai().completions.create(model="tiny", prompt="x").choices[0].text


def test_a_thousand_half_open_connections_keep_nobody_out(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    crowd = []
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # of the tests' process: the server runs already
    for _ in range(1100):
        crowd.append(socket.create_connection((host, int(port))))
        crowd[-1].sendall(b"POST /v1/completions HTTP/1.1\r\n")
    assert server.openai().completions.create(model="tiny", prompt="x").choices[0].text
    assert httpx.get(f"{server.url}/health").status_code == 200
    transport = httpx.HTTPTransport(uds=str(server.unix))
    with httpx.Client(transport=transport, base_url="http://localhost") as client:
        assert client.get("/models").status_code == 200
    for sock in crowd:
        sock.close()


@pytest.mark.parametrize("model", ["dies", "garbage"])
def test_a_secure_world_lost_in_mid_stream_is_an_error_event_then_a_new_world(
    server: Server, model: str
) -> None:
    with pytest.raises(openai.APIError, match="secure world"):
        list(server.openai().chat.completions.create(model=model, messages=ask(), stream=True))
    until(lambda: httpx.get(f"{server.url}/health").json()["restarts"] == 1)
    answer = server.openai().chat.completions.create(model="tiny", messages=ask())
    assert answer.choices[0].message.content == "Hello, world!"


def test_ctrl_c_lets_a_running_stream_finish_and_exits_with_zero(server: Server) -> None:
    stream = iter(server.openai().chat.completions.create(model="steady", messages=ask(), stream=True))
    next(stream)
    server.process.send_signal(signal.SIGINT)
    rest = list(stream)
    assert rest[-1].choices[0].finish_reason == "stop"
    assert server.process.wait(60) == 0
    assert not server.unix.exists()


def test_while_it_drains_health_says_so_and_new_requests_are_503_with_the_time_to_retry(
    server: Server,
) -> None:
    with httpx.Client(base_url=server.url) as client:  # takes long on a busy host
        stream = iter(server.openai().chat.completions.create(model="steady", messages=ask(), stream=True))
        next(stream)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: "finishing" in server.log())
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "draining")
        for path in ("/v1/chat/completions", "/api/chat"):
            refused = client.post(path, json={"model": "tiny", "messages": ask()})
            assert refused.status_code == 503
            assert int(refused.headers["Retry-After"]) >= 1
            assert "shutting down" in refused.text
    assert list(stream)[-1].choices[0].finish_reason == "stop"
    assert server.process.wait(60) == 0


def test_what_does_not_finish_in_time_is_told_so(tmp_path: Path) -> None:
    server = Server(tmp_path, drain=0.2)
    stream = iter(server.openai().chat.completions.create(model="endless", messages=ask(), stream=True))
    next(stream)
    server.process.send_signal(signal.SIGINT)
    with pytest.raises(openai.APIError):
        list(stream)
    assert server.process.wait(60) == 0


def test_a_second_ctrl_c_ends_it_at_once(server: Server) -> None:
    stream = iter(server.openai().chat.completions.create(model="endless", messages=ask(), stream=True))
    next(stream)
    server.process.send_signal(signal.SIGINT)
    until(lambda: "once more" in server.log())
    assert server.end() == 128 + signal.SIGINT


def test_no_process_is_left_when_the_server_is_killed(server: Server) -> None:
    pid = httpx.get(f"{server.url}/models").json()["os"]["secure_pid"]
    server.process.kill()
    server.process.wait()
    until(lambda: not is_running(pid))


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_log_has_no_prompt_and_no_answer(server: Server) -> None:
    server.openai().chat.completions.create(model="tiny", messages=ask("xyzzy"))
    assert server.end() == 0
    log = server.log()
    assert "tiny" in log
    assert "xyzzy" not in log
    assert "Hello" not in log


def test_a_world_that_cannot_start_is_the_servers_reason_not_to(tmp_path: Path) -> None:
    server = Server(tmp_path, Script(dies_at_start=True))
    assert server.process.wait(60) == 1
    assert (
        "refused: The secure world exited with status 9; its last words: the script says to die"
        in server.log()
    )


SECURE = SecureOptions(store=Path("/none"), device_key=Path("/none"))


def test_a_port_that_is_taken_is_a_clear_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CallerError, match=f"port {port}") as caught:
            serve(ServeOptions(SECURE, port=port))
    assert "--port" in caught.value.hint


def test_other_machines_are_not_served_without_keys() -> None:
    with pytest.raises(CallerError, match="no API keys") as caught:
        serve(ServeOptions(SECURE, host="0.0.0.0", port=0))
    assert "--insecure" in caught.value.hint


def test_a_stale_unix_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    options = ServeOptions(SECURE, host=None, unix_socket=path)
    with listening(options), pytest.raises(CallerError, match="Cannot listen"), listening(options):
        pytest.fail("two servers on one socket")
    assert not path.exists()


def test_an_address_is_looked_at_without_being_kept(tmp_path: Path) -> None:
    path = tmp_path / "s"
    options = ServeOptions(SECURE, host=None, unix_socket=path)
    check(options)
    assert not path.exists()
    with listening(options), pytest.raises(CallerError, match="Cannot listen"):
        check(options)
    with pytest.raises(CallerError, match="no API keys"):
        check(ServeOptions(SECURE, host="0.0.0.0", port=0))


def test_a_file_in_the_sockets_place_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(CallerError), listening(ServeOptions(SECURE, host=None, unix_socket=path)):
        pytest.fail("it replaced a file")
    assert path.read_text() == "precious"


def test_no_token_waits_for_an_acknowledgement() -> None:
    with tcp_socket("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_nothing_to_listen_on_is_a_clear_error() -> None:
    with pytest.raises(CallerError, match="nothing to listen on"), listening(ServeOptions(SECURE, host=None)):
        pytest.fail("it listens on nothing")


def test_the_umask_of_the_process_is_kept(tmp_path: Path) -> None:
    before = os.umask(0o022)
    with listening(ServeOptions(SECURE, host=None, unix_socket=tmp_path / "s")):
        assert os.umask(before) == 0o022
