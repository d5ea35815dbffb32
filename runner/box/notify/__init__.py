"""Telling the box's owner elsewhere what happened: by ntfy, a webhook or a command. Imported only where that is set.

messages.py  PURE: what is worth telling, in words    ways.py  PURE: the settings, and what a way is handed
outbox.py    what is not told yet, and who tells it   post.py  one request, in a process of its own
"""

from runner.box.notify.outbox import Outbox

__all__ = ["Outbox"]
