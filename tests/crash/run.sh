#!/usr/bin/env bash
# Shows that a power cut leaves no wrong object and loses no acknowledged record, on ext4, xfs and btrfs.
#
#   tests/crash/run.sh [--seconds N] [--fs ext4,xfs,btrfs] [--work stages,writers,ckpt,lock,gc]
#                                                             default: 20 s a cell, about six minutes
#   tests/crash/run.sh --self-test                            plants short blobs, lost records and checkpoints, torn locks in clones and
#                                                             demands that each is seen
#
# A file system lies in an image file on a btrfs, is mounted through a loop device, and `mla-run` publishes in it as fast as it
# can. Every 1.5 s the image is cloned at one point in time: that is what had reached the disk. The clone is mounted, recovers as
# after a power cut, and is checked: every object has the bytes of its name, every record that a run had acknowledged before the
# clone (its process had ended) is there with all its blobs, also when two processes write the same keys at once, a stage goes on from
# the checkpoint that was acknowledged or from a newer one, every lock file is whole and one of those written, not older than the
# last one acknowledged. It ends with a table, and with 1 if any row has other numbers than 0 for wrong and absent.
#
# Needs root, loop devices, btrfs-progs, xfsprogs, e2fsprogs and python3; b3sum checks the objects a second time where it is
# installed. MLA_RUN is the program (default target/release/mla-run), CRASH_DIR a folder for the images (default: in $TMPDIR or
# /tmp; up to 4 GB). What the disk itself forgets, when it lies about flushes, is not shown.
set -euo pipefail
cd "$(dirname "$0")/../.."

skip() {
  echo "SKIPPED: $1; to provide it: $2" >&2
  exit 0
}

PATH=$PATH:/usr/sbin:/sbin
export MLA_RUN=${MLA_RUN:-target/release/mla-run}
[ "$(id -u)" = 0 ] || skip "mounting needs root" "sudo $0"
[ -x "$MLA_RUN" ] || skip "there is no $MLA_RUN" "cargo build --release"
[ -e /dev/loop-control ] || skip "there are no loop devices" "modprobe loop"
for tool in mkfs.btrfs:btrfs-progs mkfs.xfs:xfsprogs mkfs.ext4:e2fsprogs; do
  type -P "${tool%:*}" >/dev/null || skip "there is no ${tool%:*}" "apt-get install ${tool#*:}"
done
grep -qw btrfs /proc/filesystems || modprobe btrfs 2>/dev/null || skip "the kernel has no btrfs" "modprobe btrfs"
exec python3 tests/crash/powercut.py "$@"
