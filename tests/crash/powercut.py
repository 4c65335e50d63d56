"""The power-cut matrix: see run.sh, which checks what is needed and starts this. Python's standard library alone."""

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from pathlib import Path

PROGRAM = str(Path(os.environ.get("MLA_RUN", "target/release/mla-run")).resolve())
MAKE = {
    "ext4": ("512M", ["mkfs.ext4", "-q", "-F"]),
    "xfs": ("512M", ["mkfs.xfs", "-q", "-f"]),
    "btrfs": ("512M", ["mkfs.btrfs", "-q", "-f"]),
}
# A clone has the name of its original, which is mounted: xfs wants to be told, btrfs gives it another one (Linux 6.7).
MOUNT = {"ext4": "loop", "xfs": "loop,nouuid", "btrfs": "loop"}


class Broken(Exception):
    """The rig, not the program, does not work."""


def sh(*words, check=True):
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise Broken(f"{' '.join(map(str, words))}: {done.stderr.strip()}")
    return done


@contextlib.contextmanager
def mounted(image, folder, options):
    folder.mkdir(exist_ok=True)
    sh("mount", "-o", options, image, folder)
    try:
        yield folder
    finally:
        for _ in range(50):
            if sh("umount", folder, check=False).returncode == 0:
                break
            time.sleep(0.1)
        else:
            print(f"cannot unmount {folder}", file=sys.stderr)


def manifest(salt):
    """Two chains of three stages and a common end: small files, a few kilobytes, a megabyte; all of it new for each salt."""
    text = []
    for chain in "ab":
        for i in range(3):
            words = f"seq {salt}{i} {salt}{i + 1}000 | sed s/^/{chain}/ | head -c 1000000 > {{out}}/n; "
            words += f"echo {chain}{salt} > {{out}}/more"
            inputs = f'inputs = {{ n = "{chain}{i - 1}" }}\n' if i else ""
            argv = json.dumps(["sh", "-c", words])
            text.append(f'[stage.{chain}{i}]\nkind = "exec"\nargv = {argv}\n{inputs}outputs = ["n", "more"]\n')
    words = json.dumps(["sh", "-c", f"cat {{in.a}}/more {{in.b}}/more > {{out}}/n; echo {salt} >> {{out}}/n"])
    text.append(f'[stage.end]\nkind = "exec"\nargv = {words}\ninputs = {{ a = "a2", b = "b2" }}\noutputs = ["n"]\n')
    return "\n".join(text)


BIG = 300_000
STEPS = 4


def counting(salt):
    """A stage that ends with a checkpoint at every step, and is done after the last. Its log says where it went on from."""
    words = "n=0; size=%d; " % BIG
    words += 'if [ -n "$MLA_RESUME_FROM" ]; then n=$(cat $MLA_RESUME_FROM/n); size=$(wc -c < $MLA_RESUME_FROM/big); fi; '
    words += 'echo "from $n with $size"; n=$((n + 1)); '
    words += "head -c %d /dev/zero > $MLA_CKPT_DIR/big; echo $n > $MLA_CKPT_DIR/n; " % BIG
    words += "[ $n -gt %d ] || exit 75; echo $n {seed} > {out}/n" % STEPS
    argv = json.dumps(["sh", "-c", words])
    return f'[stage.count]\nkind = "exec"\nargv = {argv}\noutputs = ["n"]\nseed = {salt}\n'


def program(*words, cwd=None):
    return subprocess.run([PROGRAM, *map(str, words)], cwd=cwd, capture_output=True, text=True)


def result(done):
    lines = done.stdout.strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, ValueError):
        raise Broken(f"mla-run ended with {done.returncode}: {done.stderr.strip()[-600:]}") from None


def record_path(cache, key):
    return cache / "act" / key[:2] / key[2:]


