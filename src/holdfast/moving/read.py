"""TRL's arguments out of a file: YAML, JSON, a command line or shell script, or a Python script that builds a config.

Nothing is executed. What cannot be known without running the file is an error that names the line.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from holdfast.errors import RecipeError
from holdfast.moving.fields import METHODS, SCRIPT, known

CONFIGS = {f"{name}Config": name.lower() for name in ("DPO", "KTO", "Reward", "CPO", "ORPO")}
TRAINERS = {name.replace("Config", "Trainer"): method for name, method in CONFIGS.items()}
LORA = {"r": "lora_r", "target_modules": "lora_target_modules", "target_parameters": "lora_target_parameters"}
LORA |= {"modules_to_save": "lora_modules_to_save", "task_type": "lora_task_type"}
LORA |= {name: name for name in ("lora_alpha", "lora_dropout", "use_rslora", "use_dora")}


@dataclass
class Said:
    """What a file says: TRL's arguments, the method where the file names it, and how it is launched."""

    values: dict[str, Any] = field(default_factory=dict)
    method: str | None = None
    processes: int | None = 1  # None: a launcher that does not say how many
    launch: list[str] = field(
        default_factory=list
    )  # words of the launcher and environment that are not TRL's arguments


def read_arguments(path: str | Path) -> Said:
    """The arguments in a file; which kind of file it is follows from its ending, else from what it holds.

    Raises RecipeError where it cannot be read, or holds no TRL arguments, or more than one set of them.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RecipeError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise RecipeError(f"{path} is a folder; name the file with TRL's arguments") from None
    except UnicodeDecodeError:
        kind = "a pickle, which is never loaded; save the arguments as JSON: args.to_json_string()"
        raise RecipeError(f"{path} is not text" + (f" but {kind}" if path.suffix in (".bin", ".pt") else "")) from None
    if path.suffix == ".py":
        return _python(text, path)
    if path.suffix in (".sh", ".bash", ".txt", ".cmd") or re.search(r"(^|\s)--\w", text):
        return _shell(text, path)
    return Said(_mapping(text, path))


def _mapping(text: str, path: Path) -> dict[str, Any]:
    """YAML or JSON: one mapping. TRL's `env` table is the launcher's."""
    try:
        said = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (json.JSONDecodeError, yaml.YAMLError) as problem:
        raise RecipeError(f"{path} cannot be read: {' '.join(str(problem).split())}") from None
    if not isinstance(said, Mapping) or not all(isinstance(key, str) for key in said):
        raise RecipeError(f"{path} should hold one mapping of TRL's argument names to values")
    return {key.replace("-", "_"): value for key, value in said.items() if key != "env"}


def _shell(text: str, path: Path) -> Said:
    """The one command in a script that starts a TRL trainer."""
    variables: dict[str, str] = {}
    found: list[tuple[list[str], list[str], str | None]] = []
    for line in re.sub(r"\\\r?\n", " ", text).splitlines():
        try:
            words = shlex.split(line, comments=True)
        except ValueError as problem:
            raise RecipeError(f"{path}: {line.strip()[:80]!r} cannot be read as a shell command: {problem}") from None
        if words and all(re.fullmatch(r"(export|[A-Za-z_]\w*=.*)", w, re.S) for w in words):
            variables |= {k: _put_in(v, variables, path) for k, _, v in (w.partition("=") for w in words if "=" in w)}
            continue
        start = _start(words)
        if start is not None:
            at, method = start
            found.append((words[:at], [_put_in(w, variables, path) for w in words[at:]], method))
    if len(found) != 1:
        raise RecipeError(
            f"{path} holds {len(found)} commands that start a TRL trainer (trl METHOD ..., or a .py script with options); it should hold one"
        )
    before, options, method = found[0]
    launcher, processes = _launcher(before, path)
    said = Said(_options(options, path), method, processes, launcher)
    _take_launch_options(said)
    config = said.values.pop("config", None)
    if config is not None:  # the command's own options are laid over the file's
        file = path.parent / str(config) if (path.parent / str(config)).exists() else Path(str(config))
        if not file.exists():
            raise RecipeError(f"{path} reads --config {config}, which does not exist here")
        said.values = {**_mapping(file.read_text(encoding="utf-8"), file), **said.values}
    return said


def _start(words: list[str]) -> tuple[int, str | None] | None:
    """Where a command's TRL options begin, and its method where the command names it."""
    for i, word in enumerate(words):
        if Path(word).name == "trl" and i + 1 < len(words) and words[i + 1] in METHODS:
            return i + 2, words[i + 1]
        if word.endswith(".py") and any(w.startswith("--") for w in words[i + 1 :]):
            named = [m for m in METHODS if re.search(rf"(^|[^a-z]){m}([^a-z]|$)", Path(word).stem.lower())]
            return i + 1, named[0] if len(named) == 1 else None
    if words and words[0].startswith("--"):
        return 0, None
    return None


