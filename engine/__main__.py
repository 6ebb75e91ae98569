"""python -m engine: continue a text, answer a question, embed texts, compare models, or show a model's shape."""

from __future__ import annotations

import sys
from typing import Any

from engine.checkpoints import embedded
from engine.cli.parser import SAMPLING_HELP, Parser, choose_model, model_options, run
from engine.quant import AUTO, GGUF
from engine.runtime.errors import UsageError

LOST_SHARE = 0.05  # of an adapter's change, by its norm, from which a line says what merging loses
NOT_WITH_EMBED = (  # options of other parts
    *("chat", "image", "json", "draft", "save", "save_quantized", "json_schema", "regex", "lark"),
    *(*SAMPLING_HELP, "stop"),
)


def parser() -> Parser:
    """The program's flags."""
    result = Parser("python -m engine", "Continue a text with a model, or show what the model consists of.")
    result.add_argument("text", nargs="?", metavar="PROMPT", help="the text to continue (default: stdin)")
    result.add_model_options(default=embedded.default_model())
    result.add_draft_option()
    result.add_argument("--prompt", "-p", help="the text to continue, if it could be taken for a model's name")
    result.add_argument("--file", metavar="FILE", help="file of prompts, one per line, decoded together")
    result.add_argument(
        "--chat", action="store_true", help="send the prompt as a message, in the model's chat template"
    )
    result.add_argument(
        "--image",
        action="append",
        metavar="FILE",
        help="send this picture with the prompt, as a message to a vision-language model; for several, once for each",
    )
    result.add_argument(
        "--system", "--system-prompt", "-s", metavar="TEXT", help="system message, with --chat or --image"
    )
    result.add_argument(
        "--embed",
        action="store_true",
        help=f"print the vector of each line of stdin, as a JSON array (default model: {embedded.MINILM})",
    )
    result.add_argument("--json", action="store_true", help="print one JSON object per prompt, with ids and times")
    result.add_sampling_options()
    grammar = result.add_argument_group("grammar: what the text must match").add_mutually_exclusive_group()
    grammar.add_argument("--json-schema", metavar="FILE", help="JSON that the schema in this file accepts")
    grammar.add_argument("--regex", metavar="PATTERN", help="a regular expression, in the syntax of Rust")
    grammar.add_argument("--lark", metavar="FILE", help="the context-free grammar in this file, in llguidance's Lark")
    result.add_argument("--inspect", action="store_true", help="only print family, shapes, special tokens and costs")
    result.add_argument("--families", action="store_true", help="only print a table of the model families")
    result.add_argument(
        "--save",
        metavar="FOLDER",
        help="only write the model as a Hugging Face folder, unquantized, with --adapter merged",
    )
    result.add_argument("--save-quantized", metavar="FOLDER", help="only write the model in the format of --quant")
    result.add_argument(
        "--context", type=int, help="with --inspect: number of tokens before the one whose cost is shown"
    )
    return result


def main(options: Any) -> None:
    """Run the part that the flags select."""
    if options.text is None and options.prompt is None and len(options.model or ()) > 1 and " " in options.model[-1]:
        options.text = options.model.pop()  # -m MODEL "some text": no model name has a space
    if options.text is not None and options.prompt is not None:
        raise UsageError("give one prompt, as an argument or with --prompt")
    options.prompt = options.text if options.prompt is None else options.prompt
    if options.system and not options.chat and not options.image:
        raise UsageError("--system needs --chat or --image")
    given = {name: getattr(options, name) for name in NOT_WITH_EMBED}
    unused = [name for name, value in given.items() if value is not None and value is not False]
    if options.embed and unused:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
        raise UsageError(f"--embed prints vectors; leave out {names}")
    if options.families:
        from rich.console import Console

        from engine.cli.inspection import families

        Console().print(families())
        return
    choose_model(options, embedded.MINILM if options.embed else embedded.default_model())
    if options.save is not None or options.save_quantized is not None:
        save(options)
        return
    if options.embed and not options.inspect:
        from engine.cli.embed import embed

        embed(options)
        return
    if not options.inspect:
        from engine.cli.complete import complete

        complete(options)
        return
    from rich.console import Console

    from engine.cli.inspection import inspect

    for name in options.model:
        flags = (options.dtype, options.context, options.allow_pickle, options.quant, options.device, options.adapter)
        for table in inspect(name, *flags):
            Console().print(table)


def save(options: Any) -> None:
    """Write one model to a folder, quantized with --save-quantized."""
    from engine import LLM
    from engine.checkpoints.adapters.files import merge_adapters
    from engine.checkpoints.opening import open_model
    from engine.checkpoints.saving import require_new_folder
    from engine.runtime.files import local_path

    if len(options.model) != 1 or None not in (options.save, options.save_quantized):
        raise UsageError("--save and --save-quantized write one model to one folder; name one of each")
    folder = local_path(options.save if options.save_quantized is None else options.save_quantized)
    require_new_folder(folder)
    if options.save is not None and options.quant == AUTO:
        options.quant = "none"
    names = options.model[0], options.dtype, options.allow_pickle, options.quant
    opened = open_model(*names, adapter=options.adapter)
    if options.save is not None and opened.quant != "none":
        way_out = "leave out --quant" if opened.quant == GGUF else "use --save-quantized"
        raise UsageError(f"--save writes unquantized weights, and these are in {opened.quant}: {way_out}")
    if options.save is None and opened.quant in ("none", GGUF):
        raise UsageError("--save-quantized needs a weight format: add --quant int8 or int4")
    if options.save is None and opened.adapter is not None:
        raise UsageError("--save-quantized takes a model without an adapter: merge it with --save, and quantize that")
    llm = LLM.load(options.model[0], **model_options(options) | {"draft": None})
    lost = merge_adapters(llm.model)
    llm.save(folder)
    if lost > LOST_SHARE:
        line = f"{opened.format_name} rounds away {lost:.0%} of the adapter's change; --dtype float32 keeps all of it"
        print(line, file=sys.stderr)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size:,} bytes in {opened.format_name}; load it as --model {folder}", file=sys.stderr)


if __name__ == "__main__":
    run(parser(), main)
