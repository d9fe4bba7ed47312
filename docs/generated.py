"""A Markdown extension that writes the command-line reference, and lists the classes and functions of the Python API.

It replaces two kinds of comments, which stand alone on a line of a page:

    <!-- generated: commands -->                        every command of `seq2seq`, with its options
    <!-- generated: api seq2seq Seq2Seq train ... -->   these names of a package, from their docstrings, by mkdocstrings

A page that lists names of a package must list all of its `__all__`. Zensical imports this module from `docs/`, where
`PYTHONPATH` says so: `PYTHONPATH=docs zensical build --strict`.
"""

import html
import importlib
import os
import re
import sys

from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
MARK = re.compile(r"<!-- generated: (\w+) ?(.*) -->")


class Generated(Preprocessor):
    """A preprocessor that replaces the comments before anything else reads the page."""

    def run(self, lines):
        found, listed = [], {}
        for line in lines:
            match = MARK.fullmatch(line)
            if not match:
                found.append(line)
            elif match[1] == "commands":
                found += commands()
            elif match[1] == "api":
                package, *names = match[2].split()
                listed.setdefault(package, []).extend(names)
                found += api(package, names)
            else:
                raise ValueError(f"{line}: only commands and api can be generated")
        for package, names in listed.items():
            if missing := sorted(set(importlib.import_module(package).__all__) - set(names)):
                raise ValueError(f"{package}: this page must also list {', '.join(missing)}")
        return found


def api(package, names):
    """The lines that make mkdocstrings write the docstrings of names, each found in the module that defines it."""
    module = importlib.import_module(package)
    for name in names:
        yield from (f"::: {getattr(module, name).__module__}.{name}", "")


def commands():
    """The lines of the command-line reference."""
    import typer

    sys.argv[0] = "seq2seq"  # for help alone, TensorFlow need not be imported
    app = typer.main.get_command(importlib.import_module("seq2seq.cli").app)
    for name, command in app.commands.items():
        context = typer.Context(command, info_name=f"seq2seq {name}", parent=None)
        usage = command.get_usage(context).removeprefix("Usage: ")
        yield from (f"## {name}", "", *paragraphs(command.help), "", "```text", usage, "```", "")
        sections = {}
        for parameter in command.get_params(context):
            if record := parameter.get_help_record(context):
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections.setdefault(getattr(parameter, "rich_help_panel", None) or usual, []).append(record)
        for title, records in sections.items():
            yield from (f"**{title}**", "", "| name | meaning |", "|---|---|")
            for left, right in records:
                yield f"| {code(left)} | {cell(right)} |"
            yield ""


def paragraphs(text):
    """The lines of a help text, its examples as code."""
    for line in text.splitlines():
        yield re.sub(r"(seq2seq \w.*)", r"`\1`", line) if "xample" in line else cell(line)


def code(text):
    return f"<code>{cell(text)}</code>".replace("--", "&#45;&#45;")


def cell(text):
    """Text that neither Markdown nor a table takes for its own."""
    quoted = html.escape(" ".join(text.split()), quote=False)
    return re.sub(r"([\\|*_\[\]])", r"\\\1", quoted)


def makeExtension(**options):
    extension = Extension(**options)
    extension.extendMarkdown = lambda markdown: markdown.preprocessors.register(Generated(markdown), "generated", 100)
    return extension
