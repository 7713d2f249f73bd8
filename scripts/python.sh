#!/usr/bin/env bash
# Makes a Python environment and prints the path of its interpreter: python.sh [FOLDER]. With what FOLDER/requirements.txt says: that of
# tests/client, unless another one is named.
set -euo pipefail
. "$(dirname "$0")/lib.sh"

folder=${1:-tests/client}
requirements=$ROOT/$folder/requirements.txt
venv=$CACHE/venv-${folder##*/}
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