class Work(threading.Thread):
    """Runs pipelines in a folder, one after the other, and knows what was acknowledged."""

    def __init__(self, kind, folder):
        super().__init__(daemon=True)
        self.kind, self.folder, self.cache = kind, folder, folder / "cache"
        self.acked, self.locks, self.runs, self.error = [], {}, 0, None
        # The stage that counts, and the last step whose checkpoint was acknowledged.
        self.step = (None, 0)
        self.stopping = threading.Event()

    def run(self):
        try:
            while not self.stopping.is_set():
                self.once(self.runs)
                self.runs += 1
        except Exception as error:  # noqa: BLE001: shown by the main thread
            self.error = error

    def once(self, i):
        if self.kind == "ckpt":
            self.count(i)
        elif self.kind == "writers":
            # Two runs of the same stages at once: each key is made by one of them, and the other one acknowledges it too.
            errors = []
            other = threading.Thread(target=self.pipeline, args=(i, "q", errors))
            other.start()
            self.pipeline(i, "p", errors)
            other.join()
            for error in errors[:1]:
                raise error
        else:
            self.pipeline(i)

    def count(self, i):
        source = self.folder / "count.toml"
        text = counting(100 + i)
        source.write_text(text)
        for step in range(1, STEPS + 2):
            done = program("run", source, "--cache", self.cache, "--format", "json")
            if step <= STEPS and done.returncode == 1 and "exit code 75" in done.stderr:
                self.step = (text, step)
            elif done.returncode != 0 or step <= STEPS:
                raise Broken(f"step {step} ended with {done.returncode}: {done.stderr[-600:]}")
        self.step = (None, 0)
        stage = result(done)["stages"][0]
        keys = {stage["key"]: sorted(o["digest"] for o in stage["outputs"].values())}
        self.acked.append({"keys": keys, "lock": ("count", -1), "manifest": text, "words": []})

    def pipeline(self, i, start="p", errors=None):
        try:
            self.one_pipeline(i, start)
        except Exception as error:  # noqa: BLE001: raised by the thread that waits
            if errors is None:
                raise
            errors.append(error)

    def one_pipeline(self, i, start):
        # A new name every fourth run: a lock file that is made is another case than one that is replaced.
        name = f"{start}{i // 4}"
        source = self.folder / f"{name}.toml"
        source.write_text(manifest(100 + i))
        # Variables given by `--set` leave the lock file alone.
        words = [] if self.kind == "lock" else ["--set", 'end.salt="x"']
        force = [] if self.kind == "writers" else ["--force", "all"]
        done = program("run", source, "--cache", self.cache, "--format", "json", *force, *words)
        summary = result(done)
        if summary["status"] != "ok":
            raise Broken(f"a run failed: {done.stderr[-600:]}")
        lock = self.folder / f"{name}.lock.toml"
        if self.kind == "lock":
            self.locks.setdefault(name, []).append(lock.read_text())
        stages = [s for s in summary["stages"] if s["status"] in ("ran", "cached")]
        keys = {s["key"]: sorted(o["digest"] for o in s["outputs"].values()) for s in stages}
        newest = (name, len(self.locks.get(name, ())) - 1)
        self.acked.append({"keys": keys, "lock": newest, "manifest": source.read_text(), "words": words})
        if self.kind == "gc" and i % 3 == 2:
            done = program("cache", "gc", *os.environ.get("CRASH_GC", "").split(), "--cache", self.cache)
            if done.returncode != 0:
                raise Broken(f"cache gc ended with {done.returncode}: {done.stderr[-600:]}")


class Row:
    """What was seen in the clones of one cell."""

    def __init__(self, fs, kind):
        self.fs, self.kind = fs, kind
        self.runs = self.clones = self.objects = self.records = self.wrong = self.absent = 0
        self.notes = []

    def fault(self, column, text):
        setattr(self, column, getattr(self, column) + 1)
        self.notes.append(f"{self.fs} {self.kind}: {column}: {text}")


