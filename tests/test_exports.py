"""What other programs are told: Prometheus, dcgm-exporter."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from builders import GIB, a_hall, a_reading

from runner.box import exposition
from runner.box.exposition import COUNTER, Family, render
from runner.box.gpus.exports import JobFiles, families
from runner.box.gpus.frames import Xid

LINE = re.compile(r'^[a-z_:][a-z0-9_:]*(\{([a-z_]+="([^"\\\n]|\\["\\n])*",?)*\})? [-+.eE0-9]+$')


def test_a_metric_has_its_help_its_type_and_its_samples() -> None:
    family = Family("x_total", "What\nit is.", COUNTER)
    family.add(1)
    family.add(2.5, {"a": "b"})
    family.add(None, {"a": "absent"})
    empty = Family("y", "Nothing.")
    told = ["# HELP x_total What\\nit is.", "# TYPE x_total counter", "x_total 1", 'x_total{a="b"} 2.5', ""]
    assert render([family, empty]) == "\n".join(told)


def test_labels_are_escaped() -> None:
    family = Family("x", "")
    family.add(1, {"name": 'a"b\\c\nd\udcff'})
    assert render([family]).splitlines()[-1] == 'x{name="a\\"b\\\\c\\nd?"} 1'


def test_what_the_box_tells_is_well_formed_and_absent_is_not_zero(tmp_path: Path) -> None:
    with a_hall(tmp_path) as hall:
        sample = {"memory_used_bytes": GIB, "utilization": 0.0, "throttled_seconds": {"hw_thermal": 1.5}}
        hall.sees(a_reading(sample=sample), xids=[Xid(hall.now, a_reading().bus_id, 31)])
        job = hall.submit(gpus=1, name='the "one"')
        hall.turn()
        text = render(families(hall.daemon, hall.now))
        samples = [line for line in text.splitlines() if not line.startswith("#")]
        assert all(LINE.match(line) for line in samples), samples
        assert len(samples) == len(set(samples))
        assert 'gpubox_gpu_utilization_ratio{gpu="0",uuid="GPU-0000"} 0' in samples
        assert not any("gpubox_gpu_fan_ratio" in line for line in samples)
        assert 'gpubox_gpu_state{gpu="0",uuid="GPU-0000",state="busy"} 1' in samples
        assert any(f'job="{job.id}",job_name="the \\"one\\""' in line for line in samples)
        assert 'gpubox_gpu_xids_total{gpu="0",uuid="GPU-0000",xid="31"} 1' in samples
        assert 'gpubox_jobs{state="starting"} 1' in samples
        assert "gpubox_gpus_known 1" in samples
        hall.daemon.gpus.words = lambda now: "silence"
        assert "gpubox_gpus_known 0" in render(families(hall.daemon, hall.now))
        assert exposition.TYPE.startswith("text/plain")


def test_dcgm_exporter_finds_the_jobs_of_each_gpu(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder = tmp_path / "gpu-jobs"
    umask = os.umask(0o077)  # as the service has it
    request.addfinalizer(lambda: os.umask(umask))
    files = JobFiles(str(folder))
    files.write({0: [7], 1: [9, 8]})
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"0": "7\n", "1": "8\n9\n"}
    assert [oct(os.stat(path).st_mode & 0o777) for path in (folder, folder / "0")] == ["0o755", "0o644"]
    before = os.stat(folder / "0").st_mtime_ns
    files.write({0: [7], 1: [8, 9]})
    assert os.stat(folder / "0").st_mtime_ns == before, "nothing changed"
    files.write({1: [8], 2: []})
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"1": "8\n"}
    JobFiles(str(folder)).write({})
    assert list(folder.iterdir()) == []


def test_the_daemon_knows_who_has_which_index(tmp_path: Path) -> None:
    with a_hall(tmp_path) as hall:
        hall.sees(a_reading("GPU-0000"), a_reading("GPU-0001"))
        job = hall.submit(gpus=2)
        hall.turn()
        assert hall.daemon.gpus.by_index() == {0: [job.id], 1: [job.id]}
