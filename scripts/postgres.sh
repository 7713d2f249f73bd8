#!/usr/bin/env bash
# Prints the URL of a Postgres server for the tests: the one of SOLVERD_TEST_POSTGRES_URL, or a private one that is
# started here and keeps running. `postgres.sh stop` stops that one and removes it.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

# Names the folder of the server. It is not in .cache itself: Postgres refuses to run as root,
# and the user that root runs it as may have no way into this directory.
pointer=$CACHE/postgres
home=
[ ! -f "$pointer" ] || home=$(cat "$pointer")

# Runs a command as the owner of the server.
as_postgres() { if is_root; then (cd / && runuser -u postgres -- "$@"); else "$@"; fi; }

find_bin() {
    local folder
    for folder in $(printf '%s\n' /usr/lib/postgresql/*/bin | sort -t / -k 5,5nr) "$(pg_config --bindir 2>/dev/null || true)" \
        "$(dirname "$(command -v pg_ctl 2>/dev/null || echo /)")"; do
        if [ -x "$folder/initdb" ] && [ -x "$folder/pg_ctl" ] && [ -x "$folder/postgres" ]; then
            bin=$folder
            return 0
        fi
    done
    return 1
}
can_run() { find_bin && { ! is_root || id postgres >/dev/null 2>&1; }; }
runs() { [ -n "$home" ] && [ -f "$home/url" ] && as_postgres "$bin/pg_ctl" status -D "$home/data" >/dev/null 2>&1; }

stop() {
    ! runs || as_postgres "$bin/pg_ctl" stop -D "$home/data" -m immediate >/dev/null
    [ -z "$home" ] || rm -rf "$home"
    rm -f "$pointer"
    home=
}

if [ "${1:-}" = stop ]; then
    ! can_run || stop
    exit 0
fi
if [ -n "${SOLVERD_TEST_POSTGRES_URL:-}" ]; then
    echo "$SOLVERD_TEST_POSTGRES_URL"
    exit 0
fi

if ! can_run; then
    apt_install postgresql
    can_run || die "postgresql is installed, but initdb, pg_ctl and postgres were not found, or there is no user 'postgres'."
fi

if ! runs; then
    stop
    say "starting a private Postgres server ($("$bin/postgres" --version))"
    for folder in "${TMPDIR:-/tmp}" /tmp /var/tmp; do
        home=$(mktemp -d "$folder/solverd-postgres.XXXXXX" 2>/dev/null) || continue
        ! is_root || chown postgres: "$home"
        as_postgres test -w "$home" 2>/dev/null && break
        rm -rf "$home"
        home=
    done
    [ -n "$home" ] || die "found no folder for temporary files that user 'postgres' may write to."
    echo "$home" >"$pointer"

    # Any user of this machine can reach the port, so there is a password.
    password=$(od -An -N 16 -tx1 /dev/urandom | tr -d ' \n')
    (umask 077 && echo "$password" >"$home/password")
    ! is_root || chown postgres: "$home/password"
    as_postgres "$bin/initdb" -D "$home/data" -U solverd -A scram-sha-256 --pwfile="$home/password" \
        --encoding=UTF8 --locale=C --no-sync >"$home/initdb.log" 2>&1 || { cat "$home/initdb.log" >&2 && die "initdb failed"; }

    # The kernel does not tell which ports are free: try some. Durability is for data that somebody wants to keep.
    options="-c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off -c full_page_writes=off -c synchronous_commit=off"
    url=
    for _ in 1 2 3 4 5; do
        port=$((20000 + RANDOM % 12000))
        if as_postgres "$bin/pg_ctl" start -w -t 30 -D "$home/data" -l "$home/log" -o "$options -p $port" >/dev/null 2>&1 </dev/null; then
            url=postgres://solverd:$password@127.0.0.1:$port/postgres
            break
        fi
    done
    [ -n "$url" ] || { tail -n 15 "$home/log" >&2 && die "Postgres did not start (log: $home/log)"; }
    (umask 077 && echo "$url" >"$home/url")
fi
cat "$home/url"
