"""Code on the box, from the front: what the daemon and the API say about it, in one place.

    Blobs                contents by their hash                                     blobs.py
    Receiver             the stream that brings them                                receiver.py
    Manifest             a snapshot's list of files, always a valid one             manifests.py
    make_tree, Trees     the folders that jobs run in                               trees.py

A blob is never linked into a tree: a job can do to its files what it likes. All of it is plain blocking work for a
worker thread.
"""

from __future__ import annotations

from runner.box.blobs import Blobs
from runner.box.manifests import Manifest, apply_changes
from runner.box.receiver import Receiver
from runner.box.trees import Trees, make_tree, remove_tree

__all__ = ["Blobs", "Manifest", "Receiver", "Trees", "apply_changes", "make_tree", "remove_tree"]
