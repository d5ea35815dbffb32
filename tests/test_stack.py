"""What stands on a driver: conda, containers, cuda. On one host of the bed, with a GPU of files and a driver of files.

Debian's own podman runs, and uv is the real one. What only others' servers have comes from the host's own loopback,
under the same names: Miniforge's installer, as a script with the same options; the toolkits for containers and of CUDA,
and docker, as packages with a few lines of shell inside.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import closing
from email.utils import formatdate
from pathlib import Path
from typing import Any

import hosts
import pytest
import yaml
from bed import archive, box
from bed.archive import Archive
from bed.runs import Run
from hosts import bed_run  # noqa: F401
from test_playbooks import PLAYBOOKS, ansible

pytestmark = pytest.mark.box
ROLES = ("conda", "containers", "cuda")
MACHINE = "/srv/machine"  # the host's own files, but with a GPU and its driver: what preflight_root names
DRIVER = "580.95.05"
LIBRARIES = "/usr/lib/x86_64-linux-gnu"
CARD = f"{MACHINE}/sys/bus/pci/devices/0000:01:00.0"
FURNISH = f"""
set -e
mkdir -p {LIBRARIES} {CARD} {MACHINE}/proc/sys/kernel {MACHINE}/proc/driver/nvidia
ln -s /etc /usr /var /lib {MACHINE}/
echo 0x10de >{CARD}/vendor; echo 0x2204 >{CARD}/device; echo 0x030000 >{CARD}/class
uname -r >{MACHINE}/proc/sys/kernel/osrelease
echo 'NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {DRIVER}  x' >{MACHINE}/proc/driver/nvidia/version
echo libcuda >{LIBRARIES}/libcuda.so.{DRIVER}; ln -s libcuda.so.{DRIVER} {LIBRARIES}/libcuda.so.1
printf '#!/bin/sh\\necho GPU 0\\n' >/usr/bin/nvidia-smi; chmod 755 /usr/bin/nvidia-smi
touch /dev/nvidia0; mount --bind /dev/zero /dev/nvidia0
groupadd --system gpubox
useradd --system --create-home --home-dir /var/lib/gpubox-job gpubox-job
useradd --create-home --shell /bin/bash --groups gpubox ada
"""
# As the real one takes them: -b asks nothing, -p is where, and what is there already needs -u.
MINIFORGE = """#!/bin/sh
update=; prefix=
while getopts bfhp:su option; do case $option in p) prefix=$OPTARG;; u) update=yes;; b) ;; *) exit 2;; esac; done
if [ -e "$prefix" ] && [ -z "$update" ]; then
  echo "ERROR: File or directory already exists: '$prefix'" >&2; exit 1
fi
[ ! -e /srv/breaks-down ] || { mkdir -p "$prefix/bin"; exit 1; }
mkdir -p "$prefix/bin" "$prefix/etc/profile.d" "$prefix/pkgs" "$prefix/envs"
printf '#!/bin/sh\\necho conda %s\\n' VERSION >"$prefix/bin/conda"
chmod 755 "$prefix/bin/conda"
echo 'conda_was_here=yes' >"$prefix/etc/profile.d/conda.sh"
echo 'channels: [conda-forge]' >"$prefix/.condarc"
"""

# What nvidia-cdi-refresh asks of it: a description of the driver that is installed, as the real one writes it.
NVIDIA_CTK = f"""#!/bin/sh
[ "$1 $2" = "cdi generate" ] || exit 0
ids='additionalGids: [44]'; version=0.7.0
case ",$NVIDIA_CTK_CDI_GENERATE_FEATURE_FLAGS," in
  *,no-additional-gids-for-device-nodes,*) ids='env: [PLAIN=yes]'; version=0.5.0;;
esac
library=$(readlink -f {LIBRARIES}/libcuda.so.1)
mkdir -p "$(dirname "$NVIDIA_CTK_CDI_OUTPUT_FILE_PATH")"
cat >"$NVIDIA_CTK_CDI_OUTPUT_FILE_PATH" <<END
cdiVersion: $version
kind: nvidia.com/gpu
devices:
  - name: all
    containerEdits:
      $ids
      deviceNodes: [{{path: /dev/nvidia0}}]
containerEdits:
  mounts: [{{hostPath: $library, containerPath: $library, options: [ro, nosuid, nodev, rbind, rprivate]}}]
