"""The `qvggt` command. What is heavy is imported where it is used, so that --help is instant."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from qvggt_ros.cli import (
    bench,
    bench_node,
    benchmark,
    checkpoint,
    collect,
    compare,
    compare_runs,
    console,
    doctor,
    evaluate,
    export,
    live,
    parameters,
    quantize,
    replay,
    replay_many,
    synthetic,
    topics,
    tune,
    view,
)
from qvggt_ros.cli.failures import explanation
from qvggt_ros.cli.options import with_options

app = typer.Typer(
    name="qvggt",
    help="Metric 3D from a robot's camera with a 4-bit VGGT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; an error of ours, of the disk or of memory ends it with one line."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(args=arguments)
    except BrokenPipeError:
        raise
    except Exception as failure:
        text = explanation(failure)
        if text is None or "--debug" in arguments:
            raise
        console.note("[bold red]error:[/]", text)
        raise SystemExit(console.EXIT_ERROR) from None


@app.callback()
def _options(
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of errors, and all log lines.")
    ] = False,
) -> None:
    logging.basicConfig(
        level=logging.DEBUG if debug else logging.ERROR,
        format="%(name)s: %(message)s",
        handlers=[console.LogHandler(console=console.err, show_path=False)],
    )
    # Reports carry the warnings of reconstructions; of finished work that is deleted, nothing does.
    logging.getLogger("qvggt_core.quantize").setLevel(logging.WARNING)


_LEFT_OUT = {
    replay_many.replay_many: replay_many.NO_OPTIONS,
    benchmark.benchmark: ("checkpoint",),
}

for _command in (
    replay.replay,
    replay_many.replay_many,
    evaluate.evaluate,
    collect.collect,
    compare_runs.compare_runs,
    export.export,
    view.view,
    live.live,
    live.play,
    topics.topics,
    benchmark.benchmark,
    quantize.quantize,
    quantize.sensitivity,
    compare.compare,
    checkpoint.info,
    checkpoint.download,
    checkpoint.networks,
    doctor.doctor,
    synthetic.synth,
    synthetic.train,
    bench.bench,
    bench_node.bench_node,
    tune.tune,
    parameters.params,
):
    app.command()(with_options(_command, leave_out=_LEFT_OUT.get(_command, ())))
app.command("import")(with_options(quantize.import_released))


if __name__ == "__main__":
    main()
