#!/usr/bin/env bash
# Generates the clients from openapi/openapi.json: generate.sh [FOLDER]. Into this folder, unless another one is named.
set -euo pipefail
. "$(dirname "$0")/../scripts/lib.sh"

here=$ROOT/clients
target=${1:-$here}
venv=$CACHE/generator
wanted=$(sha256 <"$here/requirements.txt")
if [ ! -f "$venv/stamp" ] || [ "$(cat "$venv/stamp")" != "$wanted" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    if ! have python3 || ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install python3 python3-venv
        hash -r
    fi
    say "installing the client generator"
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$here/requirements.txt" >&2
    echo "$wanted" >"$venv/stamp"
fi

log=$CACHE/generator.log
for language in python typescript go; do
    folder=$target/$language
    mkdir -p "$folder"
    # What is no longer generated goes; what is written by hand stays.
    case $language in
    python) rm -rf "$folder/solverd" ;;
    typescript) rm -rf "$folder/src" ;;
    go) rm -f "$folder"/*.go ;;
    esac
    [ "$folder" = "$here/$language" ] || cp "$here/$language/.openapi-generator-ignore" "$folder"
    "$venv/bin/openapi-generator-cli" generate -i "$ROOT/openapi/openapi.json" -c "$here/$language.json" -o "$folder" >"$log" 2>&1 ||
        { tail -n 20 "$log" >&2 && die "the $language client was not generated (whole log: $log)"; }
    rm -rf "$folder/.openapi-generator"
done
