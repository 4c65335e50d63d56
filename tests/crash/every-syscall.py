#!/usr/bin/env python3
"""Shows that a run which is killed, or whose disk fails, at any system call that changes files leaves nothing wrong behind.

  tests/crash/every-syscall.py [--stride N] [--only kill,error,full]      default: every call, two minutes

kill   SIGKILL at every call of each kind (every N-th), until a run gets through; after each, a plain run must end with
       the same digests and `cache verify` must find all of it sound.
error  fsync fails with EIO, and rename, link, write, openat with ENOSPC, at the same points: the run must end well or with 1 or 5
       and say why (or with 3, if it was the manifest that could not be opened); after it, the same as above.
full   a cache on a tmpfs that is too small: as for error, and it says that space is short; once there is room the run ends well.

Needs Linux, strace (Debian: strace) and for `full` root. MLA_RUN is the program (default target/release/mla-run). The commands of
the stages are traced along with it, so at times it is one of them that is killed: then the stage must count as failed.
--stride 7 takes 20 seconds.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

PROGRAM = str(Path(os.environ.get("MLA_RUN", "target/release/mla-run")).resolve())
CALLS = (
    "openat rename renameat renameat2 link linkat unlink unlinkat fsync fdatasync write writev pwrite64 "
    "mkdir mkdirat rmdir symlink symlinkat chmod fchmod fchmodat ftruncate flock copy_file_range"
).split()
ERRORS = [("fsync", "EIO"), ("fdatasync", "EIO"), ("rename", "ENOSPC"), ("renameat2", "ENOSPC"), ("linkat", "ENOSPC"),
          ("link", "ENOSPC"), ("write", "ENOSPC"), ("openat", "ENOSPC"), ("mkdir", "ENOSPC"), ("unlink", "EIO"),
          ("unlinkat", "EIO"), ("fchmod", "EIO"), ("symlink", "ENOSPC")]
MANIFEST = """
[stage.one]
kind = "exec"
argv = ["sh", "-c", "set -e; seq 1 300 > {out}/n; echo 1 > {out}/m"]
outputs = ["n", "m"]

[stage.two]
kind = "exec"
argv = ["sh", "-c", "sed s/^/a/ {in.n}/n > {out}/n"]
inputs = { n = "one" }
outputs = ["n"]

