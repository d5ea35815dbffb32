"""remove.yml: what belongs to us goes and nothing else; on hosts of the test bed (`box`), shown by a diff."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
import tools
import yaml
from bed.box import Box
from hosts import a_host, bed_run  # noqa: F401
from test_playbooks import PLAYBOOKS, Owner, module

INVENTORY = Path(__file__).parent / "bed/inventory.py"


# --- which packages go: pure -----------------------------------------------------------------------------------------


@pytest.fixture
def removal() -> ModuleType:
    return module("gpubox_removal")


def packages(**told: str) -> dict[str, dict[str, object]]:
    """name="a|b c ?d @e *": needs a or b, and c; merely wants d; provides e; came automatically. _ stands for -."""
    found = {}
    for name, words in told.items():
        about: dict[str, object] = {"needs": [], "wants": [], "provides": set(), "automatic": "*" in words.split()}
        for word in words.replace("_", "-").split():
            if word.startswith("@"):
                about["provides"] = {word[1:]}
            elif word != "*":
                wanted = word.startswith("?")
                about["wants" if wanted else "needs"].append(set(word.lstrip("?").split("|")))  # type: ignore[attr-defined]
        found[name.replace("_", "-")] = about
    return found


BEFORE = packages(base="libc", libc="*", shell="")
OURS = packages(git="libc libcurl ?less", libcurl="ssl|tls", ssl="*  libc", less="*") | packages(libcurl="* ssl|tls")


@pytest.mark.parametrize(
    ("others", "going"),
    [
        ({}, "git less libcurl ssl"),
        (packages(editor=""), "git less libcurl ssl"),
        (packages(lfs="git"), ""),
        (packages(lfs="?git"), ""),
        (packages(browser="libcurl"), "git less"),
        (packages(browser="tls|ssl"), "git less libcurl"),
        (packages(browser="tls|ssl", tls="libc"), "git less libcurl ssl"),
        (packages(pager="?less"), "git libcurl ssl"),
        (packages(theirs="helper", helper="* ssl"), "git less libcurl"),
        (packages(orphan="*"), "git less libcurl ssl"),
    ],
    ids=[
        "what came along goes",
        "what the owner installed stays",
        "what the owner's needs stays, with all it needs",
        "what the owner's recommends stays",
        "a library the owner's needs stays",
        "the only one of two that is there stays",
        "of two that are there ours goes",
        "what was recommended to us and is recommended to the owner stays",
        "what is needed further down stays",
        "what nobody needs but did not come with us stays",
    ],
)
def test_what_came_with_us_goes_and_nothing_else(removal: ModuleType, others: dict[str, object], going: str) -> None:
    assert removal.to_purge({"git"}, set(BEFORE), {**BEFORE, **OURS, **others}) == set(going.split())


def test_what_was_there_before_wants_nothing_new(removal: ModuleType) -> None:
    """It lived without what it recommends; but after an upgrade it may need more."""
    there = packages(base="libc", libc="*", shell="?git")
    assert removal.to_purge({"git"}, set(there), {**there, **OURS}) == set(OURS)
    there = packages(base="libc", libc="*", shell="ssl")
    assert removal.to_purge({"git"}, set(there), {**there, **OURS}) == set(OURS) - {"ssl"}


def test_a_kernel_that_came_along_stays(removal: ModuleType) -> None:
    found = packages(modules="linux_image_6.8.0_50_generic", linux_image_6__8="")
    found["linux-image-6.8.0-50-generic"] = packages(x="*")["x"]
    assert removal.to_purge({"modules"}, set(), found) == {"modules"}


def test_a_kernel_that_we_brought_by_name_stays_and_is_told(
    removal: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = ("linux-image-6.8.0-50-generic", "linux-modules-6.8.0-50-generic", "linux-modules-extra-6.8.0-50-generic")
    found = packages(driver="", base="") | {name: packages(x="base *")["x"] for name in kernels}
    ours = {"driver", *kernels}
    assert removal.to_purge(ours, {"base"}, found) == {"driver"}
    monkeypatch.setattr(removal, "installed_packages", lambda: found)
    monkeypatch.setattr(removal, "said", lambda *words: "\n".join(found) if words == ("apt-mark", "showmanual") else "")
    items = [{"kind": "package", "name": name, "before": None} for name in sorted(ours)]
    told = removal.Removal({"packages": ["base"], "items": items}, "/receipt.json", False, False, [], doing=False)
    told.purge()
    assert told.steps == ["purge 1 packages: driver"], "none is marked as unwanted, which apt autoremove would take"
    assert [note.split(": stays")[0] for note in told.notes] == [" ".join(kernels)]


def test_ours_that_provide_what_is_needed_stay(removal: ModuleType) -> None:
    found = packages(postfix="@mail_agent", cron="mail_agent", other="")
    assert removal.to_purge({"postfix", "other"}, {"cron"}, found) == {"other"}


def test_a_field_of_dependencies_is_read(removal: ModuleType) -> None:
    field = "libc6 (>= 2.4), python3:any | python3-minimal (= 3.13.5-1), dkms [amd64]"
    assert removal.dependencies(field) == [{"libc6"}, {"python3", "python3-minimal"}, {"dkms"}]
    assert removal.dependencies("") == []


# --- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("was", ["text", "link", "nothing"])
@pytest.mark.parametrize("now", ["text", "link", "nothing", "same"])
def test_a_file_is_as_it_was(removal: ModuleType, tmp_path: Path, was: str, now: str) -> None:
    path = tmp_path / "etc" / "rule"
    path.parent.mkdir()

    def make(kind: str, text: str) -> None:
        if kind == "text":
            path.write_text(text)
            path.chmod(0o640)
        elif kind == "link":
            path.symlink_to(text)

    make(was, "the owner's")
    before = module("gpubox_receipt").before("files", str(path))
    if now != "same":
        path.unlink(missing_ok=True)
        make(now, "ours")
    same = removal.same_file(str(path), before)
    assert same == (now == "same" or now == was == "nothing")
    if not same:
        removal.restore_file(str(path), before)
    assert removal.same_file(str(path), before)
    assert module("gpubox_receipt").before("files", str(path)) == before
    assert [one.name for one in path.parent.iterdir()] == ([] if was == "nothing" else ["rule"])


@pytest.mark.parametrize("since", ["nothing", "an edit", "never told", "as it was", "gone", "a run that failed"])
def test_what_the_owner_wrote_since_is_kept_beside(
    removal: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, since: str
) -> None:
    receipt, path, book = module("gpubox_receipt"), tmp_path / "etc/rule", tmp_path / "gpubox/receipt.json"
    monkeypatch.setattr(removal, "KEPT", str(tmp_path / "kept"))
    path.parent.mkdir()
    book.parent.mkdir()
    path.write_text("the owner's\n")
    items = [{"kind": "file", "name": str(path), "before": receipt.before("files", str(path))}]
    path.write_text("ours\n")
    items = receipt.marked(items, [], written=since != "never told")
    if since == "an edit":
        path.write_text("the owner's, too\n")
        assert receipt.marked(items, [], written=True) == items, "a run that does not write it changes nothing"
    elif since == "as it was":
        path.write_text("the owner's\n")
    elif since == "gone":
        path.unlink()
    elif since == "a run that failed":
        items = receipt.marked(items, [str(path)], written=False)
    now = path.read_text() if path.exists() else ""
    kept = [f"{tmp_path}/kept{path}"] if since in ("an edit", "never told", "a run that failed") else []
    for doing in (False, True):
        found = removal.Removal({"items": items}, str(book), False, False, [], doing=doing)
        found.restore_files()
        assert [step.split()[-1] for step in found.steps if step.startswith("copy")] == kept
        assert [note.split()[-1] for note in found.notes] == kept
    assert path.read_text() == "the owner's\n"
    assert [Path(copy).read_text() for copy in kept] == [now] * len(kept)
    if kept:
        assert removal.place_for(str(path)) == f"{kept[0]}~"
        assert (tmp_path / "kept").stat().st_mode & 0o777 == 0o700


OURS_IN_DOCKER = {"ip": "127.0.0.1", "features": {"cdi": True}}


@pytest.mark.parametrize(
    ("was", "since", "then"),
    [
        (None, {}, None),
        (None, {"data-root": "/srv"}, {"data-root": "/srv"}),
        (None, {"ip": "0.0.0.0"}, {"ip": "0.0.0.0"}),
        (None, {"features": {"cdi": True, "buildkit": True}}, {"features": {"buildkit": True}}),
        (None, "gone", None),
        (None, "{", "{"),
        ({"ip": "127.0.0.1"}, {}, {"ip": "127.0.0.1"}),
        ({"log-driver": "local"}, {"data-root": "/srv"}, {"log-driver": "local", "data-root": "/srv"}),
        ({"features": {}}, {"data-root": "/srv"}, {"features": {}, "data-root": "/srv"}),
        ({"features": None}, {"features": None, "a": 1}, {"features": None, "a": 1}),
    ],
)
def test_docker_keeps_what_the_owner_wrote(
    removal: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, was: object, since: object, then: object
) -> None:
    path, book = tmp_path / "daemon.json", tmp_path / "etc/receipt.json"
    book.parent.mkdir()
    monkeypatch.setattr(removal, "DOCKER", str(path))
    if was is not None:
        path.write_text(json.dumps(was))
    items = [{"kind": "file", "name": str(path), "before": module("gpubox_receipt").before("files", str(path))}]
    if isinstance(since, dict):
        path.write_text(json.dumps({**OURS_IN_DOCKER, **(was if isinstance(was, dict) else {}), **since}))
    elif since != "gone":
        path.write_text(str(since))
    if path.exists():
        path.chmod(0o640)
    items = module("gpubox_receipt").marked(items, [], written=True)
    found = removal.Removal({"items": items}, str(book), False, False, [], doing=True)
    found.restore_files()
    if then is None:
        assert not path.exists()
    else:
        assert path.read_text() == then if isinstance(then, str) else json.loads(path.read_text()) == then
    if then not in (was, None):
        assert path.stat().st_mode & 0o777 == 0o640
        assert str(path) not in found.gone
        assert len(found.notes) == 1


def test_what_is_taken_out_of_dockers_settings_is_what_was_added(removal: ModuleType) -> None:
    told = yaml.safe_load((PLAYBOOKS / "roles/containers/vars/main.yml").read_text())["containers_docker_defaults"]
    assert removal.DOCKERS == OURS_IN_DOCKER
    assert all(f"'{key}': " in told for key in ("ip", "features", "cdi"))
    assert "127.0.0.1" in told


ADDED = """\
Added user rules (see 'ufw status' for running firewall):
ufw allow 22/tcp
ufw allow from 10.0.0.0/8 to any port 7443 proto tcp comment 'gpubox'
ufw allow from 192.168.0.0/16 to any port 80 proto tcp comment 'gpubox of my neighbour'
"""


def test_ports_that_were_opened_in_a_firewall_of_the_owner_are_closed(
    removal: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "said", lambda *words: ADDED if words == ("ufw", "show", "added") else "")
    found = removal.Removal({"items": []}, "/etc/gpubox/receipt.json", False, False, [], doing=False)
    found.open_ufw()
    assert found.steps == ["ufw --force delete allow from 10.0.0.0/8 to any port 7443 proto tcp"]


def test_what_is_the_owners_is_kept_with_those_it_belongs_to(removal: ModuleType, tmp_path: Path) -> None:
    """And a folder of ours that holds something else by now."""
    for name in ("data/set", "ours/tree", "shared", "empty"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "shared/of-somebody").touch()
    kinds = {"data": "data", "ours": "tree", "shared": "folder", "empty": "folder"}
    items = [{"kind": kind, "name": str(tmp_path / name), "before": None} for name, kind in kinds.items()]
    receipt = tmp_path / "etc/receipt.json"
    receipt.parent.mkdir()
    receipt.write_text(json.dumps({"version": 1, "packages": [], "items": items}))

    def clear(data: bool) -> tuple[list[str], list[str]]:
        told = json.loads(receipt.read_text())
        found = removal.Removal(told, str(receipt), data, False, [], doing=True)
        found.clear_folders()
        found.forget()
        return [step.replace(f"{tmp_path}/", "") for step in found.steps], found.notes

    steps, notes = clear(data=False)
    assert steps == ["remove ours with all in there", "remove empty"]
    assert notes[0] == f"{tmp_path}/shared stays: of-somebody in there is not ours"
    assert "gpubox_remove_data=true" in notes[1]
    assert [one["kind"] for one in json.loads(receipt.read_text())["items"]] == ["data"]
    assert clear(data=False)[0] == []
    assert clear(data=True)[0] == ["remove data with all in there", "remove etc/receipt.json"]
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "home") == ["shared"]


def test_containers_of_an_engine_that_would_go_are_named(
    removal: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = {"docker": "train (pytorch:2)\ndb (postgres)", "systemctl": "active"}
    for pid, words in {
        "7": "/usr/bin/conmon --api-version 1 -c 1f -n web -s",
        "8": "nano conmon -n x",
        "9": "",
    }.items():
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "cmdline").write_text("".join(f"{word}\0" for word in words.split()))
    asked = []

    def said(*words: str) -> str:
        asked.append(words[0])
        return told[words[0]]

    monkeypatch.setattr(removal, "said", said)
    assert removal.containers({"docker-ce"}) == [
        "the container train (pytorch:2) of docker",
        "the container db (postgres) of docker",
    ]
    assert removal.containers({"podman"}, str(tmp_path)) == ["the container web of podman"]
    assert removal.containers({"git"}) == [], "the owner's engine stays, with what runs in it"
    told["systemctl"] = "inactive"
    asked.clear()
    assert removal.containers({"docker-ce"}) == []
    assert asked == ["systemctl"]


# --- on hosts --------------------------------------------------------------------------------------------------------


def inventory(host: Box) -> set[str]:
    sudo = "" if host.user == "root" else "sudo "
    return set(host.run(f"{sudo}python3 -", text=INVENTORY.read_text()).splitlines())


# What may differ, and why.
ALLOWED = {
    r"folder /(root|home/\w+)/\.ansible(/tmp)? ": "Ansible's own, made by every playbook",
    r"(file|folder) /(root|home/\w+)/(\.cache|\.cache/gpubox(/.*)?|project(/.*)?) ": "of who submitted a job",
    r"file /etc/(passwd|group|shadow|gshadow)- ": "the former version, which every change of an account leaves",
    r"file /var/lib/dpkg/status-old ": "the former version, which every package leaves",
    r"file /var/lib/dpkg/status ": "sections as the archive has them now; packages are compared by themselves",
    r"file /var/lib/ucf/(hashfile|registry)\.\d ": "former versions, which every package with such a file leaves",
    r"file /var/lib/ucf/registry ": "unattended-upgrades does not take its own files out of there when it is purged",
    r"file /var/lib/apt/extended_states 0644 0:0 e3b0c44298fc1c14": "empty; apt makes it",
    r"loaded \S+\.target ": "what was reached in this boot stays so",
}


def differences(before: set[str], after: set[str]) -> list[str]:
    allowed = re.compile("|".join(ALLOWED))
    return sorted(
        [f"- {line}" for line in before - after if not allowed.match(line)]
        + [f"+ {line}" for line in after - before if not allowed.match(line)]
    )


def without_queue(host: Box) -> set[str]:
    """What changes by itself while gpubox is there left out."""
    return {line for line in inventory(host) if "/var/lib/gpubox/" not in line and " gpubox-job-" not in line}


def remove(owner: Owner, *words: str, code: int = 0) -> str:
    done = owner.run(PLAYBOOKS / "remove.yml", *words)
    assert done.returncode == code, done.stdout[-6000:] + done.stderr
    return done.stdout


def changed(said: str) -> int:
    return int(re.findall(r"changed=(\d+)", said)[-1])


@pytest.mark.box
@pytest.mark.parametrize(
    ("suite", "user"), [("trixie", "root"), pytest.param("bookworm", "owner", marks=pytest.mark.slow)]
)
def test_a_removed_box_is_what_it_was(a_host: Callable[..., Box], tmp_path: Path, suite: str, user: str) -> None:  # noqa: F811
    host = a_host(suite=suite, user=user)
    owner = Owner(host, tmp_path)
    sudo = "" if user == "root" else "sudo "
    runner = (
        f"{sudo}env GPUBOX_COURIER=no XDG_STATE_HOME=/tmp/state runner"  # what it brings and remembers is its user's
    )
    # What needs a newer version of something has it upgraded, and that stays: so all is new before.
    host.run(f"{sudo}apt-get update -qq; {sudo}DEBIAN_FRONTEND=noninteractive apt-get upgrade --quiet --yes")
    before = inventory(host)
    owner.setup()
    host.run(f"mkdir project; cd project; {runner} submit --base -- sh -c 'echo 1 >$RUNNER_OUT/x'")

    job = host.run(f"cd project; {runner} submit -d --base -- sleep 600").split()[-1]
    tools.wait_until(lambda: "running" in host.run(f"{runner} ps"), 20)
    there = without_queue(host)
    said = remove(owner, code=2)
    assert re.search(rf"These jobs run or wait: {job} \(sleep, running, of \w+\)", " ".join(said.split()))
    assert "gpubox_remove_anyway=true" in said
    assert sorted(without_queue(host) ^ there) == []
    host.run(f"{runner} cancel {job}; {runner} wait {job} || true")

    told = remove(owner, "--check")
    assert "purge" in told
    assert sorted(without_queue(host) ^ there) == []
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(remove, owner, code=2)
        tools.wait_until(lambda: host.ssh("pgrep --full 'dpkg .*--(remove|purge)'").stdout, 60)
        host.run(f"{sudo}pkill --signal KILL --full '^(apt-get|/usr/bin/dpkg) '")
        assert "run this again" in " ".join(first.result().split())
    remove(owner)
    kept = differences(before, inventory(host))
    mine = re.compile(
        r"/(srv/gpubox|var/lib/gpubox(-job|-secrets)?|etc/gpubox)(/| )|/etc/(passwd|group|shadow|gshadow) "
    )
    others = [line for line in kept if not mine.search(line)]
    assert others == [], "\n".join(others)
    assert any("/var/lib/gpubox/runner.db " in line for line in kept)
    again = remove(owner)
    assert changed(again) == 0
    assert "gpubox_remove_data=true" in again

    remove(owner, "--extra-vars", "gpubox_remove_data=true")
    assert differences(before, inventory(host)) == []
    nothing = remove(owner, "--extra-vars", "gpubox_remove_data=true")
    assert changed(nothing) == 0
    assert "Nothing of gpubox is here" in nothing
