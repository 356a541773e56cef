"""The command line: its commands, and what an error becomes. Programs are imported when they run."""

from __future__ import annotations

import sys
from io import StringIO
from itertools import pairwise

import click

from maskgen.cli import benchmarking, coding, converting, listing, sampling, scoring, training
from maskgen.core.console import surviving_output
from maskgen.core.errors import DiskFull, OutOfMemory, UserError, is_out_of_memory, system_message
from maskgen.core.files import NO_SPACE
from maskgen.core.terminal import printable
from maskgen.core.version import __version__

SETTINGS: dict[str, object] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "token_normalize_func": lambda name: name.replace("_", "-"),  # --batch_size is --batch-size
}
TEXTS = {"--prompt", "--system", "--infill"}
"""Options whose value may be empty."""
COMMANDS = (
    *(training.train, sampling.sample, scoring.evaluate, scoring.fid, scoring.statistics, scoring.probe),
    *(scoring.layers, scoring.report, benchmarking.bench, training.cost, training.precompute, training.runs),
    *(
        converting.convert,
        converting.export,
        coding.compress,
        coding.decompress,
        listing.recipes,
        listing.samplers,
        listing.zoo,
    ),
)


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, prog_name="maskgen")
def cli() -> None:
    """Masked generative models: train, sample, score.

    Shell completion: eval "$(_MASKGEN_COMPLETE=bash_source maskgen)" in ~/.bashrc; zsh_source for zsh.
    """


for _command in COMMANDS:
    cli.add_command(_command)


def main(*arguments: str) -> None:
    """Run the command line; a user's mistake is one message and exit code 2. Output may lose its reader."""
    with surviving_output():
        _run([*arguments, *sys.argv[1:]])


def _require_words(words: list[str]) -> None:
    """Refuse an empty argument where no text is meant: a shell variable that is not set, and no current folder.

    Raises:
        UserError: there is one.
    """
    for before, word in pairwise(["maskgen", *words]):
        option, sign, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if sign and not value and not {before, option} & TEXTS:
            of = f" of {option}" if option.startswith("--") else ""
            raise UserError(f"an empty argument{of}: is a variable unset?")


def _run(words: list[str]) -> None:
    try:
        _require_words(words)
        cli.main(words, prog_name="maskgen", standalone_mode=False)
    except click.ClickException as error:
        shown = StringIO()
        error.show(shown)
        click.echo(printable(shown.getvalue(), keep="\n"), err=True, nl=False)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        way = "; add --resume to continue from the last checkpoint" if words[:1] == ["train"] else ""
        click.echo(f"stopped{way}", err=True)
        sys.exit(130)
    except UserError as error:
        _complain(str(error))
        sys.exit(error.code)
    except OSError as error:
        _complain(system_message(error))
        sys.exit(DiskFull.code if error.errno in NO_SPACE else 2)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        click.echo("Error: out of memory; lower --batch-size or --num, or choose a smaller model or device", err=True)
        sys.exit(OutOfMemory.code)


def _complain(message: str) -> None:
    click.echo("Error: " + printable(message, keep="\n"), err=True)


if __name__ == "__main__":
    main()
