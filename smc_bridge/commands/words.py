"""Messages of the library in the words of the command line: its arguments by their flags."""

from __future__ import annotations

import argparse
import re

#: Arguments of the library that a command knows by another name, the first that it has.
OTHER_NAMES = {"proposal_temperature": ("lane_temperatures",), "path": ("json", "out")}
#: Where a message turns to the options of a method, which keep their names, for they are written in its spelling.
OF_METHODS = re.compile(r"\w+ is no option of |; it has ")
#: Remedies that only Python has, by the argument that they are about.
OF_PYTHON = {"format_prompt": re.compile(r",? or give format_prompt\b[^;]*")}
#: What a switch stands for in the library's words.
SWITCHES = {"balance": "weight = balance", "plain": "chat = False"}


def in_flags(text: str, parser: argparse.ArgumentParser) -> str:
    """A message with the flags of a command in the place of the names of Python.

    `max_new_tokens = 0: ..` becomes `--max-new-tokens = 0: ..`; a name with an underscore is a name wherever it stands,
    another one only before ` = ` or in a remedy. Options of a method keep theirs.
    """
    start = turn.start() if (turn := OF_METHODS.search(text)) else len(text)
    text, options = text[:start], text[start:]
    flags = {}
    for action in parser._actions:  # argparse has no public list of them
        known = [option for option in action.option_strings if option.startswith("--")]
        if known and action.help is not argparse.SUPPRESS:
            flags[action.dest] = known[0], action.nargs == 0
    for name, others in OTHER_NAMES.items():
        found = next((other for other in others if other in flags), None)
        if name not in flags and found is not None:
            flags[name] = flags[found]
    for name, remedy in OF_PYTHON.items():
        text = text if name in flags else remedy.sub("", text)
    for name, meant in SWITCHES.items():
        if name in flags:
            text = text.replace(meant, flags[name][0])
    for name, (flag, is_switch) in flags.items():
        # Not a part of another word, an attribute, a flag already, or quoted.
        alone = rf"(?<![\w\-.'\"`/]){re.escape(name)}"
        if is_switch:
            text = re.sub(rf"{alone} ?= ?True\b", flag, text)
        text = re.sub(rf"{alone}(?= = )", flag, text)
        text = re.sub(rf"\b(give|leave) {re.escape(name)}(?=[,;]| out\b|$)", rf"\1 {flag}", text)
        if "_" in name:
            text = re.sub(rf"{alone}(?![\w(=.'\"`/])", flag, text)
    return text + options
