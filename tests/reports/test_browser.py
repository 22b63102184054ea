"""The page in a real Chromium: offline, quiet, legible, reachable by keyboard, and its viewer draws.

Screenshots are left in ``build/screenshots`` to be looked at.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser
from run_maker import make_run

from medvisionllama.reports.mosaic import PLANES, fullest_slice
from medvisionllama.reports.page import write_page
from medvisionllama.reports.run_contents import read_picture
from medvisionllama.reports.viewer import viewer_is_there

ROOT = Path(__file__).resolve().parents[2]
AXE = ROOT / "viewer" / "node_modules" / "axe-core" / "axe.min.js"
SCREENSHOTS = ROOT / "build" / "screenshots"

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
needs_viewer = pytest.mark.skipif(not viewer_is_there(), reason="no NiiVue: run npm ci --prefix viewer")
needs_axe = pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: run npm ci --prefix viewer")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def _forget(browser: Browser) -> None:
    browser.requests.clear()
    browser.complaints.clear()


def open_viewer(browser: Browser) -> None:
    browser.ask("document.querySelector('#viewer-controls button').click()")
    browser.wait_for(
        "document.querySelector('#viewer-stage').dataset.shown || document.querySelector('#viewer-fault').textContent"
    )


def slide(browser: Browser, slider: str, value: float) -> None:
    browser.ask(
        f"(e => {{ e.value = {value}; e.dispatchEvent(new Event('input')); }})(document.querySelector('#{slider}'))"
    )


def test_opens_from_disk_without_a_request_leaving_or_a_complaint(browser: Browser, comparison: Path) -> None:
    browser.open(comparison)
    browser.screenshot(SCREENSHOTS / "comparison.png")
    assert browser.complaints == []
    assert comparison.as_uri() in browser.requests
    assert all(address.startswith(("file:", "data:")) for address in browser.requests)
    assert browser.ask("[...document.images].every(image => image.complete && image.naturalWidth > 300)")


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_sticks_out_sideways(browser: Browser, comparison: Path, width: int, dark: bool) -> None:
    browser.open(comparison, width=width, dark=dark)
    browser.screenshot(SCREENSHOTS / f"{width}-{'dark' if dark else 'light'}.png")
    assert browser.ask("document.documentElement.scrollWidth") <= width


def test_dark_is_dark_and_print_is_white(browser: Browser, one_page: Path) -> None:
    def ground() -> str:
        return str(browser.ask("getComputedStyle(document.body).backgroundColor"))

    browser.open(one_page, dark=True)
    assert ground() == "rgb(18, 22, 21)"
    browser.open(one_page)
    assert ground() == "rgb(251, 251, 248)"
    browser.open(one_page, dark=True, media="print")
    assert ground() == "rgb(255, 255, 255)"
    assert browser.ask("getComputedStyle(document.querySelector('.chart svg')).color") == "rgb(0, 0, 0)"


@needs_axe
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_axe_finds_no_serious_fault(browser: Browser, comparison: Path, width: int, dark: bool) -> None:
    browser.open(comparison, width=width, dark=dark)
    browser.ask("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert serious_faults(browser) == []


@needs_axe
def test_axe_would_find_a_fault(browser: Browser, one_page: Path) -> None:
    """The negative control: a picture without words and a grey on grey are found."""
    browser.open(one_page)
    browser.ask("document.images[0].removeAttribute('alt'); document.querySelector('.lead').style.color = '#ddd'")
    assert set(serious_faults(browser)) == {"image-alt", "color-contrast"}


def serious_faults(browser: Browser) -> list[str]:
    browser.ask(AXE.read_text(encoding="utf-8") + "; 0")
    return list(
        browser.ask(
            "axe.run().then(found => found.violations"
            ".filter(fault => ['serious', 'critical'].includes(fault.impact)).map(fault => fault.id))"
        )
    )


CONTROLS = "a[href], button, select, input, summary, [tabindex='0']"


def unreached(browser: Browser) -> set[str]:
    """Controls that can be seen, by their place, that pressing Tab from the top never comes to."""
    browser.ask(
        f"document.querySelectorAll({CONTROLS!r}).forEach((control, place) => control.dataset.place = place);"
        "document.activeElement.blur(); scrollTo(0, 0)"
    )
    visible = f"[...document.querySelectorAll({CONTROLS!r})].filter(control => control.checkVisibility())"
    expected = set(browser.ask(f"{visible}.map(control => control.dataset.place)"))
    assert len(expected) > 12
    reached = set()
    for _ in range(len(expected) + 3):
        browser.press("Tab")
        reached.add(browser.ask("document.activeElement.dataset.place || ''"))
    return expected - reached


def test_the_keyboard_reaches_every_control(browser: Browser, one_page: Path) -> None:
    browser.open(one_page)
    if viewer_is_there():
        open_viewer(browser)
    assert unreached(browser) == set()


def test_a_control_out_of_the_keyboards_reach_would_be_found(browser: Browser, one_page: Path) -> None:
    """The negative control."""
    browser.open(one_page)
    browser.ask("document.querySelector('nav a').tabIndex = -1")
    assert len(unreached(browser)) == 1


def test_the_tallest_picture_fits_on_a_printed_leaf(browser: Browser, comparison: Path) -> None:
    """A picture that fits on no leaf is cut, and leaves a blank one behind."""
    measured = (
        "(image => { image.style.height = '3000px'; return image.getBoundingClientRect().height; })"
        "(document.querySelector('.plate.scroll img'))"
    )
    browser.open(comparison, media="print")
    assert 600 < browser.ask(measured) < 1_000, "A4 has 1,017 pixels between its margins"
    browser.open(comparison)
    assert browser.ask(measured) == 3_000, "the control: a screen scrolls"
    (SCREENSHOTS / "comparison.pdf").write_bytes(browser.printed())


@needs_viewer
def test_the_viewer_draws_and_its_controls_change_what_is_seen(browser: Browser, one_page: Path) -> None:
    browser.open(one_page)
    assert not [address for address in browser.requests if "niivue" in address], "loaded before it was asked for"
    open_viewer(browser)
    drawn = browser.pixels("#viewer-canvas").astype(int)
    browser.screenshot(SCREENSHOTS / "viewer.png", whole=False)
    assert drawn.std() > 20
    coloured = (np.ptp(drawn, axis=2) > 60).sum()
    assert coloured > 1_000
    slide(browser, "opacity-prediction", 0)
    bare = browser.pixels("#viewer-canvas").astype(int)
    assert (np.ptp(bare, axis=2) > 60).sum() < coloured / 50
    place = browser.ask("document.querySelector('#viewer-place').textContent")
    slide(browser, "cross-2", 0.9)
    assert (np.abs(browser.pixels("#viewer-canvas").astype(int) - bare) > 30).sum() > 1_000
    assert browser.ask("document.querySelector('#viewer-place').textContent") != place
    slide(browser, "opacity-image", 0)
    assert browser.pixels("#viewer-canvas").std() < bare.std() / 2
    assert browser.complaints == []
    assert all(address.startswith(("file:", "data:", "blob:")) for address in browser.requests)


@needs_viewer
def test_the_viewer_names_the_place_in_mm_and_the_class(browser: Browser, one_page: Path, run: Path) -> None:
    browser.open(one_page)
    open_viewer(browser)
    said = browser.ask("document.querySelector('#viewer-place').textContent")
    numbers = [float(part.split(" mm")[0]) for part in said.split(";")[0].split(", ")]
    # All made cases have the same labels; their affine holds the spacing alone.
    picture = read_picture(run / "validation" / "pictures" / "case_000.npz")
    voxel = {plane.normal: fullest_slice(picture, plane) for plane in PLANES}
    assert numbers == pytest.approx([voxel[axis] * picture.spacing_mm[axis] for axis in range(3)], abs=0.06)
    assert "reference: Anterior" in said
    assert browser.ask("document.querySelector('#viewer-classes').textContent") == "AnteriorPosterior"


@needs_viewer
def test_the_reference_is_an_outline_in_another_shade_and_named_within(browser: Browser, one_page: Path) -> None:
    def opaque(layer: str) -> np.ndarray:  # type: ignore[type-arg]
        for other in ("prediction", "reference"):
            slide(browser, f"opacity-{other}", float(other == layer))
        return browser.pixels("#viewer-canvas").astype(int)

    browser.open(one_page)
    open_viewer(browser)
    browser.ask("(e => { e.value = 0; e.dispatchEvent(new Event('change')); })(document.querySelector('#viewer-view'))")
    prediction, reference = opaque("prediction"), opaque("reference")
    browser.screenshot(SCREENSHOTS / "viewer-reference.png", whole=False)
    fill, line = ((np.ptp(seen, axis=2) > 40).sum() for seen in (prediction, reference))
    assert 0.05 * fill < line < 0.7 * fill, "an outline has fewer voxels than what it surrounds"
    said = browser.ask("document.querySelector('#viewer-place').textContent")
    assert "reference: Anterior" in said, "within the outline, where nothing of it is drawn"
    shades = [np.median(seen[np.ptp(seen, axis=2) > 40].min(axis=1)) for seen in (prediction, reference)]
    assert shades[1] > shades[0] + 40, "lighter"
    assert browser.complaints == []


@needs_viewer
def test_the_sliders_say_what_they_change(browser: Browser, one_page: Path) -> None:
    browser.open(one_page)
    names = browser.ask(
        "[...document.querySelectorAll('.viewer-sliders label')].map(label => label.textContent.trim())"
    )
    assert names[:3] == ["Image opacity", "Prediction opacity", "Reference opacity"]


def test_tables_fit_on_a_printed_leaf(browser: Browser, tmp_path: Path) -> None:
    """A4 less its margins is 688 pixels wide."""
    models = ("medvisionllama-u-identity", "vit-baseline", "medvisionllama-trained")
    runs = [make_run(tmp_path / m, model=m, seed=s, cases=4, pictures=False) for s, m in enumerate(models)]
    browser.open(write_page(runs, tmp_path / "out", images=False), width=688, media="print")

    def widest() -> float:
        tables = "[...document.querySelectorAll('table')].filter(table => table.checkVisibility())"
        return float(browser.ask(f"Math.max(...{tables}.map(table => table.getBoundingClientRect().width))"))

    assert 300 < widest() <= 688
    screen = "table { font-size: 14.4px !important } th, td { padding: .25rem .5rem !important }"
    words = ".figure, .word, .group th { white-space: nowrap !important }"
    browser.ask(
        f"document.head.append(Object.assign(document.createElement('style'), {{textContent: '{screen} {words}'}})); 0"
    )
    assert widest() > 688, "the control: as they were, or nearly"


@needs_viewer
def test_an_arrow_key_moves_a_slider(browser: Browser, one_page: Path) -> None:
    browser.open(one_page)
    open_viewer(browser)
    browser.ask("document.querySelector('#opacity-prediction').focus()")
    browser.press("ArrowRight")
    assert browser.ask("document.querySelector('#opacity-prediction').value") == "0.55"


@needs_viewer
def test_the_second_case_replaces_the_first(browser: Browser, one_page: Path) -> None:
    browser.open(one_page)
    open_viewer(browser)
    browser.ask("(e => { e.value = 1; e.dispatchEvent(new Event('change')); })(document.querySelector('#viewer-case'))")
    browser.wait_for("document.querySelector('#viewer-stage').dataset.shown === 'case-2'")
    assert browser.complaints == []


@needs_viewer
def test_a_page_that_lost_its_viewer_folder_says_so(browser: Browser, one_page: Path, tmp_path: Path) -> None:
    alone = tmp_path / "index.html"
    alone.write_bytes(one_page.read_bytes())
    browser.open(alone)
    open_viewer(browser)
    fault = browser.ask("document.querySelector('#viewer-fault').textContent")
    assert 'keep the folder "viewer" beside this page' in fault


def test_two_hundred_cases_stay_small_and_open_fast(browser: Browser, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", cases=200, pictures=False, steps=2_000)
    page = write_page([run], tmp_path / "out", images=False)
    assert page.stat().st_size < 3_000_000
    assert min(browser.open(page) for _ in range(3)) < 2, "the best of three: the machine may be busy"
    assert browser.ask("document.querySelectorAll('#every-case tbody tr').length") == 200
