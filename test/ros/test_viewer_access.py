"""No page of another site reads the live view, and nothing opens a tunnel to it."""

from __future__ import annotations

import http.client
import time

import pytest

from qvggt_ros.viewer_access import refusal

viser = pytest.importorskip("viser", reason="viser is not installed")

HERE = "127.0.0.1:8080"


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": HERE},
        {"Host": HERE, "Origin": f"http://{HERE}"},
        {"Host": "LOCALHOST:8080", "Origin": "http://localhost:8080"},
        {"Host": "[::1]:8080", "Origin": "http://[::1]:8080"},
        {"Host": "192.168.1.7:8080", "Origin": "http://192.168.1.7:8080"},
        {"Host": "drone.lan:8080", "Origin": "http://drone.lan:8080"},
    ],
)
def test_the_view_s_own_page_is_answered(headers):
    assert refusal(headers, "drone.lan") == ""


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": HERE, "Origin": "https://evil.example"},
        {"Host": HERE, "Origin": "null"},
        {"Host": HERE, "Origin": ""},
        {"Host": HERE, "Origin": "http://127.0.0.1:9999"},
        {"Host": HERE, "Origin": f"http://{HERE}.evil.example"},
        {"Host": "evil.example"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
        {"Host": "127.0.0.1.evil.example:8080"},
        {"Host": "localhost.evil.example"},
        {"Host": ""},
        {"Host": "[::1"},
        {},
    ],
)
def test_other_pages_and_names_are_refused(headers):
    assert refusal(headers, "127.0.0.1")


@pytest.fixture(scope="module")
def view():
    from qvggt_ros.viewer import LiveView

    with LiveView(port=18_431) as live:
        yield live


def answer(view, **headers):
    connection = http.client.HTTPConnection("127.0.0.1", view.server.get_port(), timeout=20)
    connection.request("GET", "/", headers=headers)
    status = connection.getresponse().status
    connection.close()
    return status


def test_the_page_is_served_by_its_own_name_alone(view):
    assert answer(view) == 200
    assert answer(view, Host="evil.example") == 403


def connect(view, origin):
    from websockets.sync.client import connect

    return connect(
        f"ws://127.0.0.1:{view.server.get_port()}",
        origin=origin,
        subprotocols=[f"viser-v{viser.__version__}"],
    )


def test_a_page_of_another_site_gets_no_connection(view):
    from websockets.exceptions import InvalidStatus

    with pytest.raises(InvalidStatus) as caught:
        connect(view, "https://evil.example")
    assert caught.value.response.status_code == 403
    with connect(view, f"http://127.0.0.1:{view.server.get_port()}") as own:
        assert len(own.recv(timeout=20)) > 0


def test_no_client_opens_a_tunnel(view, monkeypatch):
    import msgspec
    from viser import _messages, _viser

    opened = []
    monkeypatch.setattr(_viser, "ViserTunnel", lambda *where: opened.append(where))
    with connect(view, f"http://127.0.0.1:{view.server.get_port()}") as own:
        own.recv(timeout=20)
        asked = _messages.ShareUrlRequest().as_serializable_dict()
        own.send(msgspec.msgpack.encode(asked[0] if isinstance(asked, tuple) else asked))
        time.sleep(0.5)
    assert view.server.request_share_url() is None
    assert opened == []
