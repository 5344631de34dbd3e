import os
import re
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dopsd_app.config import TrainConfig, list_presets, load_preset, make_config
from dopsd_app.errors import KnownFailure
from dopsd_app.gpus import Gpu
from dopsd_app.jobs.events import StepDone, append_event
from dopsd_app.jobs.job import create_job, write_status
from dopsd_app.jobs.kinds import CHECK_TEACHER, DRAW
from dopsd_app.jobs.launcher import process_started
from dopsd_app.jobs.promise import Promise, keep_promise
from dopsd_app.jobs.runs import create_run
from dopsd_app.method import checkpoint
from dopsd_app.models.architecture import PassTokens
from dopsd_app.models.catalog import CATALOG, find_facts
from dopsd_app.models.memory_plan import ALL, MemoryPlan
from dopsd_app.planning import cost
from dopsd_app.planning.cards import DATA_SHEET, REACHED, WEIGHTS_SLOWER
from dopsd_app.planning.cost import picture_work, step_work
from dopsd_app.planning.machine import Machine
from dopsd_app.planning.memory import CARDS, least_card, reckon
from dopsd_app.planning.plan import check_base, make_plan, tell_apart
from dopsd_app.progress import PhaseProgress, words_for_count, words_for_time
from dopsd_app.torch_build import KERNELS, VERSION, TorchBuild

GIB = 1024**3
Z_IMAGE_TURBO = CATALOG["z-image-turbo"].sizes
POCKET = make_config(load_preset("pocket").settings)
Z_IMAGE = TrainConfig(base_model="z-image-turbo", resolution=512)
WITH_CUDA, FOR_PROCESSORS = TorchBuild(VERSION, "13.0", KERNELS["x86_64"]["13.0"]), TorchBuild(VERSION)
LAPTOP = Machine((), FOR_PROCESSORS, 16 * GIB, 12 * GIB, 8)


def with_card(name="NVIDIA GeForce RTX 4090", size=24, free=None, exactly=None, capability=(8, 9)):
    """Sizes in GB of 2^30 bytes; `exactly` stands for both: a card of which all is free."""
    total = exactly or size
    free = exactly or (size - 0.5 if free is None else free)
    gpu = Gpu(name, int(total * GIB), int(free * GIB), capability=capability)
    return Machine((gpu,), WITH_CUDA, 64 * GIB, 50 * GIB, 16)


def plan_for(config, machine=LAPTOP, pictures=6, runs_dir=Path("no-runs")):
    return make_plan(config, pictures=pictures, runs_dir=runs_dir, machine=machine)


# What a run costs


def test_tokens_are_squares_of_the_picture_and_padded_to_32():
    assert Z_IMAGE_TURBO.student_tokens(1024) == PassTokens(64**2, 64)
    assert Z_IMAGE_TURBO.student_tokens(400).picture == 640  # 25 x 25 = 625
    # 64 of the caption, and the picture between 512 and 768 pixels, a token per 32 x 32: 256 to 576
    seen = [Z_IMAGE_TURBO.teacher_tokens(side, "auto").caption for side in (256, 512, 640, 1024)]
    assert seen == [320, 320, 480, 640]


def test_the_work_of_a_pass_is_that_of_the_method_notes():
    """About 14, 32 and 59 TFLOP at 512, 768 and 1024, reckoned there as 2 for every weight and token."""
    for side, teraflop in ((512, 14), (768, 32), (1024, 59)):
        assert sum(Z_IMAGE_TURBO.work(Z_IMAGE_TURBO.student_tokens(side))) / 1e12 == pytest.approx(
            teraflop, rel=0.1
        )


def test_the_work_of_a_step_is_about_16_forwards_an_example():
    one_pass = sum(Z_IMAGE_TURBO.work(Z_IMAGE_TURBO.student_tokens(512)))
    again = step_work(Z_IMAGE, Z_IMAGE_TURBO, MemoryPlan(recomputed_blocks=ALL))
    assert again / one_pass / Z_IMAGE.batch_size == pytest.approx(16.5, rel=0.07)
    without = step_work(Z_IMAGE, Z_IMAGE_TURBO, MemoryPlan())
    assert again / without == pytest.approx(4.3 / 3.3, rel=0.02)
    half = step_work(Z_IMAGE, Z_IMAGE_TURBO, MemoryPlan(recomputed_blocks=17))  # of 34
    assert half == pytest.approx((again + without) / 2)


