"""A page that one of our programs wrote, as tests read it."""

from xml.etree.ElementTree import Element

import html5lib

HTML = "{http://www.w3.org/1999/xhtml}"
"""Before the name of every element."""


def parse(page: str) -> Element:
    """The page's elements. Raises an error of html5lib for what is not valid HTML."""
    tree = html5lib.HTMLParser(strict=True).parse(page)
    assert isinstance(tree, Element)
    return tree


def texts(element: Element) -> str:
    """All that stands in it, with single spaces."""
    return " ".join("".join(element.itertext()).split())


def table(tree: Element, caption: str) -> dict[str, list[str]]:
    """Rows of a table by its caption: head -> cells."""
    found = next(each for each in tree.iter(f"{HTML}table") if texts(each[0]) == caption)
    rows = list(found.iter(f"{HTML}tr"))[1:]
    return {texts(row[0]): [texts(cell) for cell in row[1:]] for row in rows}