def check(row, folder, acked, needed, locks):
    """Checks a mounted clone. `acked` had ended before it was made, `needed` are those of its keys that must be there."""
    cache = folder / "cache"
    blobs = [path for path in cache.glob("blob/??/*")]
    row.objects += len(blobs)
    wrong = set()
    if blobs and shutil.which("b3sum"):
        lines = sh("b3sum", *blobs).stdout.splitlines()
        for line, path in zip(lines, blobs, strict=True):
            if line.split()[0] != path.parent.name + path.name:
                wrong.add(path.parent.name + path.name)
                row.fault("wrong", f"blob {path.parent.name}{path.name} has {path.stat().st_size} other bytes")
    absent = {key for key in needed if not record_path(cache, key).exists()}
    for key in sorted(absent):
        row.fault("absent", f"record {key}")
    if (cache / "FORMAT").exists() or acked:
        verified = result(program("cache", "verify", "--cache", cache, "--format", "json"))
        row.records += verified["records"]
        for line in verified["damaged"]:
            if not any(digest in line for digest in wrong):
                row.fault("wrong", line)
        for line in verified["incomplete"]:
            row.fault("wrong", line)
    if acked and not absent and not wrong and needed.issuperset(acked[-1]["keys"]):
        # The program itself finds all of the last acknowledged run, with the same digests.
        (folder / "again.toml").write_text(acked[-1]["manifest"])
        words = acked[-1]["words"]
        again = result(program("run", folder / "again.toml", "--cache", cache, "--format", "json", *words))
        for stage in again["stages"]:
            want = acked[-1]["keys"].get(stage["key"])
            have = sorted(o["digest"] for o in stage["outputs"].values())
            if want and (stage["status"], have) != ("cached", want):
                row.fault("absent", f"stage {stage['name']} is {stage['status']} in the clone")
    seen, torn = {}, set()
    for path in folder.glob("*.lock.toml"):
        name, text = path.name.removesuffix(".lock.toml"), path.read_bytes()
        if name == "again":
            continue
        row.objects += 1
        try:
            tomllib.loads(text.decode())["format"]
        except (ValueError, KeyError):
            row.fault("wrong", f"lock file {name}.lock.toml has {len(text)} bytes and is torn")
            torn.add(name)
            continue
        seen[name] = text.decode()
    if row.kind == "lock":
        newest = dict(entry["lock"] for entry in acked)
        # Checked once the work is over, when all versions are known.
        locks.append((newest, seen, torn))


def check_step(row, folder, step):
    """A stage whose checkpoint was acknowledged goes on from it, or from a newer one, and finds it whole."""
    text, acked = step
    if text is None:
        return
    (folder / "count.toml").write_text(text)
    done = program("run", folder / "count.toml", "--cache", folder / "cache", "--format", "json")
    stage = result(done)["stages"][0]
    row.objects += 1
    if stage["status"] == "cached":
        return  # it came to its end before the clone was made
    said = re.search(r"from (\d+) with (\d+)", Path(stage["log"]).read_text())
    if not said or int(said[2]) != BIG:
        row.fault("wrong", f"a checkpoint is not whole: {said and said[0]}")
    elif int(said[1]) < acked:
        row.fault("absent", f"checkpoint {acked}: it went on from {said[1]}")


def check_locks(row, found, written):
    for newest, seen, torn in found:
        for name, text in seen.items():
            versions = written.get(name, [])
            if text not in versions:
                row.fault("wrong", f"lock file {name}.lock.toml was never written so")
            elif versions.index(text) < newest.get(name, 0):
                row.fault("absent", f"lock file {name}.lock.toml is older than the one acknowledged")
        for name in sorted(newest.keys() - seen.keys() - torn):
            row.fault("absent", f"lock file {name}.lock.toml")


def cell(fs, kind, seconds, outer, plant=None):
    """Runs one kind of work on one file system. `plant` damages every mounted clone before it is checked."""
    row = Row(fs, kind)
    size, make = MAKE[fs]
    image = outer / f"{fs}.img"
    image.unlink(missing_ok=True)
    sh("truncate", "-s", size, image)
    sh(*make, image)
    found = []
    with mounted(image, outer / "live", "loop") as live:
        work = Work(kind, live)
        work.start()
        until = time.monotonic() + seconds
        while time.monotonic() < until and work.error is None:
            time.sleep(1.5)
            acked, step = list(work.acked), work.step
            clone = outer / "clone.img"
            clone.unlink(missing_ok=True)
            sh("cp", "--reflink=always", image, clone)
            # What a clean-up removed on purpose is not lost: what counts is what is there after the clone.
            needed = {key for entry in acked for key in entry["keys"] if record_path(work.cache, key).exists()}
            with mounted(clone, outer / "recovered", MOUNT[fs]) as folder:
                row.clones += 1
                if plant:
                    plant(folder, acked)
                check(row, folder, acked, needed, found)
                check_step(row, folder, step)
            space = shutil.disk_usage(live)
            if space.free < space.total // 4:
                break
        work.stopping.set()
        work.join()
        if work.error is not None:
            raise Broken(f"{fs} {kind}: {work.error}")
        row.runs = work.runs
        check_locks(row, found, work.locks)
    return row


