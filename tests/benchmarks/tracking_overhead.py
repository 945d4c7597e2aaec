"""`make bench NAME=tracking_overhead`: five metrics at every step, tracked in MLflow, against logging nothing.

LeNet-5, batch 128, the same loader; images per second of training, interleaved rounds.
"""

from tests.benchmarks.common import interleave, options_of, report, run_fit, save_result, workplace


def main() -> None:
    """Prints the table and writes the figures."""
    options = options_of(__doc__)
    logging = ("--trainer.callbacks+=tests.benchmarks.common.LogFive", "--trainer.log_every_n_steps=1000000")
    with workplace():
        sides = {
            "5 metrics a step": lambda: run_fit(options, *logging),
            "no logging": lambda: run_fit(options, "--track=false"),
        }
        measured = interleave(sides, options.rounds)
    title = __doc__.splitlines()[0]
    save_result(
        "tracking_overhead", report(title, measured, "images per second", ("5 metrics a step", "no logging"), 0.93)
    )


if __name__ == "__main__":
    main()
