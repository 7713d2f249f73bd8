#!/usr/bin/env bash
# Fuzzes the API from its own document: fuzz.sh EXAMPLES [SEED]. On both databases, with credentials and without any.
# Expects the service's program, the sleeper's images and Postgres, as `make test` has them.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

examples=${1:-5}
seed=${2:-1}
python=$("$ROOT/scripts/python.sh")
config=$CACHE/schemathesis.toml
# Runs inside of with_service.sh.
if [ -n "${OSPARC_API_BASE_URL:-}" ]; then
    arguments=(run "$OSPARC_API_BASE_URL/openapi.json" --max-examples "$examples" --seed "$seed")
    cp "$ROOT/tests/schemathesis.toml" "$config"
    # Elsewhere an example is of one operation, here it is a walk through all of them.
    printf '%s\n' '' '[phases.stateful.generation]' "max-examples = $((examples * 5))" >>"$config"
    if [ "$FUZZ_AS" = owner ]; then
        "$FUZZ_SOLVERD" users add other@example.com >/dev/null
        "$FUZZ_SOLVERD" keys create other@example.com --json | "$python" "$ROOT/tests/fuzz_accounts.py" "$CACHE/accounts.json"
        printf '%s\n' '' '[auth.wfc]' 'path = "accounts.json"' 'user = "owner"' 'peers = ["owner", "other"]' >>"$config"
        # What happens without credentials is a check of its own. Generated, they would be missing in most requests that are to be wrong.
        arguments+=(--generation-with-security-parameters false)
    fi
    cd "$CACHE"
    exec "$(dirname "$python")/schemathesis" --config-file "$config" "${arguments[@]}"
fi

solvers=(simcore/services/comp/itis/sleeper:2.1.6 "$ROOT/solvers/studies/sleeper_test_study.json")
export FUZZ_AS FUZZ_SOLVERD=${SOLVERD_BIN:-${CARGO_TARGET_DIR:-$ROOT/target}/debug/solverd}
for setting in "sqlite owner" "postgres owner" "sqlite stranger" "postgres stranger"; do
    read -r database FUZZ_AS <<<"$setting"
    say "fuzzing as $FUZZ_AS on $database ($examples examples, seed $seed)"
    url=
    if [ "$database" = postgres ]; then
        server=$("$ROOT/scripts/postgres.sh")
        have psql || apt_install postgresql-client
        psql --quiet "$server" --command 'DROP DATABASE IF EXISTS solverd_fuzz WITH (FORCE)' --command 'CREATE DATABASE solverd_fuzz' >&2
        url=${server%/*}/solverd_fuzz
    fi
    SERVICE_DATABASE_URL=$url "$ROOT/scripts/with_service.sh" "${solvers[@]}" -- "$0" "$examples" "$seed"
done
