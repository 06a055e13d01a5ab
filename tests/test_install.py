"""install.sh: every refusal, the detection of a Jetson, and the way through each mode.

The script itself runs for real, on a copy of the few files that it needs. What it calls (Python's venv and pip, uname,
df, id) is real where that is cheap, and otherwise a program put in its place through EDGE_PYTHON, PATH or --root.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from edge.system import identify

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest

REPOSITORY = Path(__file__).parents[1]
SYSTEM_PATH = "/usr/bin:/bin"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="install.sh needs bash")

# Stands for a Python whose venv and pip cost nothing: both only note that they were called.
FAKE_PYTHON = r"""#!/bin/sh
bench='@BENCH@'
printf '%s\n' "$*" >> "$bench/calls"
case "$1 $2" in
"-m venv")
  for folder; do :; done
  mkdir -p "$folder/bin" && touch "$folder/pyvenv.cfg" && cp "$0" "$folder/bin/python"
  ;;
"-m pip")
  for last; do :; done
  words="$bench/pip-says"
  [ "$last" != pycuda ] || words="$bench/pip-says-of-pycuda"
  if [ -e "$words" ]; then
    cat "$words"
    exit 1
  fi
  printf '#!/bin/sh\necho edge $* >> "%s/calls"; echo edge 0.1.0\n' "$bench" > "${0%/*}/edge"
  chmod +x "${0%/*}/edge"
  ;;
"-m "*)
  echo "running $*"
  [ ! -e "$bench/failing" ] || ! grep -qw "$2" "$bench/failing"
  ;;
"-c "*base_prefix*) echo "$3" ;;
*) PYTHONPATH="$bench/modules" exec '@PYTHON@' "$@" ;;
esac
"""


# The Python of the tests, with a venv that borrows its pip: unpacking one takes several seconds.
REAL_PYTHON = r"""#!/bin/sh
case "$1 $2" in
"-m venv")
  for folder; do :; done
  '@PYTHON@' -m venv --without-pip "$folder" && ln -s '@PIP@' "$folder"/lib/python3*/site-packages/
  ;;
