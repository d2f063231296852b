#!/usr/bin/env python3
"""Verifies a release of kube-audit-forwarder, without network and without running anything of it.

Usage: verify_release.py PUBLIC_KEY DIRECTORY

DIRECTORY has the files of one release and nothing else. PUBLIC_KEY is the key of whoever makes the
releases (PEM, Ed25519 or ECDSA P-256). Take the key and this script from a place that you trust, and
not from beside the files: docs/operating/releases.md. It needs Python 3.9 and OpenSSL 3.

1. The signature of SHA256SUMS is of that key.
2. SHA256SUMS names all files of the directory and no other, and each has its checksum.
3. Each program is of the architecture in the name of its file, and its SBOM names the crates that
   the program itself records, and no other.
4. Each file of images has one for each architecture that has a program, and no other. Of each image,
   the SBOM names all files and no other, and each has its checksum. The program is the one in the
   archive, and so is that of the package for Debian.
5. IMAGES has the commit and the digest of each file of images.
6. PROVENANCE.json has the commit, and the checksum of each other file.

It prints a line for each of these and ends with status 0. At the first fault it says what is wrong
and ends with status 1; then do not use any of the files.
"""

import base64
import gzip
import hashlib
import io
import json
import os
import re
import stat
import struct
import subprocess
import sys
import tarfile
import tempfile
import zlib
from pathlib import Path

NAME = "kube-audit-forwarder"
# The numbers of the architectures in ELF, and the name that Debian gives one of them.
MACHINES = {"amd64": 62, "arm64": 183, "s390x": 22, "ppc64le": 21}
DEBIAN = {"ppc64le": "ppc64el"}


class Fault(Exception):
    """What is wrong with the release."""


def check(condition, message):
    if not condition:
        raise Fault(message)


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def openssl(*arguments):
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True)
    return done.returncode == 0, done.stdout + done.stderr


def check_signature(key, signed, signature):
    """Checks the signature, one line of base64, of the bytes `signed`."""
    done, about = openssl("pkey", "-pubin", "-in", key, "-noout", "-text")
    check(done, f"{key} is not a public key: {about.strip()}")
    with tempfile.TemporaryDirectory() as directory:
        data, binary = os.path.join(directory, "data"), os.path.join(directory, "signature")
        Path(data).write_bytes(signed)
        try:
            Path(binary).write_bytes(base64.b64decode(signature.strip(), validate=True))
        except ValueError:
            raise Fault("SHA256SUMS.sig is not base64") from None
        if about.startswith("ED25519"):
            command = ("pkeyutl", "-verify", "-pubin", "-inkey", key, "-rawin", "-in", data, "-sigfile", binary)
        else:
            check("Public-Key: (256 bit)" in about, f"{key} is neither an Ed25519 nor an ECDSA P-256 key")
            command = ("dgst", "-sha256", "-verify", key, "-signature", binary, data)
        done, _ = openssl(*command)
    check(done, f"the signature of SHA256SUMS is not of the key {key}")


def check_files(directory, sums):
    """Checks that the files are those of the checksums, and returns their names."""
    wanted = {}
    for line in sums.decode("ascii", "replace").splitlines():
        found = re.fullmatch(r"([0-9a-f]{64})  ([A-Za-z0-9][A-Za-z0-9._+-]*)", line)
        check(found and found[2] not in wanted, f"a line of SHA256SUMS is wrong: {line!r}")
        wanted[found[2]] = found[1]
    present = set(os.listdir(directory)) - {"SHA256SUMS", "SHA256SUMS.sig"}
    check(not wanted.keys() - present, f"missing: {', '.join(sorted(wanted.keys() - present))}")
    check(not present - wanted.keys(), f"not of this release: {', '.join(sorted(present - wanted.keys()))}")
    for name, digest in wanted.items():
        path = directory / name
        check(stat.S_ISREG(path.lstat().st_mode), f"{name} is not a file")
        check(sha256(path.read_bytes()) == digest, f"{name} has another checksum")
    return set(wanted)


def order_of(program):
    """Returns the byte order of a program (ELF, 64 bits): that of IBM Z has the highest byte first."""
    order = {b"\x7fELF\x02\x01": "<", b"\x7fELF\x02\x02": ">"}.get(program[:6])
    check(order, "the program is not a program for Linux")
    return order


