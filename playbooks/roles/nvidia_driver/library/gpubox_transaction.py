#!/usr/bin/python
"""Changes the driver's packages in one transaction of apt, or not at all.

Simulates first, and takes nothing away that is not the driver's. Where a module does not build, all packages are again
as they were. Standard library only, Python 3.9 or newer.
"""

from __future__ import annotations

import glob
import os
import re
import time

DOCUMENTATION = r"""
module: gpubox_transaction
short_description: Installs and removes the driver's packages together, or leaves all as it was
description:
  - Repairs what an earlier transaction of the driver left half done, simulates, installs, and compares versions.
  - Says in C(outcome) how it went, and fails only where a way back was not found; the play decides what to do next.
  - Packages that are installed in the right branch are left alone, however old they are. Only a kernel that is asked
    for comes in its newest version, with its headers; where it replaced an older one, it stays whatever follows.
options:
  install:
    description: Packages that are to be there.
    type: list
    elements: str
    required: true
  optional:
    description: Packages that are to be there if apt has them.
    type: list
    elements: str
    default: []
  remove:
    description: Packages that are not to be there.
    type: list
    elements: str
    default: []
  branch:
    description: The branch that the driver's packages must be of; 0 where the source has one alone.
    type: int
    default: 0
  update:
    description: Read apt's lists anew first. That is done anyway where a package is unknown.
    type: bool
    default: false
  simulate:
    description: Only say what would be done; what is half done is repaired nevertheless, unless this is a check.
    type: bool
    default: false
author: gpubox
"""

EXAMPLES = r"""
- name: Install the driver
  gpubox_transaction:
    install: "{{ plan_decision['driver']['packages'] }}"
    remove: "{{ plan_decision['driver']['remove'] }}"
    branch: 580
  register: nvidia_driver_installed
"""

RETURN = r"""
outcome:
  description: >-
    C(nothing) to do; C(done), or in a simulation, C(possible); C(unknown) where a check can't know before apt's lists
    are there; C(missing) where the source lacks something; C(refused) where others' packages would go; C(build) where
    the module does not build; C(failed) for all else.
  returned: always
  type: str
why:
  description: A sentence for each outcome but C(nothing), C(possible) and C(done).
  returned: always
  type: str
log:
  description: The last telling lines.
  returned: always
  type: list
kernel:
  description: For which it does not build.
  returned: always
  type: str
version:
  description: Of the driver, as far as known.
  returned: always
  type: str
installs:
  description: Names of the packages that come.
  returned: always
  type: list
removes:
  description: Names of the packages that go.
  returned: always
  type: list
"""