"-c "*base_prefix*) echo "$3" ;;
*) exec '@PYTHON@' "$@" ;;
esac
"""


@dataclass(frozen=True)
class Bench:
    """A copy of the repository's files, a folder in front of PATH, and a Python that costs nothing."""

    folder: Path

    @property
    def repository(self) -> Path:
        return self.folder / "a clone"

    @property
    def venv(self) -> Path:
        return self.repository / ".venv"

    @property
    def python(self) -> Path:
        return self.folder / "fake python" / "python"

    def program(self, name: str, text: str) -> Path:
        path = self.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "PATH": f"{self.folder / 'bin'}:{SYSTEM_PATH}",
            "HOME": str(self.folder),
            "PIP_CONFIG_FILE": os.devnull,
            **environment,
        }
        command = ["bash", str(self.repository / "install.sh"), *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=variables, capture_output=True, text=True, timeout=120, check=False
        )

    def run_fake(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.run(*arguments, EDGE_PYTHON=str(self.python), **environment)

    def calls(self) -> list[str]:
        """What was called since the last time, less the questions that the script asks of a Python."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.unlink(missing_ok=True)
        return [line.replace(str(self.repository), "REPO") for line in lines if line.startswith(("-m", "edge"))]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    for name in ("install.sh", "pyproject.toml", "hatch_build.py", "constraints/jetson.txt", "edge/__init__.py"):
        path = made.repository / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, path)
    for name in ("README.md", "LICENSE"):
        (made.repository / name).touch()
    made.python.parent.mkdir()
    made.python.write_text(FAKE_PYTHON.replace("@BENCH@", str(tmp_path)).replace("@PYTHON@", sys.executable))
    made.python.chmod(0o755)
    # Enough space, whatever this machine has.
    disk_with(made, free_kib=9_000_000)
    return made


def disk_with(bench: Bench, *, free_kib: int) -> None:
    bench.program("df", f"echo Filesystem; echo 'a disk 9999999 1 {free_kib} 1% /mnt/with spaces'")


def assert_refused(result: subprocess.CompletedProcess[str], *words: str, code: int = 1) -> None:
    """One line on stderr that says what is wrong, and the exit code."""
    assert result.returncode == code, result
    assert re.fullmatch(r"install\.sh: error: [^\n]+\n", result.stderr), result.stderr
    for word in words:
        assert word in result.stderr


# ---- the script as text ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["install.sh", ".ci/run", "tests/aarch64/run.sh", "tests/containers/run.sh"])
def test_is_executable_and_parses(name: str) -> None:
    assert os.access(REPOSITORY / name, os.X_OK)
    subprocess.run(["bash", "-n", str(REPOSITORY / name)], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("name", ["install.sh", ".ci/run", "tests/aarch64/run.sh", "tests/containers/run.sh"])
def test_passes_shellcheck(name: str) -> None:
    subprocess.run(["shellcheck", str(REPOSITORY / name)], check=True)


def test_runs_under_sh_too(bench: Bench) -> None:
    result = subprocess.run(
        ["sh", str(bench.repository / "install.sh"), "--help"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_mode(bench: Bench, flag: str) -> None:
    result = bench.run(flag)
    assert (result.returncode, result.stderr) == (0, "")
    for word in ("demo", "test", "check", "uninstall", "--offline DIR", "EDGE_PYTHON"):
        assert word in result.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        pytest.param(["--frobnicate"], "--frobnicate", id="option"),
        pytest.param(["domo"], "'domo'", id="mode"),
        pytest.param(["demo", "test"], "demo or test", id="two modes"),
        pytest.param(["--offline"], "--offline needs a folder", id="no folder"),
        pytest.param(["--offline", "nowhere"], "there is no such folder", id="absent folder"),
        pytest.param(["--root", ""], "--root needs a folder", id="empty name"),
    ],
)
def test_usage_errors(bench: Bench, arguments: list[str], word: str) -> None:
    assert_refused(bench.run(*arguments), word, code=2)
    assert not bench.venv.exists()


# ---- what it refuses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "word"),
    [
        ("2.7.18", "too old"),
        ("3.1.5", "too old"),
        ("3.9.20", "too old"),
        ("3.14.0", "too new"),
        ("4.0.0", "too new"),
    ],
)
def test_wrong_python(bench: Bench, version: str, word: str) -> None:
    python = bench.program("some-python", f"echo {version}")
    assert_refused(bench.run(EDGE_PYTHON=str(python)), f"Python {version}", word, "3.10 to 3.13", "EDGE_PYTHON")
    assert not bench.venv.exists()


@pytest.mark.parametrize("mode", ["demo", "check"])
def test_wrong_python_in_every_mode(bench: Bench, mode: str) -> None:
    python = bench.program("some-python", "echo 3.8.18")
    assert_refused(bench.run(mode, EDGE_PYTHON=str(python)), "too old")


@pytest.mark.parametrize("version", ["3.10.0", "3.13.9"])
def test_right_python(bench: Bench, version: str) -> None:
    python = bench.program("some-python", f'case "$2" in *base_prefix*) echo "$3";; *) echo {version};; esac')
    result = bench.run("check", EDGE_PYTHON=str(python))
    assert result.returncode == 0, result.stderr
    assert f"Python {version} ({python})" in result.stdout


def test_takes_the_first_python_that_will_do(bench: Bench) -> None:
    bench.program("python3", "echo 3.9.2")
    bench.program("python3.13", "exit 127")  # as the shims of pyenv do
    python = bench.program("python3.12", 'case "$2" in *base_prefix*) echo "$3";; *) echo 3.12.4;; esac')
    result = bench.run("check")
    assert f"Python 3.12.4 ({python})" in result.stdout


@pytest.mark.parametrize(
    ("name", "word"), [("absent-python", "there is no such command"), ("broken-python", "does not run")]
)
def test_python_that_is_not_one(bench: Bench, name: str, word: str) -> None:
    bench.program("broken-python", "exit 1")
    assert_refused(bench.run(EDGE_PYTHON=name), name, word)


def test_python_without_venv(bench: Bench) -> None:
    python = bench.program("debian-python", 'case "$2" in *ensurepip*) exit 1;; *) echo 3.11.2;; esac')
    assert_refused(bench.run(EDGE_PYTHON=str(python)), "sudo apt install python3.11-venv")
    assert not bench.venv.exists()


def test_offline_folder_without_wheels(bench: Bench) -> None:
    (bench.folder / "wheels").mkdir()
    assert_refused(bench.run_fake("--offline", "wheels"), str(bench.folder / "wheels"), "no wheels", "--help")
    assert bench.calls() == []


def test_disk_too_small(bench: Bench) -> None:
    disk_with(bench, free_kib=300_000)
    assert_refused(bench.run_fake(), "not enough disk space", "about 1500 MiB are needed", "292 MiB are free")
    assert not bench.venv.exists()


@pytest.mark.parametrize("text", ["exit 1", "echo nothing that it knows"], ids=["fails", "unknown format"])
def test_disk_unknown_is_no_reason_to_stop(bench: Bench, text: str) -> None:
    bench.program("df", text)
    assert bench.run_fake("check").returncode == 0


def test_sudo_is_refused(bench: Bench) -> None:
    bench.program("id", "echo 0")
    assert_refused(bench.run_fake(SUDO_USER="ada"), "sudo", "as ada")


@pytest.mark.parametrize("environment", [{}, {"SUDO_USER": "root"}], ids=["container", "root from root"])
def test_root_is_not_refused(bench: Bench, environment: dict[str, str]) -> None:
    bench.program("id", "echo 0")
    assert bench.run_fake("check", **environment).returncode == 0


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints/jetson.txt"])
def test_half_a_repository(bench: Bench, name: str) -> None:
    (bench.repository / name).unlink()
    assert_refused(bench.run_fake(), f"{name} is missing", "clone it again")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ERROR: Could not install: HTTPSConnectionPool(host='x'): Max retries exceeded", "registry cannot be reached"),
        ("ProxyError('Cannot connect to proxy.')", "--offline DIR"),
        ("ERROR: 403 Client Error: Forbidden for url: https://x", "registry cannot be reached"),
        ("  ERROR: No matching distribution found for numba>=0.61", "has no numba>=0.61 for Python"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "the disk is full"),
        ("noise\nERROR: something new\nerror: gave-up", "pip failed: ERROR: something new"),
        ("  OSError: Readme file does not exist\n  note: see above", "pip failed: OSError: Readme file does not exist"),
        ("no words that it knows", "pip failed: no words that it knows"),
    ],
)
def test_pip_fails(bench: Bench, words: str, expected: str) -> None:
    (bench.folder / "pip-says").write_text(words)
    result = bench.run_fake()
    assert_refused(result, expected, str(bench.venv / "edge-install.log"))
    assert words in (bench.venv / "edge-install.log").read_text()
    assert "would be made" in bench.run_fake("check").stdout


@pytest.fixture
def python(bench: Bench) -> str:
    """A Python whose pip is real."""
    pip = pytest.importorskip("pip")
    script = bench.folder / "real python"
    script.write_text(REAL_PYTHON.replace("@PYTHON@", sys.executable).replace("@PIP@", str(Path(pip.__file__).parent)))
    script.chmod(0o755)
    return str(script)


@pytest.mark.slow
def test_offline_folder_that_lacks_a_wheel(bench: Bench, python: str) -> None:
    wheels = bench.folder / "some wheels"
    wheels.mkdir()
    (wheels / "unrelated-1.0-py3-none-any.whl").touch()
    result = bench.run("--offline", "some wheels", EDGE_PYTHON=python)
    assert_refused(result, f"--offline {wheels}: no wheel for hatchling", "suits Python 3.")


@pytest.mark.slow
def test_registry_that_refuses_the_connection(bench: Bench, python: str) -> None:
    # Port 9 (discard) of this machine: closed.
    result = bench.run(EDGE_PYTHON=python, PIP_INDEX_URL="https://127.0.0.1:9/simple", PIP_DEFAULT_TIMEOUT="2")
    assert_refused(result, "registry cannot be reached", "--offline DIR")


# ---- the way through -------------------------------------------------------------------------------------------------


def test_install_then_nothing_to_do(bench: Bench) -> None:
    first = bench.run_fake()
    assert (first.returncode, first.stderr) == (0, "")
    assert "next: ./install.sh demo" in first.stdout
    venv, pip, version, _ = bench.calls()
    assert venv == "-m venv REPO/.venv"
    assert pip.startswith("-m pip install ")
    assert pip.endswith("-e .[host]")
    assert version == "edge --version"
    again = bench.run_fake()
    assert again.returncode == 0
    assert "up to date" in again.stdout
    assert bench.calls() == ["edge --version"]


def test_offline_names_the_folder_and_no_index(bench: Bench) -> None:
    (bench.folder / "the wheels").mkdir()
    (bench.folder / "the wheels" / "x-1-py3-none-any.whl").touch()
    assert bench.run_fake("--offline", "the wheels").returncode == 0
    assert f"--no-index --find-links {bench.folder}/the wheels -e .[host]" in bench.calls()[1]


def test_unfinished_venv_is_made_anew(bench: Bench) -> None:
    bench.run_fake()
    (bench.venv / "edge-install.stamp").unlink()
    (bench.venv / "left over").touch()
    bench.calls()
    result = bench.run_fake()
    assert "making .venv again" in result.stdout
    assert bench.calls()[0] == "-m venv REPO/.venv"
    assert not (bench.venv / "left over").exists()


def test_moved_repository_is_made_anew(bench: Bench) -> None:
    bench.run_fake()
    moved = Bench(bench.folder / "moved")
    moved.folder.mkdir()
    shutil.copytree(bench.repository, moved.repository, symlinks=True)
    disk_with(moved, free_kib=9_000_000)
    assert ".venv is up to date" in bench.run_fake("check").stdout
    assert ".venv would be made" in moved.run("check", EDGE_PYTHON=str(bench.python)).stdout


def test_changed_dependencies_are_brought_up_to_date(bench: Bench) -> None:
    bench.run_fake()
    bench.calls()
    with (bench.repository / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert "up to date" in bench.run_fake().stdout
    assert [line.split()[:2] for line in bench.calls() if line.startswith("-m")] == [["-m", "pip"]]
    assert bench.run_fake("check").stdout.splitlines()[-1].startswith("install.sh: .venv is up to date")


def test_demo(bench: Bench) -> None:
    result = bench.run_fake("demo")
    assert result.returncode == 0, result.stderr
    assert bench.calls()[-2:] == [
        "edge build --profile host",
        "edge run --profile host --images samples --record runs/demo.json",
    ]


@pytest.mark.parametrize(
    ("failing", "code"), [("", 0), ("ruff", 1), ("mypy", 1), ("pytest", 1), ("ruff mypy pytest", 1)]
)
def test_test_mode_runs_everything_and_pytest_last(bench: Bench, failing: str, code: int) -> None:
    (bench.folder / "failing").write_text(failing)
    result = bench.run_fake("test")
    assert result.returncode == code
    calls = [line for line in bench.calls() if line.startswith("-m") and " venv " not in line]
    assert calls[0].endswith("-e .[dev]")
    assert calls.count("-m mypy") == 1  # beside the others
    calls.remove("-m mypy")
    assert calls[1:] == ["-m ruff check .", "-m ruff format --check .", calls[3]]
    assert re.fullmatch(r"-m pytest -n \d+ --dist worksteal", calls[3])
    assert result.stdout.splitlines()[-1] == f"running {calls[3]}"
    if "ruff" in failing:
        assert "failed: 'ruff check .' 'ruff format --check .'" in result.stderr
    assert ("running -m mypy\ninstall.sh: error: failed: mypy\n" in result.stderr) == ("mypy" in failing)


def test_development_tools_stay_when_another_mode_follows(bench: Bench) -> None:
    bench.run_fake()
    bench.calls()
    bench.run_fake("test")
    assert bench.calls()[1].endswith("-e .[dev]")
    bench.run_fake("demo")
    assert not any(" pip " in line for line in bench.calls())


# ---- uninstall -------------------------------------------------------------------------------------------------------


def test_uninstall(bench: Bench) -> None:
    bench.run_fake()
    assert "removed" in bench.run("uninstall").stdout
    assert not bench.venv.exists()
    assert (bench.repository / "pyproject.toml").exists()
    again = bench.run("uninstall")
    assert again.returncode == 0
    assert "nothing to remove" in again.stdout


@pytest.mark.parametrize("mode", ["", "uninstall"])
def test_somebody_elses_folder_is_left_alone(bench: Bench, mode: str) -> None:
    bench.venv.mkdir()
    (bench.venv / "thesis.tex").touch()
    assert_refused(bench.run_fake(*mode.split()), "is not a virtual environment")
    assert (bench.venv / "thesis.tex").exists()


def test_uninstall_removes_a_link_and_not_what_it_points_to(bench: Bench) -> None:
    target = bench.folder / "target"
    (target / "bin").mkdir(parents=True)
    bench.venv.symlink_to(target)
    assert bench.run("uninstall").returncode == 0
    assert not bench.venv.is_symlink()
    assert (target / "bin").exists()


# ---- on a Jetson -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Jetson:
    """A bench that looks like a Jetson: a tree for --root, with modules that its Python can see."""

    bench: Bench

    @property
    def root(self) -> Path:
        return self.bench.folder / "root"

    def put(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def module(self, name: str, text: str) -> None:
        path = self.bench.folder / "modules" / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)

    def become(self, machine: str, files: dict[str, str]) -> None:
        """Another machine: with these files instead of a Jetson's."""
        self.bench.program("uname", f"echo {machine}")
        for name in ("proc", "etc", "run"):
            shutil.rmtree(self.root / name, ignore_errors=True)
        for name, text in files.items():
            self.put(name, text)

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return self.bench.run(*arguments, "--root", str(self.root), **environment)


CV2 = """
__version__ = "4.8.0"
CAP_GSTREAMER = 1800
class videoio_registry:
    hasBackend = staticmethod(lambda backend: {answer})
"""


@pytest.fixture
def jetson(bench: Bench) -> Jetson:
    made = Jetson(bench)
    bench.program("uname", "echo aarch64")
    made.put("proc/device-tree/compatible", "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0")
    made.put("proc/device-tree/model", "NVIDIA Jetson AGX Orin Developer Kit\0")
    made.put("etc/nv_tegra_release", "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64\n")
    python = made.root / "usr/bin/python3"
    python.parent.mkdir(parents=True)
    shutil.copy(bench.python, python)
    made.module("tensorrt", '__version__ = "10.3.0"')
    made.module("numpy", '__version__ = "1.26.4"')
    made.module("cv2", CV2.format(answer="True"))
    made.module("pycuda", 'VERSION_TEXT = "2024.1"')
    # What `pip install --no-deps -e .` leaves behind, as far as the script reads it.
    metadata = bench.folder / "modules" / "jetson_edge-0.1.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(
        "Metadata-Version: 2.4\nName: jetson-edge\nVersion: 0.1.0\n"
        "Requires-Dist: msgspec>=0.18.6\n"
        "Requires-Dist: numpy>=1.26; extra == 'host'\n"
        "Requires-Dist: opencv-python-headless>=4.9; extra == 'host'\n"
        "Requires-Dist: jetson-edge[host]; extra == 'dev'\n"
        "Requires-Dist: ruff>=0.8; extra == 'dev'\n"
        "Requires-Dist: winonly; sys_platform == 'win32'\n"
    )
    return made


