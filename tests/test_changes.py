"""What has changed since main: whether the tests of benchmarks are left out."""

import subprocess

import pytest

from tests.support.changes import changed_since_main


@pytest.fixture
def repository(tmp_path):
    """Two commits on main, with the folders `measured` and `other`."""

    def git(*arguments):
        person = ("-c", "user.name=Ann", "-c", "user.email=ann@example.com")
        subprocess.run(["git", *person, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "--initial-branch=main")
    for number in range(2):
        for name in ("measured", "other"):
            (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / "measured" / "file").write_text("first")
        (tmp_path / "other" / "file").write_text(str(number))
        git("add", "--all")
        git("commit", "--message", str(number))
    return tmp_path, git


def test_on_main_its_last_commit_counts_and_on_a_branch_all_since_main(repository):
    folder, git = repository
    changed = lambda *paths: changed_since_main(*paths, repository=folder)  # noqa: E731
    assert (changed("measured"), changed("other"), changed("measured", "other")) == (False, True, True)
    git("switch", "--create", "branch")
    git("commit", "--allow-empty", "--message", "on a branch")
    assert not changed("measured", "other")
    (folder / "measured" / "file").write_text("second")
    assert changed("measured") and not changed("other")
    git("commit", "--all", "--message", "second")
    assert changed("measured") and not changed("other")


def test_a_new_file_is_a_change(repository):
    folder, _ = repository
    (folder / "measured" / "new").touch()
    assert changed_since_main("measured", repository=folder)


def test_where_it_cannot_be_known_all_has_changed(repository, tmp_path):
    folder, git = repository
    git("branch", "--move", "another")
    assert changed_since_main("measured", repository=folder)
    git("branch", "--move", "main")
    one = tmp_path / "one"
    git("clone", "--depth", "1", folder.as_uri(), str(one))
    assert changed_since_main("measured", repository=one)
    (tmp_path / "none").mkdir()
    assert changed_since_main("measured", repository=folder / "nowhere")