OURS = re.compile(  # what a driver consists of, whoever made the packages
    r"(?!(lib)?nvidia-(container|cuda-(toolkit|dev|doc|gdb)))"
    r"(.*nvidia.*|cuda-drivers.*|libcuda1|libcudadebugger1|libnvcuvid1|libnvoptix1|libxnvctrl0)(:\w+)?$"
)
KERNEL = re.compile(r"linux-(image|headers)-")  # the metapackages that may be asked for
OF_KERNELS = re.compile(r"linux-(?!.*nvidia)")
DRIVER_VERSION = re.compile(r"(?:\d+:)?(\d{3})\.\d+")
LOGS = "/var/lib/dkms/*/*/build/make.log"
CALM = {
    "LC_ALL": "C",
    "LANG": "C",
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_MODE": "l",
    "APT_LISTCHANGES_FRONTEND": "none",
}
APT = (
    *("apt-get", "--yes", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=300"),
    *("-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"),
)
STATUS = ("dpkg-query", "--show", "--showformat=${Package} ${Architecture} ${db:Status-Status} ${Version}\n")
HALF = ("half-installed", "unpacked", "half-configured", "triggers-awaited", "triggers-pending")


# --- what is said, read ----------------------------------------------------------------------------------------------


def simulated(said):
    """What `apt-get --simulate` said -> (installs: name -> version, removes, downgrades, what makes it impossible)."""
    installs = dict(re.findall(r"^Inst (\S+) (?:\[[^]]*\] )?\((\S+)", said, re.M))
    removes = re.findall(r"^(?:Remv|Purg) (\S+)", said, re.M)
    lower = re.search(r"^The following packages will be DOWNGRADED:\n((?:  .*\n)+)", said, re.M)
    trouble = re.search(r"^(The following packages have unmet dependencies:(?:\n .*)+|E: .*)", said, re.M)
    return installs, removes, lower[1].split() if lower else [], " ".join(trouble[1].split()) if trouble else ""


def packages(listed):
    """What dpkg-query said -> name -> (state, version); what is not there at all is left out."""
    found = {}
    for row in listed.splitlines():
        name, _, state, version = (row.split(" ", 3) + [""] * 3)[:4]
        if state not in ("not-installed", "config-files", ""):
            found[name] = (state, version)
    return found


def half_done(found):
    return sorted(name for name, (state, _) in found.items() if state in HALF)


def wrong_branch(name, version, branch):
    known = DRIVER_VERSION.match(version)
    return bool(branch and known and OURS.match(name) and int(known[1]) != branch)


def telling(log, most=4):
    """The lines of a build's log that say why it ended."""
    rows = [row.strip() for row in log.splitlines() if row.strip()]
    errors = [row for row in rows if re.search(r"\berror:|\bError!|\*\*\*", row)]
    first = [row for row in errors if re.search(r"\berror:", row)]
    return [row[:300] for row in (first or errors or rows[-most:])[:most]]


def built_for(log):
    """(module, kernel) that the first line of a build's log names; dkms 2 and 3 write it each in its way."""
    found = re.search(r"make\.log for (\S+) for kernel (\S+)", log)
    return (found[1], found[2]) if found else ("", "")


# --- what is done ----------------------------------------------------------------------------------------------------


class Transaction:
    """run: (words) -> (code, what was said); it is a test's own, or Ansible's."""

    def __init__(self, run, asked, logs=LOGS):
        self.run, self.asked, self.logs = run, asked, logs
        self.found = {"outcome": "", "why": "", "log": [], "kernel": "", "version": "", "installs": [], "removes": []}

    def ended(self, outcome, why="", log=()):
        return {**self.found, "outcome": outcome, "why": why, "log": list(log)}

    def there(self):
        return packages(self.run(*STATUS)[1])

    def simulate(self, may_update):
        """-> (the outcome, or None where it is possible; the words of the command)."""
        here = self.there()
        wanted = [name for name in self.asked["install"] if self._lacks(here, name)]
        remove = [name for name in self.asked["remove"] if name in here]
        known = self._offered([*self.asked["install"], *self.asked["optional"]])
        unknown = [name for name in wanted if name not in known]
        if may_update and (self.asked["update"] or unknown):
            code, said = self.run("apt-get", "update", "--quiet", "-o", "DPkg::Lock::Timeout=300")
            if code:
                return self.ended("failed", "apt can't read its lists.", _words_of_apt(said)), ()
            known = self._offered([*self.asked["install"], *self.asked["optional"]])
            unknown = [name for name in wanted if name not in known]
        if unknown:
            outcome = "missing" if may_update else "unknown"
            return self.ended(outcome, f"apt has no {', '.join(unknown)}."), ()
        wanted += [name for name in self._older_kernel(here, known) if name not in wanted]
        wanted += [name for name in self.asked["optional"] if name in known and self._lacks(here, name)]
        if not wanted and not remove and not half_done(here):
            return self.ended("nothing"), ()
        words = (*wanted, *[f"{name}-" for name in remove])
        _, said = self.run(*APT, "--simulate", "--allow-downgrades", "install", *words)
        installs, removes, lower, trouble = simulated(said)
        self.found.update(installs=sorted(installs), removes=sorted(removes), version=self._version(installs))
        if trouble:
            return self.ended("missing", f"apt can't: {trouble}", _words_of_apt(said)), ()
        foreign = sorted(name for name in {*removes, *lower} if not OURS.match(name) and name not in remove)
        if foreign:
            return self.ended("refused", f"apt would remove or downgrade {', '.join(foreign)}."), ()
        others = {name: text for name, text in installs.items() if wrong_branch(name, text, self.asked["branch"])}
        if others:
            named = ", ".join(f"{name} {text}" for name, text in sorted(others.items())[:3])
            return self.ended("missing", f"apt would take {named}, which is not branch {self.asked['branch']}."), ()
        return None, ("--allow-downgrades", "install", *words) if lower else ("install", *words)

    def _lacks(self, here, name):
        return name not in here or wrong_branch(name, here[name][1], self.asked["branch"])

    def _older_kernel(self, here, known):
        """Where an image is asked for, its metapackages: other packages would bring the newest kernel without the rest
        of its drivers, or no module for it."""
        if not any(name.startswith("linux-image-") for name in self.asked["install"]):
            return []
        names = [name for name in self.asked["install"] if KERNEL.match(name) and name in here]
        return [name for name in names if here[name][1] != known.get(name, here[name][1])]

    def _offered(self, names):
        """Name -> the version that apt would take."""
        if not names:
            return {}
        said = self.run("apt-cache", "policy", *names)[1]
        found = re.findall(r"^(\S+):\n  Installed: .*\n  Candidate: (.*)$", said, re.M)
        return {name: version for name, version in found if version != "(none)"}

    def _version(self, versions):
        """Of the module, else of whatever else has one."""
        named = {name: text for name, text in versions.items() if OURS.match(name) and DRIVER_VERSION.match(text)}
        return next((named[name] for name in sorted(named, key=lambda name: ("dkms" not in name, name))), "")

    def change(self):
        trouble = self.repair()
        if trouble:
            return trouble
        ended, words = self.simulate(may_update=True)
        if ended:
            return ended
        before, automatic = self.there(), set(self.run("apt-mark", "showauto")[1].split())
        started = time.time() - 1
        code, said = self.run(*APT, *words)
        after = self.there()
        broken = half_done(after)
        wrong = [name for name in self.asked["install"] if self._lacks(after, name)]
        if not code and not broken and not wrong:
            return self.ended("done")
        outcome, why, log = self._what_went_wrong(said, started, broken or wrong)
        left = self.go_back(before, automatic)
        if left:
            why = f"{why} And not all is as it was: {left}"
            return self.ended("failed", why, log)
        return self.ended(outcome, why, log)

    def repair(self):
        """What an earlier transaction left: ended, where it is wanted; else it goes. -> None, or the outcome."""
        broken = half_done(self.there())
        if not broken:
            return None
        if set(broken) & {*self.asked["install"], *self.asked["optional"]} or not all(map(OURS.match, broken)):
            self.run("dpkg", "--configure", "--pending", "--force-confdef", "--force-confold")
            broken = half_done(self.there())
        ours = [name for name in broken if OURS.match(name)]
        if ours:
            self.run("dpkg", "--purge", "--force-remove-reinstreq", "--force-depends", *ours)
            self.run("dpkg", "--configure", "--pending", "--force-confdef", "--force-confold")
        self.run(*APT, "--allow-downgrades", "--fix-broken", "install")
        broken = half_done(self.there())
        if not broken:
            return None
        return self.ended(
            "failed", f"dpkg left {', '.join(broken)} half done, and can't end it: sudo dpkg --configure -a"
        )

    def _what_went_wrong(self, said, started, names):
        for path in sorted(glob.glob(self.logs), key=os.path.getmtime, reverse=True):
            if os.path.getmtime(path) < started:
                break
            with open(path, errors="replace") as file:
                log = file.read()
            module, kernel = built_for(log)
            if kernel and "nvidia" in module:
                self.found["kernel"] = kernel
                lines = telling(log)
                reason = f": {lines[0]}" if lines else ""
                return "build", f"{module} does not build for the kernel {kernel}{reason}", lines
        return "failed", f"apt did not get {', '.join(names) or 'to its end'} installed.", _words_of_apt(said)

    def go_back(self, before, automatic):
        """Make it as it was. -> "", or what could not be. A kernel that was upgraded stays: archives keep one alone."""
        here = self.there()
        other = {name for name in before if here.get(name, ("", ""))[1] != before[name][1]}
        stays = {name for name, (state, _) in here.items() if state == "installed" and OF_KERNELS.match(name)}
        if not any(KERNEL.match(name) for name in other & set(here)):
            stays = set()
        new = sorted(set(here) - set(before) - stays)
        old = [f"{name}={before[name][1]}" for name in sorted(other - stays)]
        for words in ([*old, *[f"{name}-" for name in new]], [f"{name}-" for name in new]):
            if words:
                self.run(*APT, "--purge", "--allow-downgrades", "--allow-change-held-packages", "install", *words)
            here = self.there()
            if not half_done(here) and not set(here) - set(before) - stays:
                break
        else:
            rest = sorted(set(here) - set(before) - stays)
            self.run("dpkg", "--purge", "--force-remove-reinstreq", "--force-depends", *rest)
            self.run("dpkg", "--configure", "--pending")
        again = sorted(automatic & {text.partition("=")[0] for text in old})
        if again:
            self.run("apt-mark", "auto", *again)
        here = self.there()
        differs = sorted(name for name in {*here, *before} - stays if here.get(name) != before.get(name))
        return f"{', '.join(differs)}." if differs else ""


def _words_of_apt(said):
    rows = [row.strip() for row in said.splitlines() if re.match(r"E: |W: |dpkg: error|Errors? ", row.strip())]
    return (rows or [row.strip() for row in said.splitlines() if row.strip()][-4:])[-6:]


def main():
    from ansible.module_utils.basic import AnsibleModule

    names = {"type": "list", "elements": "str", "default": []}
    module = AnsibleModule(
        argument_spec={
            "install": {"type": "list", "elements": "str", "required": True},
            "optional": names,
            "remove": names,
            "branch": {"type": "int", "default": 0},
            "update": {"type": "bool", "default": False},
            "simulate": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )

    def run(*words):
        if module.get_bin_path(words[0]) is None:
            return 127, ""
        code, out, error = module.run_command(list(words), environ_update=CALM)
        return code, out + error

    transaction = Transaction(run, module.params)
    broken = half_done(transaction.there())
    if module.check_mode and broken:
        module.exit_json(changed=True, **transaction.ended("unknown", f"{', '.join(broken)}: repaired first."))
    if module.check_mode or module.params["simulate"]:
        trouble = None if module.check_mode else transaction.repair()  # what is broken, apt can't simulate around
        ended = trouble or transaction.simulate(may_update=not module.check_mode)[0]
        found = ended or transaction.ended("possible")
        changed = found["outcome"] in ("possible", "unknown") if module.check_mode else bool(broken)
        module.exit_json(changed=changed, **found)
    found = transaction.change()
    module.exit_json(changed=found["outcome"] == "done", **found)


if __name__ == "__main__":
    main()
