# shellcheck shell=bash
# Sourced by other scripts: the architectures that the program is built for, by their names in OCI.
# shellcheck disable=SC2034 # for the script that sources this file
architectures=(amd64 arm64 s390x ppc64le)

# Prints the name of the architecture $1 in Rust's targets.
target_of() {
  case $1 in
  amd64) echo x86_64-unknown-linux-gnu ;;
  arm64) echo aarch64-unknown-linux-gnu ;;
  s390x) echo s390x-unknown-linux-gnu ;;
  ppc64le) echo powerpc64le-unknown-linux-gnu ;;
  *) return 1 ;;
  esac
}

# Prints the name of the architecture $1 in the names of its GNU tools, such as s390x-linux-gnu-gcc.
gnu_of() { local target && target=$(target_of "$1") && echo "${target/-unknown/}"; }

# Prints the name of the architecture $1 in Debian.
debian_of() { case $1 in ppc64le) echo ppc64el ;; *) echo "$1" ;; esac; }

# Prints the name of the architecture $1 in QEMU.
qemu_of() { case $1 in amd64) echo x86_64 ;; arm64) echo aarch64 ;; *) echo "$1" ;; esac; }

# Whether the flavour $1, default or kafka, is built for the architecture $2.
has_flavour() { case $1:$2 in kafka:s390x | kafka:ppc64le) return 1 ;; esac; }
