"""Whether coordination keeps up with a cluster: claims, commits, status, resume, verify and compaction of a million cells.

python -m tests.benchmarks.scale [--cells 1000000] [--workers 200] [--keep FOLDER]

The workers are threads of a few processes. Claims, the order of shards, parts, tar blocks, their names, flushes and
folders are the real ones; only the pictures are not: each is the same small PNG, and its row a copy of one with its id.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import itertools
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sdbatch.plan.store import PlanFile, write_plan
from sdbatch.results.arrow import integers, strings
from sdbatch.results.commit import make_folders, part_bytes
from sdbatch.results.disk import publish, sync_folders, write_temporary
from sdbatch.results.folder import SweepFolder
from sdbatch.results.ids import texts_of
from sdbatch.results.row import ImageFile, Origin, row_of, table_of
from sdbatch.results.schema import SCHEMA
from sdbatch.run.batch import block_cells
from sdbatch.run.claim import Claims
from sdbatch.run.roster import clear
from sdbatch.run.share import Share

PROCESSES = 2
SIZE = "8"
IMAGE_S = 0.25
"""How long an image is taken to need."""


@dataclass
class Spent:
    """What a worker did and where its time went."""

    claims: int = 0
    commits: int = 0
    images: int = 0
    claim_s: float = 0.0
    commit_s: float = 0.0


def make_sweep(folder: SweepFolder, cells: int) -> None:
    """Plan so many cells and begin their folder, as a run does."""
    from sdbatch.config.arguments import read_arguments
    from sdbatch.run.prepare import prepare

    axes = ["lora=[style_a]", "lora.style_a.weight=0,0.5,1,1.5", "prompt=a fox,a dog,a cat,an owl,a frog"]
    sizes = [f"width={SIZE}", f"height={SIZE}", "output=webdataset", "tracking=none", f"out={folder.path}"]
    job = prepare(read_arguments(["engine=rehearsal", *axes, *sizes, f"seed=range(0,{cells // 20})", "-m"]))
    folder.create()
    folder.write_about({"name": "scale", "plan_id": job.plan.plan_id, "settings": job.settings.to_dict()})
    write_plan(job.plan, folder.plan)
    clear(folder.claims)


class Maker:
    """Commits blocks of one plan."""

    def __init__(self, folder: SweepFolder) -> None:
        from sdbatch.pipeline.rehearsal import RehearsalEngine
        from sdbatch.results.png import png_of

        self.folder = folder
        self.plan = PlanFile(folder.plan)
        self.least = block_cells(self.plan.cells, "webdataset")
        cell = self.plan.shard(0)[0]
        picture = RehearsalEngine().start([cell], lambda done, total: None).finish()[0]
        self.png = png_of(cell, picture.pixels, None)
        row = row_of(picture, ImageFile("x", len(self.png), hashlib.sha256(self.png).hexdigest()), Origin("scale", "w"))
        self.row = table_of([row | {"image_offset": 0}])
        keys = list(self.plan.iter_keys())
        self.shards = np.concatenate([shards for _, shards, _ in keys])
        self.ids = np.concatenate([ids for ids, _, _ in keys])

    def commit(self, shard: int, block: int, ids: list[str], worker: str) -> None:
        """As the writer of a worker does, from the encoded images on."""
        path = self.folder.block(shard, block, "tar", self.plan.cells)
        make_folders([path.parent], self.folder.path)
        sink, offsets = io.BytesIO(), []
        with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for image_id in ids:
                member = tarfile.TarInfo(f"{image_id}.png")
                member.size = len(self.png)
                tar.addfile(member, io.BytesIO(self.png))
                offsets.append(tar.offset - -(-len(self.png) // 512) * 512)
        publish(write_temporary(path, sink.getvalue()), path)
        sync_folders([path.parent])
        table = self.row.take(integers(np.zeros(len(ids), np.int64)))
        place = path.relative_to(self.folder.path).as_posix()
        columns = {
            "image_id": strings(ids),
            "image": strings([f"{place}/{image_id}.png" for image_id in ids]),
            "image_offset": integers(np.array(offsets)),
            "worker": strings([worker] * len(ids)),
        }
        table = pa.table([columns.get(name, table[name]) for name in SCHEMA.names], schema=SCHEMA)
        part = self.folder.part(shard, block, self.plan.cells)
        make_folders([part.parent], self.folder.rows)
        publish(write_temporary(part, part_bytes(table)), part)
        sync_folders([part.parent])

    def work(self, index: int, workers: int) -> Spent:
        """One worker, to the end."""
        spent = Spent()
        claims = Claims(self.folder.claims, f"worker-{index:03d}")
        walk = Share(claims, [0] * self.plan.shards, index, workers).iter_claimed(lambda _: None)
        while True:
            started_s = time.perf_counter()
            shard = next(walk, None)
            spent.claim_s += time.perf_counter() - started_s
            if shard is None:
                return spent
            first, last = np.searchsorted(self.shards, [shard, shard + 1]).tolist()
            for block, start in enumerate(range(first, last, self.least)):
                ids = texts_of(self.ids[start : min(last, start + self.least)])
                started_s = time.perf_counter()
                self.commit(shard, block, ids, claims.worker)
                spent.commit_s += time.perf_counter() - started_s
                spent.commits += 1
                spent.images += len(ids)
            started_s = time.perf_counter()
            claims.finish(shard)
            spent.claim_s += time.perf_counter() - started_s
            spent.claims += 1


def run_workers(path: str, first: int, last: int, workers: int) -> list[Spent]:
    """Some of the workers, as threads of this process."""
    maker = Maker(SweepFolder(path))
    with ThreadPoolExecutor(last - first) as pool:
        return list(pool.map(maker.work, range(first, last), itertools.repeat(workers)))


def claim_many(path: str, first: int, last: int) -> float:
    """Claim and finish shards as fast as it goes."""
    claims = Claims(Path(path), f"w{first}")
    started_s = time.perf_counter()
    for shard in range(first, last):
        claims.take(shard)
        claims.finish(shard)
    return time.perf_counter() - started_s


def commit_many(path: str, first: int, last: int, threads: int) -> float:
    """Publish parts of 64 rows, whose bytes are there already, from some threads at once: what the disk allows."""
    folder = SweepFolder(path)
    data = os.urandom(27_000)

    def one(shard: int) -> None:
        part = folder.part(shard, 0, 20_000)
        make_folders([part.parent], folder.rows)
        publish(write_temporary(part, data), part)
        sync_folders([part.parent])

    started_s = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(first, last)))
    return time.perf_counter() - started_s


def in_processes(function: Any, count: int, *arguments: Any) -> list[Any]:
    """`function(path, first, last, ...)` over a range, shared out to the processes."""
    bounds = [count * number // PROCESSES for number in range(PROCESSES + 1)]
    path, *rest = arguments
    with ProcessPoolExecutor(PROCESSES) as pool:
        futures = [pool.submit(function, path, low, high, *rest) for low, high in itertools.pairwise(bounds)]
        return [future.result() for future in futures]


def measure_protocol(scratch: Path) -> None:
    """Claims and commits by themselves."""
    clear(scratch / "claims")
    count = 20_000
    took_s = max(in_processes(claim_many, count, str(scratch / "claims")))
    print(f"claims: {count / took_s:,.0f} a second taken and finished, {PROCESSES} processes", flush=True)
    folder = SweepFolder(scratch / "commits")
    folder.create()
    for threads in (1, 16, 100):
        count = 1_000 * min(4, threads)
        shutil.rmtree(folder.rows)
        folder.rows.mkdir()
        took_s = max(in_processes(commit_many, count, str(folder.path), threads))
        print(f"commits: {count / took_s:,.0f} a second by {PROCESSES} x {threads} writers", flush=True)


def measure_alone(folder: SweepFolder) -> None:
    """What claims and commits take of a worker's time, with a processor of its own."""
    make_sweep(folder, 20_000)
    maker = Maker(folder)
    spent = maker.work(0, 1)
    claim_ms, commit_ms = 1e3 * spent.claim_s / spent.claims, 1e3 * spent.commit_s / spent.commits
    shard, block = spent.images / spent.claims, spent.images / spent.commits
    told = [
        f"one worker: {claim_ms:.2f} ms a claim of {shard:.0f} images, {commit_ms:.1f} ms a commit of {block:.0f}",
        f"  of its time at {IMAGE_S} s an image: {claim_ms / shard / IMAGE_S / 10:.4f} % for claims, which it waits for;",
        f"  {commit_ms / block / IMAGE_S / 10:.2f} % for commits, which run beside the next batch",
    ]
    print("\n".join(told), flush=True)


