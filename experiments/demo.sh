#!/bin/sh
# The main job on a simulated platform: logs and texts in, two trained recommenders and their reports out.
set -eu
cd "$(dirname "$0")/.."
out=runs/demo
rm -rf "$out"

reeltalk prepare simulator --out "$out/data"
reeltalk encode "$out/data" --out "$out/text"
for task in item comment; do
    reeltalk finetune "$out/data" --task $task --text "$out/text" --out "$out/$task"
    reeltalk evaluate "$out/$task" --out "$out/$task-report"
done
