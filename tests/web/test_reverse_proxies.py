"""The pages and the API behind nginx and Caddy, as Debian has them: plain, with the right headers, and at a path."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import expect

from trilithon.serve.access.keys import key_store
from trilithon.serve.access.security import SecurityOptions
from trilithon.settings import Configuration

OpenSite = Callable[..., Any]
OpenPage = Callable[..., Any]
Start = Callable[[str], str]

HOST = "proxy_set_header Host $http_host;"
UPGRADE = 'proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection "upgrade";'
NGINX = """
worker_processes 1; pid {folder}/pid; error_log {folder}/error.log; daemon off;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
  uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  server {{ listen 127.0.0.1:{port}; {location} }}
}}
"""
CADDY = """
{{ admin off
  auto_https off
}}
http://127.0.0.1:{port} {{
  {location}
}}
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@pytest.fixture
def proxies(tmp_path: Path) -> Iterator[dict[str, Start]]:
    """`proxies["nginx"](location)`: the address of a proxy with that configuration, until the test ends."""
    with ExitStack() as running:

        def start(program: str, template: str, *words: str) -> Start:
            def begin(location: str) -> str:
                path = shutil.which(program, path=f"{os.environ['PATH']}:/usr/sbin")
                if path is None and os.environ.get("TRILITHON_TEST_WITHOUT_PROXIES"):
                    pytest.skip(f"TRILITHON_TEST_WITHOUT_PROXIES is set: no {program} to be had here")
                if path is None:
                    pytest.skip(f"{program} is missing; as root: apt-get install nginx-light caddy")
                port = free_port()
                folder = tmp_path / f"{program}-{port}"
                folder.mkdir()
                configuration = folder / "configuration"
                configuration.write_text(template.format(folder=folder, port=port, location=location))
                environment = os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder)}
                words_here = [word.format(folder=folder, configuration=configuration) for word in words]
                with (folder / "log").open("wb") as log:
                    process = subprocess.Popen([path, *words_here], stderr=log, stdout=log, env=environment)
                running.callback(stop, process)
                wait_for(port, process, folder / "log")
                return f"http://127.0.0.1:{port}"

            return begin

        yield {
            "nginx": start("nginx", NGINX, "-p", "{folder}", "-e", "{folder}/first.log", "-c", "{configuration}"),
            "caddy": start("caddy", CADDY, "run", "--adapter", "caddyfile", "--config", "{configuration}"),
        }


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    process.wait(60)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)


@pytest.mark.slow  # a browser, a server and four proxies
def test_pages_behind_a_proxy_work_or_say_which_header_is_missing(
    site: OpenSite, browser_page: OpenPage, proxies: dict[str, Start], tiny: Path, caplog: pytest.LogCaptureFixture
) -> None:
    opened = site(tiny)
    to = f"proxy_pass {opened.url};"
    plain = proxies["nginx"](f"location / {{ {to} }}")
    page = browser_page(expected="403|window.Vue|undefined|Failed to load")
    for language, title in (("en", "The reverse proxy changes"), ("ru", "Обратный прокси меняет")):
        page.context.add_cookies([{"name": "trilithon-language", "value": language, "url": plain}])
        page.goto(plain)
        expect(page.get_by_role("alert")).to_contain_text(title)
        expect(page.get_by_role("alert")).to_contain_text(HOST)
    assert "ES modules" not in page.inner_text("body")
    page.context.close()

    without_upgrade = proxies["nginx"](f"location / {{ {to} {HOST} }}")
    page = browser_page(expected="426|WebSocket")
    page.goto(f"{without_upgrade}/models")
    expect(page.get_by_role("button", name="tiny").or_(page.get_by_text("tiny")).first).to_be_visible()
    page.wait_for_function("() => window.did_handshake && window.socket.io.engine.transport.name === 'polling'")
    assert "proxy_set_header Upgrade $http_upgrade" in caplog.text
    page.context.close()

    whole = proxies["nginx"](f"location / {{ {to} {HOST} {UPGRADE} }}")
    for url in (whole, proxies["caddy"](f"reverse_proxy {opened.url}")):
        page = browser_page()
        page.goto(f"{url}/models")
        page.wait_for_function("() => window.did_handshake && window.socket.io.engine.transport.name === 'websocket'")
        page.context.close()


@pytest.mark.slow  # a browser, a server and four proxies
def test_a_path_of_the_proxy(
    site: OpenSite, browser_page: OpenPage, proxies: dict[str, Start], tiny: Path, configuration: Configuration
) -> None:
    security = SecurityOptions(key_store=key_store(configuration), root_path="/ai/trilithon")
    opened = site(tiny, keys=("ann",), security=security)
    headers = f"{HOST} {UPGRADE}"
    places = {
        "nginx strips": proxies["nginx"](f"location /ai/trilithon/ {{ proxy_pass {opened.url}/; {headers} }}"),
        "nginx passes on": proxies["nginx"](f"location /ai/trilithon/ {{ proxy_pass {opened.url}; {headers} }}"),
        "caddy strips": proxies["caddy"](f"handle_path /ai/trilithon/* {{\nreverse_proxy {opened.url}\n}}"),
        "caddy passes on": proxies["caddy"](f"reverse_proxy /ai/trilithon/* {opened.url}"),
    }
    bearer = {"Authorization": f"Bearer {opened.keys['ann']}"}
    for name, place in places.items():
        url = f"{place}/ai/trilithon"
        assert httpx.get(f"{url}/v1/models", headers=bearer, trust_env=False).json()["data"], name
        lost: list[str] = []
        page = browser_page()
        page.on(
            "request",
            lambda request, url=url, lost=lost: None if request.url.startswith(url) else lost.append(request.url),
        )
        page.goto(f"{url}/models")
        assert page.url == f"{url}/login?next=/models"
        page.get_by_label("Key").fill(opened.keys["ann"])
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(f"{url}/models")
        page.wait_for_function("() => window.did_handshake && window.socket.io.engine.transport.name === 'websocket'")
        for link, path in (("Board", "/board"), ("Results", "/results"), ("Chat", "/")):
            page.get_by_role("navigation").get_by_role("link", name=link).click()
            page.wait_for_url(f"{url}{path}")
            page.wait_for_function("() => window.did_handshake")
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url(f"{url}/login")
        assert lost == [], name
        page.context.close()


def test_a_clients_address_counts_from_a_trusted_proxy_alone(
    site: OpenSite, proxies: dict[str, Start], configuration: Configuration
) -> None:
    """Two clients with addresses of their own behind a proxy, which adds to what a client claims."""
    security = SecurityOptions(requests_per_minute=2, trusted_proxies=("127.0.0.1",))
    opened = site(security=security)
    forwarding = "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
    place = proxies["nginx"](f"location / {{ proxy_pass {opened.url}; {HOST} {forwarding} }}")

    def statuses(source: str, url: str, count: int) -> list[int]:
        transport = httpx.HTTPTransport(local_address=source)
        with httpx.Client(transport=transport, base_url=url) as http:
            claims = ({"X-Forwarded-For": f"10.0.0.{number}"} for number in range(count))
            return [http.get("/api/version", headers=claim).status_code for claim in claims]

    assert statuses("127.0.0.2", place, 3) == [200, 200, 429]
    assert statuses("127.0.0.3", place, 3) == [200, 200, 429]
    assert statuses("127.0.0.4", opened.url, 3) == [200, 200, 429]  # no proxy, though it says so
