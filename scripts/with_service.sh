#!/usr/bin/env bash
# Runs a program against a service of its own, which is gone afterwards: with_service.sh SOLVER... -- PROGRAM [ARGUMENT...].
# Each SOLVER, an image or a file, is published; PROGRAM finds the service like oSPARC's client does, in OSPARC_API_BASE_URL, _KEY and _SECRET.
# Its database is SQLite, unless SERVICE_DATABASE_URL names another one.
# Expects what `make demo` sets up: solverd itself and the images.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

solvers=()
until [ "$1" = -- ]; do
    solvers+=("$1")
    shift
done
shift
solverd=${SOLVERD_BIN:-${CARGO_TARGET_DIR:-$ROOT/target}/debug/solverd}
log=$CACHE/service.log

random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }

# The service is the same whatever this shell is set up for.
for name in ${!SOLVERD_*} ${!OSPARC_*}; do unset "$name"; done
data=$(mktemp -d "$CACHE/service.XXXXXX")
export SOLVERD_LISTEN=127.0.0.1:0 SOLVERD_S3_LISTEN=127.0.0.1:0 SOLVERD_DATA_DIR=$data/data
[ -z "${SERVICE_DATABASE_URL:-}" ] || export SOLVERD_DATABASE_URL=$SERVICE_DATABASE_URL
export SOLVERD_BOOTSTRAP_EMAIL=demo@example.com SOLVERD_BOOTSTRAP_KEY SOLVERD_BOOTSTRAP_SECRET
SOLVERD_BOOTSTRAP_KEY=$(random 8)
SOLVERD_BOOTSTRAP_SECRET=$(random 32)

pid=
gone() { ! kill -0 "$pid" 2>/dev/null; }
finish() {
    local code=$?
    trap - EXIT INT TERM
    if [ -n "$pid" ]; then
        kill "$pid" 2>/dev/null || true
        if ! wait_for 20 gone; then
            echo "error: the service did not stop within 20 s of SIGTERM" >&2
            kill -KILL "$pid" 2>/dev/null || true
            code=1
        fi
        wait "$pid" 2>/dev/null || true
    fi
    # Jobs outlive their service; this one will not come back.
    local left
    left=$([ ! -s "$data/data/instance" ] || docker ps --all --quiet --filter "label=solverd.instance=$(<"$data/data/instance")" 2>/dev/null) || true
    # shellcheck disable=SC2086 # several ids
    [ -z "$left" ] || docker rm --force --volumes $left >/dev/null 2>&1 || true
    [ "$code" -eq 0 ] || { echo "-- the end of the service's log ($log) --" && tail -n 40 "$log"; } >&2
    rm -rf "$data"
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT TERM

: >"$log" >"$data/ready"
"$solverd" serve >"$data/ready" 2>"$log" </dev/null &
pid=$!
ready() { gone || grep -q '^solverd ready at ' "$data/ready"; }
wait_for 60 ready || die "the service was not ready within 60 s"
! gone || die "the service ended before it was ready"
url=$(sed -n 's/^solverd ready at //p' "$data/ready")
say "solverd runs at $url (log: $log)"

say "publishing ${solvers[*]}"
"$solverd" solvers publish "${solvers[@]}" >&2

OSPARC_API_BASE_URL=$url OSPARC_API_KEY=$SOLVERD_BOOTSTRAP_KEY OSPARC_API_SECRET=$SOLVERD_BOOTSTRAP_SECRET "$@"
