"""What a local Ray takes of the machine: cores that it may use, folders, a Python that a shell can start."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lawm.cluster import machine

ROOT = Path(__file__).parents[2]


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine of 32 cores without limits; where its control groups lie."""
    monkeypatch.setattr(os, "cpu_count", lambda: 32)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(32)))
    monkeypatch.setattr(machine, "CGROUPS", tmp_path)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    return tmp_path


def test_cores_are_those_that_one_may_use(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.cores() == 32
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert machine.cores() == 6
    for odd in ("", "0", "many"):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", odd)
        assert machine.cores() == 32
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert machine.cores() == 2


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"cpu.max": "max 100000"}, 32),
        ({"cpu.max": "400000 100000"}, 4),
        ({"cpu.max": "50000 100000"}, 1),
        ({"slurm/job/cpu.max": "300000 100000", "slurm/cpu.max": "max 100000"}, 3),
        ({"slurm/job/cpu.max": "max 100000", "slurm/cpu.max": "200000 100000"}, 2),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 32),
        ({"cpu/cpu.cfs_quota_us": "800000", "cpu/cpu.cfs_period_us": "100000"}, 8),
    ],
)
def test_control_groups_of_both_versions(
    files: dict[str, str], wanted: int, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in files.items():
        (large / name).parent.mkdir(parents=True, exist_ok=True)
        (large / name).write_text(text + "\n")
    real = Path.read_text
    group = "0::/slurm/job\n"
    monkeypatch.setattr(Path, "read_text", lambda p, *a, **k: group if str(p) == "/proc/self/cgroup" else real(p))
    assert machine.cores() == wanted
    (large / "memory.max").write_text("1000000000\n")
    assert machine.memory_bytes() == min(10**9, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def test_a_real_affinity_mask_is_kept_to() -> None:
    script = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    script += "from lawm.cluster.machine import cores; print(cores())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout == "1\n", done.stderr


ODD_PLACES = """
import os, shutil, sys, tempfile
place = tempfile.mkdtemp(prefix="a place [1] ")
os.chdir(place)
for name in ("av.py", "queue.py", "ray.py", "lawm.py"):
    open(name, "w").write("raise SystemExit('the wrong module')")
if sys.argv[1] == "gone":
    shutil.rmtree(place)
import ray
from lawm.cluster.session import start
with start(num_cpus=1, object_store_bytes=100 * 2**20):
    @ray.remote
    def found():
        import av, queue, lawm, sys
        return [os.path.dirname(lawm.__file__), sys.executable, sys.prefix]
    ours, executable, prefix = ray.get(found.remote(), timeout=60)
    assert os.path.samefile(prefix, sys.prefix) and " " not in executable, (prefix, executable)
import lawm
assert os.path.samefile(ours, os.path.dirname(lawm.__file__)), ours
if sys.argv[1] == "gone":
    try: os.getcwd()
    except FileNotFoundError: pass
    else: raise SystemExit("not where we were")
else:
    assert os.getcwd() == os.path.realpath(place)
print("ok")
"""


@pytest.fixture(scope="module")
def odd_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a virtual environment in whose path there are a space, a bracket and a quote."""
    at = tmp_path_factory.mktemp("odd") / "my venv's [x]"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(at)], check=True)
    site = next((at / "lib").glob("python3*")) / "site-packages"
    shared = [path for path in sys.path if path.endswith("site-packages")]
    lines = [f"import site; site.addsitedir({path!r})" for path in shared]
    (site / "beside.pth").write_text("\n".join([*lines, str(ROOT)]) + "\n")
    return at / "bin/python"


@pytest.mark.parametrize("working", ["there", "gone"])
def test_odd_paths_shadowing_modules_and_a_deleted_working_folder(
    odd_python: Path, working: str, tmp_path: Path
) -> None:
    """Ray waits six minutes for workers that cannot start; here they do."""
    (tmp_path / "odd.py").write_text(ODD_PLACES)
    began = time.monotonic()
    environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH", "HOME")}
    asked = [str(odd_python), str(tmp_path / "odd.py"), working]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout + done.stderr
    assert time.monotonic() - began < 100


def test_jobs_do_not_import_from_the_working_folder(tmp_path: Path) -> None:
    for name in ("av.py", "queue.py", "ray.py", "yaml.py", "lawm.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong module')")
    done = subprocess.run([sys.executable, "-m", "jobs", "--version"], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.startswith("lawm "), done.stdout + done.stderr


BESIDE_ANOTHER = """
import io, socket
from contextlib import ExitStack, suppress
from lawm.cluster.session import start
from lawm.cluster.submit import Submission, submit
with ExitStack() as held:
    for port in (52365, 8265, 6379, 10001):  # those that every Ray would like to have
        with suppress(OSError):  # another Ray has it already
            taken = held.enter_context(socket.socket())
            taken.bind(("0.0.0.0", port))
            taken.listen()
    with start(num_cpus=2, object_store_bytes=100 * 2**20, include_dashboard=True) as session:
        said = io.StringIO()
        job, status = submit(Submission("echo it ran", ".", session.dashboard), out=said)
        assert status == 0 and "it ran" in said.getvalue(), (status, said.getvalue())
print("ok")
"""


def test_jobs_run_while_another_ray_holds_its_ports(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text(BESIDE_ANOTHER)
    (tmp_path / "folder").mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | {"PYTHONPATH": str(ROOT)}
    asked = [sys.executable, str(tmp_path / "beside.py")]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=150, env=environment, cwd=tmp_path / "folder")
    assert done.returncode == 0 and done.stdout.endswith("ok\n"), done.stdout[-2000:] + done.stderr[-2000:]


def test_there_need_be_no_home_and_no_user_name() -> None:
    """Under a user id that the machine does not know Ray Train would not even be imported."""
    asked = ["unshare", "--user", "--map-user=54321", "--map-group=54321"]
    if subprocess.run([*asked, "true"], capture_output=True).returncode:
        pytest.skip("this system makes no user namespaces")
    script = "import lawm.cluster.fit, getpass, os; print(getpass.getuser(), os.path.isdir(os.path.expanduser('~')))"
    alone = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT)}
    done = subprocess.run([*asked, sys.executable, "-c", script], capture_output=True, text=True, env=alone)
    assert done.stdout == "uid54321 True\n", done.stderr
