"""The cache: whole entries or none, damage, eviction, a killed writer, two at once; and processes that die with their task."""

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_hospital import brain_of, brains, load_one, make

from ich_client import workers
from ich_client.cache import MANIFEST, Cache
from ich_client.dicom.reasons import Reason

KEY, OTHER = "ab" + "0" * 62, "cd" + "1" * 62


def text(content: str, name: str = "a.txt"):
    return lambda folder: (folder / name).write_text(content)


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("entries/*/*"))


# --- entries ----------------------------------------------------------------------------------------------------------


def test_an_entry_is_there_once_it_is_written(tmp_path: Path) -> None:
    with Cache(tmp_path / "c", 1e9) as cache:
        assert cache.get(KEY) is None
        entry = cache.put(KEY, text("hello"))
        assert cache.get(KEY) == entry
        assert (entry / "a.txt").read_text() == "hello"
        assert cache.put(KEY, text("hello")) == entry, "another who writes the same is as welcome"
        cache.drop(KEY)
        assert cache.get(KEY) is None
    assert (tmp_path / "c").stat().st_mode & 0o777 == 0o700


def test_nothing_is_kept_of_a_write_that_fails(tmp_path: Path) -> None:
    with Cache(tmp_path, 1e9) as cache:

        def half(folder: Path) -> None:
            (folder / "a.txt").write_text("half")
            raise RuntimeError("no more")

        with pytest.raises(RuntimeError, match="no more"):
            cache.put(KEY, half)
        assert cache.get(KEY) is None
        assert list((tmp_path / "work").iterdir()) == []


@pytest.mark.parametrize("first", ["looked", "written"])
def test_an_entry_that_appears_while_it_is_looked_for_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """Between any two of a reader's steps another process may put the entry: it is not taken for a damaged one."""
    with Cache(tmp_path, 1e9) as reader, Cache(tmp_path, 1e9) as writer:
        stat = Path.stat

        def meanwhile(path: Path, **options: Any) -> os.stat_result:
            monkeypatch.undo()
            if first == "written":
                writer.put(KEY, text("hello"))
                return stat(path, **options)
            try:
                return stat(path, **options)
            finally:
                writer.put(KEY, text("hello"))

        monkeypatch.setattr(Path, "stat", meanwhile)
        reader.get(KEY)
        assert writer.get(KEY) is not None


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def turn_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("a.txt", cut),
        ("a.txt", turn_a_bit),
        ("a.txt", Path.unlink),
        (MANIFEST, cut),
        (MANIFEST, Path.unlink),
        (MANIFEST, lambda path: path.write_text("[]")),
        ("b.txt", lambda path: path.write_text("not written by us")),
    ],
)
def test_a_damaged_entry_is_absent_and_can_be_written_again(name: str, damage, tmp_path: Path) -> None:
    with Cache(tmp_path, 1e9) as cache:
        entry = cache.put(KEY, text("hello"))
        damage(entry / name)
        assert cache.get(KEY) is None
        assert entries(tmp_path) == []
        cache.put(KEY, text("hello"))
        damage(entry / name)
        cache.put(KEY, text("hello"))
        assert cache.get(KEY) is not None
        assert (entry / "a.txt").read_text() == "hello"


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    keys = [f"{n:02d}" + "0" * 62 for n in range(5)]
    with Cache(tmp_path, 3500) as cache:
        for n, key in enumerate(keys[:3]):
            os.utime(cache.put(key, text("x" * 1000)) / MANIFEST, (n, n))
        assert cache.get(keys[0]) is not None  # used just now
        cache.put(keys[3], text("x" * 1000))
        assert entries(tmp_path) == [keys[0], keys[2], keys[3]]
        assert cache.put(keys[4], text("x" * 9000)).exists(), (
            "one that is too large alone is kept while it is the newest"
        )
        assert entries(tmp_path) == [keys[4]]


def test_an_open_array_outlives_its_entry(tmp_path: Path) -> None:
    with Cache(tmp_path, 1e9) as cache:
        entry = cache.put(KEY, lambda folder: np.save(folder / "a.npy", np.arange(1000)))
        mapped = np.load(entry / "a.npy", mmap_mode="c")
        cache.drop(KEY)
        assert mapped.sum() == 499500


def test_what_a_killed_writer_left_is_removed_when_nobody_works(tmp_path: Path) -> None:
    def die(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if not child:
        Cache(tmp_path, 1e9).put(KEY, die)
    os.waitpid(child, 0)
    assert len(list((tmp_path / "work").iterdir())) == 1
    with Cache(tmp_path, 1e9) as first:
        assert list((tmp_path / "work").iterdir()) == []
        assert first.get(KEY) is None
        (tmp_path / "work" / "draft").mkdir()
        Cache(tmp_path, 1e9).__exit__()
        assert (tmp_path / "work" / "draft").exists(), "somebody is at work: it may be theirs"


# --- processes --------------------------------------------------------------------------------------------------------


def test_a_task_that_kills_its_process_fails_alone() -> None:
    tasks = [
        "True",
        "__import__('os')._exit(9)",
        "1 + 1",
        "__import__('os').kill(__import__('os').getpid(), 11)",
        "2 + 2",
    ]
    assert dict(workers.each(eval, tasks, 2)) == {
        tasks[0]: True,
        tasks[1]: None,
        tasks[2]: 2,
        tasks[3]: None,
        tasks[4]: 4,
    }


def test_what_a_task_raises_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(workers.each(eval, ["1 / 0"], 1))


# --- a hospital's images in it ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three patients; to be read only, their caches elsewhere."""
    return make(tmp_path_factory.mktemp("three"), 3)


def contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("entries/*/*/*")
    }


