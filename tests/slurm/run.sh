#!/usr/bin/env bash
# Real pipelines on a real Slurm cluster of one node: an array of eight embeddings with pretended GPUs, the same digests as a local
# run, a run that is killed and taken up, a node that is drained meanwhile, a job that gives way and goes on from its checkpoint,
# a job whose time is up. Needs root once, for Slurm: tests/slurm/setup.sh provides it.
#
#   tests/slurm/run.sh [CASE…]      cases: shards killed drained preempted timeup (default: all, in this order)
set -euo pipefail
cd "$(dirname "$0")/../.."

tests/slurm/setup.sh
eval "$(tests/slurm/setup.sh env)"
type -P sbatch >/dev/null || { echo "SKIPPED: no Slurm; to provide it: tests/slurm/setup.sh" >&2; exit 0; }

[ -n "${MLA_RUN:-}" ] || cargo build --locked --release
# First with scripts in place of the scheduler: every way in which a job can end.
[ -n "${MLA_RUN:-}" ] || cargo test --locked --test main slurm
program=${MLA_RUN:-$PWD/target/release/mla-run}
work=$(mktemp -d "${TMPDIR:-/tmp}/mla-run-slurm.XXXXXX")
trap 'scancel --user root 2>/dev/null || true; scontrol update nodename=node1 state=resume 2>/dev/null || true; rm -rf "$work"' EXIT

fail() { echo "FAILED: $*" >&2; exit 1; }

# run NAME WORDS…: a run of $work/NAME.toml whose summary goes to $work/NAME.json
run() {
  local name=$1
  shift
  "$program" run "$work/$name.toml" --cache "$work/cache-$name" --format json "$@" 2>"$work/$name.err" | tail -n 1 >"$work/$name.json"
}

# ask FILE EXPRESSION: a Python expression over the summary `run` of FILE.json
ask() { python3 -c 'import json, sys; run = json.load(open(sys.argv[1])); print(eval(sys.argv[2]))' "$work/$1.json" "$2"; }

statuses='sorted(f"{s["name"]}:{s["status"]}" for s in run["stages"])'
digests='{s["name"]: {p: o["digest"] for p, o in s["outputs"].items()} for s in run["stages"]}'

# until SECONDS COMMAND…: waits for the command to succeed
until_true() {
  local end=$((SECONDS + $1))
  shift
  until "$@"; do [ $SECONDS -lt $end ] || return 1; sleep 0.2; done
}

# Files without a line end at their end, as lines.
cat_lines() { awk 1 "$@"; }

jobs_now() { squeue --noheader --array --format '%i %T'; }

# A requeued job waits for two minutes; here it may start after five seconds, in which the node ends the old run.
hurry() {
  local job waiting
  waiting=$(squeue --noheader --array --states PENDING --format %i)
  sleep 5
  for job in $(squeue --noheader --array --states PENDING --format %i | grep -Fx "${waiting:-none}"); do
    scontrol update jobid="$job" StartTime=now 2>/dev/null || true
  done
}

shards() {
  cat >"$work/shards.toml" <<'TOML'
[executor.slurm]
poll = "2s"

[stage.corpus]
sources = [{ synthetic = { prose = 20, programs = 20, maths = 20, min-tokens = 64, max-tokens = 400 }, licence = "MIT" }]

[stage.embed]
texts = "corpus"
dim = 64
shards = 8
resources = { gpus = 1, cpus = 1, time = "10m" }
TOML
  run shards || fail "the run over Slurm: $(tail -n 3 "$work/shards.err")"
  ask shards "$digests" >"$work/away"
  [ "$(cat_lines "$work/cache-shards"/job/*.id | cut -d_ -f1 | sort | uniq -c | sort -rn | awk 'NR == 1 { print $1 }')" -ge 8 ] ||
    fail "the eight that were ready together are not one array"
  cp "$work/shards.toml" "$work/here.toml"
  run here --local || fail "the local run"
  ask here "$digests" | cmp - "$work/away" || fail "other digests than a local run"
  run shards
  [ "$(ask shards 'all(s["status"] == "cached" for s in run["stages"])')" = True ] || fail "the second run is not all cached"
  echo "shards: eight shards and what is around them in $(cat_lines "$work/cache-shards"/job/*.id | cut -d_ -f1 | sort -u | wc -l) arrays, the same digests as here, then all cached"
}

