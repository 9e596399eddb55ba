"""The commit is read from git's files, and so is whether tracked files were changed since."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

import pytest

from ckptfmt.checks import git

SHA = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40

has_git = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


def made(folder: pathlib.Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def head(folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, object] | None:
    monkeypatch.chdir(folder)
    return git.describe()


@pytest.mark.parametrize(
    ("files", "commit", "branch"),
    [
        ({"HEAD": "ref: refs/heads/main\n", "refs/heads/main": SHA + "\n"}, SHA, "main"),
        ({"HEAD": "ref: refs/heads/a/b\n", "refs/heads/a/b": SHA}, SHA, "a/b"),
        (
            {
                "HEAD": "ref: refs/heads/main\n",
                "packed-refs": f"# pack-refs with: peeled\n{OTHER} refs/heads/main2\n"
                f"{OTHER} x/refs/heads/main\n{SHA} refs/heads/main\n^{OTHER}\n",
            },
            SHA,
            "main",
        ),
        (
            {
                "HEAD": "ref: refs/heads/main\n",
                "refs/heads/main": SHA,
                "packed-refs": f"{OTHER} refs/heads/main\n",
            },
            SHA,
            "main",
        ),
        ({"HEAD": SHA + "\n"}, SHA, None),
        ({"HEAD": "a" * 64 + "\n"}, "a" * 64, None),
        ({"HEAD": "ref: refs/heads/unborn\n"}, None, "unborn"),
        ({"HEAD": "ref: refs/heads/main\n", "refs/heads/main": "secret"}, None, "main"),
        ({"HEAD": "ref: refs/heads/../../../secret\n"}, None, None),
        ({"HEAD": "ref: /etc/hostname\n"}, None, None),
        ({"HEAD": "nonsense"}, None, None),
        ({"HEAD": "\xff\x00"}, None, None),
    ],
)
def test_commit_is_read_from_the_repository(
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    files: dict[str, str],
    commit: str | None,
    branch: str | None,
) -> None:
    made(tmp_path / ".git", files)
    (tmp_path / "secret").write_text(SHA)

    found = head(tmp_path, monkeypatch)

    assert found == {"commit": commit, "branch": branch, "dirty": None}


def test_commit_is_found_from_a_subfolder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / ".git", {"HEAD": SHA})
    (tmp_path / "a/b").mkdir(parents=True)

    found = head(tmp_path / "a/b", monkeypatch)

    assert found is not None
    assert found["commit"] == SHA


@pytest.mark.parametrize("relative", [False, True])
def test_commit_of_a_worktree_is_found_in_the_common_folder(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, relative: bool
) -> None:
    made(tmp_path / "main/.git", {"HEAD": OTHER, "refs/heads/topic": SHA})
    made(
        tmp_path / "main/.git/worktrees/tree",
        {"HEAD": "ref: refs/heads/topic\n", "commondir": "../..\n"},
    )
    place = "../main" if relative else f"{tmp_path}/main"
    made(tmp_path / "tree", {".git": f"gitdir: {place}/.git/worktrees/tree\n"})

    found = head(tmp_path / "tree", monkeypatch)

    assert found == {"commit": SHA, "branch": "topic", "dirty": None}


def test_no_repository_is_none(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert head(tmp_path, monkeypatch) is None


def test_a_removed_working_directory_is_none(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()

    assert git.describe() is None


def test_a_pipe_is_not_waited_for(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()
    os.mkfifo(tmp_path / ".git/HEAD")

    assert head(tmp_path, monkeypatch) is None


def run(folder: pathlib.Path, *line: str) -> str:
    """Run git itself, as far from the user's settings as it goes."""
    own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *own, *line],
        cwd=folder,
        env={**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


@pytest.fixture
def repository(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    run(tmp_path, "init", "-q", "-b", "main")
    made(tmp_path, {"a.py": "one\n", "b/c.py": "two\n", "empty": ""})
    (tmp_path / "link").symlink_to("a.py")
    run(tmp_path, "add", ".")
    run(tmp_path, "commit", "-q", "-m", "first")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def dirty(folder: pathlib.Path) -> object:
    """Return our answer, after comparing it with git's own where there is one."""
    found = git.describe()
    assert found is not None
    theirs = bool(run(folder, "status", "--porcelain", "--untracked-files=no"))
    assert found["dirty"] in (theirs, None)
    return found["dirty"]


def staged(folder: pathlib.Path) -> None:
    (folder / "a.py").write_text("new\n")
    run(folder, "add", "a.py")


def touched(folder: pathlib.Path) -> None:
    os.utime(folder / "a.py", (1, 1))


def swapped(folder: pathlib.Path) -> None:
    before = (folder / "a.py").stat()
    (folder / "a.py").write_text("two\n")
    os.utime(folder / "a.py", ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def relinked(folder: pathlib.Path) -> None:
    (folder / "link").unlink()
    (folder / "link").symlink_to("b.py")


def set_back(folder: pathlib.Path) -> None:
    """Change a file; keep its length and its time of modification."""
    place = folder / "a.py"
    before = place.stat()
    place.write_text("y" * before.st_size)
    os.utime(place, ns=(before.st_atime_ns, before.st_mtime_ns))


@has_git
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda _: None, False),
        (touched, False),
        (lambda f: (f / "untracked").write_text("x"), False),
        (lambda f: run(f, "gc", "-q"), False),
        (lambda f: run(f, "commit", "-q", "--allow-empty", "-m", "second"), False),
        (lambda f: (f / "a.py").write_text("longer text\n"), True),
        (swapped, True),
        (set_back, True),
        (lambda f: (f / "a.py").chmod(0o755), True),
        (
            lambda f: (run(f, "config", "core.fileMode", "false"), (f / "a.py").chmod(0o755)),
            None,
        ),
        (relinked, True),
        (lambda f: (f / "b/c.py").unlink(), True),
        (lambda f: (f / "empty").write_text("x"), True),
        (lambda f: run(f, "rm", "-q", "--cached", "a.py"), None),
        (staged, None),  # the tree of the index is not noted before it is committed
        (lambda f: (staged(f), run(f, "write-tree")), True),
    ],
)
def test_changes_of_tracked_files(
    repository: pathlib.Path, change: object, expected: object
) -> None:
    change(repository)  # type: ignore[operator]

    assert dirty(repository) is expected


