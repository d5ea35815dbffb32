"""The wheel of a checkout: {"name", "version", "content"}; content is the file, in base64.

gpubox is plain Python without anything to compile, so its wheel is a zip of its sources with a list of them. Made here,
it needs no tool on the computer that Ansible runs on, leaves nothing in the checkout, and the same sources make the
same bytes: their hash is in the version, which therefore says whether anything changed.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import tomllib
import zipfile
from pathlib import Path

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

DOCUMENTATION = """
name: gpubox_wheel
short_description: Makes the wheel of a checkout of gpubox
description:
  - Packs the packages that pyproject.toml names, in the order of their names and without times.
options:
  _terms:
    description: The folder of the checkout.
    required: true
author: gpubox
"""
RETURN = """
_raw:
  description: One for each checkout, with the name of the file, its version and its bytes in base64.
  type: list
  elements: dict
"""
WHEEL = "Wheel-Version: 1.0\nGenerator: gpubox\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
EPOCH = (1980, 1, 1, 0, 0, 0)


def sources(checkout: Path, patterns: list[str]) -> dict[str, bytes]:
    """Path -> content of every file of the packages."""
    folders = sorted({folder for pattern in patterns for folder in checkout.glob(pattern) if folder.is_dir()})
    found = (path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(checkout)): path.read_bytes() for path in found if "__pycache__" not in path.parts}


def metadata(project: dict, version: str) -> str:
    lines = ["Metadata-Version: 2.1", f"Name: {project['name']}", f"Version: {version}"]
    lines.append(f"Requires-Python: {project['requires-python']}")
    lines += [f"Requires-Dist: {each}" for each in project["dependencies"]]
    for extra, needs in project["optional-dependencies"].items():
        lines += [f"Provides-Extra: {extra}", *(f'Requires-Dist: {each}; extra == "{extra}"' for each in needs)]
    return "\n".join(lines) + "\n"


def entry_points(project: dict) -> str:
    lines = [f"{name} = {where}" for name, where in project["scripts"].items()]
    return "\n".join(["[console_scripts]", *lines]) + "\n"


def wheel(checkout: Path) -> dict[str, str]:
    about = tomllib.loads((checkout / "pyproject.toml").read_text())
    project, patterns = about["project"], about["tool"]["setuptools"]["packages"]["find"]["include"]
    files = sources(checkout, patterns)
    found = re.search(r'^__version__ = "(.+)"', files["runner/__init__.py"].decode(), re.MULTILINE)
    digest = hashlib.sha256(repr((sorted(project.items(), key=str), sorted(files.items()))).encode()).hexdigest()
    version = f"{found[1]}+{digest[:12]}"
    info = f"{project['name']}-{version}.dist-info"
    described = {"METADATA": metadata(project, version), "WHEEL": WHEEL, "entry_points.txt": entry_points(project)}
    files |= {f"{info}/{name}": text.encode() for name, text in described.items()}
    files[f"{info}/RECORD"] = "".join(
        f"{line}\n" for line in [*map(_record, files.items()), f"{info}/RECORD,,"]
    ).encode()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o644 << 16
            archive.writestr(entry, content)
    name = f"{project['name']}-{version}-py3-none-any.whl"
    return {"name": name, "version": version, "content": base64.b64encode(packed.getvalue()).decode()}


def _record(item: tuple[str, bytes]) -> str:
    name, content = item
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
    return f"{name},sha256={digest},{len(content)}"


class LookupModule(LookupBase):
    def run(self, terms: list[str], variables: object = None, **options: object) -> list[dict[str, str]]:
        try:
            return [wheel(Path(term).resolve()) for term in terms]
        except (OSError, KeyError, ValueError) as error:
            raise AnsibleError(f"{terms[0]} is no checkout of gpubox: {error}") from error
