"""The process that renders chat templates: jinja2 in its immutable sandbox, one JSON request per line on stdin.

A template is a program that comes with a checkpoint. The sandbox protects Python's internals; a process with limited
memory and CPU time protects everything else. It imports nothing from the engine.
"""

import json
import signal
import sys
from datetime import datetime
from functools import lru_cache

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY = 512 * 2**20  # bytes of address space


class GenerationBlocks(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %} marks a reply for training; rendering ignores the marks."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(source: str, variables: dict[str, object], now: str, cpu_limit: float) -> str:
    """Render the template. `now` (ISO 8601) is what `strftime_now` returns.

    A signal ends the process after `cpu_limit` seconds of CPU time, which do not depend on how busy the machine is.
    """
    limit_cpu_time(cpu_limit)
    try:
        return compile_template(source, now).render(variables)
    finally:
        limit_cpu_time(0)


def limit_cpu_time(seconds: float) -> None:
    """Let SIGPROF end this process after so much CPU time from now on; 0 removes the limit."""
    if hasattr(signal, "setitimer"):  # not on Windows, where template_renderer.TIMEOUT is the only limit
        signal.setitimer(signal.ITIMER_PROF, seconds)


@lru_cache(maxsize=4)
def compile_template(source: str, now: str) -> jinja2.Template:
    """Compile a template, with the functions that transformers offers to templates."""

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(x: object, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:  # type: ignore[no-untyped-def]
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols, GenerationBlocks]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = datetime.fromisoformat(now).strftime
    return environment.from_string(source)


def main() -> None:
    """Answer requests until stdin ends."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (ImportError, ValueError, OSError):
        pass  # not on this system; the limit on CPU time still applies
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            answer = {"text": render(**json.loads(line))}
        except MemoryError:
            answer = {"error": "it used too much memory"}
        except jinja2.TemplateError as error:
            answer = {"refusal": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
