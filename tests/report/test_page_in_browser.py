"""The page in a real browser (headless Chromium): all of it loads, tables sort, nothing sticks out of the page."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lawm.evaluation import LatentUsage, Measured, Missing, Omission, Result
from lawm.report import (
    Curves,
    Details,
    Estimate,
    Film,
    Films,
    Measurement,
    Pictures,
    Section,
    Series,
    Table,
    Text,
    capacity_sections,
    figures_sections,
    summary_sections,
    usage_sections,
    write_report,
)

NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)  # fmt: skip
WIDTHS = {"phone": (375, 812, 2), "laptop": (1280, 800, 1)}
LONG = "controller_shuffled_vs_own_of_the_longest_name_that_there_is_in_a_table"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Chromium of its own, with an empty profile."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    found = [path for name in NAMES if (path := shutil.which(name))]
    driver = shutil.which("chromedriver")
    if not found or driver is None:
        pytest.skip(f"no Chromium here ({', '.join(NAMES)}), or no chromedriver: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = found[0]
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    running = webdriver.Chrome(options, webdriver.ChromeService(driver))
    yield running
    running.quit()


def results() -> list[Result]:
    names = ["error_vs_deterministic", "shuffled_vs_error", "probe_r2_linear", "leakage_score", "cycle_ratio", LONG]
    values = [0.82, 1.5, 0.57, 0.31, 1.08, 12345.6]
    return [
        Result(
            name, v, 0.9 * v, 1.1 * v, 256, 41, "ratio", "PushT, held-out", 660,
            control="shuffled" if name == LONG else "", one="1.0: no better than a model without latents",
        )
        for name, v in zip(names, values, strict=True)
    ]  # fmt: skip


def square(count: int = 4, size: int = 56) -> np.ndarray:
    found = np.full((count, size, size, 3), (30, 80, 120), np.uint8)
    for i in range(count):
        found[i, 20:32, 6 * i : 6 * i + 12] = (240, 200, 60)
    return found


def whole_report(where: Path) -> list[Section]:
    """A section of every kind, with long names and many columns."""
    measured = Measured(results(), [Omission("control", "no controller was given (--controller URI)")], ["a note"])
    four = [square() for _ in range(4)]
    labels = ["true", "inferred latents", "controller", "deterministic"]
    usage = LatentUsage(
        "noisy", 41, np.arange(300) % 33, np.linspace(0, 1, 32), 12.3, np.geomspace(3, 1e-4, 32), Missing("none")
    )
    runs = [
        Measurement(
            f"run-{i}", "noisy" if i % 2 else "sparse", f"beta {i}e-5",
            {"error_vs_deterministic": Estimate(0.9 - i / 20, 0.88 - i / 20, 0.92 - i / 20),
             "cycle_ratio": Estimate(1 + i / 20, None, None)},
        )
        for i in range(6)
    ]  # fmt: skip
    sections: list[Section] = [
        *summary_sections(measured.results),
        Films("Films", [Film(f"pusht-{i}.mp4, 0.25 s", labels, four) for i in range(2)], 4.0, "A caption."),
        Pictures(
            "Strips", [list(square()), [None, *square()[1:]]], ["true frames", "rollout, another video's latents"],
            [f"t + {i / 4:g} s" for i in range(4)], headings={0: "a-video-with-a-very-long-name-" * 3 + ".mp4"},
        ),
        *capacity_sections(runs),
        *figures_sections("Results of a/path/that/is/as/long/as/paths/are/evaluation.json", measured),
        Table(
            "Sorting", ["Name", "Value", "Count"],
            [["b10", Estimate(2.0, None, None), 5], ["b9", Estimate(-10.5, -11, -10), 1_000],
             ["a", Estimate(float("nan"), None, None), 30], ["c", Estimate(1e-4, None, None), None]],
        ),
        Curves("Loss", [Series("run", [0, 1, 2], [3, 2, 1])], "step", "L1"),
        *usage_sections(usage),
        Text("Refused", "x" * 300, warning=True),
        Details("Config", {"a.b": "y" * 200}, open=True),
        Details("Raw", "z " * 500, open=True),
    ]  # fmt: skip
    write_report(str(where), "A report", sections, "of everything")
    return sections


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = Path(os.environ.get("LAWM_REPORT_TO_LOOK_AT", "")) if "LAWM_REPORT_TO_LOOK_AT" in os.environ else None
    if where is None:
        where = tmp_path_factory.mktemp("report") / "report.html"
        whole_report(where)
    return where


def opened(browser: Any, where: Path, width: str = "laptop") -> None:
    """Loads the page at a screen's size, and waits until every picture and film is there."""
    wide, high, scale = WIDTHS[width]
    metrics = {"width": wide, "height": high, "deviceScaleFactor": scale, "mobile": width == "phone"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get_log("browser")  # what was said before
    browser.get(where.as_uri())
    browser.set_script_timeout(20)
    browser.execute_async_script(
        """
        const done = arguments[0], videos = [...document.querySelectorAll("video")];
        const loaded = (video) => new Promise((resolve) => {
          const look = () => (video.readyState >= 2 || video.error ? resolve() : setTimeout(look, 20));
          look();
        });
        const images = [...document.images].map((image) => image.decode().catch(() => {}));
        Promise.all([...images, ...videos.map(loaded)]).then(() => done());
        """
    )


@pytest.mark.parametrize("width", WIDTHS)
def test_all_of_it_loads_and_fits(browser: Any, report: Path, width: str) -> None:
    opened(browser, report, width)
    images = browser.execute_script("return [...document.images].map((i) => [i.alt, i.naturalWidth])")
    assert images and all(alt and natural > 0 for alt, natural in images)
    films = browser.execute_script(
        "return [...document.querySelectorAll('video')].map((v) => [v.readyState, v.duration, v.videoWidth, v.error])"
    )
    assert films and all(ready >= 2 and 0.2 < seconds < 60 and wide > 0 for ready, seconds, wide, _ in films), films
    assert not [entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")]
    page, screen = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert page <= screen == WIDTHS[width][0]
    # What is wider than the screen lies in a frame that scrolls, and no box sticks out of its section.
    wide = browser.execute_script(
        """
        return [...document.querySelectorAll("main > section")].flatMap((section) =>
          [...section.querySelectorAll(":scope > *, .card > *, .film > *")].filter((box) =>
            box.getBoundingClientRect().right > section.getBoundingClientRect().right + 1).map((box) => box.outerHTML));
        """
    )
    assert wide == []
    verdict = browser.execute_script("return document.querySelector('main > section h2').textContent")
    assert verdict.startswith("Verdict") or "REPORT_TO_LOOK_AT" in str(os.environ)


def test_tables_sort_by_mouse_and_by_keyboard(browser: Any, report: Path) -> None:
    if "LAWM_REPORT_TO_LOOK_AT" in os.environ:
        pytest.skip("of the made report")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    opened(browser, report)
    section = browser.find_element(By.XPATH, "//section[h2='Sorting']")

    def column(number: int) -> list[str]:
        return [
            row.find_elements(By.TAG_NAME, "td")[number].text for row in section.find_elements(By.XPATH, ".//tbody/tr")
        ]

    def said() -> list[str | None]:
        return [head.get_attribute("aria-sort") for head in section.find_elements(By.TAG_NAME, "th")]

    name, value, count = section.find_elements(By.CSS_SELECTOR, "th button")
    value.click()
    assert column(0) == ["b9", "c", "b10", "a"] and said() == [None, "ascending", None]  # no value: last
    value.click()
    assert column(0) == ["b10", "c", "b9", "a"] and said() == [None, "descending", None]
    value.click()
    assert column(0) == ["b10", "b9", "a", "c"] and said() == [None, None, None]  # as it was
    name.send_keys(Keys.ENTER)
    assert column(0) == ["a", "b9", "b10", "c"] and said() == ["ascending", None, None]
    count.send_keys(Keys.SPACE)
    assert column(2) == ["5", "30", "1,000", ""] and said() == [None, None, "ascending"]


def test_films_stop_and_go_on(browser: Any, report: Path) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.wait import WebDriverWait

    opened(browser, report)

    def paused() -> bool:
        return bool(browser.execute_script("return document.querySelector('video').paused"))

    WebDriverWait(browser, 10).until(lambda _: not paused())  # it plays by itself
    button = browser.find_element(By.CSS_SELECTOR, "video + button")
    assert button.text == "Pause"
    button.click()
    WebDriverWait(browser, 10).until(lambda _: paused() and button.text == "Play")
    button.click()
    WebDriverWait(browser, 10).until(lambda _: not paused() and button.text == "Pause")


def test_the_page_is_whole_without_its_script(browser: Any, report: Path) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.execute_cdp_cmd("Page.navigate", {"url": report.as_uri()})
        tree = browser.execute_cdp_cmd("DOM.getDocument", {"depth": -1})

        def tags(node: dict[str, Any]) -> Iterator[tuple[str, list[str]]]:
            yield node["nodeName"], node.get("attributes", [])
            for child in node.get("children", []):
                yield from tags(child)

        found = list(tags(tree["root"]))
        assert not [tag for tag, _ in found if tag == "BUTTON"]
        assert all("controls" in attributes for tag, attributes in found if tag == "VIDEO")
        assert [tag for tag, _ in found if tag == "VIDEO"]
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


def test_another_script_does_not_run(browser: Any, report: Path, tmp_path: Path) -> None:
    """The policy is in force: what was slipped into the page is refused, and said in the console."""
    where = tmp_path / "spoilt.html"
    page = report.read_text(encoding="utf-8")
    where.write_text(page.replace("</main>", "<script>document.title = 'spoilt'</script></main>"), encoding="utf-8")
    opened(browser, where)
    assert browser.title != "spoilt"
    said = [entry["message"] for entry in browser.get_log("browser")]
    assert any("Content Security Policy" in line for line in said), said