slow_pipeline() {
  cat >"$work/$1.toml" <<TOML
[executor.slurm]
poll = "2s"
partition = "low"
[stage.slow]
kind = "exec"
matrix = { seed = [1, 2, 3] }
argv = ["sh", "-c", "echo {seed} > {out}/n; sleep $2"]
outputs = ["n"]
TOML
}

killed() {
  slow_pipeline killed 8
  run killed &
  until_true 60 sh -c 'squeue --noheader --states RUNNING | grep -q .' || fail "no job started"
  sleep 1
  pkill -KILL -f "run $work/killed.toml" || fail "nothing to kill"
  wait || true
  [ "$(jobs_now | wc -l)" -gt 0 ] || fail "the jobs ended with the run"
  before=$(cat_lines "$work/cache-killed"/job/*.id | sort)
  run killed || fail "the second run: $(tail -n 3 "$work/killed.err")"
  [ "$(cat_lines "$work/cache-killed"/job/*.id | sort)" = "$before" ] || fail "jobs were made twice"
  [ "$(ask killed 'run["status"]')" = ok ] || fail "$(ask killed "$statuses")"
  echo "killed: the next run waited for the jobs of the killed one"
}

drained() {
  slow_pipeline drained 5
  run drained &
  local pid=$!
  until_true 60 sh -c 'squeue --noheader --states RUNNING | grep -q .' || fail "no job started"
  scontrol update nodename=node1 state=drain reason=test
  sleep 8
  scontrol update nodename=node1 state=resume
  wait $pid || fail "the run: $(tail -n 3 "$work/drained.err")"
  [ "$(ask drained 'run["status"]')" = ok ] || fail "$(ask drained "$statuses")"
  echo "drained: jobs that could not start waited for the node"
}

# Counts to 100 in tenths of a second, and saves where it is when it is told to end.
counting_pipeline() {
  cat >"$work/$1.toml" <<TOML
[executor.slurm]
poll = "2s"
partition = "low"
[stage.count]
kind = "exec"
argv = ["sh", "-c", """
n=\$(cat "\$MLA_RESUME_FROM/n" 2>/dev/null || echo 0); echo "from \$n"
trap 'echo \$n > "\$MLA_CKPT_DIR/n"; exit 75' TERM
while [ \$n -lt $2 ]; do n=\$((n + 1)); sleep 0.1; done
echo \$n > {out}/n"""]
outputs = ["n"]
$3
TOML
}

goes_on() {
  local name=$1
  grep -qh '^from [1-9]' "$work/cache-$name"/job/*.run/*.log || fail "$name: it did not go on from a checkpoint"
  [ "$(ask "$name" 'run["status"]')" = ok ] || fail "$(ask "$name" "$statuses")"
}

preempted() {
  counting_pipeline preempted 150 ""
  run preempted &
  local pid=$!
  until_true 60 sh -c 'squeue --noheader --states RUNNING | grep -q .' || fail "no job started"
  sleep 3
  sbatch --partition high --cpus-per-task 4 --mem 2000 --output /dev/null --wrap 'sleep 2' >/dev/null
  until_true 60 sh -c 'squeue --noheader --partition low --states PENDING | grep -q .' || fail "nothing gave way"
  for _ in $(seq 30); do kill -0 $pid 2>/dev/null || break; hurry; done
  wait $pid || fail "the run: $(tail -n 3 "$work/preempted.err")"
  goes_on preempted
  echo "preempted: a job gave way, came again and went on from its checkpoint"
}

timeup() {
  # A minute is the least that Slurm knows; the job is told 15 s before, and Slurm looks every half minute or so.
  counting_pipeline timeup 800 'resources = { time = "1m" }'
  run timeup &
  local pid=$!
  for _ in $(seq 50); do kill -0 $pid 2>/dev/null || break; hurry; done
  wait $pid || fail "the run: $(tail -n 3 "$work/timeup.err")"
  goes_on timeup
  echo "timeup: a job whose time was up came again and went on from its checkpoint"
}

[ $# -gt 0 ] || set -- shards killed drained preempted timeup
for name in "$@"; do
  "$name"
done
