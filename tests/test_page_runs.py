"""Runs as the page shows them when tabs close, servers crash, workers die and two people press Start.

`example_worker.py` counts where the real worker trains: what the real one shows is `test_page_job.py`'s.
"""

import os
import signal

import psutil
import pytest
from playwright.sync_api import expect

from dopsd_app.data.drafts import draft_config, draft_dataset
from dopsd_app.jobs.job import write_status
from dopsd_app.jobs.queue import enqueue, send_command
from dopsd_app.jobs.runs import create_run, latest_checkpoint, list_runs
from tests.support.browser import Visit, box, settled
from tests.support.finished_run import finish
from tests.support.page_server import ROOT, PageServer, wait_for
from tests.support.page_steps import LONG, at_plan, make_draft

pytestmark = pytest.mark.browser

EXAMPLE_WORKER = str(ROOT / "tests/support/example_worker.py")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with PageServer(tmp_path_factory.mktemp("page"), {"RUNS_WORKER": EXAMPLE_WORKER}) as server:
        yield server


def end_all(server):
    """Nothing trains and nothing waits."""
    for run in list_runs(server.runs):
        if run.status.state == "queued":
            send_command(run, "stop")
    for run in list_runs(server.runs):
        if run.status.live:
            os.kill(run.status.pid, signal.SIGKILL)
            wait_for(lambda run=run: not run.status.live, "the end of a worker")


@pytest.fixture
def idle(server):
    end_all(server)


@pytest.fixture
def working(server):
    """A run that trains, with a checkpoint: the one of the test before where that is at work still."""
    for run in list_runs(server.runs):
        if run.status.state == "training" and run.config.steps == LONG and latest_checkpoint(run):
            return run
    end_all(server)
    draft = make_draft(server)
    run = create_run(server.runs, draft_config(draft), draft_dataset(draft))
    enqueue(run)  # the page's server starts it
    wait_for(lambda: latest_checkpoint(run), "the first checkpoint")
    return run


def shown_step(page):
    """The step that the page says the run is at."""
    words = page.inner_text("#run-progress").split()
    return int(words[words.index("Step") + 1]) if "Step" in words else 0


def moves(page):
    """Comes back when the page has shown two steps of a run, one after the other."""
    expect(page.locator("#run-status")).to_contain_text("Training")
    first = wait_for(lambda: shown_step(page), "a step on the page")
    wait_for(lambda: shown_step(page) > first, "the next step on the page")


@pytest.fixture(scope="module")
def tab(browser, server):
    """A tab that stays open from one test to the next."""
    visit = Visit(browser, server.url)
    yield visit.open()
    visit.close()


@pytest.fixture
def page(tab, working):
    """That tab, in which the run at work is shown."""
    choose(tab, working)
    expect(tab.locator("#run-status")).to_contain_text("Training")
    return tab


# --- one job at a time


def choose(page, run):
    """Has the page, wherever it is, show this run."""
    # Only where it is not open yet: what shows the list is then the answer, and none comes late that would
    # lead back here from where a test has gone on to.
    if not page.locator("#runs").is_visible():
        page.click("#to-runs")
    page.click(row_of(run))
    expect(page.locator(row_of(run))).to_have_attribute("aria-current", "true")


def row_of(run):
    """The selector of what shows this run when it is pressed."""
    return f"#runs li[data-run='{run.id}'] button"


def chosen(page):
    """The id of the run that the page shows."""
    return page.locator("#runs li:has(button[aria-current=true])").get_attribute("data-run")


def test_two_tabs_that_start_the_same_draft_at_once_share_one_run(browser, server, idle):
    make_draft(server)
    known = set(list_runs(server.runs))
    visits = [Visit(browser, server.url) for _ in range(2)]
    tabs = [at_plan(visit) for visit in visits]
    for tab in tabs:
        tab.evaluate("document.querySelector('#start').click()")  # does not wait, as two people do not
    for tab in tabs:
        expect(tab.locator("#run-status")).to_contain_text("Training")
    (run,) = set(list_runs(server.runs)) - known
    assert [chosen(tab) for tab in tabs] == [run.id, run.id]
    assert len(trainers(server)) == 1
    for visit in visits:
        visit.close()


