#!/bin/bash
# Builds skiff, one static executable, from runtime.c.
#
#   ./build.sh [OPTION] [build]           build/skiff
#   ./build.sh [OPTION] check [ARGS...]   build, then tests/run ARGS
#   ./build.sh [OPTION] bench [ARGS...]   build, then tests/bench ARGS
#   ./build.sh [OPTION] libraries         build the libraries only, and print where they are
#   ./build.sh clean                      remove build/
#   ./build.sh help
#
#   --debug      build/skiff-debug instead: -Og -g, not stripped
#   --sanitize   build/skiff-asan instead: AddressSanitizer and UndefinedBehaviorSanitizer, on this machine's C library
#
# The libraries (vendor/lock) are built once and kept in $SKIFF_CACHE (~/.cache/skiff). Tools that are missing are
# installed with apt-get when run by root. $CC is the compiler, gcc when unset. Tests find the executable in $SKIFF.
set -euo pipefail
cd "$(dirname "$0")"

version=0.1.0
cache=${SKIFF_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/skiff}
export CC=${CC:-gcc}
cflags=(-std=gnu17 -Wall -Wextra -Werror -Wno-unused-parameter -ffunction-sections -fdata-sections
        "-ffile-prefix-map=$PWD=.")
libraries=(-lcurl -lmbedtls -larchive -lzstd -llzma -lbz2 -lz -lseccomp -ljansson)

die() { echo "build.sh: $*" >&2; exit 1; }

install_tools() {
  local tool packages=()
  for tool in "$CC:gcc" make:make patch:patch xz:xz-utils bzip2:bzip2; do
    command -v "${tool%:*}" >/dev/null || packages+=("${tool#*:}")
  done
  [ "$flavour" != asan ] || [ -e /usr/include/stdio.h ] || packages+=(libc6-dev)
  [ ${#packages[@]} -gt 0 ] || return 0
  local install=(apt-get install -y --no-install-recommends "${packages[@]}")
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then die "missing tools; on Debian: sudo ${install[*]}"; fi
  export DEBIAN_FRONTEND=noninteractive
  "${install[@]}" || { apt-get update && "${install[@]}"; }
}

# Sets prefix to where the libraries are. Its name has the digest of all that went into them.
vendor() {
  local digest
  digest=$({ find vendor -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; "$CC" -v; echo "$flavour"; } 2>&1 | sha256sum)
  prefix=$cache/vendor/${digest:0:16}-$flavour
  [ ! -d "$prefix" ] || return 0
  mkdir -p "$cache"
  exec 9>"$cache/lock"
  flock 9                                            # another build may be at it
  [ -d "$prefix" ] || vendor/build "$flavour" "$prefix" "$cache/downloads"
  exec 9>&-
}

build() {
  local commit command
  [ -e runtime.c ] || die "there is no runtime.c"
  install_tools
  vendor
  if commit=$(git describe --always --dirty --abbrev=10 --exclude '*' 2>/dev/null); then version+=+$commit; fi
  cflags+=("-DSKIFF_VERSION=\"$version\"")
  # The stack size is that of threads: musl gives them 128 KiB, too little to be sure of TLS and archives in it.
  case $flavour in
    static) command=("$prefix/bin/musl-gcc" "${cflags[@]}" -fno-pie runtime.c -static -no-pie
                     "-Wl,--gc-sections" "-Wl,--build-id=none" "-Wl,-z,noexecstack,-z,stack-size=0x100000" "${libraries[@]}") ;;
    asan)   command=("$CC" "${cflags[@]}" -isystem "$prefix/uapi" -isystem "$prefix/include" -fno-omit-frame-pointer
                     "-fsanitize=address,undefined" -fno-sanitize-recover=all runtime.c -L"$prefix/lib" "${libraries[@]}"
                     -pthread) ;;
  esac
  command+=("${mode[@]}")
  # Nothing to do when neither the source nor the command has changed since.
  if [ "$skiff" -nt runtime.c ] && [ "$(cat "$skiff.command" 2>/dev/null)" = "${command[*]}" ]; then return; fi
  mkdir -p build
  "${command[@]}" -o "$skiff.$$"
  mv "$skiff.$$" "$skiff"
  echo "${command[*]}" >"$skiff.command"
}

flavour=static skiff=$PWD/build/skiff mode=(-O2 -s)
while [[ ${1-} == --* ]]; do
  case $1 in
    --debug)    skiff=$PWD/build/skiff-debug mode=(-Og -g -Wno-error) ;;
    --sanitize) skiff=$PWD/build/skiff-asan mode=(-Og -g -Wno-error -U_FORTIFY_SOURCE) flavour=asan ;;
    --help)     set -- help; break ;;
    *)          die "unknown option $1; ./build.sh help tells more" ;;
  esac
  shift
done
action=${1:-build}
[ $# = 0 ] || shift
export SKIFF=$skiff ASAN_OPTIONS=${ASAN_OPTIONS-detect_leaks=0}     # a command that ends frees nothing
case $action in
  build) build ;;
  check) build; exec tests/run "$@" ;;
  bench) build; exec tests/bench "$@" ;;
  libraries) install_tools; vendor; echo "$prefix" ;;
  clean) rm -rf build ;;
  help)  sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "$0" ;;
  *)     die "unknown action $action; ./build.sh help tells more" ;;
esac
