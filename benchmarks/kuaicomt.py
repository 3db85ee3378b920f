"""`prepare kuaicomt` on generated files: seconds and peak memory.

The files bear the published schema, and users, videos, comments and events in the published proportions (119.7 million
impressions by 34,701 users of 82,452 videos, 16.4 million comments, 1.0 million comment events, five weeks).

    python -m benchmarks.kuaicomt --impressions 10000000 --comments 2000000
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import numpy.typing as npt
import polars as pl
from rich.console import Console
from rich.progress import track

from benchmarks.rows import Measurement, emit, peak_memory_mib, versions
from reeltalk.data.prepare import PrepareSettings, prepare

SECONDS = "prepare kuaicomt"
PEAK_MEMORY = "prepare kuaicomt: peak memory"
IMPRESSIONS_A_USER, IMPRESSIONS_AN_ITEM, COMMENTS_AN_EVENT = 3_450, 1_452, 16
CHUNK = 1_000_000
DAY = 86_400_000
START, END = 1_696_003_200_000, 1_699_027_200_000  # 2023-09-30 to 2023-11-04 in Shanghai, ms
SHANGHAI = 8 * 3_600_000
FLAG_RATES = {
    "is_click": 0.5,
    "is_like": 0.02,
    "is_follow": 0.002,
    "is_comment": 0.003,
    "is_forward": 0.003,
    "is_collect": 0.006,
    "is_hate": 0.0005,
    "long_view": 0.4,
}
ONE_HOT_SIZES = (2, 7, 55, 1686, 6, 10, 3, 53, 392, 7, 5, 7, 2, 2, 2, 2, 2, 2, 2, 2, 5)
CATEGORIES = ("明星娱乐", "美食", "宠物", "搞笑", "运动", "音乐", "旅行", "生活")
ODD_WORDS = ("[捂脸]", "😂", "👍🏽", ",", '"', "\n", "\uff0c", "。")

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Platform:
    """Whom and what the events are about; popularity and activity are cumulative shares."""

    user_key: Ints
    item_key: Ints
    uploaded: Ints
    activity: npt.NDArray[np.float64]
    popularity: npt.NDArray[np.float64]


def write_log(folder: Path, *, impressions: int, comments: int, seed: int) -> None:
    """Write the five CSV files into `folder`, in chunks of a million rows."""
    rng = np.random.default_rng(seed)
    platform = _platform(
        rng, num_users=max(50, impressions // IMPRESSIONS_A_USER), num_items=max(50, impressions // IMPRESSIONS_AN_ITEM)
    )
    words = _words(rng)
    _user_features(rng, platform).write_csv(folder / "user_features.csv")
    _item_features(rng, platform, words).write_csv(folder / "video_features.csv")
    with (folder / "user_video_inter.csv").open("wb") as log:
        for start in _chunks(impressions, "Writing impressions"):
            _impressions(rng, platform, min(CHUNK, impressions - start)).write_csv(log, include_header=start == 0)
    with (folder / "comment_features.csv").open("wb") as texts, (folder / "user_comment_inter.csv").open("wb") as log:
        for start in _chunks(comments, "Writing comments"):
            rows = _comments(rng, platform, words, first=start, count=min(CHUNK, comments - start))
            rows.write_csv(texts, include_header=start == 0)
            _comment_events(rng, platform, rows).write_csv(log, include_header=start == 0)


def _chunks(count: int, description: str) -> Iterable[int]:
    console = Console(stderr=True)
    return track(range(0, count, CHUNK), description=description, console=console, transient=True)


def _draw(rng: np.random.Generator, shares: npt.NDArray[np.float64], count: int) -> Ints:
    return np.searchsorted(shares, rng.random(count)).astype(np.int64)


def _shares(weights: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    total = np.cumsum(weights)
    return np.asarray(total / total[-1])


def _zipf(count: int, exponent: float) -> npt.NDArray[np.float64]:
    return np.asarray((np.arange(count) + 10.0) ** -exponent)


def _platform(rng: np.random.Generator, *, num_users: int, num_items: int) -> Platform:
    return Platform(
        user_key=rng.permutation(num_users).astype(np.int64) * 83 + 1_000_000_007,
        item_key=rng.permutation(num_items).astype(np.int64) * 97 + 100_000_000_003,
        uploaded=rng.integers(START - 60 * DAY, END - 3 * DAY, num_items),
        activity=_shares(rng.lognormal(sigma=0.8, size=num_users)),
        popularity=_shares(_zipf(num_items, 0.8)),
    )


def _words(rng: np.random.Generator) -> pl.Series:
    """Words of one to four Chinese characters, the most frequent first, and what else users type."""
    letters = np.array([chr(code) for code in range(0x4E00, 0x4E00 + 3_000)])
    drawn = letters[rng.integers(0, len(letters), (20_000, 4))]
    lengths = rng.integers(1, 5, len(drawn))
    words = ["".join(row[:length]) for row, length in zip(drawn, lengths, strict=True)]
    return pl.Series([*words[:20], *ODD_WORDS, *words[20:]])


def _texts(rng: np.random.Generator, words: pl.Series, count: int) -> pl.Series:
    """Texts of zero to sixty words."""
    lengths = np.minimum(rng.lognormal(1.6, 0.8, count).astype(np.int64), 60)
    drawn = _draw(rng, _shares(_zipf(len(words), 1.0)), int(lengths.sum()))
    table = pl.DataFrame({"text": np.repeat(np.arange(count), lengths), "word": words.gather(drawn)})
    joined = table.group_by("text", maintain_order=True).agg(pl.col("word").str.join())
    return (
        pl.DataFrame({"text": np.arange(count)})
        .join(joined, on="text", how="left", maintain_order="left")["word"]
        .fill_null("")
    )


def _impressions(rng: np.random.Generator, platform: Platform, count: int) -> pl.DataFrame:
    item = _draw(rng, platform.popularity, count)
    time = _time_after(rng, platform.uploaded[item])
    clock = (time + SHANGHAI) // 60_000
    duration = rng.integers(5_000, 90_000, count).astype(np.float64)
    flags = {name: (rng.random(count) < rate).astype(np.int8) for name, rate in FLAG_RATES.items()}
    return pl.DataFrame(
        {
            "user_id": platform.user_key[_draw(rng, platform.activity, count)],
            "video_id": platform.item_key[item],
            "p_hourmin": clock // 60 % 24 * 100 + clock % 60,
            "time_ms": time.astype(np.float64),
            **flags,
            "play_time_ms": np.round(duration * rng.random(count) * 1.2),
            "duration_ms": duration,
            "profile_stay_time": rng.integers(0, 10_000, count) * (rng.random(count) < 0.02),
            "comment_stay_time": rng.integers(0, 60_000, count) * (rng.random(count) < 0.13),
        }
    )


def _time_after(rng: np.random.Generator, uploaded: Ints) -> Ints:
    earliest = np.maximum(uploaded, START)
    return np.asarray(earliest + (rng.random(len(uploaded)) * (END - earliest)).astype(np.int64))


def _comments(
    rng: np.random.Generator, platform: Platform, words: pl.Series, *, first: int, count: int
) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "comment_id": np.arange(first, first + count) * 7 + 600_000_000_001,
            "comment_content": _texts(rng, words, count),
            "video_id": platform.item_key[_draw(rng, platform.popularity, count)],
            "comment_like_cnt": rng.integers(0, 200, count),
            "comment_reply_out": rng.integers(0, 10, count),
            "show_comment_cnt_td": rng.integers(0, 5_000, count),
        }
    )


def _comment_events(rng: np.random.Generator, platform: Platform, comments: pl.DataFrame) -> pl.DataFrame:
    count = max(1, len(comments) // COMMENTS_AN_EVENT)
    comment = _draw(rng, _shares(_zipf(len(comments), 0.5)), count)
    item = comments["video_id"].gather(comment).to_numpy()
    order = np.argsort(platform.item_key)
    uploaded = platform.uploaded[order[np.searchsorted(platform.item_key, item, sorter=order)]]
    liked = rng.random(count) < 0.85
    return pl.DataFrame(
        {
            "user_id": platform.user_key[_draw(rng, platform.activity, count)],
            "comment_id": comments["comment_id"].gather(comment),
            "time_stamp": _time_after(rng, uploaded) // 1_000,
            "photo_id": item,
            "is_like": liked.astype(np.int8),
            "is_reply": (~liked | (rng.random(count) < 0.05)).astype(np.int8),
        }
    )


def _item_features(rng: np.random.Generator, platform: Platform, words: pl.Series) -> pl.DataFrame:
    count = len(platform.item_key)
    day = pl.Series(platform.uploaded + SHANGHAI).cast(pl.Datetime("ms")).dt.date().cast(pl.String)
    return pl.DataFrame(
        {
            "video_id": platform.item_key,
            "author_id": rng.integers(3_000_000_000, 3_100_000_000, count),
            "video_type": np.where(rng.random(count) < 0.98, "NORMAL", "AD"),
            "upload_dt": day,
            "caption": _texts(rng, words, count),
            "duration": rng.integers(5_000, 90_000, count).astype(np.float64),
            "category": np.array(CATEGORIES)[rng.integers(0, len(CATEGORIES), count)],
        }
    )


def _user_features(rng: np.random.Generator, platform: Platform) -> pl.DataFrame:
    count = len(platform.user_key)
    degrees = np.array(["high_active", "full_active", "middle_active", "UNKNOWN"])
    return pl.DataFrame(
        {
            "user_id": platform.user_key,
            "user_active_degree": degrees[rng.integers(0, len(degrees), count)],
            "is_live_author": rng.integers(0, 2, count),
            "produce_video_num": rng.integers(0, 50, count),
            "follow_count": rng.integers(0, 500, count),
            "follow_user_num_range": np.array(["0", "(0,10]", "500+"])[rng.integers(0, 3, count)],
            "fans_count": rng.integers(0, 700, count),
            "fans_user_num_range": np.array(["0", "[1,10)", "[100,1k)"])[rng.integers(0, 3, count)],
            "friend_user_num_range": np.array(["0", "[1,5)", "250+"])[rng.integers(0, 3, count)],
            "register_days": rng.integers(1, 3_000, count),
            **{f"onehot_feat{index}": rng.integers(0, size, count) for index, size in enumerate(ONE_HOT_SIZES)},
        }
    )


def measure(raw: Path, *, out: Path, seed: int, note: str) -> None:
    """Prepare `raw` in this process and print how long it took and how much memory the process has ever held."""
    started = perf_counter()
    prepare("kuaicomt", raw=raw, out=out, settings=PrepareSettings(seed=seed))
    seconds = perf_counter() - started
    used = versions(["polars", "numpy"])
    emit(Measurement(name=SECONDS, value=seconds, unit="s", seed=seed, note=note, versions=used))
    emit(Measurement(name=PEAK_MEMORY, value=peak_memory_mib(), unit="MiB", seed=seed, note=note, versions=used))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--impressions", type=int, default=10_000_000)
    parser.add_argument("--comments", type=int, default=2_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path, help="where the temporary folder is made")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    note = f"{given.impressions:,} impressions, {given.comments:,} comments"
    if given.measure:
        measure(given.measure / "raw", out=given.measure / "dataset", seed=given.seed, note=note)
        return
    with tempfile.TemporaryDirectory(dir=given.dir) as folder:
        raw = Path(folder) / "raw"
        raw.mkdir()
        write_log(raw, impressions=given.impressions, comments=given.comments, seed=given.seed)
        # A process of its own, so that its peak memory is that of the step alone.
        command = [sys.executable, "-m", "benchmarks.kuaicomt", "--measure", folder, *sys.argv[1:]]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