[stage.three]
kind = "exec"
argv = ["sh", "-c", "cat {in.n}/n {in.m}/m > {out}/n"]
inputs = { n = "two", m = "one" }
outputs = ["n"]
"""


def skip(why, command):
    print(f"SKIPPED: {why}; to provide it: {command}", file=sys.stderr)
    sys.exit(0)


class Space:
    """A folder with a manifest and a cache."""

    def __init__(self, folder):
        self.folder, self.cache = folder, folder / "cache"
        (folder / "p.toml").write_text(MANIFEST)

    def run(self, *before):
        words = [*before, PROGRAM, "run", str(self.folder / "p.toml"), "--cache", str(self.cache)]
        words += ["--format", "json", "--jobs", "1"]
        return subprocess.run(words, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=120)

    def verify(self):
        words = [PROGRAM, "cache", "verify", "--cache", str(self.cache), "--format", "json"]
        return subprocess.run(words, capture_output=True, text=True)

    def fresh(self):
        for path in self.folder.iterdir():
            if path.name != "p.toml":
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def digests(done):
    summary = json.loads(done.stdout.strip().splitlines()[-1])
    assert summary["status"] == "ok", done.stderr
    return {s["name"]: {port: o["digest"] for port, o in s["outputs"].items()} for s in summary["stages"]}


class Sweep:
    """Counts, and the faults found."""

    def __init__(self, space, expected):
        self.space, self.expected, self.counts, self.faults = space, expected, Counter(), []

    def fault(self, where, text):
        self.faults.append(f"{where}: {text}")
        print(f"FAULT {self.faults[-1]}", file=sys.stderr)

    def converges(self, where):
        """Is what lies there sound, and does a plain run get the same result?"""
        # Before the run, wrong objects are wrong at once; records or blobs that nobody names are not.
        if self.space.cache.joinpath("FORMAT").exists():
            before = self.space.verify()
            if before.returncode != 0:
                self.fault(where, f"`cache verify` after it: {before.stdout.strip()} {before.stderr.strip()}")
        done = self.space.run()
        try:
            have = digests(done)
        except (AssertionError, ValueError, IndexError):
            return self.fault(where, f"the next run ended with {done.returncode}: {done.stderr.strip()[-400:]}")
        if have != self.expected:
            self.fault(where, f"other digests: {have}")
        after = self.space.verify()
        if after.returncode != 0:
            self.fault(where, f"`cache verify`: {after.stdout.strip()} {after.stderr.strip()}")
        left = [p.name for kind in ("tmp", "lease") for p in (self.space.cache / kind).iterdir()]
        if len(left) > 2:
            self.fault(where, f"left over: {left}")

    def inject(self, call, what, n):
        """Runs with the n-th call of each thread made to fail; whether any was, and how it ended."""
        log = self.space.folder / "strace.log"
        inject = f"--inject={call}:{what}:when={n}"
        done = self.space.run("strace", "-f", "-qq", "-o", str(log), f"--trace={call}", inject)
        text = log.read_text(errors="replace") if log.exists() else ""
        return ("INJECTED" in text or "killed by SIGKILL" in text), done

    def points(self, stride):
        n = 1
        while True:
            yield n
            n += stride

    def kill(self, stride):
        for call in CALLS:
            met = 0
            for n in self.points(stride):
                self.space.fresh()
                hit, done = self.inject(call, "signal=KILL", n)
                if not hit:
                    break
                met += 1
                killed = done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
                self.counts["program killed" if killed else "stage killed"] += 1
                if not killed and done.returncode not in (0, 1, 5):
                    self.fault(f"kill {call} {n}", f"ended with {done.returncode}: {done.stderr.strip()[-300:]}")
                self.converges(f"kill {call} {n}")
            if met:
                print(f"  kill {call}: {met} points", flush=True)

    def error(self, stride):
        for call, errno in ERRORS:
            met, codes = 0, Counter()
            for n in self.points(stride):
                self.space.fresh()
                hit, done = self.inject(call, f"error={errno}", n)
                if not hit:
                    break
                met += 1
                codes[done.returncode] += 1
                self.counts["errors"] += 1
                where = f"{call} fails with {errno}, {n}"
                # A manifest that cannot be opened is a mistake in the manifest.
                unread = done.returncode == 3 and "cannot read" in done.stderr and "p.toml" in done.stderr
                if done.returncode not in (0, 1, 5) and not unread:
                    self.fault(where, f"ended with {done.returncode}: {done.stderr.strip()[-300:]}")
                elif done.returncode != 0 and not done.stderr.strip() and '"error"' not in done.stdout:
                    self.fault(where, f"ended with {done.returncode} and did not say why")
                self.converges(where)
            if met:
                ends = ", ".join(f"{count} with {code}" for code, count in sorted(codes.items()))
                print(f"  {call} {errno}: {met} points; ended {ends}", flush=True)


def full(sweep):
    """A cache on a tmpfs of some kilobytes: it fills up at another moment for each size."""
    if os.getuid() != 0:
        print("SKIPPED: a small tmpfs needs root; to provide it: sudo", file=sys.stderr)
        return
    space = sweep.space
    codes = Counter()
    for kilobytes in range(4, 200, 12):
        space.fresh()
        space.cache.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", space.cache], check=True)
        try:
            where = f"tmpfs of {kilobytes} kB"
            done = space.run()
            codes[done.returncode] += 1
            sweep.counts["full disks"] += done.returncode != 0
            if done.returncode not in (0, 1, 5):
                sweep.fault(where, f"ended with {done.returncode}: {done.stderr.strip()[-300:]}")
            elif done.returncode and "space" not in done.stderr + done.stdout:
                why = done.stderr.strip()[-300:]
                sweep.fault(where, f"ended with {done.returncode} and did not say that the disk is full: {why}")
            subprocess.run(["mount", "-o", "remount,size=64M", space.cache], check=True)
            sweep.converges(where)
        finally:
            subprocess.run(["umount", space.cache], check=True)
    ends = ", ".join(f"{count} with {code}" for code, count in sorted(codes.items()))
    print(f"  small tmpfs: {sum(codes.values())} sizes; ended {ends}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--stride", type=int, default=1)
    parser.add_argument("--only", default="kill,error,full")
    args = parser.parse_args()
    if not Path(PROGRAM).exists():
        skip("there is no program", "cargo build --release")
    if not shutil.which("strace"):
        skip("there is no strace", "apt-get install strace")
    with tempfile.TemporaryDirectory(prefix="every-syscall-", ignore_cleanup_errors=True) as scratch:
        space = Space(Path(scratch))
        expected = digests(space.run())
        sweep = Sweep(space, expected)
        hit, _ = sweep.inject("openat", "signal=KILL", 1)
        if not hit:
            skip("strace cannot trace here", "a container with CAP_SYS_PTRACE")
        parts = {
            "kill": lambda: sweep.kill(args.stride),
            "error": lambda: sweep.error(args.stride),
            "full": lambda: full(sweep),
        }
        for name in args.only.split(","):
            parts[name]()
    print(", ".join(f"{count} {what}" for what, count in sweep.counts.items()) + f"; {len(sweep.faults)} faults")
    return int(bool(sweep.faults))


if __name__ == "__main__":
    sys.exit(main())
