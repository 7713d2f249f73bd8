#!/usr/bin/env bash
# Checks the clients: that they are what is generated, that each compiles, and that each runs a job from upload to log.
# `check.sh compile` stops before the jobs. They need the service's program and the sleeper's images, as `make test` has them.
set -euo pipefail
. "$(dirname "$0")/../scripts/lib.sh"
here=$ROOT/clients
built=$CACHE/clients

# The commands are not in every package of these names.
{ have node && have npm; } || apt_install nodejs npm
have go || apt_install golang-go
[ "$(node -p 'process.versions.node.split(".")[0]')" -ge 18 ] || die "Node 18 or later is needed, this is $(node --version)"

say "comparing the clients with what is generated"
fresh=$CACHE/generated
rm -rf "$fresh"
"$here/generate.sh" "$fresh"
for language in python typescript go; do
    # Of what stands beside the generated files there is nothing in the fresh folder.
    difference=$(diff -r -q -x __pycache__ "$here/$language" "$fresh/$language" |
        grep -v -E "^Only in $here/$language: (go\.mod|go\.sum|package\.json|package-lock\.json|tsconfig\.json|pyproject\.toml)$" || true)
    [ -z "$difference" ] || die "clients/$language is stale: run make clients" "$difference"
done

say "compiling the clients"
python=$("$ROOT/scripts/python.sh")
PYTHONPATH=$here/python PYTHONDONTWRITEBYTECODE=1 "$python" -W error -c 'import solverd'
# Beside the sources, not among them: only sources are committed.
mkdir -p "$built/typescript" "$built/go"
rm -rf "$built/typescript/"{src,dist}
cp -r "$here/typescript/"{package.json,package-lock.json,tsconfig.json,src} "$built/typescript"
(cd "$built/typescript" && npm ci --silent --no-audit --no-fund >&2 && npm run --silent build >&2)
(cd "$here/go" && go vet .)
(cd "$here/tests" && go vet . && go build -o "$built/go/journey" .)

[ "${1:-}" != compile ] || exit 0
say "running a job with each client"
"$python" -m pytest -q "$here/tests"
