"""Makes the archives of a release from what tools/build and tools/static left for each architecture.

usage: release.py DIRECTORY BUILD_DIRECTORY ARCHITECTURE...

A zip holds the template and the code of the functions, from BUILD_DIRECTORY/ARCHITECTURE: `sam deploy --guided` deploys it without
Rust. A tar.gz holds the command ecr-transfer, from BUILD_DIRECTORY/static-ARCHITECTURE. The names have the version of Cargo.toml,
which CHANGELOG.md must describe. The same code gives the same archives.
"""

import gzip
import hashlib
import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The first that a zip file can say.
EPOCH = (1980, 1, 1, 0, 0, 0)


def notes(version):
    """The section of CHANGELOG.md on a version."""
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    section = re.search(rf"^## {re.escape(version)}\b.*?\n(.*?)(?=^## |\Z)", changelog, re.MULTILINE | re.DOTALL)
    if section is None:
        sys.exit(f"CHANGELOG.md has no section on {version}, the version in Cargo.toml. Add it, or change the version.")
    return section[1].strip() + "\n"


def archive(path, build):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for source in [*sorted(build.rglob("*")), ROOT / "samconfig.toml", ROOT / "LICENSE"]:
            if source.is_file():
                name = source.relative_to(build) if source.is_relative_to(build) else Path(source.name)
                entry = zipfile.ZipInfo(str(Path(path.stem) / name), EPOCH)
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = (0o755 if source.name == "bootstrap" else 0o644) << 16
                file.writestr(entry, source.read_bytes())


def command(path, build):
    with path.open("wb") as file, gzip.GzipFile("", "wb", mtime=0, fileobj=file) as packed:
        with tarfile.open(fileobj=packed, mode="w") as archive:
            for source, mode in [(build / "ecr-transfer", 0o755), (ROOT / "LICENSE", 0o644)]:
                entry = tarfile.TarInfo(source.name)
                entry.size, entry.mode = source.stat().st_size, mode
                with source.open("rb") as content:
                    archive.addfile(entry, content)


def release(directory, builds, architectures):
    # The first `version` of the manifest is that of the workspace.
    version = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(encoding="utf-8"), re.MULTILINE)[1]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "notes.md").write_text(notes(version), encoding="utf-8")
    sums = []
    for architecture in architectures:
        functions = directory / f"ecr-transfer-{version}-{architecture}.zip"
        archive(functions, builds / architecture)
        program = directory / f"ecr-transfer-{version}-linux-{architecture}.tar.gz"
        command(program, builds / f"static-{architecture}")
        for path in [functions, program]:
            sums.append(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n")
            print(path)
    (directory / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    release(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
