#!/usr/bin/env bash
# Fuzzes the API from its own document: fuzz.sh EXAMPLES [SEED]. On both databases, with credentials, and on SQLite without any, too.
# Expects the service's program, the sleeper's images and Postgres, as `make test` has them.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

examples=${1:-5}
seed=${2:-1}
python=$("$ROOT/scripts/python.sh")
# Runs inside of with_service.sh.
if [ -n "${OSPARC_API_BASE_URL:-}" ]; then
    arguments=(--config-file "$ROOT/tests/schemathesis.toml" run "$OSPARC_API_BASE_URL/openapi.json" --max-examples "$examples" --seed "$seed")
    [ "$FUZZ_AS" = stranger ] || arguments+=(--auth "$OSPARC_API_KEY:$OSPARC_API_SECRET")
    exec "$(dirname "$python")/schemathesis" "${arguments[@]}"
fi

image=simcore/services/comp/itis/sleeper:2.1.6
for setting in "sqlite owner" "postgres owner" "sqlite stranger"; do
    read -r database who <<<"$setting"
    say "fuzzing as $who on $database ($examples examples, seed $seed)"
    url=
    if [ "$database" = postgres ]; then
        server=$("$ROOT/scripts/postgres.sh")
        have psql || apt_install postgresql-client
        psql --quiet "$server" --command 'DROP DATABASE IF EXISTS solverd_fuzz WITH (FORCE)' --command 'CREATE DATABASE solverd_fuzz' >&2
        url=${server%/*}/solverd_fuzz
    fi
    FUZZ_AS=$who SERVICE_DATABASE_URL=$url "$ROOT/scripts/with_service.sh" "$image" "$0" "$examples" "$seed"
done