def measure_sweep(folder: SweepFolder, cells: int, workers: int) -> None:
    """All cells by all workers, then what is there."""
    started_s = time.perf_counter()
    make_sweep(folder, cells)
    plan = PlanFile(folder.plan)
    plan_s, plan_bytes = time.perf_counter() - started_s, folder.plan.stat().st_size
    print(f"plan: {cells:,} cells in {plan.shards:,} shards, {plan_s:.1f} s, {plan_bytes / cells:.1f} bytes a cell", flush=True)
    started_s = time.perf_counter()
    spent = [item for items in in_processes(run_workers, workers, str(folder.path), workers) for item in items]
    took_s = time.perf_counter() - started_s
    images, commits, claims = (sum(getattr(item, name) for item in spent) for name in ("images", "commits", "claims"))
    assert images == cells, f"{images} images of {cells}"
    claim_s, commit_s = sum(item.claim_s for item in spent), sum(item.commit_s for item in spent)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = used.ru_utime + used.ru_stime
    parts, blocks = folder.parts(), folder.block_files()
    entries = max(len(names) + len(files) for _, names, files in os.walk(folder.path))
    files, row_bytes = len(parts) + len(blocks) + claims, sum(part.stat().st_size for part in parts)
    told = [
        f"sweep: {workers} workers, {took_s:.0f} s, {images / took_s:,.0f} images/s",
        f"  {commits / took_s:,.0f} commits/s of {images / commits:.0f} images, {claims / took_s:,.0f} claims/s of {images / claims:.0f}",
        f"  a worker waits {1e3 * claim_s / claims:.1f} ms for a claim; a commit takes {1e3 * commit_s / commits:.1f} ms, behind its back",
        f"  {1e3 * cpu_s / images:.3f} ms CPU an image, all told",
        f"  {len(parts):,} parts, {len(blocks):,} blocks, {claims:,} marks: {files / images:.3f} files an image",
        f"  at most {entries:,} entries in a folder; {row_bytes / images:.0f} bytes of rows an image, before a merge",
    ]
    print("\n".join(told), flush=True)


