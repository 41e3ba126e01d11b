"""The page of a comparison: in itself, and looked at in a browser."""

import io
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from longspan.analysis.compare import compare
from longspan.analysis.comparison import palette
from longspan.analysis.comparison.curves import mean_curve
from longspan.analysis.comparison.runs import read_runs
from longspan.analysis.comparison.series import sort_runs

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
LABELS = ("dense", "bigbird", "bslongformer", "fixed", "local_sliding_window", "variable")
PANELS = {"loss": 3, "differences": 1, "tradeoffs_val_loss": 3, "evaluation": 1}


@pytest.fixture(scope="module")
def study(tmp_path_factory, write_study, write_run):
    folder = write_study(tmp_path_factory.mktemp("study"), 3)
    write_run(folder / "99_<script>alert(1)<", "dense", status="interrupted")
    return folder


@pytest.fixture(scope="module")
def written(study):
    return compare([study], study / "out", file=io.StringIO())


def test_the_page_stands_alone(written):
    page = written[0].read_text()
    # Nothing is fetched: no address in a tag or a style leads out of the page.
    assert re.findall(r"""(?:src|href)\s*=\s*["'](?!#|data:)[^"']*""", page.partition("<script>")[0]) == []
    assert "@import" not in page
    assert "url(" not in page.partition("</style>")[0]
    assert "alert(1)" in page
    assert "<script>alert" not in page
    # So much for the plotting library, which is most of it.
    assert len(page) < 2_500_000


def test_a_figure_is_a_picture_too(written):
    names = sorted(path.name for path in written[1:])
    assert names == sorted(f"clm_python_source_1024_{key}.png" for key in PANELS)
    for path in written[1:]:
        picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
        assert picture.shape[1] > 800
        assert _share_near(picture, palette.LIGHT[0]) > 1e-5, path
        assert picture.std() > 5


def test_means_of_curves(study):
    (setting,) = sort_runs(read_runs([study])[0])
    for one in setting.series:
        curve = mean_curve(one, "val", "tokens")
        losses = [run.curves["val"][-1]["loss"] for run in one.runs.values()]
        assert curve[-1]["y"] == pytest.approx(np.mean(losses))
        assert curve[-1]["x"] == 200 * 8 * 1024
        # 4.3027 standard errors of three runs.
        half = 4.3027 * np.std(losses, ddof=1) / np.sqrt(3)
        assert curve[-1]["high"] - curve[-1]["y"] == pytest.approx(half, rel=1e-3)


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with sync_api.sync_playwright() as playwright:
        # As root, as in a container, Chromium has no sandbox.
        opened = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_a_browser_shows_every_figure_without_an_error(written, browser, theme):
    context = browser.new_context(color_scheme=theme, viewport={"width": 1400, "height": 900}, offline=True)
    page = context.new_page()
    said, asked = [], []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(written[0].as_uri())
    page.wait_for_selector("body[data-drawn]", timeout=60_000)
    charts = page.locator(".chart")
    assert charts.count() == sum(PANELS.values()) == int(page.get_attribute("body", "data-drawn"))
    colours = dict(zip(LABELS, palette.colours(LABELS, theme, "dense"), strict=True))
    for number in range(charts.count()):
        chart = charts.nth(number)
        picture = _pixels(chart.screenshot())
        name = chart.get_attribute("id")
        assert picture.std() > 3, f"{name} is blank"
        for label, colour in colours.items():
            if label != "dense":
                assert _share_near(picture, colour) > 0, f"{name} shows no {label}"
    for number in range(page.locator("img").count()):
        image = page.locator("img").nth(number)
        assert image.evaluate("one => one.complete && one.naturalWidth > 100")
        assert _pixels(image.screenshot()).std() > 3
    assert page.locator("img").count() == len(LABELS)
    # Nothing hangs over the side of the page.
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    _brings_out(page, colours)
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []
    context.close()


def _brings_out(page, colours):
    """Choosing a pattern fades the others in every figure; choosing it again brings them back."""
    chart = page.locator(".chart").first
    faded, kept = colours["fixed"], colours["bigbird"]
    button = page.locator("button[data-series=bigbird]")
    before = _pixels(chart.screenshot())
    button.click()
    page.wait_for_function(
        "document.querySelector('.chart path[stroke-opacity], .chart path[opacity]') !== null"
    )
    during = _pixels(chart.screenshot())
    assert button.get_attribute("aria-pressed") == "true"
    assert _share_near(during, faded) < _share_near(before, faded) / 4
    assert _share_near(during, kept) > _share_near(before, kept) / 2
    button.click()
    assert button.get_attribute("aria-pressed") == "false"


def _pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def _share_near(picture, colour, within=24):
    """Share of the pixels that differ from a colour by no more than so much in each channel."""
    wanted = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    return (np.abs(picture - wanted).max(axis=-1) <= within).mean()