def _put_in(word: str, variables: Mapping[str, str], path: Path) -> str:
    try:
        return string.Template(word).substitute(variables) if "$" in word else word
    except (KeyError, ValueError):
        raise RecipeError(
            f"{path}: {word!r} is only known when the script runs; write the value, or give it with --set"
        ) from None


def _options(words: list[str], path: Path) -> dict[str, Any]:
    """`--key value`, `--key=value`, `--key` (true), `--key a b` (a list). Later ones win, as in TRL."""
    said: dict[str, Any] = {}
    key: str | None = None
    for word in words:
        if re.match(r"--[A-Za-z]", word):
            key, equals, value = word[2:].partition("=")
            key = key.replace("-", "_")
            said[key] = [value] if equals else []
        elif key is None:
            raise RecipeError(f"{path}: {word!r} is no option (--name value)")
        elif word in ("&", "&&", ";", "|", "2>&1") or word.startswith(">"):
            break
        else:
            said[key].append(word)
    return {k: True if not v else v[0] if len(v) == 1 else v for k, v in said.items()}


def _launcher(words: list[str], path: Path) -> tuple[list[str], int | None]:
    """The launcher's words, and how many processes it starts; None where it leaves that to a file or to the machine."""
    words = [w for w in words if not w.endswith(".py")]
    names = [Path(w).name for w in words]
    first = next((i for i, w in enumerate(words) if w.startswith("--")), len(words))
    options = _options(words[first:], path)
    if "torchrun" in names or "torch.distributed.run" in names:
        return words, int(options.get("nproc_per_node", 1)) * int(options.get("nnodes", 1))
    if "accelerate" in names or "deepspeed" in names:
        number = options.get("num_processes", options.get("num_gpus"))
        return words, int(number) if number is not None else None
    return words, 1


def _take_launch_options(said: Said) -> None:
    """`trl METHOD` hands options of `accelerate launch` on."""
    for name in ("num_processes", "num_machines", "accelerate_config", "mixed_precision", "main_process_port"):
        if name in said.values and name not in SCRIPT:
            value = said.values.pop(name)
            said.launch += [f"--{name}", str(value)]
            said.processes = int(value) if name == "num_processes" else said.processes
            if name == "accelerate_config" and "num_processes" not in " ".join(said.launch):
                said.processes = 1 if value == "single_gpu" else None


