"""What contains a process, and how its limits are lifted, on the board rk3588_container with the marks of each program.

Paths and names are those that the programs' own documents, sources and public reports show."""

from collections.abc import Callable, Mapping

import pytest

from trilithon.board.doctor import Finding, findings
from trilithon.board.snapshot import read_board
from trilithon.board.sysfs import Machine

Plant = Callable[..., Machine]

MASK = "902 800 0:63 / /sys/firmware ro,relatime - tmpfs tmpfs ro\n"


def root(lower: str, *more: str) -> dict[str, str]:
    overlay = f"900 800 0:61 / / rw,relatime - overlay overlay rw,lowerdir={lower}\n"
    return {"/proc/self/mountinfo": overlay + MASK + "".join(more)}


def hosts(source: str) -> str:
    return f"905 900 179:2 {source} /etc/hosts rw,relatime - ext4 /dev/mmcblk0p2 rw\n"


def environment(**variables: str) -> dict[str, str]:
    return {"/proc/self/environ": "".join(f"{name}={value}\0" for name, value in variables.items())}


CONTAINERD = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/7/fs"
K3S = "/var/lib/rancher/k3s/agent/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots/7/fs"
STORAGE = "/var/lib/containers/storage/overlay/l/ABC"
POD = environment(KUBERNETES_SERVICE_HOST="10.43.0.1")
CONTAINERS: dict[str, tuple[str, Mapping[str, str]]] = {
    "docker by its file": ("docker", {"/.dockerenv": ""}),
    "docker by its cgroup": ("docker", {"/proc/1/cgroup": "12:memory:/docker/0a1b\n0::/\n"}),
    "docker by systemd's scope": ("docker", {"/proc/self/cgroup": "0::/system.slice/docker-0a1b.scope\n"}),
    "podman": ("podman", {"/run/.containerenv": "", **root(STORAGE)}),
    "a pod of containerd": ("kubernetes", POD | root(CONTAINERD)),
    "a pod without service links": ("kubernetes", root(CONTAINERD, hosts("/var/lib/kubelet/pods/1-2/etc-hosts"))),
    "a pod on cgroup v1": ("kubernetes", {"/proc/1/cgroup": "4:memory:/kubepods/besteffort/pod1/0a1b\n"}),
    "a pod of k3s": ("k3s", POD | root(K3S)),
    "a pod of CRI-O": ("cri-o", POD | {"/run/.containerenv": ""} | root(STORAGE)),
    "a pod of CRI-O by its scope": ("cri-o", POD | {"/proc/1/cgroup": "0::/kubepods.slice/crio-0a1b.scope\n"}),
    "an add-on": ("home-assistant", {"/.dockerenv": "", **environment(SUPERVISOR_TOKEN="secret")}),
    "an add-on whose environment is kept by s6": (
        "home-assistant",
        {"/.dockerenv": "", "/run/s6/container_environment/SUPERVISOR_TOKEN": "secret"},
    ),
    "an add-on of a supervised installation": (
        "home-assistant",
        {"/.dockerenv": "", **root("/x", "906 900 8:1 /hassio/addons/data/a /data rw - ext4 /dev/sda1 rw\n")},
    ),
    "nerdctl": ("containerd", root(CONTAINERD)),
    "lxc": ("lxc", {"/proc/1/environ": "container=lxc\0"}),
    "lxc on cgroup v1": ("lxc", {"/proc/1/cgroup": "4:memory:/lxc/ct1\n"}),
    "incus": ("lxc", {"/dev/incus/sock": ""}),
    "systemd-nspawn": ("systemd-nspawn", {"/run/systemd/container": "systemd-nspawn\n"}),
    "one that nobody knows": ("other", {"/run/systemd/container": "wonder\n"}),
    "one with nothing but masks": ("other", root("/some/where")),
}
FIXES = {
    "docker": "systempaths=unconfined",
    "podman": "unmask=ALL",
    "kubernetes": "kubectl patch deployment NAME",
    "k3s": "sudo k3s kubectl",
    "cri-o": "add-scc-to-user privileged",
    "home-assistant": "full_access: true",
    "containerd": "nerdctl run --privileged",
    "lxc": "lxc.mount.entry = /sys/firmware/devicetree",
    "systemd-nspawn": "--bind-ro=/sys/firmware/devicetree",
    "other": "without masked paths",
}


def told(machine: Machine) -> dict[str, Finding]:
    return {finding.id: finding for finding in findings(read_board(machine), machine)}


@pytest.fixture
def contained(plant: Plant) -> Callable[[Mapping[str, str]], Machine]:
    def contained(files: Mapping[str, str]) -> Machine:
        return plant("rk3588_container", without=[] if "/.dockerenv" in files else ["/.dockerenv"], files=files)

    return contained


