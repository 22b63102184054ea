"""Figures on their way to the page: PNG and SVG beside it, in it an element whose words tell what it shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from medvisionllama.reports import drawing


@dataclass(frozen=True)
class Drawing:
    """One figure on the page.

    Attributes:
        name: File name without ending.
        title: What it is called.
        description: What it shows, in words.
        markup: Its element.
    """

    name: str
    title: str
    description: str
    markup: Markup


class Gallery:
    """Writes each figure once as PNG and SVG and hands back its element for the page."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def chart(self, figure: Figure, name: str, title: str, description: str) -> Drawing:
        """A figure of lines, which stays lines in the page."""
        drawing.save(figure, self.folder, name)
        return Drawing(name, title, description, Markup(drawing.inline_svg(figure, name, title, description)))

    def picture(self, figure: Figure, name: str, title: str, description: str) -> Drawing:
        """A figure of voxels."""
        drawing.save(figure, self.folder, name)
        element = Markup('<img src="{}" alt="{}" width="{}" height="{}">').format(
            drawing.data_uri(figure),
            description,
            round(figure.get_figwidth() * 100),
            round(figure.get_figheight() * 100),
        )
        return Drawing(name, title, description, element)