def test_check_prints_what_the_jetson_has(jetson: Jetson) -> None:
    jetson.put("usr/local/cuda/bin/nvcc", "#!/bin/sh\necho 'Cuda compilation tools, release 12.6, V12.6.68'\n")
    (jetson.root / "usr/local/cuda/bin/nvcc").chmod(0o755)
    result = jetson.run("check")
    assert (result.returncode, result.stderr) == (0, "")
    lines = [" ".join(line.split()[1:]) for line in result.stdout.splitlines()]
    for line in (
        "Jetson: NVIDIA Jetson AGX Orin Developer Kit",
        "L4T 36.4.3",
        f"CUDA 12.6 ({jetson.root}/usr/local/cuda/bin/nvcc)",
        "tensorrt 10.3.0",
        "cv2 4.8.0, GStreamer yes",
        "numpy 1.26.4",
        "pycuda 2024.1",
    ):
        assert line in lines
    assert not jetson.bench.venv.exists()


@pytest.mark.parametrize(
    ("module", "text", "expected"),
    [
        ("cv2", CV2.format(answer="False"), "GStreamer no, so no CSI camera: sudo apt install libopencv-python"),
        ("cv2", "raise ImportError('numpy.core.multiarray failed to import')", "broken: numpy.core.multiarray failed"),
        ("cv2", "import os; os.abort()", "broken: the interpreter crashed"),
        ("numpy", "raise AttributeError", "broken: AttributeError"),
        ("tensorrt", None, "missing: sudo apt install python3-libnvinfer"),
        ("pycuda", None, "missing"),
    ],
    ids=["no GStreamer", "wrong NumPy", "crash", "no words", "no TensorRT", "no PyCUDA"],
)
def test_check_says_what_is_wrong_with_a_module(jetson: Jetson, module: str, text: str | None, expected: str) -> None:
    if text is None:
        (jetson.bench.folder / "modules" / f"{module}.py").unlink()
    else:
        jetson.module(module, text)
    result = jetson.run("check")
    assert result.returncode == 0, result.stderr
    (line,) = [line for line in result.stdout.splitlines() if re.search(rf":   {module} ", line)]
    assert expected in line