@pytest.mark.parametrize("name", CONTAINERS)
def test_each_is_known_and_has_its_own_fix(contained: Callable[..., Machine], name: str) -> None:
    kind, files = CONTAINERS[name]
    machine = contained(files)
    board = read_board(machine)
    assert (board.container, board.in_container, board.device_tree_hidden) == (kind, True, True)
    finding = told(machine)["container-hidden"]
    assert FIXES[kind] in finding.fix
    if "/sys/firmware" in files.get("/proc/self/mountinfo", ""):
        assert "(/sys/firmware is masked)" in finding.message


def test_the_fixes_differ() -> None:
    assert len(set(FIXES.values())) == len(FIXES) == len({kind for kind, _ in CONTAINERS.values()})


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"/proc/self/mountinfo": "1 1 0:1 / /var/lib/docker/7/merged rw - overlay overlay rw,lowerdir=/docker/\n"},
        {"/proc/self/mountinfo": "1 1 0:1 / / rw - overlay overlay rw,lowerdir=/media/root-ro\n"},
        {"/proc/2/comm": "kthreadd\n", "/.dockerenv": "", "/run/systemd/container": "docker"},
    ],
)
def test_a_host_is_no_container(contained: Callable[..., Machine], files: Mapping[str, str]) -> None:
    assert read_board(contained(files)).container == ""


UNIT = "/system.slice/trilithon.service"
USER_UNIT = "/user.slice/user-1000.slice/user@1000.service/app.slice/trilithon.service"
CGROUP = "/sys/fs/cgroup"


def test_a_unit_that_hides_the_device_tree(contained: Callable[..., Machine]) -> None:
    mounts = "30 1 0:5 / /proc rw - proc proc rw,hidepid=invisible,subset=pid\n"
    finding = told(contained({"/proc/self/cgroup": f"0::{UNIT}\n", "/proc/self/mountinfo": mounts}))["container-hidden"]
    assert finding.message.startswith("the systemd unit trilithon.service hides the device tree (/proc is mounted with")
    assert finding.fix.startswith("sudo systemctl edit trilithon.service  # [Service] ProcSubset=all")


@pytest.mark.parametrize(
    ("path", "folder", "fix"),
    [
        (UNIT, UNIT, "sudo systemctl set-property trilithon.service MemoryMax=infinity MemoryHigh=infinity"),
        (
            USER_UNIT,
            USER_UNIT,
            "systemctl --user set-property trilithon.service MemoryMax=infinity MemoryHigh=infinity",
        ),
        (USER_UNIT, "/user.slice", "sudo systemctl set-property user.slice MemoryMax=infinity MemoryHigh=infinity"),
        ("/mine/a", "/mine", "echo max | sudo tee /sys/fs/cgroup/mine/memory.max"),
    ],
)
def test_the_unit_or_cgroup_that_limits_is_named(plant: Plant, path: str, folder: str, fix: str) -> None:
    files = {
        "/proc/self/cgroup": f"0::{path}\n",
        f"{CGROUP}{path}/cgroup.procs": "",
        f"{CGROUP}{folder}/memory.max": f"{1 << 31}\n",
    }
    assert told(plant("rk3588_vendor", files=files))["memory-limit"].fix == fix


def test_v1_takes_minus_one(plant: Plant) -> None:
    machine = plant("rk3588_vendor", files={f"{CGROUP}/cpu/cpu.cfs_quota_us": "50000\n"})
    finding = told(machine)["cpu-quota"]
    assert finding.fix == "echo -1 | sudo tee /sys/fs/cgroup/cpu/cpu.cfs_quota_us"
    assert "0.5 CPUs" in finding.message and "on 1 thread;" in finding.message


@pytest.mark.parametrize("kind", sorted(FIXES))
def test_limits_of_a_container_are_lifted_by_its_program(contained: Callable[..., Machine], kind: str) -> None:
    files = next(files for known, files in CONTAINERS.values() if known == kind)
    limits = {
        f"{CGROUP}/cpu.max": "100000 100000\n",
        f"{CGROUP}/memory.max": "1073741824\n",
        f"{CGROUP}/cpuset.cpus.effective": "0-3\n",
    }
    found = told(contained({**files, **limits}))
    fixes = [found[name].fix for name in ("cpu-quota", "memory-limit", "cpu-set", "npu-nodes-absent")]
    assert len(set(fixes)) == 4 and all(fixes)
    program = {"home-assistant": "docker update", "kubernetes": "kubectl", "cri-o": "kubectl", "lxc": "incus"}
    word = program.get(kind, kind if kind not in ("containerd", "systemd-nspawn", "other") else "")
    assert word in found["memory-limit"].fix


def test_a_service_within_a_container_is_lifted_by_its_unit(plant: Plant) -> None:
    files = {
        "/proc/1/environ": "container=lxc\0",
        "/proc/self/cgroup": f"0::{UNIT}\n",
        f"{CGROUP}{UNIT}/memory.max": f"{1 << 30}\n",
    }
    assert "set-property trilithon.service" in told(plant("rk3588_vendor", files=files))["memory-limit"].fix
