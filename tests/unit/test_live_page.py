"""The page in a browser: what it shows, and what names from strangers do there: nothing."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from live_chromium import BROWSER, Chromium
from test_views import HEIGHT, SETTING, WIDTH, instance_of, result_of

from openvis_rt.runtime.views.board import Board
from openvis_rt.runtime.views.page import Page
from openvis_rt.runtime.views.views import Views

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here (apt install chromium)")

NAME = "<img src=x onerror=\"document.title='taken'\">\u202e"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium.open(tmp_path_factory.mktemp("chromium")) as opened:
        yield opened


def write(views: Views, index: int, *names: str) -> None:
    image = np.full((HEIGHT, WIDTH, 3), (10, 200, 30), np.uint8)
    instances = (instance_of(number + 1, name) for number, name in enumerate(names))
    views.write(image, result_of(index, *instances))


def test_a_browser_shows_pictures_tracks_and_the_end(browser, tmp_path):
    board, asked = Board(), len(browser.asked)
    page = Page("127.0.0.1", 0, board, pytest.fail)
    with Views(board, [page], pytest.fail) as views:
        browser.look(1280, 800)
        browser.go(page.address)
        browser.until("document.querySelector('#phase').textContent == 'opening'")
        views.begin(SETTING, threading.Event())
        write(views, 0, NAME, "dog")
        browser.until("document.querySelectorAll('#tracks li').length == 2 && drawn")
        name = browser.value("document.querySelector('#tracks b').firstChild.textContent")
        assert name == NAME[:-1] + r"\u202e"
        assert browser.value("document.images.length") == 0
        red, green, blue, _ = browser.value("[...pen.getImageData(5, 110, 1, 1).data]")
        assert (red < 30, green > 180, blue < 50) == (True, True, True)
        assert browser.value("document.querySelector('#count').textContent") == "2"
        write(views, 1, "dog")
        browser.until("document.querySelector('#count').textContent == '1'")
        assert browser.value("document.querySelectorAll('#tracks li.lost').length") == 1
        browser.look(390, 844)
        assert browser.value("document.documentElement.scrollWidth") <= 390  # as wide as a phone
        browser.screenshot(tmp_path / "phone.png")
        assert (tmp_path / "phone.png").stat().st_size > 5000
    browser.until("document.querySelector('#phase').textContent == 'ended'")
    words = browser.value("document.querySelector('#words').textContent")
    assert words == "The run has ended: 2 frames"
    assert browser.value("document.title") != "taken"
    assert not [line for line in browser.said if "ERR_CONNECTION" not in line]
    assert all(address.startswith(page.address) for address in browser.asked[asked:])


def test_a_page_that_stays_open_finds_the_next_run(browser):
    board = Board()
    page = Page("127.0.0.1", 0, board, pytest.fail)
    with Views(board, [page], pytest.fail) as views:
        browser.go(page.address)
        browser.until("state && state.phase == 'opening'")
        with pytest.raises(ValueError, match="broken"), Views(board, [], pytest.fail):
            raise ValueError("broken <b>graph</b>")
        browser.until("document.querySelector('#phase').textContent == 'failed'")
        assert "broken <b>graph</b>" in browser.value("words.textContent")
        views.begin(SETTING, threading.Event())
    port = int(page.address.rsplit(":", 1)[1].rstrip("/"))
    board = Board()
    with Views(board, [Page("127.0.0.1", port, board, pytest.fail)], pytest.fail) as views:
        views.begin(SETTING, threading.Event())
        write(views, 0, "cat")
        browser.until("state.phase == 'running' && state.frames == 1")
