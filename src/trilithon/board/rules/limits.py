"""Findings about what a container, a pod or a service may use of this machine, and what it hides."""

from collections.abc import Iterator

from trilithon.board.finding import UNTIL_BOOT, UNTIL_LOGOUT, Finding, Rule
from trilithon.board.limits.container import confined_by, device_tree_mask, remedy
from trilithon.board.snapshot import Board
from trilithon.board.sysfs import Machine, format_cpu_list
from trilithon.language import Message
from trilithon.units import format_bytes

__all__ = ["RULES"]


def _until(fix: str) -> str:
    """A cgroup is made anew at each boot; runtimes and systemd keep what they are told."""
    return UNTIL_BOOT if " tee /sys/" in fix else ""


def _quota(board: Board, machine: Machine) -> Iterator[Finding]:
    quota, source = board.limits.cpu_quota, board.limits.cpu_source
    online = sum(len(cluster.cpus) for cluster in board.clusters)
    if quota is not None and (quota < online or not online):
        count = len(board.big_cpus)
        who = confined_by(machine, board.container, source)
        message = Message(
            "{who} gets the time of {quota:g} CPUs ({source}): models run on {count} thread; with more, all of them "
            "are stopped in every tenth of a second",
            plural="{who} gets the time of {quota:g} CPUs ({source}): models run on {count} threads; with more, all of "
            "them are stopped in every tenth of a second",
            who=who,
            quota=quota,
            source=source,
            count=count,
        )
        fix = remedy(machine, board.container, "quota", source)
        yield Finding("cpu-quota", "warning", "CPU", message, fix, until=_until(fix))


def _cpus(board: Board, machine: Machine) -> Iterator[Finding]:
    """Trilithon's server keeps itself to the little cores; its models may use all."""
    online = {cpu for cluster in board.clusters for cpu in cluster.cpus}
    little = {cpu for cluster in board.clusters if cluster.kind == "little" for cpu in cluster.cpus}
    cpuset, allowed = set(board.limits.cpuset or online), set(board.limits.cpus or online)
    if online - cpuset:
        who = confined_by(machine, board.container)
        message = Message(
            "{who} may use cpu{cpus} of cpu{online}",
            who=who,
            cpus=format_cpu_list(sorted(cpuset)),
            online=format_cpu_list(sorted(online)),
        )
        fix = remedy(machine, board.container, "cpus")
        yield Finding("cpu-set", "note", "CPU", message, fix, until=_until(fix))
    elif online - allowed and allowed != little:
        message = Message(
            "this process may use cpu{cpus} of cpu{online}: taskset, or CPUAffinity= of a systemd unit",
            cpus=format_cpu_list(sorted(allowed)),
            online=format_cpu_list(sorted(online)),
        )
        fix = Message("taskset -cp $$  # the CPUs that this shell may use")
        yield Finding("cpu-set", "note", "CPU", message, fix, look=True)


def _memory(board: Board, machine: Machine) -> Iterator[Finding]:
    limit, source = board.limits.memory_bytes, board.limits.memory_source
    if limit is not None:
        free = board.memory_available_bytes
        left = "" if free is None else Message(", {size} of it are left", size=format_bytes(free))
        message = Message(
            "{who} may use {size} ({source}){left}: models have to fit into that",
            who=confined_by(machine, board.container, source),
            size=format_bytes(limit),
            source=source,
            left=left,
        )
        fix = remedy(machine, board.container, "memory", source)
        yield Finding("memory-limit", "warning", "memory", message, fix, until=_until(fix))
    if board.limits.address_space_bytes is not None:
        message = Message(
            "a process may have {size} of addresses (ulimit -v): a larger model cannot be mapped",
            size=format_bytes(board.limits.address_space_bytes),
        )
        fix = Message("ulimit -v unlimited  # a systemd unit: LimitAS=infinity")
        yield Finding("address-space", "warning", "memory", message, fix, until=UNTIL_LOGOUT)


def _hidden(board: Board, machine: Machine) -> Iterator[Finding]:
    if board.device_tree_hidden:
        mask = device_tree_mask(machine)
        message = Message(
            "{who} hides the device tree{mask}: chip and NPU cannot be told, and the vendor runtimes fail",
            who=confined_by(machine, board.container),
            mask=Message(" ({mask})", mask=mask) if mask else "",
        )
        subject = Message("container") if board.container else Message("device tree")
        fix = remedy(machine, board.container, "device_tree")
        yield Finding("container-hidden", "warning", subject, message, fix)


RULES: tuple[Rule, ...] = (_quota, _cpus, _memory, _hidden)
