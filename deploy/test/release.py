#!/usr/bin/env python3
"""Checks the files of a release, as somebody reads them who has only these files and the sources.

Usage: deploy/test/release.py DIRECTORY VERSION PROGRAMS HELM ARCH...

PROGRAMS/FLAVOUR/ARCH has the program that was packaged. HELM is the command helm.
"""

import gzip
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
# No directory of compiled Python beside the scripts.
sys.dont_write_bytecode = True
sys.path.insert(0, str(REPOSITORY / "deploy"))
import verify_release

NAME = "kube-audit-forwarder"
# The target of Rust and the name in Debian, by the name in OCI.
ARCHS = {
    "amd64": ("x86_64-unknown-linux-gnu", "amd64"),
    "arm64": ("aarch64-unknown-linux-gnu", "arm64"),
    "s390x": ("s390x-unknown-linux-gnu", "s390x"),
    "ppc64le": ("powerpc64le-unknown-linux-gnu", "ppc64el"),
}
LABELS = "org.opencontainers.image."


# What is wrong. All of it is said, so that one run finds all faults.
wrong: list[str] = []


def check(condition: object, message: object) -> None:
    if not condition:
        wrong.append(str(message))


def run(*command: str) -> str:
    return subprocess.run(command, cwd=REPOSITORY, check=True, capture_output=True, text=True).stdout


