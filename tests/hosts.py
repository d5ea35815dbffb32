"""Fixtures: hosts of the test bed (tests/bed), for tests marked `box`, and machines, for tests marked `slow`.

    def test_something(a_host):
        box = a_host(suite="bookworm")         # bed.box.Box: up, ssh answers
        box.run("apt-get install --yes hello")
    def test_more(host): ...                   # one trixie host
    def test_kernels(a_machine): ...           # a_machine(): bed.vm.Machine

Several in a test are fine, and see each other. Everything ends with the test. They need root and some packages; what is
missing is a skip with words, and in CI a failure.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
import tools
from bed import base, box, sources, vm
from bed.commands import BedError
from bed.runs import Run

OWNER = base.OWNER  # the user of a host who is not root and may sudo


def _need(programs: tuple[str, ...]) -> None:
    tools.need_root()
    for program in programs:
        tools.need(program)
    try:
        sources.mirrors()
    except BedError as error:
        pytest.skip(f"{error}: the test bed builds its hosts from there")


@pytest.fixture(scope="session")
def bed_run() -> Iterator[Run]:
    """This test run's number in the bed: what other runs left behind is swept when it is claimed."""
    tools.need_root()
    run = Run()
    try:
        yield run
    finally:
        run.close()


@pytest.fixture
def a_host(request: pytest.FixtureRequest) -> Iterator[Callable[..., box.Box]]:
    """a_host(suite="trixie" | "bookworm", user="root" | hosts.OWNER) boots one more host."""
    _need(box.TOOLS)
    run: Run = request.getfixturevalue("bed_run")
    with contextlib.ExitStack() as stack:

        def boot(suite: str = "trixie", user: str = "root") -> box.Box:
            return stack.enter_context(contextlib.closing(box.Box(run, suite, user)))

        yield boot


@pytest.fixture
def host(a_host: Callable[..., box.Box]) -> box.Box:
    """A fresh Debian 13 host."""
    return a_host()


@pytest.fixture
def a_machine(request: pytest.FixtureRequest) -> Iterator[Callable[..., vm.Machine]]:
    """a_machine(user="root" | hosts.OWNER) boots one more machine with a kernel of its own."""
    _need(vm.TOOLS)
    run: Run = request.getfixturevalue("bed_run")
    with contextlib.ExitStack() as stack:

        def boot(user: str = "root") -> vm.Machine:
            return stack.enter_context(contextlib.closing(vm.Machine(run, user)))

        yield boot
