"""Telling machines apart from their files alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from edge.system.device import Device, default_profile, identify

Grow = Callable[[Mapping[str, object]], Path]


@pytest.fixture
def grow(tmp_path: Path) -> Grow:
    def write(files: Mapping[str, object]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else f"{content}\n".encode())
        return tmp_path

    return write


def tree(
    *compatible: str, model: str = "NVIDIA Jetson", l4t: str = "36.4.4", memory_mib: int = 7620
) -> dict[str, object]:
    """Files of a Jetson."""
    major, rest = l4t.split(".", 1)
    return {
        "proc/device-tree/compatible": "\0".join((*compatible, "")).encode(),
        "proc/device-tree/model": model.encode() + b"\0",
        "etc/nv_tegra_release": f"# R{major} (release), REVISION: {rest}, GCID: 1, BOARD: generic, DATE: x",
        "proc/meminfo": f"MemTotal:       {memory_mib * 1024} kB\nMemFree: 1 kB",
        "proc/cpuinfo": "".join(
            f"processor\t: {n}\nmodel name\t: ARMv8 Processor rev 1 (v8l)\nCPU architecture: 8\nCPU part\t: 0xd42\n\n"
            for n in range(6)
        ),
        "proc/sys/kernel/osrelease": "5.15.148-tegra",
    }


ORIN_NANO = tree(
    "nvidia,p3768-0000+p3767-0005-super",
    "nvidia,p3767-0005",
    "nvidia,tegra234",
    model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
)
NVPMODEL = {
    "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet",
    "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\nCPU_ONLINE CORE_0 1\n< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n"
    "< PM_CONFIG DEFAULT=1 >",
}
HOST = {
    "proc/cpuinfo": "processor\t: 0\nmodel name\t: Imagined CPU @ 3 GHz\nflags\t\t: fpu vme lm avx2\n\n"
    "processor\t: 1\nmodel name\t: Imagined CPU @ 3 GHz\nflags\t\t: fpu vme lm avx2\n",
    "proc/meminfo": "MemTotal:        8388608 kB",
    "proc/sys/kernel/osrelease": "6.8.0-generic",
}


def test_everything_about_an_orin_nano(grow: Grow) -> None:
    devfreq = "sys/class/devfreq/17000000.gpu"
    root = grow(ORIN_NANO | NVPMODEL | {f"{devfreq}/min_freq": 1020000000, f"{devfreq}/max_freq": 1020000000})
    assert identify(root) == Device(
        is_jetson=True,
        family="orin-nano",
        model="NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
        module="p3767-0005",
        product="Orin Nano 8GB developer kit",
        soc="tegra234",
        sm="8.7",
        l4t="36.4.4",
        jetpack="6.2.1",
        power_mode="MAXN_SUPER",
        clocks_locked=True,
        cpu="Cortex-A78AE",
        cores=6,
        memory_mib=7620,
        kernel="5.15.148-tegra",
        machine="aarch64",
    )


@pytest.mark.parametrize(
    ("files", "family", "product", "profile"),
    [
        pytest.param(
            tree("nvidia,p3768-0000+p3767-0000-super", "nvidia,tegra234"), "orin-nx", "Orin NX 16GB", "orin-nx", id="nx"
        ),
        pytest.param(
            tree("nvidia,p3509-0000+p3767-0001", "nvidia,tegra234"), "orin-nx", "Orin NX 8GB", "orin-nx", id="nx-8"
        ),
        pytest.param(
            tree("vendor,carrier", "nvidia,p3767-0004", "nvidia,tegra234"),
            "orin-nano",
            "Orin Nano 4GB",
            "orin-nano",
            id="nano-4-on-another-carrier",
        ),
        pytest.param(
            tree("nvidia,p3737-0000+p3701-0000", "nvidia,tegra234", memory_mib=62800),
            "agx-orin",
            "AGX Orin 64GB",
            "orin",
            id="agx-64-that-names-the-first-kit",
        ),
        pytest.param(
            tree("nvidia,p3737-0000+p3701-0099", "nvidia,tegra234"), "agx-orin", None, "orin", id="agx-new-number"
        ),
        pytest.param(
            tree("vendor,box", "nvidia,tegra234", model="NVIDIA Orin Jetson-Small Developer Kit"),
            "agx-orin",
            None,
            "orin",
            id="agx-by-model",
        ),
        pytest.param(
            tree("vendor,box", "nvidia,tegra234", model="Vendor Box (Orin NX)"),
            "orin-nx",
            None,
            "orin-nx",
            id="nx-by-model",
        ),
        pytest.param(
            tree("nvidia,p4071-0000+p3834-0008", "nvidia,tegra264", l4t="38.4.0", memory_mib=125772),
            "thor",
            "Thor T5000",
            "thor",
            id="thor",
        ),
        pytest.param(
            tree("nvidia,p3971-0050+p3834-0005", "nvidia,tegra264", l4t="38.4.0", memory_mib=62000),
            "thor",
            "Thor T4000",
            "thor",
            id="thor-smaller",
        ),
        pytest.param(tree("vendor,x", "nvidia,tegra264", model="Box"), "thor", None, "thor", id="thor-by-chip"),
        pytest.param(HOST, "host", None, "host", id="host"),
        pytest.param({}, "host", None, "host", id="nothing-can-be-read"),
    ],
)
def test_families(grow: Grow, files: dict[str, object], family: str, product: str | None, profile: str) -> None:
    device = identify(grow(files))
    assert (device.family, device.product, device.unsupported) == (family, product, None)
    assert default_profile(device) == profile


@pytest.mark.parametrize(
    ("files", "why"),
    [
        pytest.param(
            tree("nvidia,p3450-0000", "nvidia,jetson-nano", "nvidia,tegra210", l4t="32.7.1"), "Nano and TX1", id="nano"
        ),
        pytest.param(tree("nvidia,p2771-0000", "nvidia,quill", "nvidia,tegra186", l4t="32.7.1"), "TX2", id="tx2"),
        pytest.param(tree("nvidia,p3509-0000+p3668-0000", "nvidia,tegra194", l4t="35.4.1"), "Xavier", id="xavier-nx"),
    ],
)
def test_old_jetsons_are_named_and_out_of_scope(grow: Grow, files: dict[str, object], why: str) -> None:
    device = identify(grow(files))
    assert device.is_jetson
    assert device.family is None
    assert device.unsupported is not None
    assert why in device.unsupported
    assert "JetPack 5 and older are out of scope" in device.unsupported
    assert default_profile(device) is None


def test_an_orin_with_jetpack_5_keeps_its_family(grow: Grow) -> None:
    device = identify(grow(tree("nvidia,p3768-0000+p3767-0005", "nvidia,tegra234", l4t="35.4.1")))
    assert (device.family, device.jetpack) == ("orin-nano", "5.1.2")
    assert device.unsupported == "L4T 35.4.1: JetPack 5 and older are out of scope"


@pytest.mark.parametrize(
    ("files", "why"),
    [
        pytest.param(tree("vendor,x", "nvidia,tegra234", model="Box"), "neither the module number", id="unknown-board"),
        pytest.param(
            {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1"},
            "device tree cannot be read",
            id="container",
        ),
    ],
)
def test_a_jetson_that_cannot_be_told(grow: Grow, files: dict[str, object], why: str) -> None:
    device = identify(grow(files))
    assert (device.is_jetson, device.family) == (True, None)
    assert why in (device.unsupported or "")


@pytest.mark.parametrize(
    ("l4t", "jetpack"),
    [
        ("36.3.0", "6.0"),
        ("36.4.3", "6.2"),
        ("36.4.7", "6.2.1"),
        ("38.2.1", "7.0"),
        ("38.4.0", "7.1"),
        ("39.2.2", "7.2.2"),
        ("99.9.9", None),
    ],
)
def test_jetpack(grow: Grow, l4t: str, jetpack: str | None) -> None:
    device = identify(grow(tree("nvidia,p3767-0005", "nvidia,tegra234", l4t=l4t)))
    assert (device.l4t, device.jetpack) == (l4t, jetpack)


def test_versions_from_the_package_database(grow: Grow) -> None:
    files = tree("nvidia,p3767-0005", "nvidia,tegra234") | {
        "etc/nv_tegra_release": "something new",
        "var/lib/dpkg/status": "Package: nvidia-l4t-core\nStatus: install ok installed\nVersion: 40.1.0-20270101\n\n"
        "Package: nvidia-jetpack\nStatus: install ok installed\nVersion: 8.0+b12\n\n"
        "Package: other\nStatus: deinstall ok config-files\nVersion: 1",
    }
    device = identify(grow(files))
    assert (device.l4t, device.jetpack) == ("40.1.0", "8.0")


@pytest.mark.parametrize(
    ("files", "mode"),
    [
        pytest.param(NVPMODEL, "MAXN_SUPER", id="named"),
        pytest.param(NVPMODEL | {"var/lib/nvpmodel/status": "pmode:0007"}, "7", id="not-in-the-configuration"),
        pytest.param({"var/lib/nvpmodel/status": "pmode:0001"}, "1", id="no-configuration"),
        pytest.param(NVPMODEL | {"var/lib/nvpmodel/status": "???"}, None, id="garbage"),
        pytest.param({"etc/nvpmodel.conf": NVPMODEL["etc/nvpmodel.conf"]}, None, id="default-is-not-assumed"),
    ],
)
def test_power_mode(grow: Grow, files: dict[str, object], mode: str | None) -> None:
    assert identify(grow(ORIN_NANO | files)).power_mode == mode


@pytest.mark.parametrize(
    ("files", "locked"),
    [
        pytest.param({"gpu-gpc-0/min_freq": 5, "gpu-gpc-0/max_freq": 9}, False, id="thor-not-locked"),
        pytest.param({"17000000.ga10b/min_freq": 9, "17000000.ga10b/max_freq": 9}, True, id="locked"),
        pytest.param({"17000000.gpu/min_freq": 9}, None, id="half"),
        pytest.param({"15340000.vic/min_freq": 9, "15340000.vic/max_freq": 9}, None, id="another-engine"),
    ],
)
def test_clocks_locked(grow: Grow, files: dict[str, object], locked: bool | None) -> None:
    root = grow(ORIN_NANO | {f"sys/class/devfreq/{name}": content for name, content in files.items()})
    assert identify(root).clocks_locked is locked


def test_a_host(grow: Grow) -> None:
    device = identify(grow(HOST))
    assert (device.cpu, device.cores, device.memory_mib) == ("Imagined CPU @ 3 GHz", 2, 8192)
    assert (device.machine, device.kernel, device.is_jetson) == ("x86_64", "6.8.0-generic", False)
    assert (device.l4t, device.sm, device.power_mode, device.clocks_locked) == (None, None, None, None)


def test_an_arm_host_is_no_jetson(grow: Grow) -> None:
    files = {
        "proc/device-tree/model": b"Raspberry Pi 5 Model B\0",
        "proc/device-tree/compatible": b"raspberrypi,5-model-b\0brcm,bcm2712\0",
        "proc/cpuinfo": "processor\t: 0\nCPU architecture: 8\nCPU part\t: 0xd0b\n",
        "proc/sys/kernel/arch": "aarch64",
    }
    device = identify(grow(files))
    assert (device.family, device.is_jetson, device.cpu, device.machine) == ("host", False, "Cortex-A76", "aarch64")


@pytest.mark.parametrize(
    "garbage", [b"", b"\0\0\0", b"\xff\xfe\x00", b"tegra", b"9" * 100_000], ids=["", "nul", "bin", "w", "n"]
)
def test_garbage_everywhere_is_survived(grow: Grow, garbage: bytes) -> None:
    root = grow(dict.fromkeys((*ORIN_NANO, *NVPMODEL, "var/lib/dpkg/status", "sys/class/devfreq"), garbage))
    device = identify(root)
    assert device.family == "host"
    assert device.memory_mib is None


@pytest.mark.parametrize("digits", [20, 6000], ids=["long", "very-long"])
def test_numbers_without_end(grow: Grow, digits: int) -> None:
    files = {
        "proc/meminfo": f"MemTotal: {'9' * digits} kB",
        "var/lib/nvpmodel/status": f"pmode:{'9' * digits}",
        "etc/nv_tegra_release": f"# R{'9' * digits} (release), REVISION: {'9' * digits}",
    }
    assert identify(grow(ORIN_NANO | files)).family == "orin-nano"


def test_files_that_are_folders(grow: Grow) -> None:
    root = grow({f"{name}/x": "" for name in ORIN_NANO})
    assert identify(root).family == "host"


def test_this_machine() -> None:
    device = identify()
    assert device.cores is None or device.cores >= 1
    assert device.memory_mib is None or device.memory_mib > 100