def test_another_number_of_steps_than_the_base_was_made_for_is_warned_of():
    told = "was made to draw in 8 steps, and `num_inference_steps` is 4"
    assert any(told in line for line in plan_for(replace(Z_IMAGE, num_inference_steps=4)).warnings)
    assert not any("was made to draw" in line for line in plan_for(Z_IMAGE).warnings)


def test_a_context_that_the_teacher_does_not_have_is_refused():
    [problem] = plan_for(replace(POCKET, teacher_context="reference")).problems
    assert "`teacher_context` is reference, which this base model does not have." in problem
    assert plan_for(replace(POCKET, teacher_context="vision_language")).problems == ()


def test_memory_of_the_built_in_base_is_what_its_runs_took():
    """Greatest resident memory of four runs of 3 steps, in MB, measured on a CPU."""
    sizes = find_facts("pocket-turbo").sizes
    for measured, changes in (
        (604, {}),
        (554, {"micro_batch": 1}),
        (829, {"batch_size": 16, "micro_batch": 16}),
        (901, {"batch_size": 16, "micro_batch": 16, "rank": 64}),
    ):
        estimate = reckon(replace(POCKET, **changes), sizes, MemoryPlan(), on_gpu=False).peak / 1e6
        assert 0.82 * measured < estimate < 1.25 * measured, changes


def test_the_disk_holds_what_checkpoints_keep():
    assert (cost.RESUMABLE, cost.MAX_CHECKPOINTS) == (checkpoint.RESUMABLE, checkpoint.MAX_CHECKPOINTS)
    student = 4 * 158_760_960  # bytes, rank 64
    config = replace(Z_IMAGE, steps=1000, checkpoint_every=50, preview_every=0)
    # 11 LoRAs, and 3 students, teachers and optimizers of half a student while one more is saved; the end's
    assert cost.disk(config, Z_IMAGE_TURBO, 0) == student * (11 + 3 + 3 + 1.5 + 1)
    seen = replace(config, preview_every=50)  # the best one of them stays, too
    assert student < cost.disk(seen, Z_IMAGE_TURBO, 0) - cost.disk(config, Z_IMAGE_TURBO, 0) < 1.1 * student
    first, others = (replace(config, preview_every=1000, preview_prompts=("x",) * n) for n in (5, 6))
    # One prompt more: the base's as PNG, and the LoRA's at 10, 20, 50 and 1000.
    more = cost.disk(others, Z_IMAGE_TURBO, 0) - cost.disk(first, Z_IMAGE_TURBO, 0)
    assert more == 2_000_000 + 4 * 300_000
    one = replace(config, steps=50)
    assert cost.disk(one, Z_IMAGE_TURBO, 0) == student * (2 + 2 + 2 + 1 + 1)
    assert cost.disk(one, Z_IMAGE_TURBO, 20) - cost.disk(one, Z_IMAGE_TURBO, 0) > 20 * 10_000_000


# How long it takes


@pytest.fixture
def told_run(tmp_path, dataset):
    """Makes a run that told of its steps' seconds."""

    def make(config, seconds, peak_memory=0):
        run = create_run(tmp_path / "runs", config, dataset)
        for step, each in enumerate(seconds, start=1):
            append_event(run.events_file, StepDone(step, 0.1, 1.0, each, peak_memory))
        time.sleep(0.02)  # the next one is to be newer
        return run

    return make


def test_the_pace_of_an_earlier_run_is_taken_and_scaled_by_the_batch(told_run, tmp_path):
    told_run(replace(POCKET, batch_size=8, micro_batch=4), [9.0, 1.0, 2.0, 4.0])
    plan = plan_for(POCKET, runs_dir=tmp_path / "runs")
    assert plan.seconds_per_step == 1.0  # the median without the first step, for half the pictures
    assert plan.source == "measured in an earlier run here"
    assert plan.seconds > POCKET.steps * 1.0