def test_another_draft_that_is_started_waits_until_the_run_at_work_has_ended(visit, server, working):
    make_draft(server)
    page = at_plan(visit)
    page.click("#start")
    status = page.locator("#run-status")
    expect(status).to_contain_text("Waiting in the queue")
    (waiting,) = [run for run in list_runs(server.runs) if run.id == chosen(page)]
    assert (working.status.state, waiting.status.state) == ("training", "queued")
    choose(page, working)
    moves(page)
    assert len(trainers(server)) == 1
    page.click("#stop")
    expect(status).to_contain_text("Stopped")
    choose(page, waiting)
    moves(page)
    assert working.status.state == "stopped"
    assert len(trainers(server)) == 1


def trainers(server):
    """The living processes that train in this folder of runs."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        command = process.info["cmdline"] or []
        if EXAMPLE_WORKER in command and any(str(server.runs) in part for part in command):
            found.append(process)
    return [process for process in found if process.info["status"] != psutil.STATUS_ZOMBIE]


# --- pages and servers come and go


def test_training_goes_on_without_a_page_and_the_next_one_finds_it(browser, server, visit, working):
    page = visit.open()
    expect(page.locator("#run-status")).to_contain_text("Training")
    page.close()
    left = working.status.step
    wait_for(lambda: working.status.step > left + 1, "steps that nobody watches")
    moves(visit.open())
    other = Visit(browser, server.url)  # remembers nothing
    page = other.open()
    moves(page)
    page.reload()
    moves(settled(page))
    other.close()


def test_a_killed_server_takes_no_run_with_it_and_the_open_page_works_on_when_it_is_back(
    visit, server, working
):
    page = visit.open()
    expect(page.locator("#run-status")).to_contain_text("Training")
    visit.wait_for_files(page)
    pid, left = working.status.pid, working.status.step
    server.kill()
    expect(page.get_by_text("Connection to the server was lost")).to_be_visible()
    wait_for(lambda: working.status.step > left + 1, "steps without a server")
    server.start()
    assert working.status.pid == pid
    shown = shown_step(page)
    wait_for(lambda: shown_step(page) > max(shown, left + 1), "news on the open page")
    page.reload()
    moves(settled(page))


def test_what_a_training_cannot_draw_is_refused_and_the_page_says_why(page, working):
    page.click("#step-pictures-button")
    page.click("#example-zorp")
    page.click("#to-teacher")
    page.click("#check")
    expect(page.get_by_text("is being trained, and has not come to its first step")).to_be_visible()
    assert working.status.state == "training"


# --- how runs end


def test_a_killed_worker_is_shown_as_interrupted_and_resume_goes_on_from_its_checkpoint(page, working):
    os.kill(working.status.pid, signal.SIGKILL)
    status = page.locator("#run-status")
    expect(status).to_contain_text("Interrupted")
    expect(status).to_contain_text("Its process ended without saying why")
    expect(status).not_to_contain_text("Training")
    expect(page.locator(row_of(working))).to_contain_text("Interrupted")
    expect(page.locator("#stop")).to_be_hidden()
    page.reload()
    settled(page)
    expect(status).to_contain_text("Interrupted")
    kept = int(latest_checkpoint(working).name)
    page.click("#resume")
    moves(page)
    assert shown_step(page) > kept
    assert "Resumed" in working.log_file.read_text()


def test_a_stopped_run_says_so_keeps_a_checkpoint_and_can_be_resumed(page, working):
    page.click("#stop")
    expect(page.locator("#run-status")).to_contain_text("Stopped")
    assert int(latest_checkpoint(working).name) == working.status.step
    wait_for(lambda: shown_step(page) == working.status.step, "its last step on the page")
    for button in ("#resume", "#to-try"):
        expect(page.locator(button)).to_be_visible()
    for button in ("#stop", "#preview-now", "#save-now"):
        expect(page.locator(button)).to_be_hidden()


def test_a_run_that_is_over_makes_as_many_more_steps_as_it_is_told(page, working):
    page.click("#stop")
    expect(page.locator("#run-status")).to_contain_text("Stopped")
    for more in (7, 3):  # stopped, and then finished
        expect(page.locator("#go-on")).to_be_visible()
        end = int(latest_checkpoint(working).name) + more
        box(page, "more-steps").fill(str(more))
        page.click("#go-on")
        wait_for(lambda end=end: working.status.step == end, "the last of the steps")
        expect(page.locator("#run-status")).to_contain_text("Finished")
        expect(page.locator("#run-progress")).to_contain_text(f"Step {end} of {end}")
    expect(page.locator("#resume")).to_be_hidden()
    assert working.lora_file.exists()
    page.click("#clone")
    page.click("#start")
    expect(page.locator("#run-status")).to_contain_text("Training")
    expect(page.locator("#go-on")).to_be_hidden()


def test_a_look_that_arrives_late_is_put_right_by_the_next(page, working):
    status = page.locator("#run-status")
    looks = []

    def hold(route):
        if (
            len(route.request.post_data_json["data"]) != 2 or looks
        ):  # a timer sends what it looks at, and marks
            route.continue_()
        else:
            looks.append((route, route.fetch()))

    page.route("**/run/predict*", hold)
    while not looks:
        page.wait_for_timeout(200)
    page.click("#stop")
    wait_for(lambda: working.status.state == "stopped", "the end of the run")
    page.click("#to-runs")  # looks as well
    expect(status).to_contain_text("Stopped")
    late, answer = looks[0]
    with page.expect_response("**/run/predict*"):
        late.fulfill(response=answer)
    page.unroute("**/run/predict*")
    for _ in range(2):
        page.wait_for_event("requestfinished", lambda request: "run/predict" in request.url)
    expect(status).to_contain_text("Stopped")
    wait_for(lambda: shown_step(page) == working.status.step, "its last step on the page")


def test_a_late_look_at_one_run_does_not_keep_what_another_shows(page, server, working):
    draft = make_draft(server)
    waiting = create_run(server.runs, draft_config(draft), draft_dataset(draft))
    enqueue(waiting)
    expect(page.locator(row_of(waiting))).to_be_visible()
    looks = []
    page.route("**/run/predict*", lambda route: looks.append((route, route.fetch())))
    while not looks:
        page.wait_for_timeout(50)
    choose(page, waiting)
    expect(page.locator("#run-status")).to_contain_text("Waiting in the queue")
    late, answer = looks[0]
    with page.expect_response("**/run/predict*"):
        late.fulfill(response=answer)  # tells of the run before; no other look comes through
    page.wait_for_timeout(200)
    choose(page, working)
    expect(page.locator("#run-status")).to_contain_text("Training")
    for route, answer in looks[1:]:
        route.fulfill(response=answer)
    page.unroute("**/run/predict*")  # lets through what has come meanwhile
    send_command(waiting, "stop")


def test_a_run_of_another_base_than_the_chosen_one_can_be_used_again(visit, server, idle):
    draft = make_draft(server)
    run = finish(create_run(server.runs, draft_config(draft), draft_dataset(draft)))
    write_status(run, state="finished", step=LONG)
    page = visit.open()
    page.click("#step-pictures-button")
    page.locator("#base input[value='z-image-turbo']").check()
    page.locator("#kind input[value='style']").check()
    page.click("#to-runs")
    choose(page, run)
    page.click("#clone")
    expect(page.locator("#preset input:checked")).to_have_value("pocket")
    expect(box(page, "set-steps")).to_have_value(str(LONG))
    box(page, "set-steps").fill("7")
    expect(page.locator("#needs")).to_contain_text("7")
    expect(page.locator("#start")).to_be_enabled()
    assert "not in the list of choices" not in server.output.read_text()
    assert page.locator(".toast-body").count() == 0


def test_delete_takes_the_run_that_was_asked_about(server):
    draft = make_draft(server)
    asked, other = (create_run(server.runs, draft_config(draft), draft_dataset(draft)) for _ in range(2))
    asking = server.numbers("delete")[0]
    subject = server.event(asking, [asked.id])["data"][2]
    server.event(server.numbers("really-run")[0], [subject, other.id])
    assert not asked.path.exists()
    assert other.path.exists()


def test_a_stale_tab_starts_nothing_twice_and_keeps_what_another_one_changed(browser, server, idle):
    make_draft(server)
    known = set(list_runs(server.runs))
    first, second = (Visit(browser, server.url) for _ in range(2))
    stale, tab = at_plan(first), at_plan(second)
    box(tab, "set-steps").fill("40000")
    tab.click("#start")
    expect(tab.locator("#run-status")).to_contain_text("Training")
    stale.click("#start")
    expect(stale.locator("#run-status")).to_contain_text("Training")
    (run,) = set(list_runs(server.runs)) - known
    assert run.config.steps == 40000
    first.close()
    second.close()


def test_delete_asks_first_and_then_takes_that_run_alone(visit, server):
    draft = make_draft(server)
    run = create_run(server.runs, draft_config(draft), draft_dataset(draft))
    others = set(list_runs(server.runs)) - {run}
    page = visit.open(f"?run={run.id}")
    page.click("#delete")
    page.click("#keep-run")
    expect(page.locator("#really-run")).to_be_hidden()
    assert run.path.exists()
    page.click("#delete")
    page.click("#really-run")
    expect(page.locator(row_of(run))).to_have_count(0)
    assert set(list_runs(server.runs)) == others


def test_runs_are_renamed_found_ticked_and_deleted_several_at_once(visit, server, idle):
    draft = make_draft(server)
    made = [create_run(server.runs, draft_config(draft), draft_dataset(draft)) for _ in range(12)]
    others = set(list_runs(server.runs)) - set(made)
    page = visit.open(f"?run={made[0].id}")
    box(page, "run-name").fill("Älteste <b>Katze</b>")
    box(page, "run-notes").fill("too dark")
    expect(page.locator(row_of(made[0]))).to_contain_text("Älteste <b>Katze</b>")
    expect(page.locator(row_of(made[0]))).to_contain_text("too dark")
    choose(page, made[1])
    expect(box(page, "run-name")).not_to_have_value("Älteste <b>Katze</b>")
    expect(box(page, "run-notes")).to_have_value("")
    for run in made[:3]:
        page.check(f"#runs li[data-run='{run.id}'] input")
    newer = create_run(server.runs, draft_config(draft), draft_dataset(draft))
    expect(page.locator(row_of(newer))).to_be_visible()
    expect(page.locator("#delete-ticked")).to_have_text("Delete selected (3)")
    page.locator("#runs input[type=search]").fill("dark ÄLT")
    expect(page.locator("#runs li:visible")).to_have_count(1)
    page.locator("#runs input[type=search]").fill("")
    page.uncheck(f"#runs li[data-run='{made[1].id}'] input")
    page.click("#delete-ticked")
    expect(page.locator("#really-run")).to_contain_text("Älteste <b>Katze</b>")
    page.click("#really-run")
    expect(page.locator("#delete-ticked")).to_be_hidden()
    expect(page.locator(row_of(made[0]))).to_have_count(0)
    assert set(list_runs(server.runs)) == {*others, *made[1:2], *made[3:], newer}
    assert made[1].config.name == draft_config(draft).name