def test_two_runs_give_the_same_bytes_and_damage_is_made_good(three: Path, tmp_path: Path) -> None:
    load_one(three, cache=tmp_path / "a")
    north = load_one(three, cache=tmp_path / "b", threads=2)
    whole = contents(tmp_path / "a")
    assert contents(tmp_path / "b") == whole
    assert len(entries(tmp_path / "a")) == 3 + 3 + 1, "as acquired, as prepared, and the hospital's array"
    for path in (tmp_path / "a").glob("entries/*/*/image.npy"):
        turn_a_bit(path)
    again = load_one(three, cache=tmp_path / "a")
    assert contents(tmp_path / "a") == whole
    assert again.images.kept == 0
    np.testing.assert_array_equal(again.patients.image, north.patients.image)


def test_other_bytes_are_another_image(three: Path, tmp_path: Path) -> None:
    folder = make(tmp_path, 2)
    load_one(folder)
    for path in sorted((folder / "pacs").glob("*-1/*")):
        content = path.read_bytes()
        moved = path.with_name(f"moved-{path.name}")
        path.rename(moved)
        os.utime(moved, (1, 1))
        assert moved.read_bytes() == content
    assert load_one(folder).images.kept == 2, "neither names nor times are content"
    for path in sorted((folder / "pacs").glob("*-0/*")):
        before = path.stat()
        content = path.read_bytes()
        path.write_bytes(content[:-2] + b"\x10\x00")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert load_one(folder).images.kept == 1


def test_a_cache_that_is_too_small_still_gives_every_image(three: Path, tmp_path: Path) -> None:
    north = load_one(three, cache=tmp_path, limit="60kB")
    assert brains(north) == pytest.approx([brain_of(n) for n in range(3)], abs=0.1)
    assert sum(path.stat().st_size for path in tmp_path.glob("entries/*/*/*")) < 200e3
    assert brains(load_one(three, cache=tmp_path, limit="60kB")) == brains(north)


def test_a_process_that_is_killed_takes_one_study_with_it(three: Path, tmp_path: Path) -> None:
    """Killed at work, and again when what was at work is tried by itself: that study is set aside, the others go on."""
    killed: list[int] = []

    def kill_two() -> None:
        while len(killed) < 2:
            for child in multiprocessing.active_children():
                if child.pid is not None and child.pid not in killed and len(killed) < 2:
                    os.kill(child.pid, signal.SIGKILL)
                    killed.append(child.pid)
            time.sleep(0.01)

    thread = threading.Thread(target=kill_two, daemon=True)
    thread.start()
    north = load_one(three, cache=tmp_path)
    thread.join()
    assert north.images.counts == {Reason.PIXELS: 1}
    (aside,) = north.images.aside
    assert "the process that read it was ended" in aside.detail
    assert aside.where.startswith("study 1.2.9.")
    there = north.patients.present["image"]
    assert there.sum() == 2
    assert [value for value in brains(north) if value] == pytest.approx(
        [brain_of(n) for n in range(3) if there[n]], abs=0.1
    )
    again = load_one(three, cache=tmp_path)
    assert again.patients.present["image"].all(), "that is not remembered"
    assert again.images.kept == 2


LOAD = """
import sys
from pathlib import Path
import image_hospital
north = image_hospital.load_one(Path(sys.argv[1]), cache=sys.argv[2])
print(image_hospital.brains(north), north.images.kept)
"""


def started(folder: Path, cache: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", LOAD, str(folder), str(cache)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True)


@pytest.mark.slow
def test_killed_while_it_reads_it_goes_on_where_it_was(tmp_path: Path) -> None:
    folder, cache = make(tmp_path, 8), tmp_path / "elsewhere"
    process = started(folder, cache)
    until = time.monotonic() + 120
    while len(list(cache.glob("entries/*/*"))) < 4 and time.monotonic() < until:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = len(entries(cache))
    assert before >= 4
    time.sleep(1)  # a child of it ends by itself
    done = len(entries(cache))
    north = load_one(folder, cache=cache)
    assert brains(north) == pytest.approx([brain_of(n) for n in range(8)], abs=0.1)
    assert north.images.kept >= done // 2 - 1
    assert list((cache / "work").iterdir()) == []
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_two_clients_at_once_read_and_write_one_cache(tmp_path: Path) -> None:
    folder, cache = make(tmp_path, 6), tmp_path / "elsewhere"
    both = [started(folder, cache) for _ in range(3)]
    said = [process.communicate(timeout=240)[0] for process in both]
    assert [process.returncode for process in both] == [0] * 3
    values = [json.loads(line.split("]")[0] + "]") for line in said]
    assert values[0] == values[1] == values[2] == pytest.approx([brain_of(n) for n in range(6)], abs=0.1)
    assert len(entries(cache)) == 6 + 6 + 1