class Release:
    def __init__(self, directory: str, version: str, programs: str, helm: str, *archs: str) -> None:
        self.directory, self.version, self.programs = Path(directory), version, Path(programs)
        self.helm, self.archs = str(Path(helm).absolute()), archs
        self.epoch = int(run("git", "log", "-1", "--format=%ct"))
        self.revision = run("git", "rev-parse", "HEAD").strip()

    def archive(self, name: str) -> tarfile.TarFile:
        """Opens an archive, and checks what could differ from run to run."""
        data = (self.directory / name).read_bytes()
        if name.endswith("gz"):
            check(data[4:8] == bytes(4), f"{name}: gzip has a time")
            check(data[3] & 0b1000 == 0, f"{name}: gzip has a file name")
            data = gzip.decompress(data)
        archive = tarfile.open(fileobj=io.BytesIO(data))
        members = archive.getmembers()
        names = [member.name for member in members]
        check(names == sorted(names, key=lambda name: name.split("/")), f"{name}: {names}")
        for member in members:
            owner = (member.uid, member.gid, member.uname, member.gname)
            check(owner == (0, 0, "", ""), f"{name}: {member.name} belongs to {owner}")
            check(member.mtime == self.epoch, f"{name}: {member.name} has the time {member.mtime}")
            mode = 0o755 if member.isdir() or member.name.endswith(f"/{NAME}") else 0o644
            check(member.mode == mode, f"{name}: {member.name} has the mode {member.mode:o}")
            check(member.isdir() or member.isfile(), f"{name}: {member.name} is no file")
        return archive

    def program(self, flavour: str, name: str, arch: str) -> None:
        folder = f"{name}-{self.version}"
        archive = self.archive(f"{folder}-linux-{arch}.tar.gz")
        found = {member.name for member in archive.getmembers() if member.isfile()}
        configs = {path.name for path in (REPOSITORY / "config").glob("*.toml")}
        wanted = {f"{folder}/{file}" for file in [NAME, "LICENSE", "CHANGELOG.md"]}
        check(found == wanted | {f"{folder}/config/{file}" for file in configs}, found)
        packed = archive.extractfile(f"{folder}/{NAME}").read()
        check(packed == (self.programs / flavour / arch / NAME).read_bytes(), "another program")
        debug = self.archive(f"{folder}-linux-{arch}-debug.tar.gz")
        check(debug.getnames() == [f"{NAME}.debug"], debug.getnames())
        package = str(self.directory / f"{name}_{self.version}_{ARCHS[arch][1]}.deb")
        fields = run("dpkg-deb", "--field", package, "Package", "Version", "Architecture").splitlines()
        wanted = [f"Package: {name}", f"Version: {self.version}", f"Architecture: {ARCHS[arch][1]}"]
        check(fields == wanted, f"{package}: {fields}")

    def images(self, flavour: str, name: str, archs: list[str]) -> None:
        """Checks the layout and the content of the images (OCI image-spec 1.0)."""
        file = f"{name}-{self.version}.oci.tar"
        archive = self.archive(file)
        read = lambda path: archive.extractfile(path).read()  # noqa: E731
        check(json.loads(read("oci-layout")) == {"imageLayoutVersion": "1.0.0"}, file)

        def blob(descriptor: dict) -> bytes:
            kind, digest = descriptor["digest"].split(":")
            data = read(f"blobs/{kind}/{digest}")
            check(kind == "sha256" and hashlib.sha256(data).hexdigest() == digest, digest)
            check(len(data) == descriptor["size"], digest)
            return data

        (entry,) = json.loads(read("index.json"))["manifests"]
        check(entry["annotations"][f"{LABELS}ref.name"] == self.version, entry)
        check(entry["mediaType"] == "application/vnd.oci.image.index.v1+json", entry)
        index = json.loads(blob(entry))
        platforms = [it["platform"] for it in index["manifests"]]
        wanted = [{"architecture": arch, "os": "linux"} for arch in archs]
        for it in wanted:
            if it["architecture"] == "arm64":
                it["variant"] = "v8"
        key = lambda it: it["architecture"]  # noqa: E731
        check(sorted(platforms, key=key) == sorted(wanted, key=key), f"{file}: {platforms}")
        blobs = {name for name in archive.getnames() if name.startswith("blobs/sha256/")}
        check(len(blobs) == 1 + 3 * len(archs), f"{file} has other blobs than it names: {blobs}")
        for it in index["manifests"]:
            self.image(file, flavour, name, it["platform"]["architecture"], json.loads(blob(it)), blob)

    def image(self, file: str, flavour: str, name: str, arch: str, manifest: dict, blob: Callable) -> None:
        """Checks one image of the index."""
        config = json.loads(blob(manifest["config"]))
        (layer,) = manifest["layers"]
        about = {
            "version": self.version,
            "revision": self.revision,
            "title": name,
            "licenses": "Apache-2.0",
        }
        for key, value in about.items():
            for place in (manifest["annotations"], config["config"]["Labels"]):
                check(place.get(LABELS + key) == value, f"{file}: {key}: {place}")
        for key in ("source", "url", "documentation", "created", "description"):
            check(config["config"]["Labels"].get(LABELS + key), f"{file} has no {key}")
        check(config["config"]["User"] == "65532:65532", config)
        check(config["config"]["Entrypoint"] == [f"/usr/bin/{NAME}"], config)
        ports = set(config["config"]["ExposedPorts"])
        check(ports == {"3000/tcp", "4443/tcp", "9090/tcp"}, ports)
        check((config["architecture"], config["os"]) == (arch, "linux"), config)
        check(not any("buildah" in label for label in config["config"]["Labels"]), config)

        data = gzip.decompress(blob(layer))
        (diff,) = config["rootfs"]["diff_ids"]
        check(diff == f"sha256:{hashlib.sha256(data).hexdigest()}", diff)
        root = tarfile.open(fileobj=io.BytesIO(data))
        files = {member.name.rstrip("/"): member for member in root.getmembers()}
        for member in files.values():
            check(member.mtime == self.epoch, f"{file}: the time of {member.name}")
            check(member.mode & 0o022 == 0 or member.name.endswith(NAME), f"{file}: {member.name}")
            check(not member.issym() and not member.islnk(), f"{file}: {member.name} is a link")
        packed = root.extractfile(f"usr/bin/{NAME}").read()
        check(packed == (self.programs / flavour / arch / NAME).read_bytes(), "another program")
        spool = files[f"var/lib/{NAME}"]
        owner = (spool.uid, spool.gid, spool.mode & 0o7777)
        check(owner == (65532, 0, 0o770), f"the queue's directory: {owner}")

    def sbom(self, features: str, name: str, arch: str) -> None:
        """The SBOM names the crates that cargo names, and no other. Those of this repository, for
        which cargo shows a path, are the program itself."""
        bom = json.loads((self.directory / f"{name}-{self.version}-linux-{arch}.cdx.json").read_text())
        listed = run(
            *("cargo", "tree", "--locked", "--package", NAME, "--edges", "normal,build"),
            *("--target", ARCHS[arch][0], "--features", features, "--prefix", "none"),
        )
        others = [line for line in listed.splitlines() if line and "(/" not in line]
        wanted = {tuple(line.split(" ")[:2]) for line in [*others, f"{NAME} v{self.version}"]}
        program = bom["metadata"]["component"]
        of_kind = lambda kind: [it for it in bom["components"] if it["type"] == kind]  # noqa: E731
        crates, files = of_kind("library"), of_kind("file")
        found = [(it["name"], f"v{it['version']}") for it in [program, *crates]]
        check(len(found) == len(set(found)), "a crate is named twice")
        check(set(found) == wanted, f"{name}: {set(found) ^ wanted}")
        check(("rdkafka-sys" in dict(found)) == (features == "kafka"), f"{name}: Kafka")
        # Crates of the tests alone, and of no released program.
        for crate in ("proptest", "criterion", "tempfile", "ferro-lumberjack"):
            check(crate not in dict(found), f"{name}: {crate} is for tests")
        locked = (REPOSITORY / "Cargo.lock").read_text()
        for it in crates:
            check(f'checksum = "{it["hashes"][0]["content"]}"' in locked, it["name"])
            check(it.get("licenses"), f"{it['name']} has no licence")
        refs = {it["bom-ref"] for it in [program, *bom["components"]]}
        files = {it["name"]: it for it in files}
        edges = {it["ref"]: it["dependsOn"] for it in bom["dependencies"]}
        reached, open_refs = set(), [f"file:/usr/bin/{NAME}", *(it["bom-ref"] for it in files.values())]
        while open_refs:
            ref = open_refs.pop()
            if ref not in reached:
                reached.add(ref)
                open_refs += edges.get(ref, ())
        check(reached == refs and set(edges) <= refs, f"{name}: {reached ^ refs} is not reached")
        check(len(refs) == 1 + len(bom["components"]), f"{name}: a reference is there twice")
        # The bundle comes from the package that this machine has.
        version = run("dpkg-query", "-W", "-f", "${Version}", "ca-certificates")
        (bundle,) = of_kind("data")
        check((bundle["name"], bundle["version"]) == ("ca-certificates", version), bundle)
        of_bundle = edges["file:/etc/ssl/certs/ca-certificates.crt"]
        check(of_bundle == [bundle["bom-ref"]], f"{name}: the CA bundle is of {of_bundle}")
        properties = {it["name"]: it["value"] for it in program["properties"]}
        check(properties[f"{NAME}:revision"] == self.revision, properties)
        check(properties[f"{NAME}:features"] == (features or "none"), properties)
        check(properties[f"{NAME}:target"] == ARCHS[arch][0], properties)
        print(f"{name} for {arch}: the SBOM names the {len(found)} packages of cargo tree, and {len(files)} files")

    def recorded(self, flavour: str, features: str, arch: str) -> None:
        """The program records the crates that cargo builds for it, with the versions of Cargo.lock."""

        def tree(edges: str) -> set[tuple[str, str]]:
            lines = run(
                *("cargo", "tree", "--locked", "--package", NAME, "--edges", edges),
                *("--target", ARCHS[arch][0], "--features", features, "--prefix", "none", "--format", "{p}"),
            ).splitlines()
            return {tuple(line.split(" ")[:2]) for line in lines if line}

        packages = verify_release.recorded((self.programs / flavour / arch / NAME).read_bytes())
        of = [(it["name"], f"v{it['version']}") for it in packages]
        linked = {name for name, it in zip(of, packages) if it.get("kind") != "build"}
        check(len(of) == len(set(of)), f"{flavour}: a crate is recorded twice")
        for what, found, wanted in (
            ("all", set(of), tree("normal,build")),
            ("linked", linked, tree("normal,no-proc-macro")),
        ):
            check(found == wanted, f"{flavour}: {what}: {sorted(found ^ wanted)}")
        lock = tomllib.loads((REPOSITORY / "Cargo.lock").read_text())["package"]
        locked = {(it["name"], f"v{it['version']}", "checksum" in it) for it in lock}
        for name, it in zip(of, packages):
            check((*name, it["source"] == "crates.io") in locked, f"{flavour}: {it} is not in Cargo.lock")
            # A reader of the format needs indices of packages, and one root.
            needed = it.get("dependencies", [])
            check(needed == sorted(set(needed)) and all(index < len(of) for index in needed), it)
        check([it["name"] for it in packages if it.get("root")] == [NAME], f"{flavour}: the root")
        # The debug file names the sources that were compiled, whatever cargo says.
        debug = (self.programs / flavour / arch / f"{NAME}.debug").read_bytes()
        # A stand-in for a program of another architecture has none.
        if not debug.startswith(b"\x7fELF"):
            return
        sources = rb"/cargo/registry/src/[^/\0]+/([A-Za-z0-9_-]+?)-(\d+\.\d+\.\d[^/\0]*)/"
        compiled = {(name.decode(), f"v{version.decode()}") for name, version in re.findall(sources, debug)}
        check(len(compiled) > 50, f"{flavour}: only {len(compiled)} crates are in the debug file")
        check(compiled <= linked, f"{flavour}: compiled and not recorded: {sorted(compiled - linked)}")
        print(f"{flavour}: the program records {len(of)} crates, {len(linked)} of them linked")

    def chart(self) -> None:
        source = REPOSITORY / "deploy/chart"
        name = re.search("^name: *(.*)$", (source / "Chart.yaml").read_text(), re.M).group(1)
        archive = self.archive(f"{name}-{self.version}.tgz")
        packed = {
            member.name.removeprefix(f"{name}/"): archive.extractfile(member).read()
            for member in archive.getmembers()
            if member.isfile()
        }
        tracked = run("git", "ls-files", "-z", "deploy/chart").split("\0")[:-1]
        wanted = {file.removeprefix("deploy/chart/"): REPOSITORY / file for file in tracked}
        check(set(packed) == set(wanted), set(packed) ^ set(wanted))
        check({"Chart.yaml", "values.yaml", "values.schema.json"} <= set(packed), set(packed))
        about = packed.pop("Chart.yaml").decode()
        check(f"\nversion: {self.version}\n" in about, about)
        check(f'\nappVersion: "{self.version}"\n' in about, about)
        for file, data in packed.items():
            check(data == wanted[file].read_bytes(), f"{file} of the chart is another")

        # Helm itself packs the same files, and renders the same objects from the package.
        package = self.directory / f"{name}-{self.version}.tgz"
        render = lambda chart: run(self.helm, "template", "relay", str(chart))  # noqa: E731
        objects = render(package)
        check(objects == render(source) and f":{self.version}" in objects, "Helm renders others")
        with tempfile.TemporaryDirectory() as directory:
            versions = ("--version", self.version, "--app-version", self.version)
            run(self.helm, "package", str(source), *versions, "--destination", directory)
            of_helm = tarfile.open(Path(directory) / package.name)
            names = {member.name for member in of_helm.getmembers()}
            ours = {f"{name}/{file}" for file in wanted}
            check(names == ours, f"Helm packs other files: {names ^ ours}")

    def all(self) -> None:
        files = {path.name for path in self.directory.iterdir()}
        sums = (self.directory / "SHA256SUMS").read_text().splitlines()
        listed = {line.split("  ")[1] for line in sums}
        check(files == listed | {"SHA256SUMS", "SHA256SUMS.sig"}, files ^ listed)
        for flavour, features, name in (("default", "", NAME), ("kafka", "kafka", f"{NAME}-kafka")):
            # librdkafka is not built for the others.
            archs = [arch for arch in self.archs if flavour == "default" or arch in ("amd64", "arm64")]
            self.images(flavour, name, archs)
            for arch in archs:
                self.program(flavour, name, arch)
                self.sbom(features, name, arch)
                self.recorded(flavour, features, arch)
        self.chart()
        # The form that the Terraform module kube-audit of IBM Cloud checks.
        for line in (self.directory / "IMAGES").read_text().splitlines():
            file, value = line.split(" ")
            check((self.directory / file).is_file(), line)
            check(re.fullmatch("[a-f0-9]{40}@sha256:[a-f0-9]{64}", value), line)
            check(value.startswith(f"{self.revision}@"), line)
        about = (self.directory / "BUILDINFO").read_text()
        for text in (f"version: {self.version}\n", f"revision: {self.revision}\n", "\nrustc: "):
            check(text in about, about)


if __name__ == "__main__":
    Release(*sys.argv[1:]).all()
    for message in wrong:
        print(f"release.py: {message[:1000]}", file=sys.stderr)
    sys.exit(1 if wrong else 0)