@has_git
def test_a_packed_repository_with_a_worktree(repository: pathlib.Path) -> None:
    run(repository, "gc", "-q")
    assert not list((repository / ".git/objects").glob("[0-9a-f][0-9a-f]/*"))
    assert dirty(repository) is False
    tree = repository.parent / f"{repository.name}-tree"
    run(repository, "worktree", "add", "-q", str(tree), "-b", "topic")
    os.chdir(tree)

    assert dirty(tree) is False
    (tree / "a.py").write_text("longer text\n")
    assert dirty(tree) is True


@has_git
def test_what_cannot_be_read_is_unknown(
    repository: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(repository, "update-index", "--index-version", "4")
    assert dirty(repository) is None
    run(repository, "update-index", "--index-version", "2")
    assert dirty(repository) is False
    monkeypatch.setattr(git, "MAX_SECONDS", -1.0)
    assert dirty(repository) is None
    index = repository / ".git/index"
    whole = index.read_bytes()
    monkeypatch.undo()
    os.chdir(repository)
    for end in (0, 3, 11, 40, 75, len(whole) // 2, len(whole) - 30):
        index.write_bytes(whole[:end])
        found = git.describe()
        assert found is not None
        assert found["dirty"] in (None, False)


@has_git
def test_filters_leave_equal_sizes_unknown(repository: pathlib.Path) -> None:
    (repository / ".gitattributes").write_text("*.py filter=other\n")
    swapped(repository)

    assert git.describe()["dirty"] is None  # type: ignore[index]
