"""The page in a browser: what it shows, and what names from strangers do there: nothing."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from chromium import Chromium
from test_views import HEIGHT, SETTING, WIDTH, instance_of, result_of

from openvis_rt.runtime.views.board import Board
from openvis_rt.runtime.views.page import Page
from openvis_rt.runtime.views.views import Views

NAME = "<img src=x onerror=\"document.title='taken'\">\u202e"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Chromium(tmp_path_factory.mktemp("chromium"), (1280, 800)) as opened:
        yield opened


def write(views: Views, index: int, *names: str) -> None:
    image = np.full((HEIGHT, WIDTH, 3), (10, 200, 30), np.uint8)
    instances = (instance_of(number + 1, name) for number, name in enumerate(names))
    views.write(image, result_of(index, *instances))


def test_a_browser_shows_pictures_tracks_and_the_end(browser):
    board, asked = Board(), len(browser.requests)
    page = Page("127.0.0.1", 0, board, pytest.fail)
    with Views(board, [page], pytest.fail) as views:
        browser.resize(1280, 800)
        browser.go(page.address)
        browser.wait("document.querySelector('#phase')?.textContent == 'opening'")
        views.begin(SETTING, threading.Event())
        write(views, 0, NAME, "dog")
        browser.wait("document.querySelectorAll('#tracks li').length == 2 && drawn")
        name = browser.evaluate("document.querySelector('#tracks b').firstChild.textContent")
        assert name == NAME[:-1] + r"\u202e"
        assert browser.evaluate("document.images.length") == 0
        red, green, blue, _ = browser.evaluate("[...pen.getImageData(5, 110, 1, 1).data]")
        assert (red < 30, green > 180, blue < 50) == (True, True, True)
        assert browser.evaluate("document.querySelector('#count').textContent") == "2"
        write(views, 1, "dog")
        browser.wait("document.querySelector('#count').textContent == '1'")
        assert browser.evaluate("document.querySelectorAll('#tracks li.lost').length") == 1
        browser.resize(390, 844)
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390  # as wide as a phone
    browser.wait("document.querySelector('#phase').textContent == 'ended'")
    words = browser.evaluate("document.querySelector('#words').textContent")
    assert words == "The run has ended: 2 frames"
    assert browser.evaluate("document.title") != "taken"
    assert not [line for line in browser.errors if "ERR_CONNECTION" not in line]
    assert all(address.startswith(page.address) for address in browser.requests[asked:])


def test_a_page_that_stays_open_finds_the_next_run(browser):
    board = Board()
    page = Page("127.0.0.1", 0, board, pytest.fail)
    with Views(board, [page], pytest.fail) as views:
        browser.go(page.address)
        browser.wait("typeof state == 'object' && state?.phase == 'opening'")
        with pytest.raises(ValueError, match="broken"), Views(board, [], pytest.fail):
            raise ValueError("broken <b>graph</b>")
        browser.wait("document.querySelector('#phase').textContent == 'failed'")
        assert "broken <b>graph</b>" in browser.evaluate("words.textContent")
        views.begin(SETTING, threading.Event())
    port = int(page.address.rsplit(":", 1)[1].rstrip("/"))
    board = Board()
    with Views(board, [Page("127.0.0.1", port, board, pytest.fail)], pytest.fail) as views:
        views.begin(SETTING, threading.Event())
        write(views, 0, "cat")
        browser.wait("state.phase == 'running' && state.frames == 1")