def has_gc():
    return program("cache", "gc", "--help").returncode == 0


def table(rows):
    print(f"{'fs':6} {'work':7} {'runs':>5} {'clones':>7} {'objects':>8} {'records':>8} {'wrong':>6} {'absent':>7}")
    for row in rows:
        print(f"{row.fs:6} {row.kind:7} {row.runs:5} {row.clones:7} {row.objects:8} {row.records:8} {row.wrong:6} {row.absent:7}")


def matrix(args, outer):
    rows, skipped = [], []
    for fs in args.fs.split(","):
        for kind in args.work.split(","):
            if kind == "gc" and not has_gc():
                skipped.append(f"{fs} gc: this mla-run has no `cache gc`")
                continue
            rows.append(cell(fs, kind, args.seconds, outer))
            print(f"  {fs} {kind}: {rows[-1].clones} clones", file=sys.stderr)
    table(rows)
    for row in rows:
        for note in row.notes[:5]:
            print(f"  {note}")
        if len(row.notes) > 5:
            print(f"  … and {len(row.notes) - 5} more")
    for line in skipped:
        print(f"SKIPPED: {line}", file=sys.stderr)
    if not any(row.clones and row.objects for row in rows):
        raise Broken("nothing was checked")
    return int(any(row.wrong or row.absent for row in rows))


def plant_blob(folder, acked):
    for path in sorted(folder.glob("cache/blob/??/*"))[:1]:
        path.chmod(0o644)
        os.truncate(path, path.stat().st_size // 2)


def plant_record(folder, acked):
    for key in list(acked[0]["keys"])[:1] if acked else []:
        record_path(folder / "cache", key).unlink(missing_ok=True)


def plant_checkpoint(folder, acked):
    shutil.rmtree(folder / "cache" / "ckpt", ignore_errors=True)


def plant_lock(folder, acked):
    for path in sorted(folder.glob("p*.lock.toml"))[:1]:
        os.truncate(path, path.stat().st_size // 2 + 3)


def self_test(outer):
    failed = 0
    plants = [
        ("a short blob", "stages", plant_blob, "wrong", "blob"),
        ("a lost record", "stages", plant_record, "absent", "record"),
        ("a lost checkpoint", "ckpt", plant_checkpoint, "absent", "checkpoint"),
        ("a lost record of two writers", "writers", plant_record, "absent", "record"),
        ("a torn lock", "lock", plant_lock, "wrong", "lock"),
    ]
    for what, kind, plant, column, word in plants:
        row = cell("ext4", kind, 6, outer, plant)
        seen = getattr(row, column) and any(re.search(rf"{column}: .*{word}", note) for note in row.notes)
        print(f"{what}: {'seen' if seen else 'NOT SEEN'} ({row.wrong} wrong, {row.absent} absent in {row.clones} clones)")
        failed |= not seen
    return int(failed)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--fs", default="ext4,xfs,btrfs")
    parser.add_argument("--work", default="stages,writers,ckpt,lock,gc")
    parser.add_argument("--self-test", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="crash-", dir=os.environ.get("CRASH_DIR"), ignore_cleanup_errors=True) as scratch:
        image = Path(scratch) / "outer.img"
        sh("truncate", "-s", "4G", image)
        sh("mkfs.btrfs", "-q", image)
        with mounted(image, Path(scratch) / "outer", "loop") as outer:
            try:
                return self_test(outer) if args.self_test else matrix(args, outer)
            except Broken as error:
                print(f"the rig does not work: {error}", file=sys.stderr)
                return 2


if __name__ == "__main__":
    sys.exit(main())
