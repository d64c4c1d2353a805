"""The command ``oneroot``: global options, the table of commands, errors to exit codes."""

from __future__ import annotations

import errno
import importlib
import itertools
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import click

import oneroot
from oneroot.errors import ExitCode, HostError, OnerootError

COMMANDS: dict[str, tuple[str, str]] = {
    "doctor": ("host", "What this host lacks, and the command that mends it."),
    "base": ("base", "Make, show, upgrade and choose bases and their generations."),
    "create": ("container", "Make sure that containers exist."),
    "start": ("container", "Start containers, on the current generation of their base."),
    "stop": ("container", "Stop containers, gracefully."),
    "restart": ("container", "Stop and start containers."),
    "rm": ("container", "Move stopped containers to the trash."),
    "undelete": ("container", "Take containers out of the trash."),
    "ls": ("container", "List containers."),
    "info": ("container", "Explain a container whole."),
    "exec": ("container", "Run a program inside containers."),
    "shell": ("container", "Open a shell inside a container."),
    "logs": ("container", "Show what containers wrote."),
    "cp": ("container", "Copy files into and out of a container."),
    "top": ("container", "Show what containers use."),
    "wait": ("container", "Wait until containers are in a state."),
    "patch": ("patch", "Upgrade a base, restart its containers, prove that all run the fix."),
    "plan": ("patch", "Show what patch would do."),
    "rollout": ("patch", "Watch, pause, resume or abort a rollout."),
    "rollback": ("patch", "Go back to an earlier generation, and stay there."),
    "history": ("patch", "Show who did what, when and why, and what came of it."),
    "verify": ("audit", "Prove, now, that all that runs has the fix and runs."),
    "audit": ("audit", "Show what in containers keeps a patch out."),
}
"""Module in ``cli/`` and one line of help, so that ``--help`` imports nothing."""


class _Lazy(click.Group):
    """Imports a command's module when that command is called, and not before."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"oneroot.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]}?" if near else " See oneroot --help."
            raise click.UsageError(f"There is no command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--format", "format_", type=click.Choice(["table", "json"]), default="table", show_default=True,
    help="What the result looks like.",
)  # fmt: skip
@click.option("--settings", "settings_file", type=click.Path(path_type=Path), help="Another settings file.")
@click.option(
    "--progress", type=click.Choice(["auto", "none", "json"]), default="auto", show_default=True,
    help="What is said on standard error while work goes on.",
)  # fmt: skip
@click.option("--debug", is_flag=True, help="Log every program that is run; show tracebacks.")
@click.version_option(oneroot.__version__, prog_name="oneroot")
@click.pass_context
def cli(ctx: click.Context, format_: str, settings_file: Path | None, progress: str, debug: bool) -> None:
    """Many containers over one shared base: patch once, restart, read the proof."""
    from oneroot import settings
    from oneroot.cli import render
    from oneroot.cli.context import Context, Format

    if debug:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(name)s: %(message)s")
    ctx.call_on_close(render.end_progress)
    ctx.obj = Context(
        settings=settings.load(settings_file), format=Format(format_), progress=_progress(progress)
    )


def _progress(kind: str) -> Any:
    from oneroot.cli import render
    from oneroot.work.progress import SILENT, JsonEvents

    if kind == "json":
        return JsonEvents(sys.stderr)
    if kind == "none":
        return SILENT
    return render.Terminal() if sys.stderr.isatty() else render.Lines(sys.stderr)


def _spread_global_options(words: list[str]) -> tuple[list[str], list[str]]:
    """Let ``--format`` stand behind the command too: ``oneroot ls --format json`` reads best.

    Words behind ``exec`` or ``--`` are somebody else's and stay where they are.

    :returns: the global options, and the rest.
    """
    front: list[str] = []
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word in ("--", "exec"):
            rest += [word, *queue]
            break
        if word in ("--format", "--progress", "--settings") and queue:
            front += [word, queue.pop(0)]
        elif word.startswith(("--format=", "--progress=", "--settings=")) or word == "--debug":
            front.append(word)
        else:
            rest.append(word)
    return front, rest


def main() -> None:
    """Run the command line and exit with the code of the contract."""
    from oneroot.work import interrupt

    interrupt.install()
    os.umask(0o022)
    front, rest = _spread_global_options(sys.argv[1:])
    code = _guarded(front, rest)
    interrupt.finish()
    sys.exit(code)


def _guarded(front: list[str], rest: list[str]) -> int:
    from oneroot.cli import render

    as_json = "--format=json" in front or ("--format", "json") in itertools.pairwise(front)
    debug = "--debug" in front
    try:
        result = cli.main(args=[*front, *rest], prog_name="oneroot", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else ExitCode.DONE
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort:
        render.print_error(OnerootError("Nothing was changed", why="the answer was no"), as_json=as_json)
        return ExitCode.FAILED
    except click.ClickException as error:
        return _usage(error, as_json)
    except OnerootError as error:
        if debug:
            traceback.print_exc()
        render.print_error(error, as_json=as_json)
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        # The reader of our output is gone; Python would complain again at exit. The code that the
        # command would have ended with is not known, and must not look like a proof.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return ExitCode.FAILED
    except PermissionError as error:
        if os.geteuid() == 0:
            return _unexpected(error, debug, as_json)
        refused = HostError("oneroot needs to be root for this", why=str(error), fix="run it with sudo")
        render.print_error(refused, as_json=as_json)
        return refused.exit_code
    except Exception as error:  # the last fence: no traceback for a person
        return _unexpected(error, debug, as_json)


def _usage(error: click.ClickException, as_json: bool) -> int:
    from oneroot.cli import render
    from oneroot.errors import UsageError

    command = error.ctx.command_path if isinstance(error, click.UsageError) and error.ctx else "oneroot"
    render.print_error(UsageError(error.format_message(), fix=f"{command} --help"), as_json=as_json)
    return ExitCode.USAGE


def _unexpected(error: Exception, debug: bool, as_json: bool) -> int:
    from oneroot.cli import render
    from oneroot.errors import NoSpace

    if debug:
        traceback.print_exception(error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        shown: OnerootError = NoSpace(
            "A filesystem is full", why=str(error), fix="free space, then run the same command again"
        )
    else:
        shown = OnerootError(
            "oneroot met something that it did not expect",
            why=f"{type(error).__name__}: {error}",
            fix="run it again with --debug and report what it prints",
        )
    render.print_error(shown, as_json=as_json)
    return shown.exit_code


if __name__ == "__main__":
    main()
