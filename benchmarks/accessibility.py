"""Runs axe-core on HTML pages in headless Chromium: desktop and phone, light and dark.

    pip install -e ".[accessibility]" && sudo apt-get install chromium
    python -m benchmarks.accessibility runs/report/report.html build/site/index.html http://127.0.0.1:7860 [--out FILE]

Prints a line per finding and exits with 1 if one is serious or critical. axe-core comes with the package
axe-playwright-python. Chromium is the one on the PATH (Debian: chromium; GitHub's runners have google-chrome), or the
one that the environment variable CHROMIUM names.
"""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SCREENS = {"desktop": (1440, 900), "phone": (390, 844)}
THEMES = ("light", "dark")
NO_BROWSER = f"one of {', '.join(BROWSERS)} must be on the PATH (apt-get install chromium), or CHROMIUM must name one"
BLOCKING = ("serious", "critical")


def browser() -> str | None:
    """The path of Chromium, or None if there is none on this machine."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)


def findings(pages: Sequence[str], ready: str | None = None) -> list[dict[str, Any]]:
    """Run axe on pages.

    Args:
        pages: Files or addresses.
        ready: A CSS selector of an element that a page shows when it is complete, or None.

    Returns:
        One entry for each violated rule: page, screen, theme, rule, impact, and the first elements that violate it.

    Raises:
        ValueError: If there is no Chromium.
    """
    from axe_playwright_python.sync_playwright import Axe
    from playwright.sync_api import sync_playwright

    path = browser()
    if path is None:
        raise ValueError(NO_BROWSER)
    found = []
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        for page in pages:
            address = page if "://" in page else Path(page).resolve().as_uri()
            for screen, (width, height) in SCREENS.items():
                for theme in THEMES:
                    context = chromium.new_context(
                        viewport={"width": width, "height": height},
                        color_scheme=theme,  # type: ignore[arg-type]
                        bypass_csp=True,  # axe is a script
                    )
                    tab = context.new_page()
                    tab.goto(address)
                    if ready is not None:
                        tab.wait_for_selector(ready, timeout=120_000)
                    tab.wait_for_timeout(300)  # for transitions
                    for violation in Axe().run(tab).response["violations"]:
                        elements = [node["html"][:160] for node in violation["nodes"][:3]]
                        entry = {"page": page, "screen": screen, "theme": theme, "rule": violation["id"]}
                        found.append(entry | {"impact": violation["impact"], "elements": elements})
                    context.close()
        chromium.close()
    return found


def main() -> int:
    """Check the pages that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="+", help="files or addresses")
    parser.add_argument("--ready", help="a CSS selector of an element that complete pages have")
    parser.add_argument("--out", type=Path, help="also write the findings to this JSON file")
    options = parser.parse_args()
    found = findings(options.pages, options.ready)
    for entry in found:
        print(f"{entry['impact']}: {entry['rule']} in {entry['page']} ({entry['screen']}, {entry['theme']})")
        print("    " + "\n    ".join(entry["elements"]))
    blocking = sum(entry["impact"] in BLOCKING for entry in found)
    print(f"{len(options.pages)} pages, {len(found)} findings, {blocking} of them serious or critical")
    if options.out is not None:
        options.out.write_text(
            json.dumps({"pages": options.pages, "findings": found}, indent=2) + "\n", encoding="utf-8"
        )
    return 1 if blocking else 0


if __name__ == "__main__":
    sys.exit(main())
