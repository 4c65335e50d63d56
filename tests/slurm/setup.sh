#!/usr/bin/env bash
# A Slurm cluster of one node with two pretended GPUs on this machine, for tests of jobs. Shows that arrays with GPUs, requeue
# and preemption work on it. Needs root, and Debian's packages `slurm-wlm` and `munge`, which it installs with apt if absent.
#
#   tests/slurm/setup.sh          installs, starts what is not running and proves it; a second call changes nothing
#   tests/slurm/setup.sh stop     ends the daemons and all jobs
#   tests/slurm/setup.sh env      prints the line that a shell needs: eval "$(tests/slurm/setup.sh env)"
#   tests/slurm/setup.sh prove    proves it again
#
# Everything lies in $SLURM_TEST_DIR (default: slurm-test in $TMPDIR or /tmp): configuration, key, state, logs, and `jobs.log`,
# the record of ended jobs. Nothing under /etc is read or written, and the ports are not Slurm's usual ones.
#
# What tests may rely on, after `eval "$(tests/slurm/setup.sh env)"`, which sets SLURM_CONF:
#
#   sbatch --parsable --array=0-3%2 --gres=gpu:1 --wrap 'echo $CUDA_VISIBLE_DEVICES'
#   sbatch --requeue -p low …                    partition `low` (the default) gives way to `high`: a job there gets SIGTERM, and
#                                                the signal of `--signal=B:USR1@10` if it asked for one, five seconds later
#                                                SIGKILL, and is queued again with SLURM_RESTART_COUNT one higher
#   sbatch -p high …                             takes the place of jobs in `low`
#   sbatch --dependency=afterok:ID …             as everywhere
#   squeue --noheader --array --format '%i %T %r' --jobs ID,ID
#   scontrol show job ID                         knows an ended job for 300 seconds (MinJobAge)
#   scontrol requeue ID                          a requeued job waits for two minutes or so (reason BeginTime); to hurry it, again
#   scontrol update jobid=ID StartTime=now       and again while it is PENDING: the end of the old run sets the time anew
#   scontrol update nodename=node1 state=drain reason=test     and state=resume
#   sacct                                        does not work here, as on many clusters: no accounting database
#
# The node says 4 CPUs, 2000 MB and 2 GPUs, whatever the machine has. Array indices go to 100 (MaxArraySize=101), a job that
# ended by time limit or scancel is killed after 5 seconds (KillWait), a batch job that does not start is given up after
# 10 seconds (BatchStartTimeout).
set -euo pipefail

dir=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/slurm-test}
export SLURM_CONF=$dir/slurm.conf

say() { echo "slurm: $*"; }

skip() {
  echo "SKIPPED: $1; to provide it: $2" >&2
  exit 0
}

install_packages() {
  local name
  for name in slurmctld slurmd munged sbatch scontrol; do
    type -P "$name" >/dev/null || [ -x "/usr/sbin/$name" ] && continue
    say "installing slurm-wlm and munge"
    DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends slurm-wlm munge >"$dir/apt.log" 2>&1 ||
      skip "Slurm is not installed and apt could not install it ($dir/apt.log)" "apt-get install slurm-wlm munge"
    return
  done
}

# Slurm 22.05: without a cgroup.conf, without cgroup plug-ins; GPUs are any device files.
configure() {
  local host
  host=$(hostname -s)
  mkdir -p "$dir"/{state,spool,log}
  cat >"$dir/slurm.conf.new" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=16817
SlurmdPort=16818
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$dir/jobs.log
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,batch_sched_delay=0,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
JobRequeue=1
MaxArraySize=101
MinJobAge=300
KillWait=5
BatchStartTimeout=10
CompleteWait=0
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout=60
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=2000 Gres=gpu:2 State=UNKNOWN
PartitionName=low Nodes=node1 Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=5
PartitionName=high Nodes=node1 MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
CONF
  printf 'NodeName=node1 Name=gpu File=/dev/null\nNodeName=node1 Name=gpu File=/dev/zero\n' >"$dir/gres.conf"
  if [ -e "$SLURM_CONF" ] && ! cmp -s "$SLURM_CONF" "$SLURM_CONF.new"; then
    say "the configuration changed: starting anew"
    stop
  fi
  mv "$SLURM_CONF.new" "$SLURM_CONF"
}

# alive NAME: whether the daemon that this folder's pid file names runs.
alive() {
  local pid
  pid=$(cat "$dir/$1.pid" 2>/dev/null) && [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = "$1" ]
}

# Waits for at most this many tenths of a second until the command succeeds.
await() {
  local left=$1
  shift
  until "$@" >/dev/null 2>&1; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || return 1
    sleep 0.1
  done
}

