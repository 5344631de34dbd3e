"""What the first step's card tells of a base model's download and check, in each way that they can end."""

import os
from dataclasses import asdict, replace

import pytest
from huggingface_hub import constants

from dopsd_app.jobs.base_jobs import latest
from dopsd_app.jobs.job import create_job, write_status
from dopsd_app.jobs.kinds import CHECK_BASE, DOWNLOAD
from dopsd_app.models.base_report import BaseReport, Finding, save_report
from dopsd_app.ui.base_here import _Here, _status


@pytest.fixture
def here(tiny_config, tmp_path, monkeypatch):
    """A base that is here and was checked, and a job about it that ended in a state, for a reason."""
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))
    report = BaseReport("a folder", "", "reference", (Finding("files", True, "All right.", 0.1),), {}, {})
    save_report(report, tmp_path / "report")

    def make(kind, state, reason="", fetching=False, before=False):
        job = create_job(tmp_path / "runs", kind, {"config": asdict(tiny_config)})
        status = write_status(job, state=state, reason=reason)
        if before:  # it ended before that check
            status = replace(status, updated=status.updated - 3600)
        checked = None if fetching else report
        return _Here(tiny_config, fetching, job, status, checked, tmp_path / "report", can_check=True)

    return make


def test_a_check_that_failed_or_was_cancelled_after_a_good_one_is_told_beside_it(here):
    told = _status(here(CHECK_BASE, "failed", "The memory does not suffice."))
    assert "memory does not suffice" in told and "Checked here: it works." in told
    assert "Cancelled." in _status(here(CHECK_BASE, "stopped"))


def test_an_ending_before_the_last_check_is_no_news(here):
    told = _status(here(CHECK_BASE, "failed", "The memory does not suffice.", before=True))
    assert "memory" not in told and "Checked here: it works." in told


def test_a_download_that_failed_is_told_while_something_lacks_and_not_after(here):
    reason = "The Hub cannot be reached."
    assert reason in _status(here(DOWNLOAD, "failed", reason, fetching=True))
    assert reason not in _status(here(DOWNLOAD, "failed", reason))
    assert "What was fetched is kept" in _status(here(DOWNLOAD, "stopped", fetching=True))


def test_the_newest_job_of_this_base_and_teacher_counts(here, tiny_config):
    first, second = here(CHECK_BASE, "failed"), here(CHECK_BASE, "finished")
    runs_dir = first.job.runs_dir
    assert latest(runs_dir, CHECK_BASE, tiny_config) == second.job
    assert latest(runs_dir, DOWNLOAD, tiny_config) is None
    assert latest(runs_dir, CHECK_BASE, replace(tiny_config, teacher_context="reference")) is None
    os.remove(second.job.job_file)  # damaged: the one before it counts
    assert latest(runs_dir, CHECK_BASE, tiny_config) == first.job
