"""What a training run with the callback can count on, with the test that holds it.

`python -m tests.support.guarantees` writes it into README; a test compares.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

README = Path(__file__).parents[2] / "README.md"
BEGIN, END = "<!-- guarantees: python -m tests.support.guarantees -->\n", "<!-- end -->"

TRACE, AROUND, RESUME, CALLBACK, DDP, FUZZ = (
    f"tests/{name}.py"
    for name in ("internals/test_no_trace", "test_around", "test_resume", "test_callback", "test_ddp", "test_fuzz")
)


def rows():
    """Yield a feature, what is guaranteed, and the test that holds it."""
    from tests.internals.test_no_trace import AFTER_THE_MEASUREMENT, FAULTS
    from tests.support.training_variants import FIT

    same = "weights, optimizers, schedulers, gradients, flags, buffers, metrics, random states and batches, bit for bit"
    yield from ((f"fit: {name}", same, f"{TRACE}::test_training_is_identical[{name}]") for name in FIT)
    yield "validate and test", same, f"{TRACE}::test_other_stages_are_identical"
    goes_on = "training goes on, bit for bit; the measurement is marked as missing; no half file; on request it stops"
    written = "training goes on, bit for bit, and the measurement is kept; no half file; on request it stops"
    for name in FAULTS:
        what = written if name in AFTER_THE_MEASUREMENT else goes_on
        yield f"a fault in: {name}", what, f"{TRACE}::test_training_goes_on_whatever_fails"
    yield "Ctrl-C and exit", "nothing left on the model, no half file", f"{TRACE}::test_an_interrupt_leaves_nothing"
    yield "a full disk", "a warning says so, and training goes on", f"{TRACE}::test_a_full_disk_says_so"
    yield "a replay that fails", "full passes, and a note", f"{TRACE}::test_a_replay_that_fails_is_a_full_pass"
    yield (
        "memory that runs out",
        "smaller passes on all processes, then a message",
        f"{CALLBACK}::test_passes_get_smaller_when_memory_runs_out",
    )
    yield (
        "a model that returns NaN",
        "marked as missing",
        f"{AROUND}::test_a_model_that_turns_to_nan_marks_the_measurement_as_missing",
    )
    yield (
        "EarlyStopping and ModelCheckpoint on our keys",
        "values are logged again between measurements",
        f"{TRACE}::test_monitors_of_our_keys_go_on_between_measurements",
    )
    yield (
        "EMAWeightAveraging",
        "the weights that were validated are explained",
        f"{AROUND}::test_weight_averaging_is_explained_as_it_was_validated",
    )
    yield (
        "EarlyStopping and ModelCheckpoint where the first measurement failed",
        "the keys are there, with epoch -1 and neutral values",
        f"{TRACE}::test_monitors_of_our_keys_survive_a_failure",
    )
    for feature, guarantee, name in (
        ("what our own forward passes log", "is discarded", "what_a_forward_pass_logs_is_the_trainings"),
        ("values that are undefined", "never end a training run", "values_that_are_not_defined_do_not_end_a_training"),
        (
            "an invalid argument",
            "stops a training run only in the first measurement",
            "a_mistake_stops_a_training_only_at_its_beginning",
        ),
        (
            "an odd batch late in the validation",
            "left out, with a note",
            "an_odd_batch_late_in_the_validation_is_left_out",
        ),
        ("a terminal that is gone", "stops nothing", "a_terminal_that_is_gone_stops_nothing"),
        (
            "a logger that fails",
            "does not keep the others from logging",
            "a_logger_that_fails_does_not_starve_the_next",
        ),
    ):
        yield feature, guarantee, f"{AROUND}::test_{name}"
    yield (
        "counters, caches, generators, metrics and buffers that a forward pass changes",
        "put back",
        "tests/internals/test_isolation.py::test_state_of_all_kinds_is_put_back",
    )
    yield (
        "several threads inside `undisturbed` at once",
        "process-wide state and shared models are put back when the last one leaves",
        "tests/internals/test_isolation_threads.py::test_two_threads_in_any_order",
    )
    yield "sanity check", "nothing is measured", f"{CALLBACK}::test_the_sanity_check_leaves_nothing"
    yield "fast_dev_run", "one measurement, no files", f"{AROUND}::test_fast_dev_run_measures_once_and_writes_nothing"
    yield "barebones", "results without loggers", f"{AROUND}::test_barebones"
    yield "no validation loader", "refused at once", f"{AROUND}::test_no_validation_at_all"
    yield "several instances", "keys and files of their own", f"{AROUND}::test_several_instances_and_several_runs"
    yield "two runs in one folder", "both are kept", f"{TRACE}::test_two_runs_in_one_folder_keep_both"
    yield (
        "torch.compile",
        "explained eagerly, with the same scores",
        f"{AROUND}::test_a_compiled_model_is_explained_eagerly",
    )
    yield "compiled layers", "replayed as written", f"{AROUND}::test_compiled_parts_are_replayed_as_written"
    yield "pytorch_lightning.Trainer", "works", f"{AROUND}::test_the_trainer_of_the_other_package"
    yield "LearningRateFinder, BatchSizeFinder, Tuner", "run before it", f"{AROUND}::test_finders_run_before_it"
    yield "copies and pickles", "small, and work", f"{AROUND}::test_copies_are_small_and_work"
    yield "resuming", "as an uninterrupted run", f"{RESUME}::test_a_resumed_run_measures_what_an_uninterrupted_one_does"
    yield (
        "checkpoints",
        "tensors and builtins, under `weights_only`",
        f"{RESUME}::test_checkpoints_hold_tensors_and_builtins_and_are_small",
    )
    yield (
        "a checkpoint of other settings",
        "starts anew, and says so",
        f"{RESUME}::test_a_checkpoint_of_another_configuration_says_so",
    )
    yield (
        "a failure on one process",
        "is one on all; training goes on",
        f"{DDP}::test_a_failure_on_one_process_is_one_on_all_and_training_goes_on",
    )
    for name in ("a_cluster_of_one", "clusters_that_run_empty", "more_clusters_than_samples", "constant_activations"):
        yield name.replace("_", " "), "marked, or refused with a remedy", f"{AROUND}::test_{name}"
    yield (
        "a layer that a batch does not reach",
        "refused, or skipped with a note",
        f"{AROUND}::test_a_layer_that_a_batch_does_not_reach",
    )
    yield "one batch, one sample", "marked", f"{AROUND}::test_one_batch_one_sample_one_class"
    yield (
        "any arguments, batches and faults",
        "a result or an error of ours",
        f"{FUZZ}::test_every_outcome_is_a_result_or_an_error_of_ours",
    )


def table():
    """Return the table as Markdown; features with the same guarantee and test are one row."""
    grouped = {}
    for feature, guarantee, test in rows():
        kind, _, name = feature.partition(": ")
        key = (kind if name else feature, guarantee, test.partition("[")[0])
        grouped.setdefault(key, []).append(name)
    lines = ["| | guaranteed | held by |", "|---|---|---|"]
    for (kind, guarantee, test), names in grouped.items():
        what = f"{kind}: {', '.join(names)}" if names != [""] else kind
        lines.append(f"| {what} | {guarantee} | `{test.removeprefix('tests/')}` |")
    return "\n".join(lines) + "\n"


def written(text):
    """Return README's text with the table in its place."""
    before, _, after = text.partition(BEGIN)
    return before + BEGIN + table() + after[after.index(END) :]


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
