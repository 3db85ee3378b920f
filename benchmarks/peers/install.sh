#!/bin/sh
# Install a peer from its pinned requirements into a virtual environment of its own, DIR/PEER, unless it is there.
#   benchmarks/peers/install.sh PEER DIR        PEER: the name in requirements-PEER.txt; PYTHON names the interpreter
set -eu

peer=${1:?"usage: install.sh PEER DIR"}
folder=${2:?"usage: install.sh PEER DIR"}/$peer
requirements=$(dirname "$0")/requirements-$peer.txt

if [ ! -f "$requirements" ]; then
    echo "no peer $peer: $requirements is missing" >&2
    exit 2
fi
if cmp -s "$requirements" "$folder/installed.txt"; then
    exit 0
fi
echo "installing $peer into $folder; this happens once" >&2
"${PYTHON:-python3}" -m venv --clear "$folder"
# torch goes first and alone: its version decides which build the registry serves.
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check "$(grep '^torch==' "$requirements")" >&2
"$folder/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r "$requirements" >&2
cp "$requirements" "$folder/installed.txt"
