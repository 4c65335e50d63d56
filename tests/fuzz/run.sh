#!/usr/bin/env bash
# Feeds changed bytes to what decodes manifests, records, listings, keys and signatures, guided by coverage (libFuzzer).
#
#   tests/fuzz/run.sh [SECONDS] [TARGET…]     default: 600 CPU seconds for each of manifest record tree key signature
#
# The seeds are tests/fuzz/seeds, the manifests of tests/manifests and the pipelines. What was found worth keeping stays in
# target/fuzz/corpus (CARGO_TARGET_DIR moves it) and is gone on with the next time. The first build takes about 15 minutes. It ends
# with a table, and with 1 if any input made a target panic, hang for 20 s or take more than 2 GB: then it prints that input and how
# to run it again. NICE is the priority (default 19).
#
# Needs cargo-fuzz and a C++ compiler; a stable Rust is enough, since no sanitizer is used.
set -uo pipefail
cd "$(dirname "$0")/../.."

skip() {
    printf '\n!! SKIPPED: %s; to provide it: %s\n' "$1" "$2" >&2
    exit 0
}
cargo fuzz --version >/dev/null 2>&1 || skip "there is no cargo-fuzz" "cargo install cargo-fuzz --locked"
command -v "${CXX:-c++}" >/dev/null || skip "there is no C++ compiler" "apt-get install g++"

seconds=600
if [[ ${1:-} =~ ^[0-9]+$ ]]; then
    seconds=$1
    shift
fi
targets=("$@")
[ $# -gt 0 ] || targets=(manifest record tree key signature)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target/fuzz}
nice=(nice -n "${NICE:-19}")

# The versions that the program is locked to; the two crates that only this needs are added.
[ -e tests/fuzz/Cargo.lock ] || cp Cargo.lock tests/fuzz/Cargo.lock
for target in "${targets[@]}"; do
    [ -e "tests/fuzz/targets/$target.rs" ] || { echo "there is no target $target" >&2; exit 2; }
    "${nice[@]}" cargo fuzz build --fuzz-dir tests/fuzz --sanitizer none -O -a "$target" || exit 1
done

seed() { # target, its corpus
    for file in tests/fuzz/seeds/"$1"/*; do
        [ ! -e "$file" ] || cp "$file" "$2/seed-${file##*/}"
    done
    [ "$1" = manifest ] || return 0
    for file in tests/manifests/*.toml pipelines/*.toml; do
        cp "$file" "$2/seed-${file##*/}"
    done
}

fuzz() { # target; adds a row to the table
    local corpus=$CARGO_TARGET_DIR/corpus/$1 found=$CARGO_TARGET_DIR/artifacts/$1 log=$CARGO_TARGET_DIR/$1.log
    local program=$CARGO_TARGET_DIR/$(rustc -vV | sed -n 's/^host: //p')/release/$1
    local used=0 runs=0 state=ok args=(-timeout=20 -rss_limit_mb=2048 -max_len=8192 -print_final_stats=1)
    mkdir -p "$corpus" "$found"
    seed "$1" "$corpus"
    [ ! -e "tests/fuzz/$1.dict" ] || args+=("-dict=tests/fuzz/$1.dict")
    # The limit is wall time, and the rest of the machine takes its share: again until the CPU seconds are used up.
    while ((seconds - used > 1)) && [ $state = ok ]; do
        local TIMEFORMAT='%U %S' cpu
        cpu=$( { time "${nice[@]}" "$program" "${args[@]}" -max_total_time=$((seconds - used)) \
            -artifact_prefix="$found/" "$corpus" >"$log" 2>&1 || echo stopped; } 2>&1)
        [[ $cpu != *stopped* ]] || again "$log" "$program" || state=CRASH
        used=$((used + $(awk 'NF == 2 { print int($1 + $2 + 0.5) }' <<<"$cpu")))
        runs=$((runs + $(awk '/^stat::number_of_executed_units/ { n = $2 } END { print n + 0 }' "$log")))
        ((used > 0)) || state=CRASH
    done
    rows+=("$(printf '%-10s %12d %7d %7d   %s' "$1" "$runs" "$used" "$(find "$corpus" -type f | wc -l)" "$state")")
    [ $state = ok ] || crashed "$1" "$log" "$program"
}

again() { # log, program; whether it was only a pause of the machine that made an input late
    local late
    late=$(sed -n 's/.*Test unit written to \(.*\/timeout-.*\)/\1/p' "$1" | tail -1)
    [ -n "$late" ] && "${nice[@]}" "$2" -timeout=20 "$late" >/dev/null 2>&1 && rm "$late"
}

crashed() { # target, its log, its program
    failed=1
    local input
    input=$(sed -n 's/.*Test unit written to //p' "$2" | tail -1)
    printf '\nCRASH in %s\n' "$1" >&2
    grep -v '^#[0-9]*\s\(NEW\|REDUCE\|pulse\|RELOAD\)' "$2" | tail -40 >&2
    [ -z "$input" ] || printf '\nthe input: %s\n%s\nagain: %s %s\n' "$input" "$(base64 -w 100 "$input")" "$3" "$input" >&2
}

failed=0 rows=()
for target in "${targets[@]}"; do
    fuzz "$target"
done
printf '\n%-10s %12s %7s %7s\n' target executions "CPU s" inputs
printf '%s\n' "${rows[@]}"
exit $failed