READ = """
import json, pathlib, resource, sys, time
started_s, cpu_s = time.perf_counter(), time.process_time()
{body}
usage = resource.getrusage(resource.RUSAGE_SELF)
# Not ru_maxrss, which begins with what the parent held.
peak_kb = next(int(line.split()[1]) for line in pathlib.Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(json.dumps([time.perf_counter() - started_s, usage.ru_utime + usage.ru_stime, peak_kb / 1024, told]))
"""
STATUS = """
from sdbatch.results.folder import SweepFolder
from sdbatch.run.progress import measure
told = measure(SweepFolder(sys.argv[1])).counts
"""
RESUME = """
from pathlib import Path
from sdbatch.run.launch import resume
ending = resume(Path(sys.argv[1]))
told = [ending.done, ending.cells]
"""


COMPACT = """
from sdbatch.results.compact import compact
from sdbatch.results.folder import SweepFolder
told = str(compact(SweepFolder(sys.argv[1])))
"""


VERIFY = """
from sdbatch.results.folder import SweepFolder
from sdbatch.results.verify import verify
told = str(verify(SweepFolder(sys.argv[1]), full=True))
"""


def measure_verb(folder: SweepFolder, name: str, body: str) -> None:
    """What a verb takes in a process of its own, as a user has it."""
    done = subprocess.run([sys.executable, "-c", READ.format(body=body), str(folder.path)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    wall_s, cpu_s, peak_mb, told = json.loads(done.stdout.splitlines()[-1])
    print(f"{name}: {wall_s:.2f} s, {cpu_s:.2f} s CPU, {peak_mb:.0f} MB at the peak: {told}", flush=True)


def measure_readers(folder: SweepFolder) -> None:
    """Status, resume and verify, which rewrite nothing."""
    before = {part: part.stat().st_mtime_ns for part in [*folder.parts(), *folder.block_files()]}
    for name, body in (("status", STATUS), ("resume of the finished sweep", RESUME)):
        for temperature in ("first", "again"):
            measure_verb(folder, f"{name} ({temperature})", body)
    measure_verb(folder, "verify, every image read", VERIFY)
    after = {part: part.stat().st_mtime_ns for part in [*folder.parts(), *folder.block_files()]}
    assert before == after, "something was rewritten"


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=200)
    parser.add_argument("--keep", type=Path)
    asked = parser.parse_args()
    threading.stack_size(256 * 1024)
    with tempfile.TemporaryDirectory() as scratch:
        folder = SweepFolder(asked.keep or Path(scratch) / "sweep")
        if not folder.plan.exists():
            measure_protocol(Path(scratch))
            measure_alone(SweepFolder(Path(scratch) / "alone"))
            measure_sweep(folder, asked.cells, asked.workers)
        measure_readers(folder)
        measure_verb(folder, "compact", COMPACT)
        measure_verb(folder, "status of the compacted sweep", STATUS)


if __name__ == "__main__":
    main()
