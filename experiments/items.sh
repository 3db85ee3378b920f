#!/bin/sh
# The item task on logs without comments, leave-one-out, sampled and full ranking.
# usage: experiments/items.sh SOURCE RAW [OUT]    SOURCE: microlens, retail or sequences
set -eu
source=${1:?"usage: experiments/items.sh SOURCE RAW [OUT]"}
raw=${2:?"usage: experiments/items.sh SOURCE RAW [OUT]"}
out=${3:-runs/$source}

reeltalk prepare "$source" --raw "$raw" --out "$out/data" --set split=leave_one_out
reeltalk encode "$out/data" --out "$out/text"
reeltalk finetune "$out/data" --task item --text "$out/text" --out "$out/item" \
    --set train.max_epochs=30 --set train.patience=3
reeltalk evaluate "$out/item" --out "$out/report"
