"""What the doctor finds on made-up machines, and how it is shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.cli.doctor import render
from edge.diagnostics.doctor import DoctorFinding, DoctorReport, examine
from edge.system.python_env import OptionalDependency, Process, find_dependency, this_process
from edge.telemetry.sources import SOURCES

Grow = Callable[[Mapping[str, object]], Path]

DEPENDENCIES = {
    "numpy": OptionalDependency(version="1.26.4", distributions=("numpy",)),
    "cv2": OptionalDependency(version="4.8.0", gstreamer=True),
    "tensorrt": OptionalDependency(version="10.3.0"),
    "pycuda": OptionalDependency(version="2024.1"),
    "onnxruntime": OptionalDependency(version="1.20.0"),
}
PROCESS = Process(
    version="3.10.12",
    executable="/home/user/.venv/bin/python",
    prefix="/home/user/.venv",
    base_prefix="/usr",
    system_site=True,
    user_id=1000,
    groups=frozenset({1000, 44}),
    free_mib=50_000,
    dependencies=DEPENDENCIES,
)
HOST = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Imagined CPU\nflags\t\t: lm\n",
    "proc/meminfo": "MemTotal:        8388608 kB",
}
JETSON = {
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\nnvidia,tegra234",
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 1",
    "proc/meminfo": "MemTotal:        7802880 kB",
    "proc/cpuinfo": "processor\t: 0\nCPU architecture: 8\nCPU part\t: 0xd42\n",
    "proc/swaps": "Filename Type Size Used Priority\n/swapfile file 8388604 0 -2",
    "etc/group": "root:x:0:\nvideo:x:44:user\n",
    "var/lib/nvpmodel/status": "pmode:0001",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=1 NAME=25W >",
    "sys/class/devfreq/17000000.gpu/min_freq": 306000000,
    "sys/class/devfreq/17000000.gpu/max_freq": 1020000000,
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon1/in1_input": 5000,
    "sys/class/hwmon/hwmon1/curr1_input": 1100,
}
OLD_NANO = {
    "proc/device-tree/compatible": "nvidia,p3450-0000\nnvidia,jetson-nano\nnvidia,tegra210",
    "proc/device-tree/model": "NVIDIA Jetson Nano Developer Kit",
    "etc/nv_tegra_release": "# R32 (release), REVISION: 7.1, GCID: 1",
}
PROFILE = "family: {family}\nbackend: {backend}\nmodel: ../model.onnx\nlabels: ../labels.txt\n"


@pytest.fixture
def grow(tmp_path: Path) -> Grow:
    def write(files: Mapping[str, object]) -> Path:
        for name, content in files.items():
            path = tmp_path / "root" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{content}\n")
        return tmp_path / "root"

    return write


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """A folder with a profile for a host and one for an Orin Nano, and the files that they name."""
    folder = tmp_path / "profiles"
    folder.mkdir()
    (folder / "host.yaml").write_text(PROFILE.format(family="host", backend="onnxruntime"))
    (folder / "orin-nano.yaml").write_text(PROFILE.format(family="orin-nano", backend="tensorrt"))
    (tmp_path / "model.onnx").write_bytes(b"x")
    (tmp_path / "labels.txt").write_text("cat\n")
    return folder


def look(report: DoctorReport, group: str, name: str) -> DoctorFinding:
    found = [f for f in report.findings if (f.group, f.name) == (group, name)]
    assert len(found) == 1, (group, name, report.findings)
    return found[0]


def changed(**fields: object) -> Process:
    return msgspec.structs.replace(PROCESS, **fields)


def with_dependency(name: str, dependency: OptionalDependency | None) -> Process:
    dependencies = {key: value for key, value in DEPENDENCIES.items() if key != name}
    return changed(dependencies=dependencies if dependency is None else dependencies | {name: dependency})


def test_a_jetson_that_is_in_order(grow: Grow, profiles: Path) -> None:
    report = examine(grow(JETSON), [profiles], process=PROCESS)
    assert [f for f in report.findings if f.level != "ok"] == []
    assert report.device.family == "orin-nano"
    assert "JetPack 6.2.1 (L4T 36.4.4), GPU of compute capability 8.7" in look(report, "machine", "system").text
    assert look(report, "machine", "power mode").next_step == "sudo jetson_clocks  (for measurements)"
    assert look(report, "power", "hwmon").text == "works, scope module_input; this one is used"
    assert "tegrastats does not exist" in look(report, "power", "tegrastats").text
    assert look(report, "power", "jtop").text == "only when named explicitly (--power jtop); not installed"
    assert look(report, "profiles", "orin-nano").text == "ready: tensorrt, int8"
    assert look(report, "dependencies", "jtop").text == "not installed; optional"
    assert "jtop" in (look(report, "dependencies", "jtop").next_step or "")


def test_a_host_without_dependencies(grow: Grow, profiles: Path) -> None:
    report = examine(grow(HOST), [profiles], process=changed(dependencies={}))
    for name in ("numpy", "cv2", "onnx", "onnxruntime"):
        finding = look(report, "dependencies", name)
        assert (finding.level, finding.text) == ("problem", "not installed")
        assert "pip install" in (finding.next_step or "")
    assert look(report, "dependencies", "tensorrt").level == "ok"
    host = look(report, "profiles", "host")
    assert (host.level, host.text) == ("problem", "missing: optional dependency onnxruntime")
    other = look(report, "profiles", "orin-nano")
    assert (other.level, other.text) == ("ok", "for orin-nano, this is host")
    assert look(report, "power", "none").level == "ok"


def test_an_old_jetson_is_out_of_scope(grow: Grow) -> None:
    report = examine(grow(OLD_NANO), [], process=PROCESS)
    support = look(report, "machine", "support")
    assert support.level == "problem"
    assert "out of scope" in support.text
    assert support.next_step == "a Jetson Orin or Thor is needed"
    assert look(report, "power", "none").level == "warning"
    assert look(report, "profiles", "none").level == "warning"


@pytest.mark.parametrize(
    ("files", "process", "where", "level", "text", "step"),
    [
        pytest.param(
            {},
            with_dependency("numpy", OptionalDependency(version="2.2.1", distributions=("numpy",))),
            ("dependencies", "numpy"),
            "problem",
            "built for NumPy 1",
            "numpy>=1.26,<2",
            id="numpy-2-on-jetpack-6",
        ),
        pytest.param(
            {},
            with_dependency(
                "cv2", OptionalDependency(version="4.12.0", distributions=("opencv-python",), gstreamer=False)
            ),
            ("dependencies", "cv2"),
            "warning",
            "without GStreamer: no CSI camera",
            "apt install libopencv-python",
            id="pip-opencv",
        ),
        pytest.param(
            {},
            with_dependency(
                "cv2", OptionalDependency(version="4.10", distributions=("opencv-python", "opencv-python-headless"))
            ),
            ("dependencies", "cv2"),
            "warning",
            "several packages",
            "pip uninstall opencv-python opencv-python-headless",
            id="two-opencvs",
        ),
        pytest.param(
            {},
            with_dependency("cv2", OptionalDependency(problem="cv2 is installed but cannot be imported: libGL")),
            ("dependencies", "cv2"),
            "problem",
            "cannot be imported: libGL",
            "again",
            id="broken-optional dependency",
        ),
        pytest.param(
            {"usr/lib/python3.10/dist-packages/tensorrt/__init__.py": ""},
            with_dependency("tensorrt", None),
            ("python", "tensorrt"),
            "problem",
            "this Python cannot import it",
            "--system-site-packages",
            id="tensorrt-not-visible",
        ),
        pytest.param(
            {},
            with_dependency("tensorrt", None),
            ("dependencies", "tensorrt"),
            "problem",
            "not installed",
            "python3-libnvinfer",
            id="no-tensorrt",
        ),
        pytest.param(
            {},
            changed(base_prefix="/opt/conda"),
            ("python", "origin"),
            "warning",
            "not the system's Python (/opt/conda)",
            "/usr/bin/python3 -m venv",
            id="conda",
        ),
        pytest.param(
            {},
            changed(groups=frozenset({1000})),
            ("cameras", "group"),
            "warning",
            "not in the group video",
            "usermod -aG video",
            id="not-in-video",
        ),
        pytest.param(
            {"proc/swaps": "Filename Type Size Used Priority\n/dev/zram0 partition 600000 0 5"},
            PROCESS,
            ("machine", "swap"),
            "warning",
            "only zram",
            "mkswap",
            id="zram-only",
        ),
        pytest.param(
            {"proc/swaps": "Filename Type Size Used Priority"},
            PROCESS,
            ("machine", "swap"),
            "warning",
            "none",
            "mkswap",
            id="no-swap",
        ),
        pytest.param({}, changed(free_mib=100), ("machine", "disk"), "problem", "100 MiB", "free some", id="full-disk"),
        pytest.param(
            {}, changed(free_mib=1000), ("machine", "disk"), "warning", "1000 MiB", "free some", id="low-disk"
        ),
        pytest.param(
            {
                "sys/class/hwmon/hwmon4/name": "soctherm_oc",
                "sys/class/hwmon/hwmon4/oc1_event_cnt": 2,
                "sys/class/hwmon/hwmon4/oc2_event_cnt": 0,
                "sys/class/hwmon/hwmon4/oc3_event_cnt": 9,
            },
            PROCESS,
            ("machine", "throttling"),
            "warning",
            "2 × under-voltage, 9 × peak over-current since boot",
            "power supply",
            id="under-voltage",
        ),
        pytest.param(
            {},
            with_dependency("tensorrt", OptionalDependency(problem="does not import: undefined symbol: _ZN5nvinfer")),
            ("dependencies", "tensorrt"),
            "problem",
            "undefined symbol",
            "sudo apt install --reinstall python3-libnvinfer",
            id="tensorrt-does-not-import",
        ),
        pytest.param(
            {},
            with_dependency(
                "tensorrt", OptionalDependency(problem="does not import: no libnvinfer", distributions=("tensorrt",))
            ),
            ("dependencies", "tensorrt"),
            "problem",
            "it is from PyPI, which has no build for a Jetson",
            "pip uninstall tensorrt; sudo apt install",
            id="tensorrt-from-pypi",
        ),
        pytest.param(
            {"etc/group": "video:x:44:user\nrender:x:104:\n"},
            PROCESS,
            ("cameras", "group"),
            "warning",
            "the group render, which owns render nodes",
            "sudo usermod -aG render $USER",
            id="not-in-render",
        ),
        pytest.param(
            {"etc/group": "video:x:44:\nrender:x:104:\n", ".dockerenv": ""},
            changed(groups=frozenset({1000})),
            ("cameras", "group"),
            "warning",
            "the group video, which owns cameras and GPU nodes and the group render",
            "docker run --group-add 44 --group-add 104",
            id="groups-in-a-container",
        ),
        pytest.param(
            {".dockerenv": "", "etc/nvpmodel.conf": "< POWER_MODEL ID=1 NAME=25W >"},
            PROCESS,
            ("machine", "container"),
            "ok",
            "nvpmodel, jetson_clocks and tegrastats run on the host",
            "",
            id="container",
        ),
        pytest.param(
            {
                "etc/nvpmodel.conf": "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\nCPU_ONLINE CORE_0 1\n",
                "var/lib/nvpmodel/status": "pmode:0002",
                "sys/class/devfreq/17000000.gpu/max_freq": 624750000,
            },
            PROCESS,
            ("machine", "gpu clock"),
            "warning",
            "at most 624 MHz, where the mode MAXN_SUPER allows 1020 MHz",
            "-super configuration",
            id="gpu-held-at-624-mhz",
        ),
        pytest.param(
            {
                "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nGPU MAX_FREQ 612000000\n"
                "< POWER_MODEL ID=1 NAME=25W >\nGPU MIN_FREQ 0\nGPU MAX_FREQ 918000000\n",
                "sys/class/devfreq/17000000.gpu/max_freq": 306000000,
            },
            PROCESS,
            ("machine", "gpu clock"),
            "warning",
            "at most 306 MHz, where the mode 25W allows 918 MHz",
            "sudo nvpmodel -m N",
            id="gpu-below-its-mode",
        ),
    ],
)
def test_traps(
    grow: Grow,
    files: dict[str, object],
    process: Process,
    where: tuple[str, str],
    level: str,
    text: str,
    step: str,
) -> None:
    finding = look(examine(grow(JETSON | files), [], process=process), *where)
    assert finding.level == level
    assert text in finding.text
    assert step in (finding.next_step or "")


def test_a_container_that_sees_too_little_of_a_jetson(grow: Grow) -> None:
    root = grow({".dockerenv": "", "etc/nv_tegra_release": "# R36 (release), REVISION: 4.4, GCID: 1"})
    finding = look(examine(root, [], process=PROCESS), "machine", "container")
    assert finding.level == "warning"
    assert "not seen: the device tree, the power modes, the power mode that is set" in finding.text
    assert (finding.next_step or "").split(" -v ")[1:] == [
        "/sys/firmware/devicetree/base:/run/host/device-tree:ro",
        "/etc/nvpmodel.conf:/etc/nvpmodel.conf:ro",
        "/var/lib/nvpmodel:/var/lib/nvpmodel:ro",
    ]
    for name, text in JETSON.items():
        if name.startswith("proc/device-tree"):
            grow({name.replace("proc/", "run/host/"): text})
    assert examine(root, [], process=PROCESS).device.module == "p3767-0005"


def test_a_clock_that_was_never_set_is_named(grow: Grow) -> None:
    finding = look(examine(grow(HOST), [], process=PROCESS, now_s=86_400.0), "machine", "clock")
    assert finding.level == "problem"
    assert "the clock says 1970-01-02: signatures" in finding.text
    assert "timedatectl" in (finding.next_step or "")


@pytest.mark.parametrize("broken", ["tensorrt", "pycuda"])
def test_a_profile_is_not_ready_with_a_dependency_that_does_not_import(grow: Grow, profiles: Path, broken: str) -> None:
    process = with_dependency(broken, OptionalDependency(version="1.0", problem="does not import: undefined symbol"))
    finding = look(examine(grow(JETSON), [profiles], process=process), "profiles", "orin-nano")
    assert finding.level == "problem"
    assert f"missing: optional dependency {broken}, which does not import" in finding.text


@pytest.mark.parametrize(
    "files",
    [
        pytest.param(JETSON | {"etc/nv_tegra_release": "# R39 (release), REVISION: 2.0, GCID: 1"}, id="jetpack-7"),
        pytest.param(HOST, id="host"),
    ],
)
def test_numpy_2_is_right_elsewhere(grow: Grow, files: dict[str, object]) -> None:
    report = examine(grow(files), [], process=with_dependency("numpy", OptionalDependency(version="2.2.1")))
    assert look(report, "dependencies", "numpy").level == "ok"


def test_cameras(grow: Grow) -> None:
    root = grow(
        {
            "dev/video0": "",
            "dev/video1": "",
            "dev/video10": "",
            "sys/class/video4linux/video0/name": "USB Camera",
            "sys/class/video4linux/video0/index": 0,
            "sys/class/video4linux/video1/name": "USB Camera",
            "sys/class/video4linux/video1/index": 1,
        }
    )
    (root / "dev/v4l/by-id").mkdir(parents=True)
    (root / "dev/v4l/by-id/usb-Maker_Camera_1-video-index0").symlink_to("../../video0")
    report = examine(root, [], process=PROCESS)
    cameras = [(f.name, f.text) for f in report.findings if f.group == "cameras"]
    assert cameras == [
        ("video0", "USB Camera, by-id usb-Maker_Camera_1-video-index0"),
        ("video1", "USB Camera (metadata)"),
        ("video10", "camera"),
    ]


def test_a_thor_without_its_input_sensor_is_a_warning(grow: Grow) -> None:
    rails = {"in1": "VDD_GPU", "in2": "VDD_CPU_SOC_MSS", "in3": "VIN_SYS_5V0"}
    files = {"sys/class/hwmon/hwmon0/name": "ina3221"}
    for channel, label in rails.items():
        files |= {
            f"sys/class/hwmon/hwmon0/{channel}_label": label,
            f"sys/class/hwmon/hwmon0/{channel}_input": "12000",
            f"sys/class/hwmon/hwmon0/curr{channel[2:]}_input": "500",
        }
    finding = look(examine(grow(files), [], process=PROCESS), "power", "hwmon")
    assert (finding.level, finding.value) == ("warning", "partial")


def test_profiles_with_something_missing(grow: Grow, profiles: Path, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").unlink()
    (profiles / "bad.yaml").write_text("family: toaster\n")
    report = examine(grow(HOST), [profiles], process=PROCESS)
    host = look(report, "profiles", "host")
    assert host.level == "problem"
    assert f"missing: model {tmp_path / 'model.onnx'}" in host.text
    assert look(report, "profiles", "orin-nano").level == "warning"
    bad = look(report, "profiles", "bad")
    assert bad.level == "problem"
    assert "bad.yaml:1" in bad.text


def test_a_report_can_be_written_as_json(grow: Grow, profiles: Path) -> None:
    report = examine(grow(JETSON), [profiles], process=PROCESS)
    again = msgspec.json.decode(msgspec.json.encode(report), type=DoctorReport)
    assert again == report


@given(st.binary(max_size=60))
def test_garbage_does_not_stop_the_doctor(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    root = tmp_path_factory.mktemp("root")
    for name in JETSON:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"tegra234\0" if name.endswith("compatible") else garbage)
    assert examine(root, [root / "nowhere"], process=PROCESS).findings


def test_this_process_is_described() -> None:
    process = this_process()
    assert process.version.startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert process.in_venv == (sys.prefix != sys.base_prefix)
    assert process.user_id == os.geteuid()
    assert all(dependency.version or dependency.problem for dependency in process.dependencies.values())


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("raise ImportError('undefined symbol: _ZN8nvinfer1')", "undefined symbol: _ZN8nvinfer1"),
        ("import os; os.abort()", "the interpreter ended with -6"),
        ("", "has no attribute 'Logger'"),
    ],
    ids=["raises", "crashes", "left-over folder"],
)
def test_a_tensorrt_that_does_not_import_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, problem: str
) -> None:
    (tmp_path / "tensorrt").mkdir()
    if content:
        (tmp_path / "tensorrt/__init__.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    found = find_dependency("tensorrt")
    assert found is not None
    assert problem in (found.problem or "")


def test_a_dependency_that_does_not_import_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pycuda.py").write_text("raise ImportError('libcuda.so.1: cannot open shared object file')\n")
    (tmp_path / "jtop.py").write_text("__version__ = '7.9.9'\n")
    monkeypatch.syspath_prepend(tmp_path)
    dependency = find_dependency("pycuda")
    assert dependency is not None
    assert "libcuda.so.1" in (dependency.problem or "")
    versioned = find_dependency("jtop")
    assert versioned is not None
    assert versioned.version == "7.9.9"
    sys.modules.pop("jtop", None)


@pytest.mark.parametrize("plain", [True, False], ids=["ascii", "unicode"])
def test_how_a_report_is_shown(grow: Grow, plain: bool) -> None:
    report = examine(grow(JETSON), [], process=with_dependency("tensorrt", None))
    text = render(report, plain=plain).plain
    assert text.splitlines()[0] == "machine"
    assert f"  {'x  ' if plain else '✗ '}tensorrt" in text
    assert f"{'->' if plain else '→'} sudo apt install python3-libnvinfer" in text
    assert text.splitlines()[-1] == "1 problem, 1 warning"
    assert text.isascii() == plain


@pytest.mark.parametrize("option", [[], ["--json"]], ids=["text", "json"])
def test_the_command_runs_here(option: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edge", "doctor", *option], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout
    if option:
        findings = json.loads(done.stdout)["findings"]
        assert {finding["group"] for finding in findings} >= {"machine", "dependencies", "power"}
        assert {finding["name"] for finding in findings if finding["group"] == "power"} >= {*SOURCES} - {"none"}
    else:
        assert done.stdout.startswith("machine\n")


def test_the_module_of_the_command_imports_no_dependency() -> None:
    code = (
        "import sys, edge.cli.doctor, edge.diagnostics.doctor, edge.system.device, edge.telemetry.sampler;"
        "print([m for m in ('numpy', 'cv2', 'onnx', 'onnxruntime') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
