"""The state of an installation."""

from typing import Any

from minitron_cli.output import Output
from minitron_cli.units import show_size


def show_report(out: Output, report: dict[str, Any]) -> None:
    """A line for every fact."""
    out.result(report, "\n".join(_lines(report)))


def _lines(report: dict[str, Any]) -> list[str]:
    lines = [f"{name:18} {number}" for name, number in report["versions"].items()]
    lines += [f"{'platform':18} {report['platform']}", f"{'executable':18} {report['executable']}"]
    for device in report["devices"]:
        room = f"{show_size(device['free'])} of {show_size(device['total'])} free"
        facts = f"{device['name']} ({device['description']}), {device['kind']}, {room}"
        lines.append(f"{'device':18} {facts}")
    offload = "yes" if report["gpu_offload"] else "no: this build or machine has no GPU"
    lines += [
        f"{'GPU offload':18} {offload}",
        f"{'CUDA compiler':18} {report['cuda_compiler'] or 'none (nvcc is not on the PATH)'}",
        f"{'threads':18} {report['threads']}",
        f"{'encoders':18} {_encoders(report['encoders'])}",
        f"{'disk free':18} {show_size(report['disk_free_bytes'])}",
        f"{'hub cache':18} {report['hub_cache']}",
        f"{'hub token':18} {'set' if report['hub_token'] else 'not set'}",
    ]
    lines += [f"{name:18} {value}" for name, value in report["environment"].items()]
    lines += [f"{'problem':18} {problem}" for problem in report["problems"]]
    return lines if report["problems"] else [*lines, "all is well"]


def _encoders(report: dict[str, Any]) -> str:
    if not report["instructions"]:
        return f"ggml's: {report['reason']}"
    failed = report["types_of_ggml"]
    others = f"; ggml's for {', '.join(failed)}, which failed the self-check" if failed else ""
    return f"{report['instructions']} kernels{others}"
