"""Static checks of a page's accessibility, the same rules as axe's but without a browser."""

import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np

VOID = {"img", "meta", "br", "wbr", "input", "link", "hr", "path", "use", "line", "circle", "rect"}
NAMED = ("button", "a", "select", "textarea", "audio")


def luminance(colour: str, channels: bool = False):
    """The relative luminance of a colour such as "#ffffff" (WCAG 2), or its linear channels."""
    values = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    return linear if channels else float(linear @ [0.2126, 0.7152, 0.0722])


def contrast(one: str, two: str) -> float:
    """The contrast of two colours (WCAG 2)."""
    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict, list[str]]] = []  # tag, attributes, and the text inside
        self.open: list[int] = []

    def handle_starttag(self, tag, attrs):
        attributes = {key: value or "" for key, value in attrs}
        self.elements.append((tag, attributes, []))
        if tag == "img":
            self.handle_data(attributes.get("alt", ""))
        if tag not in VOID:
            self.open.append(len(self.elements) - 1)

    def handle_endtag(self, tag):
        while self.open and tag not in VOID:
            if self.elements[self.open.pop()][0] == tag:
                break

    def handle_data(self, data):
        for index in self.open:
            self.elements[index][2].append(data)


def problems(html: str) -> list[str]:
    """What is wrong with a page: language, title, landmarks, headings, names, identifiers, labels, scroll regions."""
    page = _Page()
    page.feed(html)
    tags = Counter(tag for tag, _, _ in page.elements)
    found = [
        f"{tag}: {tags[tag]}" for tag in ("main", "h1", "title") if tags[tag] < 1 or (tag != "title" and tags[tag] > 1)
    ]
    identifiers = Counter(attributes["id"] for _, attributes, _ in page.elements if "id" in attributes)
    found += [f"id {name} is used {count} times" for name, count in identifiers.items() if count > 1]
    level = 0
    for tag, attributes, texts in page.elements:
        text = "".join(texts).strip() or attributes.get("aria-label", "") or attributes.get("title", "")
        where = f"<{tag} {attributes}>"[:120]
        if tag == "html" and not attributes.get("lang"):
            found.append("no language")
        if re.fullmatch("h[1-6]", tag):
            if int(tag[1]) > level + 1:
                found.append(f"{where} follows h{level}")
            level = int(tag[1])
        if tag == "img" and "alt" not in attributes:
            found.append(f"{where} has no alt")
        if tag in NAMED and not text:
            found.append(f"{where} has no name")
        if attributes.get("role") in ("img", "region", "dialog") and not attributes.get("aria-label"):
            found.append(f"{where} has no label")
        if attributes.get("tabindex") == "0" and "role" not in attributes:
            found.append(f"{where} is focusable without a role")
        if tag == "th" and not (attributes.get("scope") and text):
            found.append(f"{where} needs a scope and a text")
        if int(attributes.get("tabindex") or 0) > 0:
            found.append(f"{where} changes the order of focus")
        found += [
            f"{where} refers to the missing {attributes[key]}"
            for key in ("aria-labelledby", "aria-describedby")
            if key in attributes and attributes[key] not in identifiers
        ]
    return found