END
"""
REFRESH = """[Unit]
ConditionPathExists=/usr/bin/nvidia-ctk
[Service]
Type=oneshot
Environment=NVIDIA_CTK_CDI_OUTPUT_FILE_PATH=/var/run/cdi/nvidia.yaml
EnvironmentFile=-/etc/nvidia-container-toolkit/nvidia-cdi-refresh.env
ExecStart=/usr/bin/nvidia-smi -L
ExecStart=/usr/bin/nvidia-ctk cdi generate
[Install]
WantedBy=multi-user.target
"""
WATCH = "[Path]\nPathChanged=/usr/bin/nvidia-ctk\n[Install]\nWantedBy=multi-user.target\n"
ENABLE = "#!/bin/sh\nsystemctl daemon-reload\nsystemctl enable --now {}\n"
# Runs until it is told to end, and runs as many containers as /srv/containers has lines.
DOCKERD = """#!/bin/sh
[ "$1" != --validate ] || exec python3 -c 'import json, sys; json.load(open(sys.argv[1]))' "${2#--config-file=}"
echo $$ >/run/docker.pid
exec sleep infinity
"""
DOCKER = "#!/bin/sh\n[ \"$1 $2\" = 'ps --quiet' ] && cat /srv/containers 2>/dev/null\n"
UNITS = "/usr/lib/systemd/system"


class Stack:
    """Somebody who makes that host ready."""

    def __init__(self, host: box.Box, place: Path) -> None:
        self.host = host
        self.place = place
        self.archive = Archive(place / "stand-ins", label="NVIDIA CUDA")
        (place / "box.ini").write_text(host.inventory)
        (place / "ansible.cfg").write_text(
            f"[defaults]\nroles_path = {PLAYBOOKS}/roles\nlibrary = {PLAYBOOKS}/library\n"
            "interpreter_python = /usr/bin/python3\n[connection]\npipelining = true\n"
        )
        for name, roles in {"stack": ROLES, **{role: (role,) for role in ROLES}}.items():
            play = {"hosts": "boxes", "gather_facts": False, "roles": ["preflight", "plan", *roles]}
            (place / f"{name}.yml").write_text(yaml.safe_dump([play]))
        self._fill()
        self.archive.publish()
        self._lay_out_as_docker()
        self.url = self.archive.serve(host)
        key = {
            "key_url": f"{self.url}/key",
            "key_checksum": f"sha256:{hashlib.sha256(self.archive.key.encode()).hexdigest()}",
        }
        repository = {"url": self.url.replace("127.0.0.1", "localhost"), **key}  # an address has one key
        self.wishes: dict[str, Any] = {
            "preflight_root": MACHINE,
            "gpubox_free_gib": 1,
            **self.miniforge("26.3.2-3"),
            **{f"gpubox_container_toolkit_{name}": value for name, value in repository.items()},
            "gpubox_nvidia_repository_url": self.url,
            "gpubox_nvidia_key_url": f"{self.url}/key",
            "gpubox_nvidia_key_fingerprints": [self.archive.fingerprint],
            "gpubox_cuda": ["12.9"],
            **{f"gpubox_docker_{name}": value for name, value in repository.items()},
        }
        host.run(FURNISH)

    def _fill(self) -> None:
        toolkit = {
            "/usr/bin/nvidia-ctk": NVIDIA_CTK,
            f"{UNITS}/nvidia-cdi-refresh.service": REFRESH,
            f"{UNITS}/nvidia-cdi-refresh.path": WATCH,
        }
        refresh = {"postinst": ENABLE.format("nvidia-cdi-refresh.path nvidia-cdi-refresh.service")}
        add = self.archive.add
        add("libnvidia-container1", "1.20.0-1")
        add("libnvidia-container-tools", "1.20.0-1", depends="libnvidia-container1")
        add("nvidia-container-toolkit-base", "1.20.0-1", files=toolkit, scripts=refresh)
        add("nvidia-container-toolkit", "1.20.0-1", depends="nvidia-container-toolkit-base, libnvidia-container-tools")
        engine = {
            "/usr/bin/dockerd": DOCKERD,
            f"{UNITS}/docker.service": "[Service]\nExecStart=/usr/bin/dockerd\n[Install]\nWantedBy=multi-user.target\n",
        }
        add("docker-ce", "29.1.3-1", files=engine, scripts={"postinst": ENABLE.format("docker.service")})
        add("docker-ce-cli", "29.1.3-1", files={"/usr/bin/docker": DOCKER})
        for name in ("containerd.io", "docker-buildx-plugin", "docker-compose-plugin"):
            add(name)
        for version in ("12.9", "13.0"):
            place = f"/usr/local/cuda-{version}"
            choose = (
                f"#!/bin/sh\nupdate-alternatives --install /usr/local/cuda cuda {place} {version.replace('.', '')}\n"
            )
            nvcc = {f"{place}/bin/nvcc": f"#!/bin/sh\necho release {version}\n"}
            name = version.replace(".", "-")
            add(f"cuda-compiler-{name}", f"{version}.1-1", files=nvcc)
            add(f"cuda-toolkit-{name}", f"{version}.1-1", depends=f"cuda-compiler-{name}", scripts={"postinst": choose})
        add("cuda-toolkit-13-1", "13.1.0-1", depends="cuda-drivers")  # as no toolkit should be
        add("cuda-drivers", "590.1-1")
        (self.archive.folder / "key").write_text(self.archive.key)

    def _lay_out_as_docker(self) -> None:
        """The same packages once more, as a repository with a suite and a component."""
        suite, index = self.archive.folder / "dists/trixie", "stable/binary-amd64/Packages"
        (suite / index).parent.mkdir(parents=True)
        content = (self.archive.folder / "Packages").read_bytes()
        (suite / index).write_bytes(content)
        digest = f"{hashlib.sha256(content).hexdigest()} {len(content)} {index}"
        now = formatdate(usegmt=True)
        (suite / "Release").write_text(f"Date: {now}\nArchitectures: amd64\nComponents: stable\nSHA256:\n {digest}\n")
        self.archive._gpg("--clearsign", "--output", str(suite / "InRelease"), str(suite / "Release"))

    def miniforge(self, version: str) -> dict[str, str]:
        """The wishes that take this version, which is served from now on."""
        installer = self.archive.folder / f"Miniforge3-{version}-Linux-x86_64.sh"
        installer.write_text(MINIFORGE.replace("VERSION", version))
        self.url = self.archive.serve(self.host)
        return {
            "gpubox_miniforge_url": f"{self.url}/Miniforge3-{version}-Linux-{{architecture}}.sh",
            "gpubox_miniforge_checksum_x86_64": f"sha256:{hashlib.sha256(installer.read_bytes()).hexdigest()}",
        }

    def play(self, book: str, *words: str, **wishes: Any) -> subprocess.CompletedProcess[str]:
        """book: one of the roles, or all of them as `stack`."""
        wished = json.dumps({**self.wishes, **wishes})
        return ansible("ansible-playbook", "-i", "box.ini", "-e", wished, *words, f"{book}.yml", folder=self.place)

    def run(self, book: str, *words: str, **wishes: Any) -> int:
        """-> how much changed, in a play that must not fail."""
        done = self.play(book, *words, **wishes)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr
        return int(re.findall(r"changed=(\d+)", done.stdout.split("PLAY RECAP")[-1])[0])

    def refused(self, book: str, *words: str, **wishes: Any) -> str:
        """-> what a play said that must fail, in one line."""
        done = self.play(book, *words, **wishes)
        assert done.returncode != 0, done.stdout[-6000:]
        return " ".join(done.stdout.split())


@pytest.fixture(scope="module")
def stack(bed_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:  # noqa: F811
    """After check, converge, converge, check."""
    hosts._need((*box.TOOLS, *archive.TOOLS))
    with closing(box.Box(bed_run, "trixie")) as host:
        made = Stack(host, tmp_path_factory.mktemp("stack"))
        try:
            assert made.run("stack", "--check") > 0
            made.run("stack")
            assert made.run("stack") == 0
            assert made.run("stack", "--check") == 0
            yield made
        finally:
            made.archive.remove()


def receipt(stack: Stack, role: str) -> set[tuple[str, str]]:
    items = json.loads(stack.host.run("cat /etc/gpubox/receipt.json"))["items"]
    return {(item["kind"], item["name"]) for item in items if item["role"] == role and item["before"] is None}


# --- conda -----------------------------------------------------------------------------------------------------------


def test_everybody_has_conda_and_uv(stack: Stack) -> None:
    for person in ("ada", "gpubox-job"):
        said = stack.host.run(f"setpriv --reuid={person} --clear-groups sh -c 'conda --version; uv --version; uvx -V'")
        assert said.split()[:3] == ["conda", "26.3.2-3", "uv"]
    assert stack.host.run("su - ada -c 'echo $conda_was_here$CONDA_PREFIX$LD_LIBRARY_PATH'") == "yes\n"
    assert {
        ("package", "python3-venv"),
        ("tree", "/opt/uv"),
        ("data", "/opt/miniforge3"),
        ("file", "/usr/local/bin/conda"),
        ("file", "/usr/local/bin/uv"),
        ("file", "/etc/profile.d/gpubox-conda.sh"),
    } <= receipt(stack, "conda")


def test_a_person_can_write_into_nobody_elses_conda(stack: Stack) -> None:
    loose = r"find /opt/miniforge3 /opt/uv ! -type l \( ! -user root -o -perm /022 \)"
    assert stack.host.run(loose) == ""
    settings = yaml.safe_load(stack.host.run("cat /opt/miniforge3/condarc.d/gpubox.yml"))
    assert settings["pkgs_dirs"] == ["/opt/miniforge3/pkgs", "~/.conda/pkgs"]


def test_another_version_keeps_environments_and_what_stopped_is_done_again(stack: Stack) -> None:
    stack.host.run("mkdir -p /opt/miniforge3/envs/course; touch /srv/breaks-down")
    newer = stack.miniforge("26.5.3-0")
    stack.refused("conda", **newer)
    stack.host.run("rm /srv/breaks-down /usr/local/bin/conda; echo mine >/usr/local/bin/conda")
    done = stack.play("conda", **newer)
    assert "/usr/local/bin/conda: there already" in done.stdout
    assert stack.host.run("cat /usr/local/bin/conda; rm /usr/local/bin/conda") == "mine\n"
    said = stack.host.run("/opt/miniforge3/bin/conda; ls /opt/miniforge3/envs; ls -A /opt")
    assert said.split() == ["conda", "26.5.3-0", "course", "miniforge3", "uv"]

    stack.host.run("rm -r /opt/miniforge3; touch /srv/breaks-down")
    stack.refused("conda", **newer)
    stack.host.run("rm /srv/breaks-down")
    stack.run("conda", **newer)
    assert stack.host.run("conda") == "conda 26.5.3-0\n"


def test_an_installer_with_another_checksum_is_not_run(stack: Stack) -> None:
    before = stack.host.run("conda")
    assert "checksum" in stack.refused("conda", gpubox_miniforge_checksum_x86_64="sha256:" + "0" * 64)
    assert stack.host.run("conda") == before


def test_a_miniforge_that_gpubox_did_not_make_stays(stack: Stack) -> None:
    stack.host.run("mv /opt/miniforge3 /opt/ours; mkdir /opt/miniforge3")
    assert "gpubox_conda: false" in stack.refused("conda", "--check")
    stack.host.run("rmdir /opt/miniforge3; mv /opt/ours /opt/miniforge3")


# --- cuda ------------------------------------------------------------------------------------------------------------


def test_nobody_has_a_toolkit_who_did_not_ask_for_it(stack: Stack) -> None:
    told = "su - ada -c 'command -v nvcc; echo $LD_LIBRARY_PATH; PATH=/usr/local/cuda-12.9/bin:$PATH; nvcc'"
    assert stack.host.run(told) == "\nrelease 12.9\n"
    assert stack.host.run("ls -d /usr/local/cuda-*").split() == ["/usr/local/cuda-12.9"]


def test_versions_come_and_stay_side_by_side(stack: Stack) -> None:
    stack.run("cuda", gpubox_cuda=["12.9", "13.0"])
    both = "for one in 12.9 13.0; do /usr/local/cuda-$one/bin/nvcc; done; readlink -f /usr/local/cuda"
    assert stack.host.run(both) == "release 12.9\nrelease 13.0\n/usr/local/cuda-13.0\n"
    said = " ".join(stack.play("cuda").stdout.split())
    assert "CUDA 13.0: here, but not in gpubox_cuda, so it stays" in said
    assert "sudo apt purge cuda-toolkit-13-0" in said
    assert receipt(stack, "cuda") == {("package", "cuda-toolkit-12-9"), ("package", "cuda-toolkit-13-0")}


def test_a_toolkit_that_is_not_there_or_brings_a_driver_is_refused(stack: Stack) -> None:
    assert "does not have it. It has: 12.9, 13.0, 13.1." in stack.refused("cuda", gpubox_cuda=["11.8"])
    assert "cuda-drivers" in stack.refused("cuda", gpubox_cuda=["13.1"])
    assert "installed" not in stack.host.run("dpkg-query --show --showformat='${Status}' cuda-drivers 2>&1 || true")


# --- containers ------------------------------------------------------------------------------------------------------

# The bed's disk and cgroups are not what podman would take by itself.
RUN = "STORAGE_DRIVER=vfs podman run --rm --cgroups=disabled --network=none --device nvidia.com/gpu=all local/tiny"
IMPORT = "STORAGE_DRIVER=vfs podman import --quiet /tmp/tiny.tar local/tiny"
LOOK = f"sh -c 'id -u; ls /dev/nvidia0; cat {LIBRARIES}/libcuda.so.{DRIVER}'"
TINY = """
set -e
apt-get install --yes --quiet busybox-static
cd $(mktemp -d)
mkdir -p bin dev etc proc sys tmp usr/lib
cp /bin/busybox bin/
for name in sh ls cat id; do ln -s busybox bin/$name; done
tar -cf /tmp/tiny.tar .
chmod 644 /tmp/tiny.tar
"""


def test_containers_of_root_a_person_and_the_jobs_user_see_the_gpu(stack: Stack) -> None:
    stack.host.run(TINY)
    homes = {"root": "/root", "ada": "/home/ada", "gpubox-job": "/var/lib/gpubox-job"}
    for person, home in homes.items():
        alone = f"env -i -C / HOME={home} PATH=$PATH setpriv --reuid={person} --regid={person} --init-groups sh -c"
        said = stack.host.run(f"{alone} {shlex.quote(f'{IMPORT} && {RUN} {LOOK}')}").split()
        assert said[-3:] == ["0", "/dev/nvidia0", "libcuda"], person


def test_a_new_driver_is_described_at_the_next_run_and_not_before_the_restart(stack: Stack) -> None:
    newer = "580.126.09"
    stack.host.run(f"cd {LIBRARIES}; echo new >libcuda.so.{newer}; ln -sf libcuda.so.{newer} libcuda.so.1")
    assert stack.run("containers") == 0, "another driver is loaded still"
    stack.host.run(f"sed -i s/{DRIVER}/{newer}/ {MACHINE}/proc/driver/nvidia/version")
    assert stack.run("containers", "--check") == 1
    assert stack.run("containers") == 1
    assert f"libcuda.so.{newer}" in stack.host.run("cat /run/cdi/nvidia.yaml")


def test_docker_keeps_its_owners_settings_and_its_containers(stack: Stack) -> None:
    docker = {"gpubox_containers": "docker"}
    stack.host.run("""mkdir /etc/docker; echo '{"log-driver": "journald", "ip": "0.0.0.0"}' >/etc/docker/daemon.json""")
    done = stack.play("containers", **docker)
    assert 'ip is "0.0.0.0", where gpubox would say "127.0.0.1"' in done.stdout.replace('\\"', '"')
    settings = {"log-driver": "journald", "ip": "0.0.0.0", "features": {"cdi": True}}
    assert json.loads(stack.host.run("cat /etc/docker/daemon.json")) == settings

    before = stack.host.run("echo 4d1 >/srv/containers; rm /etc/docker/daemon.json; cat /run/docker.pid")
    done = stack.play("containers", **docker)
    assert "a restart would end 1 container(s) that run" in " ".join(done.stdout.split())
    assert stack.host.run("cat /run/docker.pid; rm /srv/containers") == before
    assert stack.run("containers", **docker) == 1
    assert stack.host.run("cat /run/docker.pid") != before
    assert json.loads(stack.host.run("cat /etc/docker/daemon.json")) == {"ip": "127.0.0.1", "features": {"cdi": True}}


def test_the_receipt_has_what_came_with_the_engine(stack: Stack) -> None:
    assert {
        ("package", "podman"),
        ("package", "nvidia-container-toolkit"),
        ("file", "/etc/apt/sources.list.d/gpubox-container-toolkit.sources"),
        ("file", "/etc/apt/keyrings/gpubox-container-toolkit.asc"),
    } <= receipt(stack, "containers")