@pytest.mark.parametrize(
    ("machine", "files"),
    [
        ("x86_64", {"proc/device-tree/compatible": "nvidia,p3701-0005\0nvidia,tegra234\0"}),
        ("aarch64", {"proc/device-tree/compatible": "raspberrypi,5-model-b\0brcm,bcm2712\0"}),
        ("aarch64", {}),
    ],
    ids=["x86", "Raspberry Pi", "server"],
)
def test_other_machines_are_no_jetsons(jetson: Jetson, machine: str, files: dict[str, str]) -> None:
    jetson.become(machine, files)
    assert "not a Jetson" in jetson.run("check", EDGE_PYTHON=str(jetson.bench.python)).stdout
    assert machine == "x86_64" or not identify(jetson.root).is_jetson


@pytest.mark.parametrize(
    "files",
    [
        {"run/host/device-tree/compatible": "nvidia,p3767-0005-super\0nvidia,tegra234\0"},
        {"proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0"},
        {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1, BOARD: generic, EABI: aarch64\n"},
    ],
    ids=["container with the host's tree", "model alone", "release alone"],
)
def test_the_rule_for_a_jetson_is_that_of_edge(jetson: Jetson, files: dict[str, str]) -> None:
    jetson.become("aarch64", files)
    assert "install.sh: Jetson:" in jetson.run("check").stdout
    assert identify(jetson.root).is_jetson


def test_a_build_of_an_image_says_what_the_machine_is(jetson: Jetson) -> None:
    jetson.become("aarch64", {})
    assert "install.sh: Jetson: unknown module" in jetson.run("check", EDGE_MACHINE="jetson").stdout
    assert_refused(jetson.run("check", EDGE_MACHINE="orin"), "EDGE_MACHINE is jetson or host, not 'orin'", code=2)


def test_jetpack_5_is_too_old(jetson: Jetson) -> None:
    (jetson.root / "usr/bin/python3").write_text("#!/bin/sh\necho 3.8.10\n")
    assert_refused(jetson.run(), "Python 3.8.10, too old", "JetPack 6 or 7")


@pytest.mark.parametrize(
    ("numpy", "pin"),
    [
        ("1.26.4", "numpy==1.26.4"),
        ("1.21.5", "numpy>=1.26,<2"),
        (None, "numpy>=1.26,<2"),
    ],
    ids=["JetPack 7", "Ubuntu 22.04", "none"],
)
def test_numpy_of_the_jetson_is_kept(jetson: Jetson, numpy: str | None, pin: str) -> None:
    text = "raise ImportError('none')" if numpy is None else f"__version__ = {numpy!r}"
    jetson.module("numpy", text)
    assert jetson.run().returncode == 0
    assert (jetson.bench.venv / "edge-numpy.txt").read_text() == f"{pin}\n"
    assert any("-c REPO/.venv/edge-numpy.txt" in line for line in jetson.bench.calls())


@pytest.mark.parametrize(
    ("mode", "has_cv2", "expected"),
    [
        ("", True, ["msgspec>=0.18.6", "numpy>=1.26"]),
        ("", False, ["msgspec>=0.18.6", "numpy>=1.26", "opencv-python-headless>=4.9"]),
        ("test", True, ["msgspec>=0.18.6", "numpy>=1.26", "ruff>=0.8"]),
    ],
    ids=["JetPack's OpenCV", "no OpenCV", "development"],
)
def test_packages_on_a_jetson(jetson: Jetson, mode: str, has_cv2: bool, expected: list[str]) -> None:
    if not has_cv2:
        jetson.module("cv2", "raise ImportError('none')")
    assert jetson.run(*mode.split()).returncode == 0
    assert (jetson.bench.venv / "edge-requirements.txt").read_text().splitlines() == expected
    venv, edge, rest = [line for line in jetson.bench.calls() if re.match(r"-m (venv|pip)", line)]
    assert venv == "-m venv --system-site-packages REPO/.venv"
    assert edge.endswith("--no-deps -e .")
    assert "-c constraints/jetson.txt" in rest


@pytest.mark.parametrize(
    ("version", "cv2", "pin"),
    [
        ("3.10.12", CV2.format(answer="True"), "numpy>=1.26,<2"),
        ("3.12.3", CV2.format(answer="True"), "numpy==2.1.0"),
        ("3.12.3", "raise ImportError('numpy.core.multiarray failed to import')", "numpy>=1.26,<2"),
    ],
    ids=["JetPack 6", "JetPack 7", "JetPack 7, and OpenCV does not import"],
)
def test_numpy_2_gives_way_where_jetpack_needs_numpy_1(jetson: Jetson, version: str, cv2: str, pin: str) -> None:
    jetson.module("numpy", "__version__ = '2.1.0'")
    jetson.module("cv2", cv2)
    python = jetson.root / "usr/bin/python3"
    python.write_text(
        f'#!/bin/sh\ncase "$*" in *version_info*) echo {version};; *) "{jetson.bench.python}" "$@";; esac\n'
    )
    assert jetson.run().returncode == 0
    assert (jetson.bench.venv / "edge-numpy.txt").read_text() == f"{pin}\n"
    own = [line for line in jetson.bench.calls() if line.endswith("edge-numpy.txt numpy")]
    assert bool(own) == ("<2" in pin)  # before the packages are chosen, so that JetPack's OpenCV imports again


@pytest.mark.parametrize(
    ("log", "cure"),
    [
        (
            "src/cpp/curand.hpp:5:10: fatal error: curand.h: No such file or directory",
            "curand.h is missing: sudo apt install libcurand-dev-12-6",
        ),
        (
            "cuda.hpp:14:10: fatal error: cuda.h: No such file or directory",
            "cuda.h is missing: sudo apt install cuda-cudart-dev-12-6",
        ),
        ("x.c:1: fatal error: Python.h: No such file or directory", "sudo apt install python3-dev"),
        ("error: command 'aarch64-linux-gnu-g++' failed: No such file or directory", "sudo apt install g++"),
        ("/usr/bin/ld: cannot find -lcurand: No such file", "libcurand.so is missing: sudo apt install libcurand-dev"),
        ("x.c:1: fatal error: zlib.h: No such file or directory", "zlib.h is missing"),
        ("nobody knows", "The last line of the log: nobody knows"),
    ],
)
def test_what_the_build_of_pycuda_misses_is_named(jetson: Jetson, log: str, cure: str) -> None:
    (jetson.bench.folder / "modules" / "pycuda.py").unlink()
    jetson.put("usr/local/cuda/bin/nvcc", "#!/bin/sh\necho 'Cuda compilation tools, release 12.6, V12.6.68'\n")
    (jetson.root / "usr/local/cuda/bin/nvcc").chmod(0o755)
    (jetson.bench.folder / "pip-says-of-pycuda").write_text(log)
    result = jetson.run()
    assert result.returncode == 0, result.stderr
    assert cure in result.stdout


def test_a_copy_elsewhere_does_not_need_the_checkout(bench: Bench) -> None:
    result = bench.run_fake("--into", "copy")
    assert (result.returncode, result.stderr) == (0, "")
    assert "next: copy/bin/edge --help" in result.stdout
    _venv, pip, *_ = bench.calls()
    assert pip.endswith(" .[host]")
    assert " -e" not in pip
    assert not bench.venv.exists()
    assert_refused(bench.run_fake("demo", "--into", "copy"), "'demo' works in .venv, without --into", code=2)


def test_jetson_without_nvcc_goes_on_without_pycuda(jetson: Jetson) -> None:
    if shutil.which("nvcc", path=SYSTEM_PATH):
        pytest.skip("this machine has an nvcc")
    (jetson.bench.folder / "modules" / "pycuda.py").unlink()
    result = jetson.run()
    assert (result.returncode, result.stderr) == (0, "")
    assert "no nvcc, so no PyCUDA" in result.stdout
    assert not any(line.endswith(" pycuda") for line in jetson.bench.calls())
    assert "up to date" in jetson.run().stdout


def test_new_jetpack_makes_the_venv_anew(jetson: Jetson) -> None:
    jetson.run()
    jetson.put("etc/nv_tegra_release", "# R38 (release), REVISION: 4.0, GCID: 1, BOARD: generic\n")
    assert "making .venv again" in jetson.run().stdout


# ---- next to the wheels of a bundle
# -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Wheels:
    """A bundle's folder of wheels, with a blank and a quote in its path, and a home that is empty."""

    bench: Bench

    @property
    def folder(self) -> Path:
        return self.bench.folder / "a bundle's" / "wheels"

    @property
    def home(self) -> Path:
        return self.bench.folder / ".local" / "share" / "edge"

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        variables = {
            "PATH": f"{self.bench.folder / 'bin'}:{SYSTEM_PATH}", "HOME": str(self.bench.folder),
            "EDGE_PYTHON": str(self.bench.python), **environment,
        }  # fmt: skip
        return subprocess.run(
            ["bash", str(self.folder / "install.sh"), *arguments], cwd=self.bench.folder, env=variables,
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def active(self) -> str:
        return str((self.home / "venv").readlink())


@pytest.fixture
def wheels(bench: Bench) -> Wheels:
    made = Wheels(bench)
    for name in ("install.sh", "constraints/jetson.txt"):
        (made.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, made.folder / name)
    for name in ("jetson_edge-0.1.0-py3-none-any.whl", "pip-26.3-py3-none-any.whl", "msgspec-0.22.0-cp310-none.whl"):
        (made.folder / name).write_bytes(b"wheel")
    return made


def test_wheels_are_installed_for_this_user(wheels: Wheels) -> None:
    result = wheels.run()
    assert (result.returncode, result.stderr) == (0, "")
    assert "ready: edge 0.1.0 in" in result.stdout
    venv = wheels.home / wheels.active()
    assert (wheels.home / "venv" / "bin" / "edge").is_file()
    command = wheels.bench.folder / ".local" / "bin" / "edge"
    assert command.readlink() == wheels.home / "venv" / "bin" / "edge"
    made, pip, edge = wheels.bench.calls()[:3]
    # Without ensurepip, which a bare Ubuntu does not have; pip comes out of its own wheel.
    assert made == f"-m venv --without-pip {venv}"
    for call in (pip, edge):
        assert f"--no-index --find-links {wheels.folder}" in call
    assert pip.endswith(" pip")
    assert edge.endswith(f"{wheels.folder}/jetson_edge-0.1.0-py3-none-any.whl[host]")
    assert "up to date" in wheels.run().stdout
    assert not any("-m pip" in call for call in wheels.bench.calls())


def test_nothing_is_written_beside_the_wheels(wheels: Wheels) -> None:
    """A bundle on a device is read-only: its files are shared with others by hard links."""
    before = sorted(wheels.folder.rglob("*"))
    assert wheels.run("--offline", str(wheels.folder)).returncode == 0
    assert sorted(wheels.folder.rglob("*")) == before


def test_new_wheels_replace_the_old_ones_in_one_step(wheels: Wheels) -> None:
    seen = []
    for content in (b"one", b"two", b"three"):
        (wheels.folder / "jetson_edge-0.1.0-py3-none-any.whl").write_bytes(content)
        assert wheels.run().returncode == 0
        seen.append(wheels.active())
    assert len(set(seen)) == 3
    # The one before stays, in case somebody still runs it.
    assert sorted(f"venvs/{path.name}" for path in (wheels.home / "venvs").iterdir()) == sorted(seen[1:])
    assert wheels.run().returncode == 0
    assert (wheels.home / seen[1]).is_dir()


def test_a_failed_installation_leaves_what_was_there(wheels: Wheels) -> None:
    assert wheels.run().returncode == 0
    before = wheels.active()
    (wheels.folder / "jetson_edge-0.1.0-py3-none-any.whl").write_bytes(b"new")
    (wheels.bench.folder / "pip-says").write_text("ERROR: No matching distribution found for msgspec>=9")
    assert_refused(wheels.run(), "no wheel for msgspec>=9 that suits Python")
    assert wheels.active() == before
    assert (wheels.home / "venv" / "bin" / "edge").is_file()
    (wheels.bench.folder / "pip-says").unlink()
    assert wheels.run().returncode == 0
    assert wheels.active() != before


def test_the_registry_client_is_installed_where_it_lies_there(wheels: Wheels) -> None:
    (wheels.folder / "oras-0.2.43-py3-none-any.whl").write_bytes(b"wheel")
    assert wheels.run().returncode == 0
    assert wheels.bench.calls()[2].endswith("/jetson_edge-0.1.0-py3-none-any.whl[host,registry]")


def test_somebody_elses_command_stays(wheels: Wheels) -> None:
    command = wheels.bench.folder / ".local" / "bin" / "edge"
    command.parent.mkdir(parents=True)
    command.write_text("another edge")
    result = wheels.run()
    assert result.returncode == 0
    assert "is not ours and stays" in result.stdout
    assert command.read_text() == "another edge"


def test_another_home(wheels: Wheels) -> None:
    place = wheels.bench.folder / "an 'odd' place"
    assert wheels.run("--home", str(place)).returncode == 0
    assert (place / "venv" / "bin" / "edge").is_file()
    assert not (wheels.bench.folder / ".local").exists()
    assert wheels.run("uninstall", "--home", str(place)).returncode == 0
    assert not (place / "venvs").exists()


def test_wheels_are_uninstalled(wheels: Wheels) -> None:
    assert wheels.run().returncode == 0
    (wheels.home / "history.jsonl").write_text("kept")
    assert wheels.run("uninstall").returncode == 0
    assert sorted(path.name for path in wheels.home.iterdir()) == ["history.jsonl", "install.lock"]
    assert not (wheels.bench.folder / ".local" / "bin" / "edge").is_symlink()


@pytest.mark.parametrize("mode", ["demo", "test"])
def test_modes_that_need_a_checkout(wheels: Wheels, mode: str) -> None:
    assert_refused(wheels.run(mode), "needs a copy of the repository", code=2)


def test_home_is_not_for_a_checkout(bench: Bench) -> None:
    assert_refused(bench.run("--home", str(bench.folder)), "--home is for the wheels of a bundle", code=2)


def test_wheels_that_are_not_all_there(wheels: Wheels) -> None:
    (wheels.folder / "constraints" / "jetson.txt").unlink()
    assert_refused(wheels.run(), "not all the files of a bundle's wheels")
    (wheels.folder / "jetson_edge-0.1.0-py3-none-any.whl").unlink()
    assert_refused(wheels.run(), "not a whole copy of the repository")


def test_wheels_on_a_jetson(jetson: Jetson) -> None:
    wheels = Wheels(jetson.bench)
    for name in ("install.sh", "constraints/jetson.txt"):
        (wheels.folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(REPOSITORY / name, wheels.folder / name)
    for name in ("jetson_edge-0.1.0-py3-none-any.whl", "pip-26.3-py3-none-any.whl"):
        (wheels.folder / name).write_bytes(b"wheel")
    result = wheels.run("--root", str(jetson.root), EDGE_PYTHON="")
    assert (result.returncode, result.stderr) == (0, "")
    venv, _pip, edge, rest = [line for line in jetson.bench.calls() if re.match(r"-m (venv|pip)", line)]
    assert venv.startswith("-m venv --system-site-packages --without-pip ")
    assert edge.endswith(f"--no-deps {wheels.folder}/jetson_edge-0.1.0-py3-none-any.whl")
    assert "--no-index" in rest
    assert "-c constraints/jetson.txt" in rest


# ---- what is next to the script -------------------------------------------------------------------------------------


@pytest.mark.parametrize("python_version", ["3.10", "3.12"])
def test_constraints_pin_every_dependency_within_its_range(python_version: str) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    lines = (REPOSITORY / "constraints" / "jetson.txt").read_text().splitlines()
    pins = {}
    for line in lines:
        if line and not line.startswith("#"):
            pin = requirements.Requirement(line)
            if pin.marker is None or pin.marker.evaluate({"python_version": python_version}):
                assert pin.name not in pins, f"{pin.name} is pinned twice"
                pins[pin.name.lower()] = next(iter(pin.specifier)).version
    for text in [*project["dependencies"], *project["optional-dependencies"]["host"]]:
        requirement = requirements.Requirement(text)
        # NumPy is pinned by the script, to the one that is there.
        if requirement.name != "numpy":
            assert requirement.specifier.contains(pins[requirement.name.lower()]), text


def test_readme_of_the_model_has_its_digests() -> None:
    text = (REPOSITORY / "models" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `([^`]+)` \| `([0-9a-f]{64})` \|$", text, flags=re.MULTILINE))
    assert set(rows) == {"efficientnet_lite0.onnx", "imagenet_classes.txt"}
    for name, digest in rows.items():
        assert hashlib.sha256((REPOSITORY / "models" / name).read_bytes()).hexdigest() == digest


def test_readme_of_the_samples_has_every_picture_and_known_classes() -> None:
    text = (REPOSITORY / "samples" / "README.md").read_text()
    rows = dict(re.findall(r"^\| `([^`]+\.jpg)` \| [^|]+ \| `([^`]+)`", text, flags=re.MULTILINE))
    assert set(rows) == {path.name for path in (REPOSITORY / "samples").glob("*.jpg")}
    classes = (REPOSITORY / "models" / "imagenet_classes.txt").read_text().splitlines()
    assert set(rows.values()) <= set(classes)
