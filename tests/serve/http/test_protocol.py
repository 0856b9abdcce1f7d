"""On real sockets: no client holds a connection, nor the end of the server."""

import contextlib
import socket
import threading
import time
from http.client import HTTPResponse
from typing import Any

import pytest
from fake_run import FakeRun, listening

HEAD = (
    b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: 12\r\n\r\n"
)
RIGHT = HEAD + b'{"user": {}}'


def connect(port: int, data: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(data)
    return connection


class ReadByByte:
    """A connection of which nothing is read ahead: it may be the next answer's."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def makefile(self, _: str) -> Any:
        return self.connection.makefile("rb", buffering=1)


def status_of(connection: socket.socket) -> int:
    """Read one whole answer."""
    single: Any = ReadByByte(connection)
    response = HTTPResponse(single)
    response.begin()
    response.read()
    return response.status


def is_closed(connection: socket.socket) -> bool:
    try:
        return connection.recv(1 << 16) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("data", [b"", b"POST /recomm", HEAD[:60], RIGHT + b"GET /h"])
def test_a_head_that_stays_half_is_cut_off(data: bytes) -> None:
    with listening(FakeRun(), receive_seconds=0.2) as (_, port):
        connection = connect(port, data)
        if data.startswith(RIGHT):
            assert status_of(connection) == 200
        assert is_closed(connection)


def test_a_head_that_comes_byte_by_byte_is_cut_off_too() -> None:
    with listening(FakeRun(), receive_seconds=0.3) as (_, port):
        connection = connect(port, b"")
        with pytest.raises(ConnectionError):
            for byte in HEAD + HEAD:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)


@pytest.mark.parametrize("before", [b"", RIGHT], ids=["alone", "pipelined"])
def test_a_head_is_bounded_also_where_it_comes_in_one_piece(before: bytes) -> None:
    """Parsing thousands of headers would take as long as hundreds of refusals."""
    with listening(FakeRun()) as (_, port):
        many = b"GET /health HTTP/1.1\r\nHost: x\r\n" + 10_000 * b"a:b\r\n" + b"\r\n"
        connection = connect(port, before + many)
        if before:
            assert status_of(connection) == 200
        # Closed with bytes unread: the answer may be lost with them.
        with contextlib.suppress(ConnectionError):
            assert status_of(connection) == 400
        assert is_closed(connection)


def test_half_a_body_is_answered_with_408_and_a_close() -> None:
    with listening(FakeRun(), receive_seconds=0.2) as (_, port):
        connection = connect(port, HEAD + b'{"us')
        assert status_of(connection) == 408
        assert is_closed(connection)


def test_a_request_after_a_long_answer_is_not_cut_off() -> None:
    with listening(FakeRun(seconds=0.4), receive_seconds=0.2) as (_, port):
        connection = connect(port, RIGHT)
        assert status_of(connection) == 200
        connection.sendall(RIGHT)
        assert status_of(connection) == 200


def test_a_client_that_never_reads_is_cut_off() -> None:
    with listening(FakeRun(), receive_seconds=0.3) as (server, port):
        connection = connect(port, b"")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)

        def flood() -> None:
            try:
                while True:
                    connection.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
            except OSError:
                pass  # cut off, as it should be

        sender = threading.Thread(target=flood)
        sender.start()
        sender.join(20)
        assert not sender.is_alive()
        assert not server.server_state.connections


def test_with_all_connections_taken_the_slowest_one_makes_room() -> None:
    with listening(FakeRun(), connections=3) as (_, port):
        slow = []
        for data in (HEAD + b"{", b"", b"POST"):
            slow.append(connect(port, data))
            time.sleep(0.05)
        connection = connect(port, RIGHT)
        assert status_of(connection) == 200
        assert is_closed(slow[0])
        slow[2].sendall(RIGHT[4:])
        assert status_of(slow[2]) == 200


def test_refusals_that_are_held_back_leave_room_for_others() -> None:
    wrong = RIGHT.replace(b"user", b"usar")
    with listening(FakeRun(), connections=3, refusal_share=1e-6, grace_seconds=1) as (
        _,
        port,
    ):
        held = []
        for _ in range(3):
            held.append(connect(port, wrong))
            time.sleep(0.1)
        connection = connect(port, RIGHT)
        assert status_of(connection) == 200
        assert is_closed(held[0])


def test_users_of_a_client_that_left_are_not_computed() -> None:
    run = FakeRun(seconds=0.5)
    with listening(run) as (server, port):
        first = connect(port, RIGHT)
        while not run.users:
            time.sleep(0.01)
        with connect(port, RIGHT):  # it waits for its turn
            while (
                server.server_state.total_requests + len(server.server_state.tasks) < 2
            ):
                time.sleep(0.01)
        last = connect(port, RIGHT)
        assert status_of(first) == status_of(last) == 200
    assert len(run.users) == 2


def test_it_ends_within_its_grace_whatever_slow_clients_do() -> None:
    with listening(FakeRun(), receive_seconds=60, grace_seconds=1) as (server, port):
        slow = [connect(port, data) for data in (b"", b"POST", HEAD + b"{")]
        answered = connect(port, RIGHT)
        assert status_of(answered) == 200
        started = time.monotonic()
        server.should_exit = True
        assert status_of(slow[2]) == 503
        assert all(map(is_closed, [*slow, answered]))
    assert time.monotonic() - started < 10


def test_a_request_under_way_is_answered_before_the_end() -> None:
    with listening(FakeRun(seconds=0.5)) as (server, port):
        connection = connect(port, RIGHT)
        time.sleep(0.2)
        server.should_exit = True
        assert status_of(connection) == 200
