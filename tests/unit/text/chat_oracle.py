#!/usr/bin/env python3
"""Renders chat templates with jinja2 as transformers configures it: the reference of the chat tests.

  chat_oracle.py --record FILE.jsonl    sets `rendered` or `error` of each row {template, …} anew

A row is {template, messages, tools, context, now}; `tools` stands only when it is not null."""
import argparse
import datetime
import json
import sys

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
    """The tag {% generation %}, which marks what the assistant wrote; its text is the body's."""
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller):
        return caller()


class Clock:
    """The time that strftime_now shows; set before each rendering, so that templates compile once."""
    now = "1970-01-01T00:00:00"


def environment(clock):
    def refuse(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = refuse
    env.globals["strftime_now"] = lambda form: datetime.datetime.fromisoformat(clock.now).strftime(form)
    return env


def variables(row):
    found = dict(row.get("context") or {}, messages=row["messages"])
    if row.get("tools") is not None:
        found["tools"] = row["tools"]
    return found


def render(template, row):
    """("rendered", text) or ("error", words) of a compiled template."""
    try:
        return "rendered", template.render(**variables(row))
    except Exception as error:  # whatever Python raises in a template is that row's answer
        return "error", f"{type(error).__name__}: {error}"


def render_source(source, row):
    clock = Clock()
    clock.now = row["now"]
    try:
        template = environment(clock).from_string(source)
    except Exception as error:
        return "error", f"{type(error).__name__}: {error}"
    return render(template, row)


def record(path):
    with open(path, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file if line.strip()]
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            row.pop("rendered", None)
            row.pop("error", None)
            kind, text = render_source(row["template"], row)
            row[kind] = text
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    print(f"{len(rows)} rows recorded with jinja2 {jinja2.__version__}, {sys.version.split()[0]}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", required=True, metavar="FILE")
    record(parser.parse_args().record)
