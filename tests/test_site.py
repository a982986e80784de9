"""The built site (`make docs`) needs no network, and a browser finds nothing to complain of in it."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

SITE = Path(__file__).parents[1] / "docs" / "_build" / "html"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: What a page fetches by itself, by element: scripts, styles, pictures, frames.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data", "image": "href"}
#: Page -> what its finished document has.
LOOKED_AT = {
    "index": "<h1>smc-bridge",
    "tutorials/05_certificates": "<mjx-container",
    "theory": "<mjx-container",
    "guides/reading_a_certificate": "<mjx-container",
    "reference/smc_bridge": "smc_bridge.engine.presets.smc",
}

needs_site = pytest.mark.skipif(not (SITE / "index.html").is_file(), reason="the site is not built: make docs")


class _Fetches(HTMLParser):
    """Addresses that a page loads without being asked."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        asks = tag == "link" and {"stylesheet", "preload", "icon", "preconnect"} & {*(given.get("rel") or "").split()}
        address = given.get("href" if asks else FETCHED.get(tag, ""))
        self.found += [address] if address else []


def fetched(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    reader = _Fetches()
    reader.feed(text)
    return [*reader.found, *re.findall(r"""(?:@import|url\(|\bimport\b)\s*["']?(https?:[^"')\s]+)""", text)]


@needs_site
def test_no_page_fetches_anything_from_the_network() -> None:
    pages = [*SITE.rglob("*.html"), *SITE.rglob("*.css")]
    outside = [
        f"{page.relative_to(SITE)}: {address}"
        for page in pages for address in fetched(page) if re.match(r"(?:https?:)?//", address)
    ]
    assert len(pages) > 20
    assert outside == []


@needs_site
def test_what_pages_fetch_is_part_of_the_site() -> None:
    missing = [
        f"{page.relative_to(SITE)}: {address}"
        for page in SITE.rglob("*.html") for address in fetched(page)
        if not address.startswith("data:") and not (page.parent / re.split(r"[?#]", address)[0]).is_file()
    ]
    assert missing == []


@needs_site
@pytest.mark.skipif(BROWSER is None, reason="there is no chromium here")
@pytest.mark.parametrize("page", LOOKED_AT)
def test_a_browser_finds_no_error_in_a_page_that_is_opened_as_a_file(page: str, tmp_path: Path) -> None:
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            "--enable-logging=stderr", f"--user-data-dir={tmp_path}",
            "--host-resolver-rules=MAP * ~NOTFOUND",  # no network, wherever this runs
            "--virtual-time-budget=20000", "--dump-dom", (SITE / f"{page}.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )
    told = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert told == []
    assert LOOKED_AT[page] in done.stdout
    # What MathJax says of a formula that it cannot read, and how it sets a command that it does not know.
    assert re.findall(r'data-mjx-error="[^"]*"|<g[^>]* fill="red"[^>]*>', done.stdout) == []