def recorded(program):
    """Returns the packages in the section .dep-v0 of a program."""
    order = order_of(program)
    (table,) = struct.unpack_from(f"{order}Q", program, 0x28)
    size, count, names = struct.unpack_from(f"{order}HHH", program, 0x3A)
    headers = [struct.unpack_from(f"{order}IIQQQQ", program, table + index * size) for index in range(count)]
    for name, _, _, _, offset, length in headers:
        start = headers[names][4] + name
        if program[start : start + 8] == b".dep-v0\0":
            return json.loads(zlib.decompress(program[offset : offset + length]))["packages"]
    raise Fault("the program does not record its crates")


def program_of(archive):
    """Returns the program in an archive of the release."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        found = [member for member in files.getmembers() if member.name.endswith(f"/{NAME}")]
        check(len(found) == 1 and found[0].isfile(), "the archive does not have one program")
        return files.extractfile(found[0]).read()


def program_of_package(package):
    """Returns the program in a package for Debian: an archive of ar(1) with a compressed data.tar."""
    check(package[:8] == b"!<arch>\n", "the package is no archive")
    offset = 8
    while offset < len(package):
        name, size = package[offset : offset + 16].strip(b" /"), int(package[offset + 48 : offset + 58])
        if name == b"data.tar.gz":
            with tarfile.open(fileobj=io.BytesIO(package[offset + 60 : offset + 60 + size])) as files:
                return files.extractfile(f"./usr/bin/{NAME}").read()
        offset += 60 + size + size % 2
    raise Fault("the package has no data.tar.gz")


def images_of(archive):
    """Returns the images of an archive by architecture: the checksum of each file, by its path."""
    with tarfile.open(archive) as layout:

        def blob(descriptor):
            kind, digest = descriptor["digest"].split(":")
            data = layout.extractfile(f"blobs/{kind}/{digest}").read()
            check((kind, sha256(data)) == ("sha256", digest), f"the blob {digest} of the image has another checksum")
            return data

        images = {}
        (index,) = json.load(layout.extractfile("index.json"))["manifests"]
        for entry in json.loads(blob(index))["manifests"]:
            manifest = json.loads(blob(entry))
            arch = json.loads(blob(manifest["config"]))["architecture"]
            named = entry["platform"]["architecture"]
            check(arch == named and arch not in images, f"{archive.name}: the image for {named} is for {arch}")
            (layer,) = manifest["layers"]
            images[arch] = files_of(gzip.decompress(blob(layer)))
        return images


def files_of(layer):
    """Returns the checksum of each file of an image, by its path."""
    with tarfile.open(fileobj=io.BytesIO(layer)) as files:
        found = {}
        for member in files.getmembers():
            check(member.isfile() or member.isdir(), f"{member.name} of the image is neither file nor directory")
            if member.isfile():
                found[f"/{member.name}"] = sha256(files.extractfile(member).read())
        return found


def revision_of(directory):
    """Returns the commit of which the release was made, as BUILDINFO says."""
    (revision,) = re.findall(r"^revision: ([0-9a-f]{40})$", (directory / "BUILDINFO").read_text(), re.MULTILINE)
    return revision


def check_images(directory, names):
    """Checks that IMAGES has the tag, which is the commit, and the digest of each index of images."""
    if "IMAGES" not in names:
        return "an earlier release, without the file IMAGES"
    revision = revision_of(directory)
    wanted = []
    for name in sorted(name for name in names if name.endswith(".oci.tar")):
        with tarfile.open(directory / name) as layout:
            (entry,) = json.load(layout.extractfile("index.json"))["manifests"]
        wanted.append(f"{name} {revision}@{entry['digest']}")
    found = (directory / "IMAGES").read_text().splitlines()
    check(found == wanted, f"IMAGES and the images differ in {sorted(set(found) ^ set(wanted)) or 'their order'}")
    return f"IMAGES has the tags and digests of {len(wanted)} indices of images"


def check_provenance(directory, names, sums):
    """Checks that PROVENANCE.json is about the other files and the commit of BUILDINFO."""
    if "PROVENANCE.json" not in names:
        return "an earlier release, without the file PROVENANCE.json"
    statement = json.loads((directory / "PROVENANCE.json").read_text())
    found = {it["name"]: it["digest"]["sha256"] for it in statement["subject"]}
    wanted = dict(reversed(line.split("  ")) for line in sums.decode().splitlines())
    del wanted["PROVENANCE.json"]
    different = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    check(not different, f"PROVENANCE.json and the files differ in {', '.join(different)}")
    revision = revision_of(directory)
    dependencies = statement["predicate"]["buildDefinition"]["resolvedDependencies"]
    commits = [it["digest"]["gitCommit"] for it in dependencies if "gitCommit" in it["digest"]]
    check(commits == [revision], f"PROVENANCE.json has the commit {commits}, not {revision}")
    return f"PROVENANCE.json says that the {len(found)} other files were made of the commit {revision}"


def package_of(flavour, arch):
    """The name of the Debian package of a flavour, such as kube-audit-forwarder-0.2.0."""
    return re.sub(r"-([0-9]+\.[0-9]+\.[0-9].*)$", r"_\1_", flavour) + DEBIAN.get(arch, arch) + ".deb"


def check_program(directory, flavour, arch, image, names):
    """Checks one program, its SBOM and its image, and returns how many crates and files they have."""
    stem = f"{flavour}-linux-{arch}"
    check(f"{stem}.cdx.json" in names, f"{stem}.cdx.json is missing")
    bom = json.loads((directory / f"{stem}.cdx.json").read_text())
    program = program_of((directory / f"{stem}.tar.gz").read_bytes())
    (machine,) = struct.unpack_from(f"{order_of(program)}H", program, 0x12)
    check(MACHINES.get(arch) == machine, f"{stem}: the program is for the machine {machine} of ELF")
    about = bom["metadata"]["component"]
    crates = {(it["name"], it["version"]) for it in bom["components"] if it["type"] == "library"}
    # The other crates of the repository are the program itself, and not in the SBOM.
    packages = recorded(program)
    ours = {(it["name"], it["version"]) for it in packages if it["source"] != "local"}
    check(crates == ours, f"{stem}: SBOM and program differ in {sorted(crates ^ ours)}")
    roots = [(it["name"], it["version"]) for it in packages if it.get("root")]
    check(roots == [(about["name"], about["version"])], f"{stem}: the program is {roots}, not that of the SBOM")
    files = {it["name"]: it["hashes"][0]["content"] for it in bom["components"] if it["type"] == "file"}
    different = sorted(name for name in files.keys() | image.keys() if files.get(name) != image.get(name))
    check(not different, f"{stem}: SBOM and image differ in {', '.join(different)}")
    check(image.get(f"/usr/bin/{NAME}") == sha256(program), f"{stem}: the image has another program")
    package = package_of(flavour, arch)
    if package in names:
        inside = program_of_package((directory / package).read_bytes())
        check(inside == program, f"{package}: the package has another program than the archive")
    return len(crates), len(files)


def check_programs(directory, names):
    """Checks the programs of each flavour, and the images with them. Prints a line for each."""
    found = {}
    for name in sorted(names):
        if match := re.fullmatch(r"(.+)-linux-([a-z0-9]+)\.tar\.gz", name):
            found.setdefault(match[1], []).append(match[2])
    check(found, "the release has no program")
    known = {package_of(flavour, arch) for flavour, archs in found.items() for arch in archs}
    unknown = sorted(name for name in names if name.endswith(".deb") and name not in known)
    check(not unknown, f"packages without a program: {', '.join(unknown)}")
    for flavour, archs in found.items():
        check(f"{flavour}.oci.tar" in names, f"{flavour}.oci.tar is missing")
        images = images_of(directory / f"{flavour}.oci.tar")
        check(sorted(images) == archs, f"{flavour}: programs for {archs}, and images for {sorted(images)}")
        for arch in archs:
            crates, files = check_program(directory, flavour, arch, images[arch], names)
            print(f"ok: {flavour} for {arch}: the SBOM has the {crates} crates of the program "
                  f"and the {files} files of the image")


def verify(key, directory):
    for name in ("SHA256SUMS", "SHA256SUMS.sig"):
        path = directory / name
        check(path.is_file() and not path.is_symlink(), f"{name} is missing")
    sums = (directory / "SHA256SUMS").read_bytes()
    check_signature(key, sums, (directory / "SHA256SUMS.sig").read_bytes())
    print(f"ok: SHA256SUMS is signed by {key}")
    names = check_files(directory, sums)
    print(f"ok: all {len(names)} files are there, are those that were signed, and no other is")
    check_programs(directory, names)
    print(f"ok: {check_images(directory, names)}")
    print(f"ok: {check_provenance(directory, names, sums)}")


def main():
    if len(sys.argv) != 3 or sys.argv[1].startswith("-"):
        print("usage: verify_release.py PUBLIC_KEY DIRECTORY", file=sys.stderr)
        return 2
    try:
        verify(sys.argv[1], Path(sys.argv[2]))
    except Fault as fault:
        print(f"NOT VERIFIED: {fault}", file=sys.stderr)
        return 1
    # What cannot be read, in whatever way, is not verified either.
    except Exception as error:
        print(f"NOT VERIFIED: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
