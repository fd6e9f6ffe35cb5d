"""What was downloaded, with hashes."""

from minitron_cli.hub.pull import Pulled
from minitron_cli.output import Output
from minitron_cli.units import show_size


def show_pulled(out: Output, pulled: Pulled) -> None:
    """The files with size and SHA-256, and what to do with them."""
    if out.as_json:
        files = [
            {"path": str(path), "bytes": size, "sha256": sha256}
            for path, (sha256, size) in pulled.files.items()
        ]
        out.document({"model": pulled.name, "path": str(pulled.path), "files": files})
        return
    rows = [[path.name, show_size(size), sha256] for path, (sha256, size) in pulled.files.items()]
    out.table(["File", "Size", "SHA-256"], rows)
    out.note(f"in {pulled.path if pulled.checkpoint else pulled.path.parent}")
    verb = "quantize" if pulled.checkpoint else "generate"
    what = "Q4_K_M" if pulled.checkpoint else '"The old house stood"'
    out.note(f"next: minitron {verb} {pulled.name} {what}")
