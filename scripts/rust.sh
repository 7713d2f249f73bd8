#!/usr/bin/env bash
# Makes sure that there is a Rust that is new enough, and the C compiler that SQLite and ring are built with.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

needed=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$ROOT/Cargo.toml")

# Is version $1 at least $2? Both as MAJOR.MINOR[.PATCH].
at_least() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -t . -k 1,1n -k 2,2n | head -n 1)" = "$2" ]; }
installed() { rustc --version 2>/dev/null | cut -d ' ' -f 2 | cut -d - -f 1; }

if ! have cc; then
    apt_install gcc libc6-dev
fi

if ! have cargo || [ -z "$(installed)" ]; then
    # The distribution's own rustc is older than we need, its rustup is not.
    if ! have rustup; then
        ! { has_apt && is_root; } || apt-get update -qq >/dev/null 2>&1 || true
        if ! has_apt || ! LC_ALL=C apt-cache policy rustup | grep -q 'Candidate: [0-9]'; then
            die "Rust is missing, and this system has no package 'rustup'." \
                "Install Rust $needed or later with rustup, as the Rust project's site describes, then run the same command again."
        fi
        apt_install rustup ca-certificates
    fi
    say "installing Rust (stable) with rustup"
    rustup toolchain install stable --profile minimal --component rustfmt --component clippy >&2
    rustup default stable >&2
fi

version=$(installed)
at_least "$version" "$needed" ||
    die "Rust $needed or later is needed, this is ${version:-none} ($(command -v rustc))." \
        "Run: rustup update stable (and 'rustup default stable' if another one is the default)"