def _python(text: str, path: Path) -> Said:
    """The keywords of the one DPOConfig(...) (KTOConfig, ...) in a script, with what can be read of model and LoRA."""
    try:
        tree = ast.parse(text)
    except SyntaxError as problem:
        raise RecipeError(f"{path} is not Python: {problem}") from None
    names: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            names.setdefault(node.targets[0].id, []).append(node.value)

    def value(expression: ast.expr, name: str) -> Any:
        if isinstance(expression, ast.Name) and len(names.get(expression.id, [])) == 1:
            return value(names[expression.id][0], name)
        if ast.unparse(expression) in ("torch.float32", "torch.bfloat16", "torch.float16"):
            return ast.unparse(expression).removeprefix("torch.")
        if isinstance(expression, ast.Dict):
            keys = [k.value if isinstance(k, ast.Constant) else None for k in expression.keys]
            return {k: value(v, f"{name}[{k!r}]") for k, v in zip(keys, expression.values, strict=True)}
        try:
            return ast.literal_eval(expression)
        except ValueError:
            raise RecipeError(
                f"{path}, line {expression.lineno}: {name} = {ast.unparse(expression)} is only known when the script runs; "
                f"give it with --set {name}=VALUE"
            ) from None

    calls = [n for n in ast.walk(tree) if isinstance(n, ast.Call)]
    configs = [c for c in calls if _called(c) in CONFIGS]
    if len(configs) != 1:
        raise RecipeError(f"{path} builds {len(configs)} of {', '.join(CONFIGS)}; it should build one")
    method = CONFIGS[_called(configs[0])]
    said = Said(method=method)
    if configs[0].args:
        said.values["output_dir"] = value(configs[0].args[0], "output_dir")
    for keyword in configs[0].keywords:
        if keyword.arg is None:
            raise RecipeError(
                f"{path}, line {keyword.value.lineno}: **{ast.unparse(keyword.value)} is only known when the script runs; write the arguments out"
            )
        try:
            said.values[keyword.arg] = value(keyword.value, keyword.arg)
        except RecipeError as problem:
            said.values[keyword.arg] = NotKnown(str(problem))
    for call in calls:
        if _called(call) == "LoraConfig":
            said.values["use_peft"] = True
            for keyword in call.keywords:
                if keyword.arg == "bias" and value(keyword.value, "bias") == "none":
                    continue
                if keyword.arg not in LORA:
                    raise RecipeError(
                        f"{path}, line {call.lineno}: LoraConfig's {keyword.arg} is unknown (known: {', '.join(LORA)})"
                    )
                said.values[LORA[keyword.arg]] = value(keyword.value, keyword.arg)
    models = set()
    for expression in filter(None, map(_model_of, calls)):
        try:
            models.add(value(expression, "model"))
        except RecipeError:
            continue  # --set model_name_or_path says it
    if len(models) == 1 and isinstance(only := models.pop(), str):
        said.values.setdefault("model_name_or_path", only)
    return said


@dataclass(frozen=True)
class NotKnown:
    """A value that only running the script would tell; an error unless --set says it."""

    why: str


def _called(call: ast.Call) -> str:
    return (
        call.func.id
        if isinstance(call.func, ast.Name)
        else call.func.attr
        if isinstance(call.func, ast.Attribute)
        else ""
    )


def _model_of(call: ast.Call) -> ast.expr | None:
    """The model that a trainer, or `AutoModelFor...from_pretrained`, is given."""
    if _called(call) in TRAINERS:
        given = next((k.value for k in call.keywords if k.arg == "model"), call.args[0] if call.args else None)
        return given if isinstance(given, ast.Constant | ast.Name) else None
    owner = call.func.value if isinstance(call.func, ast.Attribute) else None
    if _called(call) == "from_pretrained" and owner is not None and ast.unparse(owner).startswith("AutoModelFor"):
        return call.args[0] if call.args else None
    return None


def method_of(said: Said, where: str) -> str:
    """The method: as the file names it, else the only one that knows all the arguments."""
    if said.method is not None:
        return said.method
    fit = [m for m in METHODS if set(said.values) <= set(known(m))]
    if len(fit) == 1:
        return fit[0]
    every = {name for m in METHODS for name in known(m)}
    if not fit and set(said.values) <= every:
        raise RecipeError(
            f"{where}: no one method takes all of {', '.join(sorted(said.values))}; say which with --method"
        )
    raise RecipeError(
        f"{where} does not say which method it is for; say it with --method ({' | '.join(fit or METHODS)})"
    )
