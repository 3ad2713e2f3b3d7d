"""The report in a real browser: axe's rules, and the viewer of samples by keyboard and by touch.

The static rules of `accessibility.problems` are tested in `test_html.py` without a browser.
"""

import pytest
import torch

from benchmarks.accessibility import NO_BROWSER, browser, findings
from eval.report import write_report
from tests.eval.report.example import crowded_rows, example_report

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(browser() is None, reason=NO_BROWSER),
]


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    report, folder = example_report(), tmp_path_factory.mktemp("large")
    report["rows"] = crowded_rows(12, 0)
    write_report(report, [torch.rand(12, 3, 300, 200) for _ in report["rows"]], folder)
    return folder / "report.html"


def test_axe_finds_nothing_on_desktops_and_phones_in_both_themes(large):
    assert findings([str(large)]) == []


@pytest.mark.exhaustive
def test_axe_finds_nothing_in_a_small_report(written):
    assert findings([str(written / "report.html")]) == []


@pytest.mark.exhaustive
def test_axe_finds_the_faults_of_a_page(tmp_path):
    (tmp_path / "bad.html").write_text('<p style="color:#999">pale text</p><img src="x.png"><button></button>')
    rules = {entry["rule"] for entry in findings([str(tmp_path / "bad.html")])}
    assert {"button-name", "color-contrast", "html-has-lang", "image-alt"} <= rules


def test_viewer_shows_files_and_arrow_keys_switch_between_rows_on_one_noise(large):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser(), args=["--no-sandbox"])
        page = chromium.new_page(viewport={"width": 390, "height": 844})
        errors = []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text))
        page.goto(large.as_uri())
        link = page.locator('a.sample[data-column="0"][data-line="3"]')
        link.focus()
        page.keyboard.press("Enter")
        seen = [shown(page)]
        for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "ArrowDown", "ArrowUp", "ArrowLeft", "ArrowLeft"):
            page.keyboard.press(key)
            seen.append(shown(page))
        assert [file.partition("-")[0] for file, _, _ in seen] == ["01", "02", "03", "02", "02", "02", "01", "12"]
        assert [file[-7:-4] for file, _, _ in seen] == ["003"] * 4 + ["004"] + ["003"] * 3
        assert {width for _, width, _ in seen} == {200}, "the file, not the thumbnail"
        assert len({caption for file, _, caption in seen if file.endswith("003.png")}) == 1, "one noise"
        page.get_by_role("button", name="row →").click()
        assert shown(page)[0].startswith("01")
        page.keyboard.press("Escape")
        assert page.evaluate("document.activeElement.dataset.line") == "3"
        assert page.evaluate("document.documentElement.scrollWidth") == 390, "the phone does not scroll sideways"
        assert errors == []
        chromium.close()


def shown(page) -> tuple[str, int, str]:
    """The file, its width, and the caption in the viewer."""
    page.evaluate(
        "document.querySelector('dialog img').decode()"
    )  # wait_for_function needs eval, which the page forbids
    source, width = page.evaluate("(i => [i.src, i.naturalWidth])(document.querySelector('dialog img'))")
    return source.rpartition("images/")[2], width, page.locator("dialog p").inner_text()
