#!/bin/sh
# The main job on a simulated platform: logs and texts in, two trained recommenders and their reports out.
set -eu
cd "$(dirname "$0")/.."
out=runs/demo
rm -rf "$out"

step() {
    echo "\$ reeltalk $*"
    reeltalk "$@"
}

step prepare simulator --out "$out/data"
step encode "$out/data" --out "$out/text"
for task in item comment; do
    step finetune "$out/data" --task $task --text "$out/text" --out "$out/$task"
    step evaluate "$out/$task" --out "$out/$task-report"
done
echo "Reports, each with its plots in one page: $out/item-report/report.html $out/comment-report/report.html"
