"""Findings of the doctor about the engines' builds."""

from trilithon.board.finding import Finding
from trilithon.engines.table import engines
from trilithon.language import Message, all_of
from trilithon.settings import Configuration

__all__ = ["build_findings"]


def build_findings(configuration: Configuration) -> list[Finding]:
    """An engine's first build for the CPU is the one that is used: it is a finding when that one was compiled without
    instructions of this CPU, and there is then no better one."""
    findings = []
    for engine in engines(configuration):
        builds = [build for build in engine.builds() if "cpu" in build.units and not engine.only_when_named]
        if builds and builds[0].lacks:
            message = Message(
                "{build} was compiled without {lacks}, which this CPU has: prefill can take 2 to 3 times as long",
                build=f"{engine.name}@{builds[0].name}",
                lacks=all_of(builds[0].lacks),
            )
            fix = Message("trilithon engines build  # or Debian's package llama.cpp, from release 14 on")
            findings.append(Finding("dot-product", "warning", "engine", message, fix))
    return findings