start() {
  if [ ! -e "$dir/munge.key" ]; then
    (umask 077 && head -c 1024 /dev/urandom >"$dir/munge.key")
  fi
  alive munged || munged --key-file="$dir/munge.key" --socket="$dir/munge.socket" --pid-file="$dir/munged.pid" \
    --log-file="$dir/log/munged.log" --seed-file="$dir/munged.seed" --num-threads=2
  await 50 test -S "$dir/munge.socket" || { say "munged did not start: $dir/log/munged.log"; exit 1; }
  alive slurmctld || slurmctld -f "$SLURM_CONF"
  await 100 scontrol ping || { say "slurmctld did not start: $dir/log/slurmctld.log"; exit 1; }
  alive slurmd || slurmd -f "$SLURM_CONF" -N node1
  if ! await 300 sees_idle; then
    say "the node does not become idle: $dir/log/slurmd.log"
    sinfo
    exit 1
  fi
  sinfo
}

sees_idle() { sinfo --noheader --format %T --nodes node1 | grep -Eqx 'idle|mixed|allocated'; }

stop() {
  local name
  if alive slurmctld && [ -n "$(squeue --noheader 2>/dev/null)" ]; then
    scancel --user="$(id -un)" || true
    await 100 no_jobs || true
  fi
  for name in slurmd slurmctld munged; do
    alive "$name" || continue
    kill "$(cat "$dir/$name.pid")"
    await 100 dead "$name" || kill -KILL "$(cat "$dir/$name.pid")"
  done
}

no_jobs() { [ -z "$(squeue --noheader)" ]; }
dead() { ! alive "$1"; }

restarted() { scontrol show job "$1" | grep -q "Restarts=$2"; }
in_state() { scontrol show job "$1" | grep -q "JobState=$2"; }

# What the jobs print is expanded there, not here.
# shellcheck disable=SC2016
prove() {
  local out job high
  out=$(mktemp -d "$dir/prove.XXXXXX")
  cd "$out"

  job=$(sbatch --parsable --array=0-3 --gres=gpu:1 --output "$out/array-%a" \
    --wrap 'echo "task $SLURM_ARRAY_TASK_ID gpu $CUDA_VISIBLE_DEVICES"; sleep 0.5')
  await 600 no_task "$job" || { say "the array did not end"; squeue; exit 1; }
  cat "$out"/array-*
  [ "$(grep -Ec '^task [0-3] gpu [01]$' <(cat "$out"/array-*))" = 4 ] || { say "the array's tasks saw no GPUs"; exit 1; }

  job=$(sbatch --parsable --requeue --output "$out/requeue" --open-mode=append \
    --wrap 'echo "start ${SLURM_RESTART_COUNT:-0}"; [ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] || sleep 60')
  await 200 grep -q 'start 0' "$out/requeue" || { say "the job for requeue did not start"; exit 1; }
  scontrol requeue "$job"
  again "$job" "$out/requeue"

  job=$(sbatch --parsable --requeue --gres=gpu:2 --signal=B:USR1@10 --output "$out/preempt" --open-mode=append --wrap \
    'echo "start ${SLURM_RESTART_COUNT:-0}"; [ "${SLURM_RESTART_COUNT:-0}" -ge 1 ] && exit
     trap "echo USR1" USR1; trap "echo TERM" TERM; for i in $(seq 300); do sleep 0.1; done')
  await 200 grep -q 'start 0' "$out/preempt" || { say "the job for preemption did not start"; exit 1; }
  high=$(sbatch --parsable -p high --gres=gpu:2 --output "$out/high" --wrap 'echo high')
  await 600 no_task "$high" || { say "the job in high did not take the place of the one in low"; squeue; exit 1; }
  grep -qx high "$out/high"
  again "$job" "$out/preempt"
  grep -qx USR1 "$out/preempt" || say "note: no USR1 before the preemption"
  cd "$dir"
  rm -rf "$out"
  say "an array with GPUs, a requeue and a preemption worked"
}

no_task() { ! squeue --noheader --states=all --jobs "$1" --format %T | grep -qv COMPLETED; }

# Whether the job ended well; one that waits for its time is told that it has come. Not at once: a node that still ends the old run
# refuses to launch the new one, and the job has failed.
hurried() {
  in_state "$1" COMPLETED && return
  in_state "$1" PENDING || return 1
  sleep 5
  ! in_state "$1" PENDING || scontrol update jobid="$1" StartTime=now
  return 1
}

# again JOB OUTPUT: the job is queued again and this time ends well.
again() {
  local since=$SECONDS
  await 300 restarted "$1" 1 || { say "job $1 was not queued again"; scontrol show job "$1"; exit 1; }
  await 600 hurried "$1" || { say "job $1 did not end"; scontrol show job "$1"; exit 1; }
  say "job $1 was queued again and ended $((SECONDS - since)) s later: $(paste -sd ' ' "$2")"
}

[ "$(id -u)" = 0 ] || skip "the daemons need root" "sudo $0"
PATH=$PATH:/usr/sbin
case ${1:-start} in
  start)
    mkdir -p "$dir"
    install_packages
    configure
    fresh=yes
    ! { alive slurmctld && alive slurmd; } || fresh=no
    start
    [ $fresh = no ] || prove
    say "ready; in a shell: export SLURM_CONF=$SLURM_CONF"
    ;;
  prove) prove ;;
  stop)
    stop
    say "stopped"
    ;;
  env) echo "export SLURM_CONF=$SLURM_CONF" ;;
  *) sed -n '5,8s/^# *//p' "$0" >&2; exit 2 ;;
esac