def test_the_newest_run_that_is_alike_counts(told_run, tmp_path):
    told_run(POCKET, [1.0] * 4)
    told_run(POCKET, [3.0] * 4)
    told_run(replace(POCKET, rollout_steps=4), [7.0] * 4)
    told_run(POCKET, [9.0] * 3)  # too few steps to tell
    assert plan_for(POCKET, runs_dir=tmp_path / "runs").seconds_per_step == 3.0


def test_other_settings_are_scaled_by_their_work(told_run, tmp_path):
    told_run(replace(POCKET, rollout_steps=1), [1.0] * 4)
    plan = plan_for(POCKET, runs_dir=tmp_path / "runs")
    assert plan.seconds_per_step == pytest.approx(2.0)
    assert "other settings" in plan.source


def test_another_device_or_base_tells_nothing(told_run, tmp_path, z_image_folder):
    told_run(POCKET, [1.0] * 4, peak_memory=5)  # on a card
    told_run(replace(POCKET, base_model=str(z_image_folder)), [1.0] * 4)
    assert "rough estimate" in plan_for(POCKET, runs_dir=tmp_path / "runs").source


def test_without_runs_a_card_is_judged_by_its_data_sheet():
    for config, name, size in (
        (Z_IMAGE, "RTX 4090", 24),
        (replace(Z_IMAGE, quantization="nf4"), "RTX 4070 SUPER", 12),
    ):
        plan = plan_for(config, with_card(f"NVIDIA GeForce {name}", size))
        planned = plan.fitted.plan
        work = step_work(config, Z_IMAGE_TURBO, planned) * WEIGHTS_SLOWER[planned.quantization]
        assert plan.seconds_per_step == pytest.approx(work / (DATA_SHEET[name] * 1e12 * REACHED))
    fast, slow = (
        plan_for(Z_IMAGE, with_card(name, 80)).seconds_per_step
        for name in ("NVIDIA A100-SXM4-80GB", "Unheard 1")
    )
    assert fast < slow


def test_previews_and_loading_are_part_of_the_time():
    quick = plan_for(replace(POCKET, preview_every=0))
    shown = plan_for(POCKET)
    assert POCKET.steps * quick.seconds_per_step + 10 <= quick.seconds < shown.seconds
    # Four pictures with the concept are drawn for the health, however many are shown.
    one, six = (plan_for(replace(POCKET, preview_prompts=("zorp",) * count)) for count in (1, 6))
    assert one.seconds < shown.seconds < 1.01 * one.seconds  # but for what is shown early, without health
    assert shown.seconds < six.seconds


def test_other_programs_make_a_run_longer_and_the_plan_says_so():
    """Two cores, two threads of ours: with four of others three threads want each core."""
    alone, beside = (plan_for(POCKET, replace(LAPTOP, cores=2, load=load)) for load in (0.0, 4.0))
    assert beside.seconds_per_step == pytest.approx(alone.seconds_per_step * 3)
    assert beside.seconds > alone.seconds
    assert not any("Other programs" in line for line in alone.warnings)
    assert any("Other programs are at work" in line for line in beside.warnings)
    # With eight cores, of which a small model uses four, there is room for four threads more.
    assert plan_for(POCKET, replace(LAPTOP, load=4.0)).seconds_per_step == plan_for(POCKET).seconds_per_step


def test_a_card_is_shared_with_who_is_at_work_on_it():
    alone = with_card()
    beside = replace(alone, gpus=(replace(alone.gpus[0], busy=1.0),))
    free, shared = plan_for(Z_IMAGE, alone), plan_for(Z_IMAGE, beside)
    assert shared.seconds_per_step == pytest.approx(2 * free.seconds_per_step)
    # One thread feeds the card: of 16 cores, 47 threads of others leave it a third of one.
    assert plan_for(Z_IMAGE, replace(alone, load=47.0)).seconds_per_step == pytest.approx(
        3 * free.seconds_per_step
    )


def test_what_a_run_of_ours_takes_does_not_count_for_the_next_one(told_run, tmp_path):
    own = {"pid": os.getpid(), "pid_started": process_started(os.getpid())}
    write_status(told_run(POCKET, [1.0] * 4), state="training", **own)
    for load, times in ((2.0, 1), (4.0, 2)):
        plan = plan_for(POCKET, replace(LAPTOP, cores=2, load=load), runs_dir=tmp_path / "runs")
        assert plan.seconds_per_step == pytest.approx(times)


