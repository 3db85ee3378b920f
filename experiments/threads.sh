#!/bin/sh
# Both tasks on a forum's threads: who joins which thread, and which comment they answer there.
# usage: experiments/threads.sh RAW [OUT]    RAW: a folder with threads.parquet and comments.parquet
set -eu
raw=${1:?"usage: experiments/threads.sh RAW [OUT]"}
out=${2:-runs/threads}

# Threads live for hours. Negatives of the item task are threads opened within the three days before the target: against
# all of the past, newest-first order would be nearly perfect and mean nothing.
reeltalk prepare threads --raw "$raw" --out "$out/data" --set split=time \
    --set valid_from=2021-11-25 --set test_from=2021-12-01 --set item_negatives=active --set active_days=3
reeltalk encode "$out/data" --out "$out/text"

# Almost every thread of the test window is new, so an ID says nothing of it: text alone speaks for items here, and learns
# against the threads of the same three days.
reeltalk finetune "$out/data" --task item --text "$out/text" --out "$out/item" --set model.use_item_ids=false \
    --set data.active_days=3 --set train.batch_size=512 --set train.learning_rate=0.002 --set train.max_epochs=6 \
    --set train.patience=2
reeltalk evaluate "$out/item" --out "$out/item-report"

reeltalk finetune "$out/data" --task comment --text "$out/text" --out "$out/comment" \
    --set train.batch_size=512 --set train.max_epochs=6 --set train.patience=2
reeltalk evaluate "$out/comment" --out "$out/comment-report"

# The same with what is known of a comment besides its words: its age, and the answers so far.
reeltalk finetune "$out/data" --task comment --text "$out/text" --out "$out/comment-features" \
    --set data.candidate_features=true --set train.batch_size=512 --set train.max_epochs=8 --set train.patience=2
reeltalk evaluate "$out/comment-features" --out "$out/comment-features-report"

reeltalk compare "$out/comment-features-report" "$out/comment-report"
