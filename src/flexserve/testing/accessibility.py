"""What keeps people from using a page: controls without a name, faint text, and what lies beside the window.

Names are those that Chromium's accessibility tree has, as a screen reader would say them. Contrast is that of
WCAG 2, for text as it is drawn.
"""

from __future__ import annotations

from typing import Any

from flexserve.testing.browser import Page

LEAST_CONTRAST = 4.5  # of text to what is behind it (WCAG 2 AA)
_CONTROLS = {"button", "combobox", "textbox", "slider", "link", "checkbox", "list", "log", "image", "img"}

# For each text that is visible: its contrast to the nearest opaque background behind it. A colour is read
# off a canvas, so whatever notation a style has is understood.
_CONTRASTS = """
(() => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((v) => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const colour = rgba(getComputedStyle(at).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255, 255];
  };
  const found = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement;
    const box = node.getBoundingClientRect();
    const said = texts.currentNode.textContent.trim();
    const seen = node.checkVisibility({ visibilityProperty: true }) && box.width > 1;
    if (!said || !seen || node.closest(":disabled, option")) continue;
    const style = getComputedStyle(node);
    const own = rgba(node instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(own), light(behind(node))].sort((x, y) => y - x);
    found.push({ text: said, contrast: (a + 0.05) / (b + 0.05) });
  }
  return found;
})()
"""


def nameless(page: Page) -> list[str]:
    """Return the roles of controls that a screen reader has no name for."""
    nodes: list[dict[str, Any]] = page.call("Accessibility.getFullAXTree")["nodes"]
    return [
        role
        for node in nodes
        if (role := node.get("role", {}).get("value", "")) in _CONTROLS
        and not node.get("ignored")
        and not node.get("name", {}).get("value")
        and (role != "list" or _focusable(node))
    ]


def faint(page: Page) -> list[str]:
    """Return the texts that are too faint to be read by everybody, each with its contrast."""
    return sorted(
        {
            f"{text['text'][:60]}: {text['contrast']:.2f}"
            for text in page.value(_CONTRASTS)
            if text["contrast"] < LEAST_CONTRAST
        }
    )


def beside(page: Page) -> int:
    """Return by how many pixels the page is wider than its window."""
    return int(page.value("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def _focusable(node: dict[str, Any]) -> bool:
    return any(
        entry["name"] == "focusable" and entry["value"].get("value") for entry in node.get("properties", [])
    )