def test_an_earlier_run_is_reckoned_from_the_load_that_it_met_to_that_of_now(told_run, tmp_path):
    run = told_run(POCKET, [8.0] * 4)
    keep_promise(run.path, Promise(loading=10.0, seconds_per_step=7.0, previews=0.0, slowness=4.0))
    idle, crowded = (
        plan_for(POCKET, replace(LAPTOP, cores=2, load=load), runs_dir=tmp_path / "runs").seconds_per_step
        for load in (0.0, 2.0)
    )
    assert idle == 2.0
    assert crowded == pytest.approx(2.0 * 2)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Leaves a job that drew pictures of a base, so many seconds each, so long ago."""

    def make(kind, request, seconds, age=0.0):
        job = create_job(tmp_path / "runs", kind, request)
        for done in range(3):
            moment = 1000.0 + done * seconds
            monkeypatch.setattr("dopsd_app.jobs.events.time.time", lambda moment=moment: moment)
            append_event(job.events_file, PhaseProgress("drawing", done, 2))
        monkeypatch.undo()
        then = time.time() - age
        os.utime(job.events_file, (then, then))

    return make


def test_without_a_run_the_last_pictures_tell_the_pace(drawn, told_run, tmp_path):
    sizes = find_facts("pocket-turbo").sizes
    drawn(CHECK_TEACHER, {"config": asdict(POCKET), "folder": "x"}, 0.5)
    plan = plan_for(POCKET, runs_dir=tmp_path / "runs")
    assert plan.source == "reckoned from the last pictures drawn here"
    expected = 0.5 * step_work(POCKET, sizes, MemoryPlan()) / picture_work(POCKET, sizes)
    assert plan.seconds_per_step == pytest.approx(expected)
    # They have met the load of now: it does not count twice.
    loaded = replace(LAPTOP, load=20.0)
    assert plan_for(POCKET, loaded, runs_dir=tmp_path / "runs").seconds_per_step == pytest.approx(expected)
    run = told_run(replace(POCKET, steps=50), [1.0])  # too short to tell
    drawn(DRAW, {"run_id": run.id, "prompts": ["zorp"], "seeds": [0]}, 0.25)
    assert plan_for(POCKET, runs_dir=tmp_path / "runs").seconds_per_step == pytest.approx(expected / 2)
    told_run(POCKET, [1.0] * 4)
    assert plan_for(POCKET, runs_dir=tmp_path / "runs").seconds_per_step == 1.0


def test_pictures_of_long_ago_say_nothing_of_the_load_of_now(drawn, tmp_path):
    drawn(CHECK_TEACHER, {"config": asdict(POCKET), "folder": "x"}, 0.5, age=3600)
    idle, loaded = (
        plan_for(POCKET, replace(LAPTOP, cores=2, load=load), runs_dir=tmp_path / "runs").seconds_per_step
        for load in (0.0, 2.0)
    )
    assert loaded == pytest.approx(idle * 2)


def test_pictures_of_another_base_or_device_tell_nothing(drawn, tmp_path, z_image_folder):
    for other in ({"base_model": str(z_image_folder)}, {"device": "cpu"}):
        drawn(CHECK_TEACHER, {"config": asdict(replace(POCKET, **other)), "folder": "x"}, 0.5)
    assert "rough estimate" in plan_for(POCKET, runs_dir=tmp_path / "runs").source


def test_the_parts_of_a_promise_are_the_plan_s_time():
    plan = plan_for(POCKET)
    assert plan.promise.seconds(POCKET.steps) == plan.seconds
    assert plan.promise.seconds_per_step == plan.seconds_per_step
    assert plan_for(replace(POCKET, preview_every=0)).promise.previews == 0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.456, "0.46 s"),
        (40, "about 40 s"),
        (1500, "about 25 min"),
        (7200, "about 2 hours"),
        (30 * 3600, "about 30 hours"),
        (86400 * 5, "about 5 days"),
    ],
)
def test_times_are_said_as_people_say_them(seconds, words):
    assert words_for_time(seconds) == words


# Whether it can work


def test_the_built_in_base_can_start_on_a_laptop():
    plan = plan_for(POCKET)
    assert (plan.problems, plan.warnings) == ((), ())
    assert plan.device == "CPU, 8 cores"
    assert (plan.steps, plan.pictures_per_step) == (100, 4)
    assert plan.memory < GIB
    two_cores = plan_for(POCKET, replace(LAPTOP, cores=2))
    assert two_cores.seconds == pytest.approx(81, rel=0.25)  # benchmarks/results/first_run.json


@pytest.mark.parametrize(("name", "size"), [("z-image-subject", 12), ("z-image-style", 12)])
def test_the_presets_for_z_image_fit_the_card_that_they_name(name, size):
    config = make_config(load_preset(name).settings)
    assert plan_for(config, with_card("NVIDIA GeForce RTX 4070", size)).problems == ()
    assert not [
        line
        for line in plan_for(config, with_card("NVIDIA GeForce RTX 4070", size)).warnings
        if "memory" in line
    ]


def test_a_base_that_has_to_be_fetched_is_no_problem_and_the_plan_tells():
    plan = plan_for(Z_IMAGE, with_card())
    assert plan.problems == ()
    assert plan.memory > 12 * GIB


def test_an_unknown_base_is_one_problem_and_nothing_is_reckoned(tmp_path):
    plan = plan_for(replace(POCKET, base_model=str(tmp_path)))
    assert len(plan.problems) == 1
    assert plan.memory == 0


def test_too_few_pictures_are_a_problem():
    assert plan_for(POCKET, pictures=3).problems == (
        "Pictures: 4 to 200 are needed, but the set has 3. Add more.",
    )


def test_a_resolution_that_the_base_cannot_draw_is_a_problem():
    assert "`resolution` must be 64" in plan_for(replace(POCKET, resolution=128)).problems[0]


def test_a_base_of_real_size_needs_a_card():
    [problem] = plan_for(Z_IMAGE, replace(LAPTOP, memory=128 * GIB)).problems
    assert "would train for weeks. No NVIDIA card was found here." in problem
    wrong_torch = replace(with_card(), torch=FOR_PROCESSORS, memory=128 * GIB)
    [problem] = plan_for(Z_IMAGE, wrong_torch).problems
    assert "installed torch cannot use the NVIDIA GeForce RTX 4090" in problem
    [problem] = plan_for(replace(Z_IMAGE, device="cpu"), replace(with_card(), memory=128 * GIB)).problems
    assert "`device` is cpu" in problem


def test_cuda_that_is_asked_for_must_be_there():
    assert (
        "`device` is cuda, and there is none that can be used. No NVIDIA"
        in plan_for(replace(POCKET, device="cuda")).problems[0]
    )
    assert plan_for(replace(POCKET, device="cuda"), with_card()).problems == ()


OLD_CARDS = (("NVIDIA GeForce GTX 1080 Ti", (6, 1)), ("NVIDIA TITAN V", (7, 0)), ("NVIDIA TITAN RTX", (7, 5)))


@pytest.mark.parametrize(("name", "capability"), OLD_CARDS)
def test_a_card_without_bfloat16_gets_no_time_but_the_reason(name, capability):
    machine = replace(with_card(name, capability=capability), memory=128 * GIB)
    plan = plan_for(Z_IMAGE, machine)
    [problem] = plan.problems
    assert name in problem and "bfloat16" in problem and "6 GB or more" in problem
    assert (plan.seconds, plan.promise) == (0, None)
    with pytest.raises(KnownFailure, match="bfloat16"):
        check_base_here(Z_IMAGE, machine)


def check_base_here(config, machine):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dopsd_app.planning.plan.read_machine", lambda: machine)
        patch.setattr(
            "dopsd_app.planning.plan.check_fetch", lambda config, context: None
        )  # nobody asks the Hub here
        check_base(config)


@pytest.mark.parametrize(("name", "capability"), OLD_CARDS)
def test_beside_a_card_without_bfloat16_the_built_in_base_trains_on_the_processor(name, capability):
    plan = plan_for(POCKET, with_card(name, capability=capability))
    assert plan.problems == () and plan.device == "CPU, 16 cores" and plan.promise
    [warning] = [line for line in plan.warnings if name in line]
    assert "Training is on the processor" in warning and "bfloat16" in warning
    # Whoever wants just this card is told why not; in numbers that it knows, it is taken.
    [problem] = plan_for(replace(POCKET, device="cuda"), with_card(name, capability=capability)).problems
    assert "bfloat16" in problem
    turing = with_card(name, capability=(7, 5))
    assert plan_for(replace(POCKET, device="cuda", precision="float32"), turing).device == name


def test_a_torch_without_code_for_the_card_is_a_problem_with_its_remedy():
    older = TorchBuild(VERSION, "12.6", KERNELS["x86_64"]["12.6"])
    machine = replace(with_card("NVIDIA GeForce RTX 5090", 32, capability=(12, 0)), torch=older)
    told = "\n".join(plan_for(Z_IMAGE, machine).problems)
    assert "holds no code for the NVIDIA GeForce RTX 5090" in told and "+cu130" in told
    assert any("+cu130" in line for line in plan_for(POCKET, machine).warnings)
    assert plan_for(Z_IMAGE, replace(machine, torch=WITH_CUDA)).problems == ()


def test_memory_that_is_the_computer_s_own_is_told_as_that():
    machine = with_card("NVIDIA GB10", 120, capability=(12, 1))
    machine = replace(machine, gpus=(replace(machine.gpus[0], shares_memory=True),))
    plan = plan_for(Z_IMAGE, machine)
    assert plan.problems == () and plan.device == "NVIDIA GB10, in the computer's own memory"


def test_too_little_memory_is_a_problem_that_says_what_would_fit():
    huge = replace(Z_IMAGE, resolution=1536, rank=192, optimizer="adamw")
    [problem] = plan_for(huge, with_card(size=6)).problems
    needed, there = amounts(problem)[:2]
    assert needed > there == 6.0
    assert "Set `optimizer` adamw8bit" in problem
    assert re.search(r"and `rank` 16: about [\d.]+ GB\.$", problem)
    [problem] = plan_for(Z_IMAGE, with_card(size=2)).problems
    assert problem.endswith("No settings make it small enough.")


def test_memory_that_other_programs_use_is_a_warning():
    plan = plan_for(Z_IMAGE, with_card(size=24, free=2.5))
    assert plan.problems == ()
    assert any("2.5 GB are free on the card now. Close other programs" in line for line in plan.warnings)
    # With as much free as the smallest plan takes, that is the plan.
    assert plan_for(Z_IMAGE, with_card(size=24, free=10)).warnings == ()


def test_a_limit_that_is_set_by_hand_is_what_the_plan_keeps_to():
    free = plan_for(Z_IMAGE, with_card(size=24)).fitted
    limited = plan_for(replace(Z_IMAGE, memory_limit=8.0), with_card(size=24)).fitted
    assert limited.memory.peak <= 8 * GIB < free.memory.peak
    [problem] = plan_for(replace(Z_IMAGE, memory_limit=2.0), with_card(size=24)).problems
    assert "and the card may use 2.0 GB" in problem
    assert problem.endswith("Raise `memory_limit`.")


def test_while_a_run_of_ours_trains_the_next_one_is_planned_with_what_that_will_leave(told_run, tmp_path):
    own = {"pid": os.getpid(), "pid_started": process_started(os.getpid())}
    write_status(told_run(POCKET, [1.0] * 4), state="training", **own)
    busy = with_card(size=24, free=1)
    assert plan_for(Z_IMAGE, busy, runs_dir=tmp_path / "runs").warnings == ()
    assert plan_for(Z_IMAGE, busy).warnings != ()


def amounts(line):
    """The GB that a sentence quotes."""
    return [float(number) for number in re.findall(r"([\d.]+) GB", line)]


def test_what_a_sentence_on_memory_quotes_agrees_with_what_it_advises():
    """The first amount is more than the second, which is what there is; whatever it advises fits."""
    said = set()
    for tenths in range(20, 120, 6):
        for machine in (with_card(size=26, free=tenths / 10), with_card(exactly=tenths / 10)):
            plan = plan_for(Z_IMAGE, machine)
            told = [line for line in (*plan.problems, *plan.warnings) if "of memory" in line]
            for line in told:
                more, there, *_ = amounts(line)
                assert more > there, line
                assert there == pytest.approx(tenths / 10, abs=0.06)
                said.add(line in plan.problems)
            assert (plan.memory <= tenths / 10 * GIB) == (not told)
    assert said == {True, False}  # refused, and taken by others


def test_amounts_that_differ_are_told_apart_and_equal_ones_are_short():
    assert tell_apart(12.34 * GIB, 11.99 * GIB, GIB) == ("12.3 GB", "12.0 GB")
    assert tell_apart(12.01 * GIB, 11.99 * GIB, GIB) == ("12.01 GB", "11.99 GB")
    assert tell_apart(40_000_000, 10_000_000, 1e9) == ("0.04 GB", "0.01 GB")


def test_no_time_is_promised_where_the_run_cannot_start_on_this_device():
    for machine in (LAPTOP, with_card(size=2), replace(with_card(), torch=FOR_PROCESSORS)):
        plan = plan_for(Z_IMAGE, machine)
        assert plan.problems
        assert (plan.seconds, plan.seconds_per_step, plan.source, plan.promise) == (0, 0, "", None)
        assert not any("This takes" in line for line in plan.warnings)


def test_the_card_that_is_named_is_large_enough():
    least = least_card(Z_IMAGE_TURBO)
    small = replace(Z_IMAGE, rank=16)
    driver_tells = with_card(exactly=0.98 * least)
    assert plan_for(small, driver_tells).problems == ()
    assert not any("memory" in line for line in plan_for(small, driver_tells).warnings)
    assert least == CARDS[0] and plan_for(small, with_card(size=2)).problems
    assert least_card(find_facts("pocket-turbo").sizes) == 0


def test_every_text_names_the_same_card():
    """README and presets, as the plan and the page do."""
    texts = [Path("README.md").read_text(encoding="utf-8")]
    texts += [preset.description for preset in list_presets()]
    sized = r"(\d+(?:\.\d+)?) GB"
    named = [
        number
        for text in texts
        for pair in re.findall(rf"(?:cards? (?:of|with) {sized}|{sized} card)", " ".join(text.split()))
        for number in filter(None, pair)
    ]
    assert len(named) >= 3
    fetched = {facts.label: least_card(facts.sizes) for facts in CATALOG.values() if facts.repository}
    assert {float(number) for number in named} == set(fetched.values())
    rows = re.findall(r"\| \*\*(.+?)\*\* \|.*card of (\d+) GB", texts[0])
    assert {label: int(number) for label, number in rows} == fetched


def test_one_thing_is_no_plural():
    assert (words_for_count(1, "picture"), words_for_count(2, "picture")) == ("1 picture", "2 pictures")
    assert words_for_count(0, "step") == "0 steps"
    assert plan_for(POCKET, replace(LAPTOP, cores=1)).device == "CPU, 1 core"


def test_little_memory_of_the_computer_is_told_where_the_base_passes_through_it():
    machine = replace(with_card(), memory=16 * GIB)
    [warning] = plan_for(Z_IMAGE, replace(machine, free_memory=2 * GIB)).warnings
    assert "of the computer's own memory, and 2.0 GB are free there now" in warning
    assert plan_for(Z_IMAGE, replace(machine, free_memory=4 * GIB)).warnings == ()


def test_without_a_card_it_is_said_what_is_needed():
    problem = plan_for(Z_IMAGE).problems[0]
    assert "needs an NVIDIA card with 6 GB or more" in problem and "No NVIDIA card was found here" in problem


def test_a_long_run_is_a_warning():
    long = replace(Z_IMAGE, resolution=1024)
    assert any("Fewer steps or a lower resolution" in line for line in plan_for(long, with_card()).warnings)


def test_a_full_disk_is_a_problem():
    huge = replace(Z_IMAGE, rank=10**6)
    assert any(
        line.startswith("The run would take up to") for line in plan_for(huge, with_card(size=10**6)).problems
    )


def test_a_missing_package_is_a_problem(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    [problem] = plan_for(replace(POCKET, optimizer="adamw8bit")).problems
    assert "bitsandbytes is missing: install it, or do without `optimizer` adamw8bit" in problem
    assert plan_for(POCKET).problems == ()
