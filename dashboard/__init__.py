"""The dashboard: pages that the daemon renders, and the modules with which a browser keeps them alive.

pages.py    the routes                      figures.py  numbers in words
signin.py   the only open doors             cards.py    a GPU as it is drawn
assets.py   what pages are drawn with       work.py     jobs as they are listed; the receipt
live.py     the one stream of each tab      contents.py what jobs were given and left
totals.py   the line above the cards        previews.py what of a file can be shown
templates/, static/  no build step, nothing from elsewhere
"""

from __future__ import annotations

from dashboard.pages import Pages

__all__ = ["Pages"]
