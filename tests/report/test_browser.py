"""The page in headless Chromium: nothing is loaded, every chart is drawn, nothing sticks out."""

import re
from pathlib import Path

import pytest

from svag.anatomy import METHODS
from svag.report import write, write_several

from .pages import Page, chromium, needs_chromium, opened, too_wide
from .studies import LOSS, study
from .test_several_problems import several

pytestmark = needs_chromium

PHONE = 390


@pytest.fixture(scope="module", params=["one problem", "several"])
def text(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    if request.param == "one problem":
        return write(study(folder, tuple(METHODS)), folder).read_text(encoding="utf-8")
    long = {"problem": "a-problem-whose-name-goes-on-" * 4, "turned": True}
    found, folders = several(folder, {"problem": "fmnist-2c2d"}, long, {"seeds": 1}, dict(LOSS))
    return write_several(found, folder / "out", folders).read_text(encoding="utf-8")


def test_no_error_no_request_and_every_chart(text: str, tmp_path: Path) -> None:
    seen, console = opened(text, tmp_path)
    assert console == []
    wanted = Page(text).charts
    assert len(wanted) >= 5
    assert f'data-drawn="{len(wanted)}"' in seen
    for name in wanted:
        drawn = seen[seen.index(f'id="{name}"') :]
        assert 'class="main-svg"' in drawn[: drawn.index("</figure>")], name


def test_nothing_sticks_out_on_a_phone(text: str, tmp_path: Path) -> None:
    assert too_wide(text, tmp_path, PHONE) == (PHONE, "")


def test_it_prints(text: str, tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(text, encoding="utf-8")
    pdf = tmp_path / "page.pdf"
    chromium(f"--print-to-pdf={pdf}", path.as_uri(), profile=tmp_path / "profile")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf.read_bytes())) >= 3


def test_what_these_tests_would_see(tmp_path: Path) -> None:
    """An error, a request and something wide are each noticed."""
    page = "<!DOCTYPE html><html><head></head><body>{}</body></html>"
    script = "<script>undefined_name()</script>"
    assert "undefined_name" in opened(page.format(script), tmp_path)[1][0]
    image = '<img src="http://127.0.0.1:9/x.png">'
    assert "Content Security Policy" in opened(page.format(image), tmp_path)[1][0]
    wide = '<p class="broad" style="width: 500px">x</p>'
    width, what = too_wide(page.format(wide), tmp_path, PHONE)
    assert width > PHONE
    assert what == "P.broad"
