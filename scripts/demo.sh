#!/usr/bin/env bash
# Runs a demo: demo.sh [sleeper|calculix]. Expects what `make demo` sets up.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

solver=${1:-sleeper}
case $solver in
sleeper) program=tutorial.py ;;
calculix) program=cantilever.py ;;
*) die "there is no demo for '$solver': SOLVER is sleeper or calculix" ;;
esac
python=$("$ROOT/scripts/python.sh")
image=$("$python" -c 'import json, sys; print("{key}:{version}".format(**json.load(open(sys.argv[1]))))' "$ROOT/solvers/$solver/metadata.json")

say "tests/client/$program is run with oSPARC's own Python client"
"$ROOT/scripts/with_service.sh" "$image" -- "$python" "$ROOT/tests/client/$program"
say "done"
