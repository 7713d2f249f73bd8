# Helpers for the other scripts, which source this file. Everything for the user goes to standard error:
# some scripts answer on standard output (a path, a URL).
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
CACHE=$ROOT/.cache
mkdir -p "$CACHE"
# Where rustup puts cargo; a shell that was open before the installation does not know it.
PATH=$PATH:$HOME/.cargo/bin

say() { echo "==> $*" >&2; }
die() {
    echo "error: $1" >&2
    shift
    [ $# -eq 0 ] || printf '       %s\n' "$@" >&2
    exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" -eq 0 ]; }

# A line of os-release, for example `os_release ID`.
os_release() { [ ! -r /etc/os-release ] || sed -n "s/^$1=//p" /etc/os-release | tr -d '"'; }
has_apt() { have apt-get && case " $(os_release ID) $(os_release ID_LIKE) " in *" debian "* | *" ubuntu "*) ;; *) false ;; esac; }

# Installs Debian packages, or says which command would.
apt_install() {
    if ! has_apt; then
        die "missing on this system: what Debian calls '$*'." "Install it, then run the same command again."
    elif ! is_root; then
        die "missing: $*" "Run: sudo apt-get update && sudo apt-get install -y --no-install-recommends $*"
    fi
    say "installing with apt: $*"
    local log=$CACHE/apt.log
    # The lists of a fresh machine are empty or old, and old ones name packages that are gone.
    if ! { apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@"; } >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        die "apt could not install $* (whole log: $log)"
    fi
}

# Waits until a command succeeds: wait_for SECONDS COMMAND…
wait_for() {
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

# Gives a command so many seconds, where the system can: bounded SECONDS COMMAND…
bounded() {
    if have timeout; then timeout "$@"; else shift && "$@"; fi
}

# Hash of what comes in on standard input.
sha256() { if have sha256sum; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1; }
