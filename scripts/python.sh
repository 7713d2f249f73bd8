#!/usr/bin/env bash
# Makes a Python environment with what tests/client needs, and prints the path of its interpreter.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

requirements=$ROOT/tests/client/requirements.txt
venv=$CACHE/venv
stamp=$venv/requirements.sha256

[ -f "$requirements" ] || die "$requirements is missing"
wanted=$(sha256 <"$requirements")

# A newer Python on the machine leaves an environment behind whose interpreter no longer starts.
if [ ! -f "$stamp" ] || [ "$(cat "$stamp")" != "$wanted" ] || ! "$venv/bin/python" -c '' 2>/dev/null; then
    if ! have python3 || ! python3 -c 'import ensurepip, venv' 2>/dev/null; then
        apt_install python3 python3-venv
        hash -r
    fi
    say "installing the Python packages of ${requirements#"$ROOT"/} into ${venv#"$ROOT"/}"
    rm -rf "$venv"
    python3 -m venv "$venv" >&2
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$requirements" >&2
    echo "$wanted" >"$stamp"
fi
echo "$venv/bin/python"
